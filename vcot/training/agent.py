"""The agent of torch's elastic launcher, which starts the ranks of this pod and watches them.

It differs from torch's in this: ranks that merely lost their connection give one with a reason time to show itself;
the reason of one pod reaches the agents of the others through the store where they met; and a signal is for the ranks
alone, not for the processes that they started.
"""

from __future__ import annotations

import json
import logging as standard_logging
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, SubprocessContext
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.utils.distributed import get_free_port

from vcot import logging
from vcot.errors import Interrupted, KeyboardStop, TemporaryError, VcotError
from vcot.stage import stop
from vcot.training.launcher import RankFailed, World, last_word

WITHOUT_REASON = (1, 128 + signal.SIGABRT)
"""How ranks end that lost their connection to one that failed; it may need a moment longer to be gone itself."""
FOR_A_REASON = 5.0
FOR_ANOTHER_PODS_REASON = 15.0
"""Seconds in which one with a reason may show itself. A Job acts on the first exit code that it sees, and 1 is tried
again where 78 is not; so where a pod vanished with its store, the cluster must see that one end first."""
AFTER_A_FAILURE = 5.0
"""Seconds that the others have to end; they wait for one that is gone, and have nothing to save."""
FOR_THE_OTHER_PODS = 1800
"""Seconds that pods have to come: the last may still be fetching its image."""
TO_BE_HEARD = 1.0
"""Seconds that the store outlives a failure; all agents look into it ten times a second."""
_REASON = "reason"

# What torch logs (tracebacks, tables of failures) is said in one line of ours.
standard_logging.getLogger("torch.distributed.elastic").propagate = False
standard_logging.getLogger("torch.distributed.elastic").addHandler(standard_logging.NullHandler())


class Agent(LocalElasticAgent):
    """Runs in a thread of its own (`watch`); `failure` is then why the ranks failed, or None.

    grace: seconds to save, for ranks of which one was asked to stop.
    """

    def __init__(self, world: World, folder: Path, command: Sequence[str], grace: float) -> None:
        port = world.port or get_free_port()  # type: ignore[no-untyped-call]
        meeting = StaticTCPRendezvous(world.address, port, world.node, world.nodes, "ranks", FOR_THE_OTHER_PODS)
        program, *arguments = command
        spec = WorkerSpec(
            role="rank", local_world_size=world.per_node, rdzv_handler=meeting, max_restarts=0,
            # torch fills in ${local_rank}.
            entrypoint=program, args=tuple(each.replace("$", "$$") for each in arguments),
            virtual_local_rank=world.gpus > 0,  # it sees one GPU, its own, and all that a single process does is right
        )  # fmt: skip
        super().__init__(spec, DefaultLogsSpecs(str(folder / "elastic")), exit_barrier_timeout=FOR_ANOTHER_PODS_REASON)
        self.failure: VcotError | None = None
        self._world, self._folder, self._grace = world, folder, grace
        self._noticed: float | None = None
        self._acting = threading.Lock()
        """Held while ranks are started, ended, or asked how they are, so that they hear of a stop once."""

    def watch(self) -> None:
        """Until all ranks have ended. Ends them before it returns."""
        try:
            self.run()
        except SignalException:
            pass  # asked to stop before ranks were started
        except DistError as error:
            where, why = f"{self._world.address}:{self._world.port}", str(error).splitlines()[0]
            self.failure = TemporaryError(f"{self._world.nodes} pods did not meet at {where}: {why}")

    def stop(self, number: signal.Signals, seconds: float) -> None:
        """Ends the ranks, and lets no others be started."""
        with self._acting:
            self._shutdown(number, seconds)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        with self._acting:
            if stop.requested:
                raise SignalException("nothing was begun", signal.SIGTERM)
            started: dict[int, Any] = super()._start_workers(worker_group)
            return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if _stopping():
            return RunResult(WorkerState.HEALTHY)
        failed, failure = self._failed(), self._told(worker_group)
        if failure is None and failed:
            if self._reason_may_come(failed):
                return RunResult(WorkerState.HEALTHY)
            failure = self._first(failed)
            self._tell(worker_group, failure)
        if failure is None:
            with self._acting:
                if _stopping():
                    return RunResult(WorkerState.HEALTHY)
                result: RunResult = super()._monitor_workers(worker_group)
                return result
        self.failure = failure
        stopped = failure.exit_code in (Interrupted.exit_code, KeyboardStop.exit_code)
        self._shutdown(signal.SIGTERM, self._grace if stopped else AFTER_A_FAILURE)
        if self._world.nodes > 1 and self._world.node == 0:
            time.sleep(TO_BE_HEARD)
        return RunResult(WorkerState.FAILED)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: float = 30) -> None:
        # torch signals the whole session of a rank. Of the processes that load data there, one that ends so looks to
        # its rank like a failure, and the rank fails instead of saving.
        processes = self._processes()
        for process in processes:
            process.send_signal(death_sig)
        until = time.monotonic() + timeout
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(until - time.monotonic(), 0))
        if any(process.poll() is None for process in processes):
            logging.get().warning("ranks did not end in time", seconds=timeout)
        super()._shutdown(signal.SIGKILL, 1)

    def _processes(self) -> list[subprocess.Popen[bytes]]:
        """The ranks that were started, by their number in this pod."""
        if not isinstance(self._pcontext, SubprocessContext):
            return []
        return [handler.proc for _, handler in sorted(self._pcontext.subprocess_handlers.items())]

    def _failed(self) -> dict[int, int]:
        """Rank → exit code, as a shell has it: 128 + the number of the signal that ended it."""
        first = self._world.node * self._world.per_node
        codes = {first + local: process.poll() for local, process in enumerate(self._processes())}
        return {number: code if code > 0 else 128 - code for number, code in codes.items() if code}

    def _reason_may_come(self, failed: dict[int, int]) -> bool:
        self._noticed = self._noticed or time.monotonic()
        several = self._world.nodes > 1
        if any(code not in WITHOUT_REASON for code in failed.values()):
            return False
        patience = FOR_ANOTHER_PODS_REASON if several else FOR_A_REASON
        running = any(process.poll() is None for process in self._processes())
        return time.monotonic() - self._noticed < patience and (running or several)

    def _first(self, failed: dict[int, int]) -> RankFailed:
        """Of several the one with a reason: the rest lost their connection to it."""
        number = min(failed, key=lambda number: (failed[number] in WITHOUT_REASON, number))
        process = self._processes()[number % self._world.per_node]
        if process.returncode < 0:
            why = f"killed by signal {-process.returncode}"
        else:
            said = last_word(self._folder, number)
            why = str(said.get("message", f"ended with {process.returncode}; see its lines above"))
        return RankFailed(f"rank {number} of {self._world.size}: {why}", failed[number])

    def _tell(self, worker_group: WorkerGroup, failure: RankFailed) -> None:
        """The agents of the other pods, whose ranks may wait for long before they notice."""
        if self._world.nodes > 1 and failure.exit_code not in WITHOUT_REASON:
            store: Any = worker_group.store
            with suppress(DistError):
                store.set(_REASON, json.dumps([str(failure), failure.exit_code]))

    def _told(self, worker_group: WorkerGroup) -> RankFailed | None:
        if self._world.nodes > 1:
            store: Any = worker_group.store
            with suppress(DistError):  # the pod that holds the store is gone, and its ranks with it
                if store.check([_REASON]):
                    return RankFailed(*json.loads(store.get(_REASON)))
        return None


def _stopping() -> bool:
    """Then run_ranks ends the ranks, and how they end is no failure."""
    return stop.requested
