"""Checkpoints in object storage: files first, under a name that nobody else uses; a manifest last.

    <train>/checkpoints/step-000050-3f9a01c2/weights.safetensors     what is trained
                                             state.safetensors       optimiser, schedule
                                             trainer_state.json      steps, losses so far
                                             manifest.json           names, sizes, sha256; written last

Files are written to this disk while training waits, and uploaded while it goes on. Random numbers are not kept: every
step draws its own from seed and number.

A checkpoint without a manifest is not there. One whose files are not what its manifest says is passed over with a
warning, for the next older one. Nothing is overwritten, and what is deleted is older than several whole checkpoints:
two attempts of the same job, one of them on a node that was thought lost, cannot harm each other.

Below that the form of a state file: nested Python values with tensors in them as safetensors, which is what a pickle
would keep, and nothing that runs. Tensors are stored as tensors; the tree of dicts, lists, tuples, numbers and strings
around them stands as JSON in the file's metadata. A tensor that occurs several times (bitsandbytes shares its maps) is
stored once and shared again.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed

from vcot import logging
from vcot.errors import InputError, VcotError, unreadable
from vcot.records.base import Record
from vcot.records.shards import File
from vcot.stage import stop
from vcot.storage import NotFound, Store, confirmed, join
from vcot.storage.local import file_digest
from vcot.storage.names import first_fault, local_path, refuse_names

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-(\d+)-\w+")
_MANIFEST_NAME = re.compile(f"{_FOLDER.pattern}/{re.escape(MANIFEST)}")


class _NotAManifest(InputError):
    """A manifest is damaged: an older checkpoint can take its place."""


class Manifest(Record):
    """``manifest.json``: this checkpoint is whole, and these are its files."""

    version: Literal[2] = 2
    step: int = Field(ge=0)
    best_step: int | None = Field(None, description="the step with the lowest evaluation loss so far")
    batches_per_step: int = Field(ge=1, description="over all ranks; what goes on from here keeps it")
    files: tuple[File, ...] = Field(description="names below the checkpoint")


class Saved(NamedTuple):
    """A checkpoint in storage."""

    uri: str
    manifest: Manifest


@dataclass
class Checkpoints:
    """Those of one run. When one is whole, those that are older than the newest `keep` go, here and in storage, but for
    the best. scratch: a local folder for those under way and for those that are kept; the ranks of a pod share it.
    whole: called with the step when a checkpoint is whole, from the thread that uploads it, in rank 0.
    group: of all ranks, by gloo and for this alone, where each of them writes its part; None: rank 0 writes all.
    first_of_pod: whether this rank uploads what those of its pod wrote.
    """

    store: Store
    uri: str
    scratch: Path
    keep: int = 3
    whole: Callable[[int], None] = lambda _: None
    group: distributed.ProcessGroup | None = None
    first_of_pod: bool = True
    last_save_seconds: float = 0.0
    _local: dict[int, Path] = field(default_factory=dict)
    _upload: threading.Thread | None = None
    _failure: BaseException | None = None

    def save(self, step: int, best_step: int | None, batches_per_step: int, write: Callable[[Path], None]) -> None:
        """Lets `write` fill a local folder and returns; the folder is uploaded meanwhile, and then said to be whole.

        Waits for the upload before it, so there is at most one. Raises what that one failed with.
        """
        self.wait()
        begun = time.monotonic()
        names = [f"step-{step:06d}-{secrets.token_hex(4)}"]
        if self.group is not None:
            distributed.broadcast_object_list(names, src=0, group=self.group)
        (name,) = names
        folder = self.scratch / name
        folder.mkdir(parents=True, exist_ok=self.group is not None)
        write(folder)
        self._local[step] = folder
        for old in sorted(self._local)[: -self.keep or None]:
            if old != best_step:
                shutil.rmtree(self._local.pop(old), ignore_errors=self.group is not None)
        if self.group is not None:
            distributed.barrier(self.group)

        def upload() -> None:
            try:
                files = self._uploaded(folder)
                if self.group is not None and distributed.get_rank() > 0:
                    return
                manifest = Manifest(
                    step=step, best_step=best_step, batches_per_step=batches_per_step, files=tuple(files)
                )
                self.store.write_once(join(self.uri, name, MANIFEST), manifest.line())
                self.last_save_seconds = time.monotonic() - begun
                self.whole(step)
                if not stop.requested:  # what is left of the grace period is not for tidying
                    self._delete_old(step)
            except BaseException as error:
                self._failure = error

        self._upload = threading.Thread(target=upload, name=f"upload of {name}")
        self._upload.start()

    def _uploaded(self, folder: Path) -> list[File]:
        """Uploads what this pod's ranks wrote, once, and says what those of all pods did (to rank 0)."""
        files: list[File] = []
        if self.group is None or self.first_of_pod:
            for path in sorted(folder.iterdir()):
                self.store.upload(path, join(self.uri, folder.name, path.name))
                files.append(File(name=path.name, sha256=file_digest(path), size=path.stat().st_size))
        if self.group is None:
            return files
        found: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(found, files, group=self.group)
        return sorted((file for some in found for file in some), key=lambda file: file.name)

    def wait(self, *, and_raise: bool = True) -> None:
        """Until nothing is being uploaded. Raises what the last upload failed with, or only logs it."""
        if self._upload is not None:
            self._upload.join()
            self._upload = None
        if and_raise:
            self.raise_failure()
        elif self._failure is not None:
            logging.get().warning("the last checkpoint was not uploaded", because=str(self._failure))

    def raise_failure(self) -> None:
        """Raises what the last upload failed with, if it has."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def newest(self) -> tuple[Path, Manifest] | None:
        """The last whole checkpoint, on this disk; None where there is none to go on from.

        One whose best predecessor is gone is no use either: at the end its weights would be missing.
        """
        for saved in self._stored():
            if (folder := self._fetch(saved)) is None:
                continue
            best = saved.manifest.best_step
            if best is None or self.at(best) is not None:
                return folder, saved.manifest
            logging.get().warning(
                "its best predecessor is not whole; taking an older checkpoint", uri=saved.uri, best=best
            )
        return None

    def called(self, name: str) -> tuple[Path, Manifest]:
        """The one of that name, which another rank has found whole. Raises InputError: it is not any more."""
        uri = join(self.uri, name)
        saved = Saved(uri, self._manifest(join(uri, MANIFEST)))
        if (folder := self._fetch(saved)) is None:
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
        """Yield checkpoints with a readable manifest, the newest first.

        Raises:
            InputError: A manifest contains a file name that leaves its checkpoint.
        """
        names = (entry.uri.removeprefix(self.uri.rstrip("/") + "/") for entry in self.store.list(self.uri))
        for name in sorted(filter(_MANIFEST_NAME.fullmatch, names), reverse=True):
            uri = join(self.uri, name)
            with suppress(NotFound):
                try:
                    yield Saved(uri.removesuffix(f"/{MANIFEST}"), self._manifest(uri))
                except _NotAManifest as error:
                    logging.get().warning("not a manifest; passed over", uri=uri, because=str(error))

    def _manifest(self, uri: str) -> Manifest:
        """Read a manifest.

        Raises:
            _NotAManifest: It has another shape.
            InputError: It contains a file name that leaves its checkpoint.
        """

        def attempt() -> Manifest:
            try:
                return Manifest.model_validate_json(self.store.read(uri))
            except ValidationError as error:
                refuse_names(error, uri)
                raise _NotAManifest(f"{uri} is not a manifest: {first_fault(error)}") from None

        return confirmed(uri, attempt)

    def _fetch(self, saved: Saved) -> Path | None:
        """The checkpoint on this disk, each file held against its digest; None where one does not hold."""
        if (step := saved.manifest.step) in self._local:
            return self._local[step]
        folder = self.scratch / saved.uri.rpartition("/")[2]
        folder.mkdir(parents=True, exist_ok=True)
        for file in saved.manifest.files:
            local = local_path(folder, file.name, join(saved.uri, MANIFEST))
            if local.exists() and file_digest(local) == file.sha256:
                continue  # another rank of this pod has fetched it
            try:
                confirmed(saved.uri, partial(self._fetch_file, saved, file, local))
            except InputError as error:
                logging.get().warning(
                    "a damaged checkpoint is passed over", uri=saved.uri, file=file.name, because=str(error)
                )
                shutil.rmtree(folder)
                return None
        self._local[step] = folder
        return folder

    def _fetch_file(self, saved: Saved, file: File, local: Path) -> None:
        try:
            self.store.download(join(saved.uri, file.name), local)
        except NotFound:
            raise NotFound("it is missing") from None
        if (size := local.stat().st_size) != file.size:
            raise InputError(f"{size} bytes, not {file.size}")
        if file_digest(local) != file.sha256:
            raise InputError("its digest is not the manifest's")

    def _delete_old(self, saved_step: int) -> None:
        """In storage, where keys may not allow it, below the step that was just saved; with what killed uploads left.

        The checkpoint is whole already, so no trouble here is a reason to stop.
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
                ours = _FOLDER.match(entry.uri.removeprefix(self.uri.rstrip("/") + "/"))
                if ours and int(ours[1]) < oldest and int(ours[1]) not in kept.values():
                    self.store.delete(entry.uri)
        except VcotError as error:
            logging.get().warning("old checkpoints stay in storage", uri=self.uri, because=str(error))


# --- state files -------------------------------------------------------------------------------------------

_TREE = "tree"


def write_state(value: Any, path: Path) -> None:
    """Writes a value made of dicts, lists, tuples, strings, numbers, booleans, None and tensors.

    Raises TypeError: something else is in it. TemporaryError: no room is left on the disk.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_flatten(value, tensors, {}))
    save_tensors(tensors, path, {_TREE: tree})


def read_state(path: Path) -> Any:
    """The value that `write_state` wrote: types, numbers and shared tensors are those of the original.

    Raises:
        InputError: the file is truncated or was not written by `write_state`.
    """
    tensors, metadata = load_tensors(path)
    if _TREE not in metadata:
        raise InputError(f"{path.name}: not a state of ours; its metadata has no {_TREE}")
    return _rebuild(json.loads(metadata[_TREE]), tensors)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Save tensors of any device with safetensors."""
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as stored:
            names = list(stored.keys())
            return {name: stored.get_tensor(name) for name in names}, stored.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise unreadable(f"{path.name}: incomplete safetensors file", error) from None


def _flatten(value: Any, tensors: dict[str, Tensor], seen: dict[int, str]) -> Any:
    """The tree without tensors. Numbers, strings, None stand for themselves; all else is {kind: content}."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        if id(value) not in seen:
            seen[id(value)] = name = str(len(tensors))
            tensors[name] = value.clone()
        return {"tensor": seen[id(value)]}
    if isinstance(value, Mapping):
        return {"dict": [[_flatten(k, tensors, seen), _flatten(v, tensors, seen)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_flatten(v, tensors, seen) for v in value]}
    raise TypeError(f"a {type(value).__name__} cannot be stored; only plain values and tensors can")


def _rebuild(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {_rebuild(k, tensors): _rebuild(v, tensors) for k, v in content}
        case "list" | "tuple":
            return (list if kind == "list" else tuple)(_rebuild(v, tensors) for v in content)
    raise InputError(f"a state of ours holds a {kind!r}, which this version does not know")
