"""A run under a fresh name: what is rendered, what is applied, and what is refused before."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.cluster import FakeClock, MemoryCluster, fails
from tests.k8s.kustomize import kubectl as real_kubectl
from tools import submit
from tools.overlay import ROOT, Overlay, render
from tools.submit import copied, fresh_run_id, main

NOON = datetime(2026, 11, 21, 12, 3, 55, tzinfo=UTC)


@pytest.fixture
def kubectl(monkeypatch, tmp_path) -> Path:
    """A kubectl that renders as the real one does, and writes down what it is asked to apply, for want of a cluster."""
    asked = tmp_path / "asked"
    program = tmp_path / "kubectl"
    program.write_text(
        f"""#!/bin/sh
case "$1" in
apply) echo "$*" >> {asked} ;;
*) exec {real_kubectl()} "$@" ;;
esac
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("KUBECTL", str(program))
    return asked


@pytest.fixture(autouse=True)
def cluster(monkeypatch) -> MemoryCluster:
    """In which the run has begun."""
    made = MemoryCluster(FakeClock())
    made.put("ConfigMap", {"metadata": {"name": "r1-plan"}})
    monkeypatch.setattr(submit, "cluster_of", lambda *_, **__: made)
    monkeypatch.setattr(submit, "Clock", lambda: made.clock)
    return made


def applied(tmp_path: Path, *words: str, overlay: str = "cpu-smoke", run_id: str = "r1") -> int:
    return main(["--overlay", overlay, "--run-id", run_id, "--local-folder", str(tmp_path), *words])


def test_a_name_sorts_by_time_tells_the_commit_and_can_name_jobs():
    name = fresh_run_id(ROOT, NOON)
    assert re.fullmatch(r"r20261121-120355-[0-9a-f]{7}", name)
    assert len(name) <= 30
    assert fresh_run_id(Path("/"), NOON) == "r20261121-120355"  # no git there


def test_the_copy_has_the_new_name_and_nothing_else_differs(tmp_path):
    manifests, copy = tmp_path / "k8s", tmp_path / "copy"
    shutil.copytree(ROOT / "k8s", manifests)
    outer = manifests / "overlays/fenced"  # around one that is around overlay gpu
    outer.mkdir()
    outer.joinpath("kustomization.yaml").write_text("resources: [../gpu-kueue]\n")
    for overlay, has_it in (("cpu-smoke", "cpu-smoke"), ("fenced", "gpu")):
        copied(manifests, copy, overlay, "r1")
        files = [path.relative_to(copy) for path in copy.rglob("*") if path.is_file()]
        differing = [str(path) for path in files if (copy / path).read_bytes() != (manifests / path).read_bytes()]
        assert differing == [f"overlays/{has_it}/run.env"]
        assert "RUN_ID=r1\n" in (copy / differing[0]).read_text()


def test_a_dry_run_renders_and_applies_nothing(kubectl, tmp_path, capsys):
    assert applied(tmp_path, "--dry-run", run_id="r-1-b") == 0
    out, err = capsys.readouterr()
    there = [one for one in yaml.safe_load_all(out) if one]
    assert [one["metadata"]["name"] for one in there if one["kind"] == "Job"] == ["pipeline-r-1-b"]
    assert "nothing was applied" in err
    assert not kubectl.exists()


def test_it_applies_the_copy_and_says_how_to_watch_and_cancel(kubectl, tmp_path, capfd):
    assert applied(tmp_path) == 0
    assert kubectl.read_text() == f"apply -k {tmp_path}/k8s/r1/overlays/cpu-smoke\n"
    said = capfd.readouterr().out
    assert "kubectl -n vcot logs -f job/pipeline-r1" in said
    assert "kubectl -n vcot delete job pipeline-r1" in said
    assert "s3://vcot/runs/r1" in said


def not_begun(cluster: MemoryCluster, becomes: Callable[[MemoryCluster, Any], object]) -> None:
    """The Job that is applied, and what becomes of it; no plan."""
    cluster.delete("ConfigMap", "r1-plan")
    there = {"metadata": {"name": "pipeline-r1"}, "spec": {}}
    cluster.clock.at(1, lambda: becomes(cluster, cluster.put("Job", there)) and None)


def test_an_orchestrator_whose_image_never_comes_is_taken_back_with_the_reason(kubectl, tmp_path, capfd, cluster):
    waiting = ("ImagePullBackOff", 'Back-off pulling image "nowhere/vcot-data"')
    not_begun(cluster, lambda cluster, job: cluster.pod(job, "Pending", waiting=waiting))
    assert applied(tmp_path, "--wait", "60") == 1
    said = capfd.readouterr().err
    assert "pipeline-r1 has not begun within 60 s: pipeline-r1-a1 cannot start, ImagePullBackOff: Back-off" in said
    assert ("Job", "pipeline-r1") not in cluster.objects


def test_an_orchestrator_that_refuses_is_told_with_its_last_words(kubectl, tmp_path, capfd, cluster):
    not_begun(cluster, fails(78, "train: VCOT_TRAIN_NUM_TRAIN_EPOCHS=-1: wrong"))
    assert applied(tmp_path) == 1
    assert "pipeline-r1 did not begin: train: VCOT_TRAIN_NUM_TRAIN_EPOCHS=-1: wrong" in capfd.readouterr().err


def test_other_images_under_the_run_id_of_a_run_are_refused_in_one_line(kubectl, tmp_path, capsys, cluster):
    rendered = Overlay.of("cpu-smoke", render(ROOT / "k8s/overlays/cpu-smoke")).pipeline
    rendered["spec"]["template"]["spec"]["containers"][0]["image"] = "localhost/vcot-data:older"
    cluster.put("Job", rendered)
    assert applied(tmp_path, run_id="smoke") == 64
    said = capsys.readouterr().err
    assert said == (
        "k8s-run: RUN_ID smoke was begun with image localhost/vcot-data:older (now localhost/vcot-data:dev), and a run "
        "keeps what it was begun with: choose another RUN_ID, or begin it again: kubectl -n vcot delete job "
        "pipeline-smoke\n"
    )
    assert not kubectl.exists()


def test_a_name_that_a_component_would_refuse_later_is_not_applied(kubectl, tmp_path, capsys, monkeypatch):
    manifests = tmp_path / "checkout/k8s"
    shutil.copytree(ROOT / "k8s", manifests)
    overlay = manifests / "overlays/several"
    overlay.mkdir()
    around = "resources: [../gpu]\ncomponents: [../../components/multinode-jobset]\n"
    overlay.joinpath("kustomization.yaml").write_text(around)
    monkeypatch.setattr("tools.submit.ROOT", tmp_path / "checkout")
    assert applied(tmp_path, overlay="several", run_id="2nd") == 64
    assert "RUN_ID 2nd: with component multinode-jobset it has to begin with a letter" in capsys.readouterr().err
    assert not kubectl.exists()


def test_placeholders_are_not_applied(kubectl, tmp_path, capsys):
    if not Overlay.of("gpu", render(ROOT / "k8s/overlays/gpu")).placeholders:
        pytest.skip("this checkout has images of its own in overlay gpu")
    assert applied(tmp_path, overlay="gpu") == 78
    assert "a placeholder. Write where you pushed your images" in capsys.readouterr().err
    assert not kubectl.exists()


def test_what_kubectl_refuses_and_no_kubectl_at_all_are_failures(kubectl, tmp_path, capfd, monkeypatch):
    program = Path(os.environ["KUBECTL"])
    program.write_text("#!/bin/sh\n[ $1 = apply ] && exit 1\n" + program.read_text())
    assert applied(tmp_path) == 1
    assert "could not apply" in capfd.readouterr().err
    monkeypatch.delenv("KUBECTL")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert applied(tmp_path) == 78
    said = "k8s-run: kubectl: not on PATH; install it (1.28 or newer), or say where it is: KUBECTL=\n"
    assert capfd.readouterr().err == said
