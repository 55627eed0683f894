"""A run whose pods are evicted and whose API server goes away ends as one that nobody disturbs."""

from __future__ import annotations

import time

from tests.chain.kill import fingerprint
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import Smoke
from vcot.storage import Store

MINUTES = 60.0


def test_a_run_survives_evictions_and_an_api_server_that_is_away(namespace: Cluster, overlay, node, request) -> None:
    """Held against the finished run of the same overlay, whose checkpoints were fewer.

    Kubernetes waits before it replaces an evicted pod, 10 s the first time and twice as long each further time.
    """
    run = overlay("stormy").settings("train", save_steps=20)
    run.apply(namespace)
    evicted = evict_orchestrator(namespace, run.pipeline)
    another_takes_over(namespace, run.pipeline, evicted)
    first = namespace.running_pod("stormy-train", 15 * MINUTES)
    evicted = evict_orchestrator(namespace, run.pipeline)
    evict_after_checkpoints(namespace, first, 1)
    second = namespace.running_pod("stormy-train", 15 * MINUTES)
    another_takes_over(namespace, run.pipeline, evicted)
    evict_after_checkpoints(namespace, second, 3)
    evict_orchestrator(namespace, run.pipeline)
    node.ask("stop", "kube-apiserver")
    time.sleep(30)
    node.ask("start", "kube-apiserver")
    pipeline = namespace.completes(run.pipeline, 10 * MINUTES)

    assert not pipeline["status"].get("failed")
    assert pipeline["status"]["succeeded"] == 1
    assert not namespace.get("Job", "stormy-train")["status"].get("failed")
    undisturbed: Smoke = request.getfixturevalue("smoke")  # meanwhile another process has run it
    assert fingerprint("s3://vcot/runs/stormy") == fingerprint(f"s3://vcot/runs/{undisturbed.run_id}")
    jobs = [job["metadata"]["name"] for job in namespace.list("Job", run="stormy")]
    assert len(jobs) == len(set(jobs)) == 11


def evict_orchestrator(cluster: Cluster, pipeline: str) -> str:
    """Returns the name of the pod that was."""
    old = cluster.running_pod(pipeline, 60)
    cluster.evict(old)
    return old


def another_takes_over(cluster: Cluster, pipeline: str, old: str) -> None:
    def next_one() -> str | None:
        pod = cluster.running_pod(pipeline, 4 * MINUTES)
        return pod if pod != old and "going on with the plan" in cluster.run("logs", pod) else None

    cluster.until("another orchestrator goes on", next_one, 5 * MINUTES)


def evict_after_checkpoints(cluster: Cluster, pod: str, count: int) -> None:
    def there() -> bool:
        found = Store().list("s3://vcot/runs/stormy/train/checkpoints")
        return sum(entry.uri.endswith("/manifest.json") for entry in found) >= count

    cluster.until(f"{count} checkpoints are there", there, 4 * MINUTES)
    cluster.evict(pod)
