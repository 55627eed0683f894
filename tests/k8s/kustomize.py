"""Overlays as the cluster would get them: rendered by kustomize, read back as plain dicts.

rendered("gpu"), rendered("gpu+spot")                      an overlay as it stands, one with a component (see VARIANTS)
render(edited(tmp_path, ["reevaluate", "pool-gke"]))       overlay gpu, with these components in its list
render(around(tmp_path, OVERLAYS / "gpu", ["kueue"]))      an overlay around another, as users write them
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from tools import overlay
from tools.gomodules import CannotBuild, GoModule, built
from vcot.errors import SettingsError

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
OVERLAYS, COMPONENTS = ROOT / "k8s/overlays", ROOT / "k8s/components"
KUBECTL = GoModule(
    "kubectl", ROOT / "tests/tools/kube", {"kubectl": "k8s.io/kubernetes/cmd/kubectl"}, "some minutes", (1, 26, 0)
)
ALL_COMPONENTS = sorted(folder.name for folder in COMPONENTS.iterdir())
POOLS = [name for name in ALL_COMPONENTS if name.startswith("pool-")]


@functools.cache
def kubectl() -> str:
    """What renders a folder: $KUBECTL, of KUBE_ASSETS, what was built for this machine, or what is on PATH."""
    assets = os.environ.get("KUBE_ASSETS")
    kept = [Path(folder) / "kubectl" for folder in (assets, KUBECTL.home) if folder]
    for path in (os.environ.get("KUBECTL"), *kept, shutil.which("kubectl")):
        with contextlib.suppress(SettingsError), patch.dict(os.environ, KUBECTL=str(path or "no path")):
            return overlay.kubectl()
    if not os.environ.get("CI"):
        pytest.skip("manifests are rendered by kubectl (1.28 or newer), and none was found")
    try:
        return str(built(KUBECTL) / "kubectl")
    except CannotBuild as error:
        pytest.fail(f"CI renders the manifests: {error}")


@functools.cache
def render(folder: Path) -> list[Manifest]:
    """Every object of an overlay, in the order of kind and name; shared, so not to be changed."""
    # The loader in C takes an eighth of the time.
    return list(yaml.load_all(text(folder), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@functools.cache
def text(folder: Path) -> str:
    return subprocess.run([kubectl(), "kustomize", str(folder)], stdout=subprocess.PIPE, text=True, check=True).stdout


def edited(folder: Path, components: Sequence[str], base: str = "gpu") -> Path:
    """A copy of an overlay in which somebody wrote these components into the list."""
    shutil.copytree(OVERLAYS / base, folder, dirs_exist_ok=True)
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    kustomization["resources"] = ["namespace.yaml", _path(folder, ROOT / "k8s/base")]
    kustomization["components"] = [_path(folder, COMPONENTS / name) for name in components]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def around(folder: Path, inner: Path, components: Sequence[str] = (), **more: Any) -> Path:
    """An overlay that has another one as its resource."""
    folder.mkdir(parents=True, exist_ok=True)
    inside = [_path(folder, COMPONENTS / name) for name in components]
    kustomization = {"resources": [_path(folder, inner)], "components": inside, **more}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def _path(start: Path, target: Path) -> str:
    """Kustomize takes no absolute paths."""
    return os.path.relpath(target, start.resolve())


def of_kind(objects: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    return [one for one in objects if one["kind"] in kinds]


def named(objects: Sequence[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def job_specs(objects: Sequence[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """(kind/name, spec of a Job) of all that becomes pods."""
    for one in of_kind(objects, "Job", "CronJob"):
        spec = one["spec"]["jobTemplate"]["spec"] if one["kind"] == "CronJob" else one["spec"]
        yield f"{one['kind']}/{one['metadata']['name']}", spec


_PLACE = tempfile.TemporaryDirectory(prefix="variants-")
"""What variants are made in; gone with this process."""


@functools.cache
def rendered(name: str) -> list[Manifest]:
    """The objects of a variant: ``gpu``, ``cpu-smoke+spot``, ``gpu+all-eks``."""
    base, _, component = name.partition("+")
    place = Path(_PLACE.name) / name
    if not component:
        return render(OVERLAYS / base)
    if component.startswith("all-"):
        pool = component.replace("all", "pool")
        inner = [c for c in ALL_COMPONENTS if c not in (*POOLS, "hardening", "reevaluate")]
        inside = edited(place.with_name(f"{name}-inner"), ["reevaluate", pool, *inner])
        return render(around(place, inside, ["hardening"]))
    if component == "reevaluate":
        return render(edited(place, [component], base))
    more = {} if component == "hardening" else {"namespace": "vcot"}  # it has objects of the whole cluster
    return render(around(place, OVERLAYS / base, [component], **more))


SERVING = ("serve", "serve-cpu")
"""Overlays that serve a model; all others run the chain."""
CHAINS = sorted(folder.name for folder in OVERLAYS.iterdir() if folder.name not in SERVING)
VARIANTS = [
    *CHAINS,
    *(f"{o}+{c}" for o in CHAINS for c in ALL_COMPONENTS if o == "cpu-smoke" or c != "reevaluate"),
    *(f"gpu+{pool.replace('pool', 'all')}" for pool in POOLS),
]
"""Each overlay, each with each component, and everything at once on each pool."""


def everything() -> list[tuple[str, list[Manifest]]]:
    """Each variant of the chain and its objects."""
    return [(name, rendered(name)) for name in VARIANTS]


def serving() -> list[tuple[str, list[Manifest]]]:
    """Each variant of what serves a model: as it stands, with keys from a vault, on each pool."""
    return [(name, rendered(name)) for name in [*SERVING, *(f"serve+{c}" for c in ("external-secrets", *POOLS))]]
