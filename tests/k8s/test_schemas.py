"""The API server would take what overlays make: strict schemas of each version, models of JobSet and TrainJob."""

import functools
import importlib
import json
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator

from tests.k8s.kustomize import ROOT, Manifest, everything, named, rendered, serving
from tests.k8s.kustomize import render as render_folder
from vcot.pipeline.orchestrator import Step
from vcot.pipeline.templates import Owner, complete, render

VERSIONS = ["1.33", "1.37"]
"""The oldest that will do and the newest that is known: a field that both take is taken between them."""
CUSTOM = {"ExternalSecret", "CiliumNetworkPolicy", "TrainJob", "TrainingRuntime"}
"""Kinds of operators, whose schemas Kubernetes does not have; those of Trainer are checked below."""


OWN = ("PET_", "VCOT_RUN_URI", "RUNS_URI")
"""Variables that a training on several nodes has besides."""


@functools.cache
def strict(text: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(text), version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_of_every_overlay_is_valid(version: str) -> None:
    unchecked = set()
    for objects in [*(objects for _, objects in [*everything(), *serving()]), render_folder(ROOT / "k8s/minio")]:
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


def closed(schema: Any) -> Any:
    """The schema of a custom resource in which a field that it does not name is an error, as `kubectl` has it."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        found.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))
    return found


@functools.cache
def faults(kind: str, text: str) -> list[str]:
    schema = closed(json.loads((ROOT / "tests/k8s/schemas" / f"{kind.lower()}.json").read_text()))
    return [
        f"{fault.json_path}: {fault.message}" for fault in Draft202012Validator(schema).iter_errors(json.loads(text))
    ]


def made_jobset() -> Manifest:
    template = named(rendered("gpu+multinode-jobset"), "CronJob", "stage-train")
    step = Step("train", "s3://vcot/runs/first", {}, ())
    return complete(render(step, "first", template), Owner("pipeline-first", "uid"), "digest")


def several_nodes() -> list[Manifest]:
    """The objects of both operators."""
    objects = rendered("gpu+multinode-trainjob")
    return [made_jobset(), named(objects, "TrainJob", "train"), named(objects, "TrainingRuntime", "train")]


@pytest.mark.parametrize("number", range(3))
def test_training_on_several_nodes_fits_the_schema_of_its_operator(number: int) -> None:
    made = several_nodes()[number]
    assert not faults(made["kind"], json.dumps(made))
    wrong = json.loads(json.dumps(made).replace('"replicatedJobs"', '"replicatedJob"').replace('"numNodes"', '"nodes"'))
    assert faults(made["kind"], json.dumps(wrong))


def test_both_operators_drive_the_command_of_a_single_node() -> None:
    """The same process with the same settings in every pod, which is refused and stopped the same way."""
    single = named(rendered("gpu"), "CronJob", "stage-train")["spec"]["jobTemplate"]["spec"]
    jobset, trainjob, runtime = several_nodes()
    sets = [jobset["spec"], runtime["spec"]["template"]["spec"]]
    nodes = [one["replicatedJobs"][0]["template"]["spec"] for one in sets]
    main = single["template"]["spec"]["containers"][0]
    for job in nodes:
        pod, (container,) = job["template"]["spec"], job["template"]["spec"]["containers"]
        for key in ("args", "command", "image", "envFrom", "securityContext", "terminationMessagePolicy"):
            assert container.get(key) == main.get(key), key
        mounts, of_single = ({one["mountPath"] for one in c["volumeMounts"]} for c in (container, main))
        assert mounts == of_single
        plain, of_single = (
            {one["name"]: one["value"] for one in c["env"] if "value" in one and not one["name"].startswith(OWN)}
            for c in (container, main)
        )
        assert plain == of_single
        for key in ("securityContext", "serviceAccountName", "terminationGracePeriodSeconds", "restartPolicy"):
            assert pod[key] == single["template"]["spec"][key], key
        (fail,) = job["podFailurePolicy"]["rules"]  # an evicted rank is not replaced alone: all begin again
        (of_single,) = [rule for rule in single["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
        assert fail["action"] == "FailJob"
        assert fail["onExitCodes"] == of_single["onExitCodes"] | {"containerName": container["name"]}
        assert (job["backoffLimit"], job["activeDeadlineSeconds"]) == (0, single["activeDeadlineSeconds"])
    assert sets[0]["failurePolicy"] == sets[1]["failurePolicy"]
    of_jobset, trainer = nodes[0], trainjob["spec"]["trainer"]
    (container,) = of_jobset["template"]["spec"]["containers"]
    pet = {one["name"]: one.get("value") for one in container["env"] if one["name"].startswith("PET_")}
    assert {of_jobset["completions"], of_jobset["parallelism"], int(pet["PET_NNODES"] or 0)} == {trainer["numNodes"]}
    assert runtime["spec"]["mlPolicy"]["numNodes"] == trainer["numNodes"]
    wanted = container["resources"]
    assert trainer["resourcesPerNode"] == wanted
    assert trainjob["spec"]["suspend"] is True


def test_the_jobset_of_a_training_on_several_nodes_fits_its_model() -> None:
    jobset = made_jobset()
    assert jobset["kind"] == "JobSet"
    read = of_its_model(jobset, "jobset_v1alpha2_job_set", "JobsetV1alpha2JobSet")
    assert not lost(jobset, read)
    (ranks,) = jobset["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "ranks"}, "spec": ranks["template"]["spec"]}
    for version in VERSIONS:
        strict(json.dumps(job), version)
