"""The plan of a run: which steps, with which settings, and what each waits for. Plain values, no I/O but files.

On a laptop a stage is one step. On a cluster a stage that is made of shards is three (prepare, shards,
finish), because there the shards are pods of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from types import MappingProxyType
from typing import Literal

from vcot.errors import SettingsError, UsageError
from vcot.settings import PREFIX, STAGES

#: What each stage reads: the stage that makes it, and the setting that names it where it is not this run's.
INPUTS: Mapping[str, Mapping[str, str]] = {
    "convert": {},
    "distill": {"convert": "INPUT_URI"},
    "tokenize": {"distill": "INPUT_URI"},
    "train": {"tokenize": "INPUT_URI"},
    "evaluate": {"train": "TRAIN_URI", "convert": "SAMPLES_URI"},
}

Part = Literal["all", "prepare", "shards", "finish"]

#: The steps of a stage where shards are processes of their own; a stage that is not named is one step.
IN_PARTS: Mapping[str, tuple[Part, ...]] = dict.fromkeys(
    ("convert", "distill", "tokenize"), ("prepare", "shards", "finish")
)


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
    run_id: str,
    runs_uri: str,
    variables: Mapping[str, Mapping[str, str]],
    *,
    only: Sequence[str] = (),
    until: str | None = None,
    from_run: Sequence[str] = (),
    parts: Mapping[str, tuple[Part, ...]] = MappingProxyType({}),
) -> Plan:
    """The steps of a run.

    Args:
        runs_uri: prefix under which runs stand; this one writes to ``<runs_uri>/<run_id>``.
        variables: stage → its variables (``VCOT_TRAIN_NUM_TRAIN_EPOCHS`` → "2").
        only: these stages alone; what they read must be there already.
        until: no stage after this one.
        from_run: ``other:convert``, …: that stage, and all before it, are taken from the run `other`.
        parts: stage → its parts, each a step; a stage that is not named is one step.

    Raises:
        UsageError: an unknown stage, or words that do not fit together.
    """
    for name in [*only, *([until] if until else [])]:
        _known(name)
    run_uri = f"{runs_uri.rstrip('/')}/{run_id}"
    taken = _taken(runs_uri, run_id, from_run)
    wanted = [stage for stage in STAGES if stage not in taken]
    if only:
        wanted = [stage for stage in wanted if stage in only]
    if until:
        wanted = [stage for stage in wanted if STAGES.index(stage) <= STAGES.index(until)]
    if not wanted:
        raise UsageError("nothing is left of the plan: --only, --until and --from-run exclude every stage")
    steps: list[Step] = []
    last: dict[str, str] = {}
    for stage in wanted:
        elsewhere = {
            f"{PREFIX}{stage.upper()}_{setting}": taken[source]
            for source, setting in INPUTS[stage].items()
            if source in taken
        }
        waits_for = tuple(last[source] for source in INPUTS[stage] if source in wanted)
        for part in parts.get(stage, ("all",)):
            step = Step(stage, run_uri, {**variables.get(stage, {}), **elsewhere}, waits_for, part)
            steps.append(step)
            waits_for, last[stage] = (step.name,), step.name
    return Plan(run_id, run_uri, tuple(steps), taken)


def _known(stage: str) -> None:
    if stage not in STAGES:
        raise UsageError(f"{stage}: no such stage; there are {', '.join(STAGES)}")


def _taken(runs_uri: str, run_id: str, from_run: Sequence[str]) -> dict[str, str]:
    taken: dict[str, str] = {}
    for word in from_run:
        other, _, stage = word.partition(":")
        if not other or not stage:
            raise UsageError(f"--from-run {word}: write it as run:stage, as in other:convert")
        _known(stage)
        if other == run_id:
            raise UsageError(f"--from-run {word}: that is this run itself")
        for earlier in STAGES[: STAGES.index(stage) + 1]:
            taken.setdefault(earlier, f"{runs_uri.rstrip('/')}/{other}/{earlier}")
    return taken


def read_env_file(path: Path) -> dict[str, str]:
    """``NAME=value`` lines as kustomize's configMapGenerator reads them; # starts a comment line.

    Raises:
        SettingsError: a line is neither.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise SettingsError(f"{path}:{number}: {line!r} is not NAME=value")
        found[name.strip()] = value.strip()
    return found


def gather_variables(
    folders: Sequence[Path], environment: Mapping[str, str], places: Mapping[str, str] = MappingProxyType({})
) -> dict[str, dict[str, str]]:
    """Stage → variables: from ``<folder>/<stage>.env``, a later folder and then the environment beating an earlier.

    `places`: what ``${EXAMPLE_URI}`` and ``${BASE_URI}`` stand for in the files.
    """
    common = {
        name: value
        for name, value in environment.items()
        if name.startswith(PREFIX)
        and not name.startswith(tuple(f"{PREFIX}{s.upper()}_" for s in (*STAGES, "pipeline")))
    }
    variables: dict[str, dict[str, str]] = {}
    for stage in STAGES:
        mine = dict(common)
        for folder in folders:
            path = folder / f"{stage}.env"
            if path.exists():
                mine |= {name: Template(value).safe_substitute(places) for name, value in read_env_file(path).items()}
        prefix = f"{PREFIX}{stage.upper()}_"
        mine |= {name: value for name, value in environment.items() if name.startswith(prefix)}
        variables[stage] = mine
    return variables
