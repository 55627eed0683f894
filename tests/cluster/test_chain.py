"""The whole chain of overlay cpu-smoke in real containers, and the same chain as processes: the same bytes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from datetime import datetime

import pytest

from tests.chain.kill import fingerprint
from tests.cluster.cluster import Cluster
from tests.cluster.configuration import ROOT
from tests.cluster.conftest import Smoke
from vcot.settings import STAGES
from vcot.storage import Store


def test_the_chain_reaches_its_end(smoke: Smoke) -> None:
    run = smoke.run_id
    jobs = {job["metadata"]["name"]: job for job in smoke.cluster.list("Job", run=run)}
    parted = [f"{run}-{stage}-{part}" for stage in STAGES[:3] for part in ("prepare", "shards", "finish")]
    assert set(jobs) == {*parted, f"{run}-train", f"{run}-evaluate"}
    for name, job in jobs.items():
        assert any(c["type"] == "Complete" for c in job["status"]["conditions"]), name
        assert not job["status"].get("failed"), name
    assert jobs[f"{run}-convert-shards"]["spec"]["completions"] == 2
    timeline = smoke.cluster.logs(f"pipeline-{run}")
    for name in ("convert-prepare", "tokenize-shards", "train", "evaluate"):
        assert f"{name} is done" in timeline


def test_the_next_stage_begins_within_two_seconds(smoke: Smoke) -> None:
    """From the end of a Job to the creation of the next; the API's times are whole seconds."""
    jobs = sorted(smoke.cluster.list("Job", run=smoke.run_id), key=lambda job: job["metadata"]["creationTimestamp"])
    for before, after in itertools.pairwise(jobs):
        ended, made = before["status"]["completionTime"], after["metadata"]["creationTimestamp"]
        between = datetime.fromisoformat(made) - datetime.fromisoformat(ended)
        assert between.total_seconds() <= 2, (before["metadata"]["name"], after["metadata"]["name"])


def test_what_it_made_is_what_the_laptop_makes(cluster: Cluster, request: pytest.FixtureRequest, tmp_path) -> None:
    command = [sys.executable, "-m", "jobs.pipeline", "--where", "local", "--server", "none", "--run-id", "laptop"]
    command += ["--example", "examples/blood-cells", "--base", "examples/rehearsal", "--local-folder", str(tmp_path)]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as laptop:
        smoke: Smoke = request.getfixturevalue("smoke")  # at the same time: each of them often waits
        assert laptop.wait() == 0, (tmp_path / "log").read_text()[-4000:]
    there, here = fingerprint(f"s3://vcot/runs/{smoke.run_id}"), fingerprint("s3://vcot/runs/laptop")
    assert len(there) > 100  # losses, shards, row counts
    assert {n for n in there.keys() | here.keys() if there.get(n) != here.get(n)} == set()


def test_a_run_that_is_whole_makes_no_job_for_a_gpu(smoke: Smoke, namespace: Cluster, overlay) -> None:
    """The same run in storage, in another namespace: as after seven days, when its Jobs are gone."""
    again = overlay(smoke.run_id).orchestrator("--only", "train,evaluate")
    again.apply(namespace)
    namespace.completes(again.pipeline, 180)
    said = namespace.logs(again.pipeline)
    assert "train: whole already, no Job is made for it" in said
    assert "evaluate: whole already, no Job is made for it" in said
    assert not namespace.list("Job", run=smoke.run_id)
    state = namespace.get("ConfigMap", f"{smoke.run_id}-state")["data"]["state.json"]
    assert json.loads(state)["steps"]["evaluate"]["state"] == "done"


def test_rewards_go_on_from_the_model_of_another_run(smoke: Smoke, namespace: Cluster, overlay) -> None:
    """As overlay gpu-grpo does it, two steps of it."""
    run = overlay("rewarded")
    with (run.folder / "run.env").open("a") as env:
        env.write(f"\nFROM_RUN={smoke.run_id}:tokenize\n")
    run.settings(
        "train", method="grpo", max_steps=2, num_generations=4, questions_per_step=2, max_completion_length=48,
        save_steps=1,
    ).orchestrator("--only", "train")  # fmt: skip
    run.apply(namespace)
    namespace.completes(run.pipeline, 10 * 60)
    assert "it begins with the model beside its examples" in namespace.logs("rewarded-train")
    store = Store()
    assert len(json.loads(store.read("s3://vcot/runs/rewarded/train/losses.json"))) == 2
    assert store.read("s3://vcot/runs/rewarded/train/rollouts.html")


def test_rationales_are_sampled_from_examples_in_which_they_have_an_end(
    smoke: Smoke, namespace: Cluster, overlay
) -> None:
    """As overlay gpu-gfn does it, two steps of it, from the base as it is."""
    run = overlay("sampled")
    with (run.folder / "run.env").open("a") as env:
        env.write(f"\nFROM_RUN={smoke.run_id}:distill\n")
    run.settings("tokenize", roles="rationale")
    run.settings(
        "train", method="gfn", tune="lora", max_steps=2, num_generations=4, questions_per_step=2,
        max_completion_length=48, save_steps=1,
    ).orchestrator("--only", "tokenize,train")  # fmt: skip
    run.apply(namespace)
    namespace.completes(run.pipeline, 10 * 60)
    store = Store()
    assert len(json.loads(store.read("s3://vcot/runs/sampled/train/losses.json"))) == 2
    assert store.read("s3://vcot/runs/sampled/train/rollouts.html")
