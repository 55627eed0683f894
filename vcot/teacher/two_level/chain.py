"""The steps one after the other over whole shards, each with its own records in storage.

    <stage>/captions/3f9a01c2b7de/step.json     what the key was made of: prompts, model, parameters, the step before
                                  shards/, rejections/, _done/00000.json     as of a stage
            objects/…

A step whose key is there is not made again; with another prompt it has another key, and so have the steps after it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

from vcot import log
from vcot.errors import InputError
from vcot.records import Rejection, Sample
from vcot.records.shards import Folder, JsonLines, ShardMark, ShardWriter, Tally, read_records
from vcot.records.steps import StepRecord
from vcot.storage import Store, join
from vcot.teacher.bill import since
from vcot.teacher.distil import spending
from vcot.teacher.funnel import summed
from vcot.teacher.model import ModelTeacher
from vcot.teacher.request import Asker
from vcot.teacher.row import Outcome, lacks_places
from vcot.teacher.two_level.step import Before, Step
from vcot.teacher.two_level.way import TwoLevel

Rows = Callable[[], Iterable[Sample]]
Made = Before | Rejection | None
"""What the steps so far made of a row; None: it needs no teacher."""


class Chain:
    """Args: a teacher whose way is the two-level one, where the steps' folders lie, and what the rows are (URI →
    sha256 of the inputs)."""

    def __init__(self, teacher: ModelTeacher, store: Store, uri: str, inputs: Mapping[str, str]) -> None:
        way = teacher.way
        assert isinstance(way, TwoLevel)
        self.teacher = teacher
        self._way, self._store = way, store
        self.folders: dict[str, Folder] = {}
        before = sorted(inputs.values())
        for step in way.steps:
            shaped = step.shaped_by() | {"before": before}
            key = hashlib.sha256(json.dumps(shaped, sort_keys=True).encode()).hexdigest()[:12]
            self.folders[step.name] = Folder(store, join(uri, step.name), key)
            self._describe(step, shaped)
            before = [key]

    def make(self, name: str, index: int, rows: Rows) -> ShardMark:
        """One shard of one step, unless it is there. Raises InputError: a step before it is missing."""
        number = [step.name for step in self._way.steps].index(name)
        step = self._way.steps[number]

        def work(writer: ShardWriter) -> None:
            counts, lines = dict(self.teacher.counts()), self.teacher.desk.bill.lines()
            todo = ((row, made) for row, made in self._joined(number, index, rows()) if isinstance(made, Before))
            with closing(self.teacher.map(todo, partial(self._one, step))) as done:
                for _, made in done:
                    if isinstance(made, Rejection):
                        writer.reject(made)
                    else:
                        writer.keep(made)
            writer.facts |= spending(counts, self.teacher.counts())
            writer.facts["bill"] = since(lines, self.teacher.desk.bill.lines())

        return self.folders[name].make_shard(index, work, JsonLines)

    async def _one(self, step: Step, item: tuple[Sample, Before], asker: Asker) -> StepRecord | Rejection:
        return await self._way.one(step, *item, asker)

    def bill(self, index: int) -> dict[str, Any]:
        """What all steps of a shard did cost, whoever made them and when."""
        marks = (folder.shard_mark(index) for folder in self.folders.values())
        return summed(mark.facts["bill"] for mark in marks if mark is not None)

    def shard(self, index: int, rows: Rows) -> ShardOfChain:
        """One shard as a Teacher."""
        return ShardOfChain(self, index, rows)

    def rows(self, index: int, rows: Rows) -> Iterator[tuple[Sample, Outcome]]:
        """The rows of a shard with their outcomes, as the records of all steps say."""
        for sample, made in self._joined(len(self._way.steps), index, rows()):
            yield sample, self._way.lesson(sample, made) if isinstance(made, Before) else made

    def report(self, name: str, shards: int) -> None:
        """What a step made, in its report.json. Raises InputError: a shard of it is missing."""
        folder = self.folders[name]
        marks = folder.shard_marks()
        if len(marks) < shards:
            raise InputError(f"{folder.uri}: shard {len(marks)} of {shards} is not done; make it before --part finish")
        tally = sum((mark.tally for mark in marks), Tally())
        facts = summed(mark.facts for mark in marks)
        folder.write_report({"step": name, "shards": shards, "tally": tally.model_dump(), **facts})
        log.get().info(f"step {name}", rows=tally.rows, kept=tally.kept, uri=folder.uri, **tally.rejected)

    def _joined(self, steps: int, index: int, rows: Iterable[Sample]) -> Iterator[tuple[Sample, Made]]:
        """The rows with what the first so many steps made of them."""
        readers = [_Reader(self._store, self.folders[step.name], index, step) for step in self._way.steps[:steps]]
        for sample in rows:
            made: Made = Before({}) if lacks_places(sample) else None
            for reader in readers:
                if isinstance(made, Before):
                    found = reader.take(sample.id)
                    made = found if isinstance(found, Rejection) else made.add(found)
            yield sample, made

    def _describe(self, step: Step, shaped: Mapping[str, object]) -> None:
        data = json.dumps(shaped, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
        self._store.write_once(join(self.folders[step.name].uri, "step.json"), data)


class _Reader:
    """A step's records and rejections of one shard, read side by side in the order of the rows."""

    def __init__(self, store: Store, folder: Folder, index: int, step: Step) -> None:
        mark = folder.shard_mark(index)
        if mark is None:
            raise InputError(
                f"{folder.uri}: the step {step.name} has not been made for shard {index}; run --only-step {step.name}"
            )
        self._uri = folder.uri
        self._sides: list[Iterator[StepRecord | Rejection]] = [
            read_records(store, folder.uri, mark.files[0], step.record),
            read_records(store, folder.uri, mark.rejections, Rejection),
        ]
        self._next = [next(side, None) for side in self._sides]

    def take(self, row: str) -> StepRecord | Rejection:
        """What the step made of this row. Raises InputError: nothing, so these are other rows."""
        for side, found in enumerate(self._next):
            if found is not None and found.id == row:
                self._next[side] = next(self._sides[side], None)
                return found
        raise InputError(f"{self._uri} holds nothing about {row} in its place; it was made of other rows")


class ShardOfChain:
    """One shard as a Teacher: the steps that are missing are made, then their records are put together."""

    def __init__(self, chain: Chain, index: int, rows: Rows) -> None:
        self.name = chain.teacher.name
        self._chain, self._index, self._rows = chain, index, rows
        self._counted: Counter[str] = Counter()

    def teach(self, samples: Iterable[Sample]) -> Generator[tuple[Sample, Outcome], None, None]:
        """The samples are read several times, so those of `rows` are taken."""
        for name in self._chain.folders:
            facts = self._chain.make(name, self._index, self._rows).facts
            self._counted.update(facts["trust"])
            self._counted.update(facts["spent"])
        for sample, outcome in self._chain.rows(self._index, self._rows):
            if outcome is not None:
                self._chain.teacher.telling.row(refused=isinstance(outcome, Rejection))
            yield sample, outcome

    def counts(self) -> Mapping[str, int]:
        """What the steps' marks say, whoever made them."""
        return self._counted
