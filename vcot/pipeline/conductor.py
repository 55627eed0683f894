"""A small conductor: starts a stage when its input exists, waits, reports, and can be killed and started again.

It knows no Kubernetes and no processes: a hand does the starting. Stages are safe to run twice, so
the conductor keeps no state of its own; what is done stands in storage.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from vcot import log
from vcot.errors import StageFailed
from vcot.pipeline.plan import Plan, Step
from vcot.stage import Stop

#: Exit codes after which trying again can help: storage or network for now, interrupted, unforeseen.
RETRY = {75: "storage or network, for now", 143: "interrupted", 137: "killed", 1: "an unforeseen error"}
ATTEMPTS = 3
PAUSE = 5.0
"""Seconds before the second attempt; doubles with each further one."""


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    exit_code: int
    seconds: float
    peak_mib: float | None = None


class Hand(Protocol):
    """What starts stages somewhere: processes on this computer, Jobs on a cluster."""

    def check(self, plan: Plan) -> None:
        """Judges the settings of every step before the first is started; raises SettingsError with all faults."""

    def start(self, step: Step) -> None:
        """Starts the step, or adopts it where it runs already."""

    def poll(self, step: Step, seconds: float) -> Outcome | None:
        """How the step ended, or None if it has not after this long."""

    def cancel(self, step: Step) -> None:
        """Asks the step to save and stop, and waits until it has."""


def conduct(
    plan: Plan, hand: Hand, stop: Stop, *, attempts: int = ATTEMPTS, pause: float = PAUSE
) -> dict[str, Outcome]:
    """Runs the plan; returns stage → how it ended.

    Raises:
        SettingsError: a step's settings are wrong; nothing was started.
        StageFailed: a stage failed for good.
        Interrupted: somebody asked for a stop; the running stage has saved.
    """
    hand.check(plan)
    outcomes: dict[str, Outcome] = {}
    for number, step in enumerate(plan.steps, 1):
        log.get().info(f"{number}/{len(plan.steps)} {step.stage}")
        outcomes[step.stage] = _until_done(step, hand, stop, attempts, pause)
    return outcomes


def _until_done(step: Step, hand: Hand, stop: Stop, attempts: int, pause: float) -> Outcome:
    for attempt in range(1, attempts + 1):
        outcome = _once(step, hand, stop)
        if outcome.exit_code == 0:
            return outcome
        reason = RETRY.get(outcome.exit_code)
        if reason is None or attempt == attempts:
            tries = f" (tried {attempt} times)" if attempt > 1 else ""
            raise StageFailed(f"{step.stage} failed with exit code {outcome.exit_code}{tries}; see its lines above")
        wait = pause * 2 ** (attempt - 1)
        log.get().warning(f"{step.stage} ended with {outcome.exit_code} ({reason}); trying again in {wait:g} s")
        _sleep(wait, stop)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _once(step: Step, hand: Hand, stop: Stop) -> Outcome:
    stop.raise_if_requested()
    hand.start(step)
    while (outcome := hand.poll(step, 0.5)) is None:
        if stop.requested:
            hand.cancel(step)
            stop.raise_if_requested("the running stage has saved what it had")
    return outcome


def _sleep(seconds: float, stop: Stop) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stop.raise_if_requested()
        time.sleep(0.1)
