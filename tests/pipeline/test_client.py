"""The real Kubernetes client against an HTTP stub: what is tried again, for how long, and what is not."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.apiserver import ApiServer, Fault
from tests.fakes.cluster import MemoryCluster, MemoryStorage, RealClock, fill, succeeds
from vcot.errors import Interrupted, SettingsError, TemporaryError
from vcot.pipeline.client import AWAY, ClusterClient, Expired, Refused, connect
from vcot.pipeline.executor import KubernetesExecutor
from vcot.pipeline.local import gather_variables
from vcot.pipeline.orchestrator import Clock, make_plan, orchestrate
from vcot.pipeline.templates import Owner
from vcot.stage import Stop

ROOT = Path(__file__).parents[2]
QUICK = 50
"""How much faster than ours the clock of these tests runs."""


class QuickClock(Clock):
    def now(self) -> float:
        return time.monotonic() * QUICK

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / QUICK)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    cluster = MemoryCluster(RealClock())
    fill(cluster)
    with ApiServer(cluster) as server:
        yield server


@pytest.fixture
def api(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterClient:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    return connect("vcot", QuickClock(), Stop())


def a_map(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}}


def test_what_is_not_there_is_none_and_what_is_there_is_as_it_was_written(
    api: ClusterClient, server: ApiServer
) -> None:
    assert api.get("ConfigMap", "x") is None
    assert api.create("ConfigMap", a_map("x")) is not None
    found = api.get("ConfigMap", "x")
    assert found is not None
    assert found["data"] == {"a": "1"}
    assert api.create("ConfigMap", a_map("x")) is None
    for _ in range(2):
        api.delete("ConfigMap", "x")
        assert api.get("ConfigMap", "x") is None
    assert api.version() == (1, 36)
    server.cluster.put("APIGroup", {"metadata": {"name": "jobset.x-k8s.io"}})
    assert (api.knows("jobset.x-k8s.io"), api.knows("kueue.x-k8s.io")) == (True, False)


def test_a_patch_changes_what_it_names_and_leaves_the_rest(api: ClusterClient) -> None:
    api.create("ConfigMap", a_map("x"))
    changed = api.patch("ConfigMap", "x", {"data": {"b": "2"}, "metadata": {"annotations": {"vcot/a": "1"}}})
    assert changed["data"] == {"a": "1", "b": "2"}
    assert changed["metadata"]["annotations"] == {"vcot/a": "1"}
    with pytest.raises(Refused, match="not found"):
        api.patch("ConfigMap", "y", {"data": {}})


@pytest.mark.parametrize(
    "fault",
    [
        Fault("POST", "/configmaps"),
        Fault("POST", "/configmaps", times=4),
        Fault("POST", "/configmaps", status=500),
        Fault("POST", "/configmaps", status=503, times=3),
        Fault("POST", "/configmaps", status=429),
        Fault("POST", "/configmaps", status=409, reason="Conflict"),
        Fault("POST", "/configmaps", status=401),
        Fault("POST", "/configmaps", status=403, times=3),
    ],
    ids=lambda fault: f"{fault.status or 'reset'} x{fault.times}",
)
def test_what_can_pass_by_itself_is_tried_again(api: ClusterClient, server: ApiServer, fault: Fault) -> None:
    server.faults.append(fault)
    with capture_logs() as lines:
        assert api.create("ConfigMap", a_map("x")) is not None
    assert server.cluster.created == ["x"]
    assert lines[0]["event"].startswith("the API server does not answer as it should: ")
    assert lines[-1]["event"].startswith("the API server answers again")
    assert len(lines) == 2


def test_an_answer_that_is_lost_after_the_create_does_not_create_twice(api: ClusterClient, server: ApiServer) -> None:
    server.faults.append(Fault("POST", "/configmaps", late=True))
    assert api.create("ConfigMap", a_map("x")) is None  # taken, by this very call
    assert server.cluster.created == ["x"]


def test_the_server_says_how_long_to_wait(api: ClusterClient, server: ApiServer) -> None:
    server.faults.append(Fault("GET", "/x", status=429, headers={"Retry-After": "60"}))
    api.get("ConfigMap", "x")
    first, second = [when for when, _, path in server.asked if path.endswith("/x")]
    assert second - first >= 60 / QUICK


@pytest.mark.parametrize(("status", "asked"), [(422, 1), (400, 1), (404, 1), (403, 9)])
def test_a_refusal_ends_it_with_the_servers_words_at_once_or_where_rules_may_be_loading_soon(
    api: ClusterClient, server: ApiServer, status: int, asked: int
) -> None:
    server.faults.append(Fault("POST", "/jobs", status=status, times=100))
    began = time.monotonic()
    with pytest.raises(Refused, match="made up by the test") as caught:
        api.create("Job", {"metadata": {"name": "j"}})
    assert caught.value.status == status
    assert caught.value.exit_code == 78
    assert len(server.asked) <= asked
    assert (time.monotonic() - began) * QUICK < 60


def test_a_list_comes_in_pages_and_ends_where_enough_was_seen(api: ClusterClient, server: ApiServer) -> None:
    for number in range(250):
        server.cluster.put("Pod", {"metadata": {"name": f"p{number}", "labels": {"job": "j"}}})
    server.cluster.put("Pod", {"metadata": {"name": "other"}})
    assert len(list(api.list("Pod", labels="job=j"))) == 250
    assert len(server.asked) == 3
    assert len(list(api.list("Pod", labels="job=j", limit=2))) == 2
    assert len(server.asked) == 4


def test_a_list_that_is_not_allowed_is_not_asked_for_again(api: ClusterClient, server: ApiServer) -> None:
    server.faults.append(Fault("GET", "/pods", status=403, times=100))
    with pytest.raises(Refused):
        list(api.list("Pod"))
    assert len(server.asked) == 1


# --- watches ---------------------------------------------------------------------------------------------


def a_job(server: ApiServer) -> tuple[dict[str, Any], str]:
    job = server.cluster.put("Job", {"metadata": {"name": "j"}})
    return job, job["metadata"]["resourceVersion"]


def test_a_watch_tells_what_happens_as_it_happens_and_ends_with_where_to_go_on(
    api: ClusterClient, server: ApiServer
) -> None:
    job, version = a_job(server)
    server.cluster.put("Job", {"metadata": {"name": "another"}})
    begun = time.monotonic()
    server.cluster.clock.at(0.3, lambda: server.cluster.status(job, active=1))
    first, last = api.watch("Job", "j", version, 1)
    assert (first[0], first[1]["status"]) == ("MODIFIED", {"active": 1})
    assert last[0] == "BOOKMARK"
    of_first, of_last = (one["metadata"]["resourceVersion"] for _, one in (first, last))
    assert int(of_last) >= int(of_first) > int(version)
    assert time.monotonic() - begun < 3
    server.cluster.delete("Job", "j")
    assert [what for what, _ in api.watch("Job", "j", of_last, 1)] == ["DELETED", "BOOKMARK"]
    assert api.find("Job", "j") == (None, str(server.cluster.latest))


@pytest.mark.parametrize("how", ["status", "event", "too old"])
def test_a_version_that_is_forgotten_is_said_so(api: ClusterClient, server: ApiServer, how: str) -> None:
    _, version = a_job(server)
    if how == "too old":
        server.cluster.oldest_watch = 10**6
    else:
        event = (
            {"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "gone"}}
            if how == "event"
            else None
        )
        server.faults.append(Fault("GET", "/jobs?watch", status=410, event=event))
    with pytest.raises(Expired):
        list(api.watch("Job", "j", version, 1))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", "/jobs?watch"),
        Fault("GET", "/jobs?watch", status=500),
        Fault("GET", "/jobs?watch", status=429, headers={"Retry-After": "2"}),
        Fault(
            "GET",
            "/jobs?watch",
            event={"type": "ERROR", "object": {"code": 500, "reason": "", "message": "etcd moved"}},
        ),
        Fault("GET", "/jobs?watch", half=True),
    ],
    ids=["reset", "500", "429", "error event", "half a line"],
)
def test_a_watch_that_breaks_just_ends_and_the_next_one_goes_on(
    api: ClusterClient, server: ApiServer, fault: Fault
) -> None:
    job, version = a_job(server)
    server.faults.append(fault)
    assert list(api.watch("Job", "j", version, 1)) == []
    server.cluster.status(job, active=1)
    assert [what for what, _ in api.watch("Job", "j", version, 1)] == ["MODIFIED", "BOOKMARK"]


def test_watches_that_the_server_ends_at_once_are_not_asked_for_in_a_circle(
    api: ClusterClient, server: ApiServer
) -> None:
    _, version = a_job(server)
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}
    server.faults.append(Fault("GET", "/jobs?watch", event=bookmark, times=3))
    begun = time.monotonic()
    for _ in range(3):
        list(api.watch("Job", "j", version, 5))
    assert time.monotonic() - begun >= 3 / QUICK


# --- away ------------------------------------------------------------------------------------------------


def test_a_server_that_is_away_for_a_while_is_waited_for(api: ClusterClient, server: ApiServer) -> None:
    a_job(server)
    assert api.get("Job", "j") is not None  # a connection that is kept, and will be dead
    server.stop()
    threading.Timer(100 / QUICK, server.start).start()
    with capture_logs() as lines:
        assert api.get("Job", "j") is not None
    told = [line["event"] for line in lines]
    assert told[0].startswith("the API server does not answer as it should: ")  # refused, or the kept one was reset
    assert [line for line in told if line.startswith("no good answer from the API server for")]
    assert told[-1].startswith("the API server answers again, after ")
    assert len(told) <= 6


def test_a_server_that_stays_away_ends_the_orchestrator_with_75(api: ClusterClient, server: ApiServer) -> None:
    server.stop()
    begun = time.monotonic()
    with pytest.raises(TemporaryError, match="not one good answer from the API server for 300 s, last: ") as caught:
        api.get("Job", "j")
    assert caught.value.exit_code == 75
    assert AWAY <= (time.monotonic() - begun) * QUICK < AWAY + 60


def test_watches_that_fail_add_up_to_the_same_end(api: ClusterClient, server: ApiServer) -> None:
    _, version = a_job(server)
    server.stop()
    watches = (list(api.watch("Job", "j", version, 1)) for _ in range(1000))
    with pytest.raises(TemporaryError):
        list(watches)


def test_a_stop_is_heard_while_the_server_is_away(server: ApiServer, api: ClusterClient) -> None:
    stop = Stop()
    api = connect("vcot", Clock(), stop)
    server.stop()
    threading.Timer(1, stop.request, [signal.SIGTERM]).start()
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        api.get("Job", "j")
    assert time.monotonic() - begun < 5


def test_without_a_cluster_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match=r"no cluster to speak to: .*Set KUBECONFIG"):
        connect("vcot", Clock(), Stop())
    monkeypatch.setenv("KUBECONFIG", "/no/such/file")
    with pytest.raises(SettingsError, match=r"no cluster to speak to: .*/no/such/file"):
        connect("vcot", Clock(), Stop())


# --- a whole run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_run_with_a_server_that_fails_all_the_time_makes_everything_once(
    api: ClusterClient, server: ApiServer, seed: int
) -> None:
    server.cluster.scripts = {f"r1-{name}": succeeds(after=0.05) for name in _names()}
    pick = random.Random(seed)
    ends = ["/configmaps", "/jobs", "/jobs?watch", "/pods", "/r1-plan", "/stage-train", "-abc", "-shards", "-finish"]
    for _ in range(40):
        server.faults.append(
            Fault(
                pick.choice(["GET", "GET", "POST"]), pick.choice(ends), status=pick.choice([0, 0, 500, 429, 503]),
                late=pick.random() < 0.5,
            )
        )  # fmt: skip
    stop, clock = Stop(), QuickClock()
    owner = Owner("pipeline-r1", "uid")
    executor = KubernetesExecutor(
        api, MemoryStorage(), owner, clock=clock, stop=stop, pending_timeout=1e9, validate=lambda stage, variables: []
    )
    plan = executor.freeze(make_plan("r1", "s3://b/runs", {}, in_parts=True))
    orchestrate(plan, executor, stop, attempts=1, clock=clock)
    assert server.cluster.created == ["r1-plan", "r1-state", *[f"r1-{name}" for name in _names()]]
    assert len(server.faults) < 40


def _names() -> list[str]:
    return [step.name for step in make_plan("r1", "s3://b/runs", {}, in_parts=True).steps]


@pytest.fixture
def in_a_pod(server: ApiServer, tmp_path: Path) -> dict[str, str]:
    """The environment of an orchestrator's process, whose cluster holds settings that are in order."""
    places = {"EXAMPLE_URI": "s3://vcot/examples/x", "BASE_URI": "s3://vcot/examples/rehearsal"}
    folders = [ROOT / "k8s/base/settings", ROOT / "examples/blood-cells/settings"]
    fill(server.cluster, gather_variables(folders, {}, places))
    mine = {n: v for n, v in os.environ.items() if not n.startswith(("VCOT_", "KUBERNETES_"))}
    return mine | {
        "KUBECONFIG": str(server.kubeconfig(tmp_path / "kubeconfig")), "JOB_NAME": "pipeline-r1",
        "JOB_UID": "uid-of-pipeline", "POD_NAMESPACE": "vcot", "VCOT_PIPELINE_RUN_ID": "r1",
        "VCOT_PIPELINE_RUNS_URI": "s3://vcot/runs", "VCOT_LOG_FORM": "json",
        "VCOT_TERMINATION_LOG": str(tmp_path / "termination-log"),
    }  # fmt: skip


COMMAND = [sys.executable, "-m", "jobs.pipeline", "--where", "kubernetes"]


def start(environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(COMMAND, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def test_the_command_stops_with_143_and_leaves_its_job_to_the_next_one(
    server: ApiServer, in_a_pod: dict[str, str]
) -> None:
    environment = in_a_pod | {"VCOT_PIPELINE_ONLY": "train"}
    server.cluster.scripts = {"r1-train": succeeds(after=1e6)}
    first = start(environment)
    until = time.monotonic() + 60
    while "r1-train" not in server.cluster.created and time.monotonic() < until:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=30)
    assert first.returncode == 143
    assert "Job r1-train goes on, and the next orchestrator adopts it" in said
    second = start(environment)
    server.cluster.over(server.cluster.objects["Job", "r1-train"], "Complete")
    _, said = second.communicate(timeout=60)
    assert second.returncode == 0
    lines = [json.loads(line) for line in said.splitlines()]
    assert "train: adopted, it is there already" in [line["event"] for line in lines]
    assert lines[-1]["event"] == "finished"
    assert lines[-1]["run"] == "r1"
    assert server.cluster.created == ["r1-plan", "r1-state", "r1-train"]


def test_the_command_judges_all_settings_of_the_cluster_and_makes_no_job(
    server: ApiServer, in_a_pod: dict[str, str], tmp_path: Path
) -> None:
    for stage, wrong in (("train", {"VCOT_TRAIN_NUM_TRAIN_EPOCHS": "-1"}), ("evaluate", {"VCOT_EVALUATE_SEDE": "1"})):
        server.cluster.objects["ConfigMap", f"settings-{stage}-abc"]["data"] |= wrong
    process = start(in_a_pod)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 78
    lines = [json.loads(line)["event"] for line in said.splitlines()]
    *warnings, train, evaluate = lines
    assert train.startswith("train: VCOT_TRAIN_NUM_TRAIN_EPOCHS=-1: ")
    assert evaluate.startswith("evaluate: VCOT_EVALUATE_SEDE: no such setting; did you mean VCOT_EVALUATE_SEED?")
    assert all("state" in line for line in warnings)  # there is no storage here to write the reason down in, too
    assert server.cluster.created == ["r1-state"]
