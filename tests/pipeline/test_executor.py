"""The Kubernetes executor on a cluster in memory: what it creates, adopts, survives and writes down."""

from __future__ import annotations

import contextlib
import signal
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.cluster import (
    ALL,
    NOTHING,
    OWNER,
    Crash,
    MemoryCluster,
    a_cluster,
    a_plan,
    away,
    fails,
    only,
    succeeds,
    template,
    timeline,
)
from vcot.errors import Interrupted, SettingsError, UsageError, VcotError
from vcot.pipeline.client import Manifest
from vcot.pipeline.orchestrator import Outcome, make_plan
from vcot.pipeline.templates import Owner
from vcot.stage import Stop

# --- the run ---------------------------------------------------------------------------------------------


def test_a_job_is_created_when_the_one_before_it_is_complete_and_not_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = a_cluster()
    create = cluster.create

    def checked(kind: str, manifest: Manifest) -> Manifest | None:
        for (its_kind, name), job in cluster.objects.items():
            if its_kind == "Job":
                assert job["status"]["conditions"][0]["type"] == "Complete", f"{name} has not ended"
        return create(kind, manifest)

    monkeypatch.setattr(cluster, "create", checked)
    outcomes = cluster.carry_out()
    assert cluster.created == ALL
    assert list(outcomes) == [name.removeprefix("r1-") for name in ALL[2:]]
    cluster.carry_out()
    assert cluster.created == ALL  # the second time nothing is made


def test_every_object_is_owned_by_the_pipeline_job_and_there_are_as_many_shards_as_storage_says() -> None:
    cluster = a_cluster({"r1-convert-prepare": succeeds(shards=99)})
    cluster.storage.counts["convert"] = 12
    cluster.carry_out(a_plan("convert"))
    plan = cluster.objects["ConfigMap", "r1-plan"]
    made = [cluster.objects["Job", f"r1-convert-{part}"] for part in ("prepare", "shards", "finish")]
    for one in [plan, *made]:
        (owner,) = one["metadata"]["ownerReferences"]
        # Owned, so that they go with it, but not controlled by it.
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (OWNER.uid, False, False)
        assert one["metadata"]["annotations"]["vcot/plan"] == plan["metadata"]["annotations"]["vcot/plan"]
    assert plan["immutable"] is True
    spec = made[1]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (12, 8, "Indexed")


def test_a_template_with_the_engine_jobset_becomes_one() -> None:
    def refused(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.event("r1-train-node-0", "FailedCreate", "pods is forbidden: exceeded quota: gpu")

    cluster = a_cluster()
    cluster.put("CronJob", template("train", **{"vcot/engine": "jobset"}))
    cluster.carry_out(only("train"))
    made = cluster.objects["JobSet", "r1-train"]
    assert made["metadata"]["annotations"]["vcot/plan"]
    assert made["status"]["conditions"][0]["type"] == "Completed"
    cluster = a_cluster({"r1-train": refused})  # which stands at the Job inside it
    cluster.put("CronJob", template("train", **{"vcot/engine": "jobset"}))
    assert "exceeded quota: gpu" in cluster.said(plan=only("train"), pending_timeout=60)[0]


# --- killed anywhere -------------------------------------------------------------------------------------


def end_state(cluster: MemoryCluster) -> dict[str, Any]:
    """What a run leaves, without versions and times."""
    return {
        name: (one["spec"], one["metadata"]["annotations"]) if kind == "Job" else one["data"]
        for (kind, name), one in cluster.objects.items()
        if kind == "Job" or name == "r1-plan"
    }


#: A stage in shards and one that may hold a GPU: every kind of call, in a quarter of the whole chain's calls.
SHORT: dict[str, Any] = {"only": ["convert", "train"]}


@pytest.mark.parametrize("late", [False, True], ids=["before it takes effect", "after"])
def test_an_orchestrator_killed_at_any_call_is_replaced_by_one_that_ends_the_same(late: bool) -> None:
    undisturbed = a_cluster()
    undisturbed.carry_out(a_plan(**SHORT))
    assert undisturbed.calls > 30
    for call in range(1, undisturbed.calls + 1):
        cluster = a_cluster()
        cluster.crash_at, cluster.crash_late = call, late
        with pytest.raises(Crash):
            cluster.carry_out(a_plan(**SHORT))
        cluster.crash_at = cluster.calls + 7
        with contextlib.suppress(Crash):  # again, soon after it has taken over
            cluster.carry_out(a_plan(**SHORT))
        cluster.crash_at = None
        cluster.carry_out(a_plan(**SHORT))
        assert cluster.created == undisturbed.created, f"killed at call {call}"
        assert end_state(cluster) == end_state(undisturbed)


def test_a_stop_leaves_the_jobs_running_and_is_no_end_and_the_next_orchestrator_adopts_them() -> None:
    stop = Stop()
    cluster = a_cluster({"r1-train": succeeds(after=600)})
    cluster.clock.at(100, lambda: stop.request(signal.SIGTERM))
    with pytest.raises(Interrupted, match="Job r1-train goes on, and the next orchestrator adopts it") as caught:
        cluster.carry_out(stop=stop)
    assert caught.value.exit_code == 143
    assert cluster.clock.now() < 110
    state = cluster.state()
    assert state["steps"]["train"] == {"job": "r1-train", "state": "running"}
    assert state["end"] is None
    cluster.storage.asked.clear()
    with capture_logs() as lines:
        cluster.carry_out()
    assert "train: adopted, it is there already" in [line["event"] for line in lines]
    assert set(cluster.storage.asked) == {"evaluate"}  # a Job that is there is not looked behind
    assert cluster.created == ALL


# --- how far it is, and how it ended ---------------------------------------------------------------------


def test_how_a_run_ended_stands_in_the_cluster_and_in_storage() -> None:
    cluster = a_cluster({"r1-train": succeeds(loss=0.31)})
    cluster.carry_out()
    state = cluster.state()
    assert list(state["steps"]) == [name.removeprefix("r1-") for name in ALL[2:]]
    assert state["steps"]["train"] == {
        "job": "r1-train", "state": "done", "exit": 0, "seconds": state["steps"]["train"]["seconds"], "stage": "x",
        "loss": 0.31,
    }  # fmt: skip
    assert state["end"] == {"exit": 0, "message": ""}
    (owner,) = cluster.objects["ConfigMap", "r1-state"]["metadata"]["ownerReferences"]
    assert owner["uid"] == OWNER.uid


@pytest.mark.parametrize("ends", ["failed", "given up", "given up before", "deleted", "refused"])
def test_why_a_run_ended_is_written_down_and_no_step_is_said_to_run(ends: str) -> None:
    cluster = a_cluster({"r1-train": fails(78, "no such bucket") if ends == "failed" else timeline()})
    if ends == "given up before":
        cluster.said(plan=only("train"), pending_timeout=60)
    elif ends == "deleted":
        cluster.clock.at(20, lambda: cluster.delete("Job", "r1-train"))
    elif ends == "refused":
        cluster.clock.at(20, lambda: cluster.refused.add(("get", "Job")))
    message, _ = cluster.said(VcotError, plan=only("train"), pending_timeout=60)
    state = cluster.state()
    train = state["steps"]["train"]
    assert (train["job"], train["state"]) == ("r1-train", "failed")
    if ends == "failed":
        assert train["exit"] == 78
        assert train["message"].startswith("no such bucket")
        assert state["end"] == {"exit": 3, "message": message}
    else:
        assert train["message"] == state["end"]["message"] == message


WRONG = {"validate": lambda stage, variables: ["VCOT_TRAIN_LORA_R=x"] if stage == "train" else []}


@pytest.mark.parametrize("fault", ["settings", "another apply"])
def test_why_a_run_was_refused_before_it_began_is_written_down(fault: str) -> None:
    cluster = a_cluster()
    cluster.apply("r1", "10")
    if fault == "another apply":
        cluster.apply("r2", "10")
    message, _ = cluster.said(VcotError, **(WRONG if fault == "settings" else {}))
    state = cluster.state()
    assert state["steps"] == {}
    assert state["end"] == {"exit": 78 if fault == "settings" else 64, "message": message}
    assert cluster.created == NOTHING


def test_a_refusal_takes_the_place_of_no_earlier_runs_state() -> None:
    cluster = a_cluster()
    cluster.carry_out(only("train"))
    steps = cluster.state()["steps"]
    cluster.objects = {key: one for key, one in cluster.objects.items() if key[0] == "CronJob" or "settings" in key[1]}
    cluster.said(SettingsError, plan=only("train"), owner=Owner("pipeline-r1", "uid-of-another-pipeline"), **WRONG)
    assert steps["train"]["state"] == "done"
    assert cluster.state()["steps"] == steps
    assert cluster.state()["end"] == {"exit": 78, "message": "VCOT_TRAIN_LORA_R=x"}


def test_an_unforeseen_end_is_written_down_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = a_cluster()
    monkeypatch.setattr(cluster.storage, "shards", lambda step: {}["shards"])
    with pytest.raises(KeyError):
        cluster.carry_out()
    state = cluster.state()
    assert state["steps"]["convert-shards"]["state"] == "failed"
    assert state["end"] == {"exit": 1, "message": "unforeseen: KeyError: 'shards'"}


def test_what_a_step_said_is_not_forgotten_by_an_orchestrator_that_finds_its_pods_gone() -> None:
    cluster = a_cluster({"r1-convert-prepare": succeeds(rows=7), "r1-train": succeeds(after=600)})
    cluster.crash_at = 200
    with pytest.raises(Crash):
        cluster.carry_out()
    cluster.delete("Pod", "r1-convert-prepare-a1")
    cluster.carry_out()
    assert cluster.state()["steps"]["convert-prepare"]["rows"] == 7


def test_a_state_that_cannot_be_written_is_told_once_and_hides_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(run_uri: str, state: str) -> None:
        raise SettingsError("keys are refused")

    cluster = a_cluster()
    cluster.refused = {("patch", "ConfigMap")}
    monkeypatch.setattr(cluster.storage, "write", refused)
    with capture_logs() as lines:
        cluster.carry_out(only("train"))
    told = [line["event"] for line in lines if "state cannot be written" in line["event"]]
    assert len(told) == 4  # each place, as the run begins and at its end

    cluster = a_cluster()
    cluster.kubernetes = (1, 30)
    get = cluster.get
    monkeypatch.setattr(cluster, "get", lambda kind, name: away() if name == "r1-state" else get(kind, name))
    message, warnings = cluster.said(SettingsError)
    assert message.startswith("this cluster is Kubernetes 1.30")
    assert "why the run was refused is written down nowhere: the API server is away" in warnings


# --- what is whole already -------------------------------------------------------------------------------


def test_no_job_is_made_for_a_stage_that_is_whole() -> None:
    cluster = a_cluster()
    cluster.storage.whole["train"] = Outcome(0, 0.0, summary={"loss": 0.31})
    cluster.storage.whole["evaluate"] = Outcome(20, 0.0, said="accuracy 0.41 is below 0.5")
    message, _ = cluster.said()
    assert message == (
        "evaluate failed with exit code 20 (a quality gate was not passed); accuracy 0.41 is below 0.5. When that is "
        "mended: `kubectl -n vcot delete job pipeline-r1`, then apply again; finished work is kept"
    )
    assert not {"r1-train", "r1-evaluate"} & set(cluster.created)
    assert set(cluster.storage.asked) == {"train", "evaluate"}
    assert cluster.storage.asked["train"]["VCOT_RUN_URI"] == "s3://b/runs/r1"
    train = cluster.state()["steps"]["train"]
    assert (train["state"], train["loss"]) == ("done", 0.31)


# --- the plan, and what an earlier run has left ----------------------------------------------------------


def test_a_template_edited_in_the_middle_of_a_run_is_told_and_does_no_harm() -> None:
    cluster = a_cluster()
    cluster.crash_at = 40
    with pytest.raises(Crash):
        cluster.carry_out()
    edited = template("train")
    edited["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"] = "vcot-gpu@sha256:11"
    cluster.put("CronJob", edited)
    with capture_logs() as lines:
        cluster.carry_out(make_plan("r1", "s3://other/place", in_parts=True))
    assert any("templates have changed since this run began" in line["event"] for line in lines)
    jobs = [job for (kind, _), job in cluster.objects.items() if kind == "Job"]
    images = {container["image"] for job in jobs for container in job["spec"]["template"]["spec"]["containers"]}
    assert images == {"vcot-data@sha256:00"}


def test_a_run_id_used_before_goes_on_with_the_same_plan_and_is_refused_with_another() -> None:
    cluster, another = a_cluster(), Owner("pipeline-r1", "another")
    cluster.carry_out(a_plan("convert"))
    for (kind, name), one in cluster.objects.items():  # as after `kubectl delete job pipeline-r1 --cascade=orphan`
        if name.startswith("r1-") and kind != "Pod":
            del one["metadata"]["ownerReferences"]
    made = list(cluster.created)
    message, _ = cluster.said(UsageError, plan=a_plan("distill"), owner=another)
    assert message.startswith("RUN_ID r1 was used before with another plan (ConfigMap r1-plan")
    assert "choose another RUN_ID" in message
    cluster.carry_out(a_plan("convert"), owner=another)
    assert cluster.created == made


def test_a_job_of_that_name_that_is_somebody_elses_is_not_adopted() -> None:
    cluster = a_cluster()
    cluster.put("Job", {"metadata": {"name": "r1-train"}, "spec": {}})
    message, _ = cluster.said(UsageError, plan=only("train"))
    assert message.startswith("Job r1-train is there already and is not of run r1")


@pytest.mark.parametrize("goes", [True, False])
def test_what_an_earlier_pipeline_job_owned_is_waited_for_for_a_while(goes: bool) -> None:
    cluster, again = a_cluster(), Owner("pipeline-r1", "applied-again")
    cluster.carry_out(only("train"))
    if not goes:
        message, _ = cluster.said(UsageError, plan=only("train"), owner=again)
        assert message.startswith("ConfigMap r1-plan is of an earlier pipeline Job and does not go away")
        return
    for after, kind, name in ((6, "ConfigMap", "r1-state"), (7, "ConfigMap", "r1-plan"), (20, "Job", "r1-train")):
        cluster.clock.at(after, lambda kind=kind, name=name: cluster.delete(kind, name))  # type: ignore[misc]
    began = cluster.clock.now()
    cluster.carry_out(only("train"), owner=again)
    assert cluster.created == ["r1-plan", "r1-state", "r1-train"] * 2
    assert cluster.clock.now() - began > 20
