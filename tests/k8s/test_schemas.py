"""The API server would take what overlays make: strict schemas of each version, models of JobSet and TrainJob."""

import functools
import importlib
import json
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.k8s.kustomize import ROOT, Manifest, everything, named, rendered
from tests.k8s.kustomize import render as render_folder
from vcot.pipeline.orchestrator import Step
from vcot.pipeline.templates import Owner, complete, render

VERSIONS = ["1.33", "1.37"]
"""The oldest that will do and the newest that is known: a field that both take is taken between them."""
CUSTOM = {"ExternalSecret", "CiliumNetworkPolicy"}
"""Kinds of operators, whose schemas Kubernetes does not have."""


@functools.cache
def strict(text: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_of_every_overlay_is_valid(version: str) -> None:
    unchecked = set()
    for objects in [*(objects for _, objects in everything()), render_folder(ROOT / "k8s/minio")]:
        for one in objects:
            group, *_ = one["apiVersion"].rpartition("/")
            if "." in group and not group.endswith(".k8s.io"):
                unchecked.add(one["kind"])
            else:
                strict(json.dumps(one, sort_keys=True), version)
    assert unchecked == CUSTOM


def of_its_model(manifest: Manifest, module: str, model: str) -> Any:
    """The object as the operator's own model reads it. Unknown fields would be dropped there, so they are compared."""
    models = importlib.import_module(f"kubeflow_trainer_api.models.{module}")
    read = getattr(models, model).from_dict(manifest)
    assert read is not None
    return read.to_dict()


def lost(before: Any, after: Any, path: str = "") -> list[str]:
    """What stands in `before` and not in `after`."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [line for key in before for line in lost(before[key], after.get(key), f"{path}/{key}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [line for i, (b, a) in enumerate(zip(before, after, strict=True)) for line in lost(b, a, f"{path}/{i}")]
    return [] if before == after else [f"{path}: {before!r} became {after!r}"]


def test_the_jobset_of_a_training_on_several_nodes_fits_its_model() -> None:
    template = named(rendered("gpu+multinode-jobset"), "CronJob", "stage-train")
    step = Step("train", "s3://vcot/runs/first", {}, ())
    jobset = complete(render(step, "first", template), Owner("pipeline-first", "uid"), "digest")
    assert jobset["kind"] == "JobSet"
    read = of_its_model(jobset, "jobset_v1alpha2_job_set", "JobsetV1alpha2JobSet")
    assert not lost(jobset, read)
    (ranks,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "ranks"}, "spec": ranks["template"]["spec"]}
    for version in VERSIONS:
        strict(json.dumps(job), version)


def test_the_example_of_a_trainjob_fits_its_model() -> None:
    example = yaml.safe_load((ROOT / "k8s/examples/trainjob.yaml").read_text())
    read = of_its_model(example, "trainer_v1alpha1_train_job", "TrainerV1alpha1TrainJob")
    assert not lost(example, read)
