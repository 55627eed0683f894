"""Runs a plan: starts a step when its input exists, waits, reports, and can be killed and started again.

It knows no Kubernetes and no processes: an executor starts the steps. Stages are safe to run twice, so the
orchestrator keeps no state of its own; what is done stands in storage.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from vcot import logging
from vcot.errors import StageFailed
from vcot.pipeline.plan import Plan, Step
from vcot.stage import Stop

#: What the exit code of a stage says, in words.
MEANING: Mapping[int, str] = {
    1: "an unforeseen error",
    4: "something is left to do",
    20: "a quality gate was not passed",
    21: "a budget is spent",
    64: "wrong usage",
    65: "its input breaks its contract",
    75: "storage or network, for now",
    78: "wrong settings",
    137: "killed",
    143: "interrupted",
}
#: Exit codes after which trying again can help.
RETRY = (75, 143, 137, 1)
ATTEMPTS = 3
PAUSE = 5.0
"""Seconds before the second attempt; doubles with each further one."""
#: What a stage says of itself that stands on the line anyhow, or is no news where a step went well.
_NOT_TOLD = ("stage", "part", "shard", "exit", "message", "run", "event", "level", "timestamp", "seconds")


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    exit_code: int | None
    """None where it failed and no process of it has told one."""
    seconds: float
    peak_mib: float | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    """A few numbers that the stage itself says about what it made."""
    said: str = "see its lines above"
    """Of a failed step: what went wrong, or where to read it."""


class Clock:
    """Time as it passes; tests have one of their own."""

    def now(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class Executor(Protocol):
    """What starts steps somewhere: processes on this computer, Jobs on a cluster."""

    def check(self, plan: Plan) -> None:
        """Validates the settings of every step before the first is started; raises SettingsError with all faults."""

    def start(self, step: Step) -> None:
        """Starts the step, or adopts it where it runs already."""

    def poll(self, step: Step) -> Outcome | None:
        """How the step ended, or None if it has not; looks for some seconds at most, so that a stop is noticed."""

    def leave(self, step: Step) -> str:
        """Makes a stop of the orchestrator safe for the running step, and says what became of that step."""


def orchestrate(
    plan: Plan, executor: Executor, stop: Stop, *, attempts: int = ATTEMPTS, pause: float = PAUSE,
    clock: Clock | None = None,
) -> dict[str, Outcome]:  # fmt: skip
    """Runs the plan; returns name of the step → how it ended.

    Args:
        attempts: how often a step is started whose exit code says that trying again can help; 1 where what
            starts the step tries again by itself, as a Job does.

    Raises:
        SettingsError: a step's settings are wrong; nothing was started.
        StageFailed: a step failed for good.
        Interrupted: somebody asked for a stop.
    """
    clock = clock or Clock()
    executor.check(plan)
    outcomes: dict[str, Outcome] = {}
    for number, step in enumerate(plan.steps, 1):
        logging.get().info(f"{number}/{len(plan.steps)} {step.name}")
        outcome = _until_done(step, executor, stop, attempts, pause, clock)
        told = {name: value for name, value in outcome.summary.items() if name not in _NOT_TOLD}
        logging.get().info(f"{step.name} is done", seconds=round(outcome.seconds, 1), **told)
        outcomes[step.name] = outcome
    return outcomes


def _until_done(step: Step, executor: Executor, stop: Stop, attempts: int, pause: float, clock: Clock) -> Outcome:
    attempt = 0
    while True:
        attempt += 1
        stop.raise_if_requested()
        executor.start(step)
        while (outcome := executor.poll(step)) is None:
            if stop.requested:
                stop.raise_if_requested(executor.leave(step))
        if outcome.exit_code == 0:
            return outcome
        code = f" with exit code {in_words(outcome.exit_code)}" if outcome.exit_code is not None else ""
        if outcome.exit_code not in RETRY or attempt == attempts:
            tries = f" (tried {attempt} times)" if attempt > 1 else ""
            raise StageFailed(f"{step.name} failed{code}{tries}; {outcome.said}")
        wait = pause * 2 ** (attempt - 1)
        logging.get().warning(f"{step.name} ended{code}; trying again in {wait:g} s")
        sleep(wait, clock, stop)


def sleep(seconds: float, clock: Clock, stop: Stop) -> None:
    """Sleeps, and wakes up when somebody asks for a stop; raises Interrupted then."""
    until = clock.now() + seconds
    while (left := until - clock.now()) > 0:
        stop.raise_if_requested()
        clock.sleep(min(left, 0.1))


def in_words(code: int) -> str:
    """``78 (wrong settings)``."""
    return f"{code} ({MEANING[code]})" if code in MEANING else str(code)
