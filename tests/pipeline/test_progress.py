"""What is reported of a step whose Job exists: why it failed, and what it waits for."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest
from structlog.testing import capture_logs

from tests.fakes.cluster import MemoryCluster, Script, a_cluster, a_plan, fails, only, succeeds, timeline
from vcot.errors import SettingsError, TemporaryError
from vcot.pipeline.client import Manifest, Refused

Happens = Callable[[MemoryCluster, Manifest], object]
AGAIN = "When that is mended: `kubectl -n vcot delete job pipeline-r1`, then apply again; finished work is kept"


def train(script: Script) -> MemoryCluster:
    return a_cluster({"r1-train": script})


def lines_of(cluster: MemoryCluster, **words: float) -> list[str]:
    """What is logged of a training that ends well."""
    with capture_logs() as lines:
        cluster.carry_out(only("train"), **words)  # type: ignore[arg-type]
    return [line["event"] for line in lines]


# --- failures --------------------------------------------------------------------------------------------


def moved_away(cluster: MemoryCluster, job: Manifest) -> None:
    cluster.pod(job, "Failed", suffix="m1", exit_code=143, disrupted=True)
    cluster.status(job, ready=0)


def evicted(cluster: MemoryCluster, job: Manifest) -> None:
    name = cluster.pod(job, "Failed")
    cluster.objects["Pod", name]["status"] |= {"reason": "Evicted", "message": "The node was low\non memory. "}
    cluster.over(job, "Failed", "BackoffLimitExceeded", failed=1)


def without_summary(cluster: MemoryCluster, job: Manifest) -> None:
    log = '{"event": "starting"}\n{"event": "no room left on the disk", "level": "error"}\n'
    cluster.pod(job, "Failed", exit_code=75, message=log)
    cluster.over(job, "Failed", "BackoffLimitExceeded", "", failed=5)


NO_FOLDER = "--base-uri s3://b/x: there is no such folder"
LOGS = f"`kubectl -n vcot logs -l batch.kubernetes.io/job-name=r1-train` has its lines. {AGAIN}"

#: What became of a Job → how the last line begins.
ENDS: dict[str, tuple[Script, str]] = {
    "unforeseen": (fails(1, NO_FOLDER), f"train failed with exit code 1 (an unforeseen error); {NO_FOLDER}; {LOGS}"),
    "settings": (fails(78, NO_FOLDER), f"train failed with exit code 78 (wrong settings); {NO_FOLDER}; {LOGS}"),
    "a code of nobody's": (fails(3, NO_FOLDER), f"train failed with exit code 3; {NO_FOLDER}; {LOGS}"),
    "moved away before": (
        timeline((1, lambda c, j: c.status(j, ready=1)), (5, moved_away), (6, fails(78, "x", job_reason="Other"))),
        "train failed with exit code 78 (wrong settings); x;",
    ),
    "out of memory": (
        fails(137, reason="OOMKilled", job_reason="BackoffLimitExceeded"),
        "train failed with exit code 137 (killed); the kernel killed it for using more memory than its limit of 64Gi "
        "(OOMKilled): raise resources.limits.memory of stage-train, or let the stage use less",
    ),
    "a pod without its container": (
        evicted, "train failed; the node put it off: The node was low on memory.; `kubectl",
    ),
    "too late": (
        lambda c, j: c.over(j, "Failed", "DeadlineExceeded", "Job was active too long"),
        "train failed; it took longer than activeDeadlineSeconds of stage-train allows (3600 s)",
    ),
    "pods that are gone": (
        lambda c, j: c.over(j, "Failed", "BackoffLimitExceeded", "Job has reached its limit"),
        "train failed; BackoffLimitExceeded: Job has reached its limit",
    ),
    "a log and no summary": (
        without_summary,
        "train failed with exit code 75 (storage or network, for now); tried 5 times, last: no room left on the disk",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_a_failed_job_has_its_reason_in_the_last_line(case: str) -> None:
    end, words = ENDS[case]
    message, lines = train(timeline((2, end))).said(plan=only("train"))
    assert message.startswith(words)
    if case == "moved away before":
        assert any("r1-train-m1 ended with exit code 143 (interrupted): the cluster moved it away" in x for x in lines)


def test_pods_that_fail_on_the_way_are_reported_once_each_and_the_run_goes_on() -> None:
    def killed(cluster: MemoryCluster, job: Manifest, number: int) -> None:
        cluster.pod(job, "Failed", suffix=f"f{number}", exit_code=137, reason="OOMKilled")
        cluster.status(job, failed=number, ready=0)

    first, second = (partial(killed, number=number) for number in (1, 2))
    lines = lines_of(train(timeline((5, first), (15, second), (20, succeeds()))))
    failed = [line for line in lines if "pod r1-train-f" in line]
    assert [line.split(" ended with ")[0] for line in failed] == ["train: pod r1-train-f1", "train: pod r1-train-f2"]
    assert "OOMKilled" in failed[0]


def test_failed_shards_are_named_with_the_reason_of_each() -> None:
    def two_bad(cluster: MemoryCluster, job: Manifest) -> None:
        for index in (4, 5):
            says = json.dumps({"message": f"shard {index} is damaged"})
            cluster.pod(job, "Failed", suffix=f"{index}-x", index=index, exit_code=65, message=says)
        cluster.pod(job, "Failed", suffix="2-x", index=2, exit_code=75)  # failed once, then done
        cluster.over(job, "Failed", "FailedIndexes", "Job has failed indexes", failedIndexes="4-5", failed=3)

    cluster = a_cluster(convert=6, scripts={"r1-convert-shards": timeline((3, two_bad))})
    message, _ = cluster.said()
    assert message.startswith(
        "convert-shards failed with exit code 65 (its input breaks its contract); failed shards: 4-5 of 6; "
        "shard 4 with exit code 65 (its input breaks its contract): shard 4 is damaged; shard 5 with "
    )
    assert "shard 5 is damaged" in message
    assert "shard 2" not in message
    assert cluster.created[-1] == "r1-convert-shards"


def test_a_job_that_the_cluster_refuses_is_reported_with_what_to_do() -> None:
    cluster = a_cluster()
    cluster.refused = {("create", "Job")}
    refused = "the cluster refuses Job r1-convert-prepare: cannot create resource jobs."
    assert cluster.said(SettingsError)[0] == f"{refused} {AGAIN}"


@pytest.mark.parametrize("again", [False, True])
def test_a_deleted_job_ends_the_run_and_is_not_made_again(again: bool) -> None:
    def deleted(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.delete("Job", "r1-train")
        if again:  # by somebody else, under its name
            cluster.put("Job", {"metadata": {"name": "r1-train"}, "spec": {}})

    cluster = train(timeline((200, deleted)))
    message, _ = cluster.said()
    assert message.startswith("somebody deleted Job r1-train before it had ended; nothing is started in its place")
    assert cluster.created.count("r1-train") == 1


# --- waiting ---------------------------------------------------------------------------------------------


def lost(cluster: MemoryCluster, job: Manifest) -> None:
    """Its node was lost: nobody reports that the pod is gone, and a Job makes no second one beside it."""
    name = cluster.pod(job, "Running")
    cluster.objects["Pod", name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:40Z"
    cluster.status(job, ready=0, active=0, terminating=1)


HELD_BACK: dict[str, tuple[Happens, str]] = {
    "no node": (
        lambda c, j: c.pod(j, "Pending", unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        "no node takes r1-train-a1: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    ),
    "image": (
        lambda c, j: c.pod(j, "Pending", waiting=("ImagePullBackOff", 'Back-off pulling image "nowhere/vcot"')),
        'r1-train-a1 cannot start, ImagePullBackOff: Back-off pulling image "nowhere/vcot"; is the image\'s name right',
    ),
    "volume": (
        lambda c, j: (
            c.pod(j, "Pending", waiting=("ContainerCreating", "")),
            c.event("r1-train-a1", "FailedMount", "no such claim"),
        ),
        "r1-train-a1 cannot start, FailedMount: no such claim",
    ),
    "quota": (
        lambda c, j: c.event("r1-train", "FailedCreate", "Error creating: pods is forbidden: exceeded quota: gpu"),
        "the quota of the namespace is too small: Error creating: pods is forbidden: exceeded quota: gpu",
    ),
    "its node is lost": (
        lost, "r1-train-a1 is still being stopped on node-0, and another one starts only when it is gone; if that node "
        "is lost for good: kubectl delete node node-0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HELD_BACK)
def test_what_holds_a_pod_back_is_reported_every_30_s_and_ends_the_run_when_it_lasts(case: str) -> None:
    setup, words = HELD_BACK[case]
    cluster = train(timeline((1, setup)))
    message, lines = cluster.said(plan=only("train"), pending_timeout=300)
    waits = [line for line in lines if line.startswith("train waits: ")]
    assert 9 <= len(waits) <= 11
    assert all(words in line for line in waits)
    assert message.startswith("train has waited 5 min for a pod to run, longer than PENDING_TIMEOUT (300 s): ")
    assert words in message
    assert message.endswith(f"Job r1-train is suspended, so that it starts nothing later. {AGAIN}")
    assert cluster.objects["Job", "r1-train"]["spec"]["suspend"] is True
    began = cluster.clock.now()
    assert 300 <= began < 345
    # An orchestrator that died between the suspension and its own end is replaced by one that waits no more.
    assert cluster.said(plan=only("train"), pending_timeout=300)[0].startswith("train has waited 5 min")
    assert cluster.clock.now() - began < 60


def test_what_kueue_says_is_reported_and_a_job_that_waited_there_is_taken_out() -> None:
    def waits(cluster: MemoryCluster, job: Manifest) -> None:
        words = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu"
        cluster.event("job-r1-train-a1b2c", "Pending", words, kind="Workload")
        cluster.event("job-r1-train-eval-a1b2c", "Pending", "of another Job", kind="Workload")
        uid = job["metadata"]["uid"]
        for name, labels in (("job-r1-train-a1", {"kueue.x-k8s.io/job-uid": uid}), ("job-other", {})):
            cluster.put("Workload", {"metadata": {"name": name, "labels": labels}, "spec": {"active": True}})

    cluster = train(waits)
    job = cluster.objects["CronJob", "stage-train"]["spec"]["jobTemplate"]
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
    job["spec"]["suspend"] = True  # until it is its turn
    message, _ = cluster.said(plan=only("train"), pending_timeout=60)
    assert "Kueue has not admitted it yet (queue gpu): couldn't assign flavors to pod set main: insuff" in message
    active = {name: one["spec"]["active"] for (kind, name), one in cluster.objects.items() if kind == "Workload"}
    assert active == {"job-r1-train-a1": False, "job-other": True}


@pytest.mark.parametrize("may_suspend", [True, False])
def test_a_run_that_ends_for_another_reason_leaves_nothing_that_waits(may_suspend: bool) -> None:
    cluster = train(timeline())
    refused = {("get", "Job")} if may_suspend else {("get", "Job"), ("patch", "Job")}
    cluster.clock.at(20, lambda: cluster.refused.update(refused))
    message, lines = cluster.said(Refused, plan=only("train"))
    assert message == "cannot get resource jobs"
    if may_suspend:
        job = cluster.objects["Job", "r1-train"]
        assert (job["spec"]["suspend"], job["metadata"]["annotations"]["vcot/given-up"]) == (True, message)
        assert "Job r1-train is suspended, so that it starts nothing later" in lines
    else:
        assert "Job r1-train could not be suspended (cannot patch resource jobs) and would still run" in lines


@pytest.mark.parametrize("error", [TemporaryError("the API server is away"), KeyError("a bug")], ids=["away", "bug"])
def test_what_waits_is_left_to_the_next_orchestrator_where_the_pipeline_job_starts_one(error: Exception) -> None:
    def fail(*_: object) -> Manifest:
        raise error

    cluster = train(timeline())
    cluster.clock.at(20, lambda: setattr(cluster, "get", fail))
    cluster.said(type(error), plan=only("train"))
    assert "suspend" not in cluster.objects["Job", "r1-train"]["spec"]


def placed(cluster: MemoryCluster, job: Manifest) -> None:
    name = cluster.pod(job, "Pending", waiting=("ContainerCreating", ""))
    cluster.objects["Pod", name]["metadata"]["creationTimestamp"] = "2026-01-01T00:01:00Z"


def test_what_held_a_pod_back_and_is_past_is_not_named_any_more() -> None:
    no_node = timeline(
        (1, placed), (1, lambda c, j: c.event("r1-train-a1", "FailedScheduling", "0/3 nodes")), (200, succeeds())
    )
    lines = lines_of(train(no_node))
    assert lines.count("train is being started") >= 5
    assert not [line for line in lines if line.startswith("train waits")]
    quota = (0, lambda c, j: c.event("r1-train", "FailedCreate", "exceeded quota: gpu"))
    lines = lines_of(train(timeline(quota, (60, placed), (200, succeeds()))))
    assert len([line for line in lines if "exceeded quota: gpu" in line]) == 2
    assert lines.count("train is being started") >= 3


NO_NODE = "0/3 nodes are available: 3 Insufficient memory."


def test_what_holds_some_of_the_shards_back_is_reported_while_others_run() -> None:
    script = timeline(
        (1, lambda c, j: c.pod(j, "Pending", unschedulable=NO_NODE)), (1, lambda c, j: c.status(j, ready=5, active=8)),
        (100, lambda c, j: c.status(j, ready=8, active=8)), (200, lambda c, j: c.over(j, "Complete", succeeded=8)),
    )  # fmt: skip
    with capture_logs() as lines:
        a_cluster(convert=8, scripts={"r1-convert-shards": script}).carry_out(a_plan("convert"))
    waits = [line["event"] for line in lines if "the others wait" in line["event"]]
    why = f"5 of 8 pods run, the others wait: no node takes r1-convert-shards-a1: {NO_NODE}"
    assert set(waits) == {f"convert-shards: {why}"}
    assert len(waits) in (2, 3, 4)


def test_a_pause_between_two_tries_is_not_waiting_and_has_an_end() -> None:
    failed = (2, lambda c, j: c.status(j, failed=1))
    lines_of(train(timeline(failed, (600, succeeds()))), pending_timeout=120)
    cluster = train(timeline(failed))
    message, lines = cluster.said(plan=only("train"), pending_timeout=300)
    assert "train: the Job pauses before it tries again" in lines
    assert message.startswith("train has waited 5 min for a pod to run")
    assert cluster.clock.now() < 300 + 900


def test_waiting_has_an_end_also_where_no_reason_is_known_or_reports_are_forbidden() -> None:
    cluster = train(timeline())
    cluster.refused = {("list", "Pod"), ("list", "Event")}
    message, lines = cluster.said(plan=only("train"))
    assert "no reason is known" in message
    assert len([line for line in lines if line.startswith("cannot look at pods and events")]) == 1
