"""What the API server itself says to the overlays for GPUs, none of whose pods could run here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.cluster.cluster import Cluster, CommandFailed, Overlay
from tests.cluster.configuration import ROOT
from tests.k8s.kustomize import job_specs, of_kind


@pytest.mark.parametrize("name", ["gpu", "gpu-kueue"])
def test_every_pod_is_admitted_under_restricted_and_a_second_apply_changes_nothing(name, namespace, tmp_path) -> None:
    specs, changed = admitted(namespace, Overlay.of(tmp_path, "admitted", namespace.namespace, name))
    assert changed == []
    assert specs == 7  # five stages, the orchestrator, re-evaluation


def test_every_pod_that_serves_is_admitted_too(namespace: Cluster, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    overlay = Overlay(tmp_path / "k8s/overlays/serve", "serving")
    overlay.edit(lambda k: k.update(namespace=namespace.namespace))
    overlay.patch("Deployment", ".*", {"op": "replace", "path": "/spec/replicas", "value": 0})
    overlay.patch("CronJob", "rollout", {"op": "add", "path": "/spec/suspend", "value": True})
    specs, changed = admitted(namespace, overlay)
    # kubectl sends the selector each time (its patch strategy is "replace") and says so; nothing changes by that.
    assert changed == ["poddisruptionbudget.policy/model configured"]
    assert specs == 3  # the model, the page, and what rolls them out


def admitted(namespace: Cluster, overlay: Overlay) -> tuple[int, list[str]]:
    """Applies it twice and tries each of its pods; returns how many these are, and what the second apply changed."""
    overlay.apply(namespace)
    changed = [line for line in overlay.apply(namespace).strip().splitlines() if not line.endswith("unchanged")]
    rendered = [one for one in yaml.safe_load_all(namespace.run("kustomize", str(overlay.folder))) if one]
    specs = dict(job_specs(rendered)) | {
        one["metadata"]["name"]: one["spec"] for one in of_kind(rendered, "Deployment")
    }
    for owner, spec in specs.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": spec["template"]["spec"]}
        said = namespace.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
        assert "created (server dry run)" in said, owner
    return len(specs), changed


def test_a_pod_that_breaks_restricted_is_not_let_in(namespace: Cluster) -> None:
    """What the test above would say."""
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"},
        "spec": {"containers": [{"name": "main", "image": "localhost/vcot-data:dev"}]},
    }  # fmt: skip
    with pytest.raises(CommandFailed, match="violates PodSecurity"):
        namespace.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
