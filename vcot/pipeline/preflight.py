"""What must be right before the first Job is created: the cluster's age, the templates, the settings of all stages.

Runs share the templates, and every `kubectl apply` replaces them: one that comes before this run's orchestrator has
started would otherwise decide what this run does. Two marks tell:

- A template names the ConfigMap that the lines of run.env of its apply stand in, and so does the pipeline Job of its
  own apply. Such a name ends in a hash of what it holds, the RUN_ID among it, and a Job's is never changed.
- An apply under the same RUN_ID leaves both names as they are. It shows in the times at which the API server saw the
  templates' specs change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from vcot import logging
from vcot.errors import SettingsError, UsageError
from vcot.pipeline.client import ClusterClient, Manifest, Refused
from vcot.pipeline.plan import Plan
from vcot.pipeline.rendering import STAMP, FrozenPlan, freeze, main_of

OLDEST = (1, 33)
"""What this needs of Kubernetes: retries of single shards are no beta any more."""
SLACK = timedelta(seconds=5)
"""How far the clocks of two API servers may be apart; nobody edits and applies again in less."""
YOUNG = timedelta(days=1)
"""An apply makes ConfigMaps first and then what names them."""
APPLY = 15.0
"""Seconds that an apply needs from the ConfigMaps, which it may find unchanged, to what names them."""

Get = Callable[[str, str], Manifest | None]
"""Kind and name → the object: of a cluster, or of what an overlay would apply to one."""
Validate = Callable[[str, Mapping[str, str]], list[str]]
"""Stage and variables → a line for each fault of its settings."""


def must_be_new_enough(cluster: ClusterClient) -> None:
    """
    Raises:
        SettingsError: this Kubernetes lacks what a run needs.
    """
    try:
        version = cluster.version()
    except Refused:
        return  # it does not say; what it cannot do it will refuse
    if version < OLDEST:
        found, needed = (".".join(map(str, v)) for v in (version, OLDEST))
        raise SettingsError(f"this cluster is Kubernetes {found}; vcot needs {needed} or later. Upgrade the cluster")


def templates_of(get: Get, namespace: str, plan: Plan) -> dict[str, Manifest]:
    """Stage → its CronJob.

    Raises:
        SettingsError: one is not there.
    """
    found = {stage: get("CronJob", f"stage-{stage}") for stage in dict.fromkeys(step.stage for step in plan.steps)}
    if missing := [stage for stage, template in found.items() if template is None]:
        words = "{0}: there is no CronJob stage-{0} in namespace {1}; apply the overlay again"
        raise SettingsError("\n".join(words.format(stage, namespace) for stage in missing))
    return {stage: template for stage, template in found.items() if template is not None}


def frozen_where_valid(
    get: Get, namespace: str, plan: Plan, templates: Mapping[str, Manifest], validate: Validate
) -> FrozenPlan:
    """The plan with its Jobs, where the settings of all stages are in order; nothing is created.

    Raises:
        SettingsError: with a line for each fault.
    """
    frozen = freeze(plan, templates)
    faults: list[str] = []
    first_steps = {step.stage: step for step in reversed(plan.steps)}
    for stage in templates:
        variables, missing = variables_of(get, namespace, stage, frozen.jobs[first_steps[stage].name])
        faults += missing or validate(stage, variables)
    if faults:
        raise SettingsError("\n".join(faults))
    return frozen


def variables_of(get: Get, namespace: str, stage: str, job: Manifest) -> tuple[dict[str, str], list[str]]:
    """What the stage will find in its environment, and a line for each ConfigMap that is not there.

    Secrets are left out: the orchestrator may not read them, and they hold no settings of ours.
    """
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"] if job["kind"] == "JobSet" else job["spec"]
    main = main_of(spec) or {}
    found: dict[str, str] = {}
    missing: list[str] = []

    def read(source: Manifest) -> Mapping[str, str]:
        there = get("ConfigMap", source["name"])
        if there is None and not source.get("optional"):
            missing.append(
                f"{stage}: its template names ConfigMap {source['name']}, which is not in namespace {namespace}; "
                "apply the overlay again"
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


# --- are the templates those that this run was applied with? ------------------------------------------------


def must_be_as_applied(cluster: ClusterClient, pipeline: str, templates: Mapping[str, Manifest]) -> None:
    """
    Args:
        pipeline: the name of the run's pipeline Job.
        templates: stage → its CronJob.

    Raises:
        UsageError: another apply has replaced one of them.
    """
    job = cluster.get("Job", pipeline)
    if job is None:  # deleted meanwhile, and all that would be made for it is removed at once
        return
    sources = (s for c in job["spec"]["template"]["spec"]["containers"] for s in c.get("envFrom") or [])
    mine = next((s["configMapRef"]["name"] for s in sources if "configMapRef" in s), None)
    stamps = {stage: _stamp(template) for stage, template in templates.items()}
    foreign = [stage for stage, name in stamps.items() if mine is not None and name != mine]
    applied = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
    later = [stage for stage, template in templates.items() if (at := _changed(template)) and at - applied > SLACK]
    begin_again = (
        f"`kubectl -n {cluster.namespace} delete job {pipeline}`, then apply its overlay again, and nothing else "
        f"before ConfigMap {pipeline.removeprefix('pipeline-')}-plan is there"
    )
    if foreign:
        stamp = stamps[foreign[0]]
        there = None if stamp is None else cluster.get("ConfigMap", stamp)
        run_id = ((there or {}).get("data") or {}).get("RUN_ID")
        whose = f"run {run_id}" if run_id else "another run, or of an older version of these manifests"
        raise UsageError(
            f"{_named(foreign)} of {whose}: applied after {pipeline} was, and before it had begun. It would run with "
            f"the other one's images and settings, so nothing was started. To start it: {begin_again}"
        )
    if later:
        raise UsageError(
            f"{_named(later)} not what {pipeline} was applied with: changed after that, and before it had begun, so "
            f"nothing was started. To start it with what is there now: {begin_again}"
        )


def _named(stages: list[str]) -> str:
    names = ", ".join(f"stage-{stage}" for stage in stages)
    return f"CronJob{'s' if len(stages) > 1 else ''} {names} {'are' if len(stages) > 1 else 'is'}"


def _stamp(template: Manifest) -> str | None:
    main = main_of(template["spec"]["jobTemplate"]["spec"]) or {}
    variables = (variable for variable in main.get("env") or [] if variable["name"] == STAMP)
    sources = ((variable.get("valueFrom") or {}).get("configMapKeyRef") or {} for variable in variables)
    return next((source.get("name") for source in sources), None)


def _changed(template: Manifest) -> datetime | None:
    """When somebody last changed what it says, and not only what is noted of it."""
    times = [
        datetime.fromisoformat(entry["time"])
        for entry in template["metadata"].get("managedFields") or []
        if "f:spec" in (entry.get("fieldsV1") or {}) and not entry.get("subresource") and entry.get("time")
    ]
    return max(times, default=None)


# --- settings of runs that are gone: each apply with other lines makes ConfigMaps of another name -----------


def remove_old_settings(cluster: ClusterClient, wait: Callable[[float], None]) -> None:
    """Deletes ConfigMaps with settings that no template, no Job and no frozen plan names; a day old, at least.

    No look before can tell of an apply that has just found one of them as it should be, so one follows: what is named
    by then is put back.
    """
    try:
        now = datetime.now(UTC)
        old = [
            one
            for one in cluster.list("ConfigMap", labels="vcot/holds=settings")  # what kustomize generates for us
            if now - datetime.fromisoformat(one["metadata"]["creationTimestamp"]) > YOUNG
        ]
        named = _naming(cluster) if old else ""  # after that list: what is named meanwhile is seen here
        gone = [one for one in old if one["metadata"]["name"] not in named]
        for one in gone:
            cluster.delete("ConfigMap", one["metadata"]["name"])
        if not gone:
            return
        try:
            wait(APPLY)
        finally:
            named = _naming(cluster)
            for one in gone:
                if one["metadata"]["name"] in named:
                    _put_back(cluster, one)
    except Refused as error:
        logging.get().warning(f"settings of earlier runs are left where they are: {error}")


def _naming(cluster: ClusterClient) -> str:
    """All that may name settings, as text; their names end in a hash, so that no other word holds one."""
    naming = [one for kind in ("CronJob", "Job") for one in cluster.list(kind)]
    return json.dumps(naming + list(cluster.list("ConfigMap", labels="vcot/run")))


def _put_back(cluster: ClusterClient, one: Manifest) -> None:
    metadata = {name: one["metadata"][name] for name in ("name", "labels", "annotations") if name in one["metadata"]}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": one.get("data") or {}}
    try:
        cluster.create("ConfigMap", manifest)
    except Refused as error:  # component hardening lets the orchestrator write no settings
        logging.get().warning(
            f"ConfigMap {metadata['name']} was removed while an apply named it again ({error}): apply once more"
        )
