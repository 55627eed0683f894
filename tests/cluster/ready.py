"""A node with the project's images and the data of overlay cpu-smoke: what every test and measurement begins with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.layout import ROOT
from tests.cluster.network import network_of
from tests.cluster.node import READY, Node, bring
from tests.cluster.reads import reads
from tools.gomodules import locked
from vcot.pipeline.local import publish
from vcot.storage import Store


@contextmanager
def cluster_on(node: Node) -> Iterator[Cluster]:
    """Inside, this process is in the node's network, with its storage in the environment."""
    if READY not in os.environ:
        bring(node, ("data", "gpu"))
    with network_of(node.pid), pytest.MonkeyPatch.context() as environment:
        for name in [n for n in os.environ if n.startswith(("AWS_", "VCOT_", "KUBE"))]:
            environment.delenv(name)
        for name, value in node.s3.items():
            environment.setenv(name, value)
        publish_example()
        kubectl = [str(node.layout.kubectl)]
        with reads(kubectl) as through:
            yield Cluster(kubectl, node.s3, through, node=node)


def publish_example() -> None:
    """Where overlay cpu-smoke looks for them, and where `make local-train` puts them."""
    with at_a_time("example"):
        for folder in ("blood-cells", "rehearsal"):
            publish(Store(), ROOT / "examples" / folder, f"s3://vcot/examples/{folder}")


def at_a_time(what: str) -> AbstractContextManager[object]:
    """Tests run in several processes, and share what is made once."""
    return locked(Path(tempfile.gettempdir()) / f"vcot-cluster-{what}.lock", f"another process makes the {what}")
