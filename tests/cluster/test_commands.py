"""What a person types beside kubectl: make k8s-doctor, make k8s-run."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Callable

import pytest
import yaml

from tests.cluster.cluster import Cluster, Overlay
from tests.cluster.configuration import ADMIN, KUBECTL, ROOT
from tests.cluster.images import Builder
from tests.cluster.node import Node
from tools.s3server import minio_binary


def make(node: Node, *words: str) -> tuple[bool, str]:
    """(whether it failed, all it said) of that target on the node's cluster."""
    environment = os.environ | {"KUBECTL": str(KUBECTL), "KUBECONFIG": str(ADMIN)}
    command = ["make", "--no-print-directory", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return bool(done.returncode), done.stdout + done.stderr


def test_the_doctor_names_what_is_missing_with_the_fix_and_then_nothing(namespace: Cluster, overlay, node) -> None:
    """In three visits: a cluster without the Secret, a bucket that is not there, and all well."""
    rendered = overlay("asked").folder / "rendered.yaml"
    rendered.write_text(namespace.run("kustomize", str(rendered.parent)))
    doctor = ("k8s-doctor", f"RENDERED={rendered}")

    namespace.run("delete", "secret", "s3-credentials")
    failed, said = make(node, *doctor)
    assert failed
    assert f"Secret s3-credentials: there is none in namespace {namespace.namespace}" in said
    assert f"kubectl -n {namespace.namespace} create secret generic s3-credentials" in said

    namespace.give_keys()
    there = rendered.read_text()
    rendered.write_text(there.replace("s3://vcot/runs", "s3://no-such-bucket/runs"))
    failed, said = make(node, *doctor)
    assert failed
    assert "no-such-bucket" in said

    rendered.write_text(there)
    failed, said = make(node, *doctor)
    assert not failed, said
    assert "nothing is missing" in said
    assert not namespace.pods_of("doctor"), "its trials are gone"
    assert namespace.run("get", "jobs", "-o", "name") == ""


def test_a_fresh_run_is_started_and_cancelled_with_the_lines_it_prints(cluster: Cluster, node: Node) -> None:
    cluster.run("apply", "-f", str(ROOT / "k8s/overlays/cpu-smoke/namespace.yaml"))
    cluster.give_keys()
    failed, said = make(node, "k8s-run", "OVERLAY=cpu-smoke")
    assert not failed, said
    lines = dict(line.split(maxsplit=1) for line in said.splitlines() if line.startswith("  "))
    run_id = said.partition("run ")[2].partition(":")[0]
    cluster.running_pod(f"pipeline-{run_id}")
    cluster.until("the first Job is there", lambda: cluster.list("Job", run=run_id))
    cluster.run(*lines["cancel"].split()[3:])
    cluster.until("all of it is gone", lambda: not cluster.list("Job", run=run_id))


# --- what docs/kubernetes.md says under "Try it on kind", from no storage to the report
#
# Otherwise than there: MinIO's image is made here, for want of a registry; pods reach MinIO by the address of its pod,
# for no Service is routed on this node and no name resolved; and less is trained and asked.

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
    builder.bring(builder.holding(container["image"], minio_binary(build=False)))

    keys = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "vcot", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20)}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-credentials"}}
    namespace.run("delete", "secret", "s3-credentials")
    namespace.apply(secret | {"stringData": keys | {"AWS_ENDPOINT_URL_S3": "http://minio:9000"}})
    namespace.apply(*rendered)
    namespace.run("rollout", "status", "deployment/minio", "--timeout=120s")
    address = namespace.run("get", "pods", "-l", NAME, "-o", "jsonpath={.items[0].status.podIP}")
    namespace.apply(secret | {"stringData": keys | {"AWS_ENDPOINT_URL_S3": f"http://{address}:9000"}})
    return namespace


def test_from_no_storage_to_the_report(minio: Cluster, overlay: Callable[[str], Overlay], node: Node, tmp_path) -> None:
    through = ("SERVICE=minio", f"NAMESPACE={minio.namespace}")
    failed, said = make(node, "push-example", *through)
    assert not failed, said
    assert "s3://vcot/examples/blood-cells" in said

    run = overlay("trying").settings("train", num_train_epochs=1).settings("evaluate", conditions="real")
    run.apply(minio)
    minio.completes(run.pipeline, 15 * MINUTES)

    failed, said = make(node, "pages", "RUN_ID=trying", f"LOCAL={tmp_path}", *through)
    assert not failed, said
    report = tmp_path / "runs/trying/evaluate-report.html"
    assert str(report) in said
    assert "<html" in report.read_text()
    assert json.loads(report.with_suffix(".json").read_text())
