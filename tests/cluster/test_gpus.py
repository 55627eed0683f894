"""A GPU is asked for only when its stage has its input: with one fake GPU on the node, two runs share it in turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial

import pytest

from tests.cluster.cluster import Cluster, Overlay
from tests.cluster.configuration import NAME
from tests.cluster.conftest import Smoke
from tests.cluster.node import Node

MINUTES = 60.0
GPU = "nvidia.com/gpu"


@pytest.fixture
def one_gpu(cluster: Cluster, node: Node) -> Iterator[None]:
    """The node says that it has one; no device plugin is needed for the scheduler to count it."""
    _say(cluster, "1")
    yield
    _say(cluster, None)


def _say(cluster: Cluster, count: str | None) -> None:
    patch = {"status": {what: {GPU: count} for what in ("capacity", "allocatable")}}
    cluster.run("patch", "node", NAME, "--subresource=status", "--type=merge", "-p", json.dumps(patch))


def with_gpu(overlay: Overlay, before: str) -> Overlay:
    """Training asks for a GPU, as overlay gpu does, and runs without one here.

    Args:
        before: a finished run that has what comes before tokenize.
    """
    overlay.settings("train", num_train_epochs=3)
    limits = "/spec/jobTemplate/spec/template/spec/containers/0/resources/limits"
    overlay.patch("CronJob", "stage-train", {"op": "add", "path": f"{limits}/nvidia.com~1gpu", "value": "1"})
    return overlay.orchestrator("--from-run", f"{before}:distill", "--until", "train")


def test_no_gpu_is_held_before_training_and_two_runs_share_one(smoke: Smoke, namespace, overlay, one_gpu) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "gpus"}}
    namespace.apply(quota | {"spec": {"hard": {f"requests.{GPU}": "1"}}})
    for run in ("first", "second"):
        with_gpu(overlay(run), smoke.run_id).apply(namespace)
        # Before that, another run's templates would end it.
        namespace.until("its plan is frozen", partial(namespace.get, "ConfigMap", f"{run}-plan"))
    most = 0

    def both_ended() -> bool:
        nonlocal most
        most = max(most, held(namespace))
        jobs = [namespace.get("Job", f"pipeline-{run}") or {} for run in ("first", "second")]
        return all((job.get("status") or {}).get("conditions") for job in jobs)

    namespace.until("both runs have ended", both_ended, 15 * MINUTES)
    assert most == 1
    for run in ("first", "second"):
        namespace.completes(f"pipeline-{run}")
        asked_for = namespace.pods_of(f"{run}-train")[0]["metadata"]["creationTimestamp"]
        assert namespace.terminated(f"{run}-tokenize-finish")["finishedAt"] <= asked_for
    one, other = (namespace.terminated(f"{run}-train") for run in ("first", "second"))
    in_turn = one["finishedAt"] <= other["startedAt"] or other["finishedAt"] <= one["startedAt"]
    assert in_turn, "they ran one after the other"


def held(cluster: Cluster) -> int:
    """GPUs of pods that a node has and that have not ended."""
    pods = cluster.list("Pod")
    live = [p for p in pods if p["spec"].get("nodeName") and p["status"]["phase"] in ("Pending", "Running")]
    return sum(int(c["resources"].get("limits", {}).get(GPU, 0)) for p in live for c in p["spec"]["containers"])
