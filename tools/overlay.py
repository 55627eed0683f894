"""What an overlay would apply, before it is applied: kustomize's output by way of kubectl, and what is asked of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from vcot.errors import SettingsError
from vcot.pipeline.client import ClusterClient, Manifest, connect
from vcot.pipeline.orchestrator import Clock
from vcot.stage import stop

ROOT = Path(__file__).resolve().parents[1]
PLACEHOLDER = re.compile(r"registry\.example\.com|sha256:0{64}|arn:aws:iam::111122223333:")
"""What stands in the overlays where everybody writes an address of their own."""


def kubectl() -> str:
    """The program: ``$KUBECTL``, else the one on PATH.

    Raises:
        SettingsError: there is none, or its kustomize is too old for the overlays (components that reach into names).
    """
    path = os.environ.get("KUBECTL") or shutil.which("kubectl")
    if not path or not shutil.which(path):
        where = path or "not on PATH"
        raise SettingsError(f"kubectl: {where}; install it (1.28 or newer), or say where it is: KUBECTL=")
    said = subprocess.run([path, "version", "--client"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Kustomize Version: v(\d+)", said)
    if found is None or int(found[1]) < 5:
        raise SettingsError(f"{path} is too old to render the overlays: it needs kustomize 5, so kubectl 1.28 or newer")
    return path


def cluster_of(namespace: str, **seconds: float) -> ClusterClient:
    """The cluster that kubectl speaks to.

    Args:
        seconds: `away` and `patience` of the client.
    """
    default = Path.home() / ".kube" / "config"
    if not os.environ.get("KUBECONFIG") and default.exists():  # before that of the pod one may be in, as kubectl does
        os.environ["KUBECONFIG"] = str(default)
    return connect(namespace, Clock(), stop, **seconds)


def render(folder: Path) -> str:
    """The overlay in that folder as YAML.

    Raises:
        SettingsError: kustomize finds a fault.
    """
    answer = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SettingsError(f"{folder} cannot be rendered: {answer.stderr.strip().removeprefix('error: ')}")
    return answer.stdout


def overlay_folder(name: str, k8s: Path = ROOT / "k8s") -> Path:
    """``<k8s>/overlays/<name>``.

    Raises:
        SettingsError: there is no such overlay; names those that there are.
    """
    overlays = k8s / "overlays"
    there = sorted(path.parent.name for path in overlays.glob("*/kustomization.yaml"))
    if name not in there:
        raise SettingsError(f"OVERLAY={name}: there is no {overlays / name}; there are {', '.join(there)}")
    return overlays / name


@dataclass(frozen=True)
class Overlay:
    """What an overlay would apply."""

    name: str
    objects: tuple[Manifest, ...]
    pipeline: Manifest

    @classmethod
    def of(cls, name: str, rendered: str) -> Overlay:
        """Raises SettingsError where there is no Job of the pipeline in it."""
        there = tuple(one for one in yaml.safe_load_all(rendered) if one)
        jobs = [one for one in there if one["kind"] == "Job" and one["metadata"]["name"].startswith("pipeline-")]
        if len(jobs) != 1:
            raise SettingsError(
                f"overlay {name} makes {len(jobs)} Jobs pipeline-<RUN_ID> and not one; see `replacements` "
                "in k8s/overlays/gpu"
            )
        return cls(name, there, jobs[0])

    @property
    def namespace(self) -> str:
        return str(self.pipeline["metadata"].get("namespace", "default"))

    @property
    def run_id(self) -> str:
        return str(self.pipeline["metadata"]["name"]).removeprefix("pipeline-")

    @property
    def templates(self) -> dict[str, Manifest]:
        """Stage (or "reevaluate") → its CronJob."""
        return {o["metadata"]["name"].removeprefix("stage-"): o for o in self.objects if o["kind"] == "CronJob"}

    @property
    def pods(self) -> dict[str, Manifest]:
        """What runs in it → its pod template."""
        found = {name: t["spec"]["jobTemplate"]["spec"]["template"] for name, t in self.templates.items()}
        return found | {"pipeline": self.pipeline["spec"]["template"]}

    @property
    def containers(self) -> list[Manifest]:
        return [container for pod in self.pods.values() for container in pod["spec"]["containers"]]

    @property
    def config_maps(self) -> dict[str, dict[str, str]]:
        return {o["metadata"]["name"]: o.get("data") or {} for o in self.objects if o["kind"] == "ConfigMap"}

    @property
    def run(self) -> dict[str, str]:
        """The lines of run.env."""
        return next((data for data in self.config_maps.values() if {"RUN_ID", "RUNS_URI"} <= set(data)), {})

    @property
    def runs_uri(self) -> str:
        return self.run.get("RUNS_URI", "").rstrip("/")

    @property
    def placeholders(self) -> list[str]:
        """Images that nobody has put an own address in place of."""
        return sorted({c["image"] for c in self.containers if PLACEHOLDER.search(c["image"])})

    def named(self, kind: str, name: str) -> Manifest | None:
        return next((o for o in self.objects if (o["kind"], o["metadata"]["name"]) == (kind, name)), None)
