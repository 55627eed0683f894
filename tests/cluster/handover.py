"""An image from buildah's storage to a node's containerd without a copy: both keep files unpacked, so they are linked.

Through a pipe, 6 GB are packed, hashed on both sides, written, read and unpacked: two to three minutes of both cores.
Containerd itself may forget packed layers (`discard_unpacked_layers`), so it starts containers without them.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Run = Callable[[list[str]], str]
"""A command line → what it printed; raises where it failed."""


def hand_over(image: str, manifest: str, config: str, storage: Path, ctr: Sequence[str], run: Run) -> None:
    """The image is in containerd afterwards, under its name, ready for containers.

    Args:
        manifest, config: the image's own, as `buildah inspect` prints them.
        storage: buildah's, with driver overlay, on the file system that containerd's snapshots are on.
        ctr: begins a command line on that containerd.
    """
    known = json.loads(manifest)
    parent = ""
    for layer, folder in zip(known["layers"], _folders(storage, known["config"]["digest"]), strict=True):
        digest = layer["digest"]
        chain = _digest(f"{parent} {digest}".encode()) if parent else digest
        if not _there(chain, ctr):
            _snapshot(chain, parent, folder, ctr, run)
        parent = chain
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        archive.write(_archive(image, manifest.encode(), config.encode()))
        archive.flush()
        run([*ctr, "images", "import", "--no-unpack", archive.name])


def same_file_system(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _folders(storage: Path, config_digest: str) -> list[Path]:
    """Where the files of each layer lie, the lowest first."""
    layers = {layer["id"]: layer for layer in json.loads((storage / "overlay-layers/layers.json").read_text())}
    images = json.loads((storage / "overlay-images/images.json").read_text())
    at = next(image["layer"] for image in images if f"sha256:{image['id']}" == config_digest)
    found = []
    while at:
        found.append(storage / "overlay" / at / "diff")
        at = layers[at].get("parent")
    return found[::-1]


def _there(chain: str, ctr: Sequence[str]) -> bool:
    return subprocess.run([*ctr, "snapshots", "info", chain], capture_output=True, check=False).returncode == 0


def _snapshot(chain: str, parent: str, folder: Path, ctr: Sequence[str], run: Run) -> None:
    """A committed snapshot with hard links to these files."""
    key = f"handover-{chain}"
    mounts = json.loads(run([*ctr, "snapshots", "prepare", "--mounts", key, *filter(None, [parent])]))
    run(["cp", "--archive", "--link", f"{folder}/.", _written(mounts[0])])
    run([*ctr, "snapshots", "commit", chain, key])


def _written(mount: dict[str, Any]) -> str:
    """The folder of a snapshot's own files: a lowest layer is one folder, the others have theirs on top."""
    options = dict(option.partition("=")[::2] for option in mount["Options"])
    return str(options.get("upperdir") or mount["Source"])


def _archive(image: str, manifest: bytes, config: bytes) -> bytes:
    """An OCI archive of all but the layers."""
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": _digest(manifest),
                "size": len(manifest),
                "annotations": {"io.containerd.image.name": image},
            }
        ],
    }
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        f"blobs/sha256/{_digest(manifest)[7:]}": manifest,
        f"blobs/sha256/{_digest(config)[7:]}": config,
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
