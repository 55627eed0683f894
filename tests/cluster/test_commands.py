"""What a person types beside kubectl: make k8s-doctor, make k8s-run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

from tests.cluster.cluster import Cluster, Overlay
from tests.cluster.layout import ROOT
from tests.cluster.node import Node


def make(node: Node, *words: str) -> tuple[bool, str]:
    """(whether it failed, all it said) of that target on the node's cluster."""
    environment = os.environ | {"KUBECTL": str(node.layout.kubectl), "KUBECONFIG": str(node.layout.admin)}
    command = ["make", "--no-print-directory", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return bool(done.returncode), done.stdout + done.stderr


def test_the_doctor_names_what_is_missing_with_the_fix_and_then_nothing(
    namespace: Cluster, overlay: Callable[[str], Overlay], node: Node
) -> None:
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
    cluster.until("the first Job is there", lambda: cluster.list("jobs", run=run_id))
    cluster.run(*lines["cancel"].split()[3:])
    cluster.until("all of it is gone", lambda: not cluster.list("jobs", run=run_id))
