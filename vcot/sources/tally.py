"""What went through convert, in numbers that shards count for themselves and that are added up exactly.

Every row goes through here, so counting one takes about a microsecond: whole numbers are added to dicts, and what
they mean is worked out at the end (report.py).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from vcot.records import Reason, Sample

Counts = dict[str, Any]
"""Nested dicts whose leaves are counts."""

NOT_ANNOTATED = -1
"""In place of the number of boxes, where nobody said where the evidence is."""
BY_TEXT = -2
"""In the same place, where the question is asked by text alone."""
SHARES = (*(float(f"{digits}e{power}") for power in range(-7, 0) for digits in ("1", "1.5", "2", "3", "5", "7")), 1.0)
"""Shares of a picture to which the area of a box is rounded down; the smallest stands for all below, too."""
_EDGES = SHARES[1:]


class Counting:
    """The counts of one shard."""

    def __init__(self) -> None:
        self._datasets: dict[str, _Dataset] = {}

    def keep(self, sample: Sample) -> None:
        origin, image = sample.origin, sample.image
        here = self._datasets.get(origin.dataset) or self._new(origin.dataset)
        here.kept[origin.split, origin.licence] += 1
        here.question_length[len(sample.question)] += 1
        here.answer_length[len(sample.answers[0])] += 1
        here.reasonings[len(sample.reasoning)] += 1
        boxes = NOT_ANNOTATED
        if image is None:
            boxes = BY_TEXT
            here.without_image[origin.split] += 1
        elif sample.evidence is not None:
            boxes, pixels, areas = 0, image.width * image.height, here.box_area
            for mention in sample.evidence:
                for box in mention.boxes:
                    boxes += 1
                    areas[bisect_right(_EDGES, (box.x2 - box.x1) * (box.y2 - box.y1) / pixels)] += 1
        here.boxes_per_row[boxes] += 1

    def refuse(self, dataset: str, reason: Reason) -> None:
        here = self._datasets.get(dataset) or self._new(dataset)
        here.rejected[reason.value] += 1

    def _new(self, dataset: str) -> _Dataset:
        found = self._datasets[dataset] = _Dataset()
        return found

    def facts(self) -> Counts:
        """Dataset → what was counted of it, as JSON that `added` adds up."""
        return {"datasets": {name: found.facts() for name, found in sorted(self._datasets.items())}}


class _Dataset:
    """Counts of one dataset; lengths in characters."""

    __slots__ = (
        "answer_length", "box_area", "boxes_per_row", "kept", "question_length", "reasonings", "rejected",
        "without_image",
    )  # fmt: skip

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], int] = defaultdict(int)
        self.rejected: dict[str, int] = defaultdict(int)
        self.without_image: dict[str, int] = defaultdict(int)
        self.question_length: dict[int, int] = defaultdict(int)
        self.answer_length: dict[int, int] = defaultdict(int)
        self.reasonings: dict[int, int] = defaultdict(int)
        self.boxes_per_row: dict[int, int] = defaultdict(int)
        self.box_area: dict[int, int] = defaultdict(int)

    def facts(self) -> Counts:
        kept: dict[str, int] = defaultdict(int)
        licences: dict[str, int] = defaultdict(int)
        for (split, licence), rows in self.kept.items():
            kept[split] += rows
            licences[licence] += rows
        return {
            "kept": dict(kept),
            "rejected": dict(self.rejected),
            "licences": dict(licences),
            "without_image": dict(self.without_image),
            "question_length": _rounded(self.question_length),
            "answer_length": _rounded(self.answer_length),
            "reasonings": _rounded(self.reasonings),
            "boxes_per_row": _rounded(self.boxes_per_row),
            "box_area": {str(SHARES[place]): boxes for place, boxes in self.box_area.items()},
        }


def _rounded(counts: Mapping[int, int]) -> dict[str, int]:
    """Whole numbers to three digits, down, so that a mark stays small however long texts are. Keys of JSON are text."""
    found: dict[str, int] = defaultdict(int)
    for value, rows in counts.items():
        cut = 10 ** max(0, len(str(value)) - 3)
        found[str(value // cut * cut)] += rows
    return dict(found)


def added(a: Mapping[str, Any], b: Mapping[str, Any]) -> Counts:
    """Both counts together."""
    both: Counts = dict(a)
    for key, value in b.items():
        if isinstance(value, Mapping):
            both[key] = added(both.get(key, {}), value)
        else:
            both[key] = both.get(key, 0) + value
    return both
