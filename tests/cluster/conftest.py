"""A cluster for the tests of this folder: the node of tests/cluster/node.py, or one of the user's own.

make cluster-test                      a real node on this machine; needs root, installs and builds what is missing
make cluster-test CONTEXT=kind-kind    the cluster of that kubectl context; only in namespaces that the tests make,
                                       and without the tests that need the node itself. The images of overlay
                                       cpu-smoke must be there, and AWS_* name a storage that its pods reach.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import FOR_PODS, Cluster, Overlay
from tests.cluster.images import Builder
from tests.cluster.layout import ROOT
from tests.cluster.machine import MachineLacks
from tests.cluster.network import network_of
from tests.cluster.node import Node, running_node

CONTEXT = "CLUSTER_CONTEXT"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster, its storage filled with the example and the base of overlay cpu-smoke."""
    if context := os.environ.get(CONTEXT):
        yield _users_own(context)
        return
    must, install = bool(os.environ.get("CI")), bool(os.environ.get("CI") or os.environ.get("NODE_INSTALL"))
    try:
        with running_node(install) as node:
            yield from _on(node)
    except MachineLacks as error:
        why = f"no Kubernetes node on this machine, it lacks {error}; `make cluster-test` installs and builds it"
        if must:
            pytest.fail(f"CI tests on a real node: {why}")
        pytest.skip(why)


def _on(node: Node) -> Iterator[Cluster]:
    builder = Builder()
    images = builder.build("data", "gpu")
    for image in images.values():
        builder.bring(image, node.layout)
    with network_of(node.pid), pytest.MonkeyPatch.context() as environment:
        for name in [n for n in os.environ if n.startswith(("AWS_", "VCOT_", "KUBE"))]:
            environment.delenv(name)
        for name, value in node.s3.items():
            environment.setenv(name, value)
        publish_example()
        yield Cluster([str(node.layout.kubectl)], node.s3, node=node)


def _users_own(context: str) -> Cluster:
    missing = [name for name in FOR_PODS[:3] if not os.environ.get(name)]
    if missing:
        pytest.fail(f"{CONTEXT}={context}: {', '.join(missing)} must name a storage that its pods reach")
    publish_example()
    return Cluster(["kubectl", "--context", context], {n: os.environ[n] for n in FOR_PODS if os.environ.get(n)})


def publish_example() -> None:
    """Where overlay cpu-smoke looks for them, and where `make local-train` puts them."""
    from vcot.pipeline.local import publish
    from vcot.storage import Store

    for folder in ("blood-cells", "rehearsal"):
        publish(Store(), ROOT / "examples" / folder, f"s3://vcot/examples/{folder}")


@pytest.fixture
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
