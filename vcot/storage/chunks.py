"""A tar file as storage holds it: one object, or numbered byte chunks that follow one another, read without joining.

Positions are bytes of the whole. Every read holds the chunk against what it was when it was listed.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice

from vcot.errors import InputError, UsageError
from vcot.storage.local import Changed, Entry
from vcot.storage.store import Store, name
from vcot.uris import Piece, of_pieces

BLOCK = tarfile.BLOCKSIZE
_NUMBERED = re.compile(r"(.*?)(\d{2,})", re.DOTALL)
_LOOKED_AT = 1000  # objects of a folder, to see what it is a folder of
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard", b"PK": "zip"}
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


class Chunks:
    """All of it. `entries`: the chunks in their order; share it between threads."""

    def __init__(self, store: Store, uri: str, entries: Sequence[Entry]) -> None:
        self.store, self.uri, self.entries = store, uri, tuple(entries)
        self._starts = [0, *accumulate(entry.size for entry in entries)]
        self.size: int = self._starts[-1]

    @property
    def key(self) -> str:
        """Names this state of these chunks: another one when any of them is replaced."""
        said = json.dumps([(entry.uri, entry.size, entry.state) for entry in self.entries])
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def read(self, start: int, length: int) -> bytes:
        """As a slice of the whole.

        Raises:
            Changed: a chunk is not what it was when it was listed.
        """
        parts = list(self._parts(start, min(length, self.size - start)))
        return b"".join(self._read(entry, first, count) for entry, first, count in parts)

    def _read(self, entry: Entry, start: int, length: int) -> bytes:
        data = self.store.read_range(entry.uri, start, length, of=entry)
        if len(data) < length:
            raise Changed(f"{entry.uri}: changed while it was read")
        return data

    def uri_of(self, start: int, length: int, called: str) -> str:
        """The URI under which any stage reads these bytes."""
        pieces = [Piece(entry.uri, first, count) for entry, first, count in self._parts(start, length)]
        try:
            return of_pieces(pieces or [Piece(self.entries[0].uri, 0, 0)], called)
        except UsageError as error:
            raise InputError(f"{self.uri}: {error}") from None

    def where(self, position: int) -> str:
        """A position in words."""
        chunk = min(bisect_right(self._starts, position), len(self.entries)) - 1
        return f"byte {position - self._starts[chunk]:,} of {self.entries[chunk].uri}"

    def odd_one(self) -> Entry | None:
        """A chunk, the last one aside, that is not as long as the others: who cuts a file makes equal pieces."""
        *others, _ = self.entries
        sizes = Counter(entry.size for entry in others)
        if len(sizes) < 2:
            return None
        usual = sizes.most_common(1)[0][0]
        return next(entry for entry in others if entry.size != usual)

    def _parts(self, start: int, length: int) -> Iterator[tuple[Entry, int, int]]:
        while length > 0:
            chunk = bisect_right(self._starts, start) - 1
            first = start - self._starts[chunk]
            count = min(length, self.entries[chunk].size - first)
            yield self.entries[chunk], first, count
            start, length = start + count, length - count


def find(store: Store, uri: str) -> Chunks | None:
    """The archive at a URI: a file, or a folder of numbered chunks. None: a folder of something else, or nothing.

    Raises:
        InputError: an archive, but one with a chunk missing, or compressed.
    """
    if (whole := _file(store, uri)) is not None:
        beginning = store.read_range(uri, 0, BLOCK, of=whole)
        if _is_tar(beginning):
            return Chunks(store, uri, (whole,))
        raise InputError(f"{uri} is {_instead(beginning)}")
    found = list(islice(store.list(uri), _LOOKED_AT))
    first = next((entry for entry in found if _numbered(uri, entry)), None)
    if first is None:
        return None
    beginning = Chunks(store, uri, [entry for entry in found if _numbered(uri, entry)]).read(0, BLOCK)
    if _is_tar(beginning):
        return Chunks(store, uri, _without_gaps(uri, first, store.list(uri)))
    if beginning.startswith(_PICTURES) or not all(_numbered(uri, entry) for entry in found):
        return None
    raise InputError(
        f"{uri} looks like the chunks of a tar file, but {first.uri}, the first of them, is {_instead(beginning)}; "
        "is a chunk before it missing?"
    )


def _is_tar(beginning: bytes) -> bool:
    return begins_a_member(beginning) or (len(beginning) == BLOCK and not any(beginning))


def begins_a_member(block: bytes) -> bool:
    """Whether these 512 bytes are a header of tar, by its checksum."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _file(store: Store, uri: str) -> Entry | None:
    if uri.endswith("/"):
        return None
    try:
        return store.stat(uri)
    except UsageError:  # a bucket alone
        return None


def _instead(beginning: bytes) -> str:
    for magic, kind in _COMPRESSED.items():
        if beginning.startswith(magic):
            return f"compressed ({kind}): members of it cannot be reached in place; unpack it to a .tar, or to a folder"
    return f"no tar file (it begins with {beginning[:16]!r})" if beginning else "empty"


def _numbered(uri: str, entry: Entry) -> re.Match[str] | None:
    below = entry.uri.rpartition("/")[0]
    return _NUMBERED.fullmatch(name(entry.uri)) if below == uri.rstrip("/") else None


def _without_gaps(uri: str, first: Entry, entries: Iterator[Entry]) -> list[Entry]:
    """The chunks of the first one's name, by number. Raises InputError: one is missing."""
    stem = _NUMBERED.fullmatch(name(first.uri))
    assert stem is not None
    chunks = {int(m[2]): e for e in entries if (m := _numbered(uri, e)) and m[1] == stem[1]}
    wanted = range(min(chunks), max(chunks) + 1)
    if missing := [f"{stem[1]}{number:0{len(stem[2])}d}" for number in wanted if number not in chunks]:
        more = f" and {len(missing) - 3} more are" if len(missing) > 3 else " are" if len(missing) > 1 else " is"
        raise InputError(
            f"{uri}: {', '.join(missing[:3])}{more} missing between {name(first.uri)} and "
            f"{name(chunks[max(chunks)].uri)}; fetch what is missing"
        )
    return [chunks[number] for number in wanted]
