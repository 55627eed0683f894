"""An S3 server of our own, for one run on this computer: MinIO, found or built from source; moto where it cannot be.

    with running_s3(Path(".local/s3"), Path(".local/s3.log")) as server:
        os.environ.update(server.env)
        …  # s3://vcot is there; everything speaks to it through the standard AWS variables

From a shell:

    python -m tools.s3server --print-binary     where MinIO is; builds it first if need be
    python -m tools.s3server --serve FOLDER     a server until Ctrl-C, with what to export
    python -m tools.s3server --serve FOLDER -- COMMAND …     a server for this one command

MinIO is a separate program under the AGPL: built on the machine that uses it, never part of an image of ours.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

from tools.gomodules import CannotBuild, GoModule, built, tell
from vcot.errors import SettingsError, TemporaryError, VcotError
from vcot.redaction import learn

MODULE = Path(__file__).resolve().parents[1] / "tests" / "tools" / "minio"
"""The pinned Go module: go.mod and go.sum say which MinIO."""

MINIO = GoModule("MinIO", MODULE, {"minio": "github.com/minio/minio"}, takes="about two minutes")

BUCKET = "vcot"
LOOPBACK = "127.0.0.1"
_READY_WITHIN, _STOPPED_WITHIN = 60.0, 15.0


@dataclass(frozen=True)
class S3Server:
    """A running server. `env`: all that a process needs to speak to it, whatever else its environment says of S3."""

    env: dict[str, str]
    endpoint: str
    kind: Literal["minio", "moto"]
    pid: int


NoMinio = CannotBuild
"""MinIO is neither here nor can it be built; the message says what was tried."""


@contextlib.contextmanager
def running_s3(data: Path, log: Path, bucket: str = BUCKET, host: str = LOOPBACK) -> Iterator[S3Server]:
    """A server whose objects lie below `data`, with a bucket; stopped at the end, whatever the end is.

    The same folder can be opened again: its keys lie in it, readable by this user alone. `host`: the address that it
    listens on; no other computer reaches the default.

    Raises:
        TemporaryError: another process is using the folder.
        SettingsError: no server could be started.
    """
    data.mkdir(parents=True, exist_ok=True)
    with _sole_user(data) as lock:
        try:
            binary = minio_binary()
        except NoMinio as error:
            tell(
                f"\nNOTICE: this run uses moto's S3 server, not MinIO. Tried: {error}\n"
                "moto keeps everything in memory: a run that is stopped cannot be continued, and it accepts any key.\n"
            )
            binary = None
        keys = _keys(data)
        with _started(binary, data, log, keys, lock, host) as (process, endpoint):
            make_bucket(endpoint, keys["user"], keys["password"], bucket)
            environment = _environment(endpoint, data, keys, host)
            yield S3Server(environment, endpoint, "minio" if binary else "moto", process.pid)
            if process.poll() is not None:
                tell(f"the S3 server ended by itself (exit code {process.returncode}); its last words, from {log}:")
                tell(_last_lines(log))


def make_bucket(endpoint: str, access_key: str, secret_key: str, bucket: str) -> None:
    """For a server of our own; the stages never make buckets, and their keys need not allow it."""
    import boto3
    import botocore.session
    from botocore.config import Config

    core = botocore.session.Session(session_vars=cast("Any", {"profile": (None, None, None, None)}))  # no AWS_PROFILE
    core.set_config_variable("config_file", os.devnull)
    client = boto3.session.Session(botocore_session=core).client(
        "s3", endpoint_url=endpoint, aws_access_key_id=access_key, aws_secret_access_key=secret_key,
        region_name="us-east-1", config=Config(s3={"addressing_style": "path"}, proxies={}),
    )  # fmt: skip
    with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        client.create_bucket(Bucket=bucket)


def minio_binary(build: bool = True) -> Path:
    """MINIO=, `minio` on PATH, the one that was built before, or one built now, in this order.

    Raises:
        NoMinio: none of it.
        SettingsError: MINIO= names something that is not a program.
    """
    named = os.environ.get("MINIO")
    if found := shutil.which(named or "minio"):
        return Path(found).absolute()
    if named:
        raise SettingsError(f"MINIO={named}: no such program; give the path of a minio binary, or leave it out")
    if not (MODULE / "go.sum").exists():
        raise NoMinio(f"no `minio` on PATH; and this is no checkout of vcot, which has what builds it ({MODULE})")
    if MINIO.is_built:
        return MINIO.home / "minio"
    if not build:
        raise NoMinio("no `minio` on PATH, none built yet")
    return built(MINIO, tried=["no `minio` on PATH"]) / "minio"


# --- running ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _started(
    binary: Path | None, data: Path, log: Path, keys: dict[str, str], lock: IO[str], host: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    for attempt in (1, 2, 3):  # a port that was free may be somebody's a moment later
        port, console = _free_ports(host)
        endpoint = f"http://{host}:{port}"
        if binary is None:
            command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
            environment, ready = dict(os.environ), "/moto-api/"
        else:
            command = [str(binary), "server", str(data / "minio"), "--address", f"{host}:{port}"]
            command += ["--console-address", f"{host}:{console}", "--quiet"]
            environment = {n: v for n, v in os.environ.items() if not n.startswith(("MINIO", "AWS_"))} | {
                "MINIO_ROOT_USER": keys["user"],
                "MINIO_ROOT_PASSWORD": keys["password"],
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
                "CI": "1",  # caps its buffers at 256 MiB; without, they may take half of the memory
            }
            ready = "/minio/health/ready"
        from vcot.stage import die_with_parent  # not above: `make minio` runs this before there is a .venv

        with log.open("ab") as output:
            # A session of its own: Ctrl-C in the terminal must not take the storage away before stages have saved.
            # The lock goes with it, so that no second server opens the folder while this one lives.
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, pass_fds=(lock.fileno(),), preexec_fn=die_with_parent(signal.SIGTERM),
            )  # fmt: skip
        try:
            if not _is_ready(process, f"{endpoint}{ready}"):
                if (code := process.poll()) is not None and attempt < 3:
                    continue
                ended = f"not ready in {_READY_WITHIN:g} s" if code is None else f"ended with {code}"
                raise SettingsError(f"the S3 server did not start ({ended}); see {log}: {_last_lines(log, 1)}")
            yield process, endpoint
            return
        finally:
            _stop(process)


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # past any proxy
    deadline = time.monotonic() + _READY_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException), opener.open(url, timeout=2):
            return True
        time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, patience, SIGKILL; a second Ctrl-C meanwhile shortens the patience, not the stopping."""
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOPPED_WITHIN)
    finally:
        process.kill()
        process.wait()


def _free_ports(host: str) -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind((host, 0))
        second.bind((host, 0))
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


def _keys(data: Path) -> dict[str, str]:
    file = data / "keys.json"
    if not file.exists():
        keys = {"user": f"vcot-{secrets.token_hex(4)}", "password": secrets.token_urlsafe(24)}
        temporary = data / "keys.json.part"
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(keys))
        temporary.replace(file)
    loaded: dict[str, str] = json.loads(file.read_text())
    learn(loaded["password"])
    return loaded


def _environment(endpoint: str, data: Path, keys: dict[str, str], host: str) -> dict[str, str]:
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
    profiles = {name: "default" for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE") if name in os.environ}
    direct = {name: ",".join(filter(None, [os.environ.get(name), host])) for name in ("NO_PROXY", "no_proxy")}
    return environment | profiles | direct


def _last_lines(log: Path, count: int = 5) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-count:])


# --- from a shell -----------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description="an S3 server for this computer")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--print-binary", action="store_true", help="print where MinIO is; build it first if need be")
    what.add_argument("--serve", type=Path, metavar="FOLDER", help="run a server on this folder until Ctrl-C")
    parser.add_argument("command", nargs="*", help="with --serve: run this with the server, then stop it")
    options = parser.parse_args()
    try:
        if options.print_binary:
            print(minio_binary())
            return 0
        with running_s3(options.serve, options.serve / "server.log") as server:
            if options.command:
                return subprocess.run(options.command, env={**os.environ, **server.env}, check=False).returncode
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
