"""Rows for the page: chosen by a hash of their ids, so neither the first ones nor others in another number of shards.

    <stage>/report/00003.json      what a shard puts aside; the finish takes the best of all

Of each source some rows that were kept, and of each reason some that were refused, as rows or as parts of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal
from zlib import crc32

from pydantic import Field

from vcot.errors import InputError
from vcot.records import Folder, Image, Rejection, Sample
from vcot.records.base import MentionField, Record, TraceField
from vcot.records.shards import ShardMark
from vcot.redaction import redacted
from vcot.storage import NotFound, join

SHOWN = {"kept": 6, "refused": 3, "part": 3}
"""Rows of a group: those kept of a source, those refused for a reason."""

LONGEST = 2000
"""Characters of a text; all of it stands in the shards and the rejections."""

_REPLIES = 6
"""Replies of one row, the last ones: what was refused is among them."""


class Specimen(Record):
    """A row as the page shows it. Texts are shortened."""

    id: str
    source: str
    kind: Literal["kept", "refused", "part"]
    reason: str = Field("", description="why it was refused")
    part: str = Field("", description="which part of a row that was kept")
    detail: str = ""
    said: tuple[str, ...] = Field((), description="what the teacher said")
    flags: tuple[str, ...] = ()
    image: Image | None = Field(None, description="null: it is asked by text alone")
    question: str
    choices: tuple[str, ...] = ()
    answer: str
    reasoning: TraceField | None = Field(None, description="of a row that was kept: the first of its traces")
    evidence: tuple[MentionField, ...] = Field((), description="what people annotated")

    @property
    def group(self) -> str:
        return self.source if self.kind == "kept" else self.reason


class Specimens:
    """What one shard puts aside."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], list[Specimen]] = {}

    def kept(self, sample: Sample, made: Sequence[Sample], flags: tuple[str, ...] = ()) -> None:
        """A row, and what was made of it: itself with its reasoning, and new questions, whose evidence nobody drew."""
        drawn = {"evidence": sample.evidence or (), "flags": flags}
        for one in made:
            if self._wanted("kept", one.origin.dataset, one.id):
                self._hold(_of(one, "kept").model_copy(update=drawn | {"reasoning": one.reasoning[0]}))

    def refused(self, sample: Sample, rejection: Rejection) -> None:
        """A row, or a part of one that was kept."""
        kind: Literal["refused", "part"] = "part" if rejection.part else "refused"
        if self._wanted(kind, rejection.reason.value, sample.id):
            said = tuple(map(_cut, rejection.said[-_REPLIES:]))
            why = {"reason": rejection.reason.value, "part": rejection.part, "detail": _cut(rejection.detail)}
            self._hold(_of(sample, kind).model_copy(update=why | {"said": said}))

    def put_aside(self, folder: Folder, shard: int) -> None:
        """The same rows give the same bytes, so it does not matter who writes them last."""
        held = [one.model_dump(mode="json") for group in self._held.values() for one in group]
        folder.store.write(_uri(folder, shard), redacted(json.dumps(held, ensure_ascii=False)).encode())

    def _wanted(self, kind: str, group: str, row: str) -> bool:
        held = self._held.get((kind, group), [])
        return all(one.id != row for one in held) and (len(held) < SHOWN[kind] or _rank(row) < _rank(held[-1].id))

    def _hold(self, one: Specimen) -> None:
        group = self._held.setdefault((one.kind, one.group), [])
        group[:] = sorted((*group, one), key=lambda each: _rank(each.id))[: SHOWN[one.kind]]


Chosen = Mapping[str, Mapping[str, Sequence[Specimen]]]
"""Kind → source of rows that were kept, reason of others → rows."""


def chosen(folder: Folder, marks: Iterable[ShardMark]) -> Chosen:
    """The best of what all shards put aside. Raises InputError: one of them put nothing aside."""
    best: dict[str, dict[str, list[Specimen]]] = {kind: {} for kind in SHOWN}
    for mark in marks:
        for one in _put_aside(folder, mark.shard):
            group = best[one.kind].setdefault(one.group, [])
            group[:] = sorted((*group, one), key=lambda each: _rank(each.id))[: SHOWN[one.kind]]
    return best


def _put_aside(folder: Folder, shard: int) -> list[Specimen]:
    uri = _uri(folder, shard)
    try:
        return [Specimen.model_validate(one) for one in json.loads(folder.store.read(uri))]
    except NotFound:
        raise InputError(f"{uri} is missing; delete {folder.uri} and run the stage again") from None


def _of(sample: Sample, kind: Literal["kept", "refused", "part"]) -> Specimen:
    return Specimen(
        id=sample.id, source=sample.origin.dataset, kind=kind, image=sample.image, question=_cut(sample.question),
        choices=tuple(map(_cut, sample.choices or ())), answer=_cut(sample.answers[0]), evidence=sample.evidence or (),
    )  # fmt: skip


def _rank(row: str) -> tuple[int, str]:
    return crc32(row.encode()), row


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def _uri(folder: Folder, shard: int) -> str:
    return join(folder.uri, "report", f"{shard:05d}.json")
