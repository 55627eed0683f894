"""A training done by several processes at once, its ranks: one for each GPU, in one pod or in several.

    World.asked_for(nproc)            how many, from the setting and the PET_* variables that Kubernetes operators set
    run_ranks(world, folder, grace)   starts those of this pod, waits, and ends as the first that failed
    Rank.from_environment()           in a started process: which one it is

torch's elastic agent (vcot/training/agent.py) runs in this process, and starts the ranks with the command that this
process was started with. Where torchrun makes 1 of every end, a pod here ends with the exit code of the rank that had
a reason, so that a Job tells wrong settings (78) from a lost connection (75) and from a stop (143). A world has a
fixed size; if a rank is lost, the whole stage starts again from its last checkpoint. This module imports no torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcot import logging
from vcot.errors import SettingsError, UsageError, VcotError
from vcot.models.gpus import visible_gpus
from vcot.stage import die_with_parent, stop, summary

FOLDER, LAUNCHER = "RANKS_FOLDER", "RANKS_LAUNCHER"
"""Variables that ranks are given beside torch's own (RANK, WORLD_SIZE, MASTER_ADDR …): what they share on this disk,
and the process that started them."""


@dataclass(frozen=True)
class Rank:
    """One process of a world.

    number: 0 … size - 1 over all pods; local: the same within this pod. folder: what this pod's ranks share.
    """

    number: int
    local: int
    size: int
    folder: str

    @classmethod
    def from_environment(cls) -> Rank | None:
        """Which rank this process is, or None; from here on it does not outlive its launcher.

        Raises UsageError under another launcher: its ranks would all train alone.
        """
        environment = os.environ
        if FOLDER in environment:
            # Not SIGTERM: to save, ranks need each other and the store that the launcher held.
            if (die := die_with_parent(signal.SIGKILL, int(environment[LAUNCHER]))) is not None:
                die()
            number, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            # LOCAL_RANK numbers the GPUs that a process sees, and each rank sees one.
            return cls(number, number % int(environment["LOCAL_WORLD_SIZE"]), size, environment[FOLDER])
        if "TORCHELASTIC_RUN_ID" in environment:
            raise UsageError(
                "started by torchrun; start it once in each pod, without torchrun: it starts its ranks itself, "
                "as many as --nproc-per-node or PET_NPROC_PER_NODE say"
            )
        return None

    @property
    def last_word(self) -> Path:
        """Where it leaves its termination message for the launcher."""
        return _last_word_path(Path(self.folder), self.number)


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
        TemporaryError: the pods did not find each other.
        Interrupted: a stop was asked for; what has a safe form is saved.
    """
    stop.raise_if_requested("nothing was begun")
    from vcot.training.agent import Agent

    _prepare_environment(world, folder)
    logging.get().info("starting ranks", here=world.per_node, of=world.size)
    patience = max(grace - 2, 1)
    agent = Agent(world, folder, command or _own_command(), patience)
    # The agent waits inside torch, for other pods above all, where Python cannot act on a signal. This thread can.
    watching = threading.Thread(target=agent.watch, daemon=True)
    watching.start()
    while watching.is_alive() and not stop.requested:
        watching.join(0.1)
    if stop.requested:
        agent.stop(signal.Signals(stop.signal or signal.SIGTERM), patience)
    if world.node == 0:
        summary(**{name: value for name, value in last_word(folder, 0).items() if name not in summary.OWN})
    stop.raise_if_requested("the last checkpoint counts")
    if agent.failure is not None:
        raise agent.failure


def last_word(folder: Path, number: int) -> dict[str, Any]:
    """The termination message of a rank; empty where it was killed before it could say anything."""
    try:
        said: dict[str, Any] = json.loads(_last_word_path(folder, number).read_bytes())
    except (OSError, ValueError):
        return {}
    return said


def _last_word_path(folder: Path, number: int) -> Path:
    return folder / f"rank-{number}.json"


def _prepare_environment(world: World, folder: Path) -> None:
    """What ranks inherit. torch sets RANK and its like itself, whatever another launcher has left here."""
    os.environ |= {FOLDER: str(folder), LAUNCHER: str(os.getpid())}
    # All cores for each would be too many threads for all of them.
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // world.per_node, 1)))
    if world.gpus:  # torch deals these out, without a look at whether they are GPUs
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible_gpus(os.environ))


def _own_command() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    assert spec is not None, "started by path; stages are started as python -m jobs.<stage>"
    return [sys.executable, "-m", spec.name, *sys.argv[1:]]
