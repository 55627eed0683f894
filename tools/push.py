"""Folders of a person's computer into the bucket: a downloaded base model, or an example with its base.

    python -m tools.push --base ~/models/Qwen2.5-VL-7B-Instruct --to s3://vcot/models/Qwen2.5-VL-7B-Instruct
    python -m tools.push --example examples/blood-cells --base examples/rehearsal --service minio

It is no job: it runs where the folders lie, and belongs to no run. A base that is pushed can be trained from: weights
in safetensors, whole, with everything that tokenize, train and evaluate will look for. Nothing in a cluster loads from
a hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from tools.storage import StorageSettings
from vcot import logging
from vcot.errors import InputError, SettingsError
from vcot.settings import setting
from vcot.stage import launch, summary
from vcot.storage import Store, join
from vcot.storage.folders import push_folder

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5")
CODE = (".py", ".pyc", ".so")

ONE_OF = {
    "there is no config": ("config.json",),
    "there are no weights": ("model.safetensors", "model.safetensors.index.json"),
    "there is no tokenizer": ("tokenizer.json", "vocab.json"),
    "the tokenizer has no settings": ("tokenizer_config.json",),
    "there is no processor": ("preprocessor_config.json", "processor_config.json"),
}
"""What is wrong where none of these files is there."""


class PushSettings(StorageSettings):
    """Puts a downloaded base model into storage, or an example and the base that is tuned on it.

    A base: the files' digests are written down beside them, last, and every reader holds what it fetches against them.
    Cut off, the same command goes on with the files that are not up yet. An example: each folder lies below --to under
    its own name, as `make local-train` puts it there and overlay cpu-smoke looks for it.

    Storage is named by AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID and the other standard variables, or by --service.
    """

    stage: ClassVar[str] = "push"

    base: Path = setting(description="folder of the downloaded model")
    example: Path | None = setting(None, "folder with example data; the base is then put beside it, unchecked")
    to: str | None = setting(
        None,
        "where the base shall lie; default: s3://vcot/models/<name of the folder>. With --example: what both shall lie "
        "below; default: s3://vcot/examples",
        min_length=1,
    )

    @property
    def run_name(self) -> str:
        return (self.example or self.base).resolve().name

    @property
    def target(self) -> str:
        return self.to or ("s3://vcot/examples" if self.example else f"s3://vcot/models/{self.run_name}")


def run(settings: PushSettings) -> None:
    from vcot.pipeline.local import publish

    folders = {"base": settings.base.expanduser()}
    if settings.example is not None:
        folders["example"] = settings.example.expanduser()
    for flag, folder in folders.items():
        if not folder.is_dir():
            raise SettingsError(f"--{flag}={folder}: there is no such folder")
    with settings.storage():
        if settings.example is None:
            push_base(folders["base"], settings.target)
            return
        for folder in folders.values():
            uri = join(settings.target, folder.resolve().name)
            publish(Store(), folder, uri)
            logging.get().info("pushed", uri=uri)


def push_base(folder: Path, uri: str) -> None:
    manifest = push_folder(Store(), folder, uri, wanted(folder))
    size = sum(file.size for file in manifest.files.values())
    summary(files=len(manifest.files), bytes=size, uri=uri)
    logging.get().info("pushed", uri=uri, files=len(manifest.files), mib=size >> 20)


def wanted(folder: Path) -> list[str]:
    """Names of the files to push: everything but hidden files (a downloader's notes, git) and code.

    Raises:
        InputError: something is missing, cut off, or a pickle; all such faults, a line each.
    """
    names = sorted(
        name.as_posix()
        for name in (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
        if not name.name.startswith("_") and not any(part.startswith(".") for part in name.parts)
    )
    faults = [f"{name}: a link to nothing; download it again" for name in names if not (folder / name).is_file()]
    names = [name for name in names if (folder / name).is_file()]
    faults += [
        f"{name}: weights in a pickle, which may run anything when it is loaded; only safetensors are taken. Delete it "
        "where the same weights lie beside it in safetensors, or download the model in that form"
        for name in names
        if name.endswith(PICKLES)
    ]
    faults += [
        f"{wrong}: {' or '.join(files)} is missing" for wrong, files in ONE_OF.items() if not set(files) & set(names)
    ]
    faults += _incomplete(folder, names)
    if faults:
        raise InputError("\n".join(f"{folder}: {fault}" for fault in faults))
    if left_out := [name for name in names if name.endswith(CODE)]:
        logging.get().warning("code is left out; nothing here runs it", files=", ".join(left_out))
    return [name for name in names if name not in left_out]


def _incomplete(folder: Path, names: list[str]) -> list[str]:
    """Weights that an index names and that are not there, and files that end before their header says."""
    faults = []
    for name in (name for name in names if name.endswith(".safetensors.index.json")):
        try:
            index = json.loads((folder / name).read_text())
            parts = sorted({str(part) for part in index["weight_map"].values()})
        except (ValueError, KeyError, AttributeError) as error:
            faults.append(f"{name} is not an index of weights ({error!r}); download it again")
            continue
        if missing := [part for part in parts if part not in names]:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            faults.append(f"{', '.join(missing[:3])}{more} of {len(parts)} files of weights are missing; see {name}")
    for name in (name for name in names if name.endswith(".safetensors")):
        if fault := _cut_off(folder / name):
            faults.append(f"{name}: {fault}; download it again")
    return faults


def _cut_off(path: Path) -> str:
    """A safetensors file: 8 bytes, little-endian, the length of a JSON header; the header; the tensors' bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, 100_000_000):
            return f"not safetensors, or cut off ({size:,} bytes)"
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            return "its header is damaged"
    expected = 8 + length + int(end)
    return "" if size == expected else f"{size:,} bytes, not the {expected:,} that its header promises"


if __name__ == "__main__":
    launch(PushSettings, run)
