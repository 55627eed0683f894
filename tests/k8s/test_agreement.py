"""Manifests and code say the same: stages, settings, variables, exit codes."""

import importlib
import os
import re
from collections.abc import Mapping, Sequence
from unittest.mock import patch

import pytest

from tests.k8s.kustomize import COMPONENTS, OVERLAYS, ROOT, Manifest, job_specs, of_kind, render, rendered
from vcot import errors
from vcot.pipeline.local import gather_variables, read_env_file
from vcot.pipeline.orchestrator import RETRY
from vcot.settings import PREFIX, STAGES, Declared, Settings, variable

RENDERED = ["gpu", "gpu-kueue", "gpu-grpo", "gpu-gfn", "cpu-smoke", "gpu+spot", "gpu+multinode-jobset"]

#: What the world outside gives to what stands in a pod through the downward API.
DOWNWARD = {
    "metadata.labels['batch.kubernetes.io/job-name']": "reevaluate-29920626",
    "metadata.labels['batch.kubernetes.io/controller-uid']": "3f9a8a0e-0000-4000-8000-000000000000",
    "metadata.annotations['batch.kubernetes.io/job-completion-index']": "0",
    "metadata.namespace": "vcot",
}


def environment(objects: list[Manifest], spec: Manifest) -> dict[str, str]:
    """What the process sees, as the kubelet would put it together (without Secrets)."""
    maps = {one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}
    container = spec["template"]["spec"]["containers"][0]
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        if "configMapRef" in source:
            prefix = source.get("prefix", "")
            found |= {prefix + key: value for key, value in maps[source["configMapRef"]["name"]].items()}
    for one in container["env"]:
        taken = one.get("valueFrom", {})
        if "configMapKeyRef" in taken:
            found[one["name"]] = maps[taken["configMapKeyRef"]["name"]][taken["configMapKeyRef"]["key"]]
        elif "fieldRef" in taken:
            found[one["name"]] = DOWNWARD[taken["fieldRef"]["fieldPath"]]
        else:
            found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], one["value"])
    return found


def settings_of(module: str) -> type[Declared]:
    (found,) = [
        value
        for value in vars(importlib.import_module(module)).values()
        if isinstance(value, type) and issubclass(value, Declared) and value not in (Declared, Settings)
    ]
    return found


def load(module: str, flags: Sequence[str], variables: Mapping[str, str]) -> Declared:
    """The settings of a job where these are the only variables; refuses what it does not know."""
    with patch.dict(os.environ, variables, clear=True):
        return settings_of(module).load(flags)[0]


def test_a_template_for_each_stage_and_a_stage_for_each_template() -> None:
    objects = render(ROOT / "k8s/base")
    stages = {one["metadata"]["name"]: one["metadata"]["labels"]["vcot/stage"] for one in of_kind(objects, "CronJob")}
    assert stages == {f"stage-{stage}": stage for stage in STAGES}
    for one in of_kind(objects, "CronJob"):
        stage = one["metadata"]["labels"]["vcot/stage"]
        inner = one["spec"]["jobTemplate"]
        assert inner["metadata"]["labels"]["vcot/stage"] == stage
        assert inner["spec"]["template"]["metadata"]["labels"]["vcot/stage"] == stage
        assert inner["spec"]["template"]["spec"]["containers"][0]["args"] == [f"jobs.{stage}"]


def test_codes_that_end_a_job_at_once_are_those_that_trying_again_does_not_change() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VcotError)]
    codes = {kind.exit_code for kind in kinds}
    in_the_pipeline_alone = errors.StageFailed.exit_code
    # NotWhole: the orchestrator's own process is asked for it.
    final = codes - {*RETRY, in_the_pipeline_alone, errors.KeyboardStop.exit_code, errors.NotWhole.exit_code}
    for where, spec in job_specs(rendered("gpu")):
        (fail,) = [rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
        orchestrator = where.startswith("Job/")
        assert set(fail["onExitCodes"]["values"]) == final | ({in_the_pipeline_alone} if orchestrator else set()), where


@pytest.mark.parametrize("name", RENDERED)
def test_every_process_understands_its_settings_and_reads_all_its_variables(name: str) -> None:
    objects = rendered(name)
    sources = [path.read_text() for folder in ("vcot", "jobs") for path in (ROOT / folder).rglob("*.py")]
    read = {word for text in sources for word in re.findall(r"[A-Z][A-Z0-9_]{3,}", text)}
    for where, spec in job_specs(objects):
        container = spec["template"]["spec"]["containers"][0]
        (module, *flags), variables = container["args"], environment(objects, spec)
        given = {n: v for n, v in variables.items() if n.startswith(PREFIX)}
        if where.startswith("CronJob/stage-"):
            given[f"{PREFIX}RUN_URI"] = "s3://vcot/runs/first"  # the orchestrator's to say
        settings = load(module, flags, given)
        assert settings.stage == module.removeprefix("jobs."), where
        known = {variable(type(settings), field) for field in type(settings).model_fields}
        expanded = set(re.findall(r"\$\((\w+)\)", str(container["env"])))
        # AWS_* is read by clients of S3.
        assert not [n for n in variables if n not in known | read | expanded and not n.startswith("AWS_")], where


@pytest.mark.parametrize("stage", STAGES)
def test_settings_that_a_file_only_offers_are_settings_too(stage: str) -> None:
    """Lines like #VCOT_CONVERT_INGEST=true, all of them at once, over those of a chain on GPUs."""
    path = ROOT / "k8s/base/settings" / f"{stage}.env"
    offered = dict(line[1:].split("=", 1) for line in path.read_text().splitlines() if line.startswith(f"#{PREFIX}"))
    gpu = read_env_file(OVERLAYS / "gpu/settings" / path.name)
    run_uri = {f"{PREFIX}RUN_URI": "s3://vcot/runs/first"}
    settings = load(f"jobs.{stage}", [], read_env_file(path) | gpu | run_uri | offered)
    assert offered.keys() <= {variable(type(settings), name) for name in settings.model_fields_set}
    assert offered or stage != "convert"


def test_the_time_to_save_is_part_of_the_grace_period() -> None:
    for name in ("gpu", "gpu+spot", "cpu-smoke"):
        objects = rendered(name)
        spec = dict(job_specs(objects))["CronJob/stage-train"]
        to_save = float(environment(objects, spec)["VCOT_TRAIN_GRACE_SECONDS"])
        assert 0 < to_save < spec["template"]["spec"]["terminationGracePeriodSeconds"]
    assert to_save > 60


def test_the_small_chain_has_the_settings_of_the_example() -> None:
    places = {"EXAMPLE_URI": "s3://vcot/examples/blood-cells", "BASE_URI": "s3://vcot/examples/rehearsal"}
    base, example = ROOT / "k8s/base/settings", ROOT / "examples/blood-cells/settings"
    on_a_laptop = gather_variables([base, example], {}, places)
    objects = rendered("cpu-smoke")
    on_a_cluster = {
        stage: one["data"]
        for one in of_kind(objects, "ConfigMap")
        for stage in STAGES
        if one["metadata"]["name"].startswith(f"settings-{stage}-")
    }
    assert on_a_cluster == on_a_laptop
    assert "${" not in str(on_a_cluster)


def test_the_page_tells_of_every_component_overlay_and_example() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    for folder in (COMPONENTS, OVERLAYS, ROOT / "k8s/examples"):
        for one in folder.iterdir():
            assert f"`{one.name}`" in page, one.name
