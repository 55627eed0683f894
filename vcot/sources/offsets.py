"""Where the rows of a file are, so that a shard decodes its own rows and no others.

Of an entry of a JSON array nobody knows where it ends before it is decoded. Who goes through all of one for the first
time notes at which byte each entry begins, and where an entry may hold several rows (Source.expand), how many it has.
Prepare leaves both for the shards; a look that comes later in the same process uses them, too. They take 8 bytes of
memory a row, 12 at most. A file of which nothing is noted is decoded whole, and gives the same rows.

    <run>/convert/offsets/<sha256 of the file>.entries       the first byte of each entry, and the end of the last
                          <sha256 of the file>.rows          how many rows each line or entry holds

Both are little-endian numbers behind the sha256 of their own bytes; bytes are counted in the unpacked file.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vcot.errors import InputError
from vcot.records import Folder
from vcot.sources.inputs import Input
from vcot.storage import NotFound, join

Kind = Literal["entries", "rows"]
_CODES: dict[Kind, str] = {"entries": "Q", "rows": "I"}
_DIGEST = 32


def noted(scratch: Path, file: Input, kind: Kind) -> array[int] | None:
    """What somebody has noted on this machine; None: nobody has."""
    try:
        data = _path(scratch, file, kind).read_bytes()
    except FileNotFoundError:
        return None
    found = array(_CODES[kind], data[_DIGEST:])
    if sys.byteorder == "big":
        found.byteswap()
    return found


def note(scratch: Path, file: Input, kind: Kind, numbers: array[int]) -> None:
    if sys.byteorder == "big":
        numbers.byteswap()
    data = numbers.tobytes()
    path = _path(scratch, file, kind)
    whole = path.with_suffix(f".{os.getpid()}")  # several processes may note the same
    whole.write_bytes(hashlib.sha256(data).digest() + data)
    whole.replace(path)


def fetch(folder: Folder, scratch: Path, files: Sequence[Input]) -> None:
    """Brings what was left in the stage's folder to this machine.

    Raises:
        InputError: it is not what was left.
    """
    for file in files:
        for kind in _CODES:
            path = _path(scratch, file, kind)
            if path.exists():
                continue
            uri = _uri(folder, file, kind)
            try:
                data = folder.store.read(uri)
            except NotFound:
                continue
            if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
                raise InputError(f"{uri} is damaged: its digest is another; delete it")
            path.write_bytes(data)


def leave(folder: Folder, scratch: Path, files: Sequence[Input]) -> None:
    """Puts what was noted where the shards find it."""
    for file in files:
        for kind in _CODES:
            path, uri = _path(scratch, file, kind), _uri(folder, file, kind)
            if path.exists() and folder.store.stat(uri) is None:
                folder.store.upload(path, uri)


def _path(scratch: Path, file: Input, kind: Kind) -> Path:
    return scratch / f"{file.sha256}.{kind}"


def _uri(folder: Folder, file: Input, kind: Kind) -> str:
    return join(folder.uri, "offsets", f"{file.sha256}.{kind}")
