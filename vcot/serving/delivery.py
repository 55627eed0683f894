"""A promoted model on this disk, as servers want it, every file held against the digests that the promotion names.

    <into>/promotion.json    which promotion, and whether all of it is here
           train/            the train stage: its marker, and the files of the model that the marker names
           base/             the base that it was trained from; not there where whole weights are served
           served/           what a server loads: the base, or whole weights (merged, or tuned as a whole), with the
                             processor that was trained with and its limits of pixels

vLLM serves served/, with the adapter train/model where there is a base/; jobs.serve serves train/ on base/.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from vcot import logging
from vcot.errors import InputError, SettingsError
from vcot.evaluation.subjects import Finished, Pointer, unchanged
from vcot.records.metadata import TrainMetadata
from vcot.records.shards import DONE, TRAIN
from vcot.storage import Store, join
from vcot.storage.folders import fetch_files, fetch_folder, fetch_with_digest
from vcot.tokens import is_processor_file
from vcot.training.card import published_there

PROMOTION = "promotion.json"
CONTRACT = "contract.json"
Kind = Literal["adapter", "merged", "full", "contract"]


def deliver(store: Store, pointer: Pointer, into: Path, *, weights: bool = True) -> Kind:
    """Lays the model; what is there of this promotion is held against its digests, and not fetched again.

    Merged weights that jobs.publish has laid beside the train stage are preferred: they spare the adapter's cost at
    each token.

    Args:
        weights: False: only train/model/contract.json, which says how the model writes boxes.

    Raises InputError: a file is not the one that was promoted. TemporaryError: there is no room for it.
    """
    train = unchanged(store, pointer.promotion.train_uri, TRAIN, pointer.promotion.train_sha256, pointer)
    trained = train.marker.metadata
    merged = join(train.uri.rpartition("/")[0], "publish", "merged")
    kind: Kind = "adapter"
    if not weights:
        kind = "contract"
    elif trained.tune == "full":
        kind = "full"
    elif _is_merged(store, merged, train.sha256):
        kind = "merged"
    said = {"pointer": pointer.uri, "sha256": pointer.sha256, "train": train.uri, "kind": kind}
    logging.get().info("fetching the promoted model", pointer=pointer.uri, model=train.uri, kind=kind)
    _begin(into, said)
    if kind == "merged":
        fetch_folder(store, merged, into / "served")
    else:
        _fetch_stage(store, train, into / "train", only_contract=kind == "contract")
    if kind == "full":
        _lay(into / "served", (into / "train" / trained.model).iterdir())
    elif kind == "adapter":
        _fetch_base(store, pointer.promotion.base_uri, trained.base_sha256, into / "base")
        model = into / "train" / trained.model
        # The base's own processor has other limits of pixels, so nothing of it is beside that of the training.
        processor = [file for file in model.iterdir() if is_processor_file(file.name)]
        own = [f for f in (into / "base").iterdir() if f.name == "config.json" or not is_processor_file(f.name)]
        _lay(into / "served", [*own, *processor])
    _write(into / PROMOTION, said | {"whole": True})
    return kind


def _is_merged(store: Store, uri: str, train_sha256: str) -> bool:
    try:
        return published_there(store, uri, train_sha256) is not None
    except SettingsError as error:
        logging.get().warning("merged weights are passed over", why=str(error))
        return False


def _begin(into: Path, said: dict[str, Any]) -> None:
    """Removes what is there of another promotion."""
    place = into / PROMOTION
    try:
        there = json.loads(place.read_text())
        there.pop("whole", None)
    except (OSError, ValueError):
        there = None
    if there != said:
        for name in ("served", "train", "base"):
            shutil.rmtree(into / name, ignore_errors=True)
    into.mkdir(parents=True, exist_ok=True)
    _write(place, said | {"whole": False})


def _fetch_stage(store: Store, train: Finished[TrainMetadata], into: Path, *, only_contract: bool) -> None:
    trained = train.marker.metadata
    fetch_files(store, train.uri, {DONE: train.sha256}, into)
    files = {name: sha for name, sha in trained.files.items() if not only_contract or name == CONTRACT}
    fetch_files(store, join(train.uri, trained.model), files, into / trained.model)


def _fetch_base(store: Store, uri: str, sha256: str, into: Path) -> None:
    folder, found = fetch_with_digest(store, uri, into)
    if found != sha256:
        if folder == into:
            shutil.rmtree(into)  # damaged on its way, perhaps: the next try begins anew
        raise InputError(
            f"{uri} is not the base that was trained on: its digest is {found[:12]}…, it was {sha256[:12]}…"
        )
    if folder != into:  # it lies on this machine
        _lay(into, folder.iterdir())


def _lay(into: Path, files: Iterable[Path]) -> None:
    """Links the files; gigabytes need not be there twice."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for file in files:
        if not file.is_file():
            continue
        try:
            os.link(file.resolve(), into / file.name)
        except OSError:
            shutil.copyfile(file, into / file.name)


def _write(path: Path, said: dict[str, Any]) -> None:
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(json.dumps(said, indent=1) + "\n")
    unfinished.replace(path)
