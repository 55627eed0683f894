"""From the templates on the cluster to the Jobs of a run: plain dicts in, plain dicts out.

A template is a suspended CronJob ``stage-<stage>``; its jobTemplate becomes the Job of a step with the run's
names and labels and the few variables that only the plan knows. What people patched into the template (a pool,
a queue, a volume) goes through untouched.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcot.errors import SettingsError, UsageError
from vcot.pipeline.client import Manifest
from vcot.pipeline.plan import Plan, Step
from vcot.settings import PREFIX

CONTAINER = "main"
ENGINE, PARALLELISM, MAX_RESTARTS = "vcot/engine", "vcot/parallelism", "vcot/max-restarts"
"""Annotations of a template: ``jobset`` for several pods as one, shards at a time, restarts of a JobSet."""
STAMP = "RUN_ID"
"""Variable of a template's container that says with which run it was applied; no Job of a run needs it."""
AT_A_TIME = 8
RESTARTS = 10
BAD_SHARD = 65
"""The exit code that says something of one shard alone; every other one that is listed ends the whole Job."""
QUEUE = "kueue.x-k8s.io/queue-name"
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@dataclass(frozen=True)
class Owner:
    """The pipeline Job: deleting it deletes all that it owns."""

    name: str
    uid: str

    @property
    def reference(self) -> Manifest:
        # Not the controller: Kueue would then take the stage's Job for a part of the pipeline's and not queue it.
        return {
            "apiVersion": "batch/v1", "kind": "Job", "name": self.name, "uid": self.uid,
            "controller": False, "blockOwnerDeletion": False,
        }  # fmt: skip

    def owns(self, there: Manifest) -> bool:
        return any(owner["uid"] == self.uid for owner in there["metadata"].get("ownerReferences") or [])


@dataclass(frozen=True)
class FrozenPlan:
    """A plan and the Jobs of its steps, as they were when the run began."""

    plan: Plan
    jobs: Mapping[str, Manifest]
    """Name of the step → its Job; the Job of shards says how many there are only when it is created."""

    @property
    def text(self) -> str:
        """The same plan gives the same text."""
        steps = [
            {
                "stage": s.stage, "part": s.part, "variables": dict(s.variables), "waits_for": list(s.waits_for),
                "job": self.jobs[s.name],
            }
            for s in self.plan.steps
        ]  # fmt: skip
        whole = {"run_id": self.plan.run_id, "run_uri": self.plan.run_uri, "taken": dict(self.plan.taken)}
        return json.dumps(whole | {"steps": steps}, indent=1, sort_keys=True, ensure_ascii=False)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def read(cls, text: str) -> FrozenPlan:
        whole = json.loads(text)
        steps = tuple(
            Step(s["stage"], whole["run_uri"], s["variables"], tuple(s["waits_for"]), s["part"])
            for s in whole["steps"]
        )  # fmt: skip
        plan = Plan(whole["run_id"], whole["run_uri"], steps, whole["taken"])
        return cls(plan, {step.name: s["job"] for step, s in zip(steps, whole["steps"], strict=True)})


def freeze(plan: Plan, templates: Mapping[str, Manifest]) -> FrozenPlan:
    """The plan with a Job for each of its steps.

    Args:
        templates: stage → its CronJob.

    Raises:
        SettingsError: a template has no container `main`, or annotations that nobody understands.
    """
    return FrozenPlan(plan, {step.name: render(step, plan.run_id, templates[step.stage]) for step in plan.steps})


def render(step: Step, run_id: str, template: Manifest) -> Manifest:
    """The Job (or JobSet) of one step, without what only its creation knows: owner, plan, number of shards."""
    inner = template["spec"]["jobTemplate"]
    spec = copy.deepcopy(inner["spec"])
    labels = {"vcot/run": run_id, "vcot/stage": step.stage, "vcot/part": step.part}
    if main_of(spec) is None:
        raise SettingsError(f"CronJob {template['metadata']['name']} has no container called {CONTAINER}")
    _add_variables(spec, step)
    pods = spec["template"].setdefault("metadata", {})
    pods["labels"] = {**(pods.get("labels") or {}), **labels}
    if step.part == "shards":
        _in_shards(spec)
    metadata = inner.get("metadata") or {}
    annotations = {**(metadata.get("annotations") or {}), **_own_annotations(template)}
    job: Manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{run_id}-{step.name}",
            "labels": {**(metadata.get("labels") or {}), **labels},
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": spec,
    }
    engine = annotations.get(ENGINE, "job")
    if engine not in ("job", "jobset") or (engine == "jobset" and step.part != "all"):
        raise SettingsError(
            f"CronJob {template['metadata']['name']}: annotation {ENGINE}: {engine} is not understood here; "
            "leave it out, or write jobset on a stage that is one step (train, evaluate)"
        )
    return _as_jobset(job) if engine == "jobset" else job


def complete(job: Manifest, owner: Owner, digest: str, shards: int | None = None) -> Manifest:
    """The Job as it is created: owned by the pipeline, with the plan it belongs to, for so many shards."""
    job = copy.deepcopy(job)
    job["metadata"]["ownerReferences"] = [owner.reference]
    annotations = job["metadata"].setdefault("annotations", {})
    annotations["vcot/plan"] = digest
    if shards is not None:
        job["spec"] |= {"completions": shards, "parallelism": min(shards, int(annotations.get(PARALLELISM, AT_A_TIME)))}
    return job


def plan_config_map(frozen: FrozenPlan, owner: Owner) -> Manifest:
    """``<run>-plan``: what an orchestrator that takes over goes on with, whatever became of the templates."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{frozen.plan.run_id}-plan",
            "labels": {"vcot/run": frozen.plan.run_id},
            "annotations": {"vcot/plan": frozen.digest},
            "ownerReferences": [owner.reference],
        },
        "immutable": True,
        "data": {"plan.json": frozen.text},
    }


# --- the parts of a Job --------------------------------------------------------------------------------


def main_of(job_spec: Manifest) -> Manifest | None:
    """The container that runs the stage."""
    containers = job_spec["template"]["spec"]["containers"]
    return next((container for container in containers if container["name"] == CONTAINER), None)


def _add_variables(spec: Manifest, step: Step) -> None:
    """What the plan alone knows; it beats what the template says of the same name."""
    main = main_of(spec) or {}
    mine: list[Manifest] = [{"name": name, "value": value} for name, value in sorted(step.environment.items())]
    if step.part == "shards":
        mine.append({"name": f"{PREFIX}SHARD", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}})
    names = {variable["name"] for variable in mine} | {STAMP}
    main["env"] = [variable for variable in main.get("env") or [] if variable["name"] not in names] + mine


def _in_shards(spec: Manifest) -> None:
    """A pod for each shard; a bad one is named at the end, when all others have had their turn."""
    spec["completionMode"] = "Indexed"
    spec["backoffLimitPerIndex"] = spec.pop("backoffLimit", 3)
    if policy := spec.get("podFailurePolicy"):
        policy["rules"] = [one for rule in policy["rules"] for one in _bad_shard_alone(rule)]


def _bad_shard_alone(rule: Manifest) -> Sequence[Manifest]:
    codes = rule.get("onExitCodes") or {}
    if rule["action"] != "FailJob" or codes.get("operator") != "In" or BAD_SHARD not in codes["values"]:
        return [rule]
    others = [code for code in codes["values"] if code != BAD_SHARD]
    alone = {"action": "FailIndex", "onExitCodes": {**codes, "values": [BAD_SHARD]}}
    return [alone, {**rule, "onExitCodes": {**codes, "values": others}}] if others else [alone]


def _as_jobset(job: Manifest) -> Manifest:
    """The same Job as the only member of a JobSet, which restarts all pods together."""
    metadata = job["metadata"]
    must_name_a_set(metadata["labels"]["vcot/run"])
    name, annotations = metadata["name"], metadata.get("annotations", {})
    main = main_of(job["spec"]) or {}
    address = {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"}
    main["env"] = [*(v for v in main["env"] if v["name"] != address["name"]), address]
    inside = {key: value for key, value in metadata["labels"].items() if key != QUEUE}  # the queue takes the whole set
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": int(annotations.get(MAX_RESTARTS, RESTARTS)),
                # An exit code that says "never" stays terminal.
                "rules": [{"name": "never", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [
                {"name": "node", "replicas": 1, "template": {"metadata": {"labels": inside}, "spec": job["spec"]}}
            ],
        },
    }


def must_name_a_set(run_id: str) -> None:
    """
    Raises:
        UsageError: JobSet would refuse the name, when it is train's turn.
    """
    if not run_id[0].isalpha():
        raise UsageError(
            f"RUN_ID {run_id}: with component multinode-jobset it has to begin with a letter, because a Service is "
            f"named after it; r{run_id} would do"
        )


def _own_annotations(template: Manifest) -> dict[str, str]:
    """Those that say how this orchestrator is to use the template.

    Raises:
        SettingsError: a number that is none.
    """
    annotations = template["metadata"].get("annotations") or {}
    for name in (PARALLELISM, MAX_RESTARTS):
        if not (value := annotations.get(name, "1")).isdigit() or int(value) < 1:
            raise SettingsError(
                f"CronJob {template['metadata']['name']}: annotation {name}: {value} is no number from 1"
            )
    return {name: annotations[name] for name in (ENGINE, PARALLELISM, MAX_RESTARTS) if name in annotations}
