"""Component hardening: what the conductor's token is good for ends at the Jobs of stages."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster, CommandFailed
from tests.cluster.layout import ROOT
from tests.cluster.node import Node
from tests.cluster.test_reports import job_of_another_plan

SMOKE = ROOT / "k8s/overlays/cpu-smoke"
CONDUCTOR = "system:serviceaccount:vcot:conductor"


@pytest.fixture
def hardened(cluster: Cluster, node: Node) -> Iterator[Cluster]:
    """The policies name the namespace vcot, and belong to the whole cluster."""
    policies = str(ROOT / "k8s/components/hardening/policies.yaml")
    cluster.run("apply", "-f", str(SMOKE / "namespace.yaml"))
    cluster.run("apply", "-f", str(ROOT / "k8s/base/rbac.yaml"))
    cluster.run("apply", "-f", policies)
    yield cluster
    cluster.run("delete", "-f", policies)


def test_a_foreign_job_is_denied_and_a_stages_job_is_let_in(hardened: Cluster) -> None:
    foreign = json.dumps(job_of_another_plan("foreign"))

    def denied() -> str | None:
        try:
            hardened.run("--as", CONDUCTOR, "create", "--dry-run=server", "-f", "-", stdin=foreign)
        except CommandFailed as error:
            return str(error)
        return None  # a new policy counts after some seconds

    said = hardened.until("the policy denies", denied, 60)
    assert "the conductor may only create Jobs that run as ServiceAccount stage" in said

    stages = job_of_another_plan("stages")
    stages["spec"]["template"]["spec"]["serviceAccountName"] = "stage"
    with pytest.raises(CommandFailed, match="stage Jobs must be owned by the pipeline Job"):
        hardened.run("--as", CONDUCTOR, "create", "--dry-run=server", "-f", "-", stdin=json.dumps(stages))
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "pipeline-x", "uid": "0"}
    stages["metadata"]["ownerReferences"] = [owner]
    hardened.run("--as", CONDUCTOR, "create", "--dry-run=server", "-f", "-", stdin=json.dumps(stages))
