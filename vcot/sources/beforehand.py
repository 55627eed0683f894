"""What all shards must know of the whole input, looked up once before the first of them and kept beside its digest.

Held out: pictures that are kept from training, because some row says that it is there to measure with, or because a
benchmark has them. Datasets are mixed, and they share pictures: 115 of the 327 pictures of VisCoT's VSR benchmark are
in its training rows too. A row names its own split, not that of its neighbour in another file. Rows that would learn
from such a picture, or from one that is nearly the same, are refused; and so are rows that ask what an earlier row
has asked about the same picture (survey.py).

Damaged: pictures whose header is sound and whose data cannot be decoded. Shards read headers; who looks for
near-duplicates decodes, and so prepare sees what they do not.

Repeated: ids that several rows give themselves. Later stages tell samples apart by their ids: to them two rows of one
id would be one sample with two reasonings.

Where parts have weights, their rows are counted first: what is not drawn is not in the run, and so it holds nothing
out and is repeated by nobody.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

from vcot.errors import InputError
from vcot.records import Folder
from vcot.sources.base import ConversionContext, PreparedFacts, Split, given_id
from vcot.sources.crew import ALONE, Crew
from vcot.sources.inputs import fetch_offsets, is_array, leave_offsets, noted
from vcot.sources.parts import Part, shares
from vcot.sources.reading import until_stopped
from vcot.sources.row import Refused, Row
from vcot.sources.survey import Facts, survey
from vcot.storage import NotFound, join

SHARES, SURVEY = "shares.json", "survey.json"
_NOTHING: Facts = {
    "damaged": {}, "held_out": {}, "drawn": {}, "excluded": {}, "duplicates": {}, "whole_pixels": [], "counts": {},
}  # fmt: skip


def informed(parts: Sequence[Part], folder: Folder, *, look: bool, crew: Crew = ALONE) -> tuple[Part, ...]:
    """The parts that know it.

    Raises:
        InputError: it was not looked up yet and `look` is false (another process should have).
    """

    def kept(name: str, find: Callable[[], Any]) -> Any:
        return _kept(folder, name, find if look else None)

    for part in parts:
        fetch_offsets(folder, part.desk.scratch, part.desk.inputs)

    if any(part.weight is not None for part in parts):
        drawn = kept(SHARES, lambda: weighed(parts))
        parts = [replace(part, share=drawn[part.name]) for part in parts]
    seen = kept(SURVEY, lambda: surveyed(parts, crew))
    known = {name: seen[name] for name in _NOTHING if name != "counts"}

    def ids_of(part: Part) -> frozenset[str]:
        if not part.source.names_rows:
            return frozenset()
        return frozenset(kept(part.file("repeated-ids", ".json"), lambda: repeated(part)))

    found = tuple(part.knowing(prepared=PreparedFacts(repeated=ids_of(part), **known)) for part in parts)
    if look:
        for part in parts:
            if _is_worth_a_look(part):
                for _ in until_stopped(part.all_rows()):
                    pass
            leave_offsets(folder, part.desk.scratch, part.desk.inputs)
    return found


def _is_worth_a_look(part: Part) -> bool:
    """Whether every shard would decode a whole array, because nobody has gone through it here. With a limit few rows
    are read of what may be many.
    """
    if part.source.rows is not None or part.limit is not None:
        return False
    desk = part.desk
    unseen = [file for file in desk.inputs if noted(desk.scratch, file, "entries") is None]
    return any(is_array(desk.store, file) for file in unseen)


def counts(folder: Folder) -> Mapping[str, Any]:
    """What the survey counted, for the report."""
    found: Mapping[str, Any] = _kept(folder, SURVEY, None)["counts"]
    return found


def _kept(folder: Folder, name: str, find: Callable[[], Any] | None) -> Any:
    """What the stage's folder holds under this name, found and put there by the first that asks.

    Raises:
        InputError: nobody has found it, or it is not what was put there.
    """
    uri = join(folder.uri, name)
    try:
        there = json.loads(folder.store.read(uri))
        if there["sha256"] != _digest(there["found"]):
            raise ValueError("its digest is another")
        return there["found"]
    except NotFound:
        if find is None:
            raise InputError(f"{uri} is missing: --part prepare comes before --part shards") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{uri} is damaged ({error}); delete {folder.uri} and run the stage again") from None
    found = find()
    folder.store.write_once(uri, json.dumps({"sha256": _digest(found), "found": found}, indent=0).encode())
    return found


def _digest(found: Any) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def weighed(parts: Sequence[Part]) -> dict[str, float]:
    """Part → its share; the rows of all are gone through once."""
    rows = {part.name: sum(1 for _ in until_stopped(part.all_rows())) for part in parts}
    return shares(rows, {part.name: part.weight for part in parts if part.weight is not None})


def surveyed(parts: Sequence[Part], crew: Crew = ALONE) -> Facts:
    """The survey, where there is anything to find: drawn scenes alone are all different, and rows that say the same
    of their side (or nothing) cannot be at odds over a picture.
    """
    desk = parts[0].desk
    wanted = desk.options.near_duplicates or desk.options.duplicates != "keep" or desk.benchmarks
    wanted = wanted or any(part.source.whole for part in parts)
    if (len(parts) == 1 and not desk.inputs) or not (wanted or _differ(parts)):
        return _NOTHING
    return survey(parts, crew)


def _differ(parts: Sequence[Part]) -> bool:
    """Whether two rows say different things of their side, or one says something and another nothing."""
    if not any(part.desk.options.splits == "declared" for part in parts):
        return False
    said = chain.from_iterable(_declared(row, part.desk) for part in parts for row in part.rows())
    return any(one != other for one, other in pairwise(said))


def _declared(row: Row, desk: ConversionContext) -> list[Split | None]:
    try:
        return [desk.declared(row)]
    except Refused:
        return []


def repeated(part: Part) -> list[str]:
    """Ids that stand for several rows, sorted. Counted on the scratch disk: memory does not grow with the input."""
    counts = sqlite3.connect(part.desk.scratch / "ids.sqlite")
    try:
        counts.executescript(
            "pragma journal_mode = off; pragma synchronous = off; drop table if exists ids;"
            "create table ids (id text primary key, often int) without rowid;"
        )
        counts.executemany(
            "insert into ids values (?, 1) on conflict do update set often = often + 1",
            ((_readable(_called(row, part.desk)),) for row in until_stopped(part.rows())),
        )
        return [name for (name,) in counts.execute("select id from ids where often > 1 order by id")]
    finally:
        counts.close()


def _called(row: Row, desk: ConversionContext) -> str:
    given = given_id(row)
    return row.id if given is None else desk.called(given)


def _readable(name: str) -> str:
    """Half a surrogate pair may be in JSON and not in a database; such a row is refused later."""
    return name.encode(errors="replace").decode()
