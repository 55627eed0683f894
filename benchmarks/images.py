"""How large the two images are, and how much of them a change of the code sends again.

    python -m benchmarks.images

Builds them as `make images` does, with buildah, on this computer (root); then once more from a copy of the checkout in
which one line of vcot differs, and with another commit. Layers that the second pair does not share with the first are
what a registry has not got yet. Sizes are those of the layers' tar files, unpacked; a registry is sent them compressed.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.cluster.configuration import ROOT
from tests.cluster.images import Builder

MB = 10**6


def main() -> None:
    builder = Builder()
    before = builder.build("data", "gpu")
    with tempfile.TemporaryDirectory(prefix="images-") as folder:
        changed = Path(folder)
        for name in ("Dockerfile", ".dockerignore", "Makefile"):
            shutil.copy(ROOT / name, changed)
        for name in ("vcot", "jobs", "requirements"):
            shutil.copytree(ROOT / name, changed / name, ignore=shutil.ignore_patterns("__pycache__"))
        with (changed / "vcot" / "errors.py").open("a") as module:
            module.write("# another line\n")
        after = builder.build("data", "gpu", checkout=changed, tag="changed")
    for target in before:
        layers, later = builder.layers(before[target]), builder.layers(after[target])
        again = sum(size for digest, size in later.items() if digest not in layers)
        whole = sum(layers.values()) / MB
        print(f"{target}: {whole:,.0f} MB unpacked; a change of the code sends {again / MB:.1f} MB again")
        builder.do("rmi", after[target])


if __name__ == "__main__":
    main()
