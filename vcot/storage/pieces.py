"""Bytes of one object, or of several that follow one another: `bytes+s3://…#start+length#name` (see vcot/uris.py).

To its readers a member of an archive is an object like any other. Nothing but the URI is needed to read it: neither
the archive's index nor the knowledge that there is an archive. Nothing can be written there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from vcot.errors import UsageError
from vcot.storage.disk import DiskFile
from vcot.storage.place import CHUNK, Entry, NotFound, Place
from vcot.uris import Piece


class Pieces:
    """A Place (see there). `at` gives the place of each object."""

    def __init__(self, uri: str, pieces: Sequence[Piece], at: Callable[[str], Place]) -> None:
        self.uri = uri
        self.size = sum(piece.length for piece in pieces)
        self._pieces, self._at = pieces, at

    def read(self) -> bytes:
        return self.read_range(0, self.size)

    def read_range(self, start: int, length: int, of: Entry | None = None) -> bytes:
        """`of` tells nothing here: the objects are not in the URI's hands, and samples keep a digest."""
        found, end = [], min(start + length, self.size)
        for piece in self._pieces:
            if start < piece.length and end > 0:
                first, last = max(start, 0), min(end, piece.length)
                found.append(self._read(piece, first, last - first))
            start, end = start - piece.length, end - piece.length
        return b"".join(found)

    @contextmanager
    def open_read(self) -> Iterator[BinaryIO]:
        with io.BufferedReader(_Joined(self), CHUNK) as source:
            yield cast(BinaryIO, source)

    def download(self, path: Path, arrived: Callable[[int], None] | None = None) -> None:
        data = self.read()
        DiskFile(str(path), str(path)).write(data)
        if arrived is not None:
            arrived(len(data))

    def list(self) -> Iterator[Entry]:
        return iter(())

    def stat(self) -> Entry | None:
        there = [self._at(piece.uri).stat() for piece in self._pieces]
        whole = all(o and o.size >= p.start + p.length for o, p in zip(there, self._pieces, strict=True))
        return Entry(self.uri, self.size, " ".join(o.state for o in there if o)) if whole else None

    def open_write(self) -> AbstractContextManager[BinaryIO]:
        self._refuse()

    def write(self, data: bytes) -> None:
        self._refuse()

    def write_once(self, data: bytes) -> bool:
        self._refuse()

    def delete(self) -> None:
        self._refuse()

    def upload(self, path: Path, left: Callable[[int], None] | None = None) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UsageError(f"{self.uri}: these are bytes inside {self._pieces[0].uri}; nothing can be written there")

    def _read(self, piece: Piece, start: int, length: int) -> bytes:
        try:
            data = self._at(piece.uri).read_range(piece.start + start, length)
        except NotFound as error:
            raise NotFound(f"{self.uri}: {error}") from None
        if len(data) < length:
            raise NotFound(f"{self.uri}: {piece.uri} has become shorter than it was; is it the same archive?")
        return data


class _Joined(io.RawIOBase):
    """The pieces as one stream that seeks."""

    def __init__(self, place: Pieces) -> None:
        self._place, self._position = place, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._place.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self._place.read_range(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:  # RawIOBase's own takes 8 KiB at a time
        data = self._place.read_range(self._position, self._place.size)
        self._position += len(data)
        return data
