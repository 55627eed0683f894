"""A cluster for the tests of this folder: the node of tests/cluster/node.py, or one of the user's own.

make cluster-test                      a real node on this machine; needs root, installs and builds what is missing
make cluster-test CONTEXT=kind-kind    the cluster of that kubectl context; only in namespaces that the tests make,
                                       and without the tests that need the node itself. The images of overlay
                                       cpu-smoke must be there, and AWS_* name a storage that its pods reach.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.cluster import FOR_PODS, Cluster, Overlay, at_a_time, cluster_on, publish_example
from tests.cluster.configuration import ROOT
from tests.cluster.machine import MachineLacks
from tests.cluster.node import Node, running_node

CONTEXT = "CLUSTER_CONTEXT"
SMOKE = ROOT / "k8s/overlays/cpu-smoke"
LONGEST = 15 * 60.0
"""Seconds within which the chain of cpu-smoke reaches its end, however busy the machine is."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that several processes end at about the same time."""
    longest = (
        "evictions", "the_laptop_makes", "test_chain", "no_storage_to", "a_lost_pod", "test_reevaluation", "test_gpus",
    )  # fmt: skip
    items.sort(key=lambda item: next((n for n, name in enumerate(longest) if name in item.nodeid), len(longest)))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, its storage filled with the example and the base of overlay cpu-smoke."""
    if context := os.environ.get(CONTEXT):
        with _users_own(context) as cluster:
            yield cluster
        return
    must, install = bool(os.environ.get("CI")), bool(os.environ.get("CI") or os.environ.get("NODE_INSTALL"))
    try:
        with running_node(install) as node, cluster_on(node) as cluster:
            yield cluster
    except MachineLacks as error:
        why = f"no Kubernetes node on this machine, it lacks {error}; `make cluster-test` installs and builds it"
        if must:
            pytest.fail(f"CI tests on a real node: {why}")
        pytest.skip(why)


@contextmanager
def _users_own(context: str) -> Iterator[Cluster]:
    missing = [name for name in FOR_PODS[:3] if not os.environ.get(name)]
    if missing:
        pytest.fail(f"{CONTEXT}={context}: {', '.join(missing)} must name a storage that its pods reach")
    publish_example()
    command = ["kubectl", "--context", context]
    shown = subprocess.run([*command, "config", "view", "--minify", "--flatten"], capture_output=True, check=True)
    with tempfile.NamedTemporaryFile() as config, pytest.MonkeyPatch.context() as environment:
        config.write(shown.stdout)
        config.flush()
        environment.setenv("KUBECONFIG", config.name)
        yield Cluster(command, {n: os.environ[n] for n in FOR_PODS if os.environ.get(n)})


@dataclass(frozen=True)
class Smoke:
    """Overlay cpu-smoke as it stands, run to its end; all tests that need a finished run share it."""

    cluster: Cluster
    """In the namespace of that run."""
    folder: Path
    run_id: str


@pytest.fixture(scope="session")
def smoke(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smoke]:
    """The run that docs/kubernetes.md describes: keys, then `kubectl apply -k`, and nothing else."""
    if cluster.node is None:  # its namespace vcot may be somebody's
        name = uuid.uuid4().hex[:8]
        with cluster.own_namespace(f"vcot-test-{name}") as there:
            run = Overlay.of(tmp_path_factory.mktemp("smoke"), f"smoke-{name}", there.namespace)
            run.apply(there)
            there.completes(run.pipeline, LONGEST)
            yield Smoke(there, run.folder, run.run_id)
        return
    with at_a_time("smoke"):
        cluster.run("apply", "-f", str(SMOKE / "namespace.yaml"))
        cluster.give_keys()
        cluster.run("apply", "-k", str(SMOKE))
    cluster.completes("pipeline-smoke", LONGEST)
    yield Smoke(cluster, SMOKE, "smoke")


@pytest.fixture(scope="session")
def node(cluster: Cluster) -> Node:
    """For tests that stop parts of the node, or change what it has."""
    if cluster.node is None:
        pytest.skip(f"needs the node of make cluster-test; {CONTEXT} is a cluster that others use")
    return cluster.node


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, in a namespace of this test alone."""
    with cluster.own_namespace(f"vcot-test-{uuid.uuid4().hex[:8]}") as there:
        yield there


@pytest.fixture
def overlay(namespace: Cluster, tmp_path: Path) -> Callable[[str], Overlay]:
    """Run id → a copy of overlay cpu-smoke for this test's namespace."""
    return lambda run_id: Overlay.of(tmp_path, run_id, namespace.namespace)
