"""What is said of a step whose Job exists: why it failed, and what it waits for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from structlog.testing import capture_logs

from tests.fakes.cluster import MemoryCluster, Script, fails, never, succeeds
from tests.fakes.runs import (
    a_cluster,
    a_plan,
    away,
    carry_out,
    only,
    refuse,
    said,
    with_shards,
)
from vcot.errors import SettingsError, TemporaryError
from vcot.pipeline.client import Manifest, Refused

# --- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1, "1 (an unforeseen error)"), (20, "20 (a quality gate was not passed)"), (21, "21 (a budget is spent)"),
        (64, "64 (wrong usage)"), (65, "65 (its input breaks its contract)"),
        (75, "75 (storage or network, for now)"), (78, "78 (wrong settings)"), (143, "143 (interrupted)"),
        (3, "3"),
    ],
)  # fmt: skip
def test_each_exit_code_is_said_in_words_with_the_stages_own_last_line(code: int, words: str) -> None:
    cluster = a_cluster({"r1-train": fails(code, "--base-uri s3://b/x: there is no such folder")})
    message, _ = said(cluster)
    assert message.startswith(f"train failed with exit code {words}; --base-uri s3://b/x: there is no such folder")
    assert "kubectl -n vcot logs -l batch.kubernetes.io/job-name=r1-train" in message
    assert "kubectl -n vcot delete job pipeline-r1" in message
    assert "\n" not in message
    assert cluster.created[-1] == "r1-train"


def test_pods_that_fail_on_the_way_are_told_once_each_and_the_run_goes_on() -> None:
    def twice_out_of_memory(cluster: MemoryCluster, job: Manifest) -> None:
        for number, at in ((1, 5), (2, 15)):

            def killed(number: int = number) -> None:
                cluster.pod(job, "Failed", suffix=f"f{number}", exit_code=137, reason="OOMKilled")
                cluster.status(job, failed=number, ready=0)

            cluster.clock.at(at, killed)
        cluster.clock.at(20, lambda: succeeds()(cluster, job))

    cluster = a_cluster({"r1-train": twice_out_of_memory})
    with capture_logs() as lines:
        carry_out(cluster, only("train"))
    told = [line["event"] for line in lines if "pod r1-train-f" in line["event"]]
    assert [line.split(" ended with ")[0] for line in told] == ["train: pod r1-train-f1", "train: pod r1-train-f2"]
    assert "OOMKilled" in told[0]


def test_an_eviction_is_told_and_not_taken_for_the_reason_of_a_failure() -> None:
    def moved_then_wrong(cluster: MemoryCluster, job: Manifest) -> None:
        def moved() -> None:
            cluster.pod(job, "Failed", suffix="m1", exit_code=143, disrupted=True)
            cluster.status(job, ready=0)

        cluster.clock.at(1, lambda: cluster.status(job, ready=1))
        cluster.clock.at(5, moved)
        cluster.clock.at(6, lambda: fails(78, "wrong bucket", job_reason="Other")(cluster, job))

    message, lines = said(a_cluster({"r1-train": moved_then_wrong}), plan=only("train"))
    assert "exit code 78 (wrong settings); wrong bucket" in message
    assert any("r1-train-m1 ended with exit code 143 (interrupted): the cluster moved it away" in x for x in lines)


def test_failed_shards_are_named_with_the_reason_of_each() -> None:
    def two_bad(cluster: MemoryCluster, job: Manifest) -> None:
        def end() -> None:
            for index in (4, 5):
                says = json.dumps({"message": f"shard {index} is damaged"})
                cluster.pod(job, "Failed", suffix=f"{index}-x", index=index, exit_code=65, message=says)
            cluster.pod(job, "Failed", suffix="2-x", index=2, exit_code=75)  # failed once, then done
            cluster.over(job, "Failed", "FailedIndexes", "Job has failed indexes", failedIndexes="4-5", failed=3)

        cluster.clock.at(3, end)

    cluster = with_shards(6, {"r1-convert-shards": two_bad})
    message, _ = said(cluster)
    assert message.startswith(
        "convert-shards failed with exit code 65 (its input breaks its contract); failed shards: 4-5 of 6; "
        "shard 4 with exit code 65 (its input breaks its contract): shard 4 is damaged; shard 5 with "
    )
    assert "shard 5 is damaged" in message
    assert "shard 2" not in message
    assert cluster.created[-1] == "r1-convert-shards"


def test_a_job_that_the_cluster_refuses_is_told_with_what_to_do() -> None:
    cluster = a_cluster()
    create = cluster.create

    def full(kind: str, manifest: Manifest) -> Manifest | None:
        if kind == "Job":
            raise Refused(403, "exceeded quota: jobs,\nlimited: count/jobs.batch=0")
        return create(kind, manifest)

    cluster.create = full  # type: ignore[method-assign]
    message, _ = said(cluster, SettingsError)
    assert message == (
        "the cluster refuses Job r1-convert-prepare: exceeded quota: jobs, limited: count/jobs.batch=0. When that is "
        "mended: `kubectl -n vcot delete job pipeline-r1`, then apply again; finished work is kept"
    )


def evicted(cluster: MemoryCluster, job: Manifest) -> None:
    name = cluster.pod(job, "Failed")
    cluster.objects["Pod", name]["status"] |= {"reason": "Evicted", "message": "The node was low\non memory. "}
    cluster.over(job, "Failed", "BackoffLimitExceeded", failed=1)


def unspoken(cluster: MemoryCluster, job: Manifest) -> None:
    log = '{"event": "starting"}\n{"event": "no room left on the disk", "level": "error"}\n'
    cluster.pod(job, "Failed", exit_code=75, message=log)
    cluster.over(job, "Failed", "BackoffLimitExceeded", "", failed=5)


#: What became of a Job → how the last line begins.
ENDS: dict[str, tuple[Script, str]] = {
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
        unspoken,
        "train failed with exit code 75 (storage or network, for now); tried 5 times, last: no room left on the disk",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDS)
def test_a_failed_job_has_its_reason_in_the_last_line(case: str) -> None:
    end, words = ENDS[case]

    def script(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.clock.at(2, lambda: end(cluster, job))

    assert said(a_cluster({"r1-train": script}), plan=only("train"))[0].startswith(words)


@pytest.mark.parametrize("watched", [True, False])
def test_a_job_deleted_by_hand_ends_the_run_and_is_not_made_again(watched: bool) -> None:
    cluster = a_cluster({"r1-train": never()})

    def deleted() -> None:
        cluster.delete("Job", "r1-train")
        if not watched:
            cluster.history.clear()
            cluster.oldest_watch = 10**6  # 410

    cluster.clock.at(200, deleted)
    message, _ = said(cluster)
    assert message.startswith("somebody deleted Job r1-train before it had ended; nothing is started in its place")
    assert cluster.created.count("r1-train") == 1


def test_versions_that_are_too_old_to_watch_from_are_looked_up_again() -> None:
    cluster = a_cluster({"r1-train": succeeds(after=60)})

    def forget() -> None:
        cluster.oldest_watch = cluster.latest

    cluster.put("ConfigMap", {"metadata": {"name": "something-else"}})
    cluster.clock.at(30, forget)
    carry_out(cluster, only("train"))
    assert cluster.created == ["r1-plan", "r1-state", "r1-train"]


def test_watches_that_tell_nothing_do_not_keep_a_run_from_its_end() -> None:
    cluster = a_cluster({"r1-train": succeeds(after=300)})
    cluster.deaf = True
    carry_out(cluster, only("train"), pending_timeout=200)
    assert cluster.clock.now() < 370


# --- waiting ---------------------------------------------------------------------------------------------

HELD_BACK: dict[str, tuple[Callable[[MemoryCluster, Manifest], object], str]] = {
    "no node": (
        lambda c, j: c.pod(j, "Pending", unschedulable="0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        "no node takes r1-train-a1: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    ),
    "image": (
        lambda c, j: c.pod(j, "Pending", waiting=("ImagePullBackOff", 'Back-off pulling image "nowhere/vcot"')),
        'r1-train-a1 cannot start, ImagePullBackOff: Back-off pulling image "nowhere/vcot"; is the image\'s name right',
    ),
    "secret": (
        lambda c, j: c.pod(j, "Pending", waiting=("CreateContainerConfigError", 'secret "s3-credentials" not found')),
        'CreateContainerConfigError: secret "s3-credentials" not found; make what it names',
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
    "pod security": (
        lambda c, j: c.event("r1-train", "FailedCreate", 'pods is forbidden: violates PodSecurity "restricted"'),
        "the template breaks the namespace's Pod Security: pods is forbidden: violates PodSecurity",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HELD_BACK)
def test_what_holds_a_pod_back_is_told_every_30_s_and_ends_the_run_when_it_lasts(case: str) -> None:
    setup, words = HELD_BACK[case]

    def script(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.clock.at(1, lambda: setup(cluster, job))

    cluster = a_cluster({"r1-train": script})
    message, lines = said(cluster, plan=only("train"), pending_timeout=300)
    told = [line for line in lines if line.startswith("train waits: ")]
    assert 9 <= len(told) <= 11
    assert all(words in line for line in told)
    assert message.startswith("train has waited 5 min for a pod to run, longer than PENDING_TIMEOUT (300 s): ")
    assert words in message
    assert message.endswith(
        "Job r1-train is suspended, so that it starts nothing later. When that is mended: `kubectl -n vcot delete job "
        "pipeline-r1`, then apply again; finished work is kept"
    )
    assert cluster.objects["Job", "r1-train"]["spec"]["suspend"] is True
    assert "\n" not in message
    assert 300 <= cluster.clock.now() < 345


def test_a_job_that_was_suspended_for_waiting_too_long_is_not_waited_for_again() -> None:
    """The orchestrator died between the suspension and its own end."""
    cluster = a_cluster({"r1-train": never()})
    said(cluster, plan=only("train"), pending_timeout=300)
    began = cluster.clock.now()
    message, _ = said(cluster, plan=only("train"), pending_timeout=300)
    assert message.startswith("train has waited 5 min for a pod to run")
    assert cluster.clock.now() - began < 60


def test_a_job_that_waited_in_a_queue_of_kueue_is_taken_out_of_it() -> None:
    cluster = a_cluster({"r1-train": never()})
    job = cluster.objects["CronJob", "stage-train"]["spec"]["jobTemplate"]
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
    job["spec"]["suspend"] = True

    def admit() -> None:
        uid = cluster.objects["Job", "r1-train"]["metadata"]["uid"]
        for name, labels in (("job-r1-train-a1", {"kueue.x-k8s.io/job-uid": uid}), ("job-other", {})):
            cluster.put("Workload", {"metadata": {"name": name, "labels": labels}, "spec": {"active": True}})

    cluster.clock.at(5, admit)
    said(cluster, plan=only("train"), pending_timeout=60)
    active = {name: one["spec"]["active"] for (kind, name), one in cluster.objects.items() if kind == "Workload"}
    assert active == {"job-r1-train-a1": False, "job-other": True}


def test_a_run_that_ends_for_another_reason_holds_nothing_that_waits_either() -> None:
    cluster = a_cluster({"r1-train": never()})
    cluster.clock.at(20, lambda: setattr(cluster, "watch", refuse))
    message, lines = said(cluster, Refused, plan=only("train"))
    assert message == "cannot watch resource jobs"
    train = cluster.objects["Job", "r1-train"]
    assert train["spec"]["suspend"] is True
    assert train["metadata"]["annotations"]["vcot/given-up"] == message
    assert "Job r1-train is suspended, so that it starts nothing later" in lines


@pytest.mark.parametrize("error", [TemporaryError("the API server is away"), KeyError("a bug")], ids=["away", "bug"])
def test_what_waits_is_left_to_the_next_orchestrator_where_the_pipeline_job_starts_one(error: Exception) -> None:
    def fail(*_: object) -> Iterator[tuple[str, Manifest]]:
        raise error

    cluster = a_cluster({"r1-train": never()})
    cluster.clock.at(20, lambda: setattr(cluster, "watch", fail))
    said(cluster, type(error), plan=only("train"))
    assert "suspend" not in cluster.objects["Job", "r1-train"]["spec"]


def test_a_job_that_cannot_be_suspended_hides_no_reason() -> None:
    cluster = a_cluster({"r1-train": never()})
    cluster.clock.at(20, lambda: setattr(cluster, "watch", refuse))
    cluster.clock.at(20, lambda: setattr(cluster, "patch", away))
    message, lines = said(cluster, Refused, plan=only("train"))
    assert message == "cannot watch resource jobs"
    assert "Job r1-train could not be suspended (the API server is away) and would still run" in lines


def test_a_pod_that_has_found_its_node_is_not_said_to_lack_one() -> None:
    def late_node_large_image(cluster: MemoryCluster, job: Manifest) -> None:
        def placed() -> None:
            cluster.pod(job, "Pending", waiting=("ContainerCreating", ""))
            cluster.event("r1-train-a1", "FailedScheduling", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")

        cluster.clock.at(1, placed)
        cluster.clock.at(200, lambda: succeeds()(cluster, job))

    with capture_logs() as lines:
        carry_out(a_cluster({"r1-train": late_node_large_image}), only("train"))
    told = [line["event"] for line in lines]
    assert told.count("train is being started") >= 5
    assert not [line for line in told if line.startswith("train waits")]


def some_wait(why: Callable[[MemoryCluster, Manifest], object], ready: int = 5) -> list[str]:
    """What is told of eight shards of which only some run, for a reason that soon holds no longer."""

    def script(cluster: MemoryCluster, job: Manifest) -> None:
        def begin() -> None:
            why(cluster, job)
            cluster.status(job, ready=ready, active=8)

        cluster.clock.at(1, begin)
        cluster.clock.at(100, lambda: cluster.status(job, ready=8, active=8))
        cluster.clock.at(200, lambda: cluster.over(job, "Complete", succeeded=8))

    cluster = with_shards(8, {"r1-convert-shards": script})
    with capture_logs() as lines:
        carry_out(cluster, a_plan("convert"))
    return [line["event"] for line in lines if line["event"].startswith("convert-shards: ")]


def test_what_holds_some_of_the_shards_back_is_told_while_others_run() -> None:
    no_node = "0/3 nodes are available: 3 Insufficient memory."
    told = some_wait(lambda c, j: c.pod(j, "Pending", unschedulable=no_node))
    rest = f"convert-shards: 5 of 8 pods run, the others wait: no node takes r1-convert-shards-a1: {no_node}"
    assert 2 <= told.count(rest) <= 4
    told = some_wait(lambda c, j: c.event("r1-convert-shards", "FailedCreate", "exceeded quota: memory"))
    rest = "convert-shards: 5 of 8 pods run, the others wait: the quota of the namespace is too small: exceeded quota: "
    assert 2 <= len([line for line in told if line.startswith(rest)]) <= 4
    assert not [line for line in some_wait(lambda c, j: None) if "wait" in line]


def test_a_quota_that_has_let_the_pod_in_is_not_named_any_more() -> None:
    def let_in(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.event("r1-train", "FailedCreate", "exceeded quota: gpu")

        def start() -> None:
            name = cluster.pod(job, "Pending", waiting=("ContainerCreating", ""))
            cluster.objects["Pod", name]["metadata"]["creationTimestamp"] = "2026-01-01T00:01:00Z"

        cluster.clock.at(60, start)
        cluster.clock.at(200, lambda: succeeds()(cluster, job))

    with capture_logs() as lines:
        carry_out(a_cluster({"r1-train": let_in}), only("train"))
    told = [line["event"] for line in lines]
    assert len([line for line in told if "exceeded quota: gpu" in line]) == 2
    assert told.count("train is being started") >= 3


def test_a_pod_that_is_still_being_stopped_is_named_and_waited_for_no_longer_than_others() -> None:
    """Its node was lost: nobody reports that it is gone, and a Job makes no second one beside it."""

    def lost(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.clock.at(1, lambda: cluster.status(job, ready=1, active=1, failed=1))

        def away() -> None:
            name = cluster.pod(job, "Running")
            cluster.objects["Pod", name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:40Z"
            cluster.status(job, ready=0, active=0, terminating=1)

        cluster.clock.at(100, away)

    message, lines = said(a_cluster({"r1-train": lost}), plan=only("train"), pending_timeout=300)
    why = "r1-train-a1 is still being stopped on node-0, and another one starts only when it is gone"
    assert any(line.startswith(f"train waits: {why}") for line in lines)
    assert why in message
    assert "kubectl delete node node-0" in message


def test_a_job_that_never_tries_again_is_not_waited_for_for_ever() -> None:
    def dead(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.clock.at(2, lambda: cluster.status(job, failed=1))

    cluster = a_cluster({"r1-train": dead})
    message, lines = said(cluster, plan=only("train"), pending_timeout=300)
    assert "train: the Job pauses before it tries again" in lines
    assert message.startswith("train has waited 5 min for a pod to run")
    assert cluster.clock.now() < 300 + 900


def test_what_kueue_says_of_the_workload_is_told() -> None:
    def queued(cluster: MemoryCluster, job: Manifest) -> None:
        words = "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu"
        cluster.event("job-r1-train-a1b2c", "Pending", words, kind="Workload")
        cluster.event("job-r1-train-eval-a1b2c", "Pending", "of another Job", kind="Workload")

    cluster = a_cluster({"r1-train": queued})
    job = cluster.objects["CronJob", "stage-train"]["spec"]["jobTemplate"]
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
    job["spec"]["suspend"] = True
    message, _ = said(cluster, plan=only("train"), pending_timeout=60)
    assert "Kueue has not admitted it yet (queue gpu): couldn't assign flavors to pod set main: insuff" in message


def test_waiting_has_an_end_also_where_no_reason_is_known_or_reports_are_forbidden() -> None:
    assert "no reason is known" in said(a_cluster({"r1-train": never()}), plan=only("train"))[0]
    cluster = a_cluster({"r1-train": never()})
    cluster.forbidden = {"Pod", "Event"}
    message, lines = said(cluster, plan=only("train"))
    assert "no reason is known" in message
    assert len([line for line in lines if line.startswith("cannot look at pods and events")]) == 1


def test_a_pause_of_the_job_between_two_tries_is_not_waiting() -> None:
    def slow_to_retry(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.clock.at(2, lambda: cluster.status(job, failed=1))
        cluster.clock.at(600, lambda: succeeds()(cluster, job))

    carry_out(a_cluster({"r1-train": slow_to_retry}), only("train"), pending_timeout=120)
