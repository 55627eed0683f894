"""Whole folders of files (a base model, an adapter) in storage.

    <base>/config.json, model-00001-of-00005.safetensors, …
           _manifest.json      names, sizes, sha256 of what was pushed; until all of it is there it says so

A folder with a manifest is what its manifest names, and every file that is fetched is held against it. One without
(put there by other means) is taken as it is.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcot import logging
from vcot.errors import InputError, SettingsError, TemporaryError
from vcot.stage import Bar, stop
from vcot.storage.local import NotFound, file_digest
from vcot.storage.names import RelativeName, first_fault, local_path, refuse_names
from vcot.storage.reread import confirmed
from vcot.storage.store import Store, join

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
    files: dict[RelativeName, Listed] = Field(description="name below the folder → what it is")


def read_manifest(store: Store, uri: str) -> FolderManifest | None:
    place = join(uri, MANIFEST)

    def attempt() -> FolderManifest:
        try:
            return FolderManifest.model_validate_json(store.read(place))
        except ValidationError as error:
            refuse_names(error, place)
            raise InputError(f"{place} is not a manifest: {first_fault(error)}; push the folder again") from None

    try:
        return confirmed(place, attempt, recorded=False)
    except NotFound:
        return None


def _files(store: Store, uri: str, only: Callable[[str], bool]) -> dict[str, tuple[int, str]]:
    """Name → size and sha256 of what the manifest names; where there is none, of what is there, without digests."""
    return confirmed(uri, lambda: _files_now(store, uri, only))


def _files_now(store: Store, uri: str, only: Callable[[str], bool]) -> dict[str, tuple[int, str]]:
    manifest = None if _local(uri) else read_manifest(store, uri)
    if manifest is None:
        base = uri.rstrip("/") + "/"
        found = {entry.uri.removeprefix(base): (entry.size, "") for entry in store.list(base)}
        if not found:
            raise NotFound(f"{uri}: there is no such folder, or nothing in it")
    elif manifest.whole:
        found = {name: (file.size, file.sha256) for name, file in manifest.files.items()}
    else:
        raise InputError(f"{uri} is only half there: a push of it was not finished; run the same push again")
    files = {name: file for name, file in found.items() if only(name) and name != MANIFEST}
    if not files:
        raise InputError(f"{uri}: nothing wanted in it")
    return files


def _local(uri: str) -> Path | None:
    return Path(uri.removeprefix("file://")) if "://" not in uri or uri.startswith("file://") else None


def fetch_folder(store: Store, uri: str, into: Path, only: Callable[[str], bool] = lambda _: True) -> Path:
    """The folder as one on this disk: downloaded below `into`, or as it is where it is local already.

    Several files arrive at once, the largest first, and a file is checked while others arrive.

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
    wanted = sorted(_files(store, uri, only).items(), key=lambda item: -item[1][0])
    missing = [
        (name, size, sha256) for name, (size, sha256) in wanted if not _is(local_path(into, name, uri), size, sha256)
    ]
    total = sum(size for _, size, _ in missing)
    into.mkdir(parents=True, exist_ok=True)
    if total > (free := shutil.disk_usage(into).free):
        raise TemporaryError(
            f"{uri}: no room left on the disk of {into}: {total // MIB:,} MiB are needed, {free // MIB:,} are free; "
            "free some or point TMPDIR elsewhere"
        )
    begun = time.monotonic()
    with BytesBar("fetching", total) as bar, ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        jobs = [pool.submit(_fetch, store, uri, into, name, sha256, bar.arrived) for name, _, sha256 in missing]
        try:
            for job in jobs:
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
    seconds = time.monotonic() - begun
    if total > 100 * MIB:
        logging.get().info(
            "fetched", uri=uri, mib=total // MIB, seconds=round(seconds, 1), mib_per_second=round(total / MIB / seconds)
        )
    return into


def _is(path: Path, size: int, sha256: str) -> bool:
    """Whether this file is there already; without a digest its size must do."""
    return path.is_file() and path.stat().st_size == size and (not sha256 or file_digest(path) == sha256)


def _fetch(store: Store, uri: str, into: Path, name: str, sha256: str, arrived: Callable[[int], None]) -> None:
    target = local_path(into, name, uri)
    target.parent.mkdir(parents=True, exist_ok=True)

    def attempt() -> None:
        stop.raise_if_requested("nothing was begun")
        try:
            store.download(join(uri, name), target, arrived)
        except NotFound as error:
            raise NotFound(f"{error}, though it was listed a moment ago; push the folder again") from None
        if sha256 and (digest := file_digest(target)) != sha256:
            target.unlink()
            raise InputError(
                f"{join(uri, name)} is not what its manifest says: its digest is {digest[:12]}…, expected "
                f"{sha256[:12]}…; it was damaged or replaced. Push the folder again, to another place"
            )

    confirmed(join(uri, name), attempt)


def fetch_with_digest(store: Store, uri: str, into: Path) -> tuple[Path, str]:
    """The whole folder, and its digest; where a manifest was held against every file, they are not read once more."""
    folder = fetch_folder(store, uri, into)
    return folder, folder_digest(store, uri if _local(uri) is None and read_manifest(store, uri) else str(folder))


def fetch_base(
    store: Store, uri: str, sha256: str, into: Path, otherwise: str = "is not the base that was trained on"
) -> Path:
    """The folder of a base, whole. Raises InputError: it is not the one of this digest, in the words of `otherwise`."""

    def attempt() -> Path:
        folder, digest = fetch_with_digest(store, uri, into)
        if digest != sha256:
            if folder == into:
                shutil.rmtree(into)  # perhaps damaged on its way: the next attempt fetches all of it
            raise InputError(f"{uri} {otherwise}: its digest is {digest[:12]}…, it was {sha256[:12]}…")
        return folder

    return confirmed(uri, attempt)


def fetch_files(store: Store, uri: str, files: Mapping[str, str], into: Path) -> Path:
    """Files of a folder, name → sha256 as the marker of the stage that made them says, and no other; not again those
    that are there.

    Raises InputError: one is not what its marker says.
    """
    for name, sha256 in files.items():
        path = local_path(into, name, uri)
        if path.is_file() and file_digest(path) == sha256:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        confirmed(join(uri, name), partial(_fetch_trained, store, join(uri, name), path, sha256))
    return into


def _fetch_trained(store: Store, uri: str, path: Path, sha256: str) -> None:
    store.download(uri, path)
    if (digest := file_digest(path)) != sha256:
        raise InputError(f"{uri} is not what train wrote: its digest is {digest[:12]}…, it was {sha256[:12]}…")


def folder_digest(store: Store, uri: str, only: Callable[[str], bool] = lambda _: True) -> str:
    """One sha256 over the names and contents of the folder's files; of a pushed one, as its manifest has them."""
    whole = hashlib.sha256()
    for name, (_, sha256) in sorted(_files(store, uri, only).items()):
        whole.update(f"{name}\0{sha256 or store.digest(uri.rstrip('/') + '/' + name)}\n".encode())
    return whole.hexdigest()


class BytesBar(Bar):
    """In MiB; several threads move it."""

    def __init__(self, what: str, total: int) -> None:
        super().__init__(what, -(-total // MIB), "MiB", shown=total > 100 * MIB)
        self._lock, self._rest = threading.Lock(), 0

    def arrived(self, count: int) -> None:
        with self._lock:
            mib, self._rest = divmod(self._rest + count, MIB)
            if mib:
                self.advance(mib)


def put_folder(store: Store, folder: Path, uri: str) -> dict[str, str]:
    """Uploads every file of a local folder; returns name → sha256."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in names:
        store.upload(folder / name, join(uri, name))
    return {name: file_digest(folder / name) for name in names}


def push_folder(store: Store, folder: Path, uri: str, names: Iterable[str]) -> FolderManifest:
    """Uploads these files of a local folder, the manifest of the whole last; goes on where a push was cut off.

    What the manifest names with the same size and digest, and what lies there in that size, is not sent again. So a
    push of what was whole once brings back what was lost since.

    Raises:
        InputError: a name is not a relative file name.
        SettingsError: another folder was pushed there; what runs have read is not replaced under them.
        Interrupted: a stop was asked for; files that are up are kept.
    """

    def listed(name: str) -> Listed:
        path = local_path(folder, name, str(folder))
        return Listed(size=path.stat().st_size, sha256=file_digest(path))

    def write_manifest(whole: bool, files: Mapping[str, Listed]) -> FolderManifest:
        manifest = FolderManifest(whole=whole, files=dict(sorted(files.items())))
        store.write(join(uri, MANIFEST), manifest.model_dump_json(indent=1).encode() + b"\n")
        return manifest

    names = sorted(names)
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        mine = dict(zip(names, pool.map(listed, names), strict=True))
    there = read_manifest(store, uri) or FolderManifest(whole=False, files={})
    differing = sorted(name for name in {*there.files, *mine} if there.files.get(name) != mine.get(name))
    if there.whole and differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise SettingsError(
            f"{uri} holds another folder ({', '.join(differing[:3])}{more} differ), and runs may have read it; "
            "push to another place"
        )
    stored = {name: store.stat(join(uri, name)) for name in mine if name not in differing}
    kept = {name: mine[name] for name, entry in stored.items() if entry and entry.size == mine[name].size}
    if there.whole and kept == mine:
        logging.get().info("nothing left to do: it is there already", uri=uri, files=len(mine))
        return there
    write_manifest(False, kept)
    with BytesBar("pushing", sum(file.size for name, file in mine.items() if name not in kept)) as bar:
        for name, file in mine.items():
            if name in kept:
                continue
            stop.raise_if_requested("files that are up are kept")
            logging.get().info("pushing", file=name, mib=file.size >> 20)
            store.upload(folder / name, join(uri, name), bar.arrived)
            kept[name] = file
            write_manifest(False, kept)
    return write_manifest(True, mine)
