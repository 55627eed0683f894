"""Who starts how many ranks, and which exit code comes out. Real processes; ranks load torch in one test."""

from __future__ import annotations

import json
import logging
import os
import runpy
import signal
import socket
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from vcot.errors import SettingsError, UsageError
from vcot.training.launcher import Rank, World

ROOT = Path(__file__).parents[2]

PROGRAM = """
    import os, signal, sys, time
    from pathlib import Path
    from typing import ClassVar
    from vcot import errors
    from vcot.settings import Settings, setting
    from vcot.stage import launch, stop, summary
    from vcot.training.launcher import Rank, World, run_ranks

    class Row(Settings):
        "Rows a boat."
        stage: ClassVar[str] = "row"
        does: str = setting("0,0", "what each rank does")
        grace: float = setting(10, "seconds")

    def child_that_tells_of_a_signal(path):  # as a process that loads data
        parent = os.getpid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, lambda *_: path.touch())
            signal.signal(signal.SIGINT, lambda *_: path.touch())
            while os.getppid() == parent:
                time.sleep(0.02)
            os._exit(0)

    def run(settings):
        folder = Path(settings.run_uri)
        rank = Rank.from_environment()
        if rank is None:
            from vcot.training import agent
            agent.FOR_A_REASON, agent.AFTER_A_FAILURE = 1.0, 0.5  # seconds enough for ranks that do nothing
            node = os.environ.get("PET_NODE_RANK", "0")
            own = folder / f"node-{node}"
            own.mkdir(exist_ok=True)
            nproc = None if "PET_NPROC_PER_NODE" in os.environ else 2
            run_ranks(World.asked_for(nproc), own, settings.grace, [sys.executable, *sys.argv])
            return
        summary.path = rank.last_word
        summary(strokes=7)
        what = settings.does.split(",")[rank.number]
        if what == "waits":
            child_that_tells_of_a_signal(folder / f"signalled-{rank.number}")
        seen = [os.environ.get(name, "-") for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "OMP_NUM_THREADS")]
        began = folder / f"began-{rank.number}.tmp"
        began.write_text(" ".join([*seen, str(rank.local), str(rank.size), str(os.getpid())]))
        began.rename(folder / f"began-{rank.number}")
        if what == "waits":
            while not stop.requested:
                time.sleep(0.02)
            time.sleep(0.3 + rank.number)  # one has saved sooner than another
            (folder / f"saved-{rank.number}").touch()
            stop.raise_if_requested()
        elif what == "deaf":
            time.sleep(100)
        elif what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "lost":  # as a rank whose partner is gone, and is sooner gone itself
            (folder / "lost").touch()
            raise RuntimeError("connection closed by peer")
        elif what == "aborted":  # as NCCL ends a rank whose partner is gone
            (folder / "lost").touch()
            os.abort()
        elif what == "meets":
            import torch
            torch.distributed.init_process_group("gloo")
            found = torch.tensor([rank.number + 1.0])
            torch.distributed.all_reduce(found)
            torch.distributed.destroy_process_group()  # its threads, left behind, may abort a rank that ends well
            (folder / f"met-{rank.number}").write_text(str(found.tolist()))
        elif what.startswith("late"):  # it has a reason, and ends after those who lost it
            while not (folder / "lost").exists():
                time.sleep(0.01)
            time.sleep(0.3)
            raise getattr(errors, what[4:])("the oar broke")
        elif what != "0":
            raise getattr(errors, what)("the oar broke")

    if "importing" in sys.argv[-1] and "RANKS_FOLDER" in os.environ:  # before it hears signals
        Path(sys.argv[2], f"began-{os.environ['RANK']}").touch()
        time.sleep(100)
    launch(Row, run)
"""


class Launcher:
    """A process of its own, forked off this one, which has loaded torch already."""

    def __init__(self, folder: Path, *argv: str, node: str = "0", **environment: str) -> None:
        self.folder, self.log, self.said = folder, folder / f"log-{node}", folder / f"said-{node}"
        program = folder / "row.py"
        program.write_text(textwrap.dedent(PROGRAM))
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("VCOT_", "PET_", "CUDA_", "OMP_"))}
        mine = {"PYTHONPATH": str(ROOT), "VCOT_TERMINATION_LOG": str(self.log)}
        self.command = [str(program), "--run-uri", str(folder), *argv]
        self.environment = clean | mine | environment
        self.code: int | None = None
        self.pid = self.start()

    def start(self) -> int:
        import vcot.training.agent  # noqa: F401  (torch)

        if pid := os.fork():
            return pid
        code = 70
        try:
            os.setsid()
            os.dup2(os.open(self.said, os.O_WRONLY | os.O_CREAT), 2)
            os.dup2(2, 1)
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
            logging.root.handlers.clear()  # pytest's
            loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
            for handler in [handler for logger in loggers for handler in logger.handlers]:
                if type(handler) is logging.StreamHandler:  # torch's, not pytest's
                    handler.setStream(sys.stderr)
            os.environ.clear()
            os.environ |= self.environment
            sys.argv = self.command
            for name in [name for name in sys.modules if name.partition(".")[0] == "vcot"]:
                del sys.modules[name]  # its flags and handlers are those of this test run
            runpy.run_path(self.command[0], run_name="__main__")
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os._exit(code)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def end(self, within: float = 60) -> tuple[int | None, str, dict[str, Any]]:
        """The exit code, what it and its ranks said, and its termination message."""
        until = time.monotonic() + within
        while not self.ended():
            assert time.monotonic() < until, self.said.read_text()
            time.sleep(0.02)
        return self.code, self.said.read_text(), json.loads(self.log.read_bytes())


def wait_for(folder: Path, pattern: str, count: int) -> None:
    until = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < until, [path.read_text() for path in folder.glob("said-*")]
        time.sleep(0.02)


def ranks_of(folder: Path) -> list[int]:
    return [int(path.read_text().split()[-1]) for path in folder.glob("began-?")]


def still_run(pids: list[int]) -> list[int]:
    """Those that have not ended; a zombie has."""
    stats = {pid: Path(f"/proc/{pid}/stat") for pid in pids}
    return [
        pid for pid, stat in stats.items() if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    ]


def two_nodes(folder: Path, does: str, **environment: str) -> list[Launcher]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
    }
    shared |= {"CUDA_VISIBLE_DEVICES": ""} | environment
    return [Launcher(folder, "--does", does, node=node, PET_NODE_RANK=node, **shared) for node in "10"]


def test_each_rank_has_one_gpu_and_one_line_tells_that_they_start(tmp_path: Path) -> None:
    left_by_another_launcher = {"RANK": "7", "LOCAL_RANK": "7", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}
    launcher = Launcher(tmp_path, "--does", "0,0", CUDA_VISIBLE_DEVICES="5,-1,GPU-3f9a", **left_by_another_launcher)
    code, said, word = launcher.end()
    assert code == 0, said
    assert word == {"stage": "row", "run": tmp_path.name, "part": "all", "exit": 0, "strokes": 7}
    threads = max((os.cpu_count() or 1) // 2, 1)
    seen = [(tmp_path / f"began-{number}").read_text().rpartition(" ")[0] for number in (0, 1)]
    # A library that takes the GPU of its LOCAL_RANK finds the one it sees.
    assert seen == [f"5 0 {threads} 0 2", f"GPU-3f9a 0 {threads} 1 2"]
    assert len(said.splitlines()) == 1, said
    assert all(part in said for part in ("starting ranks", "here=2", "of=2")), said


def test_ranks_of_two_nodes_meet(tmp_path: Path) -> None:
    for launcher in two_nodes(tmp_path, "meets,meets"):
        code, said, _ = launcher.end()
        assert code == 0, said
    assert [(tmp_path / f"met-{number}").read_text() for number in (0, 1)] == ["[3.0]", "[3.0]"]


@pytest.mark.parametrize(
    ("does", "code", "message"),
    [
        ("deaf,SettingsError", 78, "rank 1 of 2: the oar broke"),
        ("lateTemporaryError,lost", 75, "rank 0 of 2: the oar broke"),
        ("aborted,lateInputError", 65, "rank 1 of 2: the oar broke"),
        ("lost,0", 1, "rank 0 of 2: unforeseen: RuntimeError: connection closed by peer"),
        ("deaf,killed", 137, "rank 1 of 2: killed by signal 9"),
    ],
)
def test_exit_code_is_that_of_the_first_rank_with_a_reason(tmp_path: Path, does: str, code: int, message: str) -> None:
    """And the others are ended, also one that hears nothing."""
    found, said, word = Launcher(tmp_path, "--does", does).end()
    assert found == code, said
    assert (word["exit"], word["message"]) == (code, message)
    if message.startswith("rank 0"):  # else it may have been killed before it could say anything
        assert word["strokes"] == 7
    assert still_run(ranks_of(tmp_path)) == []
    assert "elastic" not in said


@pytest.mark.parametrize("does", ["deaf,SettingsError", "lateSettingsError,lost"])
def test_reason_of_one_node_ends_the_others_too(tmp_path: Path, does: str) -> None:
    begun = time.monotonic()
    for launcher in two_nodes(tmp_path, does):
        code, said, word = launcher.end()
        assert (code, word["message"]) == (78, f"rank {'deaf' in does:d} of 2: the oar broke"), said
    assert time.monotonic() - begun < 12  # less than what is waited for a reason


def test_stop_reaches_each_rank_once_and_waits_until_they_have_saved(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "--does", "waits,waits")
    wait_for(tmp_path, "began-?", 2)
    os.killpg(launcher.pid, signal.SIGINT)  # the whole group, as a terminal does; ranks must not hear it twice
    found, said, word = launcher.end()
    assert (found, word["exit"], word["strokes"]) == (130, 130, 7), said
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert list(tmp_path.glob("signalled-*")) == []


def test_stop_while_ranks_import(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "--does", "importing")
    wait_for(tmp_path, "began-?", 2)
    launcher.signal(signal.SIGTERM)
    code, said, _ = launcher.end(within=5)
    assert code == 143, said


def test_stop_while_another_node_is_waited_for(tmp_path: Path) -> None:
    alone, other = two_nodes(tmp_path, "0,0")
    other.signal(signal.SIGKILL)
    wait_for(tmp_path, "node-1", 1)
    time.sleep(1)
    alone.signal(signal.SIGTERM)
    code, said, _ = alone.end(within=5)
    assert code == 143, said
    assert list(tmp_path.glob("began-?")) == []
    os.waitpid(other.pid, 0)


def test_node_whose_ranks_lost_another_leaves_it_the_first_word(tmp_path: Path) -> None:
    """Where that one could not tell: its code ends the Job; had this one ended with 1 before, all would start again."""
    one, other = two_nodes(tmp_path, "lost,lost")
    wait_for(tmp_path, "node-*/rank-?.json", 2)
    time.sleep(1.5)
    assert not one.ended()
    assert not other.ended()
    for launcher in (one, other):
        launcher.signal(signal.SIGTERM)
        code, said, _ = launcher.end()
        assert code == 143, said


def test_rank_that_does_not_end_in_time_is_killed_and_the_stage_was_still_stopped(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "--does", "waits,deaf", "--grace", "3")
    wait_for(tmp_path, "began-?", 2)
    begun = time.monotonic()
    launcher.signal(signal.SIGTERM)
    code, said, _ = launcher.end()
    assert code == 143, said
    assert "did not end in time" in said
    assert time.monotonic() - begun < 3
    assert still_run(ranks_of(tmp_path)) == []


def test_ranks_do_not_outlive_a_launcher_that_is_killed(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, "--does", "waits,deaf")
    wait_for(tmp_path, "began-?", 2)
    launcher.signal(signal.SIGKILL)
    until = time.monotonic() + 5
    while still_run(ranks_of(tmp_path)):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert os.waitstatus_to_exitcode(os.waitpid(launcher.pid, 0)[1]) == -signal.SIGKILL


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
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert Rank.from_environment() is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UsageError, match="start it once in each pod, without torchrun"):
        Rank.from_environment()
