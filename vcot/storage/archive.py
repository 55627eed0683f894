"""A tar file that is not unpacked, as one object or in numbered byte chunks: indexed once, then read where it lies.

    <place>/<state of the chunks>/spans/….json.gz        members found so far, for whoever goes on after a kill
                                  members-3f9a….sqlite   name → where its body is
                                  index.json             names the file above; written last, once

Positions are bytes of the whole, over all chunks. Every read holds the chunk against what it was when it was listed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import sqlite3
import struct
import tarfile
import threading
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcot import logging
from vcot.errors import InputError, UsageError
from vcot.stage import Bar, stop
from vcot.storage.local import Changed, Entry, NotFound, file_digest
from vcot.storage.names import first_fault
from vcot.storage.reread import confirmed
from vcot.storage.store import Store, join, name
from vcot.uris import Piece, of_pieces, pieces

BLOCK = tarfile.BLOCKSIZE
SPAN = 256 << 20  # bytes of the archive after which what was found is kept for a successor

_NUMBERED = re.compile(r"(.*?)(\d{2,})", re.DOTALL)
_LOOKED_AT = 1000  # objects of a folder, to see what it is a folder of
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard", b"PK": "zip"}
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


class NoFile(InputError):
    """A member that has no bytes of its own to read: a sparse one, a folder, a link that leads nowhere."""


class Chunks:
    """All of the archive. `entries`: the chunks in their order; share it between threads."""

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
        """As a slice of the whole. Raises Changed: a chunk is not what it was when it was listed."""
        found = []
        for entry, first, count in self._parts(start, min(length, self.size - start)):
            found.append(self.store.read_range(entry.uri, first, count, of=entry))
            if len(found[-1]) < count:
                raise Changed(f"{entry.uri}: changed while it was read")
        return b"".join(found)

    def uri_of(self, start: int, length: int, called: str) -> str:
        """The URI under which any stage reads these bytes."""
        parts = [Piece(entry.uri, first, count) for entry, first, count in self._parts(start, length)]
        try:
            return of_pieces(parts or [Piece(self.entries[0].uri, 0, 0)], called)
        except UsageError as error:
            raise InputError(f"{self.uri}: {error}") from None

    def _parts(self, start: int, length: int) -> Iterator[tuple[Entry, int, int]]:
        while length > 0:
            chunk = bisect_right(self._starts, start) - 1
            first = start - self._starts[chunk]
            count = min(length, self.entries[chunk].size - first)
            yield self.entries[chunk], first, count
            start, length = start + count, length - count

    def damaged(self, position: int, said: str) -> InputError:
        """What is wrong where a header should be and is not."""
        if position >= self.size:
            return self.cut_off("it ends inside a header")
        *others, _ = self.entries
        sizes = Counter(entry.size for entry in others).most_common()  # whoever cuts a file makes equal pieces
        odd = next((entry for entry in others if entry.size != sizes[0][0]), None)
        return InputError(
            f"{self._where(position)}: here the next header of the tar file should be, and is not ({said}): bytes "
            "before it are missing or damaged, or chunks are not in their order."
            + (f" {odd.uri} is not as long as the other chunks; is it whole?" if odd else "")
        )

    def cut_off(self, why: str) -> InputError:
        more = f", and {self.entries[-1].uri} is the last chunk there is; it is not whole, or one after it is missing"
        return InputError(f"{self.uri} is cut off: {why}{more if len(self.entries) > 1 else ''}")

    def _where(self, position: int) -> str:
        chunk = min(bisect_right(self._starts, position), len(self.entries)) - 1
        return f"byte {position - self._starts[chunk]:,} of {self.entries[chunk].uri}"


# --- which objects are an archive ------------------------------------------------------------------


def find(store: Store, uri: str) -> Chunks | None:
    """The archive at a URI: a file, or a folder of numbered chunks. None: a folder of something else, or nothing.
    Raises InputError: an archive, but one with a chunk missing, or compressed."""
    try:
        return confirmed(uri, lambda: _find(store, uri))
    except _NothingThere:
        return None


class _NothingThere(NotFound):
    """Neither an object nor a folder has this URI."""


def _find(store: Store, uri: str) -> Chunks | None:
    try:
        whole = None if uri.endswith("/") else store.stat(uri)
    except UsageError:  # a bucket alone
        whole = None
    if whole is not None:
        beginning = store.read_range(uri, 0, BLOCK, of=whole)
        if _is_tar(beginning):
            return Chunks(store, uri, (whole,))
        raise InputError(f"{uri} is {_instead(beginning)}")
    if not (found := list(islice(store.list(uri), _LOOKED_AT))):
        raise _NothingThere(f"{uri}: nothing is there")
    chunks = [entry for entry in found if _numbered(uri, entry)]
    if not chunks:
        return None
    beginning = Chunks(store, uri, chunks).read(0, BLOCK)
    if _is_tar(beginning):
        return Chunks(store, uri, _without_gaps(uri, chunks[0], store.list(uri)))
    if beginning.startswith(_IMAGES) or len(chunks) < len(found):
        return None
    raise InputError(
        f"{uri} looks like the chunks of a tar file, but {chunks[0].uri}, the first of them, is "
        f"{_instead(beginning)}; is a chunk before it missing?"
    )


def _is_tar(beginning: bytes) -> bool:
    """Whether these 512 bytes are a header of tar, by its checksum, or the zeros that close an empty one."""
    try:
        tarfile.TarInfo.frombuf(beginning, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return len(beginning) == BLOCK and not any(beginning)
    return True


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


# --- from header to header ---------------------------------------------------------------------------

Kind = Literal["file", "hard", "symbolic", "sparse", "other"]

# Members that lie closer together than this are reached by reading all of the archive, in several requests at once;
# others by a small request each. A request waits some 40 ms, in which a node reads about 25 MB through 8 connections;
# but its bandwidth may be less, and others may need it.
_SPARSE = 2 << 20
_AHEAD, _NARROW = 4 << 20, 8 << 10  # bytes of a request, in the one case and the other
_AT_ONCE = 8
_LONGEST_HEADER = 1 << 20  # bytes of one long name, or of one extended header

_MISREAD = (tarfile.TarError, ValueError, OverflowError, IndexError, RecursionError, struct.error)


class Member(NamedTuple):
    """offset, size: of its body, in bytes of the whole. target: what a link names. Bytes of names that are no text are
    surrogate escapes."""

    name: str
    kind: Kind
    offset: int
    size: int
    target: str = ""


class _Walk:
    """One way through the archive, from the header at `position` on, without the bodies.

    tarfile reads the headers (long names of GNU, extended headers of pax, sparse maps). What TarFile itself does with
    `ignore_zeros` would not do here: it passes over damaged headers as if they were zeros, and keeps every header in
    memory.
    """

    def __init__(self, chunks: Chunks, pool: ThreadPoolExecutor) -> None:
        self.position = 0  # of the next header, or the end
        self.closed = False  # the last thing passed was a block of zeros
        self._chunks, self._file = chunks, _Ahead(chunks, pool)
        # An empty archive of our own: what a header's reader wants of a TarFile is a file, an encoding and a place
        # for what it finds.
        self._tar = tarfile.open(  # noqa: SIM115
            fileobj=io.BytesIO(bytes(2 * BLOCK)), mode="r:", encoding="utf-8", errors="surrogateescape"
        )
        self._tar.fileobj = cast(Any, self._file)

    def members(self, until: int) -> Iterator[Member]:
        """Those whose header is before `until`; then zeros are passed over, up to a header or the end.

        Raises:
            InputError: there is something else than a header; the archive ends inside a member.
            Changed: a chunk was replaced.
        """
        self._skip_zeros()
        while self.position < min(until, self._chunks.size):
            yield self._member()
            self._skip_zeros()

    def _skip_zeros(self) -> None:
        self._file.seek(self.position)
        while (block := self._file.read(BLOCK)) and not any(block):
            self.position, self.closed = self.position + len(block), True

    def _member(self) -> Member:
        start, self.closed = self.position, False
        self._file.seek(start)
        self._tar.pax_headers = {}
        try:
            info = tarfile.TarInfo.fromtarfile(self._tar)
            if info.size < 0 or self._tar.offset <= start:
                raise ValueError("negative size")
        except _MISREAD as error:
            at = max(start, self._file.tell()) if self._file.tell() >= self._chunks.size else start
            raise self._chunks.damaged(at, str(error)) from None
        if {"path", "linkpath", "size"} & self._tar.pax_headers.keys():
            raise InputError(
                f"{self._chunks.uri}: a pax header names or measures all members after byte {start:,}, which nobody "
                "should; make the archive again"
            )
        self.position = self._tar.offset
        if self.position > self._chunks.size:
            missing = self.position - self._chunks.size
            raise self._chunks.cut_off(f"{info.name!r:.200} needs {missing:,} bytes more")
        self._file.passed(self.position - start)
        kinds: tuple[tuple[bool, Kind], ...] = (
            (info.issparse(), "sparse"), (info.isreg(), "file"), (info.islnk(), "hard"), (info.issym(), "symbolic"),
        )  # fmt: skip
        kind: Kind = next((kind for holds, kind in kinds if holds), "other")
        return Member(_plain(info.name), kind, info.offset_data, info.size, _plain(info.linkname))


def _plain(path: str) -> str:
    """Without what does not matter in a path."""
    return "/".join(step for step in path.split("/") if step not in ("", "."))


class _Ahead:
    """The archive as a file to read headers from: where they lie close together, blocks after this one are fetched
    while it is gone through."""

    def __init__(self, chunks: Chunks, pool: ThreadPoolExecutor) -> None:
        self._chunks, self._pool = chunks, pool
        self._position = self._start = 0
        self._data = b""
        self._apart = 0.0  # bytes from header to header, of late
        self._coming: dict[int, Future[bytes]] = {}  # block number → its bytes
        self._ahead = 1  # blocks; more when they turn out to be of use

    def passed(self, distance: int) -> None:
        self._apart += (distance - self._apart) / 8

    def seek(self, position: int) -> None:
        self._position = position

    def tell(self) -> int:
        return self._position

    def read(self, length: int) -> bytes:
        if not 0 <= length <= _LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        found = b""
        while len(found) < length and self._position < self._chunks.size:
            first = self._position - self._start
            if not 0 <= first < len(self._data):
                self._fetch()
                continue
            piece = self._data[first : first + length - len(found)]
            found += piece
            self._position += len(piece)
        return found

    def _fetch(self) -> None:
        stop.raise_if_requested("what was found so far is kept")
        if self._apart > _SPARSE:
            self._start, self._data = self._position, self._chunks.read(self._position, _NARROW)
            return
        number, last = self._position // _AHEAD, (self._chunks.size - 1) // _AHEAD
        wanted = range(number, min(number + self._ahead, last + 1))
        self._coming = {
            n: self._coming.get(n) or self._pool.submit(self._chunks.read, n * _AHEAD, _AHEAD) for n in wanted
        }
        self._ahead = min(2 * self._ahead, _AT_ONCE)
        self._start, self._data = number * _AHEAD, self._coming.pop(number).result()


# --- the index -----------------------------------------------------------------------------------------


class Index(BaseModel):
    """``index.json``: where the members are written down, and of which state of the chunks that is true."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    uri: str = Field(description="the file of members, SQLite")
    sha256: str
    members: int
    chunks: tuple[Entry, ...]


def indexed(chunks: Chunks, place_uri: str, scratch: Path, *, span: int = SPAN) -> Index:
    """The index of these chunks below `place_uri`: the one that is there, or a new one, begun or gone on with.

    Raises:
        InputError: this is no whole tar file; says where and why.
        Interrupted: a stop was asked for.
    """
    store, place = chunks.store, join(place_uri, chunks.key)
    if (there := _published(store, place)) is not None:
        return there
    logging.get().info("indexing", archive=chunks.uri, chunks=len(chunks.entries), mib=chunks.size >> 20)
    path = scratch / "new-members.sqlite"
    count = _write_members(path, _members(chunks, join(place, "spans"), span))
    if not count:
        raise InputError(f"{chunks.uri} has no members")
    digest = file_digest(path)
    uri = join(place, f"members-{digest[:12]}.sqlite")
    store.upload(path, uri)
    path.unlink()
    index = Index(uri=uri, sha256=digest, members=count, chunks=chunks.entries)
    store.write_once(join(place, "index.json"), index.model_dump_json(indent=1).encode() + b"\n")
    logging.get().info("indexed", members=count, index=uri)
    return _published(store, place) or index


def _published(store: Store, place: str) -> Index | None:
    uri = join(place, "index.json")
    try:
        return confirmed(uri, lambda: read_index(store, uri, "delete it"), recorded=False)
    except NotFound:
        return None


def read_index(store: Store, uri: str, advice: str) -> Index:
    """Read an index. Raises InputError, with this advice: it is damaged."""
    try:
        return Index.model_validate_json(store.read(uri))
    except ValidationError as error:
        raise InputError(f"{uri} is damaged: {first_fault(error)}; {advice}") from None


def _members(chunks: Chunks, spans_uri: str, span: int) -> Iterator[Member]:
    """Every member in the order of the archive. What a process before this one found and kept is not read again."""
    kept = {name(entry.uri): entry.uri for entry in chunks.store.list(spans_uri)}
    with Bar("indexing", chunks.size >> 20, "MiB") as bar, ThreadPoolExecutor(_AT_ONCE) as pool:
        walk = _Walk(chunks, pool)
        try:
            while (start := walk.position) < chunks.size:
                mine = f"from-{start:015d}.json.gz"
                if mine in kept:
                    walk.position, walk.closed, found = confirmed(kept[mine], partial(_span, chunks.store, kept[mine]))
                else:
                    found = list(walk.members(start + span))
                    value = {"end": walk.position, "closed": walk.closed, "members": found}
                    data = gzip.compress(json.dumps(value).encode(), mtime=0)
                    chunks.store.write_once(join(spans_uri, mine), data)
                yield from found
                bar.advance((walk.position >> 20) - (start >> 20))
        finally:
            pool.shutdown(cancel_futures=True)
    if not walk.closed:
        raise InputError(
            f"{chunks.uri} does not end with the zeros that close a tar file: {chunks.entries[-1].uri} is cut off, or "
            "a chunk after it is missing. (If it is whole all the same, append 1,024 bytes of zeros.)"
        )


def _span(store: Store, uri: str) -> tuple[int, bool, list[Member]]:
    """Read a span: its end, whether zeros close it, and its members. Raises InputError: it is damaged."""
    try:
        value = json.loads(gzip.decompress(store.read(uri)))
        return int(value["end"]), bool(value["closed"]), [Member(*member) for member in value["members"]]
    except (ValueError, KeyError, TypeError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{uri} is damaged ({error}); delete it") from None


def _bytes(name: str) -> bytes:
    """As SQLite keeps a name."""
    return name.encode("utf-8", "surrogateescape")


# What the other name stands for at this place in the archive; later it may stand for something else.
_HARD_LINK = "insert or replace into members select ?, kind, offset, size, target from members where name = ?"


def _write_members(path: Path, members: Iterable[Member]) -> int:
    """The file of members. Of two with one name the later counts, as it would when they are unpacked."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as file:
        file.executescript(
            "pragma journal_mode = off; pragma synchronous = off;"
            "pragma cache_size = -32768;"  # KiB; names come unsorted
            "create table members (name blob primary key, kind text not null, offset int not null, size int not null,"
            " target blob not null) without rowid;"
        )
        for member in members:
            called, target = _bytes(member.name), _bytes(member.target)
            if member.kind != "hard" or not file.execute(_HARD_LINK, (called, target)).rowcount:
                row = (called, *member[1:4], target)
                file.execute("insert or replace into members values (?, ?, ?, ?, ?)", row)
        file.commit()
        file.execute("vacuum")
        count: int = file.execute("select count(*) from members").fetchone()[0]
    return count


# --- members by their names --------------------------------------------------------------------------

_LINKS = 8  # from link to link, before it is said that they go round
_PAGE = "select name, offset, size from members where name > ? and kind = 'file' order by name limit ?"


def opened(chunks: Chunks, index: Index, scratch: Path) -> Archive:
    """The archive by its index, which is fetched. Raises InputError: a chunk is not what the index was made of, or the
    index is damaged."""
    was, now = ({e.uri: (e.size, e.state) for e in entries} for entries in (index.chunks, chunks.entries))
    for uri in {**was, **now}:
        if was.get(uri) != now.get(uri):
            what = "is gone" if uri not in now else "is new" if uri not in was else "has changed"
            raise Changed(f"{uri} {what} since the index of {chunks.uri} was made; use another run name")
    path = scratch / "members.sqlite"
    chunks.store.download(index.uri, path)
    if (digest := file_digest(path)) != index.sha256:
        raise InputError(f"{index.uri} is damaged: its digest is {digest[:12]}…, expected {index.sha256[:12]}…")
    return Archive(chunks, path)


class Archive:
    """Looks members up; share it between threads."""

    def __init__(self, chunks: Chunks, members: Path) -> None:
        self.chunks = chunks
        self._entries = {entry.uri: entry for entry in chunks.entries}
        self._lock = threading.Lock()
        self._path = members
        self._members = sqlite3.connect(f"file:{members}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    def __reduce__(self) -> Any:
        """For another process, which opens the file of members itself."""
        return type(self), (self.chunks, self._path)

    def uri(self, path: str) -> str:
        """The URI of a member, for every stage to read; links inside the archive are followed.

        Raises:
            NotFound: the archive has no such member.
            NoFile: it has, but not as a file with bytes.
        """
        asked = wanted = _plain(path)
        try:
            asked.encode()
        except UnicodeEncodeError:  # half a surrogate pair may be in JSON
            raise NotFound(f"{path!r} is no name of a file") from None
        if ".." in asked.split("/"):
            raise NotFound(f"{path!r} is not a relative file name: members are below {self.chunks.uri}")
        for _ in range(_LINKS):
            found = self._select("select kind, offset, size, target from members where name = ?", _bytes(wanted))
            if not found:
                break
            kind, offset, size, target = found[0]
            if kind == "file":
                return self.chunks.uri_of(offset, size, wanted)
            if kind == "sparse":
                raise NoFile(f"{path!r} is a sparse member of {self.chunks.uri}; only whole ones are read in place")
            if kind == "other":
                raise NoFile(f"{path!r} is no file in {self.chunks.uri}, but a folder or a device")
            linked = target.decode("utf-8", "surrogateescape")
            wanted = linked if kind == "hard" else _beside(wanted, linked)  # hard ones left here lead nowhere
        else:
            raise NoFile(f"{path!r} is a link in {self.chunks.uri} that leads from link to link")
        if wanted == asked:
            raise NotFound(f"{path!r} is not in {self.chunks.uri}")
        raise NotFound(f"{path!r} is a link in {self.chunks.uri} to {wanted!r}, which is not there")

    def read(self, uri: str, most: int) -> bytes:
        """The first `most` bytes of a member. Raises Changed: the chunk was replaced since the index was made."""
        data = b""
        for piece in pieces(uri):
            length = min(piece.length, most - len(data))
            try:
                data += self.chunks.store.read_range(piece.uri, piece.start, length, of=self._entries[piece.uri])
            except (Changed, NotFound) as error:
                raise Changed(f"{error}; the index of {self.chunks.uri} is of what it was before") from None
        return data

    def state(self, uri: str) -> str:
        """Of the chunks in which a member lies, as `Entry` has it."""
        return " ".join(self._entries[piece.uri].state for piece in pieces(uri))

    def holds(self, uri: str) -> bool:
        return all(piece.uri in self._entries for piece in pieces(uri)) and bool(pieces(uri))

    def listed(self) -> Iterator[Entry]:
        """Every file in it, as `Store.list` would give it, by name; links are not among them."""
        last = b""
        while found := self._select(_PAGE, last, 1000):
            for last, offset, size in found:
                uri = self.chunks.uri_of(offset, size, last.decode("utf-8", "surrogateescape"))
                yield Entry(uri, size, self.state(uri))

    def has_folder(self, name: str) -> bool:
        """Whether anything lies below this folder."""
        first, query = name.encode() + b"/", "select 1 from members where name >= ? and name < ? limit 1"
        return bool(self._select(query, first, first[:-1] + b"0"))

    def _select(self, query: str, *values: bytes | int) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._members.execute(query, values).fetchall()


def _beside(link: str, target: str) -> str:
    """What a symbolic link names, seen from the top of the archive."""
    steps: list[str] = []
    for step in _plain(link.rpartition("/")[0] + "/" + target).split("/"):
        if step != "..":
            steps.append(step)
        elif steps:
            steps.pop()
    return "/".join(steps)
