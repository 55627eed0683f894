"""Whole folders of files (a base model, an adapter) in storage.

    <base>/config.json, model-00001-of-00005.safetensors, …
           _manifest.json      names, sizes, sha256 of what was pushed; until all of it is there it says so

A folder with a manifest is what its manifest names, and every file that is fetched is held against it. One without
(put there by other means) is taken as it is.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcot import log
from vcot.errors import InputError, SettingsError, TemporaryError
from vcot.stage import Bar, stop
from vcot.storage.local import NotFound
from vcot.storage.store import Entry, Store, join

MANIFEST = "_manifest.json"
FILES_AT_ONCE = 4
MIB = 1 << 20


class Listed(BaseModel):
    """A file of a manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=0)
    sha256: str


class FolderManifest(BaseModel):
    """``_manifest.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    whole: bool
    files: dict[str, Listed] = Field(description="name below the folder → what it is")


def read_manifest(store: Store, uri: str) -> FolderManifest | None:
    place = join(uri, MANIFEST)
    try:
        manifest = FolderManifest.model_validate_json(store.read(place))
    except NotFound:
        return None
    except ValidationError as error:
        raise InputError(f"{place} is not a manifest: {error.errors()[0]['msg']}; push the folder again") from None
    for name in manifest.files:
        if name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{place}: {name!r} is no name of a file below the folder")
    return manifest


def _whole_manifest(store: Store, uri: str) -> FolderManifest | None:
    manifest = read_manifest(store, uri)
    if manifest is not None and not manifest.whole:
        raise InputError(f"{uri} is only half there: a push of it was not finished; run the same push again")
    return manifest


def _everything(_name: str) -> bool:
    return True


def _files(store: Store, uri: str, only: Callable[[str], bool]) -> dict[str, Entry]:
    base = uri.rstrip("/") + "/"
    found = {entry.uri.removeprefix(base): entry for entry in store.list(base)}
    files = {name: entry for name, entry in found.items() if only(name) and name != MANIFEST}
    if not files:
        raise InputError(
            f"{uri}: there is no such folder, or nothing in it" if not found else f"{uri}: nothing wanted in it"
        )
    return files


def fetch_folder(store: Store, uri: str, into: Path, only: Callable[[str], bool] = _everything) -> Path:
    """The folder as one on this disk: downloaded below `into`, or as it is where it is local already.

    Args:
        only: which files are wanted, by their name below the folder.

    Raises:
        InputError: the folder is empty, not there, only half pushed, or a file is not what the manifest says.
        TemporaryError: there is no room for it here.
        Interrupted: a stop was asked for.
    """
    if local := _local(uri):
        if not local.is_dir():
            raise InputError(f"{uri}: there is no such folder")
        return local
    manifest = _whole_manifest(store, uri)
    if manifest is None:
        wanted = {name: (entry.size, "") for name, entry in _files(store, uri, only).items()}
    else:
        wanted = {name: (file.size, file.sha256) for name, file in manifest.files.items() if only(name)}
    if not wanted:
        raise InputError(f"{uri}: nothing wanted in it")
    missing = {n: (size, sha256) for n, (size, sha256) in wanted.items() if not _is(into / n, size, sha256)}
    if missing:
        _fetch(store, uri, into, missing)
    return into


def fetch_with_digest(store: Store, uri: str, into: Path) -> tuple[Path, str]:
    """The whole folder, and its digest; where a manifest was held against every file, they are not read once more."""
    folder = fetch_folder(store, uri, into)
    return folder, folder_digest(store, uri if _local(uri) is None and read_manifest(store, uri) else str(folder))


def _local(uri: str) -> Path | None:
    return Path(uri.removeprefix("file://")) if "://" not in uri or uri.startswith("file://") else None


def _is(path: Path, size: int, sha256: str) -> bool:
    """Whether this file is there already; without a digest its size must do."""
    return path.is_file() and path.stat().st_size == size and (not sha256 or _digest(path) == sha256)


def _fetch(store: Store, uri: str, into: Path, files: Mapping[str, tuple[int, str]]) -> None:
    """Several files at once, and large ones in several ranges; a file is checked while others arrive."""
    total = sum(size for size, _ in files.values())
    into.mkdir(parents=True, exist_ok=True)
    _demand_room(uri, into, total)
    begun = time.monotonic()
    with _Bytes("fetching", total) as bar, ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        largest_first = sorted(files.items(), key=lambda item: -item[1][0])
        jobs = [pool.submit(_fetch_file, store, uri, into, n, sha256, bar.arrived) for n, (_, sha256) in largest_first]
        try:
            for job in jobs:
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
    seconds = time.monotonic() - begun
    if total > 100 * MIB:
        log.get().info(
            "fetched", uri=uri, mib=total // MIB, seconds=round(seconds, 1), mib_per_second=round(total / MIB / seconds)
        )


def _fetch_file(store: Store, uri: str, into: Path, name: str, sha256: str, arrived: Callable[[int], None]) -> None:
    target = into / name
    target.parent.mkdir(parents=True, exist_ok=True)
    found = ""
    for _ in range(2):  # what was damaged on its way is not the second time
        stop.raise_if_requested("nothing was begun")
        try:
            store.download(join(uri, name), target, arrived)
        except NotFound as error:
            raise InputError(f"{error}, though it was listed a moment ago; push the folder again") from None
        if not sha256 or (found := _digest(target)) == sha256:
            return
    target.unlink()
    raise InputError(
        f"{join(uri, name)} is not what its manifest says: its digest is {found[:12]}…, expected {sha256[:12]}…; it "
        "was damaged or replaced. Push the folder again, to another place"
    )


def _demand_room(uri: str, into: Path, total: int) -> None:
    free = shutil.disk_usage(into).free
    if total > free:
        raise TemporaryError(
            f"{uri}: no room left on the disk of {into}: {total // MIB:,} MiB are needed, {free // MIB:,} are free; "
            "free some or point TMPDIR elsewhere"
        )


class _Bytes:
    """A bar that several threads move."""

    def __init__(self, what: str, total: int) -> None:
        self._bar = Bar(what, -(-total // MIB), "MiB", shown=total > 100 * MIB)
        self._lock, self._rest = threading.Lock(), 0

    def arrived(self, count: int) -> None:
        with self._lock:
            mib, self._rest = divmod(self._rest + count, MIB)
            if mib:
                self._bar.advance(mib)

    def __enter__(self) -> _Bytes:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)


def push_folder(store: Store, folder: Path, uri: str, names: Iterable[str]) -> FolderManifest:
    """Uploads these files of a local folder, the manifest of the whole last; goes on where a push was cut off.

    What the manifest names with the same size and digest, and what lies there in that size, is not sent again. So a
    push of what was whole once brings back what was lost since.

    Raises:
        SettingsError: another folder was pushed there; what runs have read is not replaced under them.
        Interrupted: a stop was asked for; files that are up are kept.
    """
    mine = _listed(folder, sorted(names))
    there = read_manifest(store, uri)
    if there is not None and there.whole:
        _refuse_another(uri, there, mine)
    kept = {
        name: file
        for name, file in ({} if there is None else there.files).items()
        if mine.get(name) == file and _stored_size(store, uri, name) == file.size
    }
    if there is not None and there.whole and kept == mine:
        log.get().info("nothing left to do: it is there already", uri=uri, files=len(mine))
        return there
    _write_manifest(store, uri, whole=False, files=kept)
    with _Bytes("pushing", sum(file.size for name, file in mine.items() if name not in kept)) as bar:
        for name, file in mine.items():
            if name in kept:
                continue
            stop.raise_if_requested("files that are up are kept")
            log.get().info("pushing", file=name, mib=file.size // MIB)
            store.upload(folder / name, join(uri, name), bar.arrived)
            kept[name] = file
            _write_manifest(store, uri, whole=False, files=kept)
    return _write_manifest(store, uri, whole=True, files=mine)


def _listed(folder: Path, names: list[str]) -> dict[str, Listed]:
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        digests = pool.map(lambda name: _digest(folder / name), names)
        return {
            name: Listed(size=(folder / name).stat().st_size, sha256=sha256)
            for name, sha256 in zip(names, digests, strict=True)
        }


def _refuse_another(uri: str, there: FolderManifest, mine: Mapping[str, Listed]) -> None:
    if differing := sorted(name for name in {*there.files, *mine} if there.files.get(name) != mine.get(name)):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise SettingsError(
            f"{uri} holds another folder ({', '.join(differing[:3])}{more} differ), and runs may have read it; "
            "push to another place"
        )


def _stored_size(store: Store, uri: str, name: str) -> int | None:
    entry = store.stat(join(uri, name))
    return None if entry is None else entry.size


def _write_manifest(store: Store, uri: str, *, whole: bool, files: Mapping[str, Listed]) -> FolderManifest:
    manifest = FolderManifest(whole=whole, files=dict(sorted(files.items())))
    store.write(join(uri, MANIFEST), manifest.model_dump_json(indent=1).encode() + b"\n")
    return manifest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_folder(store: Store, folder: Path, uri: str) -> dict[str, str]:
    """Uploads every file of a local folder; returns name → sha256."""
    digests = {}
    for root, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = Path(root) / name
            below = path.relative_to(folder).as_posix()
            digests[below] = _digest(path)
            store.upload(path, join(uri, below))
    return digests


def folder_digest(store: Store, uri: str, only: Callable[[str], bool] = _everything) -> str:
    """One sha256 over the names and contents of the folder's files; of a pushed one, as its manifest has them."""
    manifest = _whole_manifest(store, uri) if _local(uri) is None else None
    if manifest is None:
        digests = {name: store.digest(entry.uri) for name, entry in _files(store, uri, only).items()}
    else:
        digests = {name: file.sha256 for name, file in manifest.files.items() if only(name)}
    whole = hashlib.sha256()
    for name, digest in sorted(digests.items()):
        whole.update(f"{name}\0{digest}\n".encode())
    return whole.hexdigest()
