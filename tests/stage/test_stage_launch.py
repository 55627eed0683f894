"""How a stage starts and ends: exit codes, lines, signals, the termination message, and no secret anywhere."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors.torch
import torch
import urllib3

from vcot import errors, logging
from vcot.settings import Settings, setting
from vcot.stage import Summary, launch, stop, summary

ROOT = Path(__file__).parents[2]


def _on_a_full_disk() -> None:
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript("pragma page_size = 512; create table t (x); pragma max_page_count = 3")
        database.execute("insert into t values (?)", ("x" * 10_000,))


def _not_a_database() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "x.sqlite").write_bytes(b"x" * 1000)
        with closing(sqlite3.connect(path)) as database:
            database.execute("select * from t")


def _beyond_a_memory_limit() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, limits[1]))
    try:
        bytearray(128 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _beyond_a_memory_limit_of_torch() -> None:
    torch.empty(1 << 55)


def _reset() -> None:
    """A server that promises more than it sends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pool = urllib3.PoolManager(retries=False)
        threading.Thread(target=_answer_in_part, args=(server,)).start()
        pool.request("GET", f"http://127.0.0.1:{server.getsockname()[1]}/")


def _answer_in_part(server: socket.socket) -> None:
    with server.accept()[0] as connection:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\n<Error>")


LIBRARIES: dict[str, Callable[[], object]] = {
    "sqlite-full": _on_a_full_disk, "sqlite-damaged": _not_a_database, "memory": _beyond_a_memory_limit,
    "memory-of-torch": _beyond_a_memory_limit_of_torch, "tensors": lambda: safetensors.torch.load(b"x" * 100),
    "reset": _reset,
}  # fmt: skip


class Nap(Settings):
    """Sleeps."""

    stage: ClassVar[str] = "nap"
    end: str = setting("well", "how it ends")
    noise: int = setting(0, "length of a fact")


def run(settings: Nap) -> None:
    logging.get().info("begun", pillow="soft")
    summary(shards=4)
    summary(rows=7, noise="z" * settings.noise)
    if settings.end == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch/x")
    if settings.end in LIBRARIES:
        LIBRARIES[settings.end]()
    if settings.end == "bug":
        raise RuntimeError("unforeseen")
    if settings.end != "well":
        raise getattr(errors, settings.end)("a line before\nwhy it ended")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the termination message, of a process that has none of our variables."""
    for name in [name for name in os.environ if name.startswith("VCOT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(stop, "listen", lambda: None)
    monkeypatch.setattr(summary, "facts", {})
    path = tmp_path / "termination-log"
    path.write_bytes(b"what an earlier container left" * 300)
    monkeypatch.setenv("VCOT_TERMINATION_LOG", str(path))
    return path


def end(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        launch(Nap, run, ["--run-uri", "s3://b/runs/night", *argv])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_stage_that_is_done_leaves_its_facts(log: Path) -> None:
    assert end("--part", "shards", "--shard", "2") == 0
    said = json.loads(log.read_bytes())
    about = {"stage": "nap", "run": "night", "part": "shards", "shard": 2, "exit": 0}
    assert said == about | {"shards": 4, "rows": 7, "noise": ""}
    assert next(iter(said)) == "stage"
    assert end("--check", "--end", "bug") == 0  # which starts nothing


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--end", "GateFailed"], 20, "why it ended"), (["--end", "BudgetSpent"], 21, "why it ended"),
        (["--end", "InputError"], 65, "why it ended"), (["--end", "TemporaryError"], 75, "why it ended"),
        (["--end", "StageFailed"], 3, "why it ended"), (["--end", "full"], 75, "no room left on the disk: "),
        (["--end", "bug"], 1, "unforeseen: RuntimeError: unforeseen"), (["--ende", "x"], 64, "--ende: no such flag"),
        (["--shard", "x"], 78, "--shard=x: "),
        (["--end", "sqlite-full"], 75, "a database on the scratch disk failed: "),
        (["--end", "sqlite-damaged"], 65, "a database is damaged: "), (["--end", "memory"], 75, "not enough memory"),
        (["--end", "memory-of-torch"], 75, "not enough memory"), (["--end", "tensors"], 65, "a safetensors file"),
        (["--end", "reset"], 75, "a connection or a disk failed: "),
    ],
)  # fmt: skip
def test_each_end_has_its_exit_code_one_line_and_a_last_word(
    log: Path, argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(*argv) == code
    said, lines = json.loads(log.read_bytes()), capsys.readouterr().err.splitlines()
    assert (said["stage"], said["exit"]) == ("nap", code)
    assert said["message"].startswith(message)
    started = code not in (64, 78)  # those were read before anything ran
    assert ("shards" in said) == started
    assert len([line for line in lines if "exit=" in line]) == (started and code != 1)
    assert ("Traceback (most recent call last):" in lines) == (code == 1)  # of the unforeseen alone


def test_what_does_not_fit_is_left_out_and_the_first_facts_stay(log: Path) -> None:
    for noise in (3000, 5000):
        assert end("--noise", str(noise), "--end", "InputError") == 65
        said = json.loads(log.read_bytes())
        assert len(log.read_bytes()) <= 4096
        assert ("noise" in said) == (noise < 4000)
        assert (said["message"], said["shards"]) == ("why it ended", 4)


def test_a_long_message_is_cut_and_a_place_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    summary = Summary()
    summary(shards=3)
    summary.path = tmp_path / "log"
    summary.write("nap", 65, "\N{SNOWMAN}\n" * 5000, Settings(run_uri="x", part="prepare"))
    data = summary.path.read_bytes()
    assert len(data) <= 4096
    assert json.loads(data)["shards"] == 3
    summary.path = tmp_path / "nowhere" / "log"
    summary.write("nap", 0, "", None)
    assert not summary.path.exists()


# --- in processes of their own: signals, and what libraries write ---------------------------------------------

PROGRAM = """
    import logging as standard, os, time, warnings
    from typing import ClassVar
    from vcot import logging
    from vcot.settings import Settings
    from vcot.stage import Bar, launch, stop, summary

    class Nap(Settings):
        stage: ClassVar[str] = "nap"

    def run(settings):
        key = os.environ["SOME_API_KEY"]
        logging.get().warning("asked with " + key, header={"Authorization": "Bearer " + key})
        if settings.run_name == "night":
            with Bar("sleeping", 100, "sheep") as bar:
                while True:
                    time.sleep(0.05)
                    bar.advance()
                    stop.raise_if_requested()
        standard.getLogger("library").error("refused: %s", key)
        warnings.warn("deprecated: " + key)
        summary(last=key)
        print(key)
        raise RuntimeError("y" * 1470 + key)

    launch(Nap, run)
"""
KEY = "sk-4f9a01/c2b7de"


def start(log: Path, run_uri: str, **environment: str) -> subprocess.Popen[str]:
    program = log.with_name("nap.py")
    program.write_text(textwrap.dedent(PROGRAM))
    return subprocess.Popen(
        [sys.executable, str(program), "--run-uri", run_uri], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT), "SOME_API_KEY": KEY, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_stage_leave_in_order(log: Path, number: int, code: int) -> None:
    process = start(log, "runs/night")
    assert process.stderr is not None
    process.stderr.readline()  # "asked with"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "goes on from there" in said
    word = json.loads(log.read_bytes())
    assert word["exit"] == code
    assert word["message"].startswith("stopped as asked")


def test_a_key_of_the_environment_leaves_the_process_nowhere(log: Path) -> None:
    process = start(log, "runs/day", KUBERNETES_SERVICE_HOST="x")
    out, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" in said
    assert out == "[redacted]\n"
    assert said.count("[redacted]") >= 5
    line = json.loads(said.splitlines()[0])  # in a pod
    assert (line["event"], line["run"], line["stage"]) == ("asked with [redacted]", "day", "nap")
    word = json.loads(log.read_text())
    assert word["last"] == "[redacted]"
    assert word["message"].endswith("[red")  # cut where it is too long, after its key was taken out
    assert KEY[:6] not in out + said + log.read_text()


SPAWNING = """
    import multiprocessing, os
    from vcot import logging

    def child(set_up_logging):
        set_up_logging()
        logging.get().warning("asked with " + os.environ["SOME_API_KEY"])

    if __name__ == "__main__":
        logging.configure("json", run="night", stage="nap")
        process = multiprocessing.get_context("spawn").Process(target=child, args=(logging.for_child(),))
        process.start()
        process.join()
"""


def test_a_spawned_process_logs_as_its_parent_does(tmp_path: Path) -> None:
    program = tmp_path / "spawning.py"
    program.write_text(textwrap.dedent(SPAWNING))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SOME_API_KEY": KEY}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=True)
    said = json.loads(done.stderr)
    assert (said["run"], said["stage"], said["level"]) == ("night", "nap", "warning")
    assert KEY not in done.stdout + done.stderr
