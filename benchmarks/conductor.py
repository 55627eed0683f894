"""What the conductor costs while it waits, and how soon a step follows the last: `python -m benchmarks.conductor`.

The real command and the real client, against the stub of an API server in tests/fakes. Prints JSON:

    rss_mib                   resident memory while it waits, after half of `--seconds`
    peak_mib                  the most that it ever held (VmHWM), its checks of settings (processes of their own) apart
    cpu_percent               of one core, while it waits
    complete_to_create_s      from a Job's condition Complete to the next Job's creation: median and longest
    start_to_first_job_s      from the process's start, settings of all five stages judged
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from tests.fakes.apiserver import ApiServer
from tests.fakes.cluster import MemoryCluster, RealClock, fill, succeeds
from vcot.pipeline.client import Manifest
from vcot.pipeline.plan import IN_PARTS, gather_variables, make_plan

ROOT = Path(__file__).parents[1]


class Timed(MemoryCluster):
    """Notes when Jobs are created and when they are complete."""

    def __init__(self) -> None:
        super().__init__(RealClock())
        self.when: list[tuple[str, str, float]] = []

    def put(self, kind: str, manifest: Manifest, what: str = "ADDED") -> Manifest:
        stored = super().put(kind, manifest, what)
        if kind == "Job":
            said = "created" if what == "ADDED" else "complete" if "conditions" in stored["status"] else "changed"
            self.when.append((stored["metadata"]["name"], said, time.monotonic()))
        return stored


def measure(seconds: float) -> dict[str, float]:
    cluster = Timed()
    places = {"EXAMPLE_URI": "s3://vcot/examples/x", "BASE_URI": "s3://vcot/examples/rehearsal"}
    folders = [ROOT / "k8s/base/settings", ROOT / "examples/blood-cells/settings"]
    fill(cluster, gather_variables(folders, {}, places))
    names = [step.name for step in make_plan("r1", "s3://b/runs", {}, parts=IN_PARTS).steps]
    cluster.scripts = {f"r1-{name}": succeeds(after=1) for name in names} | {"r1-train": succeeds(after=seconds)}
    with ApiServer(cluster) as server, tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        process = _conductor(server.kubeconfig(Path(folder) / "kubeconfig"))
        _until(lambda: "r1-train" in cluster.created, process)
        waiting_since, spent = time.monotonic(), _cpu_seconds(process.pid)
        time.sleep(seconds / 2)
        rss, peak = _mib(process.pid, "VmRSS"), _mib(process.pid, "VmHWM")
        share = (_cpu_seconds(process.pid) - spent) / (time.monotonic() - waiting_since)
        process.wait(timeout=seconds + 60)
    if process.returncode:
        sys.exit(f"the conductor ended with {process.returncode}")
    gaps = _gaps(cluster.when)
    return {
        "rss_mib": round(rss, 1),
        "peak_mib": round(peak, 1),
        "cpu_percent": round(100 * share, 2),
        "complete_to_create_s_median": round(statistics.median(gaps), 3),
        "complete_to_create_s_longest": round(max(gaps), 3),
        "start_to_first_job_s": round(cluster.when[0][2] - begun, 1),
    }


def _conductor(kubeconfig: Path) -> subprocess.Popen[bytes]:
    mine = {n: v for n, v in os.environ.items() if not n.startswith(("VCOT_", "KUBERNETES_"))}
    given = {
        "KUBECONFIG": str(kubeconfig), "JOB_NAME": "pipeline-r1", "JOB_UID": "u", "POD_NAMESPACE": "vcot",
        "VCOT_LOG_FORM": "json",
    }  # fmt: skip
    command = [sys.executable, "-m", "jobs.pipeline", "--where", "kubernetes"]
    return subprocess.Popen(command, cwd=ROOT, env=mine | given, stderr=subprocess.DEVNULL)


def _until(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not there():
        if process.poll() is not None:
            sys.exit(f"the conductor ended with {process.returncode} before it created train")
        time.sleep(0.02)


def _gaps(when: list[tuple[str, str, float]]) -> list[float]:
    """Seconds from each Job's Complete to the creation that follows it."""
    ordered = [(said, at) for _, said, at in when if said != "changed"]
    return [b - a for (first, a), (then, b) in pairwise(ordered) if (first, then) == ("complete", "created")]


def _mib(pid: int, name: str) -> float:
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) / 1024


def _cpu_seconds(pid: int) -> float:
    """Of the process itself, without the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="how long train runs while it is watched")
    print(json.dumps(measure(parser.parse_args().seconds), indent=1))
