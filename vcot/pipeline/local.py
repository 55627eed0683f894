"""The hand that runs stages as processes on this computer."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vcot import log
from vcot.errors import SettingsError
from vcot.pipeline.checking import command, environment, judge
from vcot.pipeline.conductor import Outcome
from vcot.pipeline.plan import Plan, Step
from vcot.storage import Store, put_folder

GRACE = 120.0
"""Seconds that a stage has to save after SIGTERM, as terminationGracePeriodSeconds on a cluster."""
LOOK = 0.5
"""Seconds that one look at a running stage takes."""


class LocalHand:
    """Each step is ``python -m jobs.<stage>`` with the step's variables."""

    def __init__(self) -> None:
        self._checked: Plan | None = None
        self._running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}

    def check(self, plan: Plan) -> None:
        if plan is self._checked:
            return
        with ThreadPoolExecutor() as pool:
            answers = list(pool.map(lambda step: judge(step.stage, step.environment), plan.steps))
        faults = [line for answer in answers for line in answer]
        if faults:
            raise SettingsError("\n".join(faults))
        self._checked = plan

    def start(self, step: Step) -> None:
        # A session of its own: Ctrl-C reaches the conductor alone, which then asks the stage to save.
        process = subprocess.Popen(
            command(step.stage), env=environment(step.environment), start_new_session=True, preexec_fn=_die_with_parent
        )
        self._running[step.name] = (process, time.monotonic())

    def poll(self, step: Step) -> Outcome | None:
        process, started = self._running[step.name]
        deadline = time.monotonic() + LOOK
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                process.returncode = code
                return Outcome(
                    exit_code=code if code >= 0 else 128 - code,
                    seconds=time.monotonic() - started,
                    peak_mib=usage.ru_maxrss / (1 if sys.platform != "darwin" else 1024) / 1024,
                )
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)

    def leave(self, step: Step) -> str:
        process, _ = self._running[step.name]
        log.get().info(f"asking {step.name} to save and stop")
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE
        while self.poll(step) is None:
            if time.monotonic() > deadline:
                log.get().warning(f"{step.name} did not stop within {GRACE:g} s; killed")
                process.kill()
        return "the running stage has saved what it had"


def _die_with_parent() -> None:
    """On Linux the kernel sends SIGTERM to the stage should the conductor be killed."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)


def publish(store: Store, folder: Path, uri: str) -> None:
    """Puts a local folder (example data, a base model) into storage, unless the very same is there."""
    mark = uri.rstrip("/") + ".published"  # beside the folder: its digest must not depend on times
    local = _fingerprint(folder)
    there = store.stat(mark)
    if there is not None and store.read(mark).decode() == local:
        return
    put_folder(store, folder, uri)
    store.write(mark, local.encode())
    log.get().info("put into storage", folder=str(folder), uri=uri)


def _fingerprint(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "\n".join(f"{p.relative_to(folder)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)
