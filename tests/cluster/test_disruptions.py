"""A run whose pods are evicted and whose API server goes away ends as one that nobody disturbs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from tests.chain.kill import fingerprint
from tests.cluster.cluster import Cluster, Overlay
from tests.cluster.node import Node
from vcot.storage import Store, join

MINUTES = 60.0
EVICTIONS = 5


def small(overlay: Overlay) -> Overlay:
    """A minute of training, with a checkpoint every few steps."""
    overlay.settings("train", epochs=6, save_every=10, dtype="float32")
    return overlay.settings("evaluate", limit=4, conditions="real", max_new_tokens=24)


def test_a_run_survives_evictions_and_an_api_server_that_is_away(
    namespace: Cluster, overlay: Callable[[str], Overlay], node: Node
) -> None:
    small(overlay("calm")).apply(namespace)
    namespace.completes("pipeline-calm", 10 * MINUTES)

    small(overlay("stormy")).apply(namespace)
    for _ in range(EVICTIONS - 1):
        evict_conductor(namespace, "pipeline-stormy")
    for attempt in range(2):
        trained = namespace.running_pod("stormy-train", 5 * MINUTES)
        namespace.until("a checkpoint is there", lambda n=attempt: checkpoints("stormy") > n, 3 * MINUTES)
        namespace.evict(trained)
    evict_conductor(namespace, "pipeline-stormy")
    node.stop("kube-apiserver")
    time.sleep(30)
    node.start("kube-apiserver")
    pipeline = namespace.completes("pipeline-stormy", 10 * MINUTES)

    assert not pipeline["status"].get("failed")
    assert pipeline["status"]["succeeded"] == 1
    train = namespace.get("job", "stormy-train")
    assert train is not None
    assert not train["status"].get("failed")
    assert comparable("stormy") == comparable("calm")
    jobs = [job["metadata"]["name"] for job in namespace.list("jobs", run="stormy")]
    assert len(jobs) == len(set(jobs)) == 11


def evict_conductor(cluster: Cluster, pipeline: str) -> None:
    """And waits until another one has taken over what it finds."""
    old = cluster.running_pod(pipeline, 60)
    cluster.evict(old)

    def next_one() -> str | None:
        pod = cluster.running_pod(pipeline, 90)
        return pod if pod != old and "going on with the plan" in cluster.run("logs", pod) else None

    cluster.until("another conductor goes on", next_one, 90)


def checkpoints(run: str) -> int:
    """How many checkpoints the run's training has published."""
    return sum(
        1 for item in Store().list(f"s3://vcot/runs/{run}/train/checkpoints") if item.uri.endswith("/manifest.json")
    )


def comparable(run: str) -> dict[str, object]:
    return fingerprint(join("s3://vcot/runs", run))


def test_a_change_during_a_run_does_not_reach_it(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    """New settings and a new image: templates are configured, and the run finishes as it began."""
    first = small(overlay("frozen"))
    first.conductor("--until", "tokenize").apply(namespace)
    namespace.running_pod("frozen-convert-prepare")
    changed = small(overlay("frozen"))
    changed.conductor("--until", "tokenize").settings("tokenize", max_length=512)
    changed.edit(lambda k: [image.update(newTag="of-tomorrow") for image in k["images"]])
    said = _applied(namespace, changed)
    assert "cronjob.batch/stage-tokenize configured" in said
    # A run is not changed under way: its Job says so, and so does kubectl's exit code
    assert "job.batch/pipeline-frozen" not in said.replace("job.batch/pipeline-frozen unchanged", "")
    assert "field is immutable" in said
    namespace.completes("pipeline-frozen", 5 * MINUTES)
    images = {
        container["image"]
        for job in namespace.list("jobs", run="frozen")
        for container in job["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"localhost/vcot-data:dev", "localhost/vcot-gpu:dev"}
    settings = json.loads(Store().read("s3://vcot/runs/frozen/tokenize/_done/stage.json"))["settings"]
    assert settings["max_length"] == 2048


def _applied(cluster: Cluster, overlay: Overlay) -> str:
    from tests.cluster.cluster import CommandFailed

    try:
        return overlay.apply(cluster)
    except CommandFailed as error:
        return str(error)


def test_deleting_the_pipeline_removes_its_jobs_pods_and_plan(
    namespace: Cluster, overlay: Callable[[str], Overlay]
) -> None:
    small(overlay("cancelled")).apply(namespace)
    namespace.running_pod("cancelled-convert-prepare")
    namespace.run("delete", "job", "pipeline-cancelled", "--wait=false")
    namespace.until(
        "everything of the run is gone",
        lambda: (
            not (
                namespace.list("jobs", run="cancelled")
                or namespace.list("pods", run="cancelled")
                or namespace.get("configmap", "cancelled-plan")
            )
        ),
    )
