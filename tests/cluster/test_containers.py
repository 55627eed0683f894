"""What a stage finds in its container, and how a Job takes the ends of the contract."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.cluster.cluster import Cluster, Overlay
from tests.cluster.jobs import from_template, python

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


@pytest.mark.parametrize(("stage", "has_torch"), [("convert", False), ("train", True)])
def test_a_stage_has_no_rights_and_writes_to_scratch_alone(
    stage: str, has_torch: bool, namespace: Cluster, overlay: Callable[[str], Overlay]
) -> None:
    only_templates(overlay("look")).apply(namespace)
    namespace.create(from_template(namespace, stage, "look", **python(LOOK)))
    namespace.completes("look")
    assert json.loads(namespace.logs("look")) == {
        "uid": 10001,
        "gid": 10001,
        "name": "vcot",
        "process": 1,
        "capabilities": ["0000000000000000"] * 3,
        "no_new_privileges": "1",
        "seccomp": "2",
        "writable": ["/scratch", "/tmp"],
        "temporary": "/scratch",
        "token": False,
        "compiled": [True, True],
        "torch": has_torch,
        "path": "",
    }


def only_templates(overlay: Overlay) -> Overlay:
    """The overlay without its pipeline Job: nothing runs by itself."""
    removed = "$patch: delete\napiVersion: batch/v1\nkind: Job\nmetadata: {name: pipeline}\n"

    def change(kustomization: dict[str, object]) -> None:
        kustomization.pop("replacements", None)
        patches = kustomization.setdefault("patches", [])
        assert isinstance(patches, list)
        patches.append({"patch": removed})

    return overlay.edit(change)


#: How a stage is started, its exit code, and what its last line names.
ENDS = [
    (["jobs.convert", "--nonsense"], 64, "--nonsense: no such flag"),
    (["jobs.convert", "--num-shards", "many"], 78, "--num-shards=many"),
    (["jobs.distill", "--input-uri", "s3://vcot/no/such/stage"], 65, "s3://vcot/no/such/stage is not a finished stage"),
    (["jobs.convert", "--input-uri", "s3://no-such-bucket-at-all/x.json"], 78, "no-such-bucket-at-all"),
]


def test_ends_that_trying_again_does_not_change_fail_the_job_at_once(
    namespace: Cluster, overlay: Callable[[str], Overlay]
) -> None:
    only_templates(overlay("ends")).apply(namespace)
    for number, (args, *_) in enumerate(ENDS):
        run = {"VCOT_RUN_URI": f"s3://vcot/runs/{namespace.namespace}-{number}"}
        stage = args[0].removeprefix("jobs.")
        namespace.create(from_template(namespace, stage, f"end-{number}", args=args, variables=run))
    for number, (args, code, named) in enumerate(ENDS):
        end = namespace.fails(f"end-{number}")
        assert end["reason"] == "PodFailurePolicy", args
        assert f"exit code {code}" in end["message"], args
        (pod,) = namespace.pods_of(f"end-{number}")
        ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        assert ended["exitCode"] == code
        assert named in ended["message"]
        assert "Traceback" not in ended["message"]


SLOW = """
import pathlib, signal, sys, time
def leave(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print("working", flush=True)
time.sleep(3 if len(sys.argv) > 1 else 600)
"""


def test_an_evicted_pod_is_not_counted_and_is_replaced(namespace: Cluster, overlay: Callable[[str], Overlay]) -> None:
    only_templates(overlay("evicted")).apply(namespace)
    job = from_template(namespace, "convert", "evicted", **python(SLOW), backoffLimit=0)
    job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 20
    namespace.create(job)
    first = namespace.running_pod("evicted")
    namespace.until("it works", lambda: "working" in namespace.run("logs", first))
    namespace.evict(first)
    second = namespace.until(
        "another pod runs", lambda: next((p for p in [namespace.running_pod("evicted")] if p != first), None)
    )
    assert second != first
    status = (namespace.get("jobs", "evicted") or {})["status"]
    assert not status.get("failed")
