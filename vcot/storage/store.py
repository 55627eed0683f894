"""Read, write, write once, list: s3://, file:// and plain paths behind the same verbs.

The one place where vcot touches stored data. What holds for every kind of storage:

- Nothing half-written is ever visible. A reader sees the old object, the new one, or none.
- `write_once` has exactly one winner, over any number of threads, processes and machines.
- URIs are taken as they stand. `a b`, `100%`, `x?y`, `###` and `ü` are ordinary characters of a key or a path;
  nothing is %-decoded (that `file:///a%20b` names a file with a percent sign is the price).
- Only regular files are read. A FIFO, socket or device is NotFound, and is not opened.
- An error is one line that names the URI as it was written, and its class says what can be done: TemporaryError,
  try again; SettingsError, keys, bucket or endpoint are wrong; NotFound, InputError, the data are.

`bytes+s3://bucket/x.tar#512+1000#name` is a place too, for reading alone: some bytes of an object, or of several that
follow one another (see vcot/uris.py). To its readers a member of an archive is an object like any other.

S3 is set up by the standard AWS_* variables alone (see s3.py).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vcot import uris
from vcot.errors import InputError, UsageError
from vcot.storage.local import CHUNK, Entry, LocalFile, NotFound

if TYPE_CHECKING:
    from vcot.storage.s3 import S3Object


class Store:
    """All storage. It holds nothing: make one where it is needed, share it between threads, send it to processes."""

    def read(self, uri: str) -> bytes:
        return _readable(uri).read()

    def read_range(self, uri: str, start: int, length: int, of: Entry | None = None) -> bytes:
        """`length` bytes from `start`; fewer at the end of the object and none beyond it, as slices do.

        of: what `list` or `stat` said of the object; one that is not in that state any more raises Changed.
        """
        if start < 0 or length < 0:
            raise ValueError(f"a range starts at 0 or later and has no negative length: {start}, {length}")
        return _readable(uri).read_range(start, length, of) if length else b""

    def open_read(self, uri: str, of: Entry | None = None) -> AbstractContextManager[BinaryIO]:
        """Open a stream that can seek.

        A broken connection is resumed where it broke. An object that was replaced meanwhile, or is not in the state
        `of`, raises Changed instead of giving half of each.
        """
        return _readable(uri).open_read(of=of)

    def open_write(self, uri: str) -> AbstractContextManager[BinaryIO]:
        """A stream. The object appears (replacing what was there) when the with-block ends without an exception;
        after an exception nothing has happened. Closing the stream inside the block decides nothing."""
        return _writable(uri).open_write()

    def write(self, uri: str, data: bytes) -> None:
        _writable(uri).write(data)

    def write_once(self, uri: str, data: bytes) -> bool:
        """True: it was written. False: something is there already, and stays as it is."""
        return _writable(uri).write_once(data)

    def delete(self, uri: str) -> None:
        """Takes one object away; where there is none, nothing happens. For what nobody needs any more and nothing
        relies on: keys may lack the right to (SettingsError)."""
        _writable(uri).delete()

    def upload(self, path: Path, uri: str, left: Callable[[int], None] | None = None) -> None:
        """A file of this machine into the store, in parts and in parallel where it is large. `left`: told of bytes."""
        _writable(uri).upload(path, left)

    def download(self, uri: str, path: Path, arrived: Callable[[int], None] | None = None) -> None:
        """The other way; the file appears when it is whole. `arrived`: told of bytes, perhaps by several threads."""
        _readable(uri).download(path, arrived)

    def list(self, prefix_uri: str) -> Iterator[Entry]:
        """Everything below a prefix taken as a folder (`a/b` finds `a/b/c`, not `a/bc`), sorted by URI.

        Pages are fetched while they are read, so a million objects need no memory. A prefix without objects,
        or a folder that does not exist, is empty and no error; a missing bucket is an error.
        """
        return _readable(prefix_uri, folder=True).list()

    def stat(self, uri: str) -> Entry | None:
        return _readable(uri).stat()

    def needs_virtual_hosts(self, uri: str) -> bool:
        """Return True if the bucket answers at bucket.host but not at host/bucket; always False for folders."""
        place = _writable(uri)
        return not isinstance(place, LocalFile) and place.needs_virtual_hosts()

    def digest(self, uri: str, of: Entry | None = None) -> str:
        """Return the sha256 of the stored bytes, in hex, by streaming. Raises Changed: they are not in state `of`."""
        digest = hashlib.sha256()
        with self.open_read(uri, of) as source:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()


def join(base: str, *parts: str) -> str:
    """`base` with parts below it. Parts come from data too, so one that climbs out (`..`) is refused."""
    if ".." in [step for part in parts for step in part.split("/")]:
        raise InputError(f"{'/'.join(parts)!r} climbs out of {base}")
    steps = [step for part in parts if (step := part.strip("/"))]
    if not steps:
        return base
    return (base if base.endswith("/") or not base else base + "/") + "/".join(steps)


def state_of(stream: BinaryIO) -> str:
    """In which state, as in `Entry`, the object is that a stream of `open_read` reads; "" where nobody can tell."""
    return str(getattr(getattr(stream, "raw", None), "state", ""))


def name(uri: str) -> str:
    """The last part: `scene.png` of `s3://bucket/images/scene.png`."""
    return uri.rstrip("/").rpartition("/")[2]


# --- a list that only grows -------------------------------------------------------------------------

# A pointer that is overwritten needs compare-and-swap, which not every S3 has; numbered objects, each written once,
# need only what all of them have, and their history stays readable.
_NUMBERED = re.compile(r"\d{10}\.json")


def numbered(store: Store, prefix_uri: str) -> dict[int, str]:
    """Number → URI of what was appended so far, in order; other objects there are passed over."""
    entries = (entry.uri.rpartition("/") for entry in store.list(prefix_uri))
    return {
        int(last.removesuffix(".json")): f"{folder}/{last}"
        for folder, _, last in entries
        if folder == prefix_uri.rstrip("/") and _NUMBERED.fullmatch(last)
    }


def append(store: Store, prefix_uri: str, data: bytes, after: int) -> str | None:
    """Writes the entry that follows number `after` (0: the first).

    Returns:
        Its URI, or None where somebody else has written that number meanwhile: look at theirs, then try again.
    """
    uri = join(prefix_uri, f"{after + 1:010d}.json")
    return uri if store.write_once(uri, data) else None


class _Pieces:
    """What a `bytes+…` URI names: the bytes of several objects, one after the other."""

    def __init__(self, uri: str, pieces: tuple[uris.Piece, ...]) -> None:
        self.uri = uri
        self.size = sum(piece.length for piece in pieces)
        self._pieces = pieces

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

    def _read(self, piece: uris.Piece, start: int, length: int) -> bytes:
        try:
            data = _place(piece.uri).read_range(piece.start + start, length)
        except NotFound as error:
            raise NotFound(f"{self.uri}: {error}") from None
        if len(data) < length:
            raise NotFound(f"{self.uri}: {piece.uri} has become shorter than it was; is it the same archive?")
        return data

    @contextmanager
    def open_read(self, of: Entry | None = None) -> Iterator[BinaryIO]:
        yield io.BytesIO(self.read())

    def download(self, path: Path, arrived: Callable[[int], None] | None = None) -> None:
        data = self.read()
        LocalFile(str(path), str(path)).write(data)
        if arrived is not None:
            arrived(len(data))

    def list(self) -> Iterator[Entry]:
        return iter(())

    def stat(self) -> Entry | None:
        there = [_place(piece.uri).stat() for piece in self._pieces]
        whole = all(o and o.size >= p.start + p.length for o, p in zip(there, self._pieces, strict=True))
        return Entry(self.uri, self.size, " ".join(o.state for o in there if o)) if whole else None


def _readable(uri: str, folder: bool = False) -> LocalFile | S3Object | _Pieces:
    pieces = uris.pieces(uri)
    return _Pieces(uri, pieces) if pieces else _place(uri, folder)


def _writable(uri: str) -> LocalFile | S3Object:
    if pieces := uris.pieces(uri):
        raise UsageError(f"{uri}: these are bytes inside {pieces[0].uri}; nothing can be written there")
    return _place(uri)


def _place(uri: str, folder: bool = False) -> LocalFile | S3Object:
    """Where a URI points. boto3 is imported at the first s3:// one, so that --help and --check stay fast."""
    try:
        scheme, rest = uris.split(uri)
    except UsageError as error:
        raise UsageError(f"{uri!r}: {error}" if uri else str(error)) from None
    if scheme != "s3":
        return LocalFile(uri, rest)
    from vcot.storage.s3 import S3Object

    bucket, _, key = rest.partition("/")
    if not key and not folder:
        raise UsageError(f"{uri!r} names a bucket, not an object; it should look like s3://{bucket}/key")
    return S3Object(uri, bucket, key)
