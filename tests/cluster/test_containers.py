"""What a stage finds in its container, and how a Job takes the ends of the contract."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.cluster import Cluster, Manifest, Overlay

LOOK = """
import getpass, json, os, pathlib, sys, tempfile
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
def writable(folder):
    try:
        pathlib.Path(folder, "tried").write_text("x")
        return True
    except OSError:
        return False
import vcot
import numpy
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "name": getpass.getuser(), "process": os.getpid(),
    "capabilities": [status[n].strip() for n in ("CapEff", "CapPrm", "CapBnd")],
    "no_new_privileges": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
    "writable": [f for f in ("/", "/opt/vcot", "/opt/venv", "/usr", "/etc", "/scratch", "/tmp") if writable(f)],
    "temporary": tempfile.gettempdir(), "token": os.path.exists("/var/run/secrets/kubernetes.io"),
    "compiled": [os.path.exists(m.__cached__) for m in (vcot, numpy)],
    "torch": bool(__import__("importlib.util").util.find_spec("torch")), "path": sys.path[0],
}))
"""
SEEN = {
    "uid": 10001, "gid": 10001, "name": "vcot", "process": 1, "capabilities": ["0000000000000000"] * 3,
    "no_new_privileges": "1", "seccomp": "2", "writable": ["/scratch", "/tmp"], "temporary": "/scratch",
    "token": False, "compiled": [True, True], "path": "",
}  # fmt: skip


@pytest.fixture
def templates(namespace: Cluster, overlay: Callable[[str], Overlay]) -> Cluster:
    """A namespace with the templates and without the pipeline's Job: nothing runs by itself."""
    overlay("templates").without_pipeline().apply(namespace)
    return namespace


def from_template(cluster: Cluster, stage: str, name: str, env: dict[str, str] | None = None, **words: Any) -> Manifest:
    """A Job as `kubectl create job --from=cronjob/stage-…` makes it, with other words for its container."""
    job = cluster.get("CronJob", f"stage-{stage}")["spec"]["jobTemplate"]
    main = job["spec"]["template"]["spec"]["containers"][0]
    main |= words
    kept = [one for one in main["env"] if one["name"] not in (env or {})]
    main["env"] = [*kept, *({"name": name, "value": value} for name, value in (env or {}).items())]
    return job | {"apiVersion": "batch/v1", "kind": "Job", "metadata": {**job.get("metadata", {}), "name": name}}


@pytest.mark.parametrize(("stage", "has_torch"), [("convert", False), ("train", True)])
def test_a_stage_has_no_rights_and_writes_to_scratch_alone(stage: str, has_torch: bool, templates: Cluster) -> None:
    templates.create(from_template(templates, stage, "look", command=["python", "-c", LOOK], args=[]))
    templates.completes("look")
    assert json.loads(templates.logs("look")) == SEEN | {"torch": has_torch}


#: How a stage is started, its exit code, and what its last line names.
ENDS = [
    (["jobs.convert", "--nonsense"], 64, "--nonsense: no such flag"),
    (["jobs.convert", "--num-shards", "many"], 78, "--num-shards=many"),
    (["jobs.distill", "--input-uri", "s3://vcot/no/such/stage"], 65, "s3://vcot/no/such/stage is not a finished stage"),
    (["jobs.convert", "--input-uri", "s3://no-such-bucket-at-all/x.json"], 78, "no-such-bucket-at-all"),
]


def test_ends_that_trying_again_does_not_change_fail_the_job_at_once(templates: Cluster) -> None:
    for number, (args, *_) in enumerate(ENDS):
        run = {"VCOT_RUN_URI": f"s3://vcot/runs/{templates.namespace}-{number}"}
        stage = args[0].removeprefix("jobs.")
        templates.create(from_template(templates, stage, f"end-{number}", run, args=args))
    for number, (args, code, named) in enumerate(ENDS):
        end = templates.fails(f"end-{number}")
        assert end["reason"] == "PodFailurePolicy", args
        assert f"exit code {code}" in end["message"], args
        assert len(templates.pods_of(f"end-{number}")) == 1
        ended = templates.terminated(f"end-{number}")
        assert ended["exitCode"] == code
        assert named in ended["message"]
        assert "Traceback" not in ended["message"]


SLOW = """
import signal, sys, time
def leave(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print("working", flush=True)
time.sleep(600)
"""


def test_an_evicted_pod_is_not_counted_and_is_replaced(templates: Cluster) -> None:
    job = from_template(templates, "convert", "evicted", command=["python", "-c", SLOW], args=[])
    job["spec"]["backoffLimit"] = 0
    job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 20
    templates.create(job)
    first = templates.running_pod("evicted")
    templates.until("it works", lambda: "working" in templates.run("logs", first))
    templates.evict(first)
    templates.until("another pod runs", lambda: templates.running_pod("evicted") != first)
    assert not templates.get("Job", "evicted")["status"].get("failed")
