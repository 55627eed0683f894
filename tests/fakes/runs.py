"""A run of the Kubernetes executor on the cluster in memory, and what it leaves and says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.cluster import FakeClock, MemoryCluster, Script, fill, template
from vcot.errors import StageFailed, TemporaryError
from vcot.pipeline.client import Manifest
from vcot.pipeline.executor import KubernetesExecutor
from vcot.pipeline.orchestrator import Outcome, Plan, make_plan, orchestrate
from vcot.pipeline.templates import Owner
from vcot.stage import Stop

OWNER = Owner("pipeline-r1", "uid-of-pipeline")
ALL = [
    "r1-plan", "r1-state",
    *[f"r1-{stage}-{part}" for stage in ("convert", "distill", "tokenize") for part in ("prepare", "shards", "finish")],
    "r1-train", "r1-evaluate",
]  # fmt: skip

NOTHING = ["r1-state"]
"""What a run makes that is refused before it begins: there stands why."""


def a_cluster(scripts: dict[str, Script] | None = None) -> MemoryCluster:
    cluster = MemoryCluster(FakeClock(), scripts)
    fill(cluster)
    return cluster


def with_shards(count: int, scripts: dict[str, Script]) -> MemoryCluster:
    cluster = a_cluster(scripts)
    cluster.storage.counts["convert"] = count
    return cluster


def a_plan(until: str | None = None, **words: Any) -> Plan:
    return make_plan("r1", "s3://b/runs", {}, in_parts=True, until=until, **words)


def valid(stage: str, variables: Mapping[str, str]) -> list[str]:
    """Finds all settings in order."""
    return []


def carry_out(
    cluster: MemoryCluster, plan: Plan | None = None, *, owner: Owner = OWNER, stop: Stop | None = None,
    pending_timeout: float = 1800, validate: Callable[..., list[str]] = valid,
) -> dict[str, Outcome]:  # fmt: skip
    """One orchestrator's life, from its start to its end."""
    stop = stop or Stop()
    executor = KubernetesExecutor(
        cluster, cluster.storage, owner, clock=cluster.clock, stop=stop, pending_timeout=pending_timeout,
        validate=validate,
    )  # fmt: skip
    with executor.run(plan or a_plan()) as plan:
        return orchestrate(plan, executor, stop, attempts=1, clock=cluster.clock)


def said(cluster: MemoryCluster, kind: type[Exception] = StageFailed, **words: Any) -> tuple[str, list[str]]:
    """How the orchestrator failed, and the lines that it logged before."""
    with capture_logs() as lines, pytest.raises(kind) as caught:
        carry_out(cluster, **words)
    return str(caught.value), [line["event"] for line in lines]


def only(plan_of: str) -> Plan:
    return a_plan(only=[plan_of])


def state_of(cluster: MemoryCluster) -> dict[str, Any]:
    """What the ConfigMap says; storage says the same."""
    state: dict[str, Any] = json.loads(cluster.objects["ConfigMap", "r1-state"]["data"]["state.json"])
    assert cluster.storage.states[-1] == state | {"at": "s3://b/runs/r1"}
    return state


def apply(cluster: MemoryCluster, run_id: str, at: str, **images: str) -> None:
    """What `kubectl apply -k` does at that time (of one minute): templates are replaced, a Job is made once."""
    when = f"2026-01-01T00:00:{at}Z"
    cluster.put("ConfigMap", {"metadata": {"name": f"run-of-{run_id}"}, "data": {"RUN_ID": run_id}})
    for stage in ("convert", "distill", "tokenize", "train", "evaluate"):
        applied = template(stage)
        main = applied["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
        main["image"] = images.get(stage, main["image"])
        stamp = {"configMapKeyRef": {"name": f"run-of-{run_id}", "key": "RUN_ID", "optional": True}}
        main["env"].append({"name": "RUN_ID", "valueFrom": stamp})
        there = cluster.objects["CronJob", f"stage-{stage}"]
        changed = there["spec"] != applied["spec"]
        by_kubectl = {"manager": "kubectl-client-side-apply", "time": when, "fieldsV1": {"f:spec": {}}}
        applied["metadata"]["managedFields"] = [by_kubectl] if changed else there["metadata"]["managedFields"]
        cluster.put("CronJob", applied)
    if ("Job", f"pipeline-{run_id}") not in cluster.objects:
        orchestrator = {"name": "orchestrator", "envFrom": [{"configMapRef": {"name": f"run-of-{run_id}"}}]}
        cluster.put(
            "Job",
            {
                "metadata": {"name": f"pipeline-{run_id}", "creationTimestamp": when},
                "spec": {"template": {"spec": {"containers": [orchestrator]}}},
            },
        )


def away(*_: object) -> Manifest:
    raise TemporaryError("the API server is away")
