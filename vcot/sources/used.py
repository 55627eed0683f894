"""The pictures of which rows were kept, each counted once, however many rows and shards use it.

A shard notes them in a file, 17 bytes each: the first 64 bits of the sha256, width and height of the upright original,
and which split. The finish puts the files of all shards into a database on the scratch disk. So neither needs more
memory for more pictures.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from struct import Struct

from vcot.errors import InputError
from vcot.records import Image
from vcot.sources.base import SPLITS

Sizes = Counter[tuple[int, int]]
"""(width, height) of the upright original, in pixels → pictures."""

_NOTE = Struct("<8sIIB")
_SPLIT: Mapping[str, int] = {split: number for number, split in enumerate(SPLITS)}
_AT_ONCE = 10_000
_TABLE = """
pragma journal_mode = off; pragma synchronous = off;
drop table if exists used; create table used (digest blob, width int, height int, split int);
"""


class Used:
    """Notes the pictures of a shard's rows in a file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path, self._file, self._last = path, path.open("wb"), ""

    def note(self, image: Image, split: str) -> None:
        if image.sha256 != self._last:  # rows of one picture mostly stand together
            self._last = image.sha256
            self._file.write(_NOTE.pack(bytes.fromhex(image.sha256[:16]), image.width, image.height, _SPLIT[split]))

    def close(self) -> None:
        self._file.close()


def counted(files: Iterable[Path], scratch: Path) -> dict[str, Sizes]:
    """Split → the sizes of its pictures.

    Raises:
        InputError: a file was cut off.
    """
    with closing(sqlite3.connect(scratch / "used.sqlite")) as database:
        database.executescript(_TABLE)
        for file in files:
            database.executemany("insert into used values (?, ?, ?, ?)", _noted(file))
        sizes: dict[str, Sizes] = {split: Counter() for split in SPLITS}
        for split, width, height, pictures in database.execute(
            "select split, width, height, count(*) from (select distinct * from used) group by split, width, height"
        ):
            sizes[SPLITS[split]][width, height] = pictures
    return sizes


def _noted(path: Path) -> Iterator[tuple[bytes, int, int, int]]:
    with path.open("rb") as file:
        while data := file.read(_AT_ONCE * _NOTE.size):
            if len(data) % _NOTE.size:
                raise InputError(
                    f"{path.name} of the folder report is cut off; delete the stage's folder and run again"
                )
            yield from _NOTE.iter_unpack(data)
