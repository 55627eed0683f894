"""The Kubernetes executor on a cluster in memory: what it creates, adopts, survives and writes down."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.fakes.cluster import Crash, MemoryCluster, fails, never, succeeds, template
from tests.fakes.runs import (
    ALL,
    NOTHING,
    OWNER,
    a_cluster,
    a_plan,
    apply,
    away,
    carry_out,
    only,
    refuse,
    said,
    state_of,
)
from vcot.errors import Interrupted, SettingsError, UsageError, VcotError
from vcot.pipeline.client import Manifest
from vcot.pipeline.orchestrator import Outcome, make_plan
from vcot.pipeline.templates import Owner
from vcot.stage import Stop

# --- the run ---------------------------------------------------------------------------------------------


def test_a_job_is_created_when_the_one_before_it_is_complete_and_not_earlier() -> None:
    cluster = a_cluster()
    create = cluster.create

    def judged(kind: str, manifest: Manifest) -> Manifest | None:
        for (its_kind, name), job in cluster.objects.items():
            if its_kind == "Job":
                assert job["status"]["conditions"][0]["type"] == "Complete", f"{name} has not ended"
        return create(kind, manifest)

    cluster.create = judged  # type: ignore[method-assign]
    outcomes = carry_out(cluster)
    assert cluster.created == ALL
    assert list(outcomes) == [name.removeprefix("r1-") for name in ALL[2:]]
    carry_out(cluster)
    assert cluster.created == ALL  # the second time nothing is made


def test_there_are_as_many_shards_as_storage_says() -> None:
    cluster = a_cluster({"r1-convert-prepare": succeeds(shards=99)})
    cluster.storage.counts["convert"] = 12
    carry_out(cluster, a_plan("convert"))
    spec = cluster.objects["Job", "r1-convert-shards"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (12, 8, "Indexed")


def test_every_object_is_owned_by_the_pipeline_job_but_not_controlled_by_it() -> None:
    cluster = a_cluster()
    carry_out(cluster, a_plan("convert"))
    plan = cluster.objects["ConfigMap", "r1-plan"]
    for name in ("r1-convert-prepare", "r1-convert-shards", "r1-convert-finish"):
        (owner,) = cluster.objects["Job", name]["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (OWNER.uid, False, False)
        assert (
            cluster.objects["Job", name]["metadata"]["annotations"]["vcot/plan"]
            == plan["metadata"]["annotations"]["vcot/plan"]
        )
    assert plan["metadata"]["ownerReferences"] == [owner]
    assert plan["immutable"] is True


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
def test_a_orchestrator_killed_at_any_call_is_replaced_by_one_that_ends_the_same(late: bool) -> None:
    undisturbed = a_cluster()
    carry_out(undisturbed, a_plan(**SHORT))
    assert undisturbed.calls > 30
    for call in range(1, undisturbed.calls + 1):
        cluster = a_cluster()
        cluster.crash_at, cluster.crash_late = call, late
        with pytest.raises(Crash):
            carry_out(cluster, a_plan(**SHORT))
        carry_out(cluster, a_plan(**SHORT))
        assert cluster.created == undisturbed.created, f"killed at call {call}"
        assert end_state(cluster) == end_state(undisturbed)


@hypothesis_settings(deadline=None, max_examples=20)
@given(
    crashes=st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=2, max_size=6),
    pause=st.sampled_from([0.0, 2.0, 40.0]),
)
def test_a_orchestrator_killed_again_and_again_ends_the_same(crashes: list[tuple[int, bool]], pause: float) -> None:
    undisturbed, cluster = a_cluster(), a_cluster()
    carry_out(undisturbed)
    for after, late in crashes:
        cluster.crash_at, cluster.crash_late = cluster.calls + after, late
        try:
            carry_out(cluster)
        except Crash:
            cluster.clock.sleep(pause)  # until the Job controller has a new pod
    cluster.crash_at = None
    carry_out(cluster)
    assert cluster.created == ALL
    assert end_state(cluster) == end_state(undisturbed)


def test_a_stop_leaves_the_jobs_and_the_next_orchestrator_adopts_them() -> None:
    stop = Stop()
    cluster = a_cluster({"r1-train": succeeds(after=600)})
    cluster.clock.at(100, lambda: stop.request(signal.SIGTERM))
    with pytest.raises(Interrupted, match="Job r1-train goes on, and the next orchestrator adopts it") as caught:
        carry_out(cluster, stop=stop)
    assert caught.value.exit_code == 143
    assert cluster.clock.now() < 110
    with capture_logs() as lines:
        carry_out(cluster)
    assert "train: adopted, it is there already" in [line["event"] for line in lines]
    assert cluster.created == ALL


# --- how far it is, and how it ended ---------------------------------------------------------------------


def test_how_a_run_ended_stands_in_the_cluster_and_in_storage() -> None:
    cluster = a_cluster({"r1-train": succeeds(loss=0.31)})
    carry_out(cluster)
    state = state_of(cluster)
    assert list(state["steps"]) == [name.removeprefix("r1-") for name in ALL[2:]]
    assert state["steps"]["train"] == {
        "job": "r1-train", "state": "done", "exit": 0, "seconds": state["steps"]["train"]["seconds"], "stage": "x",
        "loss": 0.31,
    }  # fmt: skip
    assert state["end"] == {"exit": 0, "message": ""}
    (owner,) = cluster.objects["ConfigMap", "r1-state"]["metadata"]["ownerReferences"]
    assert owner["uid"] == OWNER.uid


def test_why_a_run_failed_is_known_when_its_pods_are_gone() -> None:
    cluster = a_cluster({"r1-train": fails(78, "no such bucket")})
    message, _ = said(cluster)
    for name in [name for kind, name in cluster.objects if kind == "Pod"]:
        cluster.delete("Pod", name)
    state = state_of(cluster)
    assert state["steps"]["tokenize-finish"]["state"] == "done"
    assert state["steps"]["train"]["state"] == "failed"
    assert state["steps"]["train"]["exit"] == 78
    assert state["steps"]["train"]["message"].startswith("no such bucket")
    assert state["end"] == {"exit": 3, "message": message}


@pytest.mark.parametrize("ends", ["given up", "given up before", "deleted", "refused"])
def test_no_step_is_said_to_run_when_the_run_has_ended(ends: str) -> None:
    cluster = a_cluster({"r1-train": never()})
    if ends == "given up before":
        said(cluster, plan=only("train"), pending_timeout=60)
    elif ends == "deleted":
        cluster.clock.at(20, lambda: cluster.delete("Job", "r1-train"))
    elif ends == "refused":
        cluster.clock.at(20, lambda: setattr(cluster, "watch", refuse))
    message, _ = said(cluster, VcotError, plan=only("train"), pending_timeout=60)
    state = state_of(cluster)
    assert state["steps"]["train"] == {"job": "r1-train", "state": "failed", "message": message}
    assert state["end"]["message"] == message


@pytest.mark.parametrize("fault", ["settings", "another apply"])
def test_why_a_run_was_refused_before_it_began_is_written_down(fault: str) -> None:
    cluster = a_cluster()
    apply(cluster, "r1", "10")
    if fault == "another apply":
        apply(cluster, "r2", "10")
    faults = {"train": ["VCOT_TRAIN_LORA_R=x"]} if fault == "settings" else {}
    message, _ = said(cluster, VcotError, validate=lambda stage, variables: faults.get(stage, []))
    state = state_of(cluster)
    assert state["steps"] == {}
    assert state["end"] == {"exit": 78 if fault == "settings" else 64, "message": message}
    assert cluster.created == NOTHING


def test_a_refusal_takes_the_place_of_no_earlier_runs_state() -> None:
    cluster = a_cluster()
    carry_out(cluster, only("train"))
    steps = state_of(cluster)["steps"]
    again = Owner("pipeline-r1", "uid-of-another-pipeline")
    cluster.objects = {key: one for key, one in cluster.objects.items() if key[0] == "CronJob" or "settings" in key[1]}
    said(
        cluster,
        SettingsError,
        plan=only("train"),
        owner=again,
        validate=lambda stage, variables: ["VCOT_TRAIN_LORA_R=x"],
    )
    assert steps["train"]["state"] == "done"
    assert state_of(cluster)["steps"] == steps
    assert state_of(cluster)["end"] == {"exit": 78, "message": "VCOT_TRAIN_LORA_R=x"}


def test_a_refusal_that_cannot_be_written_down_hides_no_reason() -> None:
    cluster = a_cluster()
    cluster.kubernetes = (1, 30)
    get = cluster.get
    cluster.get = lambda kind, name: away() if name == "r1-state" else get(kind, name)  # type: ignore[method-assign]
    message, lines = said(cluster, SettingsError)
    assert message.startswith("this cluster is Kubernetes 1.30")
    assert "why the run was refused is written down nowhere: the API server is away" in lines


def test_an_end_that_nobody_has_foreseen_is_written_too() -> None:
    cluster = a_cluster()
    cluster.storage.shards = lambda step: {}["shards"]  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        carry_out(cluster)
    state = state_of(cluster)
    assert state["steps"]["convert-shards"]["state"] == "failed"
    assert state["end"] == {"exit": 1, "message": "unforeseen: KeyError: 'shards'"}


def test_a_step_under_way_is_said_to_run_and_a_stop_is_no_end() -> None:
    stop = Stop()
    cluster = a_cluster({"r1-train": succeeds(after=600)})
    cluster.clock.at(100, lambda: stop.request(signal.SIGTERM))
    with pytest.raises(Interrupted):
        carry_out(cluster, stop=stop)
    state = state_of(cluster)
    assert state["steps"]["train"] == {"job": "r1-train", "state": "running"}
    assert state["end"] is None


def test_what_a_step_said_is_not_forgotten_by_a_orchestrator_that_finds_its_pods_gone() -> None:
    cluster = a_cluster({"r1-convert-prepare": succeeds(rows=7), "r1-train": succeeds(after=600)})
    cluster.crash_at = 200
    with pytest.raises(Crash):
        carry_out(cluster)
    cluster.delete("Pod", "r1-convert-prepare-a1")
    carry_out(cluster)
    assert state_of(cluster)["steps"]["convert-prepare"]["rows"] == 7


def test_a_state_that_cannot_be_written_is_told_once_and_ends_no_run() -> None:
    cluster = a_cluster()
    cluster.unchangeable = {"ConfigMap"}
    cluster.storage.write = lambda run_uri, state: (_ for _ in ()).throw(SettingsError("keys are refused"))  # type: ignore[method-assign]
    with capture_logs() as lines:
        carry_out(cluster, only("train"))
    told = [line["event"] for line in lines if "state cannot be written" in line["event"]]
    assert len(told) == 4  # each place, as the run begins and at its end


# --- what is whole already -------------------------------------------------------------------------------


def test_no_job_is_made_for_a_stage_that_is_whole() -> None:
    cluster = a_cluster()
    cluster.storage.whole["train"] = Outcome(0, 0.0, summary={"loss": 0.31})
    outcomes = carry_out(cluster)
    assert "r1-train" not in cluster.created
    assert "r1-evaluate" in cluster.created
    assert outcomes["train"].summary == {"loss": 0.31}
    assert set(cluster.storage.asked) == {"train", "evaluate"}
    assert cluster.storage.asked["train"]["VCOT_RUN_URI"] == "s3://b/runs/r1"
    assert state_of(cluster)["steps"]["train"]["state"] == "done"


def test_a_whole_stage_that_ends_badly_ends_the_run_without_a_job() -> None:
    cluster = a_cluster()
    cluster.storage.whole["evaluate"] = Outcome(20, 0.0, said="accuracy 0.41 is below 0.5")
    message, _ = said(cluster)
    assert message == (
        "evaluate failed with exit code 20 (a quality gate was not passed); accuracy 0.41 is below 0.5. When that is "
        "mended: `kubectl -n vcot delete job pipeline-r1`, then apply again; finished work is kept"
    )
    assert "r1-evaluate" not in cluster.created


def test_a_job_that_is_there_is_adopted_and_not_looked_behind() -> None:
    cluster = a_cluster({"r1-train": succeeds(after=600)})
    cluster.crash_at = 200
    with pytest.raises(Crash):
        carry_out(cluster)
    assert "r1-train" in cluster.created
    cluster.storage.asked.clear()
    carry_out(cluster)
    assert set(cluster.storage.asked) == {"evaluate"}


# --- the plan --------------------------------------------------------------------------------------------


def test_a_template_edited_in_the_middle_of_a_run_is_told_and_does_no_harm() -> None:
    cluster = a_cluster()
    cluster.crash_at = 40
    with pytest.raises(Crash):
        carry_out(cluster)
    edited = template("train")
    edited["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["image"] = "vcot-gpu@sha256:11"
    cluster.put("CronJob", edited)
    with capture_logs() as lines:
        carry_out(cluster, make_plan("r1", "s3://other/place", {}, in_parts=True))
    assert any("templates have changed since this run began" in line["event"] for line in lines)
    images = {
        container["image"]
        for (kind, _), job in cluster.objects.items()
        if kind == "Job"
        for container in job["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"vcot-data@sha256:00"}


# --- what an earlier run has left ------------------------------------------------------------------------


def orphan(cluster: MemoryCluster, kind: str, name: str) -> None:
    """As after `kubectl delete job pipeline-r1 --cascade=orphan`."""
    one = cluster.objects[kind, name]
    del one["metadata"]["ownerReferences"]


def test_a_run_id_used_before_with_another_plan_is_refused_and_nothing_is_made() -> None:
    cluster = a_cluster()
    carry_out(cluster, a_plan("convert"))
    for kind, name in [k for k in cluster.objects if k[1].startswith("r1-") and k[0] != "Pod"]:
        orphan(cluster, kind, name)
    made = list(cluster.created)
    message, _ = said(cluster, UsageError, plan=a_plan("distill"), owner=Owner("pipeline-r1", "another"))
    assert message.startswith("RUN_ID r1 was used before with another plan (ConfigMap r1-plan")
    assert "choose another RUN_ID" in message
    assert cluster.created == made


def test_a_run_id_used_before_with_the_same_plan_goes_on() -> None:
    cluster = a_cluster()
    carry_out(cluster, a_plan("convert"))
    for kind, name in [k for k in cluster.objects if k[1].startswith("r1-") and k[0] != "Pod"]:
        orphan(cluster, kind, name)
    carry_out(cluster, a_plan("convert"), owner=Owner("pipeline-r1", "another"))
    assert len(cluster.created) == 5


def test_a_job_of_that_name_that_is_somebody_elses_is_not_adopted() -> None:
    cluster = a_cluster()
    cluster.put("Job", {"metadata": {"name": "r1-train"}, "spec": {}})
    message, _ = said(cluster, UsageError, plan=only("train"))
    assert message.startswith("Job r1-train is there already and is not of run r1")


def test_what_an_earlier_pipeline_job_owned_is_waited_for_until_it_is_gone() -> None:
    cluster = a_cluster()
    carry_out(cluster, only("train"))
    cluster.clock.at(6, lambda: cluster.delete("ConfigMap", "r1-state"))
    cluster.clock.at(7, lambda: cluster.delete("ConfigMap", "r1-plan"))
    cluster.clock.at(20, lambda: cluster.delete("Job", "r1-train"))
    began = cluster.clock.now()
    carry_out(cluster, only("train"), owner=Owner("pipeline-r1", "applied-again"))
    assert cluster.created == ["r1-plan", "r1-state", "r1-train"] * 2
    assert cluster.clock.now() - began > 20


def test_what_an_earlier_pipeline_job_owned_and_never_goes_is_an_error() -> None:
    cluster = a_cluster()
    carry_out(cluster, only("train"))
    message, _ = said(cluster, UsageError, plan=only("train"), owner=Owner("pipeline-r1", "applied-again"))
    assert message.startswith("ConfigMap r1-plan is of an earlier pipeline Job and does not go away")


# --- several pods as one ---------------------------------------------------------------------------------


def test_what_keeps_the_pods_of_a_set_out_is_said_of_the_job_inside_it() -> None:
    def refused(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.event("r1-train-node-0", "FailedCreate", "pods is forbidden: exceeded quota: gpu")

    cluster = a_cluster({"r1-train": refused})
    cluster.put("CronJob", template("train", **{"vcot/engine": "jobset"}))
    assert "exceeded quota: gpu" in said(cluster, plan=only("train"), pending_timeout=60)[0]


def test_a_template_with_the_engine_jobset_becomes_one() -> None:
    cluster = a_cluster()
    cluster.put("CronJob", template("train", **{"vcot/engine": "jobset"}))
    carry_out(cluster, only("train"))
    made = cluster.objects["JobSet", "r1-train"]
    assert made["metadata"]["annotations"]["vcot/plan"]
    assert made["status"]["conditions"][0]["type"] == "Completed"
    del made["metadata"]["labels"]["vcot/run"]
    with pytest.raises(UsageError, match="JobSet r1-train is there already"):
        carry_out(cluster, only("train"))
