"""What a shard of convert keeps for the report: what was refused of each dataset, and examples to show.

What a refused row would have shown is found out by reading it once more, with eyes on its image and its boxes; that is
done for the few rows that are shown.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from vcot.datasets.base import ConversionContext, numbers
from vcot.datasets.images import DatasetImages
from vcot.datasets.inputs import Refused, Row
from vcot.datasets.quality import NEUTRAL
from vcot.grounding import Box, BoxError, Trace
from vcot.records import Folder, Image, Reason, Rejection, Sample
from vcot.reports.conversion import SHOWN
from vcot.reports.examples import Edges, ExampleSampler, ShownBox, ShownExample
from vcot.reports.rendering import shorten
from vcot.storage.images import ImageError
from vcot.uris import redact_credentials

_LONGEST = 1200
"""Characters of a text."""
_DEEPEST = 6
_MOST_BOXES = 40


class ShardReport:
    """Every refused row is counted under its dataset, and some rows are put aside to be shown."""

    def __init__(self) -> None:
        self._refused: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._sampler = ExampleSampler(SHOWN)

    def add(self, row: Row, result: Sample | Rejection, context: ConversionContext) -> None:
        """context: what the row was read with."""
        if isinstance(result, Sample):
            if self._sampler.wants(result.origin.dataset, "kept", row.id):
                self._sampler.add(kept_example(row, result))
            return
        # A row may call its dataset anything, also half a surrogate pair, which no file can hold.
        dataset = context.dataset_of(row)[:80].encode(errors="replace").decode()
        self._refused[dataset][result.reason.value] += 1
        if self._sampler.wants(dataset, f"refused:{result.reason}", row.id):
            self._sampler.add(refused_example(row, dataset, result, context))

    def leave(self, folder: Folder, shard: int) -> dict[str, dict[str, int]]:
        """Puts the examples into the stage's folder; gives what was refused: dataset → reason → rows."""
        self._sampler.put_aside(folder, shard)
        return {dataset: dict(sorted(n.items())) for dataset, n in sorted(self._refused.items())}


def kept_example(row: Row, sample: Sample) -> ShownExample:
    mentions = sample.evidence
    if mentions is None:
        mentions = tuple(mention for trace in sample.reasoning[:1] for mention in trace.mentions)
    boxes, named = [], {NEUTRAL}
    for label, box in ((mention.label, box) for mention in mentions for box in mention.boxes):
        boxes.append(
            ShownBox(label="" if label in named else shorten(label, 60), edges=(box.x1, box.y1, box.x2, box.y2))
        )
        named.add(label)
    return ShownExample(
        id=row.id, dataset=sample.origin.dataset, group="kept", split=sample.origin.split,
        question=shorten(sample.question, _LONGEST), context=shorten(sample.context or "", _LONGEST),
        choices=tuple(shorten(choice, 120) for choice in (sample.choices or ())[:12]),
        answers=tuple(shorten(answer, 400) for answer in sample.answers[:8]),
        reasoning=tuple(
            trace if len(trace.text) <= _LONGEST else Trace((shorten(trace.text, _LONGEST),))
            for trace in sample.reasoning[:3]
        ),
        metadata=tuple(shorten(f"{name}: {value}", 120) for name, value in list(sample.metadata.items())[:12]),
        annotated=sample.evidence is not None, image=sample.image, boxes=tuple(boxes[:_MOST_BOXES]),
    )  # fmt: skip


def refused_example(row: Row, dataset: str, result: Rejection, context: ConversionContext) -> ShownExample:
    image, boxes = _seen(row, context)
    size = (image.width, image.height) if image else (0, 0)
    copies = result.reason == Reason.BOX_COPIES_DISAGREE
    return ShownExample(
        id=row.id, dataset=dataset, group=f"refused:{result.reason}", detail=result.detail,
        written=_written(row.value), image=image,
        boxes=tuple(
            ShownBox(label=f"copy {number}" if copies else fault(edges, size), edges=edges, proposed=True)
            for number, edges in enumerate(boxes, 1)
        ),
    )  # fmt: skip


def fault(edges: Edges, size: tuple[int, int]) -> str:
    """What is wrong with a box that can be seen, in a word; "" of a sound one."""
    x1, y1, x2, y2 = edges
    if x2 < x1 or y2 < y1:
        return "inverted"
    if x1 == x2 or y1 == y2:
        return "empty"
    return "leaves the image" if x1 < 0 or y1 < 0 or x2 > size[0] or y2 > size[1] else ""


def _written(value: Mapping[str, Any]) -> str:
    """The row as JSON, long things shortened from within, so that what comes last can be read, too."""
    said = json.dumps(_shortened(value), ensure_ascii=False, default=repr)
    return shorten(said.encode(errors="replace").decode(), _LONGEST)


def _shortened(value: Any, depth: int = 0) -> Any:
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    if isinstance(value, str):
        return shorten(redact_credentials(value), 240)
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "(a whole number of more than 64 bits)"
    if not isinstance(value, dict | list):
        return value
    if depth == _DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {shorten(str(name), 60): _shortened(entry, depth + 1) for name, entry in list(value.items())[:24]}
    return [_shortened(entry, depth + 1) for entry in value[:12]] + ["…"] * (len(value) > 12)


def _seen(row: Row, context: ConversionContext) -> tuple[Image | None, Iterator[Edges]]:
    """The image of a row that was refused, as far as it was found, and the boxes that it wanted to have there."""
    if row.fault is not None:
        return None, iter(())
    images = _WatchedImages(context.images)
    watched = _WatchedContext(**vars(context) | {"images": images})
    try:
        context.dataset.sample(row, watched)
    except Refused as refused:
        watched.edges.extend(refused.places)
    except (BoxError, ImageError, ValidationError, RecursionError):
        pass
    return images.found, (each for each in watched.edges[:_MOST_BOXES] if all(map(math.isfinite, each)))


class _WatchedImages(DatasetImages):
    """The same, which remembers the last image that was found."""

    def __init__(self, images: DatasetImages) -> None:
        vars(self).update(vars(images))
        self.found: Image | None = None

    def find(self, path: str) -> Image:
        self.found = super().find(path)
        return self.found

    def keep(self, name: str, data: bytes) -> Image:
        self.found = super().keep(name, data)
        return self.found


@dataclass(frozen=True)
class _WatchedContext(ConversionContext):
    """The same, which remembers the boxes that somebody wanted."""

    edges: list[Edges] = field(default_factory=list)

    def box(self, edges: Any, image: Image) -> Box:
        self.edges.append(numbers(edges))
        return super().box(edges, image)
