"""What the survey notes of every row: its picture, the side that it says, and its question.

That can be read off a row at a glance (Source.glance), without its boxes and without making a Sample, which is what
takes the time. Whether a row will be kept is then not known, and mostly it does not matter. Rows for which it does are
read whole in a second look: those whose question another row asks too, and those about a picture on which rows are
not agreed or that nearly is another one. So the survey finds what it would have found by reading all rows whole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from pydantic import ValidationError

from vcot.grounding import BoxError
from vcot.records import Image, Sample
from vcot.sources import quality, repeats
from vcot.sources.base import ConversionContext, Split
from vcot.sources.crew import Crew, spread
from vcot.sources.parts import Part
from vcot.sources.reading import in_order, one
from vcot.sources.row import Refused, Row
from vcot.stage import Bar
from vcot.storage.images import ImageError

TABLES = """
pragma journal_mode = off; pragma synchronous = off;
drop table if exists pictures; drop table if exists shown; drop table if exists same;
create table pictures (sha text primary key, part int, uri text, said int) without rowid;
create table shown (file text, path text, often int, primary key (file, path)) without rowid;
create table same (file text, path text, sha text, primary key (file, path, sha)) without rowid;
"""
_ROWS = {"rows": """
drop table if exists rows;
create table rows (
    number integer primary key, part int, id text, sha text, uri text, said int, sound int, key blob, asked text,
    places blob, dataset text, whole int
);
"""}  # fmt: skip
_LOOKED = {"looked": """
drop table if exists looked; create table looked (number integer primary key, kept int, sound int, places blob);
"""}  # fmt: skip
"""What each process writes for itself."""
SAID: Mapping[Split | None, int] = {None: 1, "train": 2, "validation": 4, "test": 8}
"""Bits for what rows say of a picture's side, in the order in which they count."""
NOTHING, TRAIN, VALIDATION, TEST = SAID.values()
_BATCH = 200
"""Rows noted at once. With thousands, Python spends as long on looking for garbage among them as on all the rest."""


class Note(NamedTuple):
    """`about`: the picture, or what is asked without one. `sound`: whether the rules for quality keep the row; None:
    nobody has asked. `places`: of its boxes, as repeats.py writes them, once the row was read whole. `whole`: what
    Source.whole says.

    A row that is refused for anything else has no note.
    """

    row: str
    about: Image | repeats.Asked
    said: int
    question: repeats.Question
    sound: bool | None
    places: bytes | None
    whole: tuple[str, bool] | None


Look = Callable[[Row, ConversionContext], Note | None]


def note_rows(database: sqlite3.Connection, parts: Sequence[Part], crew: Crew) -> list[int]:
    """Fills `rows`, whose numbers go on from part to part, and `pictures`.

    Returns:
        The number of each part's first row.
    """
    database.executescript(_ROWS["rows"])
    firsts = [0]
    for place, part in enumerate(parts):
        ours = crew.for_part(part)
        with part.named():
            firsts.append(max(spread(ours, part, database, _ROWS, partial(_note, place, firsts[-1], ours))))
    # Bits that differ add up to all that are set; part and URI are those of the row with the smallest number.
    database.execute(
        "insert into pictures select sha, part, uri, said from "
        "(select sha, part, uri, sum(distinct said) as said, min(number) from rows group by sha)"
    )
    return firsts[:-1]


def _note(place: int, first: int, crew: Crew, part: Part, database: sqlite3.Connection, index: int) -> int:
    """Notes one share of a part's rows, numbered from `first` on; what number comes after the last."""
    look = _whole if part.source.glance is None or not _may_glance(part.desk) else _glance
    near, after = part.desk.options.duplicates == "near", first
    rows = ((first + number, row) for number, row in part.numbered(index, crew.processes))
    with Bar("looking at all rows", shown=index == 0) as bar:
        for batch in _batches(_looked(partial(look, part), rows, part, crew.readers)):
            database.executemany(
                "insert into rows values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (_columns(number, place, note, near=near) for number, note in batch if note is not None),
            )
            after = batch[-1][0] + 1 if batch else after
            bar.advance(len(batch) * crew.processes)
    return after


def _may_glance(desk: ConversionContext) -> bool:
    """Benchmarks count rows that are kept, and nearly the same question may be any row's: then all are read whole."""
    return not desk.benchmarks and desk.options.duplicates != "near"


def _looked(look: Look, rows: Iterable[tuple[int, Row]], part: Part, readers: int) -> Iterator[tuple[int, Note | None]]:
    lenient = replace(part.desk, rules=quality.QualityOptions(answer_in_label="keep"))
    hasty = replace(lenient, pictures=lenient.pictures.at_hand())
    return in_order(
        lambda row: (row[0], look(row[1], lenient)), rows, readers, at_once=lambda row: (row[0], look(row[1], hasty))
    )


def _glance(part: Part, row: Row, desk: ConversionContext) -> Note | None:
    assert part.source.glance is not None
    if row.fault is not None:
        return None
    try:
        image, question = part.source.glance(row, desk)
        return Note(row.id, image, SAID[desk.declared(row)], question, None, None, _pixels(part, row, image))
    except (Refused, BoxError, ImageError, ValidationError, RecursionError):
        return None


def _whole(part: Part, row: Row, desk: ConversionContext) -> Note | None:
    sample = one(row, desk)
    if not isinstance(sample, Sample):
        return None
    kind, asked = part.source.asks(row) if part.source.asks is not None else ("", repeats.question(sample))
    question = repeats.Question(asked, sample.answers, kind)
    about, said = repeats.about(sample), SAID[desk.declared(row)]
    pixels = None if sample.image is None else _pixels(part, row, sample.image)
    return Note(row.id, about, said, question, _sound(sample, part.desk), repeats.places(sample), pixels)


def _pixels(part: Part, row: Row, image: Image) -> tuple[str, bool] | None:
    return None if part.source.whole is None else part.source.whole(row, image)


def _sound(sample: Sample, desk: ConversionContext) -> bool:
    if not desk.rules.checks:
        return True
    try:
        quality.judged(sample, desk.rules)
    except Refused:
        return False
    return True


def _columns(number: int, part: int, note: Note, *, near: bool) -> tuple[Any, ...]:
    row, about, said, question, sound, places, whole = note
    key = repeats.key(about.sha256, question, near=near)
    asked = question.asked if near else ""
    return number, part, row, about.sha256, about.uri, said, sound, key, asked, places, *(whole or (None, None))


# ----------------------------------------------------------------------------------------------------- a second look


def look_again(
    database: sqlite3.Connection,
    parts: Sequence[Part],
    firsts: Sequence[int],
    groups: Iterable[Sequence[str]],
    crew: Crew,
) -> bool:
    """Reads those rows whole on which something depends, and forgets those that are not kept.

    firsts: the number of each part's first row.
    groups: digests of pictures that nearly are the same.

    Returns:
        Whether a picture was forgotten, because no row about it is kept.
    """
    wanted = _wanted(database, parts[0].desk, groups)
    if not wanted:
        return False
    database.executescript(_LOOKED["looked"])
    for first, part in zip(firsts, parts, strict=True):
        ours = crew.for_part(part)
        spread(ours, part, database, _LOOKED, partial(_read_again, wanted, first, ours))
    database.execute(
        "update rows set (sound, places) = (select sound, places from looked where looked.number = rows.number) "
        "where number in (select number from looked)"
    )
    database.execute("delete from rows where number in (select number from looked where not kept)")
    database.execute("create index by_sha on rows (sha)")
    database.execute(
        "update pictures set said = (select coalesce(sum(distinct said), 0) from rows where rows.sha = pictures.sha) "
        "where sha in (select sha from unclear)"
    )
    return database.execute("delete from pictures where said = 0").rowcount > 0


def _read_again(wanted: _Numbers, first: int, crew: Crew, part: Part, database: sqlite3.Connection, index: int) -> None:
    numbered = part.numbered(index, crew.processes, lambda place: first + place in wanted)
    rows = ((first + place, row) for place, row in numbered)
    for batch in _batches(_looked(partial(_whole, part), rows, part, crew.readers)):
        found = ((number, note is not None, note and note.sound, note and note.places) for number, note in batch)
        database.executemany("insert into looked values (?, ?, ?, ?)", found)


def _wanted(database: sqlite3.Connection, desk: ConversionContext, groups: Iterable[Sequence[str]]) -> _Numbers:
    """The rows that are to be read whole."""
    database.execute("create temp table unclear (sha text primary key) without rowid")
    database.execute("insert into unclear select sha from pictures where said not in (1, 2, 4, 8)")
    database.executemany("insert or ignore into unclear values (?)", ((sha,) for group in groups for sha in group))
    asked_again = "key in (select key from rows group by key having count(*) > 1)"
    found = database.execute(
        "select number from rows where sound is null and (sha in (select sha from unclear)"
        + (f" or {asked_again})" if desk.options.duplicates == "exact" else ")")
    )
    return _Numbers(number for (number,) in found)


class _Numbers:
    """A set of whole numbers in a bit for each that is not above the largest."""

    def __init__(self, found: Iterable[int]) -> None:
        self._bits = bytearray()
        for number in found:
            self._bits.extend(bytes(max(0, number // 8 + 1 - len(self._bits))))
            self._bits[number // 8] |= 1 << number % 8

    def __contains__(self, number: int) -> bool:
        return number // 8 < len(self._bits) and bool(self._bits[number // 8] >> number % 8 & 1)

    def __bool__(self) -> bool:
        return bool(self._bits)


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch
