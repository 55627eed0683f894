"""What must be right before the first Job is created: the cluster's age, the templates, the settings of all stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from vcot.errors import SettingsError
from vcot.pipeline.plan import Plan
from vcot.pipeline.port import Manifest, Refused
from vcot.pipeline.rendering import FrozenPlan, freeze, main_of

OLDEST = (1, 33)
"""What this needs of Kubernetes: retries of single shards are no beta any more."""

Judge = Callable[[str, Mapping[str, str]], list[str]]
"""Stage and variables → a line for each fault of its settings."""


class Shown(Protocol):
    """What a check looks at: a cluster, or what would be on one after an overlay was applied."""

    namespace: str

    def get(self, kind: str, name: str) -> Manifest | None:
        """The object, or None if there is none of that name."""

    def version(self) -> tuple[int, int]:
        """Of Kubernetes, as (1, 36)."""


def checked(
    cluster: Shown, plan: Plan, judge: Judge, inspect: Callable[[Mapping[str, Manifest]], None] = lambda templates: None
) -> FrozenPlan:
    """The plan with its Jobs, where all is in order; nothing is created.

    Args:
        inspect: is shown the templates that the Jobs are made from, and may refuse them.

    Raises:
        SettingsError: with a line for each fault.
    """
    _must_be_new_enough(cluster)
    templates = templates_of(cluster, plan)
    inspect(templates)
    frozen = freeze(plan, templates)
    faults: list[str] = []
    first_steps = {step.stage: step for step in reversed(plan.steps)}
    for stage in dict.fromkeys(step.stage for step in plan.steps):
        variables, missing = variables_of(cluster, stage, frozen.jobs[first_steps[stage].name])
        faults += missing or judge(stage, variables)
    if faults:
        raise SettingsError("\n".join(faults))
    return frozen


def templates_of(cluster: Shown, plan: Plan) -> dict[str, Manifest]:
    """Stage → its CronJob.

    Raises:
        SettingsError: one is not there.
    """
    templates, missing = {}, []
    for stage in dict.fromkeys(step.stage for step in plan.steps):
        template = cluster.get("CronJob", f"stage-{stage}")
        if template is None:
            missing.append(
                f"{stage}: there is no CronJob stage-{stage} in namespace {cluster.namespace}; apply the overlay again"
            )
        else:
            templates[stage] = template
    if missing:
        raise SettingsError("\n".join(missing))
    return templates


def variables_of(cluster: Shown, stage: str, job: Manifest) -> tuple[dict[str, str], list[str]]:
    """What the stage will find in its environment, and a line for each ConfigMap that is not there.

    Secrets are left out: the conductor may not read them, and they hold no settings of ours.
    """
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"] if job["kind"] == "JobSet" else job["spec"]
    main = main_of(spec) or {}
    found: dict[str, str] = {}
    missing: list[str] = []

    def read(source: Manifest) -> Mapping[str, str]:
        there = cluster.get("ConfigMap", source["name"])
        if there is None and not source.get("optional"):
            missing.append(
                f"{stage}: its template names ConfigMap {source['name']}, which is not in namespace "
                f"{cluster.namespace}; apply the overlay again"
            )
        return (there or {}).get("data") or {}

    for source in main.get("envFrom") or []:
        if "configMapRef" in source:
            prefix = source.get("prefix", "")
            found |= {prefix + name: value for name, value in read(source["configMapRef"]).items()}
    for variable in main.get("env") or []:
        key = (variable.get("valueFrom") or {}).get("configMapKeyRef")
        if key is not None and (value := read(key).get(key["key"])) is not None:
            found[variable["name"]] = value
        elif "value" in variable:
            found[variable["name"]] = variable["value"]
    return found, missing


def _must_be_new_enough(cluster: Shown) -> None:
    try:
        version = cluster.version()
    except Refused:
        return  # it does not say; what it cannot do it will refuse
    if version < OLDEST:
        found, needed = (".".join(map(str, v)) for v in (version, OLDEST))
        raise SettingsError(f"this cluster is Kubernetes {found}; vcot needs {needed} or later. Upgrade the cluster")
