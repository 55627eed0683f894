"""A run whose pods are evicted and whose API server goes away ends as one that nobody disturbs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from tests.chain.kill import fingerprint
from tests.cluster.cluster import Cluster, CommandFailed, Overlay
from tests.cluster.conftest import Smoke
from tests.cluster.node import Node
from vcot.storage import Store, join

MINUTES = 60.0
EVICTIONS = 5


def test_a_run_survives_evictions_and_an_api_server_that_is_away(
    namespace: Cluster, overlay: Callable[[str], Overlay], node: Node, request: pytest.FixtureRequest
) -> None:
    """Held against the finished run of the same overlay, whose checkpoints were fewer.

    Kubernetes waits before it replaces an evicted pod, 10 s the first time and twice as long each further time: the
    fourth and fifth orchestrator are away for minutes, in which training begins, is evicted and ends without one.
    """
    run = overlay("stormy").settings("train", save_steps=20)
    run.apply(namespace)
    for _ in range(EVICTIONS - 2):
        evicted = evict_orchestrator(namespace, run.pipeline)
        another_takes_over(namespace, run.pipeline, evicted)
    first = namespace.running_pod("stormy-train", 15 * MINUTES)
    evicted = evict_orchestrator(namespace, run.pipeline)
    evict_after_checkpoints(namespace, first, 1)
    second = namespace.running_pod("stormy-train", 15 * MINUTES)
    evict_after_checkpoints(namespace, second, 3)
    another_takes_over(namespace, run.pipeline, evicted)
    evict_orchestrator(namespace, run.pipeline)
    node.stop("kube-apiserver")
    time.sleep(30)
    node.start("kube-apiserver")
    pipeline = namespace.completes(run.pipeline, 10 * MINUTES)

    assert not pipeline["status"].get("failed")
    assert pipeline["status"]["succeeded"] == 1
    train = namespace.get("jobs", "stormy-train")
    assert train is not None
    assert not train["status"].get("failed")
    undisturbed: Smoke = request.getfixturevalue("smoke")  # meanwhile another process has run it
    assert comparable("stormy") == comparable(undisturbed.run_id)
    jobs = [job["metadata"]["name"] for job in namespace.list("jobs", run="stormy")]
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
    cluster.until(f"{count} checkpoints are there", lambda: checkpoints("stormy") >= count, 4 * MINUTES)
    cluster.evict(pod)


def checkpoints(run: str) -> int:
    """How many checkpoints the run's training has published."""
    return sum(
        1 for item in Store().list(f"s3://vcot/runs/{run}/train/checkpoints") if item.uri.endswith("/manifest.json")
    )


def comparable(run: str) -> dict[str, object]:
    return fingerprint(join("s3://vcot/runs", run))


def test_a_change_during_a_run_does_not_reach_it(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    """New settings and a new image: templates are configured, and the run finishes as it began."""
    overlay("frozen").orchestrator("--until", "distill").apply(namespace)
    namespace.running_pod("frozen-convert-prepare")
    changed = overlay("frozen").orchestrator("--until", "distill").settings("distill", seed=7)
    changed.edit(lambda k: [image.update(newTag="of-tomorrow") for image in k["images"]])
    said = _applied(namespace, changed)
    assert "cronjob.batch/stage-distill configured" in said
    # A run is not changed under way: its Job says so, and so does kubectl's exit code
    assert "job.batch/pipeline-frozen" not in said.replace("job.batch/pipeline-frozen unchanged", "")
    assert "field is immutable" in said
    namespace.completes("pipeline-frozen", 5 * MINUTES)
    images = {
        container["image"]
        for job in namespace.list("jobs", run="frozen")
        for container in job["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"localhost/vcot-data:dev"}
    settings = json.loads(Store().read("s3://vcot/runs/frozen/distill/_done/stage.json"))["settings"]
    assert settings["seed"] == 0


def _applied(cluster: Cluster, overlay: Overlay) -> str:
    try:
        return overlay.apply(cluster)
    except CommandFailed as error:
        return str(error)


def test_deleting_the_pipeline_removes_its_jobs_pods_and_plan(
    namespace: Cluster, overlay: Callable[[str], Overlay]
) -> None:
    overlay("cancelled").apply(namespace)
    namespace.running_pod("cancelled-convert-prepare")
    namespace.run("delete", "job", "pipeline-cancelled", "--wait=false")
    namespace.until(
        "everything of the run is gone",
        lambda: (
            not (
                namespace.list("jobs", run="cancelled")
                or namespace.list("pods", run="cancelled")
                or namespace.get("configmaps", "cancelled-plan")
            )
        ),
    )
