"""Checkpoints in object storage: files first, under a name that nobody else uses; a manifest last.

    <train>/checkpoints/step-000050-3f9a01c2/weights.safetensors     what is trained
                                             state.safetensors       optimiser, schedule, random numbers
                                             trainer_state.json      steps, losses so far
                                             manifest.json           names, sizes, sha256; written last

A checkpoint without a manifest is not there. One whose files are not what its manifest says is passed over with a
warning, for the next older one. Nothing is overwritten, and what is deleted is older than several whole checkpoints:
two attempts of the same job, one of them on a node that was thought lost, cannot harm each other.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from vcot import logging
from vcot.errors import InputError, VcotError
from vcot.records.base import Record
from vcot.records.shards import File
from vcot.stage import stop
from vcot.storage import NotFound, Store, join

MANIFEST = "manifest.json"


class Manifest(Record):
    """``manifest.json``: this checkpoint is whole, and these are its files."""

    version: Literal[1] = 1
    step: int = Field(ge=0)
    best_step: int | None = Field(None, description="the step with the lowest evaluation loss so far")
    ranks: int = Field(1, ge=1, description="processes whose examples made a step together")
    files: tuple[File, ...] = Field(description="names below the checkpoint")


@dataclass(frozen=True)
class Saved:
    """A checkpoint in storage."""

    uri: str
    manifest: Manifest


@dataclass
class Checkpoints:
    """Those of one run. When one is whole, those that are older than the newest `keep` go, here and in storage, but for
    the best.

    Args:
        uri: the folder of all of them.
        scratch: a local folder for those under way and for those that are kept; the ranks of a pod share it.
        ranks: of this training.
    """

    store: Store
    uri: str
    scratch: Path
    keep: int = 3
    ranks: int = 1
    last_save_seconds: float = 0.0
    _local: dict[int, Path] = field(default_factory=dict)

    def save(self, step: int, best_step: int | None, write: Callable[[Path], None]) -> None:
        """Lets `write` fill a local folder, uploads it, and then says that it is whole."""
        begun = time.monotonic()
        name = f"step-{step:06d}-{secrets.token_hex(4)}"
        folder = self.scratch / name
        folder.mkdir(parents=True)
        write(folder)
        files = []
        for path in sorted(folder.iterdir()):
            self.store.upload(path, join(self.uri, name, path.name))
            files.append(File(name=path.name, sha256=_digest(path), size=path.stat().st_size))
        manifest = Manifest(step=step, best_step=best_step, ranks=self.ranks, files=tuple(files))
        self.store.write_once(join(self.uri, name, MANIFEST), manifest.line())
        self._local[step] = folder
        self._forget(best_step)
        self.last_save_seconds = time.monotonic() - begun
        if not stop.requested:  # what is left of the grace period is not for tidying
            self._thin(step)

    def newest(self) -> tuple[Path, Manifest] | None:
        """The last whole checkpoint, on this disk; None where there is none to go on from.

        One whose best predecessor is gone is no use either: at the end its weights would be missing.
        """
        for saved in self._stored():
            folder = self._fetch(saved)
            if folder is None:
                continue
            best = saved.manifest.best_step
            if best is None or self.at(best) is not None:
                return folder, saved.manifest
            logging.get().warning(
                "its best predecessor is not whole; taking an older checkpoint", uri=saved.uri, best=best
            )
        return None

    def called(self, name: str) -> tuple[Path, Manifest]:
        """The one of that name, which another rank has found whole.

        Raises:
            InputError: it is gone, or no longer whole.
        """
        uri = join(self.uri, name)
        saved = Saved(uri, Manifest.model_validate_json(self.store.read(join(uri, MANIFEST))))
        folder = self._fetch(saved)
        if folder is None:
            raise InputError(f"{uri} was whole a moment ago and is not any more")
        return folder, saved.manifest

    def at(self, step: int) -> Path | None:
        """A whole checkpoint of this step, on this disk."""
        if step in self._local:
            return self._local[step]
        for saved in self._stored():
            if saved.manifest.step == step and (folder := self._fetch(saved)) is not None:
                return folder
        return None

    def _stored(self) -> Iterator[Saved]:
        """Those with a manifest that can be read, the newest first."""
        uris = sorted((e.uri for e in self.store.list(self.uri) if e.uri.endswith(f"/{MANIFEST}")), reverse=True)
        for uri in uris:
            with suppress(NotFound):
                try:
                    yield Saved(uri.removesuffix(f"/{MANIFEST}"), Manifest.model_validate_json(self.store.read(uri)))
                except ValidationError as error:
                    logging.get().warning("not a manifest; passed over", uri=uri, because=error.errors()[0]["msg"])

    def _fetch(self, saved: Saved) -> Path | None:
        """The checkpoint on this disk, each file held against its digest; None where one does not hold."""
        step = saved.manifest.step
        if step in self._local:
            return self._local[step]
        folder = self.scratch / saved.uri.rpartition("/")[2]
        folder.mkdir(parents=True, exist_ok=True)
        for file in saved.manifest.files:
            if fault := self._fetch_file(saved.uri, file, folder):
                logging.get().warning(
                    "a damaged checkpoint is passed over", uri=saved.uri, file=file.name, because=fault
                )
                shutil.rmtree(folder)
                return None
        self._local[step] = folder
        return folder

    def _fetch_file(self, uri: str, file: File, folder: Path) -> str | None:
        if (folder / file.name).exists() and _digest(folder / file.name) == file.sha256:
            return None  # another rank of this pod has fetched it
        try:
            self.store.download(join(uri, file.name), folder / file.name)
        except NotFound:
            return "it is missing"
        size = (folder / file.name).stat().st_size
        if size != file.size:
            return f"{size} bytes, not {file.size}"
        return None if _digest(folder / file.name) == file.sha256 else "its digest is not the manifest's"

    def _forget(self, best_step: int | None) -> None:
        """Local copies beyond the last `keep` and the best go."""
        for step in sorted(self._local)[: -self.keep or None]:
            if step != best_step:
                shutil.rmtree(self._local.pop(step))

    def _thin(self, saved_step: int) -> None:
        """The same in storage, where keys may not allow it, below the step that was just saved. What is left of uploads
        that were killed goes as well. The checkpoint is whole already, so no trouble here is a reason to stop.
        """
        try:
            kept: dict[int, int | None] = {}  # the last `keep` steps, each with its best one
            for saved in self._stored():
                kept.setdefault(saved.manifest.step, saved.manifest.best_step)
                if len(kept) == self.keep:
                    break
            else:
                return
            oldest = min(saved_step, *kept)
            entries = sorted(self.store.list(self.uri), key=lambda entry: not entry.uri.endswith(f"/{MANIFEST}"))
            for entry in entries:  # manifests first: half a checkpoint is none
                ours = re.match(r"/step-(\d+)-", entry.uri.removeprefix(self.uri.rstrip("/")))
                if ours and int(ours[1]) < oldest and int(ours[1]) not in kept.values():
                    self.store.delete(entry.uri)
        except VcotError as error:
            logging.get().warning("old checkpoints stay in storage", uri=self.uri, because=str(error))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
