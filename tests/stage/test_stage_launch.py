"""How a stage starts and ends, seen from outside the process."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
    import errno, sys, time
    from typing import ClassVar
    from vcot import errors, log
    from vcot.settings import Settings, setting
    from vcot.stage import Bar, launch, stop

    class Nap(Settings):
        "Sleeps."
        stage: ClassVar[str] = "nap"
        end: str = setting("well", "how it ends")

    def run(settings):
        log.get().info("begun", pillow="soft")
        if settings.end == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "/scratch/x")
        if settings.end == "bug":
            raise RuntimeError("unforeseen")
        if settings.end == "waits":
            with Bar("sleeping", 100, "sheep") as bar:
                while True:
                    time.sleep(0.05)
                    bar.advance()
                    stop.raise_if_requested()
        if settings.end != "well":
            raise getattr(errors, settings.end)("why it ended")

    launch(Nap, run)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "nap.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


def start(program: Path, *argv: str, **environment: str) -> subprocess.Popen[str]:
    clean = {n: v for n, v in os.environ.items() if not n.startswith("VCOT_")} | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(program), "--run-uri", "s3://b/runs/night", *argv], env=clean | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("end", "code"),
    [("well", 0), ("GateFailed", 20), ("BudgetSpent", 21), ("UsageError", 64), ("InputError", 65),
     ("TemporaryError", 75), ("SettingsError", 78), ("StageFailed", 3), ("full", 75), ("bug", 1)],
)  # fmt: skip
def test_each_end_has_its_exit_code_and_only_the_unforeseen_a_traceback(program: Path, end: str, code: int) -> None:
    process = start(program, "--end", end)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert ("Traceback" in said) == (end == "bug")
    if code not in (0, 1):
        assert len([line for line in said.splitlines() if "error" in line]) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_stage_leave_in_order(program: Path, number: int, code: int) -> None:
    process = start(program, "--end", "waits")
    assert process.stderr is not None
    process.stderr.readline()  # "begun"
    time.sleep(0.3)
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert process.returncode == code
    assert "goes on from there" in said


def test_lines_in_a_pod_are_json_with_run_and_stage(program: Path) -> None:
    process = start(program, KUBERNETES_SERVICE_HOST="10.96.0.1")
    _, said = process.communicate(timeout=30)
    line = json.loads(said.splitlines()[0])
    assert (line["event"], line["run"], line["stage"], line["pillow"]) == ("begun", "night", "nap", "soft")


def test_a_check_starts_nothing(program: Path) -> None:
    process = start(program, "--check", "--end", "bug")
    out, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")
    assert "settings are in order" in out
