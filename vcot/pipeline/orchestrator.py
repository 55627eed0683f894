"""The plan of a run, and what carries it out: it starts a step when its input exists, waits, reports, and can be
killed and started again.

It knows no Kubernetes and no processes: an executor starts the steps. Stages are safe to run twice, so the
orchestrator keeps no state of its own; what is done stands in storage.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vcot import logging
from vcot.errors import StageFailed, UsageError
from vcot.settings import PREFIX, STAGES
from vcot.stage import Stop

#: What each stage reads: the stage that makes it, and the setting that names it where it is not this run's.
INPUTS: Mapping[str, Mapping[str, str]] = {
    "convert": {},
    "distill": {"convert": "INPUT_URI"},
    "tokenize": {"distill": "INPUT_URI"},
    "train": {"tokenize": "INPUT_URI"},
    "evaluate": {"train": "SUBJECT", "convert": "SAMPLES_URI"},
}
OF_SHARDS = ("convert", "distill", "tokenize")
"""Stages that are three steps where shards are pods of their own."""
Part = Literal["all", "prepare", "shards", "finish"]

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
RETRY = (75, 143, 137, 1)
"""Exit codes after which trying again can help."""
ATTEMPTS = 3
PAUSE = 5.0
"""Seconds before the second attempt; doubles with each further one."""
#: What a stage says of itself that stands on the line anyhow, or is no news where a step went well.
_NO_NEWS = ("stage", "part", "shard", "exit", "message", "run", "event", "level", "timestamp", "seconds")


# --- the plan ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One stage of one run, or a part of it: the variables that it is started with, and the steps it waits for."""

    stage: str
    run_uri: str
    variables: Mapping[str, str]
    waits_for: tuple[str, ...]
    part: Part = "all"

    @property
    def name(self) -> str:
        """``train``, or ``convert-shards``: what the step is called in the log and in names of Jobs."""
        return self.stage if self.part == "all" else f"{self.stage}-{self.part}"

    @property
    def environment(self) -> dict[str, str]:
        """Every variable with our prefix that the stage sees; the run URI is added here and nowhere else."""
        part = {} if self.part == "all" else {f"{PREFIX}PART": self.part}
        return {**self.variables, f"{PREFIX}RUN_URI": self.run_uri, **part}


@dataclass(frozen=True)
class Plan:
    run_id: str
    run_uri: str
    steps: tuple[Step, ...]
    taken: Mapping[str, str] = field(default_factory=dict)
    """Stages that are taken from other runs → the URI of their folder."""


def make_plan(
    run_id: str, runs_uri: str, variables: Mapping[str, Mapping[str, str]] | None = None, *, only: Sequence[str] = (),
    until: str | None = None, from_run: Sequence[str] = (), in_parts: bool = False,
) -> Plan:  # fmt: skip
    """The steps of a run.

    Args:
        runs_uri: prefix under which runs stand; this one writes to ``<runs_uri>/<run_id>``.
        variables: stage → its variables (``VCOT_TRAIN_NUM_TRAIN_EPOCHS`` → "2").
        only: these stages alone; what they read must be there already.
        until: no stage after this one.
        from_run: ``other:convert``, …: that stage, and all before it, are taken from the run `other`.
        in_parts: whether a stage of shards is three steps (prepare, shards, finish), as on a cluster.

    Raises:
        UsageError: an unknown stage, or words that do not fit together.
    """
    runs_uri, taken = runs_uri.rstrip("/"), dict[str, str]()
    for word in from_run:
        other, _, last = word.partition(":")
        if not other or not last:
            raise UsageError(f"--from-run {word}: write it as run:stage, as in other:convert")
        if other == run_id:
            raise UsageError(f"--from-run {word}: that is this run itself")
        for stage in STAGES[: _position(last) + 1]:
            taken.setdefault(stage, f"{runs_uri}/{other}/{stage}")
    end = len(STAGES) if until is None else _position(until) + 1
    chosen = {_position(stage) for stage in only} or set(range(end))
    wanted = [stage for n, stage in enumerate(STAGES[:end]) if n in chosen and stage not in taken]
    if not wanted:
        raise UsageError("nothing is left of the plan: --only, --until and --from-run exclude every stage")
    steps: list[Step] = []
    last_of: dict[str, str] = {}
    for stage in wanted:
        elsewhere = {
            f"{PREFIX}{stage.upper()}_{setting}": taken[source]
            for source, setting in INPUTS[stage].items()
            if source in taken
        }
        waits_for = tuple(last_of[source] for source in INPUTS[stage] if source in last_of)
        parts: tuple[Part, ...] = ("prepare", "shards", "finish") if in_parts and stage in OF_SHARDS else ("all",)
        for part in parts:
            of_stage = (variables or {}).get(stage, {})
            steps.append(Step(stage, f"{runs_uri}/{run_id}", {**of_stage, **elsewhere}, waits_for, part))
            last_of[stage] = steps[-1].name
            waits_for = (steps[-1].name,)
    return Plan(run_id, f"{runs_uri}/{run_id}", tuple(steps), taken)


def _position(stage: str) -> int:
    if stage not in STAGES:
        raise UsageError(f"{stage}: no such stage; there are {', '.join(STAGES)}")
    return STAGES.index(stage)


# --- carrying it out ---------------------------------------------------------------------------------------


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

    def pause(self, seconds: float, stop: Stop) -> None:
        """Sleeps, and wakes up when somebody asks for a stop; raises Interrupted then."""
        until = self.now() + seconds
        while (left := until - self.now()) > 0:
            stop.raise_if_requested()
            self.sleep(min(left, 0.1))


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
    plan: Plan, executor: Executor, stop: Stop, *, attempts: int = ATTEMPTS, clock: Clock | None = None
) -> dict[str, Outcome]:
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
        attempt = 1
        while (outcome := _carried_out(step, executor, stop)).exit_code != 0:
            code = f" with exit code {in_words(outcome.exit_code)}" if outcome.exit_code is not None else ""
            if outcome.exit_code not in RETRY or attempt == attempts:
                tries = f" (tried {attempt} times)" if attempt > 1 else ""
                raise StageFailed(f"{step.name} failed{code}{tries}; {outcome.said}")
            wait = PAUSE * 2 ** (attempt - 1)
            logging.get().warning(f"{step.name} ended{code}; trying again in {wait:g} s")
            clock.pause(wait, stop)
            attempt += 1
        news = {name: value for name, value in outcome.summary.items() if name not in _NO_NEWS}
        logging.get().info(f"{step.name} is done", seconds=round(outcome.seconds, 1), **news)
        outcomes[step.name] = outcome
    return outcomes


def _carried_out(step: Step, executor: Executor, stop: Stop) -> Outcome:
    stop.raise_if_requested()
    executor.start(step)
    while (outcome := executor.poll(step)) is None:
        if stop.requested:
            stop.raise_if_requested(executor.leave(step))
    return outcome


def in_words(code: int) -> str:
    """``78 (wrong settings)``."""
    return f"{code} ({MEANING[code]})" if code in MEANING else str(code)
