"""Who starts how many ranks, and which exit code comes out. Real processes, without torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from vcot.errors import SettingsError, UsageError
from vcot.ranks import Rank, World

ROOT = Path(__file__).parents[2]

PROGRAM = """
    import os, signal, sys, time
    from pathlib import Path
    from typing import ClassVar
    from vcot import errors, ranks
    from vcot.ranks import Rank, World, run_ranks
    from vcot.settings import Settings, setting
    from vcot.stage import launch, stop, summary

    ranks._FOR_A_REASON, ranks._AFTER_A_FAILURE = 1.0, 0.5  # seconds enough for ranks that do nothing

    class Row(Settings):
        "Rows a boat."
        stage: ClassVar[str] = "row"
        does: str = setting("0,0", "what each rank does")
        grace: float = setting(10, "seconds")

    def run(settings):
        folder = Path(settings.run_uri)
        rank = Rank.from_environment()
        if rank is None:
            run_ranks(World.asked_for(2), folder, settings.grace, [sys.executable, *sys.argv])
            return
        summary.path = rank.last_word
        summary(strokes=7)
        (folder / f"began-{rank.number}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "-"))
        what = settings.does.split(",")[rank.local]
        if what == "waits":
            while not stop.requested:
                time.sleep(0.02)
            (folder / f"saved-{rank.number}").touch()
            stop.raise_if_requested()
        elif what == "deaf":
            time.sleep(100)
        elif what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "lost":  # as a rank whose partner is gone
            while not (folder / f"rank-{1 - rank.number}.json").exists():
                time.sleep(0.01)
            raise RuntimeError("connection closed by peer")
        elif what != "0":
            raise getattr(errors, what)("the oar broke")

    launch(Row, run)
"""


class Launcher:
    def __init__(self, folder: Path, *argv: str, **environment: str) -> None:
        self.folder = folder
        program = folder / "row.py"
        program.write_text(textwrap.dedent(PROGRAM))
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("VCOT_", "PET_", "CUDA_"))}
        mine = {"PYTHONPATH": str(ROOT), "VCOT_TERMINATION_LOG": str(folder / "log")}
        self.process = subprocess.Popen(
            [sys.executable, str(program), "--run-uri", str(folder), *argv], env=clean | mine | environment,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def wait_for(self, pattern: str, count: int) -> None:
        until = time.monotonic() + 60
        while len(list(self.folder.glob(pattern))) < count:
            assert time.monotonic() < until
            time.sleep(0.02)

    def end(self) -> tuple[int, str, dict[str, Any]]:
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said, json.loads((self.folder / "log").read_bytes())


def test_when_all_are_done_it_is_done_and_each_has_seen_one_gpu(tmp_path: Path) -> None:
    code, _, word = Launcher(tmp_path, "--does", "0,0", CUDA_VISIBLE_DEVICES="5,GPU-3f9a").end()
    assert code == 0
    assert word == {"stage": "row", "run": tmp_path.name, "part": "all", "exit": 0, "strokes": 7}
    assert [(tmp_path / f"began-{number}").read_text() for number in (0, 1)] == ["5", "GPU-3f9a"]


@pytest.mark.parametrize(
    ("does", "code", "message"),
    [
        ("deaf,SettingsError", 78, "rank 1 of 2: the oar broke"),
        ("TemporaryError,lost", 75, "rank 0 of 2: the oar broke"),
        ("lost,0", 1, "rank 0 of 2: unforeseen: RuntimeError: connection closed by peer"),
        ("deaf,killed", 137, "rank 1 of 2: killed by signal 9"),
    ],
)
def test_the_code_of_the_rank_that_failed_first_comes_out(tmp_path: Path, does: str, code: int, message: str) -> None:
    """And the others are ended, also one that hears nothing."""
    found, said, word = Launcher(tmp_path, "--does", does).end()
    assert found == code, said
    assert (word["exit"], word["message"]) == (code, message)
    if message.startswith("rank 0"):  # else it may have been killed before it could say anything
        assert word["strokes"] == 7


def test_a_stop_reaches_all_ranks_and_waits_until_they_have_saved(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "--does", "waits,waits")
    launcher.wait_for("began-*", 2)
    os.killpg(launcher.process.pid, signal.SIGINT)  # the whole group, as a terminal does; ranks must not hear it twice
    found, said, word = launcher.end()
    assert (found, word["exit"], word["strokes"]) == (130, 130, 7), said
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]


def test_a_pod_whose_ranks_lost_another_pods_leaves_it_the_first_word(tmp_path: Path) -> None:
    """Its 78 ends the Job, which then stops this pod; had this one ended with 1 before, all would start again."""
    pods = {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "127.0.0.1"}
    launcher = Launcher(tmp_path, "--does", "bug,bug", **pods)
    launcher.wait_for("rank-*.json", 2)
    with pytest.raises(subprocess.TimeoutExpired):
        launcher.process.wait(1.5)
    launcher.process.send_signal(signal.SIGTERM)
    code, said, _ = launcher.end()
    assert code == 143, said


def test_a_rank_that_does_not_end_in_time_is_killed_and_the_stage_was_still_stopped(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "--does", "waits,deaf", "--grace", "3")
    launcher.wait_for("began-*", 2)
    begun = time.monotonic()
    launcher.process.send_signal(signal.SIGTERM)
    code, said, _ = launcher.end()
    assert code == 143, said
    assert "did not end in time" in said
    assert time.monotonic() - begun < 3


def test_ranks_do_not_outlive_a_launcher_that_is_killed(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "--does", "waits,waits")
    launcher.wait_for("began-*", 2)
    launcher.process.kill()
    launcher.wait_for("saved-*", 2)


# --- how many ---------------------------------------------------------------------------------------------

PODS = {"PET_NNODES": "4", "PET_NODE_RANK": "2", "PET_MASTER_ADDR": "train-0.train", "PET_MASTER_PORT": "29400"}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
TWO = {"CUDA_VISIBLE_DEVICES": "0,1"}


@pytest.mark.parametrize(
    ("nproc", "environment", "expected"),
    [
        (None, NO_GPU, World()),
        (None, TWO, World(2, gpus=2)),
        (1, TWO, World(1, gpus=2)),
        (3, NO_GPU, World(3)),
        (None, {**TWO, "PET_NPROC_PER_NODE": "gpu"}, World(2, gpus=2)),
        (None, {**NO_GPU, "PET_NPROC_PER_NODE": "2", "PET_STANDALONE": "1", "PET_NNODES": "9"}, World(2)),
        (None, TWO | PODS, World(2, 4, 2, "train-0.train", 29400, 2)),
        (None, NO_GPU | PODS | {"PET_NNODES": "1"}, World()),
    ],
)
def test_the_setting_then_pet_then_the_gpus_say_how_many(
    nproc: int | None, environment: dict[str, str], expected: World
) -> None:
    assert World.asked_for(nproc, environment) == expected
    assert expected.size == expected.per_node * expected.nodes


@pytest.mark.parametrize(
    ("nproc", "environment", "line"),
    [
        (3, TWO, "3 ranks and 2 GPUs: each rank needs one of its own"),
        (None, {**NO_GPU, "PET_NPROC_PER_NODE": "gpu"}, "PET_NPROC_PER_NODE=gpu: there is no GPU here"),
        (None, {**NO_GPU, "PET_NPROC_PER_NODE": "all"}, "PET_NPROC_PER_NODE=all: a number from 1 on is needed"),
        (None, {**NO_GPU, "PET_NNODES": "1:4"}, "PET_NNODES=1:4: .* grows and shrinks is not supported"),
        (None, {**NO_GPU, "PET_NNODES": "2"}, "PET_NODE_RANK is missing: PET_NNODES=2"),
        (None, NO_GPU | PODS | {"PET_MASTER_ADDR": ""}, "PET_MASTER_ADDR is missing"),
        (None, NO_GPU | PODS | {"PET_NODE_RANK": "4"}, "PET_NODE_RANK=4: with PET_NNODES=4 it is 0 to 3"),
        (None, NO_GPU | PODS | {"PET_MASTER_PORT": "x"}, "PET_MASTER_PORT=x: a number"),
    ],
)
def test_what_makes_no_sense_is_told(nproc: int | None, environment: dict[str, str], line: str) -> None:
    with pytest.raises(SettingsError, match=line):
        World.asked_for(nproc, environment)


def test_another_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Rank.from_environment() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UsageError, match="start it once in each pod, without torchrun"):
        Rank.from_environment()
