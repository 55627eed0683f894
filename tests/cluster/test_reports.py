"""What the orchestrator says when something is wrong, and how its Job ends then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, Overlay
from vcot.storage import Store, join

POD = "/spec/jobTemplate/spec/template/spec"
MAIN = f"{POD}/containers/0"


def fails_saying(cluster: Cluster, overlay: Overlay, code: int = 3) -> str:
    """Applies it and waits for the pipeline's end; the log of its last orchestrator."""
    overlay.apply(cluster)
    cluster.fails(overlay.pipeline, 180)
    assert cluster.terminated(overlay.pipeline)["exitCode"] == code
    return cluster.run("logs", cluster.pods_of(overlay.pipeline)[-1]["metadata"]["name"])


def quota(cluster: Cluster) -> None:
    spec = {"hard": {"requests.memory": "300Mi"}}
    cluster.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": spec})


def wrong_keys(cluster: Cluster) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-credentials"}}
    cluster.apply(secret | {"stringData": dict(cluster.s3) | {"AWS_SECRET_ACCESS_KEY": "mistyped"}})


#: What is wrong → a change of the namespace, patches of stage-convert, and what the log says.
WRONG: dict[str, tuple[Callable[[Cluster], object] | None, list[dict[str, Any]], list[str]]] = {
    "breaks-restricted": (
        None, [{"op": "replace", "path": f"{MAIN}/securityContext/allowPrivilegeEscalation", "value": True}],
        ["breaks the namespace's Pod Security", "allowPrivilegeEscalation"],
    ),
    "no-pool": (
        None, [{"op": "add", "path": f"{POD}/nodeSelector", "value": {"node-pool": "nowhere"}}],
        ["no node takes", "node affinity/selector"],
    ),
    "small-quota": (quota, [], ["the quota of the namespace is too small", "exceeded quota: small"]),
    # Killed by the kernel, tried once more, given up: 137 is a code that trying again may help.
    "little-memory": (
        None,
        [
            {"op": "replace", "path": f"{MAIN}/resources", "value": {"limits": {"memory": "24Mi"}}},
            {"op": "replace", "path": "/spec/jobTemplate/spec/backoffLimit", "value": 1},
        ],
        ["tried 2 times", "OOMKilled", "more memory than its limit of 24Mi"],
    ),
    "no-secret": (lambda cluster: cluster.run("delete", "secret", "s3-credentials"), [], ["s3-credentials"]),
    "wrong-keys": (wrong_keys, [], ["refuses the keys", "AWS_SECRET_ACCESS_KEY"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_words(case: str, namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    change, patches, words = WRONG[case]
    if change is not None:
        change(namespace)
    run = overlay(case).orchestrator("--pending-timeout", "20")
    said = fails_saying(namespace, run.patch("CronJob", "stage-convert", *patches) if patches else run)
    assert [word for word in words if word not in said] == [], said
    if case == "no-pool":
        assert namespace.get("Job", "no-pool-convert-prepare")["spec"]["suspend"] is True
        namespace.until("its pod is gone", lambda: not namespace.pods_of("no-pool-convert-prepare"))
        kept = json.loads(namespace.get("ConfigMap", "no-pool-state")["data"]["state.json"])
        assert (kept["end"]["exit"], "no node takes" in kept["end"]["message"]) == (3, True)
        assert json.loads(Store().read("s3://vcot/runs/no-pool/pipeline/state.json")) == kept


@pytest.mark.parametrize("by", ["another run", "the same run"])
def test_a_run_whose_templates_were_replaced_before_it_began_is_refused(by: str, namespace: Cluster, overlay) -> None:
    """Its orchestrator has no node yet; meanwhile the templates become those of another apply."""
    run = overlay("earlier")
    gate = {"op": "add", "path": "/spec/template/spec/schedulingGates", "value": [{"name": "test/not-yet"}]}
    run.patch("Job", "pipeline", gate).apply(namespace)
    (waiting,) = namespace.until("its orchestrator waits", lambda: namespace.pods_of(run.pipeline))
    if by == "another run":
        overlay("later").orchestrator("--until", "convert").apply(namespace)
        words = "are of run later: applied after pipeline-earlier was"
    else:
        time.sleep(6)  # more than clocks may differ by
        run.settings("convert", num_shards=3).apply(namespace)  # the same RUN_ID: the Job stays as it is
        words = "stage-convert is not what pipeline-earlier was applied with"
    removed = [{"op": "remove", "path": "/spec/schedulingGates"}]
    namespace.run("patch", "pod", waiting["metadata"]["name"], "--type=json", "-p", json.dumps(removed))
    namespace.fails(run.pipeline)
    assert words in namespace.logs(run.pipeline)
    assert namespace.terminated(run.pipeline)["exitCode"] == 64
    assert not namespace.list("Job", run="earlier")


def test_a_bad_shard_is_named_and_the_others_finish(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    run_id = f"whole-{namespace.namespace[-8:]}"
    overlay(run_id).settings("convert", num_shards=3).orchestrator("--until", "convert").apply(namespace)
    namespace.completes(f"pipeline-{run_id}", 180)
    store, stage = Store(), f"s3://vcot/runs/{run_id}/convert"
    marker = json.loads(store.read(join(stage, "_done/00001.json")))
    uri = join(stage, marker["files"][0]["name"])
    data = bytearray(store.read(uri))
    data[len(data) // 2] ^= 1
    store.write(uri, bytes(data))
    # The other run reads what this one has made
    bad = overlay(f"bad-{namespace.namespace[-8:]}")
    bad.orchestrator("--from-run", f"{run_id}:convert", "--only", "distill")
    said = fails_saying(namespace, bad)
    status = namespace.get("Job", f"{bad.run_id}-distill-shards")["status"]
    assert next(c for c in status["conditions"] if c["type"] == "Failed")["reason"] == "FailedIndexes"
    assert (status["failedIndexes"], status["completedIndexes"]) == ("1", "0,2")
    assert "shard 1" in said
    assert "is not what its marker says" in said
