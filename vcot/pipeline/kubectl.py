"""kubectl as a person has it: overlays are rendered and applied by it, with whatever login it knows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from vcot.errors import SettingsError, VcotError
from vcot.pipeline.port import Manifest


def kubectl() -> str:
    """The program: ``$KUBECTL``, else the one on PATH.

    Raises:
        SettingsError: there is none, or its kustomize is too old for the overlays (components that reach into names).
    """
    path = os.environ.get("KUBECTL") or shutil.which("kubectl")
    if not path or not shutil.which(path):
        raise SettingsError(
            f"kubectl: {path or 'not on PATH'}; install it (1.28 or newer), or say where it is: KUBECTL="
        )
    said = subprocess.run([path, "version", "--client"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"Kustomize Version: v(\d+)", said)
    if found is None or int(found[1]) < 5:
        raise SettingsError(f"{path} is too old to render the overlays: it needs kustomize 5, so kubectl 1.28 or newer")
    return path


def render(folder: Path) -> str:
    """The overlay in that folder as YAML.

    Raises:
        SettingsError: kustomize finds a fault.
    """
    answer = subprocess.run([kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise SettingsError(f"{folder} cannot be rendered: {answer.stderr.strip().removeprefix('error: ')}")
    return answer.stdout


def ask(namespace: str, kind: str, name: str = "", labels: str = "") -> Any:
    """The object, or None if there is none of that name; without a name a list of those with these labels.

    Raises:
        VcotError: the cluster does not say.
    """
    words = [name, "--ignore-not-found"] if name else [f"--selector={labels}"]
    command = [kubectl(), "-n", namespace, "get", kind, *words, "-o", "json"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise VcotError(f"kubectl get {kind} {name}: {answer.stderr.strip()}")
    return json.loads(answer.stdout) if answer.stdout.strip() else None


def objects(rendered: str) -> list[Manifest]:
    return [one for one in yaml.safe_load_all(rendered) if one]


def overlay_folder(root: Path, name: str) -> Path:
    """``k8s/overlays/<name>``.

    Raises:
        SettingsError: there is no such overlay; names those that there are.
    """
    overlays = root / "overlays"
    there = sorted(path.parent.name for path in overlays.glob("*/kustomization.yaml"))
    if name not in there:
        raise SettingsError(f"OVERLAY={name}: there is no {overlays / name}; there are {', '.join(there)}")
    return overlays / name
