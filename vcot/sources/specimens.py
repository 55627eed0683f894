"""Rows for the report's page, kept ones and refused ones: chosen by a hash of their ids, so neither the first ones nor
other ones in another number of shards.

A shard puts its candidates beside itself (`report/00003.json`), the finish takes the best of all. What a refused row
would have shown is found out by reading it once more, with eyes on its picture and its boxes; that is done for a few
rows alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from zlib import crc32

from pydantic import Field, ValidationError

from vcot.grounding import Box, BoxError
from vcot.records import Image, Rejection, Sample
from vcot.records.base import Record
from vcot.sources.base import ConversionContext, Dataset, numbers
from vcot.sources.pictures import Pictures
from vcot.sources.row import Edges, Refused, Row
from vcot.storage.images import ImageError

SHOWN = 8
"""Rows of each kind that a shard offers; a kind is a dataset's kept rows, or those refused for one reason."""
_DATASETS = 64
"""Of more than so many datasets those with the smallest hashes are shown: rows may say anything of theirs."""
_LONGEST = 1200
"""Characters of a text."""
_DEEPEST = 6
_MOST = 40
"""Boxes of a row."""


class Place(Record):
    """A box, or what was meant to be one: pixels of the original, perhaps outside or inverted."""

    label: str
    edges: Edges


class Specimen(Record):
    """A row as the page shows it. Texts are shortened."""

    rank: int
    row: str
    dataset: str
    split: str | None = Field(None, description="of a row that was kept")
    reason: str | None = Field(None, description="of a row that was refused")
    detail: str = ""
    question: str = ""
    context: str = ""
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    reasoning: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    annotated: bool = True
    written: str = Field("", description="of a row that was refused: what it says, as JSON")
    image: Image | None = None
    places: tuple[Place, ...] = ()

    @property
    def kind(self) -> str:
        return self.reason or ""


Chosen = Mapping[str, Mapping[str, Sequence[Specimen]]]
"""Dataset → reason ("" for rows that were kept) → rows."""


class Specimens:
    """The best of those that are offered, of each kind."""

    def __init__(self, most: int = SHOWN) -> None:
        self._most = most
        self._of: dict[str, dict[str, _Best]] = {}

    def offer(
        self, row: Row, dataset: str, result: Sample | Rejection, source: Dataset, desk: ConversionContext
    ) -> None:
        """A row and what became of it. source, desk: what it was read with."""
        rank = crc32(row.id.encode(errors="surrogatepass"))
        best = self._best(dataset, "" if isinstance(result, Sample) else result.reason.value)
        if best is None or rank > best.worst:
            return
        if isinstance(result, Sample):
            best.take(_kept(row, rank, result))
        else:
            best.take(_refused(row, rank, dataset, result, source, desk))

    def put(self, one: Specimen) -> None:
        """One of another shard."""
        best = self._best(one.dataset, one.kind)
        if best is not None and one.rank <= best.worst:
            best.take(one)

    def _best(self, dataset: str, kind: str) -> _Best | None:
        kinds = self._of.get(dataset)
        if kinds is None and (kinds := self._room_for(dataset)) is None:
            return None
        best = kinds.get(kind)
        if best is None:
            best = kinds[kind] = _Best(self._most)
        return best

    def _room_for(self, dataset: str) -> dict[str, _Best] | None:
        if len(self._of) >= _DATASETS:
            last = max(self._of, key=_rank_of)
            if _rank_of(last) < _rank_of(dataset):
                return None
            del self._of[last]
        found = self._of[dataset] = {}
        return found

    def chosen(self) -> Chosen:
        return {
            name: {kind: best.found for kind, best in sorted(kinds.items())} for name, kinds in sorted(self._of.items())
        }

    def found(self) -> list[Specimen]:
        return [one for kinds in self.chosen().values() for alike in kinds.values() for one in alike]


class _Best:
    """The rows of the smallest ranks; `worst` is what a row must not exceed to be among them."""

    def __init__(self, most: int) -> None:
        self._most, self.worst = most, 1 << 32
        self.found: list[Specimen] = []

    def take(self, one: Specimen) -> None:
        self.found = sorted((*self.found, one), key=_order)[: self._most]
        if len(self.found) == self._most:
            self.worst = self.found[-1].rank


def best(offered: Iterable[Specimen], most: int = SHOWN) -> Chosen:
    """Of what all shards offer."""
    all_shards = Specimens(most)
    for one in offered:
        all_shards.put(one)
    return all_shards.chosen()


def _order(one: Specimen) -> tuple[int, str]:
    return one.rank, one.row


def _rank_of(dataset: str) -> tuple[int, str]:
    return crc32(dataset.encode(errors="surrogatepass")), dataset


# ------------------------------------------------------------------------------------------------------- what is shown


def _kept(row: Row, rank: int, sample: Sample) -> Specimen:
    mentions = sample.evidence
    if mentions is None:
        mentions = tuple(mention for trace in sample.reasoning[:1] for mention in trace.mentions)
    places = [Place(label=_cut(m.label, 60), edges=_edges(box)) for m in mentions for box in m.boxes]
    return Specimen(
        rank=rank, row=row.id, dataset=sample.origin.dataset, split=sample.origin.split,
        question=_cut(sample.question), context=_cut(sample.context or ""),
        choices=tuple(_cut(choice, 120) for choice in (sample.choices or ())[:12]),
        answers=tuple(_cut(answer, 400) for answer in sample.answers[:8]),
        reasoning=tuple(_cut(trace.text) for trace in sample.reasoning[:3]),
        metadata=tuple(_cut(f"{name}: {value}", 120) for name, value in list(sample.metadata.items())[:12]),
        annotated=sample.evidence is not None, image=sample.image, places=tuple(places[:_MOST]),
    )  # fmt: skip


def _refused(
    row: Row, rank: int, dataset: str, result: Rejection, source: Dataset, desk: ConversionContext
) -> Specimen:
    image, places = _looked_at(source, row, desk)
    return Specimen(
        rank=rank, row=row.id, dataset=dataset, reason=result.reason.value, detail=result.detail,
        written=_written(row.value), image=image, places=places,
    )  # fmt: skip


def _edges(box: Box) -> Edges:
    return box.x1, box.y1, box.x2, box.y2


def _cut(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def _written(value: Mapping[str, Any]) -> str:
    """The row as JSON, long things shortened from within, so that what comes last can be read, too."""
    said = json.dumps(_shortened(value), ensure_ascii=False, default=repr)
    return _cut(said.encode(errors="replace").decode())


def _shortened(value: Any, depth: int = 0) -> Any:
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    if isinstance(value, str):
        return _cut(value, 240)
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "(a whole number of more than 64 bits)"
    if not isinstance(value, dict | list):
        return value
    if depth == _DEEPEST:
        return "…"
    if isinstance(value, dict):
        return {_cut(str(name), 60): _shortened(entry, depth + 1) for name, entry in list(value.items())[:24]}
    return [_shortened(entry, depth + 1) for entry in value[:12]] + ["…"] * (len(value) > 12)


# ---------------------------------------------------------------------------------------- eyes on a row that is refused


def _looked_at(source: Dataset, row: Row, desk: ConversionContext) -> tuple[Image | None, tuple[Place, ...]]:
    """The picture of a row that was refused, as far as it was found, and the boxes that it wanted to have there."""
    if row.fault is not None:
        return None, ()
    pictures = _WatchedPictures(desk.pictures)
    watched = _WatchedDesk(
        **{each.name: getattr(desk, each.name) for each in fields(ConversionContext)} | {"pictures": pictures}
    )
    edges = watched.edges
    try:
        source.sample(row, watched)
    except Refused as refused:
        edges += refused.places
    except (BoxError, ImageError, ValidationError, RecursionError):
        pass
    drawable = [each for each in edges[:_MOST] if all(map(math.isfinite, each))]
    return pictures.found, tuple(Place(label="", edges=each) for each in drawable)


class _WatchedPictures(Pictures):
    """The same, which remembers the last picture that was found."""

    def __init__(self, pictures: Pictures) -> None:
        vars(self).update(vars(pictures))
        self.found: Image | None = None

    def find(self, path: str) -> Image:
        self.found = super().find(path)
        return self.found

    def keep(self, name: str, data: bytes) -> Image:
        self.found = super().keep(name, data)
        return self.found


@dataclass(frozen=True)
class _WatchedDesk(ConversionContext):
    """The same, which remembers the boxes that somebody wanted."""

    edges: list[Edges] = field(default_factory=list)

    def box(self, edges: Any, image: Image) -> Box:
        self.edges.append(numbers(edges))
        return super().box(edges, image)
