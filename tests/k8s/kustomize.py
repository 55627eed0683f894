"""Overlays as the cluster would get them: rendered by kustomize, read back as plain dicts.

render(OVERLAYS / "gpu")                                   an overlay as it stands
render(edited(tmp_path, ["reevaluate", "pool-gke"]))       overlay gpu, with these components in its list
render(around(tmp_path, OVERLAYS / "gpu", ["kueue"]))      an overlay around another, as users write them
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.gomodules import CannotBuild, GoModule, built

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
OVERLAYS, COMPONENTS = ROOT / "k8s/overlays", ROOT / "k8s/components"
KUBECTL = GoModule(
    "kubectl", ROOT / "tests/tools/kube", {"kubectl": "k8s.io/kubernetes/cmd/kubectl"}, "some minutes", (1, 26, 0)
)
ALL_COMPONENTS = sorted(folder.name for folder in COMPONENTS.iterdir())
POOLS = [name for name in ALL_COMPONENTS if name.startswith("pool-")]


@functools.cache
def kustomize() -> tuple[str, ...]:
    """The command that renders a folder: $KUBECTL, KUBE_ASSETS, what was built for this machine, or what is on PATH."""
    assets = os.environ.get("KUBE_ASSETS")
    built_ones = [str(Path(folder) / "kubectl") for folder in (assets, KUBECTL.home) if folder]
    for kubectl in (os.environ.get("KUBECTL"), *built_ones, shutil.which("kubectl")):
        if kubectl and Path(kubectl).exists() and _is_recent([kubectl, "version", "--client"]):
            return (kubectl, "kustomize")
    alone = shutil.which("kustomize")
    if alone and _is_recent([alone, "version"]):
        return (alone, "build")
    if not os.environ.get("CI"):
        pytest.skip("manifests are rendered by kubectl (1.28 or newer) or kustomize (5 or newer); neither was found")
    try:
        return (str(built(KUBECTL) / "kubectl"), "kustomize")
    except CannotBuild as error:
        pytest.fail(f"CI renders the manifests: {error}")


def _is_recent(command: Sequence[str]) -> bool:
    """Components, and replacements that reach into a name, need kustomize 5."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"(?:Kustomize Version: |^)v(\d+)\.", answer, re.MULTILINE)
    return found is not None and int(found[1]) >= 5


@functools.cache
def render(folder: Path) -> list[Manifest]:
    """Every object of an overlay, in the order of kind and name; shared, so not to be changed."""
    # The loader in C takes an eighth of the time.
    return list(yaml.load_all(text(folder), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@functools.cache
def text(folder: Path) -> str:
    answer = subprocess.run([*kustomize(), str(folder)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


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
    kustomization = {
        "resources": [_path(folder, inner)],
        "components": [_path(folder, COMPONENTS / name) for name in components],
        **more,
    }
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


@functools.cache
def variant(folder: Path, name: str) -> Path:
    """The folder of a variant: ``gpu``, ``cpu-smoke+spot``, ``gpu+all-eks``; made below `folder` where it must be."""
    overlay, _, component = name.partition("+")
    place = folder / name
    if not component:
        return OVERLAYS / overlay
    if component.startswith("all-"):
        pool = component.replace("all", "pool")
        inner = [c for c in ALL_COMPONENTS if c not in (*POOLS, "hardening", "reevaluate")]
        return around(place, edited(folder / f"{name}-inner", ["reevaluate", pool, *inner]), ["hardening"])
    if component == "reevaluate":
        return edited(place, [component], overlay)
    if component == "hardening":  # the one with objects of the whole cluster, which have no namespace
        return around(place, OVERLAYS / overlay, [component])
    return around(place, OVERLAYS / overlay, [component], namespace="vcot")


VARIANTS = [
    name
    for overlay in sorted(folder.name for folder in OVERLAYS.iterdir())
    for name in [overlay, *(f"{overlay}+{c}" for c in ALL_COMPONENTS if (overlay == "cpu-smoke") or c != "reevaluate")]
] + [f"gpu+{pool.replace('pool', 'all')}" for pool in POOLS]
"""Each overlay, each with each component, and everything at once on each pool."""
