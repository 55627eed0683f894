"""What the machine must have for a node: root, cgroups, programs of the distribution, programs built from Go."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.configuration import ROOT
from tools.gomodules import CannotBuild, GoModule, built, tell
from tools.s3server import NoMinio, minio_binary

#: A program (or folder) that a node needs → the Debian package that has it.
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
    "openssl": "openssl",
}


def _pinned(folder: str, module: str) -> str:
    found = re.search(rf"^(?:require )?\s*{re.escape(module)} (v\S+)", (ROOT / folder / "go.mod").read_text(), re.M)
    assert found is not None, f"{folder}/go.mod does not name {module}"
    return found[1]


KUBE = "tests/tools/kube"
OF_KUBE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kubelet")
KUBERNETES = GoModule(
    "Kubernetes",
    ROOT / KUBE,
    {name: f"k8s.io/kubernetes/cmd/{name}" for name in OF_KUBE},
    takes="four to ten minutes",
    oldest_go=(1, 26, 0),
    # Without it the server calls itself v0.0.0
    ldflags=f"-s -w -X k8s.io/component-base/version.gitVersion={_pinned(KUBE, 'k8s.io/kubernetes')}",
)
ETCD = GoModule(
    "etcd", ROOT / "tests/tools/etcd", {"etcd": "go.etcd.io/etcd/server/v3"}, "about half a minute", (1, 26, 0)
)


class MachineLacks(Exception):
    """This machine cannot have a node; the message says what is missing."""


def prepare(install: bool) -> dict[str, Path]:
    """Everything that a node needs: program → where it is.

    Args:
        install: install packages and build programs where they are missing; otherwise only look.

    Raises:
        MachineLacks: with all that is missing.
    """
    lacks, programs = _unfit(), dict[str, Path]()
    if not lacks and install:
        _install(_missing_packages())
    lacks += [f"{program} (Debian package {package})" for program, package in _missing_packages().items()]
    try:
        programs = {} if lacks and install else _built(install)
    except (CannotBuild, NoMinio) as error:
        lacks.append(str(error))
    if lacks:
        raise MachineLacks("; ".join(lacks))
    return programs | {name: Path(shutil.which(name) or name) for name in PACKAGES}


def _unfit() -> list[str]:
    if sys.platform != "linux":
        return ["Linux"]
    lacks = []
    if os.geteuid() != 0:
        lacks.append("root (containers, namespaces and cgroups are made)")
    if not Path("/sys/fs/cgroup/memory").is_dir() and not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        lacks.append("cgroups below /sys/fs/cgroup")
    return lacks


def _missing_packages() -> dict[str, str]:
    return {program: package for program, package in PACKAGES.items() if shutil.which(program) is None}


def _install(missing: dict[str, str]) -> None:
    packages = sorted(set(missing.values()))
    if not packages or shutil.which("apt-get") is None:
        return
    tell(f"Installing {', '.join(packages)} with apt-get")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # RUNLEVEL: starts no service
    for words in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", *words], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MachineLacks(f"apt-get {words[0]} failed: {' / '.join(done.stderr.strip().splitlines()[-3:])}")


def _built(build: bool) -> dict[str, Path]:
    """KUBE_ASSETS, a folder with all of them, or what was built from the pinned modules, or is built now."""
    modules = {name: module for module in (ETCD, KUBERNETES) for name in module.programs}
    if named := os.environ.get("KUBE_ASSETS"):
        found = {name: Path(named) / name for name in modules}
        if absent := [name for name, path in found.items() if not path.exists()]:
            raise CannotBuild(f"KUBE_ASSETS={named} has no {', '.join(absent)}")
    else:
        for module in (ETCD, KUBERNETES):
            if not build and not module.is_built:
                raise CannotBuild(f"{module.title} is not built yet (`make node-up` does it, once)")
        found = {name: built(module) / name for name, module in modules.items()}
    return found | {"minio": minio_binary(build)}
