"""A tar file that is not unpacked: an index of its members is made once, then each is read where it lies.

    <place>/<state of the chunks>/spans/….json.gz        what was found between two positions (spans.py)
                                  members-3f9a….sqlite   name → where its body is
                                  index.json             names the file above; written last, once

The spans are of use until the index is there.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcot import log
from vcot.errors import InputError, TemporaryError
from vcot.storage.chunks import Chunks
from vcot.storage.headers import Kind, Member, plain
from vcot.storage.place import Changed, Entry, NotFound
from vcot.storage.spans import AT_ONCE, SPAN, members, text
from vcot.storage.store import Store, join
from vcot.uris import pieces

_LINKS = 8  # from link to link, before it is said that they go round
_PAGE = "select name, offset, size from members where name > ? and kind = 'file' order by name limit ?"


class Chunk(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    size: int = Field(ge=0)
    state: str = Field(description="its ETag, or when the file was last written")


class Index(BaseModel):
    """``index.json``: where the members are written down, and of which state of the chunks that is true."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    uri: str = Field(description="the file of members, SQLite")
    sha256: str
    members: int
    chunks: tuple[Chunk, ...]


class NoFile(InputError):
    """A member that has no bytes of its own to read: a sparse one, a folder, a link that leads nowhere."""


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
        try:
            asked = wanted = plain(path.encode())
        except UnicodeEncodeError:  # half a surrogate pair may be in JSON
            raise NotFound(f"{path!r} is no name of a file") from None
        for _ in range(_LINKS):
            found = self._look_up(wanted)
            if found is None:
                break
            kind, offset, size, linked = found
            if kind == "file":
                return self.chunks.uri_of(offset, size, text(wanted))
            if kind == "sparse":
                raise NoFile(f"{path!r} is a sparse member of {self.chunks.uri}; only whole ones are read in place")
            if kind == "other":
                raise NoFile(f"{path!r} is no file in {self.chunks.uri}, but a folder or a device")
            wanted = linked if kind == "hard" else _beside(wanted, linked)  # hard ones left here lead nowhere
        else:
            raise NoFile(f"{path!r} is a link in {self.chunks.uri} that leads from link to link")
        if wanted == asked:
            raise NotFound(f"{path!r} is not in {self.chunks.uri}")
        target = wanted.decode("utf-8", "replace")
        raise NotFound(f"{path!r} is a link in {self.chunks.uri} to {target!r}, which is not there")

    def read(self, uri: str, most: int) -> bytes:
        """The first `most` bytes of a member.

        Raises:
            Changed: the chunk was replaced since the index was made.
        """
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
        last, page = b"", 1000
        while True:
            with self._lock:
                found = self._members.execute(_PAGE, (last, page)).fetchall()
            for last, offset, size in found:
                uri = self.chunks.uri_of(offset, size, text(last))
                yield Entry(uri, size, self.state(uri))
            if len(found) < page:
                return

    def has_folder(self, name: str) -> bool:
        """Whether anything lies below this folder."""
        first = name.encode() + b"/"
        with self._lock:
            asked = self._members.execute(
                "select 1 from members where name >= ? and name < ? limit 1", (first, first[:-1] + b"0")
            )
            return asked.fetchone() is not None

    def _look_up(self, wanted: bytes) -> tuple[Kind, int, int, bytes] | None:
        with self._lock:
            asked = self._members.execute("select kind, offset, size, target from members where name = ?", (wanted,))
            found: tuple[Kind, int, int, bytes] | None = asked.fetchone()
        return found


def opened(chunks: Chunks, index: Index, scratch: Path) -> Archive:
    """The archive by its index, which is fetched.

    Raises:
        InputError: a chunk is not what the index was made of, or the index is damaged.
    """
    _demand_same(chunks, index)
    path = scratch / "members.sqlite"
    chunks.store.download(index.uri, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != index.sha256:
        raise InputError(f"{index.uri} is damaged: its digest is {digest[:12]}…, expected {index.sha256[:12]}…")
    return Archive(chunks, path)


def _demand_same(chunks: Chunks, index: Index) -> None:
    now = {entry.uri: entry for entry in chunks.entries}
    for was in index.chunks:
        there = now.pop(was.uri, None)
        if there is None:
            raise Changed(f"{was.uri} is gone since the index of {chunks.uri} was made; use another run name")
        if (there.size, there.state) != (was.size, was.state):
            raise Changed(f"{was.uri} has changed since the index of {chunks.uri} was made; use another run name")
    for uri in now:
        raise Changed(f"{uri} is new since the index of {chunks.uri} was made; use another run name")


def indexed(chunks: Chunks, place_uri: str, scratch: Path, *, span: int = SPAN, at_once: int = AT_ONCE) -> Index:
    """The index of these chunks below `place_uri`: the one that is there, or a new one, begun or gone on with.

    Raises:
        InputError: this is no whole tar file; says where and why.
        Interrupted: a stop was asked for.
    """
    store, place = chunks.store, join(place_uri, chunks.key)
    if (there := _published(store, place)) is not None:
        return there
    log.get().info("indexing", archive=chunks.uri, chunks=len(chunks.entries), mib=chunks.size >> 20)
    path = scratch / "new-members.sqlite"
    try:
        count = _written(path, members(chunks, join(place, "spans"), span, at_once))
    except sqlite3.OperationalError as error:
        raise TemporaryError(f"{path}: the index cannot be written ({error}); is there room on this disk?") from None
    if not count:
        raise InputError(f"{chunks.uri} has no members")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    uri = join(place, f"members-{digest[:12]}.sqlite")
    store.upload(path, uri)
    path.unlink()
    index = Index(
        uri=uri, sha256=digest, members=count,
        chunks=tuple(Chunk(uri=e.uri, size=e.size, state=e.state) for e in chunks.entries),
    )  # fmt: skip
    store.write_once(join(place, "index.json"), index.model_dump_json(indent=1).encode() + b"\n")
    log.get().info("indexed", members=count, index=uri)
    return _published(store, place) or index


def _published(store: Store, place: str) -> Index | None:
    uri = join(place, "index.json")
    try:
        return Index.model_validate_json(store.read(uri))
    except NotFound:
        return None
    except ValidationError as error:
        raise InputError(f"{uri} is damaged: {error.errors()[0]['msg']}; delete it") from None


# What the other name stands for at this place in the archive; later it may stand for something else.
_HARD_LINK = "insert or replace into members select ?, kind, offset, size, target from members where name = ?"


def _written(path: Path, members: Iterable[Member]) -> int:
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
            linked = member.kind == "hard" and file.execute(_HARD_LINK, (member.name, member.target)).rowcount
            if not linked:
                file.execute(
                    "insert or replace into members values (?, ?, ?, ?, ?)",
                    (member.name, member.kind, member.offset, member.size, member.target),
                )
        file.commit()
        file.execute("vacuum")
        count: int = file.execute("select count(*) from members").fetchone()[0]
    return count


def _beside(link: bytes, target: bytes) -> bytes:
    """What a symbolic link names, seen from the top of the archive."""
    steps: list[bytes] = []
    for step in plain(link.rpartition(b"/")[0] + b"/" + target).split(b"/"):
        if step != b"..":
            steps.append(step)
        elif steps:
            steps.pop()
    return b"/".join(steps)
