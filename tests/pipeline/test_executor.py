"""The hand for Kubernetes against a cluster in memory: what it creates, adopts, waits for, says, and survives."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.fakes.cluster import (
    Crash,
    FakeClock,
    MemoryCluster,
    Script,
    fails,
    fill,
    never,
    succeeds,
    template,
)  # fmt: skip
from vcot.errors import InputError, Interrupted, SettingsError, StageFailed, TemporaryError, UsageError, VcotError
from vcot.pipeline.client import Manifest, Refused
from vcot.pipeline.executor import KubernetesExecutor, RunIdentity
from vcot.pipeline.orchestrator import Outcome, orchestrate
from vcot.pipeline.plan import IN_PARTS, Plan, make_plan
from vcot.pipeline.rendering import Owner
from vcot.stage import Stop

OWNER = Owner("pipeline-r1", "uid-of-pipeline")
ALL = [
    "r1-plan", "r1-state",
    *[f"r1-{stage}-{part}" for stage in ("convert", "distill", "tokenize") for part in ("prepare", "shards", "finish")],
    "r1-train", "r1-evaluate",
]  # fmt: skip

NOTHING = ["r1-state"]
"""What a run makes that is refused before it begins: there stands why."""


def a_cluster(scripts: dict[str, Script] | None = None) -> MemoryCluster:
    cluster = MemoryCluster(FakeClock(), scripts)
    fill(cluster)
    return cluster


def with_shards(count: int, scripts: dict[str, Script]) -> MemoryCluster:
    cluster = a_cluster(scripts)
    cluster.storage.counts["convert"] = count
    return cluster


def a_plan(until: str | None = None, **words: Any) -> Plan:
    return make_plan("r1", "s3://b/runs", {}, parts=IN_PARTS, until=until, **words)


def valid(stage: str, variables: Mapping[str, str]) -> list[str]:
    """Finds all settings in order."""
    return []


def carry_out(
    cluster: MemoryCluster, plan: Plan | None = None, *, owner: Owner = OWNER, stop: Stop | None = None,
    pending_timeout: float = 1800, validate: Callable[..., list[str]] = valid,
) -> dict[str, Outcome]:  # fmt: skip
    """One conductor's life, from its start to its end."""
    stop = stop or Stop()
    executor = KubernetesExecutor(
        cluster, cluster.storage, owner, clock=cluster.clock, stop=stop, pending_timeout=pending_timeout,
        validate=validate,
    )  # fmt: skip
    with executor.run(plan or a_plan()) as plan:
        return orchestrate(plan, executor, stop, attempts=1, clock=cluster.clock)


def said(cluster: MemoryCluster, kind: type[Exception] = StageFailed, **words: Any) -> tuple[str, list[str]]:
    """How the conductor failed, and the lines that it logged before."""
    with capture_logs() as lines, pytest.raises(kind) as caught:
        carry_out(cluster, **words)
    return str(caught.value), [line["event"] for line in lines]


def only(plan_of: str) -> Plan:
    return a_plan(only=[plan_of])


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


def test_what_a_stage_says_of_itself_is_told_when_it_is_done() -> None:
    cluster = a_cluster({"r1-train": succeeds(loss=0.31, part="all", message="")})
    with capture_logs() as lines:
        outcomes = carry_out(cluster, only("train"))
    (done,) = [line for line in lines if line["event"] == "train is done"]
    assert done["loss"] == 0.31
    assert "part" not in done
    assert outcomes["train"].summary["loss"] == 0.31


def test_a_run_that_is_done_is_done_again_without_creating_anything() -> None:
    cluster = a_cluster()
    carry_out(cluster)
    carry_out(cluster)
    assert cluster.created == ALL


# --- killed anywhere -------------------------------------------------------------------------------------


def end_state(cluster: MemoryCluster) -> dict[str, Any]:
    """What a run leaves, without versions and times."""
    return {
        name: (one["spec"], one["metadata"]["annotations"]) if kind == "Job" else one["data"]
        for (kind, name), one in cluster.objects.items()
        if kind == "Job" or name == "r1-plan"
    }


def undisturbed() -> MemoryCluster:
    cluster = a_cluster()
    carry_out(cluster)
    return cluster


UNDISTURBED = undisturbed()


@pytest.mark.parametrize("late", [False, True], ids=["before it takes effect", "after"])
def test_a_conductor_killed_at_any_call_is_replaced_by_one_that_ends_the_same(late: bool) -> None:
    assert UNDISTURBED.calls > 50
    for call in range(1, UNDISTURBED.calls + 1):
        cluster = a_cluster()
        cluster.crash_at, cluster.crash_late = call, late
        with pytest.raises(Crash):
            carry_out(cluster)
        carry_out(cluster)
        assert cluster.created == ALL, f"killed at call {call}"
        assert end_state(cluster) == end_state(UNDISTURBED)


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    crashes=st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=2, max_size=6),
    pause=st.sampled_from([0.0, 2.0, 40.0]),
)
def test_a_conductor_killed_again_and_again_ends_the_same(crashes: list[tuple[int, bool]], pause: float) -> None:
    cluster = a_cluster()
    for after, late in crashes:
        cluster.crash_at, cluster.crash_late = cluster.calls + after, late
        try:
            carry_out(cluster)
        except Crash:
            cluster.clock.sleep(pause)  # until the Job controller has a new pod
    cluster.crash_at = None
    carry_out(cluster)
    assert cluster.created == ALL
    assert end_state(cluster) == end_state(UNDISTURBED)


def test_a_stop_leaves_the_jobs_and_the_next_conductor_adopts_them() -> None:
    stop = Stop()
    cluster = a_cluster({"r1-train": succeeds(after=600)})
    cluster.clock.at(100, lambda: stop.request(signal.SIGTERM))
    with pytest.raises(Interrupted, match="Job r1-train goes on, and the next conductor adopts it") as caught:
        carry_out(cluster, stop=stop)
    assert caught.value.exit_code == 143
    assert cluster.clock.now() < 110
    with capture_logs() as lines:
        carry_out(cluster)
    assert "train: adopted, it is there already" in [line["event"] for line in lines]
    assert cluster.created == ALL


def test_the_number_of_shards_does_not_go_with_the_node_of_prepare() -> None:
    def prepared_and_gone(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.clock.at(2, lambda: cluster.over(job, "Complete", succeeded=1))

    cluster = a_cluster({"r1-convert-prepare": prepared_and_gone})
    carry_out(cluster, a_plan("convert"))
    assert cluster.objects["Job", "r1-convert-shards"]["spec"]["completions"] == 3


def test_a_number_of_shards_that_storage_has_lost_ends_the_run_in_one_line() -> None:
    cluster = a_cluster()
    cluster.storage.lost = InputError("s3://b/runs/r1/convert/settings.json is damaged")
    message, _ = said(cluster, InputError)
    assert message == "s3://b/runs/r1/convert/settings.json is damaged"
    assert "r1-convert-shards" not in cluster.created


# --- how far it is, and how it ended ---------------------------------------------------------------------


def state_of(cluster: MemoryCluster) -> dict[str, Any]:
    """What the ConfigMap says; storage says the same."""
    state: dict[str, Any] = json.loads(cluster.objects["ConfigMap", "r1-state"]["data"]["state.json"])
    assert cluster.storage.states[-1] == state | {"at": "s3://b/runs/r1"}
    return state


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
    faults = {"train": ["VCOT_TRAIN_R=x"]} if fault == "settings" else {}
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
    said(cluster, SettingsError, plan=only("train"), owner=again, validate=lambda stage, variables: ["VCOT_TRAIN_R=x"])
    assert steps["train"]["state"] == "done"
    assert state_of(cluster)["steps"] == steps
    assert state_of(cluster)["end"] == {"exit": 78, "message": "VCOT_TRAIN_R=x"}


def test_a_refusal_that_cannot_be_written_down_hides_no_reason() -> None:
    cluster = a_cluster()
    cluster.kubernetes = (1, 30)
    get = cluster.get
    cluster.get = lambda kind, name: away() if name == "r1-state" else get(kind, name)  # type: ignore[method-assign]
    message, lines = said(cluster, SettingsError)
    assert message.startswith("this cluster is Kubernetes 1.30")
    assert "why the run was refused is written down nowhere: the API server is away" in lines


def refuse(*_: object) -> Iterator[tuple[str, Manifest]]:
    raise Refused(403, "cannot watch resource jobs")


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


def test_what_a_step_said_is_not_forgotten_by_a_conductor_that_finds_its_pods_gone() -> None:
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
        carry_out(cluster, make_plan("r1", "s3://other/place", {}, parts=IN_PARTS))
    assert any("templates have changed since this run began" in line["event"] for line in lines)
    assert end_state(cluster) == end_state(UNDISTURBED)


def test_a_template_removed_in_the_middle_of_a_run_is_told_and_does_no_harm() -> None:
    cluster = a_cluster()
    cluster.crash_at = 40
    with pytest.raises(Crash):
        carry_out(cluster)
    cluster.delete("CronJob", "stage-train")
    carry_out(cluster)
    assert cluster.created == ALL


# --- another apply before this run has begun -------------------------------------------------------------


def apply(cluster: MemoryCluster, run_id: str, at: str, **images: str) -> None:
    """What `kubectl apply -k` does at that time (of one minute): templates are replaced, a Job is made once."""
    when = f"2026-01-01T00:00:{at}Z"
    cluster.put("ConfigMap", {"metadata": {"name": f"run-of-{run_id}"}, "data": {"RUN_ID": run_id}})
    for stage in ("convert", "distill", "tokenize", "train", "evaluate"):
        applied = template(stage)
        main = applied["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
        main["image"] = images.get(stage, main["image"])
        stamp = {"configMapKeyRef": {"name": f"run-of-{run_id}", "key": "RUN_ID", "optional": True}}
        main["env"].append({"name": "RUN_ID", "valueFrom": stamp})
        there = cluster.objects["CronJob", f"stage-{stage}"]
        changed = there["spec"] != applied["spec"]
        by_kubectl = {"manager": "kubectl-client-side-apply", "time": when, "fieldsV1": {"f:spec": {}}}
        applied["metadata"]["managedFields"] = [by_kubectl] if changed else there["metadata"]["managedFields"]
        cluster.put("CronJob", applied)
    if ("Job", f"pipeline-{run_id}") not in cluster.objects:
        conductor = {"name": "conductor", "envFrom": [{"configMapRef": {"name": f"run-of-{run_id}"}}]}
        cluster.put(
            "Job",
            {
                "metadata": {"name": f"pipeline-{run_id}", "creationTimestamp": when},
                "spec": {"template": {"spec": {"containers": [conductor]}}},
            },
        )


def test_a_run_whose_templates_another_run_has_replaced_before_it_began_is_refused() -> None:
    cluster = a_cluster()
    apply(cluster, "r1", "10")
    apply(cluster, "r2", "10", train="of r2")
    message, _ = said(cluster, UsageError, plan=a_plan())
    assert message == (
        "CronJobs stage-convert, stage-distill, stage-tokenize, stage-train, stage-evaluate are of run r2: applied "
        "after pipeline-r1 was, and before it had begun. It would run with the other one's images and settings, so "
        "nothing was started. To start it: `kubectl -n vcot delete job pipeline-r1`, then apply its overlay again, and "
        "nothing else before ConfigMap r1-plan is there"
    )
    assert cluster.created == NOTHING
    plan = make_plan("r2", "s3://b/runs", {}, parts=IN_PARTS)
    carry_out(cluster, plan, owner=Owner("pipeline-r2", "uid-of-r2"))
    assert cluster.objects["Job", "r2-train"]["spec"]["template"]["spec"]["containers"][0]["image"] == "of r2"


def test_a_run_whose_templates_were_changed_under_its_own_name_before_it_began_is_refused() -> None:
    cluster = a_cluster()
    apply(cluster, "r1", "10")
    apply(cluster, "r1", "30", train="changed")
    message, _ = said(cluster, UsageError, plan=a_plan())
    assert message.startswith("CronJob stage-train is not what pipeline-r1 was applied with: changed after that")
    assert cluster.created == NOTHING


def test_a_run_that_is_applied_twice_begins_and_one_that_has_begun_is_not_asked_again() -> None:
    cluster = a_cluster()
    apply(cluster, "r1", "10")
    apply(cluster, "r1", "30")
    cluster.crash_at = 40
    with pytest.raises(Crash):
        carry_out(cluster)
    apply(cluster, "r2", "50", train="of r2")
    carry_out(cluster)
    assert cluster.objects["Job", "r1-train"]["spec"]["template"]["spec"]["containers"][0]["image"] != "of r2"
    variables = cluster.objects["Job", "r1-train"]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert "RUN_ID" not in {variable["name"] for variable in variables}


def test_templates_that_do_not_say_with_which_run_they_were_applied_are_refused() -> None:
    cluster = a_cluster()
    apply(cluster, "r1", "10")
    cluster.put("CronJob", template("train"))
    get = cluster.get

    def named(kind: str, name: str) -> Manifest | None:
        assert name  # a path that ends there is that of the list, which nobody may ask for
        return get(kind, name)

    cluster.get = named  # type: ignore[method-assign]
    message, _ = said(cluster, UsageError, plan=a_plan())
    assert message.startswith("CronJob stage-train is of another run, or of an older version of these manifests")


# --- settings of runs that are gone ----------------------------------------------------------------------


def test_settings_that_nothing_names_any_more_are_removed_when_a_run_begins() -> None:
    cluster = a_cluster()

    def settings(name: str, created: str = "2026-01-01T00:00:00Z") -> None:
        metadata = {"name": name, "labels": {"vcot/holds": "settings"}, "creationTimestamp": created}
        cluster.put("ConfigMap", {"metadata": metadata, "data": {}})

    settings("settings-train-abc")  # the template's
    settings("run-aaaaaaaaaa")
    settings("run-bbbbbbbbbb")
    settings("settings-train-cccccccccc")
    settings("settings-train-dddddddddd", datetime.now(UTC).isoformat())
    conductor = {"name": "conductor", "envFrom": [{"configMapRef": {"name": "run-bbbbbbbbbb"}}]}
    cluster.put(
        "Job", {"metadata": {"name": "pipeline-r0"}, "spec": {"template": {"spec": {"containers": [conductor]}}}}
    )
    plan = {"name": "r0-plan", "labels": {"vcot/run": "r0"}}
    cluster.put("ConfigMap", {"metadata": plan, "data": {"plan.json": '"name": "settings-train-cccccccccc"'}})
    carry_out(cluster, only("train"))
    held = {"settings-train-abc", "run-bbbbbbbbbb", "settings-train-cccccccccc", "settings-train-dddddddddd"}
    names = {name for kind, name in cluster.objects if kind == "ConfigMap"}
    assert held <= names
    assert "run-aaaaaaaaaa" not in names


def test_settings_that_an_apply_under_way_names_again_are_put_back() -> None:
    cluster = a_cluster()
    data, labels = {"VCOT_TRAIN_R": "8"}, {"vcot/holds": "settings"}
    metadata = {"name": "settings-train-eeeeeeeeee", "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
    cluster.put("ConfigMap", {"metadata": metadata, "data": data})
    again = json.loads(json.dumps(template("train")).replace("settings-train-abc", "settings-train-eeeeeeeeee"))
    assert again != template("train")
    cluster.clock.at(5, lambda: cluster.put("CronJob", again))  # kubectl saw the ConfigMap unchanged, a moment before
    carry_out(cluster, only("train"))
    there = cluster.objects["ConfigMap", "settings-train-eeeeeeeeee"]
    assert there["data"] == data
    assert there["metadata"]["labels"] == labels


def test_settings_that_cannot_be_removed_end_no_run() -> None:
    cluster = a_cluster()
    cluster.forbidden = {"ConfigMap"}
    with capture_logs() as lines:
        carry_out(cluster, only("train"))
    assert any("settings of earlier runs are left" in line["event"] for line in lines)


def test_a_run_id_that_no_set_can_be_named_after_is_refused_before_anything_is_made() -> None:
    cluster = a_cluster()
    cluster.put("CronJob", template("train", **{"vcot/engine": "jobset"}))
    message, _ = said(cluster, UsageError, plan=make_plan("2nd", "s3://b/runs", {}, parts=IN_PARTS))
    assert message.startswith("RUN_ID 2nd: with component multinode-jobset it has to begin with a letter")
    assert cluster.created == ["2nd-state"]


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


def test_a_job_of_another_plan_is_not_adopted() -> None:
    cluster = a_cluster()
    labels, annotations = {"vcot/run": "r1"}, {"vcot/plan": "0" * 64}
    cluster.put("Job", {"metadata": {"name": "r1-train", "labels": labels, "annotations": annotations}, "spec": {}})
    message, _ = said(cluster, UsageError, plan=only("train"))
    assert "Job r1-train is of plan 000000000000" in message


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


# --- refused before anything is made ---------------------------------------------------------------------


def test_settings_of_all_stages_are_judged_before_anything_is_made_with_a_line_for_each_fault() -> None:
    cluster = a_cluster()
    seen: dict[str, Any] = {}

    def validate(stage: str, variables: dict[str, str]) -> list[str]:
        seen[stage] = dict(variables)
        return [f"{stage}: one", f"{stage}: two"] if stage in ("distill", "train") else []

    cluster.objects["ConfigMap", "settings-train-abc"]["data"] = {"VCOT_TRAIN_EPOCHS": "-1"}
    message, _ = said(cluster, SettingsError, validate=validate)
    assert message.splitlines() == ["distill: one", "distill: two", "train: one", "train: two"]
    assert cluster.created == NOTHING
    assert seen["train"] == {"VCOT_TRAIN_EPOCHS": "-1", "VCOT_RUN_URI": "s3://b/runs/r1", "HOME": "/scratch"}
    assert seen["convert"]["VCOT_PART"] == "prepare"


def test_settings_are_not_judged_again_by_a_conductor_that_takes_over() -> None:
    cluster = a_cluster()
    cluster.crash_at = 40
    with pytest.raises(Crash):
        carry_out(cluster)
    carry_out(cluster, validate=lambda stage, variables: [f"{stage} was asked again"])


def test_a_missing_config_map_and_a_missing_template_are_named() -> None:
    cluster = a_cluster()
    del cluster.objects["ConfigMap", "settings-train-abc"]
    message, _ = said(cluster, SettingsError)
    assert message == (
        "train: its template names ConfigMap settings-train-abc, which is not in namespace vcot; "
        "apply the overlay again"
    )
    del cluster.objects["CronJob", "stage-evaluate"]
    message, _ = said(cluster, SettingsError)
    assert message.startswith("evaluate: there is no CronJob stage-evaluate in namespace vcot")
    assert cluster.created == NOTHING


def test_a_cluster_that_is_too_old_is_refused() -> None:
    cluster = a_cluster()
    cluster.kubernetes = (1, 32)
    message, _ = said(cluster, SettingsError)
    assert message.startswith("this cluster is Kubernetes 1.32; vcot needs 1.33 or later")
    assert cluster.created == NOTHING


def test_a_template_without_its_container_is_refused() -> None:
    cluster = a_cluster()
    cluster.objects["CronJob", "stage-train"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0][
        "name"
    ] = "trainer"
    assert said(cluster, SettingsError)[0] == "CronJob stage-train has no container called main"


@pytest.mark.parametrize("run_id", ["R_1", "-r", "r-", "a" * 31, "r.1"])
def test_a_run_id_that_cannot_name_jobs_is_refused(run_id: str) -> None:
    environment = {"JOB_NAME": f"pipeline-{run_id}", "JOB_UID": "u", "POD_NAMESPACE": "vcot"}
    with pytest.raises(UsageError, match=f"RUN_ID {run_id}: it has to be lower-case letters"):
        RunIdentity.of(environment)


def test_the_run_is_named_by_its_job_which_no_config_map_can_change() -> None:
    environment = {"JOB_NAME": "pipeline-r1", "JOB_UID": "u", "POD_NAMESPACE": "vcot"}
    assert RunIdentity.of(environment, "changed-in-the-middle").run_id == "r1"
    assert RunIdentity.of(environment | {"JOB_NAME": "by-hand"}, "r2").run_id == "r2"
    with pytest.raises(SettingsError, match="JOB_UID: not set"):
        RunIdentity.of({"JOB_NAME": "pipeline-r1", "POD_NAMESPACE": "vcot"})


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


def test_a_job_that_ran_out_of_memory_says_what_to_raise() -> None:
    cluster = a_cluster({"r1-train": fails(137, reason="OOMKilled", job_reason="BackoffLimitExceeded")})
    message, _ = said(cluster)
    assert message.startswith(
        "train failed with exit code 137 (killed); the kernel killed it for using more memory than its limit of 64Gi "
        "(OOMKilled): raise resources.limits.memory of stage-train, or let the stage use less"
    )


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


def test_a_pod_that_ended_without_its_container_has_no_exit_code() -> None:
    def put_off(cluster: MemoryCluster, job: Manifest) -> None:
        def end() -> None:
            name = cluster.pod(job, "Failed")
            cluster.objects["Pod", name]["status"] |= {"reason": "Evicted", "message": "The node was low\non memory. "}
            cluster.status(job, ready=0, failed=1)

        cluster.clock.at(1, lambda: cluster.status(job, ready=1))
        cluster.clock.at(6, lambda: cluster.over(job, "Failed", "BackoffLimitExceeded"))
        cluster.clock.at(5, end)

    message, lines = said(a_cluster({"r1-train": put_off}), plan=only("train"))
    assert "train: pod r1-train-a1 ended: the node put it off: The node was low on memory.; the Job" in " ".join(lines)
    assert message.startswith("train failed; the node put it off: The node was low on memory.; `kubectl")


def test_a_job_that_took_too_long_says_so() -> None:
    def late(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.clock.at(9, lambda: cluster.over(job, "Failed", "DeadlineExceeded", "Job was active too long"))

    message, _ = said(a_cluster({"r1-train": late}))
    assert "it took longer than activeDeadlineSeconds of stage-train allows (3600 s)" in message


def test_shards_that_took_too_long_say_so_though_one_of_them_is_bad() -> None:
    def late(cluster: MemoryCluster, job: Manifest) -> None:
        words = {"failedIndexes": "1", "failed": 1}
        cluster.clock.at(9, lambda: cluster.over(job, "Failed", "DeadlineExceeded", "active too long", **words))

    message, _ = said(a_cluster({"r1-convert-shards": late}))
    assert "it took longer than activeDeadlineSeconds of stage-convert allows (3600 s)" in message


def test_a_failed_job_whose_pods_are_gone_still_has_a_reason() -> None:
    def gone(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.clock.at(1, lambda: cluster.over(job, "Failed", "BackoffLimitExceeded", "Job has reached its limit"))

    assert "BackoffLimitExceeded: Job has reached its limit" in said(a_cluster({"r1-train": gone}))[0]


def test_the_end_of_a_log_serves_where_a_stage_left_no_summary() -> None:
    log = '{"event": "starting"}\n{"event": "no room left on the disk", "level": "error"}\n'

    def unspoken(cluster: MemoryCluster, job: Manifest) -> None:
        def end() -> None:
            cluster.pod(job, "Failed", exit_code=75, message=log)
            cluster.over(job, "Failed", "BackoffLimitExceeded", "", failed=5)

        cluster.clock.at(1, end)

    message, _ = said(a_cluster({"r1-train": unspoken}))
    assert "exit code 75 (storage or network, for now); tried 5 times, last: no room left on the disk" in message


def test_a_job_deleted_by_hand_ends_the_run_and_is_not_made_again() -> None:
    cluster = a_cluster({"r1-train": never()})
    cluster.clock.at(200, lambda: cluster.delete("Job", "r1-train"))
    message, _ = said(cluster)
    assert message.startswith("somebody deleted Job r1-train before it had ended; nothing is started in its place")
    assert cluster.created.count("r1-train") == 1


def test_a_job_deleted_while_nobody_could_watch_ends_the_run_too() -> None:
    cluster = a_cluster({"r1-train": never()})

    def away() -> None:
        cluster.delete("Job", "r1-train")
        cluster.history.clear()
        cluster.oldest_watch = 10**6  # 410

    cluster.clock.at(200, away)
    assert said(cluster)[0].startswith("somebody deleted Job r1-train")


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
    """The conductor died between the suspension and its own end."""
    cluster = a_cluster({"r1-train": never()})
    said(cluster, plan=only("train"), pending_timeout=300)
    began = cluster.clock.now()
    message, _ = said(cluster, plan=only("train"), pending_timeout=300)
    assert message.startswith("train has waited 5 min for a pod to run")
    assert cluster.clock.now() - began < 60


def test_a_job_that_cannot_be_suspended_is_said_to_be_left_waiting() -> None:
    cluster = a_cluster({"r1-train": never()})
    cluster.unchangeable = {"Job"}
    message, _ = said(cluster, plan=only("train"), pending_timeout=300)
    assert "Job r1-train could not be suspended (cannot patch resource jobs) and would still run" in message


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


def test_what_runs_when_the_run_ends_goes_on_to_its_own_end() -> None:
    cluster = a_cluster({"r1-train": succeeds(after=600)})
    cluster.clock.at(20, lambda: setattr(cluster, "watch", refuse))
    said(cluster, Refused, plan=only("train"))
    assert "suspend" not in cluster.objects["Job", "r1-train"]["spec"]


@pytest.mark.parametrize("error", [TemporaryError("the API server is away"), KeyError("a bug")], ids=["away", "bug"])
def test_what_waits_is_left_to_the_next_conductor_where_the_pipeline_job_starts_one(error: Exception) -> None:
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


def away(*_: object) -> Manifest:
    raise TemporaryError("the API server is away")


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


def test_the_last_shards_wait_for_nothing() -> None:
    def script(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.event("r1-convert-shards", "FailedCreate", "exceeded quota: memory")  # long past
        cluster.clock.at(1, lambda: cluster.status(job, ready=2, active=2, succeeded=6))
        cluster.clock.at(100, lambda: cluster.over(job, "Complete", succeeded=8))

    cluster = with_shards(8, {"r1-convert-shards": script})
    with capture_logs() as lines:
        carry_out(cluster, a_plan("convert"))
    assert not [line for line in lines if "wait" in line["event"]]


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


def test_a_queue_of_kueue_is_named() -> None:
    cluster = a_cluster({"r1-train": never()})
    job = cluster.objects["CronJob", "stage-train"]["spec"]["jobTemplate"]
    job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
    job["spec"]["suspend"] = True  # Kueue's webhook does this to the Job
    message, _ = said(cluster, plan=only("train"), pending_timeout=60)
    assert "Kueue has not admitted it yet (queue gpu)" in message


def test_waiting_has_an_end_also_where_no_reason_is_known_or_reports_are_forbidden() -> None:
    assert "no reason is known" in said(a_cluster({"r1-train": never()}), plan=only("train"))[0]
    cluster = a_cluster({"r1-train": never()})
    cluster.forbidden = {"Pod", "Event"}
    message, lines = said(cluster, plan=only("train"))
    assert "no reason is known" in message
    assert len([line for line in lines if line.startswith("cannot look at pods and events")]) == 1


def test_a_pod_that_runs_for_hours_is_not_waiting() -> None:
    cluster = a_cluster({"r1-train": succeeds(after=40_000)})
    carry_out(cluster, only("train"))


def test_a_pause_of_the_job_between_two_tries_is_not_waiting() -> None:
    def slow_to_retry(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.clock.at(2, lambda: cluster.status(job, failed=1))
        cluster.clock.at(600, lambda: succeeds()(cluster, job))

    carry_out(a_cluster({"r1-train": slow_to_retry}), only("train"), pending_timeout=120)


# --- several pods as one ---------------------------------------------------------------------------------


def test_what_keeps_the_pods_of_a_set_out_is_said_of_the_job_inside_it() -> None:
    def refused(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.event("r1-train-node-0", "FailedCreate", "pods is forbidden: exceeded quota: gpu")

    cluster = a_cluster({"r1-train": refused})
    cluster.put("CronJob", template("train", **{"vcot/engine": "jobset"}))
    assert "exceeded quota: gpu" in said(cluster, plan=only("train"), pending_timeout=60)[0]


def test_a_set_that_waited_too_long_is_suspended() -> None:
    cluster = a_cluster({"r1-train": never()})
    cluster.put("CronJob", template("train", **{"vcot/engine": "jobset"}))
    said(cluster, plan=only("train"), pending_timeout=60)
    assert cluster.objects["JobSet", "r1-train"]["spec"]["suspend"] is True


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
