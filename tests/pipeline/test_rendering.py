"""From a template to the Jobs of a run. The whole of it stands in golden/; make it again with REWRITE_GOLDEN=1."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cluster import template
from vcot.errors import SettingsError
from vcot.pipeline.client import Manifest
from vcot.pipeline.orchestrator import Step, make_plan
from vcot.pipeline.templates import FrozenPlan, Owner, complete, freeze, render

OWNER = Owner("pipeline-r1", "uid-of-pipeline")
PLAN = make_plan("r1", "s3://b/runs", {}, in_parts=True)
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


def main_env(job: Manifest) -> dict[str, Any]:
    main = job["spec"]["template"]["spec"]["containers"][0]
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in main["env"]}


def test_the_parts_of_a_stage_differ_in_nothing_but_their_part_and_shards() -> None:
    prepare, finish = a_job("convert-prepare"), a_job("convert-finish")
    assert main_env(prepare) == {"HOME": "/scratch", "VCOT_PART": "prepare", "VCOT_RUN_URI": "s3://b/runs/r1"}
    assert json.dumps(prepare).replace("prepare", "finish") == json.dumps(finish)


def test_a_bad_shard_fails_alone_and_every_other_code_fails_the_job() -> None:
    spec = a_job("convert-shards", shards=12)["spec"]
    ignore, alone, others = spec["podFailurePolicy"]["rules"]
    assert ignore["action"] == "Ignore"
    assert (alone["action"], alone["onExitCodes"]["values"]) == ("FailIndex", [65])
    assert (others["action"], others["onExitCodes"]["values"]) == ("FailJob", [20, 21, 64, 78])
    assert (spec["backoffLimitPerIndex"], "backoffLimit" in spec) == (4, False)
    shard = main_env(a_job("convert-shards", shards=12))["VCOT_SHARD"]
    assert shard == {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}


@pytest.mark.parametrize(
    ("shards", "annotation", "at_a_time"), [(12, None, 8), (3, None, 3), (12, "20", 12), (12, "2", 2)]
)
def test_shards_at_a_time(shards: int, annotation: str | None, at_a_time: int) -> None:
    given = template("convert", **({"vcot/parallelism": annotation} if annotation else {}))
    assert a_job("convert-shards", given, shards)["spec"]["parallelism"] == at_a_time


@pytest.mark.parametrize(
    ("annotations", "says"),
    [
        ({"vcot/parallelism": "many"}, "CronJob stage-convert: annotation vcot/parallelism: many is no number from 1"),
        ({"vcot/parallelism": "0"}, "annotation vcot/parallelism: 0 is no number"),
        ({"vcot/engine": "jobsets"}, "annotation vcot/engine: jobsets is not understood here"),
        ({"vcot/engine": "jobset"}, "annotation vcot/engine: jobset is not understood here"),  # not for shards
    ],
)
def test_annotations_that_nobody_understands_are_refused(annotations: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        a_job("convert-shards", template("convert", **annotations), 3)


def test_what_the_plan_knows_beats_the_template_and_everything_else_goes_through() -> None:
    given = copy.deepcopy(TEMPLATES["train"])
    pod = given["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    pod["nodeSelector"], pod["fieldOfTomorrow"] = {"node-pool": "gpu"}, {"x": 1}
    pod["containers"][0]["env"] = [{"name": "VCOT_RUN_URI", "value": "s3://elsewhere"}]
    before = copy.deepcopy(given)
    made = complete(
        render(Step("train", "s3://b/runs/r1", {"VCOT_TRAIN_INPUT_URI": "s3://other/tokenize"}, ()), "r1", given),
        OWNER, "d",
    )  # fmt: skip
    assert main_env(made) == {"VCOT_RUN_URI": "s3://b/runs/r1", "VCOT_TRAIN_INPUT_URI": "s3://other/tokenize"}
    assert made["spec"]["template"]["spec"]["nodeSelector"] == {"node-pool": "gpu"}
    assert made["spec"]["template"]["spec"]["fieldOfTomorrow"] == {"x": 1}
    assert made["metadata"]["labels"]["team"] == "vision"
    assert given == before


def test_the_queue_of_a_jobset_is_not_on_the_job_inside() -> None:
    made = a_job("train", multinode())
    (member,) = made["spec"]["replicatedJobs"]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert "kueue.x-k8s.io/queue-name" not in member["template"]["metadata"]["labels"]
    assert main_env(member["template"])["PET_MASTER_ADDR"] == "r1-train-node-0-0.r1-train"


def test_a_frozen_plan_reads_back_as_it_was_and_fits_into_a_config_map() -> None:
    frozen = freeze(PLAN, TEMPLATES)
    again = FrozenPlan.read(frozen.text)
    assert (again.plan, again.jobs, again.digest) == (frozen.plan, frozen.jobs, frozen.digest)
    assert len(frozen.text) < 200_000  # a ConfigMap holds a mebibyte; real templates are three times these
    changed = copy.deepcopy(TEMPLATES)
    changed["train"]["spec"]["jobTemplate"]["spec"]["backoffLimit"] = 5
    assert freeze(PLAN, changed).digest != frozen.digest


def test_names_fit_where_names_have_an_end() -> None:
    longest = "r" * 30
    for step in PLAN.steps:
        name = render(step, longest, TEMPLATES[step.stage])["metadata"]["name"]
        assert len(f"{name}-node-0-0-abcde") <= 63
