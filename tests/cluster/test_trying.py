"""What docs/kubernetes.md says under "Try it on kind", on the node of these tests: from no storage to the report.

Otherwise than there: MinIO's image is made here, for want of a registry; pods reach MinIO by the address of its pod,
for no Service is routed on this node and no name resolved; and less is trained and asked.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.cluster.cluster import Cluster, Overlay
from tests.cluster.images import Builder
from tests.cluster.layout import ROOT
from tests.cluster.node import Node
from tests.cluster.test_commands import make
from tools.s3server import minio_binary

MINUTES = 60.0
NAME = "app.kubernetes.io/name=minio"


@pytest.fixture
def minio(namespace: Cluster, node: Node) -> Cluster:
    """The namespace with the storage in it, and the Secret that both sides read."""
    rendered = [
        one | {"metadata": one["metadata"] | {"namespace": namespace.namespace}}
        for one in yaml.safe_load_all(namespace.run("kustomize", str(ROOT / "k8s/minio")))
    ]
    (deployment,) = [one for one in rendered if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    builder = Builder()
    builder.bring(builder.holding(container["image"], minio_binary(build=False)), node.layout)

    keys = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "vcot", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-credentials"}}
    namespace.run("delete", "secret", "s3-credentials")
    namespace.apply(secret | {"stringData": keys | {"AWS_ENDPOINT_URL_S3": "http://minio:9000"}})
    namespace.apply(*rendered)
    namespace.run("rollout", "status", "deployment/minio", "--timeout=120s")
    address = namespace.run("get", "pods", "-l", NAME, "-o", "jsonpath={.items[0].status.podIP}")
    namespace.apply(secret | {"stringData": keys | {"AWS_ENDPOINT_URL_S3": f"http://{address}:9000"}})
    return namespace


def test_from_no_storage_to_the_report(
    minio: Cluster, overlay: Callable[[str], Overlay], node: Node, tmp_path: Path
) -> None:
    through = ("SERVICE=minio", f"NAMESPACE={minio.namespace}")
    failed, said = make(node, "push-example", *through)
    assert not failed, said
    assert "s3://vcot/examples/blood-cells" in said

    run = overlay("trying").settings("train", epochs=1).settings("evaluate", conditions="real")
    run.apply(minio)
    minio.completes(run.pipeline, 15 * MINUTES)

    failed, said = make(node, "pages", "RUN_ID=trying", f"LOCAL={tmp_path}", *through)
    assert not failed, said
    report = tmp_path / "runs/trying/evaluate-report.html"
    assert str(report) in said
    assert "<html" in report.read_text()
    assert json.loads(report.with_suffix(".json").read_text())
