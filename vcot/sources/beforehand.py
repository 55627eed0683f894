"""What all shards must know of the whole input, looked up once before the first of them.

Held out: pictures that are kept from training, because some row says that it is there to measure with. Datasets are
mixed, and they share pictures: 115 of the 327 pictures of VisCoT's VSR benchmark are in its training rows too. A row
names its own split, not that of its neighbour in another file. Rows that would learn from such a picture are refused.

Repeated: ids that several rows give themselves. Later stages tell samples apart by their ids: to them two rows of one
id would be one sample with two reasonings.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from vcot.errors import InputError
from vcot.records import Folder, Sample
from vcot.sources.desk import SPLITS, Desk, Split, given_id
from vcot.sources.reading import Source, read, rows_of_shard
from vcot.sources.row import Refused, Row
from vcot.storage import NotFound, join


def informed(
    source: Source, desk: Desk, folder: Folder, *, look: bool, readers: int = 1, limit: int | None = None
) -> Desk:
    """The desk that knows it.

    Raises:
        InputError: it was not looked up yet and `look` is false (another process should have).
    """

    def kept(name: str, find: Callable[[], Any]) -> Any:
        return _kept(folder, name, find if look else None)

    held = kept("held-out.json", lambda: held_out(source, desk, readers=readers, limit=limit))
    ids = kept("repeated-ids.json", lambda: repeated(source, desk, limit=limit)) if source.names_rows else ()
    return replace(desk, held_out=held, repeated=frozenset(ids))


def _kept(folder: Folder, name: str, find: Callable[[], Any] | None) -> Any:
    """What the stage's folder holds under this name, found and put there by the first that asks."""
    uri = join(folder.uri, name)
    try:
        return json.loads(folder.store.read(uri))
    except NotFound:
        if find is None:
            raise InputError(f"{uri} is missing: --part prepare comes before --part shards") from None
    found = find()
    folder.store.write_once(uri, json.dumps(found, indent=0).encode())
    return found


def held_out(source: Source, desk: Desk, *, readers: int = 1, limit: int | None = None) -> Mapping[str, Split]:
    """sha256 of each picture that is kept from training → its split."""
    found: dict[str, Split] = {}
    for row, result in read(source, _measured_with(source, desk, limit), desk, readers=readers):
        if isinstance(result, Sample):
            split = _declared(row, desk) or "train"
            found[result.image.sha256] = max(split, found.get(result.image.sha256, split), key=SPLITS.index)
    return dict(sorted(found.items()))


def _measured_with(source: Source, desk: Desk, limit: int | None) -> Iterator[Row]:
    rows = rows_of_shard(source, desk, limit=limit) if desk.options.believe_splits else iter(())
    return (row for row in rows if _declared(row, desk) in ("validation", "test"))


def _declared(row: Row, desk: Desk) -> Split | None:
    try:
        return desk.declared(row)
    except Refused:
        return None


def repeated(source: Source, desk: Desk, *, limit: int | None = None) -> list[str]:
    """Ids that stand for several rows, sorted. Counted on the scratch disk: memory does not grow with the input."""
    counts = sqlite3.connect(desk.scratch / "ids.sqlite")
    try:
        counts.executescript(
            "pragma journal_mode = off; pragma synchronous = off; drop table if exists ids;"
            "create table ids (id text primary key, often int) without rowid;"
        )
        counts.executemany(
            "insert into ids values (?, 1) on conflict do update set often = often + 1",
            ((_readable(given_id(row) or row.id),) for row in rows_of_shard(source, desk, limit=limit)),
        )
        return [name for (name,) in counts.execute("select id from ids where often > 1 order by id")]
    finally:
        counts.close()


def _readable(name: str) -> str:
    """Half a surrogate pair may be in JSON and not in a database; such a row is refused later."""
    return name.encode(errors="replace").decode()
