"""Examples for a page, chosen by a hash of their ids: neither the first rows, nor others in another number of shards.

    <stage>/report/00003.json      what a shard puts aside; the finish takes the best of all

The same rows give the same bytes, so it does not matter who wrote them last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from zlib import crc32

from pydantic import Field

from vcot.errors import InputError
from vcot.records import Folder, Image
from vcot.records.base import Record, TraceField
from vcot.records.shards import ShardMarker
from vcot.redaction import redacted
from vcot.storage import NotFound, join

Edges = tuple[float, float, float, float]


class ShownBox(Record):
    """A box, or what was meant to be one: pixels of the original, perhaps outside or inverted."""

    label: str = ""
    edges: Edges
    proposed: bool = Field(False, description="by a teacher, or refused; else people drew it")


class ShownExample(Record):
    """A row as a page shows it. Texts are shortened."""

    id: str
    dataset: str
    group: str = Field(description="kept, or refused:<reason>, or part:<reason> of a row that was kept")
    split: str = ""
    part: str = Field("", description="what of the row was refused, where the rest of it was kept")
    detail: str = ""
    said: tuple[str, ...] = Field((), description="what the teacher said")
    written: str = Field("", description="of a row that convert refused: what it says, as JSON")
    flags: tuple[str, ...] = ()
    question: str = ""
    context: str = ""
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    reasoning: tuple[TraceField, ...] = ()
    annotated: bool = True
    image: Image | None = None
    boxes: tuple[ShownBox, ...] = ()

    @property
    def reason(self) -> str:
        return self.group.partition(":")[2]


class ExampleSampler:
    """Of each group of each dataset the `most` rows whose ids have the smallest hashes.

    Of more than `datasets` datasets those with the smallest hashes are shown: rows may say anything of theirs.
    """

    def __init__(self, most: int, datasets: int = 64) -> None:
        self._most, self._datasets = most, datasets
        self._held: dict[str, dict[str, list[tuple[int, str, ShownExample]]]] = {}

    def wants(self, dataset: str, group: str, row: str) -> bool:
        """Whether a row would be among those that are shown; to be asked before an example is made of it."""
        groups = self._held.get(dataset)
        if groups is None:
            return len(self._held) < self._datasets or _rank(dataset) < max(map(_rank, self._held))
        held = groups.get(group, [])
        return (len(held) < self._most or _rank(row) < held[-1][:2]) and all(row != other for _, other, _ in held)

    def add(self, example: ShownExample) -> None:
        if not self.wants(example.dataset, example.group, example.id):
            return
        if example.dataset not in self._held and len(self._held) == self._datasets:
            del self._held[max(self._held, key=_rank)]
        held = self._held.setdefault(example.dataset, {}).setdefault(example.group, [])
        held.append((*_rank(example.id), example))
        held.sort(key=lambda one: one[:2])
        del held[self._most :]

    def by_dataset(self) -> dict[str, dict[str, list[ShownExample]]]:
        """Dataset → group → examples, by their hashes."""
        return {
            dataset: {group: [one for *_, one in held] for group, held in sorted(groups.items())}
            for dataset, groups in sorted(self._held.items())
        }

    def of_group(self, group: str, most: int) -> list[ShownExample]:
        """Of all datasets together."""
        held = [one for groups in self._held.values() for one in groups.get(group, ())]
        return [example for *_, example in sorted(held, key=lambda one: one[:2])[:most]]

    def put_aside(self, folder: Folder, shard: int) -> None:
        examples = [
            one.model_dump(mode="json") for groups in self.by_dataset().values() for e in groups.values() for one in e
        ]
        folder.store.write(_uri(folder, shard), redacted(json.dumps(examples, ensure_ascii=False)).encode())


def sampled(folder: Folder, markers: Iterable[ShardMarker], most: int) -> ExampleSampler:
    """The best of what all shards put aside. Raises InputError: one of them put nothing aside."""
    sampler = ExampleSampler(most)
    for marker in markers:
        uri = _uri(folder, marker.shard)
        try:
            examples = json.loads(folder.store.read(uri))
        except NotFound:
            raise InputError(f"{uri} is missing; delete {folder.uri} and run the stage again") from None
        for one in examples:
            sampler.add(ShownExample.model_validate(one))
    return sampler


def _rank(name: str) -> tuple[int, str]:
    return crc32(name.encode(errors="surrogatepass")), name


def _uri(folder: Folder, shard: int) -> str:
    return join(folder.uri, "report", f"{shard:05d}.json")
