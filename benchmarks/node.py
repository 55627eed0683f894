"""How long the chain waits on a real node: between steps, and until training has made its first step.

    python -m benchmarks.node

Runs overlay cpu-smoke in real containers on a node of its own (root; see `make node-up`), with one epoch of training,
and watches Jobs and pods as the API server tells of them. Then trains once more with Python's bytecode out of reach,
for what compiling it at the build is worth.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster, Overlay, cluster_on
from tests.cluster.node import running_node

ENV = "/spec/jobTemplate/spec/template/spec/containers/0/env/-"
NO_BYTECODE = {"name": "PYTHONPYCACHEPREFIX", "value": "/scratch/nothing-compiled"}


def main() -> None:
    with (
        running_node(install=True) as node,
        cluster_on(node) as cluster,
        cluster.own_namespace("vcot-benchmark") as there,
        tempfile.TemporaryDirectory(prefix="node-") as folder,
    ):
        chain = small(there, Path(folder), "measured")
        seen = Seen(there)
        chain.apply(there)
        there.completes(chain.pipeline, 900)
        between(seen)
        first_step(there, seen, "measured", "compiled at the build")
        slow = small(there, Path(folder), "slow")
        slow.orchestrator("--from-run", "measured:tokenize", "--only", "train")
        slow.patch("CronJob", "stage-train", {"op": "add", "path": ENV, "value": NO_BYTECODE}).apply(there)
        there.completes(slow.pipeline, 900)
        first_step(there, seen, "slow", "without bytecode")


def small(cluster: Cluster, folder: Path, run_id: str) -> Overlay:
    overlay = Overlay.of(folder, run_id, cluster.namespace).settings("train", num_train_epochs=1)
    return overlay.settings("evaluate", max_samples=2, conditions="real")


class Seen:
    """When the API server told of what, by this computer's clock (the API's own times are whole seconds)."""

    def __init__(self, cluster: Cluster) -> None:
        self.complete: dict[str, float] = {}
        self.created: dict[str, float] = {}
        """Job → when its first pod was made."""
        self.running: dict[str, float] = {}
        jobs = f"/apis/batch/v1/namespaces/{cluster.namespace}/jobs"
        pods = f"/api/v1/namespaces/{cluster.namespace}/pods"
        for path, note in ((jobs, self._job), (pods, self._pod)):
            command = [*cluster.kubectl, "get", "--raw", f"{path}?watch=1&timeoutSeconds=3600"]
            threading.Thread(target=self._follow, args=(command, note), daemon=True).start()

    def _follow(self, command: list[str], note: Any) -> None:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
            assert watch.stdout is not None
            for line in watch.stdout:
                note(json.loads(line)["object"], time.time())

    def _job(self, job: Mapping[str, Any], now: float) -> None:
        if any(c["type"] == "Complete" for c in job.get("status", {}).get("conditions") or ()):
            self.complete.setdefault(job["metadata"]["name"], now)

    def _pod(self, pod: Mapping[str, Any], now: float) -> None:
        job = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        self.created.setdefault(job, now)
        if any("running" in c["state"] for c in pod.get("status", {}).get("containerStatuses") or ()):
            self.running.setdefault(job, now)


def between(seen: Seen) -> None:
    """From a Job's Complete to the next one's first pod."""
    steps = sorted((name for name in seen.created if name.startswith("measured-")), key=seen.created.__getitem__)
    waits = [seen.created[after] - seen.complete[before] for before, after in itertools.pairwise(steps)]
    print(
        f"Complete to the next pod, {len(waits)} times: median {statistics.median(waits) * 1000:.0f} ms, "
        f"longest {max(waits) * 1000:.0f} ms"
    )


def first_step(cluster: Cluster, seen: Seen, run: str, what: str) -> None:
    job = f"{run}-train"
    when = next(at for at, event in events(cluster, job) if event == "first step")
    made, running = when - seen.created[job], when - seen.running[job]
    print(f"{what}: {made:.1f} s from the pod's creation to its first step, {running:.1f} s of them in the container")


def events(cluster: Cluster, job: str) -> Iterator[tuple[float, str]]:
    for line in cluster.logs(job).splitlines():
        record = json.loads(line)
        if "timestamp" in record:
            yield datetime.fromisoformat(record["timestamp"]).timestamp(), record["event"]


if __name__ == "__main__":
    main()
