"""What is known of pictures, so that none is opened twice: URI → size and digest, and what it looks like.

It lies in a database on the scratch disk, so that memory does not grow with the dataset; a lookup takes microseconds.
A run leaves it beside its shards, and another run may begin with it (--known-pictures):

    <run>/convert/pictures.json                 names the file and its sha256
                  pictures-3f9a….sqlite
                  pictures-so-far.json                   what a look at all rows knew that was asked to stop
                  pictures/00003.json, 00003-….sqlite    what the process of that shard alone had to look at

What an earlier run says of a picture counts if the storage still lists that picture in the same state (size, and ETag
or time of writing). Who replaces a picture and keeps all of these is found out later: a Sample holds the digest, and
every reader checks it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from vcot.errors import InputError, Interrupted, TemporaryError
from vcot.records import Folder, Image
from vcot.records.sample import Stored
from vcot.storage import Entry, NotFound, Store, join
from vcot.storage import name as last_part

NAME, SO_FAR = "pictures.json", "pictures-so-far.json"
_FORM = 1
"""Of the table; a file of another form is not read."""
_TABLE = """
pragma journal_mode = off; pragma synchronous = off; pragma locking_mode = exclusive;
create table if not exists pictures (
    uri text primary key, width int, height int, sha256 blob, size int, state text, stored text, fresh int,
    print blob
) without rowid;
"""
_GET = "select width, height, sha256, stored from pictures where uri = :uri"
_GET_BESIDE = f"{_GET} union all {_GET.replace('pictures', 'beside.pictures')} limit 1"
_PUT = (
    "insert into pictures values (?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do update set width = excluded.width, "
    "height = excluded.height, sha256 = excluded.sha256, size = excluded.size, state = excluded.state, fresh = 1, "
    "stored = coalesce(excluded.stored, stored), print = iif(sha256 = excluded.sha256, print, null)"
)
_AT_ONCE = 10_000


class Known:
    """Share it between threads. `news`: whether it knows what no file says that it has taken or left as a whole.

    beside: a file of another one that is known here, too (`settled`); nothing is added to it.
    """

    def __init__(self, path: Path, beside: Path | None = None) -> None:
        self._path, self._lock = path, threading.Lock()
        self._empty, self.news = True, False
        self._database, self._get = self._opened(), _GET
        if beside is not None:
            # Nobody writes to it meanwhile, and of its lock, which is for one process, nothing is asked.
            self._database.execute("attach ? as beside", (f"file:{quote(str(beside))}?mode=ro&immutable=1",))
            self._get = _GET_BESIDE

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, check_same_thread=False, uri=True)
        database.executescript(_TABLE)
        return database

    def settled(self) -> Path:
        """The file with all that is known now, for other processes to read while this one adds nothing."""
        with self._lock:
            self._database.commit()
        return self._path

    def get(self, uri: str) -> Image | None:
        try:
            with self._lock:
                found = self._database.execute(self._get, {"uri": uri}).fetchone()
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
        row = (image.uri, image.width, image.height, bytes.fromhex(image.sha256), size, state, stored, 1, None)
        with self._lock:
            self._database.execute(_PUT, row)
            self._empty, self.news = False, True

    def print_of(self, uri: str, sha256: str) -> bytes | None:
        """What the picture looks like (alike.py), if that is known; b"" where it shows nothing."""
        with self._lock:
            query = "select print from pictures where uri = ? and sha256 = ?"
            found = self._database.execute(query, (uri, bytes.fromhex(sha256))).fetchone()
        return None if found is None else found[0]

    def note_print(self, uri: str, sha256: str, print_: bytes) -> None:
        with self._lock:
            note = "update pictures set print = ?, fresh = 1 where uri = ? and sha256 = ?"
            self._database.execute(note, (print_, uri, bytes.fromhex(sha256)))
            self.news = True

    def take(self, store: Store, uri: str, *, listed: Iterable[Entry] | None = None) -> None:
        """What an earlier run, or another process of this one, has left there; of it only what is `listed` unchanged.

        Raises:
            InputError: there is nothing, or something else.
        """
        with _fetched(store, uri, self._path.with_suffix(".taken")) as path, self._lock:
            if listed is None and self._empty:  # then the file is what all its rows would be copied into
                self._database.close()
                path.replace(self._path)
                self._database, self._empty = self._opened(), False
                return
            self._database.commit()
            self._database.execute("attach ? as taken", (str(path),))
            try:
                self._database.execute("create temp table listed (uri text primary key, size int, state text)")
                found = ((entry.uri, entry.size, entry.state) for entry in listed or ())
                self._database.executemany("insert or ignore into listed values (?, ?, ?)", found)
                unchanged = "" if listed is None else "join listed using (uri, size, state)"
                taken = self._database.execute(
                    "insert or ignore into main.pictures "
                    "select uri, width, height, sha256, size, state, null, 0, print "
                    f"from taken.pictures {unchanged}"
                )
                if taken.rowcount > 0:
                    self._empty, self.news = False, True
                self._database.execute("drop table listed")
                self._database.commit()
            finally:
                self._database.rollback()
                self._database.execute("detach taken")

    def learn(self, path: Path) -> None:
        """All that another process has noted in its file beside this one."""
        with self._lock:
            self._database.commit()
            self._database.execute("attach ? as learned", (str(path),))
            taken = self._database.execute("insert or ignore into main.pictures select * from learned.pictures")
            if taken.rowcount > 0:
                self._empty, self.news = False, True
            self._database.commit()
            self._database.execute("detach learned")

    def leave(self, store: Store, uri: str, *, fresh: bool = False) -> None:
        """Puts there what is known; `fresh`: what was looked at since, alone. Pictures without a state are left out,
        and so are copies: those are each run's own.
        """
        path = self._path.with_suffix(".left")
        path.unlink(missing_ok=True)
        with closing(sqlite3.connect(path)) as left, self._lock:
            self._database.commit()
            left.executescript(_TABLE)
            found = self._database.execute(
                "select uri, width, height, sha256, size, state, null, 0, print from pictures "
                "where state != '' and fresh >= ? order by uri", (int(fresh),)
            )  # fmt: skip
            while rows := found.fetchmany(_AT_ONCE):
                left.executemany(_PUT, rows)
            left.commit()
        digest = _digest(path)
        file = f"{uri.removesuffix('.json')}-{digest[:12]}.sqlite"
        store.upload(path, file)
        store.write(uri, json.dumps({"form": _FORM, "file": last_part(file), "sha256": digest}).encode())
        path.unlink()
        self.news = self.news and fresh


def begin(known: Known, folder: Folder, part: str, given: str | None, listed: Iterable[Entry]) -> None:
    """What is known before the first row: in prepare what was `given`, or found by one that was stopped; afterwards
    what prepare and others have left.

    Raises:
        InputError: nothing is left there, or something else.
    """
    left, so_far = join(folder.uri, NAME), join(folder.uri, SO_FAR)
    if folder.store.stat(left) is not None:
        known.take(folder.store, left)
    elif part in ("all", "prepare"):
        earlier = given if folder.store.stat(so_far) is None else so_far
        if earlier is not None:
            known.take(folder.store, earlier, listed=listed)
    if part == "finish":
        for entry in folder.store.list(join(folder.uri, "pictures")):
            if entry.uri.endswith(".json"):
                known.take(folder.store, entry.uri)


def leave(known: Known, folder: Folder, part: str, shard: int | None) -> None:
    """For the processes that come later, and for later runs."""
    if part == "shards":
        name = "all" if shard is None else f"{shard:05d}"
        known.leave(folder.store, join(folder.uri, "pictures", f"{name}.json"), fresh=True)
    elif known.news or folder.store.stat(join(folder.uri, NAME)) is None:
        known.leave(folder.store, join(folder.uri, NAME))


@contextmanager
def not_lost(known: Known, folder: Folder) -> Iterator[None]:
    """A look at all rows may take hours: who is asked to stop in it, or has to, leaves what is known by then."""
    try:
        yield
    except (Interrupted, TemporaryError):
        known.leave(folder.store, join(folder.uri, SO_FAR))
        raise


@contextmanager
def _fetched(store: Store, uri: str, path: Path) -> Iterator[Path]:
    """The file that is named there."""
    try:
        said = json.loads(store.read(uri))
        form, file, digest = said["form"], said["file"], said["sha256"]
    except NotFound as error:
        raise InputError(f"{error}: what is known of pictures is the {NAME} that convert leaves") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{uri} is not the {NAME} that convert leaves") from None
    if form != _FORM:
        raise InputError(f"{uri} is of form {form!r:.20}, and this vcot reads form {_FORM}; leave it out")
    try:
        store.download(join(uri.rpartition("/")[0] or ".", file), path)
        if _digest(path) != digest:
            raise InputError(f"{uri}: {file} is damaged; its sha256 should be {digest}")
        yield path
    finally:
        path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
