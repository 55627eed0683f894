"""What overlays and components make, and what they leave alone."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tests.k8s.golden import FILES, FOLDER
from tests.k8s.kustomize import (
    ALL_COMPONENTS,
    OVERLAYS,
    POOLS,
    ROOT,
    Manifest,
    around,
    edited,
    job_specs,
    named,
    of_kind,
    render,
    rendered,
)  # fmt: skip
from vcot.settings import STAGES, Device


def pod(objects: Sequence[Manifest], template: str) -> Any:
    return named(objects, "CronJob", template)["spec"]["jobTemplate"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("file", FILES)
def test_the_golden_render_is_what_the_manifests_make(file: str) -> None:
    """After a change that is meant: make golden."""
    assert (FOLDER / file).read_text() == FILES[file]()


def test_reevaluation_runs_in_the_pod_of_evaluate() -> None:
    specs = dict(job_specs(rendered("gpu")))
    again, once = specs["CronJob/reevaluate"], specs["CronJob/stage-evaluate"]

    def comparable(spec: Manifest) -> Manifest:
        pod_spec = spec["template"]["spec"]
        container = pod_spec["containers"][0]
        container = {key: value for key, value in container.items() if key not in ("env", "envFrom")}
        by_name = {key: sorted(pod_spec[key], key=str) for key in ("tolerations", "volumes")}
        container["volumeMounts"] = sorted(container["volumeMounts"], key=str)
        template = {"metadata": spec["template"]["metadata"], "spec": pod_spec | by_name | {"containers": [container]}}
        return spec | {"template": template}

    assert comparable(again) == comparable(once)


def test_a_pool_moves_the_stages_with_a_gpu_and_no_other(tmp_path: Path) -> None:
    for pool in POOLS:
        specs = dict(job_specs(render(edited(tmp_path / pool, ["reevaluate", pool]))))
        placed = {name for name, spec in specs.items() if "nodeSelector" in spec["template"]["spec"]}
        assert placed == {"CronJob/stage-train", "CronJob/stage-evaluate", "CronJob/reevaluate"}, pool


def test_hardening_knows_the_overlays_images_and_every_device() -> None:
    for overlay in ("gpu", "gpu-kueue", "cpu-smoke"):
        objects = rendered(f"{overlay}+hardening")
        policy = named(objects, "ValidatingAdmissionPolicy", "vcot-orchestrator-jobs")
        said = {one["name"]: one["expression"] for one in policy["spec"]["variables"]}
        for stage in STAGES:
            image = pod(objects, f"stage-{stage}")["containers"][0]["image"]
            assert said[f"imageOf{stage.capitalize()}"] == f"'{image}'", overlay
        (admitted,) = re.findall(r"VCOT_\(TRAIN\|EVALUATE\)_DEVICE=\(([a-z|]+)\)", said["settings"])
        assert sorted(admitted.split("|")) == sorted(get_args(Device)), overlay


def test_components_may_stand_in_any_order(tmp_path: Path) -> None:
    others = [c for c in ALL_COMPONENTS if c not in (*POOLS, "reevaluate", "hardening")]
    forwards = render(edited(tmp_path / "one", ["reevaluate", "pool-aks", *others]))
    backwards = render(edited(tmp_path / "two", ["reevaluate", *reversed(others), "pool-aks"]))

    def unordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: unordered(one) for key, one in value.items()}
        return sorted((unordered(one) for one in value), key=str) if isinstance(value, list) else value

    assert unordered(forwards) == unordered(backwards)


def test_another_run_of_an_overlay_differs_in_its_name_and_its_settings_alone(tmp_path: Path) -> None:
    """The overlay that the page shows for a sweep, as it stands there."""
    page = (ROOT / "docs/kubernetes.md").read_text()
    blocks = map(yaml.safe_load, re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    (shown,) = [block for block in blocks if "resources" in block]
    assert shown.pop("resources") == ["../gpu"]
    objects = render(around(tmp_path, OVERLAYS / "gpu", **shown))
    (pipeline,) = of_kind(objects, "Job")
    assert pipeline["metadata"]["name"] == "pipeline-r-32"
    source, _ = pipeline["spec"]["template"]["spec"]["containers"][0]["envFrom"]
    run = named(objects, "ConfigMap", source["configMapRef"]["name"])
    assert run["data"] == {"RUN_ID": "r-32", "RUNS_URI": "s3://vcot/runs", "FROM_RUN": "first:tokenize"}
    settings, *_ = pod(objects, "stage-train")["containers"][0]["envFrom"]
    assert named(objects, "ConfigMap", settings["configMapRef"]["name"])["data"]["VCOT_TRAIN_LORA_R"] == "32"

    def others(all_of_them: list[Manifest]) -> list[Manifest]:
        changed = ("pipeline-", "run-", "settings-train", "stage-train", "reevaluate")
        return [one for one in all_of_them if not one["metadata"]["name"].startswith(changed)]

    gpu = rendered("gpu")
    (begun_with,) = {one["metadata"]["name"] for one in of_kind(gpu, "ConfigMap") if "RUN_ID" in one["data"]}
    as_gpu = json.loads(json.dumps(others(objects)).replace(run["metadata"]["name"], begun_with))
    assert as_gpu == others(gpu)
