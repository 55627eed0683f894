"""What the API server itself says to the overlays for GPUs, none of whose pods could run here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.cluster import Cluster, CommandFailed, Manifest, Overlay


@pytest.mark.parametrize("name", ["gpu", "gpu-kueue"])
def test_every_pod_is_admitted_under_restricted_and_a_second_apply_changes_nothing(
    name: str, namespace: Cluster, tmp_path: Path
) -> None:
    overlay = Overlay.of(tmp_path, "admitted", namespace.namespace, name)
    overlay.apply(namespace)
    again = overlay.apply(namespace).strip().splitlines()
    assert all(line.endswith("unchanged") for line in again), again
    templates = dict(pods(namespace.run("kustomize", str(overlay.folder))))
    assert len(templates) == 7  # five stages, the orchestrator, re-evaluation
    for owner, template in templates.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": template["spec"]}
        said = namespace.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
        assert "created (server dry run)" in said, owner


def pods(rendered: str) -> Iterator[tuple[str, Manifest]]:
    """Name of a Job or CronJob → the template of its pods."""
    for one in yaml.safe_load_all(rendered):
        spec = (one or {}).get("spec") or {}
        if one["kind"] == "CronJob":
            yield one["metadata"]["name"], spec["jobTemplate"]["spec"]["template"]
        elif one["kind"] == "Job":
            yield one["metadata"]["name"], spec["template"]


def test_a_pod_that_breaks_restricted_is_not_let_in(namespace: Cluster) -> None:
    """What the test above would say."""
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"},
        "spec": {"containers": [{"name": "main", "image": "localhost/vcot-data:dev"}]},
    }  # fmt: skip
    with pytest.raises(CommandFailed, match="violates PodSecurity"):
        namespace.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
