"""What the orchestrator says when something is wrong, and how its Job ends then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, CommandFailed, Overlay
from vcot.storage import Store, join

POD = "/spec/jobTemplate/spec/template/spec"


def fails_saying(cluster: Cluster, overlay: Overlay, seconds: float = 180) -> str:
    """Applies it and waits for the pipeline's end; the log of its last orchestrator."""
    overlay.apply(cluster)
    cluster.fails(overlay.pipeline, seconds)
    return cluster.run("logs", cluster.pods_of(overlay.pipeline)[-1]["metadata"]["name"])


def exit_code(cluster: Cluster, overlay: Overlay) -> int:
    pod = cluster.pods_of(overlay.pipeline)[-1]
    code: int = pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
    return code


def test_a_template_that_breaks_restricted_is_reported(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    breaking = {"op": "replace", "path": f"{POD}/containers/0/securityContext/allowPrivilegeEscalation", "value": True}
    run = overlay("breaking").patch("CronJob", "stage-convert", breaking)
    run.orchestrator("--pending-timeout", "20")
    said = fails_saying(namespace, run)
    assert "breaks the namespace's Pod Security" in said
    assert "allowPrivilegeEscalation" in said
    assert exit_code(namespace, run) == 3
    job = namespace.get("jobs", "breaking-convert-prepare")
    assert job is not None, "the Job itself is accepted"
    assert not namespace.pods_of("breaking-convert-prepare")


def test_a_pool_that_does_not_exist_is_reported(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    nowhere = {"op": "add", "path": f"{POD}/nodeSelector", "value": {"node-pool": "nowhere"}}
    run = overlay("no-pool").patch("CronJob", "stage-convert", nowhere).orchestrator("--pending-timeout", "20")
    said = fails_saying(namespace, run)
    assert "no node takes" in said
    assert "node affinity/selector" in said
    assert exit_code(namespace, run) == 3
    job = namespace.get("jobs", "no-pool-convert-prepare")
    assert job is not None
    assert job["spec"]["suspend"] is True
    namespace.until("its pod is gone", lambda: not namespace.pods_of("no-pool-convert-prepare"))
    state = namespace.get("configmaps", "no-pool-state")
    assert state is not None
    kept = json.loads(state["data"]["state.json"])
    assert kept["end"]["exit"] == 3
    assert "no node takes" in kept["end"]["message"]
    assert json.loads(Store().read("s3://vcot/runs/no-pool/pipeline/state.json")) == kept


def test_a_quota_that_is_too_small_is_reported(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "small"},
            "spec": {"hard": {"requests.memory": "300Mi"}},
        }
    )
    run = overlay("quota").orchestrator("--pending-timeout", "20")
    said = fails_saying(namespace, run)
    assert "the quota of the namespace is too small" in said
    assert "exceeded quota: small" in said
    assert exit_code(namespace, run) == 3


def test_memory_that_does_not_suffice_is_said_in_words(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    """Killed by the kernel, tried once more, given up: 137 is a code that trying again may help."""
    run = overlay("greedy").patch(
        "CronJob",
        "stage-convert",
        {"op": "replace", "path": f"{POD}/containers/0/resources", "value": {"limits": {"memory": "24Mi"}}},
        {"op": "replace", "path": "/spec/jobTemplate/spec/backoffLimit", "value": 1},
    )
    said = fails_saying(namespace, run)
    assert "OOMKilled" in said
    assert "more memory than its limit of 24Mi" in said
    assert exit_code(namespace, run) == 3
    assert len(namespace.pods_of("greedy-convert-prepare")) == 2


def test_a_run_that_another_was_applied_after_before_it_began_is_refused(
    namespace: Cluster, overlay: Callable[[str], Overlay]
) -> None:
    """Its orchestrator has no node yet; meanwhile the templates become those of another run."""
    first, second = overlay("earlier"), overlay("later")
    gate = {"op": "add", "path": "/spec/template/spec/schedulingGates", "value": [{"name": "test/not-yet"}]}
    first.patch("Job", "pipeline", gate).apply(namespace)
    waiting = namespace.until("its orchestrator waits", lambda: namespace.pods_of(first.pipeline))
    second.orchestrator("--until", "convert").apply(namespace)
    removed = [{"op": "remove", "path": "/spec/schedulingGates"}]
    namespace.run("patch", "pod", waiting[0]["metadata"]["name"], "--type=json", "-p", json.dumps(removed))
    namespace.fails(first.pipeline, 120)
    assert "are of run later: applied after pipeline-earlier was" in namespace.logs(first.pipeline)
    assert exit_code(namespace, first) == 64
    assert not namespace.list("jobs", run="earlier")
    namespace.until("the later run has begun", lambda: namespace.get("configmaps", "later-plan"))


def test_a_run_whose_templates_were_changed_before_it_began_is_refused(
    namespace: Cluster, overlay: Callable[[str], Overlay]
) -> None:
    run = overlay("changed")
    gate = {"op": "add", "path": "/spec/template/spec/schedulingGates", "value": [{"name": "test/not-yet"}]}
    run.patch("Job", "pipeline", gate).apply(namespace)
    (waiting,) = namespace.until("its orchestrator waits", lambda: namespace.pods_of(run.pipeline))
    time.sleep(6)
    run.settings("convert", num_shards=3).apply(namespace)  # the same RUN_ID: the Job stays as it is
    removed = [{"op": "remove", "path": "/spec/schedulingGates"}]
    namespace.run("patch", "pod", waiting["metadata"]["name"], "--type=json", "-p", json.dumps(removed))
    namespace.fails(run.pipeline, 120)
    assert "stage-convert is not what pipeline-changed was applied with" in namespace.logs(run.pipeline)
    assert exit_code(namespace, run) == 64


def test_a_stage_job_that_somebody_deletes_ends_the_run(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    run = overlay("deleted")
    run.apply(namespace)
    namespace.running_pod("deleted-convert-prepare")
    namespace.run("delete", "job", "deleted-convert-prepare", "--wait=false")
    namespace.fails(run.pipeline, 60)
    said = namespace.logs(run.pipeline)
    assert "somebody deleted Job deleted-convert-prepare" in said
    assert exit_code(namespace, run) == 3


def test_a_bad_shard_is_named_and_the_others_finish(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    run_id = f"whole-{namespace.namespace[-8:]}"
    overlay(run_id).settings("convert", num_shards=3).orchestrator("--until", "convert").apply(namespace)
    namespace.completes(f"pipeline-{run_id}", 180)
    damage(f"s3://vcot/runs/{run_id}/convert", shard=1)
    # The other run reads what this one has made
    bad = overlay(f"bad-{namespace.namespace[-8:]}")
    bad.orchestrator("--from-run", f"{run_id}:convert", "--only", "distill")
    said = fails_saying(namespace, bad)
    job = namespace.get("jobs", f"{bad.run_id}-distill-shards")
    assert job is not None
    failed = next(c for c in job["status"]["conditions"] if c["type"] == "Failed")
    assert failed["reason"] == "FailedIndexes"
    assert job["status"]["failedIndexes"] == "1"
    assert job["status"]["completedIndexes"] == "0,2"
    assert "shard 1" in said
    assert "is not what its marker says" in said
    assert exit_code(namespace, bad) == 3


def damage(stage_uri: str, shard: int) -> None:
    """One byte of a shard's file is another."""
    store = Store()
    marker = json.loads(store.read(join(stage_uri, f"_done/{shard:05d}.json")))
    uri = join(stage_uri, marker["files"][0]["name"])
    data = bytearray(store.read(uri))
    data[len(data) // 2] ^= 1
    store.write(uri, bytes(data))


# --- storage that cannot be used: one line, and nothing half-made ---------------------------------------------------


def test_a_secret_that_is_not_there(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    namespace.run("delete", "secret", "s3-credentials")
    run = overlay("no-secret")
    said = fails_saying(namespace, run)
    assert "s3-credentials" in said
    assert exit_code(namespace, run) == 3


def test_keys_that_are_refused(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-credentials"}}
    namespace.apply(secret | {"stringData": dict(namespace.s3) | {"AWS_SECRET_ACCESS_KEY": "mistyped"}})
    run = overlay("wrong-keys")
    said = fails_saying(namespace, run)
    assert "AWS_SECRET_ACCESS_KEY" in said or "SignatureDoesNotMatch" in said
    assert exit_code(namespace, run) == 3


# --- rights -------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_orchestrator(namespace: Cluster, overlay: Callable[[str], Overlay]) -> Callable[..., str]:
    """kubectl with the rights of the orchestrator's ServiceAccount."""
    overlay("rights").apply(namespace)
    namespace.until("the ServiceAccount is there", lambda: namespace.get("serviceaccounts", "orchestrator"))
    user = f"system:serviceaccount:{namespace.namespace}:orchestrator"

    def run(*words: str, **more: Any) -> str:
        return namespace.run("--as", user, *words, **more)

    return run


def test_the_orchestrator_may_do_what_it_needs_and_no_more(as_orchestrator: Callable[..., str]) -> None:
    needed = ("get cronjobs", "get jobs", "create jobs", "watch jobs", "patch jobs", "create configmaps", "list pods")
    for allowed in needed:
        assert as_orchestrator("auth", "can-i", *allowed.split()).strip() == "yes"
    for words in (["get", "secrets"], ["delete", "job", "--all"], ["get", "nodes"], ["get", "pods", "-A"]):
        with pytest.raises(CommandFailed, match=r"[Ff]orbidden"):
            as_orchestrator(*words)
