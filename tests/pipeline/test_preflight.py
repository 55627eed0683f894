"""What is refused before the first Job is made, and settings of runs that are gone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.cluster import Crash, template
from tests.fakes.runs import (
    NOTHING,
    a_cluster,
    a_plan,
    apply,
    carry_out,
    only,
    said,
)
from vcot.errors import SettingsError, UsageError
from vcot.pipeline.executor import RunIdentity
from vcot.pipeline.orchestrator import make_plan
from vcot.pipeline.templates import Owner

# --- another apply before this run has begun -------------------------------------------------------------


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
    plan = make_plan("r2", "s3://b/runs", {}, in_parts=True)
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
    orchestrator = {"name": "orchestrator", "envFrom": [{"configMapRef": {"name": "run-bbbbbbbbbb"}}]}
    cluster.put(
        "Job", {"metadata": {"name": "pipeline-r0"}, "spec": {"template": {"spec": {"containers": [orchestrator]}}}}
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
    data, labels = {"VCOT_TRAIN_LORA_R": "8"}, {"vcot/holds": "settings"}
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
    message, _ = said(cluster, UsageError, plan=make_plan("2nd", "s3://b/runs", {}, in_parts=True))
    assert message.startswith("RUN_ID 2nd: with component multinode-jobset it has to begin with a letter")
    assert cluster.created == ["2nd-state"]


# --- refused before anything is made ---------------------------------------------------------------------


def test_settings_of_all_stages_are_judged_before_anything_is_made_with_a_line_for_each_fault() -> None:
    cluster = a_cluster()
    seen: dict[str, Any] = {}

    def validate(stage: str, variables: dict[str, str]) -> list[str]:
        seen[stage] = dict(variables)
        return [f"{stage}: one", f"{stage}: two"] if stage in ("distill", "train") else []

    cluster.objects["ConfigMap", "settings-train-abc"]["data"] = {"VCOT_TRAIN_NUM_TRAIN_EPOCHS": "-1"}
    message, _ = said(cluster, SettingsError, validate=validate)
    assert message.splitlines() == ["distill: one", "distill: two", "train: one", "train: two"]
    assert cluster.created == NOTHING
    assert seen["train"] == {"VCOT_TRAIN_NUM_TRAIN_EPOCHS": "-1", "VCOT_RUN_URI": "s3://b/runs/r1", "HOME": "/scratch"}
    assert seen["convert"]["VCOT_PART"] == "prepare"


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
