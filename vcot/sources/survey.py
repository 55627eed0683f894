"""A look at all rows before the first shard: which pictures are there, who measures with them, what is asked twice.

What it sees lies in a database on the scratch disk, so that memory does not grow with the input; of each picture 18
bytes are held while near-duplicates are looked for.

A group is a picture, by its digest, with all pictures that nearly are the same. All of a group are on one side: that
of the row that measures with one of them (test before validation; a benchmark file counts as test), else training if
a row says so, else where the draw puts its smallest digest. So without near-duplicates the draw is each picture's own.
A question without a picture takes the place of one here (repeats.Asked); its URI is empty, and nothing is nearly it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from vcot.errors import SettingsError
from vcot.records import Image
from vcot.sources import alike, benchmarks, repeats
from vcot.sources.base import ConversionContext, Split
from vcot.sources.crew import ALONE, Crew
from vcot.sources.inputs import Input
from vcot.sources.notes import NOTHING, SAID, TABLES, TEST, TRAIN, VALIDATION, look_again, note_rows
from vcot.sources.parts import Part
from vcot.sources.pictures import Pictures
from vcot.sources.reading import in_order
from vcot.stage import progress
from vcot.storage.images import ImageError

Facts = dict[str, Any]
Groups = Sequence[Sequence[str]]
"""Digests of pictures that nearly are the same; who has no such other is in none."""
_GROUPS, _MEMBERS, _PAIRS = 1000, 64, 4
"""For the report: so many groups are looked at, so many pictures of each; shown are so many that are far apart, and
so many by chance.
"""


def survey(parts: Sequence[Part], crew: Crew = ALONE) -> Facts:
    """What all shards must know of the rows, as JSON: the fields of PreparedFacts but `repeated`, and counts.

    Raises:
        InputError: a benchmark file is none.
    """
    desk = parts[0].desk  # what concerns the whole run is the same at every one
    with closing(sqlite3.connect(desk.scratch / "survey.sqlite")) as database:
        database.executescript(TABLES)
        firsts = note_rows(database, parts, crew)
        for file in desk.benchmarks:
            _note_benchmark(database, parts, file)
        groups, near, damaged = _groups(database, parts, crew.readers)
        _forget(database, damaged)
        if look_again(database, parts, firsts, groups, crew):
            groups, near, _ = _groups(database, parts, crew.readers)
        repeated = _repeated(database, desk)
        counts = {"near_duplicates": near, "benchmarks": _removed(database, desk, groups)}
        whole = "select dataset from rows where dataset is not null group by dataset having min(whole) order by dataset"
        facts = {
            "damaged": damaged,
            "duplicates": repeated,
            "whole_pixels": [name for (name,) in database.execute(whole)],
            "counts": counts,
        }
        return _sides(database, desk, groups) | facts


# --------------------------------------------------------------------------------------------------- what is there


def _note_benchmark(database: sqlite3.Connection, parts: Sequence[Part], file: Input) -> None:
    """Its pictures: by digest where they can be read, else the pictures of the input that are called the same.

    Where several parts have a picture at that path, nobody knows which one is meant, and all are.
    """
    unread = defaultdict(list)
    desk = parts[0].desk
    looked_in = [desk.benchmark_pictures] if desk.benchmark_pictures else [part.desk.pictures for part in parts]
    for path, often in sorted(Counter(benchmarks.paths(desk.store, file)).items()):
        database.execute("insert into shown values (?, ?, ?)", (file.name, path, often))
        found = [(place, image) for place, in_it in enumerate(looked_in) if (image := _there(in_it, path))]
        for place, image in found:
            database.execute("insert or ignore into pictures values (?, ?, ?, 0)", (image.sha256, place, image.uri))
            database.execute("insert or ignore into same values (?, ?, ?)", (file.name, path, image.sha256))
        for key in () if found else benchmarks.keys(path):
            unread[key].append(path)
    for uri, sha in database.execute("select distinct uri, sha from rows where uri <> ''") if unread else ():
        for path in (path for key in benchmarks.keys(uri) for path in unread.get(key, ())):
            database.execute("insert or ignore into same values (?, ?, ?)", (file.name, path, sha))


def _there(pictures: Pictures, path: str) -> Image | None:
    try:
        return pictures.find(path)
    except (ImageError, SettingsError):  # it is not there, or nobody said where pictures are
        return None


def _forget(database: sqlite3.Connection, damaged: Facts) -> None:
    """Rows about these pictures are all refused, and so decide nothing about others."""
    if not damaged:
        return
    database.execute("create temp table damaged (sha text primary key) without rowid")
    database.executemany("insert into damaged values (?)", ((sha,) for sha in damaged))
    for table in ("rows", "pictures", "same"):
        database.execute(f"delete from {table} where sha in (select sha from damaged)")


def _groups(database: sqlite3.Connection, parts: Sequence[Part], readers: int) -> tuple[Groups, Facts, Facts]:
    """The pictures that nearly are the same, how many there are of what, and which cannot be decoded."""
    distance = parts[0].desk.options.near_duplicates
    if not distance:
        return [], {}, {}
    damaged: Facts = {}

    def look(picture: tuple[str, int, str]) -> bytes | None:
        sha, place, uri = picture
        try:
            return parts[place].desk.pictures.print_of(uri, sha)
        except ImageError as error:
            damaged[sha] = error.reason, str(error).removeprefix(f"{uri}: ")
            return None

    pictures = "select sha, part, uri from pictures where uri <> '' order by sha"
    where, noted = [], bytearray()
    (total,) = database.execute("select count(*) from pictures where uri <> ''").fetchone()
    looked = in_order(look, database.execute(pictures), readers)
    for number, print_ in enumerate(progress(looked, "comparing pictures", total, "pictures")):
        if print_ is not None:
            where.append(number)
            noted += print_
    prints = np.frombuffer(noted, np.uint8).reshape(-1, alike.BYTES)
    labels = alike.groups(prints, distance)
    members = np.bincount(labels, minlength=1)[labels] > 1 if len(labels) else np.zeros(0, np.bool_)
    group_of = dict(zip(np.asarray(where, np.int64)[members].tolist(), labels[members].tolist(), strict=True))
    place_of = dict(zip(group_of, np.flatnonzero(members).tolist(), strict=True))
    groups: dict[int, list[str]] = defaultdict(list)
    places: dict[int, list[int]] = defaultdict(list)
    for number, (sha, _, _) in enumerate(database.execute(pictures)):
        if number in group_of:
            groups[group_of[number]].append(sha)
            places[group_of[number]].append(place_of[number])
    found = list(groups.values())
    return (
        found,
        {
            "pictures_compared": len(where),
            "groups": len(found),
            "pictures_in_groups": sum(map(len, found)),
            "largest_group": max(map(len, found), default=0),
            "pairs": _pairs(database, found, list(places.values()), prints),
        },
        dict(sorted(damaged.items())),
    )


def _pairs(
    database: sqlite3.Connection, groups: Groups, places: Sequence[Sequence[int]], prints: alike.Prints
) -> list[Facts]:
    """The two pictures that differ most, of some groups: those where they differ most of all, and some by chance.

    places: of each group's pictures among the prints.
    """
    found = []
    for group, at in zip(groups[:_GROUPS], places, strict=False):
        one, other, bits = alike.farthest(prints[at[:_MEMBERS]])
        found.append((bits, group[one], group[other], len(group)))
    found.sort(key=itemgetter(0), reverse=True)
    chosen = found[:_PAIRS] + sorted(found[_PAIRS:], key=itemgetter(1))[:_PAIRS]
    return [
        {"bits": bits, "pictures": size, "one": _uri(database, one), "other": _uri(database, other)}
        for bits, one, other, size in chosen
    ]


# -------------------------------------------------------------------------------------------------- what follows


def _sides(database: sqlite3.Connection, desk: ConversionContext, groups: Groups) -> Facts:
    """sha256 → side, of pictures of which some row alone could not know it; and which benchmark has them."""
    held_out: dict[str, Split] = {}
    drawn: dict[str, Split] = {}
    excluded: dict[str, str] = {}
    said_of = dict(database.execute("select sha, said from pictures where said not in (1, 2, 4, 8)"))
    file_of = dict(database.execute("select sha, min(file) from same group by sha"))
    together = {sha for group in groups for sha in group}
    alone = [[sha] for sha in (said_of.keys() | file_of.keys()) - together]
    for group in (*groups, *alone):
        said = {sha: _said(database, sha) for sha in group}
        anything = 0
        for bits in said.values():
            anything |= bits
        file = min((file_of[sha] for sha in group if sha in file_of), default=None)
        held: Split | None = "test" if file or anything & TEST else "validation" if anything & VALIDATION else None
        draw: Split = "train" if anything & TRAIN else desk.draw(min(group))
        for sha, bits in said.items():
            if held is not None and bits & (SAID[held] - 1):
                held_out[sha] = held
                if file:
                    excluded[sha] = file
            if held is None and bits & NOTHING and desk.draw(sha) != draw:
                drawn[sha] = draw
    return {name: dict(sorted(found.items())) for name, found in (
        ("held_out", held_out), ("drawn", drawn), ("excluded", excluded),
    )}  # fmt: skip


def _uri(database: sqlite3.Connection, sha: str) -> str:
    uri: str = database.execute("select uri from pictures where sha = ?", (sha,)).fetchone()[0]
    return uri


def _said(database: sqlite3.Connection, sha: str) -> int:
    said: int = database.execute("select said from pictures where sha = ?", (sha,)).fetchone()[0]
    return said


def _removed(database: sqlite3.Connection, desk: ConversionContext, groups: Groups) -> Facts:
    """Benchmark file → its rows and pictures, how many of them the input could have taught, and the rows refused."""
    group_of = {sha: group for group in groups for sha in group}
    learned: dict[str, list[str]] = {}  # first of a group → those of it that rows would learn from
    counts: Facts = {}
    for file in desk.benchmarks:
        rows, pictures = database.execute(
            "select sum(often), count(*) from shown where file = ?", (file.name,)
        ).fetchone()
        read = "select count(distinct path) from same where file = ?"
        hit: set[str] = set()
        refused: set[str] = set()
        for path, sha in database.execute("select path, sha from same where file = ?", (file.name,)).fetchall():
            group = group_of.get(sha, (sha,))
            if group[0] not in learned:
                learned[group[0]] = [s for s in group if _said(database, s) & (TEST - 1)]
            if learned[group[0]]:
                hit.add(path)
                refused.add(group[0])
        often = dict(database.execute("select path, often from shown where file = ?", (file.name,)))
        counts[file.name] = {
            "rows": rows,
            "pictures": pictures,
            "pictures_found": database.execute(read, (file.name,)).fetchone()[0],
            "pictures_shared": len(hit),
            "rows_with_a_shared_picture": sum(often[path] for path in hit),
            "rows_refused": sum(_rows_below_test(database, sha) for first in refused for sha in learned[first]),
        }
    return counts


def _rows_below_test(database: sqlite3.Connection, sha: str) -> int:
    database.execute("create index if not exists by_sha on rows (sha)")
    count: int = database.execute("select count(*) from rows where sha = ? and said < ?", (sha, TEST)).fetchone()[0]
    return count


def _repeated(database: sqlite3.Connection, desk: ConversionContext) -> dict[str, str]:
    """Row → the row whose question it repeats, with its answers and boxes: of a picture's rows those that measure come
    first, then the input's order. A row that is refused for something else is not repeated.
    """
    if desk.options.duplicates == "keep":
        return {}
    near = desk.options.duplicates == "near"
    again = "" if near else "and key in (select key from rows where sound group by key having count(*) > 1) "
    rows = database.execute(
        f"select key, id, asked, places from rows where sound {again}order by key, max(said, {TRAIN}) desc, number"
    )
    found: dict[str, str] = {}
    for _, asked_alike in groupby(rows, itemgetter(0)):
        for (first, said), *others in repeats.of_one_place((name, said, at) for _, name, said, at in asked_alike):
            if near and others:
                found |= dict(repeats.nearly([(first, said), *others], desk.options.question_similarity))
            else:
                found |= {name: first for name, _ in others}
    return found
