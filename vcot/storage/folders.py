"""Whole folders of files (a base model, an adapter) in storage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from vcot.errors import InputError
from vcot.storage.store import Entry, Store, join


def _everything(_name: str) -> bool:
    return True


def _files(store: Store, uri: str, only: Callable[[str], bool]) -> dict[str, Entry]:
    base = uri.rstrip("/") + "/"
    found = {entry.uri.removeprefix(base): entry for entry in store.list(base)}
    files = {name: entry for name, entry in found.items() if only(name)}
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
        InputError: the folder is empty or not there.
    """
    if "://" not in uri or uri.startswith("file://"):
        local = Path(uri.removeprefix("file://"))
        if not local.is_dir():
            raise InputError(f"{uri}: there is no such folder")
        return local
    for name, entry in _files(store, uri, only).items():
        target = into / name
        if not (target.exists() and target.stat().st_size == entry.size):
            target.parent.mkdir(parents=True, exist_ok=True)
            store.download(entry.uri, target)
    return into


def put_folder(store: Store, folder: Path, uri: str) -> dict[str, str]:
    """Uploads every file of a local folder; returns name → sha256."""
    digests = {}
    for root, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = Path(root) / name
            below = path.relative_to(folder).as_posix()
            with path.open("rb") as file:
                digests[below] = hashlib.file_digest(file, "sha256").hexdigest()
            store.upload(path, join(uri, below))
    return digests


def folder_digest(store: Store, uri: str, only: Callable[[str], bool] = _everything) -> str:
    """One sha256 over the names and contents of the folder's files."""
    whole = hashlib.sha256()
    for name, entry in sorted(_files(store, uri, only).items()):
        whole.update(f"{name}\0{store.digest(entry.uri)}\n".encode())
    return whole.hexdigest()
