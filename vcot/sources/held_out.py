"""Pictures that are kept from training, because some row says that it is there to measure with.

Datasets are mixed, and they share pictures: 115 of the 327 pictures of VisCoT's VSR benchmark are in its training rows
too. A row names its own split, not that of its neighbour in another file, so this is looked up once, before the
shards: the pictures of all rows that declare themselves validation or test. Rows that would learn from one of them
are then refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import cast

from vcot.errors import InputError
from vcot.records import Folder, Sample
from vcot.sources.desk import SPLITS, Desk, Split
from vcot.sources.reading import Source, read, rows_of_shard
from vcot.sources.row import Refused, Row
from vcot.storage import NotFound, join

NAME = "held-out.json"


def held_out(
    source: Source, desk: Desk, folder: Folder, *, look: bool, readers: int, limit: int | None
) -> Mapping[str, Split]:
    """sha256 of a picture → its split, looked up once for the stage and kept in its folder.

    Raises:
        InputError: it was not looked up yet and `look` is false (another process should have).
    """
    uri = join(folder.uri, NAME)
    try:
        return cast(Mapping[str, Split], json.loads(folder.store.read(uri)))
    except NotFound:
        if not look:
            raise InputError(f"{uri} is missing: --part prepare comes before --part shards") from None
    found = dict(sorted(_look(source, desk, readers, limit).items()))
    folder.store.write_once(uri, json.dumps(found, indent=0).encode())
    return found


def _look(source: Source, desk: Desk, readers: int, limit: int | None) -> dict[str, Split]:
    found: dict[str, Split] = {}
    for row, result in read(source, _measured_with(source, desk, limit), desk, readers=readers):
        if isinstance(result, Sample):
            split = _declared(row, desk) or "train"
            found[result.image.sha256] = max(split, found.get(result.image.sha256, split), key=SPLITS.index)
    return found


def _measured_with(source: Source, desk: Desk, limit: int | None) -> Iterator[Row]:
    rows = rows_of_shard(source, desk, limit=limit) if desk.options.believe_splits else iter(())
    return (row for row in rows if _declared(row, desk) in ("validation", "test"))


def _declared(row: Row, desk: Desk) -> Split | None:
    try:
        return desk.declared(row)
    except Refused:
        return None
