"""From the templates on the cluster to the Jobs of a run, and what must be right before the first Job is created.

A template is a suspended CronJob ``stage-<stage>``; its jobTemplate becomes the Job of a step with the run's
names and labels and the few variables that only the plan knows. What people patched into the template (a pool,
a queue, a volume) goes through untouched.

Runs share the templates, and every `kubectl apply` replaces them: one that comes before this run's orchestrator has
started would otherwise decide what this run does. Two marks tell:

- A template names the ConfigMap that the lines of run.env of its apply stand in, and so does the pipeline Job of its
  own apply. Such a name ends in a hash of what it holds, the RUN_ID among it, and a Job's is never changed.
- An apply under the same RUN_ID leaves both names as they are. It shows in the times at which the API server saw the
  templates' specs change.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from vcot import logging
from vcot.errors import SettingsError, UsageError
from vcot.pipeline.client import ClusterClient, Manifest, Refused
from vcot.pipeline.orchestrator import Plan, Step
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
        steps = [asdict(step) | {"job": self.jobs[step.name]} for step in self.plan.steps]
        for step in steps:
            del step["run_uri"]  # the plan's
        whole = {"run_id": self.plan.run_id, "run_uri": self.plan.run_uri, "taken": dict(self.plan.taken)}
        return json.dumps(whole | {"steps": steps}, indent=1, sort_keys=True, ensure_ascii=False)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @classmethod
    def read(cls, text: str) -> FrozenPlan:
        whole = json.loads(text)
        jobs = [step.pop("job") for step in whole["steps"]]
        words = [step | {"run_uri": whole["run_uri"], "waits_for": tuple(step["waits_for"])} for step in whole["steps"]]
        plan = Plan(whole["run_id"], whole["run_uri"], tuple(Step(**each) for each in words), whole["taken"])
        return cls(plan, {step.name: job for step, job in zip(plan.steps, jobs, strict=True)})

    def config_map(self, owner: Owner) -> Manifest:
        """``<run>-plan``: what an orchestrator that takes over goes on with, whatever became of the templates."""
        metadata = {
            "name": f"{self.plan.run_id}-plan", "labels": {"vcot/run": self.plan.run_id},
            "annotations": {"vcot/plan": self.digest}, "ownerReferences": [owner.reference],
        }  # fmt: skip
        data = {"plan.json": self.text}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": data}


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
    where, inner = f"CronJob {template['metadata']['name']}", template["spec"]["jobTemplate"]
    spec, metadata = copy.deepcopy(inner["spec"]), inner.get("metadata") or {}
    if (main := main_of(spec)) is None:
        raise SettingsError(f"{where} has no container called {CONTAINER}")
    of_template = template["metadata"].get("annotations") or {}
    for name in (PARALLELISM, MAX_RESTARTS):
        if not (value := of_template.get(name, "1")).isdigit() or int(value) < 1:
            raise SettingsError(f"{where}: annotation {name}: {value} is no number from 1")
    ours = {name: of_template[name] for name in (ENGINE, PARALLELISM, MAX_RESTARTS) if name in of_template}
    annotations = {**(metadata.get("annotations") or {}), **ours}
    engine = annotations.get(ENGINE, "job")
    if engine not in ("job", "jobset") or (engine == "jobset" and step.part != "all"):
        raise SettingsError(
            f"{where}: annotation {ENGINE}: {engine} is not understood here; leave it out, or write jobset on a stage "
            "that is one step (train, evaluate)"
        )

    # What the plan alone knows; it beats what the template says of the same name.
    variables: list[Manifest] = [{"name": name, "value": value} for name, value in sorted(step.environment.items())]
    if step.part == "shards":
        variables.append({"name": f"{PREFIX}SHARD", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}})
        _in_shards(spec)
    beaten = {variable["name"] for variable in variables} | {STAMP}
    main["env"] = [variable for variable in main.get("env") or [] if variable["name"] not in beaten] + variables
    labels = {"vcot/run": run_id, "vcot/stage": step.stage, "vcot/part": step.part}
    pods = spec["template"].setdefault("metadata", {})
    pods["labels"] = {**(pods.get("labels") or {}), **labels}
    labels = {**(metadata.get("labels") or {}), **labels}
    metadata = {"name": f"{run_id}-{step.name}", "labels": labels} | (
        {"annotations": annotations} if annotations else {}
    )
    job: Manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
    return _as_jobset(job, main) if engine == "jobset" else job


def _in_shards(spec: Manifest) -> None:
    """A pod for each shard; a bad one is named at the end, when all others have had their turn."""
    spec["completionMode"] = "Indexed"
    spec["backoffLimitPerIndex"] = spec.pop("backoffLimit", 3)
    policy = spec.get("podFailurePolicy") or {"rules": []}
    rules, policy["rules"] = policy["rules"], []
    for rule in rules:
        codes = rule.get("onExitCodes") or {}
        if rule["action"] == "FailJob" and codes.get("operator") == "In" and BAD_SHARD in codes["values"]:
            policy["rules"].append({"action": "FailIndex", "onExitCodes": {**codes, "values": [BAD_SHARD]}})
            codes = {**codes, "values": [code for code in codes["values"] if code != BAD_SHARD]}
            if not codes["values"]:
                continue
            rule = {**rule, "onExitCodes": codes}
        policy["rules"].append(rule)


def _as_jobset(job: Manifest, main: Manifest) -> Manifest:
    """The same Job as the only member of a JobSet, which restarts all pods together."""
    metadata = job["metadata"]
    must_name_a_set(metadata["labels"]["vcot/run"])
    name, annotations = metadata["name"], metadata.get("annotations", {})
    address = {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"}
    main["env"] = [*(v for v in main["env"] if v["name"] != address["name"]), address]
    inside = {key: value for key, value in metadata["labels"].items() if key != QUEUE}  # the queue takes the whole set
    # An exit code that says "never" stays terminal.
    never = {"name": "never", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    policy = {"maxRestarts": int(annotations.get(MAX_RESTARTS, RESTARTS)), "rules": [never]}
    nodes = {"name": "node", "replicas": 1, "template": {"metadata": {"labels": inside}, "spec": job["spec"]}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {"failurePolicy": policy, "replicatedJobs": [nodes]},
    }


def complete(job: Manifest, owner: Owner, digest: str, shards: int | None = None) -> Manifest:
    """The Job as it is created: owned by the pipeline, with the plan it belongs to, for so many shards."""
    job = copy.deepcopy(job)
    job["metadata"]["ownerReferences"] = [owner.reference]
    annotations = job["metadata"].setdefault("annotations", {})
    annotations["vcot/plan"] = digest
    if shards is not None:
        job["spec"] |= {"completions": shards, "parallelism": min(shards, int(annotations.get(PARALLELISM, AT_A_TIME)))}
    return job


def main_of(job_spec: Manifest) -> Manifest | None:
    """The container that runs the stage."""
    containers = job_spec["template"]["spec"]["containers"]
    return next((container for container in containers if container["name"] == CONTAINER), None)


def must_name_a_set(run_id: str) -> None:
    """Raises UsageError where JobSet would refuse the name, when it is train's turn."""
    if not run_id[0].isalpha():
        raise UsageError(
            f"RUN_ID {run_id}: with component multinode-jobset it has to begin with a letter, because a Service is "
            f"named after it; r{run_id} would do"
        )


# --- what must be right before the first Job ----------------------------------------------------------------


def must_be_new_enough(cluster: ClusterClient) -> None:
    """Raises SettingsError where this Kubernetes lacks what a run needs."""
    with contextlib.suppress(Refused):  # it does not say its version; what it cannot do it will refuse
        if (version := cluster.version()) < OLDEST:
            now, needed = (".".join(map(str, v)) for v in (version, OLDEST))
            raise SettingsError(f"this cluster is Kubernetes {now}; vcot needs {needed} or later. Upgrade the cluster")


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
            where = f"ConfigMap {source['name']}, which is not in namespace {namespace}"
            missing.append(f"{stage}: its template names {where}; apply the overlay again")
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
        elif "job-completion-index" in str(variable.get("valueFrom")):
            found[variable["name"]] = "0"
    # The check runs in a pod without these GPUs; as many as the stage's pod has decide how many ranks it starts.
    return found | {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(_gpus_of(main))))}, missing


def _gpus_of(container: Manifest) -> int:
    """Return how many GPUs a container gets: by its limits, such as nvidia.com/gpu or nvidia.com/mig-1g.10gb, or one
    for each resource claim."""
    resources = container.get("resources") or {}
    limits = resources.get("limits") or {}
    by_name = sum(int(count) for name, count in limits.items() if "/gpu" in name or "/mig-" in name)
    return by_name or len(resources.get("claims") or [])


def must_be_as_applied(cluster: ClusterClient, pipeline: str, templates: Mapping[str, Manifest]) -> None:
    """Are the templates those that this run was applied with?

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
    applied = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
    foreign: dict[str, str | None] = {}
    later: list[str] = []
    for stage, template in templates.items():
        main = main_of(template["spec"]["jobTemplate"]["spec"]) or {}
        stamps = (
            (v.get("valueFrom") or {}).get("configMapKeyRef") for v in main.get("env") or [] if v["name"] == STAMP
        )
        stamp = (next(stamps, None) or {}).get("name")
        if mine is not None and stamp != mine:
            foreign[f"stage-{stage}"] = stamp
        changes = [  # of what it says, and not only of what is noted of it
            datetime.fromisoformat(entry["time"])
            for entry in template["metadata"].get("managedFields") or []
            if "f:spec" in (entry.get("fieldsV1") or {}) and not entry.get("subresource") and entry.get("time")
        ]
        if changes and max(changes) - applied > SLACK:
            later.append(f"stage-{stage}")
    if not foreign and not later:
        return
    names = list(foreign) or later
    which = f"CronJobs {', '.join(names)} are" if len(names) > 1 else f"CronJob {names[0]} is"
    begin_again = (
        f"`kubectl -n {cluster.namespace} delete job {pipeline}`, then apply its overlay again, and nothing else "
        f"before ConfigMap {pipeline.removeprefix('pipeline-')}-plan is there"
    )
    if foreign:
        another = foreign[names[0]]
        there = None if another is None else cluster.get("ConfigMap", another)
        run_id = ((there or {}).get("data") or {}).get("RUN_ID")
        whose = f"run {run_id}" if run_id else "another run, or of an older version of these manifests"
        raise UsageError(
            f"{which} of {whose}: applied after {pipeline} was, and before it had begun. It would run with "
            f"the other one's images and settings, so nothing was started. To start it: {begin_again}"
        )
    raise UsageError(
        f"{which} not what {pipeline} was applied with: changed after that, and before it had begun, so "
        f"nothing was started. To start it with what is there now: {begin_again}"
    )


# --- settings of runs that are gone: each apply with other lines makes ConfigMaps of another name -----------


def remove_old_settings(cluster: ClusterClient, wait: Callable[[float], None]) -> None:
    """Deletes ConfigMaps with settings that no template, no Job and no frozen plan names; a day old, at least.

    No look before can tell of an apply that has just found one of them as it should be, so one follows: what is named
    by then is put back.
    """

    def named() -> str:
        """All that may name settings, as text; their names end in a hash, so that no other word holds one."""
        naming = [one for kind in ("CronJob", "Job") for one in cluster.list(kind)]
        return json.dumps(naming + list(cluster.list("ConfigMap", labels="vcot/run")))

    try:
        now = datetime.now(UTC)
        old = {
            one["metadata"]["name"]: one
            for one in cluster.list("ConfigMap", labels="vcot/holds=settings")  # what kustomize generates for us
            if now - datetime.fromisoformat(one["metadata"]["creationTimestamp"]) > YOUNG
        }
        names = named() if old else ""  # after that list: what is named meanwhile is seen here
        gone = [name for name in old if name not in names]
        for name in gone:
            cluster.delete("ConfigMap", name)
        if not gone:
            return
        try:
            wait(APPLY)
        finally:
            names = named()
            for name in gone:
                if name in names:
                    _put_back(cluster, old[name])
    except Refused as error:
        logging.get().warning(f"settings of earlier runs are left where they are: {error}")


def _put_back(cluster: ClusterClient, one: Manifest) -> None:
    metadata = {name: one["metadata"][name] for name in ("name", "labels", "annotations") if name in one["metadata"]}
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": one.get("data") or {}}
    try:
        cluster.create("ConfigMap", manifest)
    except Refused as error:  # component hardening lets the orchestrator write no settings
        what = f"ConfigMap {metadata['name']} was removed while an apply named it again"
        logging.get().warning(f"{what} ({error}): apply once more")
