"""How a stage starts and ends, seen from outside the process."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
    import errno, sys, time
    from typing import ClassVar
    from vcot import errors, logging
    from vcot.settings import Settings, setting
    from vcot.stage import Bar, launch, stop, summary

    class Nap(Settings):
        "Sleeps."
        stage: ClassVar[str] = "nap"
        end: str = setting("well", "how it ends")
        noise: int = setting(0, "length of a fact")

    def run(settings):
        logging.get().info("begun", pillow="soft")
        summary(shards=4)
        summary(rows=7, noise="z" * settings.noise)
        if settings.end == "full":
            raise OSError(errno.ENOSPC, "No space left on device", "/scratch/x")
        if settings.end == "leaks":
            import logging as standard, os, warnings
            key = os.environ["SOME_API_KEY"]
            logging.get().warning("asked with " + key, header={"Authorization": "Bearer " + key})
            standard.getLogger("library").error("refused: %s", key)
            warnings.warn("deprecated: " + key)
            summary(last=key)
            print(key)
            raise RuntimeError("y" * 1470 + key)
        if settings.end == "bug":
            raise RuntimeError("unforeseen")
        if settings.end == "waits":
            with Bar("sleeping", 100, "sheep") as bar:
                while True:
                    time.sleep(0.05)
                    bar.advance()
                    stop.raise_if_requested()
        if settings.end != "well":
            raise getattr(errors, settings.end)("a line before\\nwhy it ended")

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
    ("end", "code"), [("well", 0), ("GateFailed", 20), ("BudgetSpent", 21), ("TemporaryError", 75), ("StageFailed", 3)]
)
def test_each_end_has_its_exit_code_and_one_line(program: Path, end: str, code: int) -> None:
    process = start(program, "--end", end)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert len([line for line in said.splitlines() if "exit=" in line]) == (code != 0)
    assert "Traceback" not in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_the_stage_leave_in_order(program: Path, number: int, code: int) -> None:
    path = program.with_name("termination-log")
    process = start(program, "--end", "waits", VCOT_TERMINATION_LOG=str(path))
    assert process.stderr is not None
    process.stderr.readline()  # "begun"
    process.send_signal(number)
    _, said = process.communicate(timeout=10)
    assert process.returncode == code
    assert "goes on from there" in said
    word = json.loads(path.read_bytes())
    assert (word["exit"], word["shards"]) == (code, 4)
    assert word["message"].startswith("stopped as asked")


def test_lines_in_a_pod_are_json_with_run_stage_and_shard(program: Path) -> None:
    process = start(program, "--part", "shards", "--shard", "3", "--end", "InputError", KUBERNETES_SERVICE_HOST="x")
    _, said = process.communicate(timeout=30)
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["shard"] for line in lines] == [3, 3, 3]
    begun = lines[0]
    assert (begun["event"], begun["run"], begun["stage"], begun["pillow"]) == ("begun", "night", "nap", "soft")


def test_a_check_starts_nothing(program: Path) -> None:
    process = start(program, "--check", "--end", "bug")
    out, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")
    assert "settings are in order" in out


# --- the termination message -----------------------------------------------------------------------------


def last_word(program: Path, *argv: str) -> dict[str, object]:
    path = program.with_name("termination-log")
    path.write_bytes(b"what an earlier container left" * 300)
    process = start(program, *argv, VCOT_TERMINATION_LOG=str(path))
    _, lines = process.communicate(timeout=30)
    data = path.read_bytes()
    assert len(data) <= 4096
    said: dict[str, object] = json.loads(data)
    assert process.returncode == said["exit"]
    assert ("Traceback" in lines) == (said["exit"] == 1)  # of the unforeseen alone
    return said


def test_a_stage_that_is_done_leaves_its_facts(program: Path) -> None:
    said = last_word(program, "--part", "shards", "--shard", "2")
    about = {"stage": "nap", "run": "night", "part": "shards", "shard": 2, "exit": 0}
    assert said == about | {"shards": 4, "rows": 7, "noise": ""}
    assert next(iter(said)) == "stage"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [(["--end", "InputError"], 65, "why it ended"), (["--end", "bug"], 1, "unforeseen: RuntimeError: unforeseen"),
     (["--end", "full"], 75, "no room left on the disk: "), (["--ende", "x"], 64, "--ende: no such flag"),
     (["--shard", "x"], 78, "--shard=x: ")],
)  # fmt: skip
def test_a_stage_that_failed_leaves_its_last_line(program: Path, argv: list[str], code: int, message: str) -> None:
    said = last_word(program, *argv)
    assert (said["stage"], said["exit"]) == ("nap", code)
    assert str(said["message"]).startswith(message)
    assert ("shards" in said) == (code not in (64, 78))  # those were read before anything ran


@pytest.mark.parametrize("noise", [3000, 5000])
def test_what_does_not_fit_is_left_out_and_the_first_facts_stay(program: Path, noise: int) -> None:
    said = last_word(program, "--noise", str(noise), "--end", "InputError")
    assert ("noise" in said) == (noise < 4000)
    assert (said["message"], said["shards"]) == ("why it ended", 4)


def test_a_long_message_is_cut_and_a_place_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    from vcot.settings import Settings
    from vcot.stage import Summary

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


@pytest.mark.parametrize("form", ["lines", "json"])
def test_a_key_of_the_environment_leaves_the_process_nowhere(program: Path, form: str) -> None:
    key = "sk-4f9a01/c2b7de"
    last = program.parent / "last.json"
    process = start(
        program, "--end", "leaks", "--log-form", form, "--termination-log", str(last), SOME_API_KEY=key
    )  # fmt: skip
    out, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "Traceback" in said
    assert out == "[redacted]\n"
    assert said.count("[redacted]") >= 5
    message = json.loads(last.read_text())["message"]
    assert json.loads(last.read_text())["last"] == "[redacted]"
    assert message.endswith("[red")  # cut where it is too long, after its key was taken out
    assert key[:6] not in out + said + last.read_text()
