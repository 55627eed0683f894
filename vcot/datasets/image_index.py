"""What is known of images, so that none is opened twice: URI → size, digest, copy and fingerprint.

It is an SQLite file on the scratch disk, which all processes of this computer share: memory does not grow with the
dataset, and a lookup takes microseconds. A run leaves it beside its shards, and another run may begin with it
(--known-images):

    <run>/convert/images.json                 names the file and its sha256
                  images-3f9a….sqlite
                  images-so-far.json                   what a prepare knew that was stopped
                  images/00003.json, 00003-….sqlite    what the process of that shard alone had to open

What an earlier run says of an image counts if storage still lists that image in the same state (size, and ETag or
time of writing). All of these may survive a replaced image; that is noticed later, because a Sample holds the digest
and every reader checks it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vcot.errors import InputError, Interrupted, TemporaryError, foreseen
from vcot.records import Folder, Image
from vcot.records.sample import Stored
from vcot.storage import Entry, NotFound, Store, confirmed, join
from vcot.storage import name as last_part
from vcot.storage.local import file_digest
from vcot.storage.names import name_in

NAME, SO_FAR = "images.json", "images-so-far.json"
_FORM = 1
"""Of the table; a file of another form is not read."""
_COLUMNS = (
    "uri text primary key, width int, height int, sha256 blob, size int, state text, stored text, fresh int, print blob"
)
_GET = "select width, height, sha256, stored from images where uri = ?"
_PUT = (
    "insert into images values (?, ?, ?, ?, ?, ?, ?, 1, null) on conflict do update set width = excluded.width, "
    "height = excluded.height, sha256 = excluded.sha256, size = excluded.size, state = excluded.state, fresh = 1, "
    "stored = coalesce(excluded.stored, stored), print = iif(sha256 = excluded.sha256, print, null)"
)


class ImageIndex:
    """Share it between threads; one that is pickled opens the same file in another process."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._open()

    def __reduce__(self) -> Any:
        return type(self), (self._path,)

    def _open(self) -> None:
        self._writer, self._reader = (
            sqlite3.connect(self._path, timeout=600, isolation_level=None, check_same_thread=False) for _ in range(2)
        )
        self._writer.executescript(
            "pragma journal_mode = wal; pragma synchronous = off;"
            f"create table if not exists images ({_COLUMNS}) without rowid;"
        )
        self._reader.execute("begin")

    def get(self, uri: str) -> Image | None:
        try:
            with self._lock:
                # Within a transaction a lookup takes half the time, and does not see what others have added since.
                if (found := self._reader.execute(_GET, (uri,)).fetchone()) is None:
                    self._reader.commit()
                    self._reader.execute("begin")
                    found = self._reader.execute(_GET, (uri,)).fetchone()
        except UnicodeEncodeError:  # half a surrogate pair may be in a row, and in no name
            return None
        if found is None:
            return None
        width, height, digest, stored = found
        copy = None if stored is None else Stored.model_validate_json(stored)
        return Image(uri=uri, width=width, height=height, sha256=digest.hex(), stored=copy)

    def put(self, image: Image, size: int, state: str) -> None:
        """size, state: of the object that was read, as `Entry` has them; without a state, later runs look again."""
        stored = image.stored and image.stored.model_dump_json()
        row = (image.uri, image.width, image.height, bytes.fromhex(image.sha256), size, state, stored)
        with self._lock:
            self._writer.execute(_PUT, row)

    def print_of(self, uri: str, sha256: str) -> bytes | None:
        """The fingerprint (near_duplicates.py), if that is known; b"" where the image shows nothing."""
        with self._lock:
            query = "select print from images where uri = ? and sha256 = ?"
            found = self._writer.execute(query, (uri, bytes.fromhex(sha256))).fetchone()
        return None if found is None else found[0]

    def note_print(self, uri: str, sha256: str, print_: bytes) -> None:
        with self._lock:
            note = "update images set print = ?, fresh = 1 where uri = ? and sha256 = ?"
            self._writer.execute(note, (print_, uri, bytes.fromhex(sha256)))

    def take(self, store: Store, uri: str, *, listed: Iterable[Entry] | None = None) -> None:
        """What an earlier run, or another process of this one, has left there; of it only what is `listed` unchanged.
        Raises InputError: there is nothing, or something else.
        """
        with _fetched(store, uri, self._path.with_suffix(".taken")) as path, self._lock:
            if listed is None and not self._any("true"):  # then the file is what all its rows would be copied into
                self._reader.close()
                self._writer.close()
                path.replace(self._path)
                self._open()
                return
            self._writer.execute("create temp table listed (uri text, size int, state text, primary key (uri))")
            found = ((entry.uri, entry.size, entry.state) for entry in listed or ())
            self._writer.executemany("insert or ignore into listed values (?, ?, ?)", found)
            self._writer.execute("attach ? as taken", (str(path),))
            unchanged = "" if listed is None else "join listed using (uri, size, state)"
            self._writer.execute(
                "insert or ignore into main.images "
                f"select uri, width, height, sha256, size, state, null, 1, print from taken.images {unchanged}"
            )
            self._writer.executescript("detach taken; drop table listed")

    def leave(self, store: Store, uri: str, *, fresh: bool = False) -> None:
        """Puts there what is known; `fresh`: what this run had to open, alone. Images without a state are left out,
        and so are copies: those are each run's own.
        """
        path = self._path.with_suffix(".left")
        path.unlink(missing_ok=True)
        with self._lock:
            self._writer.execute("attach ? as out", (str(path),))
            self._writer.executescript(
                f"create table out.images ({_COLUMNS}) without rowid; insert into out.images "
                "select uri, width, height, sha256, size, state, null, 0, print from main.images "
                f"where state != '' and fresh >= {int(fresh)} order by uri; detach out"
            )
        digest = file_digest(path)
        file = f"{uri.removesuffix('.json')}-{digest[:12]}.sqlite"
        store.upload(path, file)
        store.write(uri, json.dumps({"form": _FORM, "file": last_part(file), "sha256": digest}).encode())
        path.unlink()

    def begin(self, folder: Folder, part: str, given: str | None, listed: Iterable[Entry]) -> None:
        """What is known before the first row: in prepare what was `given`, or left by one that was stopped; afterwards
        what prepare and others have left. Raises InputError: nothing is left there, or something else.
        """
        left, so_far = join(folder.uri, NAME), join(folder.uri, SO_FAR)
        if folder.store.stat(left) is not None:
            self.take(folder.store, left)
        elif part in ("all", "prepare"):
            earlier = given if folder.store.stat(so_far) is None else so_far
            if earlier is not None:
                self.take(folder.store, earlier, listed=listed)
        if part == "finish":
            for entry in folder.store.list(join(folder.uri, "images")):
                if entry.uri.endswith(".json"):
                    self.take(folder.store, entry.uri)

    def end(self, folder: Folder, part: str, shard: int | None) -> None:
        """Leaves it for the processes that come later, and for later runs."""
        left = join(folder.uri, NAME)
        if part == "shards":
            name = "all" if shard is None else f"{shard:05d}"
            self.leave(folder.store, join(folder.uri, "images", f"{name}.json"), fresh=True)
        elif folder.store.stat(left) is None or self._any("fresh"):
            self.leave(folder.store, left)
            self._writer.execute("update images set fresh = 0")

    @contextmanager
    def not_lost(self, folder: Folder) -> Iterator[None]:
        """A prepare may take hours: when it is stopped, or has to stop, it leaves what is known by then."""
        try:
            yield
        except Exception as error:
            if isinstance(foreseen(error), Interrupted | TemporaryError):
                self.leave(folder.store, join(folder.uri, SO_FAR))
            raise

    def _any(self, which: str) -> bool:
        return self._writer.execute(f"select 1 from images where {which} limit 1").fetchone() is not None


@contextmanager
def _fetched(store: Store, uri: str, path: Path) -> Iterator[Path]:
    """The file that is named there."""
    try:
        confirmed(uri, lambda: _fetch(store, uri, path))
        yield path
    finally:
        path.unlink(missing_ok=True)


def _fetch(store: Store, uri: str, path: Path) -> None:
    try:
        stated = json.loads(store.read(uri))
        form, file, digest = stated["form"], str(stated["file"]), str(stated["sha256"])
    except NotFound as error:
        raise NotFound(f"{error}: what is known of images is the {NAME} that convert leaves") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{uri} is not the {NAME} that convert leaves") from None
    if form != _FORM:
        raise InputError(f"{uri} is of form {form!r:.20}, and this vcot reads form {_FORM}; leave it out")
    store.download(join(uri.rpartition("/")[0] or ".", name_in(uri, file)), path)
    if file_digest(path) != digest:
        raise InputError(f"{uri}: {file} is damaged; its sha256 should be {digest}")
