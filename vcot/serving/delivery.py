"""A promoted model on this disk, as servers want it, its files held against digests: of a train stage and its base
against those that the promotion names, of weights that were merged since against the manifest beside them.

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
from vcot.errors import InputError, VcotError
from vcot.evaluation.subjects import Finished, Pointer, promoted_stage
from vcot.records.metadata import TrainMetadata
from vcot.records.shards import DONE, TRAIN
from vcot.storage import Store, join
from vcot.storage.folders import fetch_base, fetch_files, fetch_folder
from vcot.tokens import is_processor_file
from vcot.training.card import published_there, wrong_in_vllm

PROMOTION = "promotion.json"
CONTRACT = "contract.json"
Kind = Literal["adapter", "merged", "model", "contract"]


def deliver(
    store: Store, pointer: Pointer, into: Path, *, weights: bool = True, merged: bool = True, vllm: bool = False
) -> Kind:
    """Lays the model; what is there of this promotion is held against its digests, and not fetched again.

    Args:
        weights: False: only train/model/contract.json, which says how the model writes boxes.
        merged: weights that jobs.publish has merged beside the train stage, and held against base + adapter, are
            preferred: they spare the adapter's cost at each token.
        vllm: refuse what vLLM would not serve, or serve wrongly.

    Raises InputError: a file is not the one that was promoted, or the model is nothing for vLLM. TemporaryError: there
    is no room for it.
    """
    train = promoted_stage(store, pointer.promotion.train_uri, TRAIN, pointer.promotion.train_sha256, pointer)
    trained = train.marker.metadata
    there = join(train.uri.rpartition("/")[0], "publish", "merged")
    kind: Kind = "adapter"
    if not weights:
        kind = "contract"
    elif trained.tune == "full":
        kind = "model"
    elif merged and _is_merged(store, there, train.sha256):
        kind = "merged"
    if vllm and kind != "contract" and (reasons := wrong_in_vllm(kind, train.marker)):
        raise InputError(f"{train.uri}: {' '.join(reasons)} (--server any: fetch it all the same)")
    said = {"pointer": pointer.uri, "sha256": pointer.sha256, "train": train.uri, "kind": kind}
    logging.get().info("fetching the promoted model", pointer=pointer.uri, model=train.uri, kind=kind)
    _begin(into, said)
    if kind == "merged":
        folder = fetch_folder(store, there, into / "served")
        if folder != into / "served":  # it lies on this machine
            _lay(into / "served", folder.iterdir())
    else:
        _fetch_stage(store, train, into / "train", only_contract=kind == "contract")
    if kind == "model":
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
    """Whether merged weights are there that were held against base + adapter."""
    try:
        said = published_there(store, uri, train_sha256, "merged")
        if said is not None and "agreement" not in said:
            raise InputError(f"{uri} was not held against base + adapter (publish --questions 0)")
    except (VcotError, KeyError, ValueError) as error:
        logging.get().warning("merged weights are passed over", why=str(error))
        return False
    return said is not None


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
    folder = fetch_base(store, uri, sha256, into)
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
