"""A cluster in memory: unique names, Jobs that run by a script, and a clock that only we move.

It stands in for what the orchestrator relies on and no more; what Kubernetes itself does is for the real node to show.

    clock = FakeClock()
    cluster = MemoryCluster(clock, {"r1-train": fails(65, "no rows")})
    cluster.created      names of Jobs and ConfigMaps in the order of creation

A script is called with the cluster and the new Job, and says with `cluster.clock.at` what becomes of it.
"""

from __future__ import annotations

import copy
import functools
import heapq
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from vcot.errors import StageFailed, TemporaryError
from vcot.pipeline.client import Manifest, Refused
from vcot.pipeline.executor import KubernetesExecutor
from vcot.pipeline.orchestrator import Clock, Outcome, Plan, Step, make_plan, orchestrate
from vcot.pipeline.templates import Owner
from vcot.settings import STAGES
from vcot.stage import Stop

Script = Callable[["MemoryCluster", Manifest], None]


OWNER = Owner("pipeline-r1", "uid-of-pipeline")
ALL = [
    "r1-plan", "r1-state",
    *[f"r1-{stage}-{part}" for stage in ("convert", "distill", "tokenize") for part in ("prepare", "shards", "finish")],
    "r1-train", "r1-evaluate",
]  # fmt: skip

NOTHING = ["r1-state"]
"""What a run makes that is refused before it begins: there stands why."""


class Crash(BaseException):
    """The orchestrator's process ends here, as by SIGKILL."""


class FakeClock(Clock):
    """Time that passes only while somebody sleeps; what is due then happens."""

    def __init__(self) -> None:
        self._now, self._number = 0.0, itertools.count()
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        until = self._now + seconds
        while self._due and self._due[0][0] <= until:
            when, _, happen = heapq.heappop(self._due)
            self._now = max(self._now, when)
            happen()
        self._now = until

    def at(self, seconds: float, happen: Callable[[], None]) -> None:
        """Lets something happen, so many seconds from now."""
        heapq.heappush(self._due, (self._now + seconds, next(self._number), happen))


class MemoryStorage:
    """In place of `RunStorage`: every stage has three shards and none is whole, unless a test says so."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        """Stage → its shards."""
        self.whole: dict[str, Outcome] = {}
        """Stage → how it ends when it is started again."""
        self.asked: dict[str, Mapping[str, str]] = {}
        """Stages that were looked at → the variables that they were shown."""
        self.states: list[Any] = []

    def shards(self, step: Step) -> int:
        return self.counts.get(step.stage, 3)

    def look(self, step: Step, variables: Mapping[str, str]) -> Outcome | None:
        self.asked[step.stage] = dict(variables)
        return self.whole.get(step.stage)

    def write(self, run_uri: str, state: str) -> None:
        self.states.append(json.loads(state) | {"at": run_uri})

    def state(self, run_uri: str) -> str | None:
        return next((json.dumps(state) for state in reversed(self.states) if state["at"] == run_uri), None)


def valid(stage: str, variables: Mapping[str, str]) -> list[str]:
    """Finds all settings in order."""
    return []


class MemoryCluster:
    """In place of `ClusterClient`; the default script lets every Job succeed after three seconds."""

    namespace = "vcot"

    def __init__(self, clock: FakeClock, scripts: dict[str, Script] | None = None) -> None:
        self.clock, self.scripts = clock, {} if scripts is None else scripts
        self.kubernetes = (1, 36)
        self.storage = MemoryStorage()
        """The storage beside it."""
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.created: list[str] = []
        self.calls = 0
        self.crash_at: int | None = None
        """Number of the call (from 1) at which the orchestrator dies."""
        self.crash_late = False
        """Whether that call still takes effect."""
        self.refused: set[tuple[str, str]] = set()
        """(verb, kind) that nobody may."""
        self._version = itertools.count(1)

    # --- as ClusterClient -----------------------------------------------------------------------------------

    def get(self, kind: str, name: str) -> Manifest | None:
        return self._call("get", kind, lambda: self.there(kind, name))

    def create(self, kind: str, manifest: Manifest) -> Manifest | None:
        def make() -> Manifest | None:
            name = manifest["metadata"]["name"]
            if (kind, name) in self.objects:
                return None
            self.created.append(name)
            made = self.put(kind, manifest)
            if kind in ("Job", "JobSet"):
                self.scripts.get(name, succeeds())(self, made)
            return made

        return self._call("create", kind, make)

    def patch(self, kind: str, name: str, change: Manifest) -> Manifest:
        def make() -> Manifest:
            if (kind, name) not in self.objects:
                raise Refused(404, f"{kind.lower()}s {name!r} not found")
            return self.put(kind, merged(self.objects[kind, name], change))

        return self._call("patch", kind, make)

    def list(self, kind: str, *, labels: str = "", fields: str = "", limit: int | None = None) -> Iterator[Manifest]:
        yield from self._call("list", kind, lambda: self.select(kind, labels, fields))[:limit]

    def version(self) -> tuple[int, int]:
        return self._call("get", "version", lambda: self.kubernetes)

    def knows(self, group: str) -> bool:
        return ("APIGroup", group) in self.objects

    def _call(self, verb: str, kind: str, work: Callable[[], Any]) -> Any:
        if (verb, kind) in self.refused:
            raise Refused(403, f"cannot {verb} resource {kind.lower()}s")
        self.calls += 1
        if self.calls == self.crash_at and not self.crash_late:
            raise Crash
        try:
            return work()
        finally:
            if self.calls == self.crash_at:
                raise Crash

    # --- what is there ------------------------------------------------------------------------------

    def there(self, kind: str, name: str) -> Manifest | None:
        return copy.deepcopy(self.objects.get((kind, name)))

    def select(self, kind: str, labels: str = "", fields: str = "") -> list[Manifest]:
        wanted = [*_pairs(labels), *_pairs(fields)]
        found = []
        for (its_kind, _), one in self.objects.items():
            facts = {
                **one["metadata"].get("labels", {}),
                "metadata.name": one["metadata"]["name"],
                "status.phase": one.get("status", {}).get("phase"),
                "involvedObject.name": one.get("involvedObject", {}).get("name"),
                "involvedObject.kind": one.get("involvedObject", {}).get("kind"),
                "reason": one.get("reason"),
                "type": one.get("type"),
            }
            if its_kind == kind and all(facts.get(name) == value if value else name in facts for name, value in wanted):
                found.append(copy.deepcopy(one))
        return found

    def put(self, kind: str, manifest: Manifest) -> Manifest:
        version, name = str(next(self._version)), manifest["metadata"]["name"]
        stored = copy.deepcopy(manifest) | {"kind": kind}
        stored["metadata"] = {"uid": f"uid-{version}", **stored["metadata"], "resourceVersion": version}
        self.objects[kind, name] = stored
        return copy.deepcopy(stored)

    def delete(self, kind: str, name: str) -> None:
        self.objects.pop((kind, name), None)

    # --- what happens to it -------------------------------------------------------------------------

    def status(self, job: Manifest, **status: Any) -> None:
        """Changes the Job's status, if it still exists."""
        key = (job["kind"], job["metadata"]["name"])
        if key in self.objects:
            now = copy.deepcopy(self.objects[key])
            now["status"] = now.get("status", {}) | status
            self.put(key[0], now)

    def over(self, job: Manifest, kind: str, reason: str = "", message: str = "", **status: Any) -> None:
        kind = {"Complete": "Completed"}.get(kind, kind) if job["kind"] == "JobSet" else kind
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self.status(job, ready=0, conditions=[condition], **status)

    def pod(
        self, job: Manifest, phase: str, *, suffix: str = "a1", exit_code: int | None = None, message: str = "",
        reason: str = "", waiting: tuple[str, str] | None = None, unschedulable: str = "", disrupted: bool = False,
        index: int | None = None,
    ) -> str:  # fmt: skip
        name = f"{job['metadata']['name']}-{suffix}"
        key = "jobset.sigs.k8s.io/jobset-name" if job["kind"] == "JobSet" else "batch.kubernetes.io/job-name"
        labels = {key: job["metadata"]["name"]}
        if index is not None:
            labels["batch.kubernetes.io/job-completion-index"] = str(index)
        state: Manifest = {}
        if exit_code is not None:
            at = f"2026-01-01T00:00:{int(self.clock.now()) % 60:02d}Z"
            state = {"terminated": {"exitCode": exit_code, "reason": reason, "message": message, "finishedAt": at}}
        elif waiting:
            state = {"waiting": {"reason": waiting[0], "message": waiting[1]}}
        conditions = [{"type": "DisruptionTarget", "status": "True"}] if disrupted else []
        if unschedulable:
            conditions.append({"type": "PodScheduled", "status": "False", "message": unschedulable})
        statuses = [{"name": "main", "state": state}]
        container = {"name": "main", "resources": {"limits": {"memory": "64Gi"}}}
        self.put("Pod", {
            "metadata": {"name": name, "labels": labels}, "spec": {"nodeName": "node-0", "containers": [container]},
            "status": {"phase": phase, "conditions": conditions, "containerStatuses": statuses},
        })  # fmt: skip
        return name

    def event(self, about: str, reason: str, message: str, kind: str = "") -> None:
        minutes, seconds = divmod(int(self.clock.now()), 60)
        self.put("Event", {
            "metadata": {"name": f"{about}.{next(self._version)}"}, "involvedObject": {"name": about, "kind": kind},
            "type": "Warning", "reason": reason, "message": message,
            "lastTimestamp": f"2026-01-01T00:{minutes:02d}:{seconds:02d}Z",
        })  # fmt: skip

    # --- a run of the Kubernetes executor, and what it leaves and says --------------------------------

    def carry_out(
        self, plan: Plan | None = None, *, owner: Owner = OWNER, stop: Stop | None = None,
        pending_timeout: float = 1800, validate: Callable[..., list[str]] = valid,
    ) -> dict[str, Outcome]:  # fmt: skip
        """One orchestrator's life, from its start to its end."""
        stop = stop or Stop()
        executor = KubernetesExecutor(
            self, self.storage, owner, clock=self.clock, stop=stop, pending_timeout=pending_timeout,
            validate=validate,
        )  # fmt: skip
        with executor.run(plan or a_plan()) as plan:
            return orchestrate(plan, executor, stop, attempts=1, clock=self.clock)

    def said(self, kind: type[Exception] = StageFailed, **words: Any) -> tuple[str, list[str]]:
        """How the orchestrator failed, and the lines that it logged before."""
        with capture_logs() as lines, pytest.raises(kind) as caught:
            self.carry_out(**words)
        return str(caught.value), [line["event"] for line in lines]

    def state(self) -> dict[str, Any]:
        """What the ConfigMap says; storage says the same."""
        state = json.loads(self.objects["ConfigMap", "r1-state"]["data"]["state.json"])
        assert self.storage.states[-1] == state | {"at": "s3://b/runs/r1"}
        return state

    def apply(self, run_id: str, at: str, **images: str) -> None:
        """What `kubectl apply -k` does at that time (of one minute): templates are replaced, a Job is made once."""
        when, run_env = f"2026-01-01T00:00:{at}Z", f"run-of-{run_id}"
        self.put("ConfigMap", {"metadata": {"name": run_env}, "data": {"RUN_ID": run_id}})
        for stage in STAGES:
            applied, there = template(stage), self.objects["CronJob", f"stage-{stage}"]
            main = applied["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
            main["image"] = images.get(stage, main["image"])
            stamp = {"configMapKeyRef": {"name": run_env, "key": "RUN_ID", "optional": True}}
            main["env"].append({"name": "RUN_ID", "valueFrom": stamp})
            by_kubectl = {"manager": "kubectl-client-side-apply", "time": when, "fieldsV1": {"f:spec": {}}}
            same = there["spec"] == applied["spec"]
            applied["metadata"]["managedFields"] = there["metadata"]["managedFields"] if same else [by_kubectl]
            self.put("CronJob", applied)
        if ("Job", f"pipeline-{run_id}") not in self.objects:
            pod = {"containers": [{"name": "orchestrator", "envFrom": [{"configMapRef": {"name": run_env}}]}]}
            metadata = {"name": f"pipeline-{run_id}", "creationTimestamp": when}
            self.put("Job", {"metadata": metadata, "spec": {"template": {"spec": pod}}})


# --- scripts ---------------------------------------------------------------------------------------------


def succeeds(after: float = 3, **summary: Any) -> Script:
    """Runs after a second and is done `after` seconds from now, with that summary."""

    def run(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.pod(job, "Running")
        cluster.status(job, ready=1, active=1)

    def end(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.pod(job, "Succeeded", exit_code=0, message=json.dumps({"stage": "x", "exit": 0, **summary}))
        cluster.over(job, "Complete", succeeded=job["spec"].get("completions", 1))

    return timeline((min(1, after / 2), run), (after, end))


def fails(code: int, message: str = "", *, reason: str = "Error", job_reason: str = "PodFailurePolicy") -> Script:
    """One pod, which ends with that exit code; the stage's last line is its termination message."""

    def end(cluster: MemoryCluster, job: Manifest) -> None:
        says = json.dumps({"exit": code, "message": message}) if message else ""
        pod = cluster.pod(job, "Failed", exit_code=code, message=says, reason=reason)
        words = f"Container main for pod vcot/{pod} failed with exit code {code} matching FailJob rule at index 1"
        cluster.over(job, "Failed", job_reason, words, failed=1)

    return timeline((2, end))


def timeline(*moments: tuple[float, Callable[[MemoryCluster, Manifest], object]]) -> Script:
    """What happens to the Job so many seconds after its creation."""

    def script(cluster: MemoryCluster, job: Manifest) -> None:
        for after, happens in moments:
            cluster.clock.at(after, functools.partial(happens, cluster, job))

    return script


# --- templates -------------------------------------------------------------------------------------------


#: A suspended CronJob, as kustomize and the API server leave it; small.
TEMPLATE = """
apiVersion: batch/v1
kind: CronJob
metadata: {{name: stage-{stage}, annotations: {{}}}}
spec:
  schedule: 0 0 31 2 *
  suspend: true
  jobTemplate:
    metadata: {{labels: {{vcot/stage: {stage}, team: vision}}}}
    spec:
      backoffLimit: 4
      activeDeadlineSeconds: 3600
      podReplacementPolicy: Failed
      podFailurePolicy:
        rules:
        - {{action: Ignore, onPodConditions: [{{type: DisruptionTarget, status: "True"}}]}}
        - action: FailJob
          onExitCodes: {{containerName: main, operator: In, values: [20, 21, 64, 65, 78]}}
      template:
        metadata: {{labels: {{vcot/stage: {stage}}}}}
        spec:
          restartPolicy: Never
          containers:
          - name: main
            image: vcot-data@sha256:00
            args: [jobs.{stage}]
            envFrom:
            - configMapRef: {{name: settings-{stage}-abc}}
            - secretRef: {{name: s3-credentials, optional: true}}
            env: [{{name: HOME, value: /scratch}}]
"""


_template = functools.cache(lambda stage: yaml.safe_load(TEMPLATE.format(stage=stage)))


def template(stage: str, **annotations: str) -> Manifest:
    """The CronJob of a stage."""
    made: Manifest = copy.deepcopy(_template(stage))
    made["metadata"]["annotations"] = annotations
    return made


def fill(cluster: MemoryCluster, settings: Mapping[str, Mapping[str, str]] | None = None) -> None:
    """What `kubectl apply` leaves there: five templates and their settings."""
    for stage in STAGES:
        cluster.put("CronJob", template(stage))
        data = dict((settings or {}).get(stage, {}))
        cluster.put("ConfigMap", {"metadata": {"name": f"settings-{stage}-abc"}, "data": data})


def merged(there: Any, change: Any) -> Any:
    """JSON Merge Patch (RFC 7386)."""
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    before = there if isinstance(there, dict) else {}
    result = before | {name: merged(before.get(name), value) for name, value in change.items()}
    return {name: value for name, value in result.items() if value is not None}


def _pairs(selector: str) -> list[tuple[str, str]]:
    return [(name, value) for pair in selector.split(",") if pair for name, _, value in [pair.partition("=")]]


# --- a run of the Kubernetes executor, and what it leaves and says ---------------------------------------


def a_cluster(scripts: dict[str, Script] | None = None, **shards: int) -> MemoryCluster:
    """With templates and their settings, and storage in which stages have so many shards."""
    cluster = MemoryCluster(FakeClock(), scripts)
    fill(cluster)
    cluster.storage.counts.update(shards)
    return cluster


def a_plan(until: str | None = None, **words: Any) -> Plan:
    return make_plan("r1", "s3://b/runs", {}, in_parts=True, until=until, **words)


def only(plan_of: str) -> Plan:
    return a_plan(only=[plan_of])


def away(*_: object) -> Manifest:
    raise TemporaryError("the API server is away")
