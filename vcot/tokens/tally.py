"""What tokenize counts in each shard, and the sums over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from vcot.records.example import Example
from vcot.records.sample import Rejection, Sample

SHOWN = 4
"""Examples that a shard offers for the audit page, of each kind."""


@dataclass
class Counts:
    """Numbers of a shard, in a form that can stand in its mark and be added up."""

    splits: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)  # tokens → examples
    visual: Counter[int] = field(default_factory=Counter)  # visual tokens → examples
    by_text: int = 0  # examples of samples without a picture; they are not in `visual`
    learned: int = 0  # tokens
    shrunk: int = 0
    lost_alternatives: Counter[str] = field(default_factory=Counter)  # reason → of rows that were kept
    test_rows: int = 0
    shown: list[dict[str, Any]] = field(default_factory=list)

    def add(self, example: Example, sample: Sample, visual: int) -> None:
        row = self.examples  # its number in the shard
        self.splits[example.split] += 1
        self.lengths[len(example.ids)] += 1
        if sample.image is None:
            self.by_text += 1
        else:
            self.visual[visual] += 1
        self.learned += example.learned
        self.shrunk += example.shrunk
        kind = "shrunk" if example.shrunk else "by-text" if sample.image is None else example.split
        seen = (sample.image, sample.image.kept) if sample.image else (None, None)
        size, kept = (image and [image.width, image.height] for image in seen)
        self._show({"row": row, "kind": kind, "size": size, "kept": kept, "question": sample.question})

    def lose(self, rejection: Rejection) -> None:
        """One reasoning of a row that others kept."""
        self.lost_alternatives[rejection.reason.value] += 1

    def _show(self, one: dict[str, Any]) -> None:
        """Offers an example for the page; of each kind the first few, and rather other questions than the same."""
        alike = [shown for shown in self.shown if shown["kind"] == one["kind"]]
        if len(alike) < SHOWN:
            self.shown.append(one)
            return
        questions = Counter(shown["question"] for shown in alike)
        again = [shown for shown in alike if questions[shown["question"]] > 1]
        if again and one["question"] not in questions:
            self.shown[self.shown.index(again[-1])] = one

    @property
    def examples(self) -> int:
        return self.splits.total()

    @property
    def tokens(self) -> int:
        return sum(length * count for length, count in self.lengths.items())

    def to_json(self) -> dict[str, Any]:
        return {
            "splits": dict(sorted(self.splits.items())),
            "lengths": _written(self.lengths),
            "visual": _written(self.visual),
            "by_text": self.by_text,
            "learned": self.learned,
            "shrunk": self.shrunk,
            "lost_alternatives": dict(sorted(self.lost_alternatives.items())),
            "test_rows": self.test_rows,
            "shown": self.shown,
        }

    @classmethod
    def sum(cls, facts: Iterable[Mapping[str, Any]]) -> Self:
        """The sums over shards; what they show stays with them."""
        total = cls()
        for part in facts:
            total.splits.update(part["splits"])
            total.lengths.update(_read(part["lengths"]))
            total.visual.update(_read(part["visual"]))
            total.by_text += part.get("by_text", 0)  # marks of earlier versions do not have it
            total.learned += part["learned"]
            total.shrunk += part["shrunk"]
            total.lost_alternatives.update(part["lost_alternatives"])
            total.test_rows += part["test_rows"]
        return total


def histogram(counts: Mapping[int, int], bars: int = 10) -> list[tuple[int, int, int]]:
    """(from, up to and with, how many) in at most `bars` steps of one width."""
    if not counts:
        return []
    low, high = min(counts), max(counts)
    width = -(-(high - low + 1) // bars)
    steps = ((start, min(start + width - 1, high)) for start in range(low, high + 1, width))
    return [(a, b, sum(n for value, n in counts.items() if a <= value <= b)) for a, b in steps]


def _written(counts: Counter[int]) -> dict[str, int]:
    """Keys of JSON are text."""
    return {str(value): counts[value] for value in sorted(counts)}


def _read(counts: Mapping[str, int]) -> dict[int, int]:
    return {int(value): count for value, count in counts.items()}
