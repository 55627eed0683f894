"""The chain: as processes on this computer, or as Jobs on a Kubernetes cluster."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from vcot import logging
from vcot.errors import SettingsError
from vcot.pipeline.estimate_options import EstimateOptions
from vcot.pipeline.orchestrator import Clock, Plan, make_plan, orchestrate
from vcot.settings import PREFIX, STAGES, CommaSeparated, Declared, Group, setting, variable
from vcot.stage import launch, stop

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = ROOT / "k8s" / "base" / "settings"


class PipelineSettings(EstimateOptions, Declared):
    """Runs convert, distill, tokenize, train and evaluate one after another.

    --where local       Every stage is a process with settings of its own: VCOT_<STAGE>_<NAME> in the environment
                        beats the example's settings/<stage>.env, which beats k8s/base/settings/<stage>.env.
                        Stop with Ctrl-C; the same command goes on where it stopped.
    --where kubernetes  Every stage is a Job (or three: prepare, shards, finish) made from the template stage-<stage>.
                        This is what the Job pipeline-<RUN_ID> of k8s/ runs; stopped, it leaves the Jobs running, and
                        the next one adopts them.

    All settings are checked before the first stage starts.
    """

    stage: ClassVar[str] = "pipeline"
    groups: ClassVar[tuple[Group, ...]] = (Group("the plan", tuple(EstimateOptions.model_fields)),)

    run_id: str | None = setting(
        None,
        "name of this run; a finished run of that name is not made again. Default: first; on a cluster what follows "
        "pipeline- in the name of the pipeline's Job",
        pattern=r"^[A-Za-z0-9][\w.-]*$",
    )
    where: Literal["local", "kubernetes"] = setting(
        "local", "where the stages run: as processes on this computer, or as Jobs on the cluster that this runs in"
    )
    runs_uri: str = setting("s3://vcot/runs", "prefix under which runs stand", min_length=1)
    example: str | None = setting(
        None, "folder with example data and its settings/<stage>.env; put into storage before the run"
    )
    base: str | None = setting(None, "folder of a base model that is put into storage before the run")
    server: Literal["own", "none"] = setting(
        "own", "own: start an S3 server (MinIO) for this run; none: use what the AWS_* variables say"
    )
    local_folder: Path = setting(Path(".local"), "where the own server keeps its data, and reports are put for reading")
    only: CommaSeparated = setting((), "these stages alone, as train,evaluate")
    until: str | None = setting(None, "no stage after this one")
    from_run: CommaSeparated = setting((), "take a stage and all before it from another run, as other:convert")
    dry_run: bool = setting(False, "show the plan, start nothing")
    pending_timeout: float = setting(
        1800.0, "kubernetes: how long a step may wait for a pod to run (a node, an image, a quota) before the run "
        "fails", unit="seconds", gt=0,
    )  # fmt: skip

    @property
    def run_name(self) -> str:
        return self.run_id or "first"

    @model_validator(mode="after")
    def _fit_the_place(self) -> Self:
        if self.where == "kubernetes" and (given := [n for n in ("example", "base") if getattr(self, n) is not None]):
            raise ValueError(f"--{given[0]} is for --where local; on a cluster the settings name URIs")
        return self


def run(settings: PipelineSettings) -> None:
    if settings.plan:
        estimate_run(settings)
        return
    {"local": run_here, "kubernetes": run_on_cluster}[settings.where](settings)


def run_on_cluster(settings: PipelineSettings) -> None:
    from vcot.pipeline.client import connect
    from vcot.pipeline.executor import KubernetesExecutor, RunIdentity
    from vcot.pipeline.run_state import RunStorage
    from vcot.storage import Store

    run_id, namespace, owner = RunIdentity.of(os.environ, settings.run_id)
    logging.bind(run=run_id)
    if "://" not in settings.runs_uri:
        raise SettingsError(f"{settings.runs_uri}: pods share no folder; write --runs-uri as s3://bucket/prefix")
    plan = make_plan(
        run_id, settings.runs_uri, only=settings.only, until=settings.until, from_run=settings.from_run, in_parts=True
    )
    clock = Clock()
    executor = KubernetesExecutor(
        connect(namespace, clock, stop), RunStorage(Store()), owner, clock=clock, stop=stop,
        pending_timeout=settings.pending_timeout,
    )  # fmt: skip
    if settings.dry_run:
        executor.check(plan)
        _show(plan)
        return
    begun = clock.now()
    with executor.run(plan) as plan:
        orchestrate(plan, executor, stop, attempts=1, clock=clock)  # a Job tries again by itself
    logging.get().info("finished", seconds=round(clock.now() - begun), made=plan.run_uri)


def run_here(settings: PipelineSettings) -> None:
    from rich.console import Console

    from vcot.pipeline.local import LocalExecutor, download_pages, publish
    from vcot.storage import Store

    folders = {"EXAMPLE_URI": settings.example, "BASE_URI": settings.base}
    places = {name: _place(name, folder, settings.runs_uri) for name, folder in folders.items() if folder is not None}
    env_files = [SETTINGS] + ([Path(settings.example) / "settings"] if settings.example else [])
    plans = plans_here(settings, env_files, places)
    executor = LocalExecutor()
    for plan in plans:
        executor.check(plan)  # before anything is built, started or put into storage
    if settings.dry_run:
        for plan in plans:
            _show(plan)
        return
    begun = time.monotonic()
    with _storage(settings):
        for name, uri in places.items():
            publish(Store(), Path(str(folders[name])), uri)
        *before, plan = plans
        for first in before:  # whole already, each of its stages says so, or that its settings were others
            logging.get().info(f"first the run that this one begins with, {first.run_id}")
            orchestrate(first, executor, stop)
        outcomes = orchestrate(plan, executor, stop)
        folder = settings.local_folder / "runs" / settings.run_name
        download_pages({step.stage: f"{step.run_uri}/{step.stage}" for step in plan.steps}, folder)
    seconds, console = time.monotonic() - begun, Console(file=sys.stdout)
    for stage, outcome in outcomes.items():
        peak = f", peak memory {outcome.peak_mib:,.0f} MiB" if outcome.peak_mib else ""
        console.print(f"{stage:9} {outcome.seconds:7.1f} s{peak}", highlight=False)
    console.print(f"run {plan.run_id}: {seconds:.0f} s in all")
    page = folder / "evaluate-report.html"
    if page.exists():
        console.print(f"report with images: {page.resolve()}", soft_wrap=True, highlight=False)
    logging.get().info("finished", seconds=round(seconds))


def estimate_run(settings: PipelineSettings) -> None:
    """Says what a run would take, by the settings that it would have, and starts nothing."""
    from rich.console import Console

    from vcot.pipeline.local import LocalExecutor

    plans, as_run = plans_to_estimate(settings)
    for plan in plans:
        LocalExecutor(_planned_environment(settings)).check(plan)  # the refusals of the stages themselves
    stages = settings_by_stage(plans)
    if missing := [stage for stage in STAGES if stage not in stages]:
        raise SettingsError(f"--plan is of a whole run; --only, --until and --from-run leave out {', '.join(missing)}")
    fingerprints = {stage: each.fingerprint() for stage, each in settings_by_stage(as_run).items()}
    if settings.base is not None:  # also of an overlay, whose base lies elsewhere
        stages["train"] = type(stages["train"]).of(
            stages["train"].model_dump(exclude_unset=True) | {"base_uri": str(_folder("BASE_URI", settings.base))}
        )
    from vcot.pipeline.estimate import estimate
    from vcot.pipeline.estimate_table import show

    with contextlib.ExitStack() as within:
        if "://" in plan.run_uri and _has_storage(settings):
            within.enter_context(_storage(settings))
        found = estimate(stages, settings, fingerprints)
    if settings.overlay is not None and settings.server == "own":  # the cluster stores its runs elsewhere
        found = replace(found, measured=())
    show(found, stages["train"], Console(width=None if sys.stdout.isatty() else 100))
    if len(plans) > 1:
        Console().print(f"Before it comes {plans[0].run_id}, by imitation; TRAIN_METHOD=sft says what that takes.")
    if settings.plan_json is not None:
        settings.plan_json.write_text(found.to_json() + "\n")


def plans_to_estimate(settings: PipelineSettings) -> tuple[list[Plan], list[Plan]]:
    """Return the plans of a run twice: reading the folders of this computer, and reading their copies in storage.

    The first are estimated, because nothing is put into storage; the second are what the run itself has.
    """
    folders = {"EXAMPLE_URI": settings.example, "BASE_URI": settings.base}
    given = {name: folder for name, folder in folders.items() if folder is not None}
    env_files = [SETTINGS] + ([Path(settings.example) / "settings"] if settings.example else [])
    if settings.overlay is not None:
        from vcot.pipeline.estimate import settings_folders

        env_files = settings_folders(SETTINGS, settings.overlay)
    here = {name: str(_folder(name, folder)) for name, folder in given.items()}
    stored = {name: _place(name, folder, settings.runs_uri) for name, folder in given.items()}
    return plans_here(settings, env_files, here), plans_here(settings, env_files, stored)


def settings_by_stage(plans: Sequence[Plan]) -> dict[str, Any]:
    """Return stage → its settings; those of the last plan that has the stage."""
    return {step.stage: _settings_of(step.stage, step.environment) for plan in plans for step in plan.steps}


def _planned_environment(settings: EstimateOptions) -> dict[str, str]:
    """Return what a pod with the planned GPUs would find in its environment."""
    gpus = 0 if settings.gpu == "cpu" else settings.gpus
    visible = ",".join(map(str, range(gpus)))
    return {"CUDA_VISIBLE_DEVICES": visible, "PET_NPROC_PER_NODE": str(settings.gpus), "PET_NNODES": "1"}


def _has_storage(settings: PipelineSettings) -> bool:
    """Whether runs of this computer have left anything: else no server is started to be told so."""
    return settings.server == "own" and (settings.local_folder / "s3").is_dir()


def _settings_of(stage: str, variables: Mapping[str, str]) -> Any:
    """A stage's settings as it would have them of these variables; its module is found by its name, as a process is."""
    module = importlib.import_module(f"jobs.{stage}")
    (kind,) = {
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Declared) and getattr(value, "stage", None) == stage
    }
    names = {variable(kind, name): name for name in kind.model_fields}
    return kind.of({names[name]: value for name, value in variables.items() if name in names and value})


def plans_here(settings: PipelineSettings, env_files: Sequence[Path], places: Mapping[str, str]) -> list[Plan]:
    """The plan of this run, and before it that of the run that it begins with, where there is one.

    A training from rewards (TRAIN_METHOD=grpo) begins with the model of run <id>-sft, unless --from-run names another.
    Files <stage>-grpo.env beside <stage>.env hold what both of them want otherwise; train-grpo.env, and what stands on
    the command line of train, is for this run alone.
    """
    from vcot.pipeline.local import gather_variables

    ours, method = (f"{PREFIX}TRAIN_{name}" for name in ("", "METHOD"))
    chosen = gather_variables(env_files, os.environ, places)["train"].get(method, "sft")
    methods = dict.fromkeys(STAGES, chosen)
    named = gather_variables(env_files, os.environ, places, methods)
    first = f"{settings.run_name}-sft"
    begins_with = chosen != "sft" and not settings.from_run and f"{ours}FROM_URI" not in named["train"]
    plan = make_plan(
        settings.run_name, settings.runs_uri, named, only=settings.only, until=settings.until,
        from_run=(f"{first}:tokenize",) if begins_with else settings.from_run,
    )  # fmt: skip
    if not begins_with or "train" not in [step.stage for step in plan.steps]:
        return [plan]
    elsewhere = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    del methods["train"]
    before = gather_variables(env_files, elsewhere, places, methods)
    if method in before["train"]:  # train.env says it of both
        before["train"][method] = "sft"
    return [make_plan(first, settings.runs_uri, before, until="train"), plan]


def _folder(name: str, folder: str) -> Path:
    path = Path(folder).resolve()
    if not path.is_dir():
        raise SettingsError(f"--{name.removesuffix('_URI').lower()}={folder}: there is no such folder")
    return path


def _place(name: str, folder: str, runs_uri: str) -> str:
    """Where a folder is put, beside the runs: what EXAMPLE_URI and BASE_URI stand for in settings files."""
    path = _folder(name, folder)
    scheme, separator, rest = runs_uri.rpartition("://")
    place = f"{scheme}{separator}{rest.split('/')[0]}" if separator else str(Path(rest).parent)
    return f"{place}/examples/{path.name}"


@contextlib.contextmanager
def _storage(settings: PipelineSettings) -> Iterator[None]:
    """The S3 that all stages speak to, named by the standard AWS variables alone."""
    if settings.server == "none":
        yield
        return
    try:
        from tools.s3server import running_s3
    except ModuleNotFoundError:
        raise SettingsError(
            "--server own: the S3 server is started from a checkout, and this is none; name yours by the AWS_* "
            "variables and say --server none"
        ) from None

    with running_s3(settings.local_folder / "s3", settings.local_folder / "s3.log") as server:
        os.environ.update(server.env)
        yield


def _show(plan: Plan) -> None:
    from rich.console import Console

    console = Console()
    for stage, uri in plan.taken.items():
        console.print(f"[dim]{stage}: taken from {uri}[/]")
    for step in plan.steps:
        waits = f", after {' and '.join(step.waits_for)}" if step.waits_for else ""
        console.print(f"[bold]{step.name}[/] → {step.run_uri}/{step.stage}{waits}", highlight=False)
        for name, value in sorted(step.variables.items()):
            console.print(f"    {name}={value}", highlight=False)


if __name__ == "__main__":
    launch(PipelineSettings, run)
