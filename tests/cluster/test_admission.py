"""What the API server itself says to the overlays for GPUs, none of whose pods could run here."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.cluster.cluster import Cluster, CommandFailed, Overlay
from tests.k8s.kustomize import job_specs


@pytest.mark.parametrize("name", ["gpu", "gpu-kueue"])
def test_every_pod_is_admitted_under_restricted_and_a_second_apply_changes_nothing(name, namespace, tmp_path) -> None:
    overlay = Overlay.of(tmp_path, "admitted", namespace.namespace, name)
    overlay.apply(namespace)
    again = overlay.apply(namespace).strip().splitlines()
    assert all(line.endswith("unchanged") for line in again), again
    rendered = yaml.safe_load_all(namespace.run("kustomize", str(overlay.folder)))
    specs = dict(job_specs([one for one in rendered if one]))
    assert len(specs) == 7  # five stages, the orchestrator, re-evaluation
    for owner, spec in specs.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": spec["template"]["spec"]}
        said = namespace.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
        assert "created (server dry run)" in said, owner


def test_a_pod_that_breaks_restricted_is_not_let_in(namespace: Cluster) -> None:
    """What the test above would say."""
    pod = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"},
        "spec": {"containers": [{"name": "main", "image": "localhost/vcot-data:dev"}]},
    }  # fmt: skip
    with pytest.raises(CommandFailed, match="violates PodSecurity"):
        namespace.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
