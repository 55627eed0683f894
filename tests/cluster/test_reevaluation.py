"""The CronJob of component reevaluate: it fires, passes on the promoted model, and fails on a worse one with 20."""

from __future__ import annotations

import json

from tests.cluster.cluster import Cluster, Manifest
from tests.cluster.conftest import Smoke
from vcot.evaluation.subjects import Finished, moment, promote
from vcot.storage import Store, join

MINUTES = 60.0
RUNS = "s3://vcot/runs"


def test_it_passes_on_a_good_model_and_fails_on_a_worse_one(smoke: Smoke, namespace: Cluster, overlay) -> None:
    pointers = f"s3://vcot/{namespace.namespace}/pointers"
    good, bad = (f"{name}-{namespace.namespace[-8:]}" for name in ("good", "bad"))
    promoted = overlay(good).settings("evaluate", promote="true", pointers_uri=pointers)
    promoted.orchestrator("--from-run", f"{smoke.run_id}:train").apply(namespace)
    namespace.until("its plan is frozen", lambda: namespace.get("ConfigMap", f"{good}-plan"))
    worse = overlay(bad).settings("train", num_train_epochs=1)
    worse.orchestrator("--from-run", f"{smoke.run_id}:tokenize").apply(namespace)
    for run in (promoted, worse):
        namespace.completes(run.pipeline, 10 * MINUTES)

    nightly = overlay(good).settings("evaluate", promote="true", pointers_uri=pointers)
    nightly.orchestrator("--from-run", f"{smoke.run_id}:train")
    nightly.edit(lambda k: k.setdefault("components", []).append("../../components/reevaluate"))
    each_minute = {"op": "replace", "path": "/spec/schedule", "value": "* * * * *"}
    nightly.patch("CronJob", "reevaluate", each_minute, {"op": "replace", "path": "/spec/suspend", "value": False})
    nightly.apply(namespace)
    first = fired(namespace, set())
    passed = namespace.completes(first["metadata"]["name"], 4 * MINUTES)
    assert not passed["status"].get("failed")

    promote_by_hand(pointers, bad, samples_of=smoke.run_id)
    before = {job["metadata"]["name"] for job in scheduled(namespace)}
    second = fired(namespace, before)
    end = namespace.fails(second["metadata"]["name"], 4 * MINUTES)
    assert end["reason"] == "PodFailurePolicy"
    assert "exit code 20" in end["message"]
    message = json.loads(namespace.terminated(second["metadata"]["name"])["message"])
    assert message["exit"] == 20
    assert message["message"].startswith("regression of ")
    folder = f"{RUNS}/reevaluate/{moment(second['metadata']['name'])}"
    there = [entry.uri for entry in Store().list(folder)]
    for page in ("comparison.md", "comparison.html"):
        assert any(uri.endswith(page) for uri in there), there


def scheduled(cluster: Cluster) -> list[Manifest]:
    return [job for job in cluster.list("Job") if job["metadata"]["name"].startswith("reevaluate-")]


def fired(cluster: Cluster, before: set[str]) -> Manifest:
    """The first Job that the schedule makes beside those."""
    new = lambda: next((job for job in scheduled(cluster) if job["metadata"]["name"] not in before), None)  # noqa: E731
    return cluster.until("the schedule fires", new, 4 * MINUTES)


def promote_by_hand(pointers: str, run: str, *, samples_of: str) -> None:
    """What no gate would let through: a worse model is now the newest promoted one."""
    store = Store()
    train = Finished.at(store, join(RUNS, run, "train"))
    evaluation = Finished.at(store, join(RUNS, run, "evaluate"))
    samples = Finished.at(store, join(RUNS, samples_of, "convert"))
    base = {"uri": train.marker.metadata.base_uri, "sha256": train.marker.metadata.base_sha256}
    latest = join(pointers, "latest")
    promote(store, latest, train=train, base=base, evaluation=evaluation, samples=samples, gates=["none"])
