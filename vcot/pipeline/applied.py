"""Are the templates on the cluster those that this run was applied with?

Runs share the templates, and every `kubectl apply` replaces them: one that comes before this run's conductor has
started would otherwise decide what this run does. Two marks tell:

- A template names the ConfigMap that the lines of run.env of its apply stand in, and so does the pipeline Job of its
  own apply. Such a name ends in a hash of what it holds, the RUN_ID among it, and a Job's is never changed.
- An apply under the same RUN_ID leaves both names as they are. It shows in the times at which the API server saw the
  templates' specs change.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from vcot.errors import UsageError
from vcot.pipeline.port import Cluster, Manifest
from vcot.pipeline.rendering import STAMP, main_of

SLACK = timedelta(seconds=5)
"""How far the clocks of two API servers may be apart; nobody edits and applies again in less."""


def must_be_as_applied(cluster: Cluster, pipeline: str, templates: Mapping[str, Manifest]) -> None:
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
    mine = _run_env(job["spec"])
    others = {stage: _stamp(template) for stage, template in templates.items()}
    foreign = [stage for stage, name in others.items() if mine is not None and name != mine]
    applied = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
    later = [stage for stage, template in templates.items() if (at := _changed(template)) and at - applied > SLACK]
    begin_again = (
        f"`kubectl -n {cluster.namespace} delete job {pipeline}`, then apply its overlay again, and nothing else "
        f"before ConfigMap {pipeline.removeprefix('pipeline-')}-plan is there"
    )
    if foreign:
        stamp = others[foreign[0]]
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


def _run_env(job_spec: Manifest) -> str | None:
    """The ConfigMap that the conductor has its own settings from."""
    for container in job_spec["template"]["spec"]["containers"]:
        for source in container.get("envFrom") or []:
            if "configMapRef" in source:
                return str(source["configMapRef"]["name"])
    return None


def _stamp(template: Manifest) -> str | None:
    main = main_of(template["spec"]["jobTemplate"]["spec"]) or {}
    for variable in main.get("env") or []:
        if variable["name"] == STAMP:
            key = (variable.get("valueFrom") or {}).get("configMapKeyRef") or {}
            return str(key["name"]) if "name" in key else None
    return None


def _changed(template: Manifest) -> datetime | None:
    """When somebody last changed what it says, and not only what is noted of it."""
    times = [
        datetime.fromisoformat(entry["time"])
        for entry in template["metadata"].get("managedFields") or []
        if "f:spec" in (entry.get("fieldsV1") or {}) and not entry.get("subresource") and entry.get("time")
    ]
    return max(times, default=None)
