"""A run under a fresh name: what is rendered, what is applied, and what is refused before."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from tests.k8s.kustomize import kubectl as real_kubectl
from tools.overlay import ROOT, Overlay, render
from tools.submit import copied, fresh_run_id, main

NOON = datetime(2026, 11, 21, 12, 3, 55, tzinfo=UTC)


@pytest.fixture
def kubectl(monkeypatch, tmp_path) -> Path:
    """A kubectl that renders as the real one does, and writes down what it is asked to apply or to delete, for want of
    a cluster; what it gets of a kind stands in a file of that name beside it, by default a plan and nothing else."""
    asked = tmp_path / "asked"
    program = tmp_path / "kubectl"
    program.write_text(
        f"""#!/bin/sh
case "$*" in
apply*|*delete*)
    printf '%s\\n' "$*" >> {asked}
    [ ! -e {tmp_path}/job.applied ] || mv {tmp_path}/job.applied {tmp_path}/job ;;
-n*) [ ! -e {tmp_path}/$4 ] || cat {tmp_path}/$4 ;;
*) exec {real_kubectl()} "$@" ;;
esac
"""
    )
    (tmp_path / "configmap").write_text('{"kind": "ConfigMap"}')
    (tmp_path / "pods").write_text('{"items": []}')
    (tmp_path / "events").write_text('{"items": []}')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("KUBECTL", str(program))
    return asked


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


def test_an_orchestrator_whose_image_never_comes_is_taken_back_with_the_reason(kubectl, tmp_path, capfd):
    (tmp_path / "configmap").unlink()
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "nowhere/vcot-data"'}
    status = {"phase": "Pending", "containerStatuses": [{"name": "orchestrator", "state": {"waiting": waiting}}]}
    pod = {"metadata": {"name": "pipeline-r1-x"}, "spec": {}, "status": status}
    (tmp_path / "pods").write_text(json.dumps({"items": [pod]}))
    assert applied(tmp_path, "--wait", "1") == 1
    said = capfd.readouterr().err
    assert "pipeline-r1 has not begun within 1 s: pipeline-r1-x cannot start, ImagePullBackOff: Back-off" in said
    assert kubectl.read_text().splitlines()[-1] == "-n vcot delete job pipeline-r1"


def test_an_orchestrator_that_refuses_is_told_with_its_last_words(kubectl, tmp_path, capfd):
    (tmp_path / "configmap").unlink()
    failed = {"type": "Failed", "status": "True"}
    terminated = {"exitCode": 78, "message": '{"exit": 78, "message": "train: VCOT_TRAIN_NUM_TRAIN_EPOCHS=-1: wrong"}'}
    status = {"containerStatuses": [{"name": "orchestrator", "state": {"terminated": terminated}}]}
    (tmp_path / "pods").write_text(json.dumps({"items": [{"metadata": {"name": "x"}, "status": status}]}))
    there = {"spec": {}, "status": {"conditions": [failed]}}
    (tmp_path / "job.applied").write_text(json.dumps(there))
    assert applied(tmp_path) == 1
    assert "pipeline-r1 did not begin: train: VCOT_TRAIN_NUM_TRAIN_EPOCHS=-1: wrong" in capfd.readouterr().err


def test_other_images_under_the_run_id_of_a_run_are_refused_in_one_line(kubectl, tmp_path, capsys):
    rendered = Overlay.of("cpu-smoke", render(ROOT / "k8s/overlays/cpu-smoke")).pipeline
    rendered["spec"]["template"]["spec"]["containers"][0]["image"] = "localhost/vcot-data:older"
    (tmp_path / "job").write_text(json.dumps(rendered))
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
    program.write_text(program.read_text().replace("apply*|", "apply*) echo 'error: no' >&2; exit 1 ;;\n"))
    assert applied(tmp_path) == 1
    assert "could not apply" in capfd.readouterr().err
    monkeypatch.delenv("KUBECTL")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert applied(tmp_path) == 78
    said = "k8s-run: kubectl: not on PATH; install it (1.28 or newer), or say where it is: KUBECTL=\n"
    assert capfd.readouterr().err == said
