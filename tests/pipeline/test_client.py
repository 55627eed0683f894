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

from jobs.pipeline import PipelineSettings, run
from tests.fakes.apiserver import ApiServer, Fault
from tests.fakes.cluster import ALL, OWNER, FakeClock, a_cluster, a_plan, fill, timeline, valid
from vcot.errors import Interrupted, SettingsError, TemporaryError
from vcot.pipeline.client import AWAY, ClusterClient, Refused, connect
from vcot.pipeline.executor import KubernetesExecutor
from vcot.pipeline.local import gather_variables
from vcot.pipeline.orchestrator import Clock, orchestrate
from vcot.stage import Stop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(a_cluster()) as server:
        yield server


@pytest.fixture
def clock(server: ApiServer) -> FakeClock:
    """The client's and the cluster's: it moves only while the client pauses."""
    return server.cluster.clock


@pytest.fixture
def api(server: ApiServer, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterClient:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    return connect("vcot", clock, Stop())


def a_map(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}}


def test_objects_are_created_once_read_patched_and_deleted(api: ClusterClient, server: ApiServer) -> None:
    assert api.get("ConfigMap", "x") is None
    assert api.create("ConfigMap", a_map("x")) is not None
    assert (api.get("ConfigMap", "x") or {})["data"] == {"a": "1"}
    assert api.create("ConfigMap", a_map("x")) is None
    changed = api.patch("ConfigMap", "x", {"data": {"b": "2"}, "metadata": {"annotations": {"vcot/a": "1"}}})
    assert (changed["data"], changed["metadata"]["annotations"]) == ({"a": "1", "b": "2"}, {"vcot/a": "1"})
    with pytest.raises(Refused, match="not found"):
        api.patch("ConfigMap", "y", {"data": {}})
    for _ in range(2):
        api.delete("ConfigMap", "x")
        assert api.get("ConfigMap", "x") is None
    assert api.version() == (1, 36)
    server.cluster.put("APIGroup", {"metadata": {"name": "jobset.x-k8s.io"}})
    assert (api.knows("jobset.x-k8s.io"), api.knows("kueue.x-k8s.io")) == (True, False)


@pytest.mark.parametrize(
    ("status", "reason", "times"),
    [(0, "", 4), (500, "", 1), (503, "", 3), (429, "", 1), (409, "Conflict", 1), (401, "", 1), (403, "", 3)],
)
def test_what_can_pass_by_itself_is_tried_again(api: ClusterClient, server: ApiServer, status, reason, times) -> None:
    server.faults.append(Fault("POST", "/configmaps", status=status, reason=reason, times=times))
    with capture_logs() as lines:
        assert api.create("ConfigMap", a_map("x")) is not None
    assert server.cluster.created == ["x"]
    first, last = (line["event"] for line in lines)
    assert first.startswith("the API server does not answer as it should: ")
    assert last.startswith("the API server answers again")


def test_a_lost_answer_to_a_create_does_not_create_twice(api: ClusterClient, server: ApiServer) -> None:
    server.faults.append(Fault("POST", "/configmaps", late=True))
    assert api.create("ConfigMap", a_map("x")) is None  # taken, by this very call
    assert server.cluster.created == ["x"]


def test_retry_after_is_obeyed(api: ClusterClient, server: ApiServer, clock: FakeClock) -> None:
    server.faults.append(Fault("GET", "/x", status=429, headers={"Retry-After": "60"}))
    api.get("ConfigMap", "x")
    assert clock.now() >= 60


@pytest.mark.parametrize(("status", "asked", "seconds"), [(422, 1, 0), (400, 1, 0), (404, 1, 0), (403, 9, 45)])
def test_a_refusal_ends_at_once_or_soon_where_rules_may_be_loading(api, server, clock, status, asked, seconds) -> None:
    server.faults.append(Fault("POST", "/jobs", status=status, times=100))
    with pytest.raises(Refused, match="made up by the test") as caught:
        api.create("Job", {"metadata": {"name": "j"}})
    assert (caught.value.status, caught.value.exit_code) == (status, 78)
    assert len(server.asked) <= asked
    assert clock.now() <= seconds


def test_a_list_comes_in_pages_and_is_not_asked_for_again_where_it_is_refused(api, server: ApiServer) -> None:
    for number in range(250):
        server.cluster.put("Pod", {"metadata": {"name": f"p{number}", "labels": {"job": "j"}}})
    server.cluster.put("Pod", {"metadata": {"name": "other"}})
    assert len(list(api.list("Pod", labels="job=j"))) == 250
    assert len(server.asked) == 3
    assert len(list(api.list("Pod", labels="job=j", limit=2))) == 2
    assert len(server.asked) == 4
    server.faults.append(Fault("GET", "/pods", status=403, times=100))
    with pytest.raises(Refused):
        list(api.list("Pod"))
    assert len(server.asked) == 5


# --- away ------------------------------------------------------------------------------------------------


def test_a_server_that_is_away_for_a_while_is_waited_for(api, server: ApiServer, clock: FakeClock) -> None:
    server.cluster.put("Job", {"metadata": {"name": "j"}})
    assert api.get("Job", "j") is not None  # a connection that is kept, and will be dead
    server.stop()
    clock.at(100, server.start)
    with capture_logs() as lines:
        assert api.get("Job", "j") is not None
    first, *between, last = (line["event"] for line in lines)
    assert first.startswith("the API server does not answer as it should: ")  # refused, or the kept one was reset
    assert 2 <= len([line for line in between if line.startswith("no good answer from the API server for")]) <= 4
    assert last.startswith("the API server answers again, after 1")


def test_a_server_that_stays_away_ends_the_orchestrator_with_75(api, server: ApiServer, clock: FakeClock) -> None:
    server.stop()
    with pytest.raises(TemporaryError, match="not one good answer from the API server for 300 s, last: ") as caught:
        api.get("Job", "j")
    assert caught.value.exit_code == 75
    assert AWAY <= clock.now() < AWAY + 60


def test_a_stop_is_heard_while_the_server_is_away(api: ClusterClient, server: ApiServer) -> None:
    stop = Stop()
    api = connect("vcot", Clock(), stop)
    server.stop()
    threading.Timer(0.3, stop.request, [signal.SIGTERM]).start()
    with pytest.raises(Interrupted):
        api.get("Job", "j")


@pytest.mark.parametrize("named", [None, "/no/such/file"])
def test_no_cluster_is_said_with_what_to_set(monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    if named:
        monkeypatch.setenv("KUBECONFIG", named)
    with pytest.raises(SettingsError, match=rf"no cluster to speak to: .*{named or ''}.*Set KUBECONFIG"):
        connect("vcot", Clock(), Stop())


# --- a whole run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_a_run_whose_server_fails_all_the_time_makes_everything_once(api, server: ApiServer, clock, seed: int) -> None:
    pick = random.Random(seed)
    ends = ["/configmaps", "/jobs", "/r1-train", "/pods", "/r1-plan", "/stage-train", "-abc", "-shards", "-finish"]
    for _ in range(40):
        method, end, status = pick.choice(["GET", "GET", "POST"]), pick.choice(ends), pick.choice([0, 0, 500, 429, 503])
        server.faults.append(Fault(method, end, status=status, late=pick.random() < 0.5))
    stop = Stop()
    executor = KubernetesExecutor(
        api, server.cluster.storage, OWNER, clock=clock, stop=stop, pending_timeout=1e9, validate=valid
    )
    orchestrate(executor.freeze(a_plan()), executor, stop, attempts=1, clock=clock)
    assert server.cluster.created == ALL
    assert len(server.faults) < 40


@pytest.fixture
def in_a_pod(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of an orchestrator's process, whose cluster holds settings that are in order."""
    places = {"EXAMPLE_URI": "s3://vcot/examples/x", "BASE_URI": "s3://vcot/examples/rehearsal"}
    folders = [ROOT / "k8s/base/settings", ROOT / "examples/blood-cells/settings"]
    fill(server.cluster, gather_variables(folders, {}, places))
    for name in [name for name in os.environ if name.startswith(("VCOT_", "KUBERNETES_"))]:
        monkeypatch.delenv(name)
    for name, value in {
        "KUBECONFIG": str(server.kubeconfig(tmp_path / "kubeconfig")), "JOB_NAME": "pipeline-r1",
        "JOB_UID": "uid-of-pipeline", "POD_NAMESPACE": "vcot", "VCOT_PIPELINE_RUNS_URI": "s3://vcot/runs",
        "VCOT_PIPELINE_WHERE": "kubernetes", "AWS_EC2_METADATA_DISABLED": "true",  # there is no storage, known at once
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_sigterm_ends_the_command_with_143_and_the_next_one_adopts_its_job(server, in_a_pod, monkeypatch) -> None:
    monkeypatch.setenv("VCOT_PIPELINE_ONLY", "train")
    server.cluster.scripts = {"r1-train": timeline()}
    command = [sys.executable, "-m", "jobs.pipeline"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"VCOT_LOG_FORM": "json"}, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while "r1-train" not in server.cluster.created and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    last = json.loads(said.splitlines()[-1])
    assert "Job r1-train goes on, and the next orchestrator adopts it" in last["event"]
    assert last["run"] == "r1"
    server.cluster.over(server.cluster.objects["Job", "r1-train"], "Complete")
    with capture_logs() as lines:
        run(PipelineSettings.load([])[0])
    assert "train: adopted, it is there already" in [line["event"] for line in lines]
    assert lines[-1]["event"] == "finished"
    assert server.cluster.created == ["r1-plan", "r1-state", "r1-train"]
