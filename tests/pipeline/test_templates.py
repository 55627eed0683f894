"""From a template to the Jobs of a run, what is refused before the first is made, and settings of runs that are gone.

The Jobs as a whole stand in golden/; make them again with REWRITE_GOLDEN=1.
"""

from __future__ import annotations

import copy
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.cluster import NOTHING, OWNER, Crash, a_cluster, a_plan, only, template
from vcot.errors import SettingsError, UsageError
from vcot.pipeline.client import Manifest
from vcot.pipeline.executor import RunIdentity
from vcot.pipeline.orchestrator import Step, make_plan
from vcot.pipeline.templates import FrozenPlan, Owner, complete, freeze, render

PLAN = a_plan()
STEPS = {step.name: step for step in PLAN.steps}
TEMPLATES = {stage: template(stage) for stage in ("convert", "distill", "tokenize", "train", "evaluate")}
GOLDEN = Path(__file__).parent / "golden"


def a_job(step: str, given: Manifest | None = None, shards: int | None = None) -> Manifest:
    stage = STEPS[step].stage
    return complete(render(STEPS[step], "r1", given or TEMPLATES[stage]), OWNER, "d" * 64, shards)


def multinode() -> Manifest:
    given = template("train", **{"vcot/engine": "jobset"})
    inner = given["spec"]["jobTemplate"]
    inner["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
    inner["spec"] |= {"completionMode": "Indexed", "completions": 2, "parallelism": 2, "backoffLimit": 0}
    return given


CASES: dict[str, Any] = {
    "prepare": lambda: a_job("convert-prepare"),
    "shards": lambda: a_job("convert-shards", shards=12),
    "finish": lambda: a_job("convert-finish"),
    "train": lambda: a_job("train"),
    "train-jobset": lambda: a_job("train", multinode()),
}


@pytest.mark.parametrize("case", CASES)
def test_jobs_are_what_they_were(case: str) -> None:
    path, made = GOLDEN / f"{case}.json", json.dumps(CASES[case](), indent=1, sort_keys=True) + "\n"
    if "REWRITE_GOLDEN" in os.environ:
        path.write_text(made)
    assert made == path.read_text()


@pytest.mark.parametrize(
    ("shards", "annotation", "at_a_time"), [(12, None, 8), (3, None, 3), (12, "20", 12), (12, "2", 2)]
)
def test_shards_at_a_time(shards: int, annotation: str | None, at_a_time: int) -> None:
    given = template("convert", **({"vcot/parallelism": annotation} if annotation else {}))
    assert a_job("convert-shards", given, shards)["spec"]["parallelism"] == at_a_time


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("vcot/parallelism", "many", "many is no number from 1"), ("vcot/parallelism", "0", "0 is no number from 1"),
        ("vcot/engine", "jobsets", "jobsets is not understood here"),
        ("vcot/engine", "jobset", "jobset is not understood here"),  # not for shards
    ],
)  # fmt: skip
def test_annotations_that_nobody_understands_are_refused(name: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=f"CronJob stage-convert: annotation {name}: {says}"):
        a_job("convert-shards", template("convert", **{name: value}), 3)


def test_what_the_plan_knows_beats_the_template_and_everything_else_goes_through() -> None:
    given = copy.deepcopy(TEMPLATES["train"])
    pod = given["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    pod["nodeSelector"], pod["fieldOfTomorrow"] = {"node-pool": "gpu"}, {"x": 1}
    pod["containers"][0]["env"] = [{"name": "VCOT_RUN_URI", "value": "s3://elsewhere"}]
    before = copy.deepcopy(given)
    step = Step("train", "s3://b/runs/r1", {"VCOT_TRAIN_INPUT_URI": "s3://other/tokenize"}, ())
    made = render(step, "r1", given)
    spec = made["spec"]["template"]["spec"]
    env = {one["name"]: one["value"] for one in spec["containers"][0]["env"]}
    assert env == {"VCOT_RUN_URI": "s3://b/runs/r1", "VCOT_TRAIN_INPUT_URI": "s3://other/tokenize"}
    assert (spec["nodeSelector"], spec["fieldOfTomorrow"]) == ({"node-pool": "gpu"}, {"x": 1})
    assert made["metadata"]["labels"]["team"] == "vision"
    assert given == before


def test_a_frozen_plan_reads_back_as_it_was_and_fits_into_a_config_map() -> None:
    frozen = freeze(PLAN, TEMPLATES)
    again = FrozenPlan.read(frozen.text)
    assert (again.plan, again.jobs, again.digest) == (frozen.plan, frozen.jobs, frozen.digest)
    assert len(frozen.text) < 200_000  # a ConfigMap holds a mebibyte; real templates are three times these
    changed = copy.deepcopy(TEMPLATES)
    changed["train"]["spec"]["jobTemplate"]["spec"]["backoffLimit"] = 5
    assert freeze(PLAN, changed).digest != frozen.digest


# --- another apply before this run has begun -------------------------------------------------------------


def image_of(cluster: Any, job: str) -> str:
    return str(cluster.objects["Job", job]["spec"]["template"]["spec"]["containers"][0]["image"])


def test_a_run_whose_templates_another_run_has_replaced_before_it_began_is_refused() -> None:
    cluster = a_cluster()
    cluster.apply("r1", "10")
    cluster.apply("r2", "10", train="of r2")
    message, _ = cluster.said(UsageError, plan=a_plan())
    assert message == (
        "CronJobs stage-convert, stage-distill, stage-tokenize, stage-train, stage-evaluate are of run r2: applied "
        "after pipeline-r1 was, and before it had begun. It would run with the other one's images and settings, so "
        "nothing was started. To start it: `kubectl -n vcot delete job pipeline-r1`, then apply its overlay again, and "
        "nothing else before ConfigMap r1-plan is there"
    )
    assert cluster.created == NOTHING
    plan = make_plan("r2", "s3://b/runs", in_parts=True)
    cluster.carry_out(plan, owner=Owner("pipeline-r2", "uid-of-r2"))
    assert image_of(cluster, "r2-train") == "of r2"


def test_templates_changed_under_the_same_run_id_before_it_began_are_refused_and_the_same_again_is_not() -> None:
    cluster = a_cluster()
    cluster.apply("r1", "10")
    cluster.apply("r1", "30", train="changed")
    message, _ = cluster.said(UsageError, plan=a_plan())
    assert message.startswith("CronJob stage-train is not what pipeline-r1 was applied with: changed after that")
    assert cluster.created == NOTHING

    cluster = a_cluster()
    cluster.apply("r1", "10")
    cluster.apply("r1", "30")
    cluster.crash_at = 40
    with pytest.raises(Crash):
        cluster.carry_out()
    cluster.apply("r2", "50", train="of r2")  # one that has begun is not asked again
    cluster.carry_out()
    assert image_of(cluster, "r1-train") != "of r2"


# --- refused before anything is made ---------------------------------------------------------------------


def test_settings_of_all_stages_are_validated_first_with_a_line_for_each_fault() -> None:
    cluster = a_cluster()
    seen: dict[str, Any] = {}

    def validate(stage: str, variables: dict[str, str]) -> list[str]:
        seen[stage] = dict(variables)
        return [f"{stage}: one", f"{stage}: two"] if stage in ("distill", "train") else []

    cluster.objects["ConfigMap", "settings-train-abc"]["data"] = {"VCOT_TRAIN_NUM_TRAIN_EPOCHS": "-1"}
    message, _ = cluster.said(SettingsError, validate=validate)
    assert message.splitlines() == ["distill: one", "distill: two", "train: one", "train: two"]
    assert cluster.created == NOTHING
    ours = {"VCOT_TRAIN_NUM_TRAIN_EPOCHS": "-1", "VCOT_RUN_URI": "s3://b/runs/r1", "HOME": "/scratch"}
    assert seen["train"] == ours | {"CUDA_VISIBLE_DEVICES": ""}  # its container has no limit of GPUs
    assert seen["convert"]["VCOT_PART"] == "prepare"


def test_a_missing_config_map_a_missing_template_and_an_old_cluster_are_refused() -> None:
    cluster = a_cluster()
    del cluster.objects["ConfigMap", "settings-train-abc"]
    assert cluster.said(SettingsError)[0] == (
        "train: its template names ConfigMap settings-train-abc, which is not in namespace vcot; "
        "apply the overlay again"
    )
    del cluster.objects["CronJob", "stage-evaluate"]
    words = "evaluate: there is no CronJob stage-evaluate in namespace vcot"
    assert cluster.said(SettingsError)[0].startswith(words)
    cluster.kubernetes = (1, 32)
    words = "this cluster is Kubernetes 1.32; vcot needs 1.33 or later"
    assert cluster.said(SettingsError)[0].startswith(words)
    assert cluster.created == NOTHING


def test_a_run_id_that_cannot_name_jobs_is_refused() -> None:
    environment = {"JOB_UID": "u", "POD_NAMESPACE": "vcot"}
    for run_id in ("R_1", "-r", "r-", "a" * 31, "r.1"):
        with pytest.raises(UsageError, match=f"RUN_ID {run_id}: it has to be lower-case letters"):
            RunIdentity.of(environment | {"JOB_NAME": f"pipeline-{run_id}"})
    cluster = a_cluster()
    cluster.put("CronJob", template("train", **{"vcot/engine": "jobset"}))
    message, _ = cluster.said(UsageError, plan=make_plan("2nd", "s3://b/runs", in_parts=True))
    assert message.startswith("RUN_ID 2nd: with component multinode-jobset it has to begin with a letter")
    assert cluster.created == ["2nd-state"]


def test_the_run_is_named_by_its_job_which_no_config_map_can_change() -> None:
    environment = {"JOB_NAME": "pipeline-r1", "JOB_UID": "u", "POD_NAMESPACE": "vcot"}
    assert RunIdentity.of(environment, "changed-in-the-middle").run_id == "r1"
    assert RunIdentity.of(environment | {"JOB_NAME": "by-hand"}, "r2").run_id == "r2"
    with pytest.raises(SettingsError, match="JOB_UID: not set"):
        RunIdentity.of({"JOB_NAME": "pipeline-r1", "POD_NAMESPACE": "vcot"})


# --- settings of runs that are gone ----------------------------------------------------------------------


def settings(cluster: Any, name: str, created: str = "2026-01-01T00:00:00Z") -> None:
    metadata = {"name": name, "labels": {"vcot/holds": "settings"}, "creationTimestamp": created}
    cluster.put("ConfigMap", {"metadata": metadata, "data": {"VCOT_TRAIN_LORA_R": "8"}})


def test_settings_that_nothing_names_any_more_are_removed_when_a_run_begins() -> None:
    cluster = a_cluster()
    for name in ("settings-train-abc", "run-aaaaaaaaaa", "run-bbbbbbbbbb", "settings-train-cccccccccc"):
        settings(cluster, name)
    settings(cluster, "settings-train-dddddddddd", datetime.now(UTC).isoformat())
    container = {"name": "orchestrator", "envFrom": [{"configMapRef": {"name": "run-bbbbbbbbbb"}}]}
    spec = {"template": {"spec": {"containers": [container]}}}
    cluster.put("Job", {"metadata": {"name": "pipeline-r0"}, "spec": spec})
    plan = {"name": "r0-plan", "labels": {"vcot/run": "r0"}}
    cluster.put("ConfigMap", {"metadata": plan, "data": {"plan.json": '"name": "settings-train-cccccccccc"'}})
    before = {name for kind, name in cluster.objects if kind == "ConfigMap"}
    cluster.carry_out(only("train"))
    assert before - {name for kind, name in cluster.objects if kind == "ConfigMap"} == {"run-aaaaaaaaaa"}


def test_settings_that_an_apply_under_way_names_again_are_put_back() -> None:
    cluster = a_cluster()
    settings(cluster, "settings-train-eeeeeeeeee")
    again = json.loads(json.dumps(template("train")).replace("settings-train-abc", "settings-train-eeeeeeeeee"))
    cluster.clock.at(5, lambda: cluster.put("CronJob", again))  # kubectl saw the ConfigMap unchanged, a moment before
    cluster.carry_out(only("train"))
    there = cluster.objects["ConfigMap", "settings-train-eeeeeeeeee"]
    assert (there["data"], there["metadata"]["labels"]) == ({"VCOT_TRAIN_LORA_R": "8"}, {"vcot/holds": "settings"})


def test_settings_that_cannot_be_removed_end_no_run() -> None:
    cluster = a_cluster()
    cluster.refused = {("list", "ConfigMap")}
    with capture_logs() as lines:
        cluster.carry_out(only("train"))
    assert any("settings of earlier runs are left" in line["event"] for line in lines)
