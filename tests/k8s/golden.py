"""The golden render: what the manifests make, kept for reading and for seeing what a change does.

    python -m tests.k8s.golden     writes it again (make golden)

golden/gpu.yaml is overlay gpu as it stands. golden/<name>.diff is what an overlay or a component changes in it.
golden/serve.yaml is overlay serve, golden/serve-cpu.diff what serve-cpu has otherwise.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from tests.k8s.kustomize import ALL_COMPONENTS, Manifest, rendered

FOLDER = Path(__file__).parent / "golden"


def page(objects: Sequence[Manifest]) -> str:
    """Objects in the order of kind and name; without the hashes in names, which say nothing to a reader."""
    ordered = sorted(objects, key=lambda one: (one["kind"], one["metadata"]["name"]))
    whole = yaml.safe_dump_all(ordered, sort_keys=True, width=118)
    return re.sub(r"\b(run|settings-[a-z]+)-[a-z0-9]{10}\b", r"\1-<hash>", whole)


def difference(before: str, after: str, of: str = "gpu") -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), of, "changed", n=4, lineterm="")
    # Where a change stands moves with every line above it: a golden file should change only where something changed.
    return "".join(f"{'@@' if line.startswith('@@') else line}\n" for line in lines)


COMPARED = [c for c in ALL_COMPONENTS if c not in ("reevaluate", "kueue", "pool-label")]
FILES: Mapping[str, Callable[[], str]] = {
    "gpu.yaml": lambda: page(rendered("gpu")),
    **{
        f"{file}.diff": lambda name=name: difference(page(rendered("gpu")), page(rendered(name)))
        for file, name in {"gpu-kueue": "gpu-kueue", **{c: f"gpu+{c}" for c in COMPARED}}.items()
    },
    "serve.yaml": lambda: page(rendered("serve")),
    "serve-cpu.diff": lambda: difference(page(rendered("serve")), page(rendered("serve-cpu")), "serve"),
}


def main() -> None:
    for file, write in FILES.items():
        (FOLDER / file).write_text(write())
    for stale in {path.name for path in FOLDER.iterdir()} - FILES.keys():
        (FOLDER / stale).unlink()


if __name__ == "__main__":
    main()
