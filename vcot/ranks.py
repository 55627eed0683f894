"""A stage done by several processes at once, its ranks: one for each GPU, in one pod or in several.

    World.asked_for(nproc)            how many, from the setting and the PET_* variables that Kubernetes operators set
    run_ranks(world, folder, grace)   starts those of this pod, waits, and ends as the first that failed
    Rank.from_environment()           in a started process: which one it is

The ranks run the command that this process was started with. torch's own launcher is not used: it makes 1 of every
exit code and of every stop, and a Job then neither knows wrong settings (78) from a lost connection (75) nor that
something was saved (143). A world here has a fixed size; if a rank is lost, the whole stage starts again from its
last checkpoint. This file knows no torch, so a launcher costs nothing beside its ranks.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vcot import logging
from vcot.errors import SettingsError, UsageError, VcotError
from vcot.stage import stop, summary

VARIABLE = "RANK_OF_STAGE"
"""What a launcher tells a process that it starts: the fields of `Rank`, as JSON."""

OLDEST_DRIVER = 580
"""Of NVIDIA's drivers for Linux, for CUDA 13, which the pinned torch is built for (NVIDIA's table of CUDA
compatibility); a test holds the two together."""

_FOREIGN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")
"""How other launchers number ranks. Libraries act on these on their own account, so ours do not see them."""

_WITHOUT_REASON = (1, 128 + signal.SIGABRT)
"""How ranks end that lost their connection to one that failed; it may need a moment longer to be gone itself."""
_FOR_A_REASON = 2.0
_FOR_ANOTHER_PODS_REASON = 15.0
"""Seconds in which one with a reason may show itself. In another pod it must end, and the cluster must see it, first:
a Job acts on the first exit code that it sees, and 1 is tried again where 78 is not."""
_AFTER_A_FAILURE = 5.0
"""Seconds that the others have to end; they wait for one that is gone, and have nothing to save."""


@dataclass(frozen=True)
class Rank:
    """One process of a world.

    number: 0 … size - 1 over all pods; local: the same within this pod. meeting: where they find each other
    (tcp://host:port). folder: what this pod's ranks share.
    """

    number: int
    local: int
    size: int
    meeting: str
    folder: str

    @classmethod
    def from_environment(cls) -> Rank | None:
        """Raises UsageError under another launcher: its ranks would all train alone."""
        told = os.environ.get(VARIABLE)
        if told is not None:
            return cls(**json.loads(told))
        if "TORCHELASTIC_RUN_ID" in os.environ:
            raise UsageError(
                "started by torchrun; start it once in each pod, without torchrun: it starts its ranks itself, "
                "as many as --nproc-per-node or PET_NPROC_PER_NODE say"
            )
        return None

    @property
    def last_word(self) -> Path:
        """Where it leaves its termination message for the launcher."""
        return Path(self.folder) / f"rank-{self.number}.json"


@dataclass(frozen=True)
class World:
    """nodes: pods (or computers) that take part; node: which of them this is; per_node: ranks in each."""

    per_node: int = 1
    nodes: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    gpus: int = 0

    @property
    def size(self) -> int:
        return self.nodes * self.per_node

    @classmethod
    def asked_for(cls, nproc: int | None, environment: Mapping[str, str] | None = None) -> World:
        """
        Args:
            nproc: ranks in this pod; None: what PET_NPROC_PER_NODE says, else as many as it has GPUs.

        Raises:
            SettingsError: a PET_* variable that makes no sense, or more ranks than GPUs.
        """
        environment = os.environ if environment is None else environment
        gpus = len(visible_gpus(environment))
        per_node = _per_node(environment, gpus) if nproc is None else nproc
        if 0 < gpus < per_node:
            raise SettingsError(f"{per_node} ranks and {gpus} GPU{'s' * (gpus > 1)}: each rank needs one of its own")
        nodes = 1 if environment.get("PET_STANDALONE") in ("1", "true") else _number(environment, "PET_NNODES", 1)
        if nodes == 1:
            return cls(per_node, gpus=gpus)
        for name in ("PET_NODE_RANK", "PET_MASTER_ADDR"):
            if not environment.get(name):
                raise SettingsError(f"{name} is missing: PET_NNODES={nodes}, and pods must find each other")
        node = _number(environment, "PET_NODE_RANK", 0, least=0)
        if node >= nodes:
            raise SettingsError(f"PET_NODE_RANK={node}: with PET_NNODES={nodes} it is 0 to {nodes - 1}")
        port = _number(environment, "PET_MASTER_PORT", 29500)
        return cls(per_node, nodes, node, environment["PET_MASTER_ADDR"], port, gpus)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Names of this pod's GPUs for CUDA_VISIBLE_DEVICES, without asking a library."""
    if (named := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip() not in ("", "-1", "NoDevFiles")]
    found = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return [str(number) for number in range(len([name for name in found if name.isdecimal()]))]


def _per_node(environment: Mapping[str, str], gpus: int) -> int:
    said = environment.get("PET_NPROC_PER_NODE", "")
    if said == "gpu" and not gpus:
        raise SettingsError("PET_NPROC_PER_NODE=gpu: there is no GPU here")
    if said in ("", "gpu", "auto"):
        return max(gpus, 1)
    return _number(environment, "PET_NPROC_PER_NODE", 1)


def _number(environment: Mapping[str, str], name: str, default: int, least: int = 1) -> int:
    said = environment.get(name) or str(default)
    if not said.isdecimal() or int(said) < least:
        more = " (a world that grows and shrinks is not supported)" if ":" in said else ""
        raise SettingsError(f"{name}={said}: a number from {least} on is needed{more}")
    return int(said)


# --- starting and waiting ---------------------------------------------------------------------------------


class RankFailed(VcotError):
    """A rank ended badly; its exit code is the stage's."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def run_ranks(world: World, folder: Path, grace: float, command: Sequence[str] | None = None) -> None:
    """Starts this pod's ranks and returns when all are done. However they end, the facts of rank 0's last word become
    this process's.

    Args:
        folder: on this disk, for what they share.
        grace: seconds between SIGTERM and SIGKILL that this process has; its ranks have a little less.
        command: what to start; default: what this process was started with.

    Raises:
        RankFailed: one of them failed; the others were ended.
        Interrupted: a stop was asked for; what has a safe form is saved.
    """
    stop.raise_if_requested("nothing was begun")
    port = world.port or _free_port()
    meeting, first = f"tcp://{world.address}:{port}", world.node * world.per_node
    ranks = [Rank(first + local, local, world.size, meeting, str(folder)) for local in range(world.per_node)]
    logging.get().info("starting ranks", here=world.per_node, of=world.size)
    started = {rank: _start(rank, world, command or _own_command()) for rank in ranks}
    try:
        failed = _wait(started, grace, several_pods=world.nodes > 1)
    finally:
        _end(list(started.values()))
    if ranks[0].number == 0:
        summary(**_facts(ranks[0]))
    stop.raise_if_requested("the last checkpoint counts")
    if failed is not None:
        why, code = _why(failed, started[failed]), _code(started[failed])
        raise RankFailed(f"rank {failed.number} of {world.size}: {why}", code)


def _own_command() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    assert spec is not None, "started by path; stages are started as python -m jobs.<stage>"
    return [sys.executable, "-m", spec.name, *sys.argv[1:]]


def _start(rank: Rank, world: World, command: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name not in _FOREIGN}
    environment[VARIABLE] = json.dumps(asdict(rank))
    # All cores for each would be too many threads for all of them.
    environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // world.per_node, 1)))
    if world.gpus:
        # It sees one GPU, its own. All that a single process does is then right for it too.
        environment["CUDA_VISIBLE_DEVICES"] = visible_gpus(os.environ)[rank.local]
    # A session of its own: Ctrl-C in a terminal reaches the launcher alone, which passes it on, once.
    dies = die_with_parent(signal.SIGTERM)
    return subprocess.Popen(list(command), env=environment, start_new_session=True, preexec_fn=dies)


def _wait(started: Mapping[Rank, subprocess.Popen[bytes]], grace: float, *, several_pods: bool) -> Rank | None:
    """Until all have ended, or one has failed; the one that failed first."""
    patience = _FOR_ANOTHER_PODS_REASON if several_pods else _FOR_A_REASON
    deadline = noticed = None
    while True:
        running = any(process.poll() is None for process in started.values())
        failed, now = _first_failure(started), time.monotonic()
        if deadline is not None:
            if not running:
                return failed
            if now > deadline:
                logging.get().warning("ranks did not end in time", grace_seconds=grace)
                return None
        elif stop.requested:
            deadline = now + max(grace - 2, 1)
            for process in started.values():
                process.send_signal(stop.signal or signal.SIGTERM)
        elif failed is not None:
            noticed = noticed or now
            if (
                _code(started[failed]) not in _WITHOUT_REASON
                or now - noticed > patience
                or not (running or several_pods)
            ):
                return failed
        elif not running:
            return None
        time.sleep(0.05)


def _first_failure(started: Mapping[Rank, subprocess.Popen[bytes]]) -> Rank | None:
    """Of several the one with a reason: the rest lost their connection to it."""
    failed = [rank for rank, process in started.items() if process.poll() not in (None, 0)]
    return min(failed, key=lambda rank: (_code(started[rank]) in _WITHOUT_REASON, rank.number), default=None)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM, patience (none left where time was up), SIGKILL."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + (0 if stop.requested else _AFTER_A_FAILURE)
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _code(process: subprocess.Popen[bytes]) -> int:
    """As a shell has it: 128 + the number of the signal that ended it."""
    code = process.returncode
    return code if code >= 0 else 128 - code


def _why(rank: Rank, process: subprocess.Popen[bytes]) -> str:
    if process.returncode < 0:
        return f"killed by signal {-process.returncode}"
    return str(_last_word(rank).get("message", f"ended with {process.returncode}; see its lines above"))


def _facts(rank: Rank) -> dict[str, Any]:
    return {name: value for name, value in _last_word(rank).items() if name not in summary.OWN}


def _last_word(rank: Rank) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(rank.last_word.read_bytes())
    except (OSError, ValueError):  # it was killed before it could say anything
        return {}
    return said


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


def die_with_parent(number: int) -> Callable[[], None] | None:
    """For `preexec_fn`: on Linux the kernel sends that signal when the starting process ends, however it does."""
    if sys.platform != "linux":
        return None
    prctl, parent, pr_set_pdeathsig = ctypes.CDLL(None, use_errno=True).prctl, os.getpid(), 1

    def in_the_child() -> None:
        prctl(pr_set_pdeathsig, number)
        if os.getppid() != parent:  # killed between fork and here
            os.kill(os.getpid(), number)

    return in_the_child
