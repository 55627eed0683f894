"""From header to header through a tar file, without its bodies.

tarfile reads the headers (long names of GNU, extended headers of pax, sparse maps); where the next one is asked for,
it is fetched with as much behind it as pays: many small members with one request, one large member with a small one.

What TarFile itself does with `ignore_zeros` would not do here: it passes over damaged headers as if they were zeros,
and keeps every header in memory.
"""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from vcot.errors import InputError
from vcot.stage import stop
from vcot.storage.chunks import BLOCK, Chunks, begins_a_member

Kind = Literal["file", "hard", "symbolic", "sparse", "other"]

WIDE, NARROW = 2 << 20, 8 << 10
"""Bytes of a request where headers lie close together, and where they do not. In the time in which object storage
begins to answer it could have sent a megabyte or two."""
_LONGEST_HEADER = 1 << 20  # bytes of one long name, or of one extended header
_SCANNED = 64 << 20  # bytes within which a header is looked for

_MISREAD = (tarfile.TarError, ValueError, OverflowError, IndexError, RecursionError, struct.error)


@dataclass(frozen=True, slots=True)
class Member:
    """start: of its first header. offset, size: of its body. target: what a link names. All in bytes of the whole."""

    start: int
    name: bytes
    kind: Kind
    offset: int
    size: int
    target: bytes = b""


class Walk:
    """One way through the archive, from the header at `position` on.

    position: where the next header is, or the end. closed: the last thing passed was a block of zeros.
    """

    def __init__(self, chunks: Chunks, position: int = 0) -> None:
        self.position, self.closed = position, False
        self._chunks, self._file = chunks, _Ahead(chunks)
        # An empty archive of our own: what a header's reader wants of a TarFile is a file, an encoding and a place
        # for what it finds.
        self._tar = tarfile.open(  # noqa: SIM115
            fileobj=io.BytesIO(bytes(2 * BLOCK)), mode="r:", encoding="utf-8", errors="surrogateescape"
        )
        self._tar.fileobj = self._file

    def members(self, until: int) -> Iterator[Member]:
        """Those whose first header is before `until`; then zeros are passed over, up to a header or the end.

        Raises:
            InputError: there is something else than a header; the archive ends inside a member.
            Changed: a chunk was replaced.
        """
        self._skip_zeros()
        while self.position < min(until, self._chunks.size):
            yield self._member()
            self._skip_zeros()

    def find(self, until: int) -> bool:
        """Goes on to the first thing that looks like a header; whether there is one near enough."""
        self.position = -(-self.position // BLOCK) * BLOCK
        until = min(until, self.position + _SCANNED)
        while self.position < until:
            if begins_a_member(self._block()):
                return True
            self.position += BLOCK
        return False

    def _block(self) -> bytes:
        self._file.seek(self.position)
        return self._file.read(BLOCK)

    def _skip_zeros(self) -> None:
        while block := self._block():
            if any(block):
                return
            self.position, self.closed = self.position + len(block), True

    def _member(self) -> Member:
        start, self.closed = self.position, False
        self._file.seek(start)
        self._tar.pax_headers = {}
        try:
            info = tarfile.TarInfo.fromtarfile(self._tar)
        except _MISREAD as error:
            raise self._no_header(str(error)) from None
        after = self._tar.offset
        if info.size < 0 or after <= start:
            raise self._no_header("negative size")
        if {"path", "linkpath", "size"} & self._tar.pax_headers.keys():
            raise InputError(
                f"{self._chunks.where(start)}: a pax header names or measures all members after it, which nobody "
                "should; make the archive again"
            )
        if after > self._chunks.size:
            raise self._cut_off(f"{info.name!r:.200} needs {after - self._chunks.size:,} bytes more")
        self.position = after
        self._file.passed(after - start)
        return Member(start, _name(info.name), _kind(info), info.offset_data, info.size, _name(info.linkname))

    def _no_header(self, said: str) -> InputError:
        if self._file.tell() >= self._chunks.size:
            return self._cut_off("it ends inside a header")
        where, odd = self._chunks.where(self.position), self._chunks.odd_one()
        hint = f" {odd.uri} is not as long as the other chunks; is it whole?" if odd else ""
        return InputError(
            f"{where}: here the next header of the tar file should be, and is not ({said}): bytes before it are "
            f"missing or damaged, or chunks are not in their order.{hint}"
        )

    def _cut_off(self, why: str) -> InputError:
        last = self._chunks.entries[-1].uri
        return InputError(
            f"{self._chunks.uri} is cut off: {why}, and {last} is the last chunk there is; it is not whole, or one "
            "after it is missing"
            if len(self._chunks.entries) > 1
            else f"{self._chunks.uri} is cut off: {why}"
        )


def _kind(info: tarfile.TarInfo) -> Kind:
    if info.issparse():
        return "sparse"
    if info.isreg():
        return "file"
    return "hard" if info.islnk() else "symbolic" if info.issym() else "other"


def _name(name: str) -> bytes:
    """As bytes, because they need not be text."""
    return plain(name.encode("utf-8", "surrogateescape"))


def plain(path: bytes) -> bytes:
    """Without what does not matter in a path."""
    return b"/".join(step for step in path.split(b"/") if step not in (b"", b"."))


class _Ahead(io.RawIOBase):
    """The archive as a file to read headers from."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._position = self._start = 0
        self._data = b""
        self._apart = 0.0  # bytes from header to header, of late

    def passed(self, distance: int) -> None:
        self._apart += (distance - self._apart) / 8

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        assert whence == io.SEEK_SET
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def read(self, length: int = -1) -> bytes:
        if not 0 <= length <= _LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        first = self._position - self._start
        if not (first >= 0 and first + length <= len(self._data)):
            stop.raise_if_requested("what was found so far is kept")
            ahead = WIDE if self._apart < WIDE / 4 else NARROW
            self._start, first = self._position, 0
            self._data = self._chunks.read(self._position, max(ahead, length))
        found = self._data[first : first + length]
        self._position += len(found)
        return found

    def readinto(self, buffer: Any) -> int:
        found = self.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)
