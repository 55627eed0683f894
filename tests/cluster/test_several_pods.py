"""Component multinode-jobset without its controller: two pods of one Indexed Job train one model together.

The orchestrator's JobSet is made of the component's template, and the test does what the controller would do: it makes
the Job that the JobSet holds, and makes it anew when it has failed. Otherwise than in a cluster with the controller:

- rank 0 is reached by the address of its pod. On this node no name is resolved, so the name that the orchestrator
  writes (`<job>-node-0-0.<job>`, of the JobSet's headless Service) is not tried. The address comes from a ConfigMap
  that is made once pod 0 has one; until then Kubernetes starts neither container.
- one rank in each pod, on the CPU, through gloo: no GPU, no NCCL.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, Manifest, Overlay, at_a_time
from tests.cluster.conftest import Smoke
from vcot.pipeline.orchestrator import make_plan
from vcot.pipeline.templates import main_of, render
from vcot.storage import Store

MINUTES = 60.0
RUNS = "s3://vcot/runs"
STEPS, BATCHES = 20, 4
TOLERANCE = 1e-5
EXACT: dict[str, object] = {
    "dtype": "float32", "lora_dropout": 0, "neftune_noise_alpha": 0, "batch_tokens": 256, "max_steps": STEPS,
    "save_steps": 1,
}  # fmt: skip
"""No random numbers, no rounding: then the number of ranks shows in no loss."""
INDEX = "batch.kubernetes.io/job-completion-index"


@pytest.fixture
def several(namespace: Cluster, overlay: Callable[[str], Overlay]) -> Cluster:
    """A namespace with the templates of overlay cpu-smoke and this component."""
    run = overlay("several").settings("train", **EXACT).without_pipeline()
    run.edit(lambda k: k.setdefault("components", []).append("../../components/multinode-jobset")).apply(namespace)
    return namespace


def made_by_jobset(cluster: Cluster, run: str, examples_of: str, pods: int, attempt: int = 1) -> Manifest:
    """The Job of the JobSet that the orchestrator would make, with the places of GPUs filled in for a CPU."""
    (step,) = make_plan(run, RUNS, only=["train"], from_run=[f"{examples_of}:tokenize"]).steps
    jobset = render(step, run, cluster.get("CronJob", "stage-train"))
    assert jobset["kind"] == "JobSet"
    (nodes,) = jobset["spec"]["replicatedJobs"]
    spec, name = nodes["template"]["spec"], f"{run}-train-{attempt}"
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    spec |= {"completions": pods, "parallelism": pods}
    address = {"valueFrom": {"configMapKeyRef": {"name": name, "key": "address"}}}
    ours: Manifest = {
        "PET_NNODES": {"value": str(pods)}, "PET_NPROC_PER_NODE": {"value": "1"}, "PET_MASTER_ADDR": address,
        "VCOT_TRAIN_GRADIENT_ACCUMULATION_STEPS": {"value": str(BATCHES // pods)},
    }  # fmt: skip
    main = main_of(spec)
    assert main is not None
    kept = [variable for variable in main["env"] if variable["name"] not in ours]
    main["env"] = [*kept, *({"name": name} | value for name, value in ours.items())]
    metadata = {"name": name, "labels": nodes["template"]["metadata"]["labels"]}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def start(cluster: Cluster, job: Manifest) -> str:
    """Makes the Job and tells its pods the address of the first, when it has one."""
    name = job["metadata"]["name"]
    cluster.create(job)
    found = cluster.until("the first pod has an address", lambda: pod(cluster, name, 0)["status"].get("podIP"))
    cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"address": found}})
    return str(name)


def pod(cluster: Cluster, job: str, index: int) -> Any:
    """The pod of that index, as far as there is one."""
    there = {found["metadata"]["annotations"][INDEX]: found for found in cluster.pods_of(job)}
    return there.get(str(index), {"metadata": {}, "status": {}})


def pod_name(cluster: Cluster, job: str, index: int) -> str:
    return str(pod(cluster, job, index)["metadata"]["name"])


def losses(run: str) -> list[Manifest]:
    found: list[Manifest] = json.loads(Store().read(f"{RUNS}/{run}/train/losses.json"))
    return found


def of_one_pod(cluster: Cluster, examples_of: str) -> list[Manifest]:
    """The losses of the same training in one pod; made by whoever asks first."""
    run = "one-pod"
    with at_a_time(run):
        cluster.completes(start(cluster, made_by_jobset(cluster, run, examples_of, 1)), 5 * MINUTES)
    return losses(run)


def furthest_apart(one: list[Manifest], other: list[Manifest]) -> float:
    """The largest relative difference of a number of one step."""
    assert [line.keys() for line in one] == [line.keys() for line in other]
    assert len(one) == STEPS
    return max(
        abs(a[name] - b[name]) / abs(a[name]) for a, b in zip(one, other, strict=True) for name in a if "loss" in name
    )


def checkpoints(run: str) -> list[int]:
    """Steps of which there is a whole checkpoint."""
    found = [entry.uri for entry in Store().list(f"{RUNS}/{run}/train/checkpoints")]
    return sorted(int(uri.split("/step-")[1][:6]) for uri in found if uri.endswith("/manifest.json"))


def test_two_pods_of_one_job_learn_what_one_pod_learns(smoke: Smoke, several: Cluster) -> None:
    run = f"two-{several.namespace[-8:]}"
    job = start(several, made_by_jobset(several, run, smoke.run_id, 2))
    assert several.completes(job, 10 * MINUTES)["status"]["completedIndexes"] == "0,1"
    first, second = (pod(several, job, index) for index in (0, 1))
    assert first["status"]["podIP"] != second["status"]["podIP"]
    ended = [one["status"]["containerStatuses"][0]["state"]["terminated"] for one in (first, second)]
    assert max(end["startedAt"] for end in ended) < min(end["finishedAt"] for end in ended)
    said = {index: several.run("logs", pod_name(several, job, index)) for index in (0, 1)}
    assert [text.count('"event": "trained"') for text in said.values()] == [1, 0], "the first alone publishes"
    marker = json.loads(Store().read(f"{RUNS}/{run}/train/_done/stage.json"))
    assert marker["metadata"]["ranks"] == 2
    assert furthest_apart(of_one_pod(several, smoke.run_id), losses(run)) <= TOLERANCE


def test_a_lost_pod_ends_the_job_and_the_next_one_goes_on_to_the_same_losses(smoke: Smoke, several: Cluster) -> None:
    """A rank of the second pod is killed; then the first pod, where the pods meet, vanishes; then all is well."""
    run = f"lost-{several.namespace[-8:]}"

    def begin(attempt: int, after: int) -> str:
        job = start(several, made_by_jobset(several, run, smoke.run_id, 2, attempt))
        several.until("a new checkpoint", lambda: [s for s in checkpoints(run) if s > after], 5 * MINUTES)
        return job

    job = begin(1, 0)
    second = pod_name(several, job, 1)
    several.run("exec", second, "--", "sh", "-c", "kill -KILL $(cat /proc/1/task/*/children)")
    assert several.fails(job)["reason"] == "BackoffLimitExceeded"
    ended = pod(several, job, 1)["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended["exitCode"] == 137
    assert "rank 1 of 2: killed by signal 9" in ended["message"]
    remove(several, job)

    reached = checkpoints(run)[-1]
    job = begin(2, reached)
    several.run("delete", "pod", pod_name(several, job, 0), "--force", "--grace-period=0")
    assert several.fails(job)["reason"] == "BackoffLimitExceeded"
    remove(several, job)

    reached = checkpoints(run)[-1]
    assert reached < STEPS
    job = start(several, made_by_jobset(several, run, smoke.run_id, 2, 3))
    several.completes(job, 10 * MINUTES)
    assert f'"step": {reached}' in several.run("logs", pod_name(several, job, 0)), "it went on from there"
    assert furthest_apart(of_one_pod(several, smoke.run_id), losses(run)) <= TOLERANCE


def remove(cluster: Cluster, job: str) -> None:
    """As the controller does before it makes a Job anew: nothing of it is left."""
    cluster.run("delete", "job", job, "--cascade=foreground", "--timeout=120s")
    cluster.until("its pods are gone", lambda: not cluster.pods_of(job))
