"""The doctor against a stub of the API: a cluster in order has nothing missing, and each thing that lacks is named.

The overlay is the real one, rendered; the cluster is in memory (tests/fakes), so that this proves what the doctor asks
and says. That its Jobs run on a cluster is for the real node to show.
"""

from __future__ import annotations

import base64
import functools
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.apiserver import ApiServer, Fault
from tests.fakes.cluster import MemoryCluster, RealClock
from tests.k8s.kustomize import OVERLAYS, around, text
from vcot.pipeline import doctor, trial
from vcot.pipeline.checking import judge
from vcot.pipeline.wanted import Wanted

GUARANTEES = {"bytes": "ok", "write-once": "ok", "one-winner": "ok"}


EXTERNAL = (
    "\n---\napiVersion: external-secrets.io/v1\nkind: ExternalSecret\n"
    "metadata: {name: s3-credentials, namespace: vcot}\nspec: {}\n"
)


class Trials(dict):
    """What becomes of the doctor's Jobs, whose names nobody knows before."""

    def __init__(self, probe: Any, image: Any = None) -> None:
        super().__init__()
        self.probe, self.image = probe, image or probe

    def get(self, name: str, default: Any = None) -> Any:
        def script(cluster: MemoryCluster, job: dict) -> None:
            container = job["spec"]["template"]["spec"]["containers"][0]
            (self.probe if container.get("args") == ["jobs.probe"] else self.image)(cluster, job)

        return script


def ends(code: int = 0, **said: Any):
    def script(cluster: MemoryCluster, job: dict) -> None:
        cluster.pod(job, "Failed" if code else "Succeeded", exit_code=code, message=json.dumps({"exit": code} | said))

    return script


def held(**why: Any):
    return lambda cluster, job: cluster.pod(job, "Pending", **why)


def node(**allocatable: str) -> dict:
    room = {"cpu": "16", "memory": "128Gi", "ephemeral-storage": "500Gi"} | allocatable
    return {
        "metadata": {"name": "node-1", "labels": {"node-pool": "gpu"}},
        "status": {"allocatable": room, "conditions": [{"type": "Ready", "status": "True"}]},
    }


@functools.cache
def judged(stage: str, variables: frozenset[tuple[str, str]]) -> list[str]:
    return judge(stage, dict(variables))


@pytest.fixture(autouse=True)
def settings_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the stages themselves; the same settings need no second process."""
    monkeypatch.setattr(doctor, "judge", lambda stage, variables: judged(stage, frozenset(variables.items())))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> MemoryCluster:
    """In order for overlay gpu."""
    monkeypatch.setattr(trial, "LASTS", 0.5)
    made = MemoryCluster(RealClock())
    made.scripts = Trials(ends(guarantees=GUARANTEES))
    made.put("Node", node(**{"nvidia.com/gpu": "1"}))
    made.put("Namespace", {"metadata": {"name": "vcot"}})
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"), "eA==")
    made.put("Secret", {"metadata": {"name": "s3-credentials"}, "data": keys})
    return made


@pytest.fixture
def server(cluster: MemoryCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer(cluster) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path / "kubeconfig")))
        yield running


@pytest.fixture(scope="module")
def rendered() -> str:
    """Overlay gpu as somebody has filled it in."""
    return text(OVERLAYS / "gpu").replace("registry.example.com", "registry.local").replace("0" * 64, "1" * 64)


def look(rendered: str, tmp_path: Path) -> int:
    """The whole command; returns its exit code."""
    path = tmp_path / "rendered.yaml"
    path.write_text(rendered)
    return doctor.main(["--rendered", str(path), "--timeout", "5"])


def findings(rendered: str, *, empty_pools: bool = False, timeout: float | None = 5) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"ok": [], "missing": [], "note": []}
    for finding in doctor.examine(Wanted.of("gpu", rendered), empty_pools, timeout):
        found[finding.kind].append(finding.words + (f" → {finding.fix}" if finding.fix else ""))
    return found


def test_a_cluster_in_order_lacks_nothing_and_is_left_as_it_was(server, cluster, rendered, tmp_path, capsys):
    code = look(rendered, tmp_path)
    said = capsys.readouterr().out
    assert code == 0, said
    assert "nothing is missing: make k8s-run OVERLAY=gpu" in said
    for words in (
        "Kubernetes 1.36",
        "settings of convert, distill",
        "node node-1 for",
        "Secret s3-credentials",
        "storage at s3://",
    ):
        assert words in said
    assert not [name for kind, name in cluster.objects if kind == "Job"]
    assert all(name.startswith("doctor-") for name in cluster.created)


def test_its_jobs_are_like_the_stages_and_see_their_keys_alone(server, cluster, rendered):
    seen = []
    whole = ends(guarantees=GUARANTEES)
    cluster.scripts = Trials(lambda c, job: (seen.append(job), whole(c, job)))
    findings(rendered)
    probe = seen[0]["spec"]["template"]["spec"]
    main = probe["containers"][0]
    assert main["args"] == ["jobs.probe"]
    assert main["securityContext"]["readOnlyRootFilesystem"] is True
    assert probe["securityContext"]["runAsUser"] == 10001
    assert seen[0]["spec"]["template"]["metadata"]["labels"]["vcot/stage"] == "convert"  # the policy lets stages out
    assert [source["secretRef"]["name"] for source in main["envFrom"]] == ["s3-credentials"]
    ours = {variable["name"]: variable["value"] for variable in main["env"] if variable["name"].startswith("VCOT_")}
    assert list(ours) == ["VCOT_PROBE_URI"]
    assert ours["VCOT_PROBE_URI"].endswith("/_probe")
    assert "serviceAccountName" not in probe  # it comes with the overlay
    images = {job["spec"]["template"]["spec"]["containers"][0]["image"].partition("@")[0] for job in seen}
    assert images == {"registry.local/vcot-data", "registry.local/vcot-gpu"}
    assert all("nvidia.com/gpu" not in json.dumps(job) or "tolerations" in json.dumps(job) for job in seen)


def test_too_old_a_cluster(server, cluster, rendered):
    cluster.kubernetes = (1, 32)
    assert findings(rendered, timeout=None)["missing"] == [
        "Kubernetes 1.32: too old, vcot needs 1.33 or later → upgrade the cluster"
    ]


def test_no_namespace_ends_the_look_there(server, cluster, rendered):
    cluster.delete("Namespace", "vcot")
    found = findings(rendered)
    assert len(found["missing"]) == 1
    assert "kubectl apply -f k8s/overlays/gpu/namespace.yaml" in found["missing"][0]
    assert cluster.created == []


def test_a_pool_without_its_label(server, cluster, rendered):
    cluster.put("Node", node(**{"nvidia.com/gpu": "1"}) | {"metadata": {"name": "node-1", "labels": {}}})
    (missing,) = findings(rendered, timeout=None)["missing"]
    assert missing.startswith("no node takes ")
    assert "lacks the label node-pool=gpu → kubectl label node node-1 node-pool=gpu" in missing


def test_no_gpu_and_a_pool_that_may_be_empty(server, cluster, rendered):
    cluster.put("Node", node())
    assert "no node has nvidia.com/gpu" in findings(rendered, timeout=None)["missing"][0]
    assert findings(rendered, timeout=None, empty_pools=True)["missing"] == []


def test_a_quota_that_is_too_small(server, cluster, rendered):
    hard = {"requests.nvidia.com/gpu": "0"}
    cluster.put("ResourceQuota", {"metadata": {"name": "team"}, "spec": {"hard": hard}, "status": {}})
    assert findings(rendered, timeout=None)["missing"][0].startswith("quota team allows 0 of requests.nvidia.com/gpu")


def test_no_secret_or_one_without_its_keys(server, cluster, rendered):
    cluster.put("Secret", {"metadata": {"name": "s3-credentials"}, "data": {"ACCESS_KEY": "eA=="}})
    (missing,) = findings(rendered, timeout=None)["missing"]
    assert "lacks AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; it has ACCESS_KEY" in missing
    cluster.delete("Secret", "s3-credentials")
    (missing,) = findings(rendered, timeout=None)["missing"]
    assert "kubectl -n vcot create secret generic s3-credentials --from-literal=AWS_ENDPOINT_URL_S3=…" in missing


@pytest.mark.parametrize(
    ("endpoint", "closed"),
    [
        ("https://s3.example.com", False),
        ("http://10.0.0.7:9000", False),
        ("http://10.0.0.7:7480", True),
        ("http://10.0.0.7", True),
        ("x", False),
    ],
)
def test_a_port_of_the_storage_that_the_network_policy_closes(server, cluster, rendered, endpoint, closed):
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "eA==")
    keys["AWS_ENDPOINT_URL_S3"] = base64.b64encode(endpoint.encode()).decode()
    cluster.put("Secret", {"metadata": {"name": "s3-credentials"}, "data": keys})
    found = findings(rendered, timeout=None)["note"]
    assert any("NetworkPolicy storage lets out 443, 9000" in line for line in found) is closed


def test_wrong_settings_are_told_as_the_stage_tells_them(server, rendered):
    wrong = rendered.replace("VCOT_EVALUATE_CONDITIONS: real,blank,shuffled", "VCOT_EVALUATE_CONDITIONS: real,blanc")
    assert wrong != rendered
    missing = findings(wrong, timeout=None)["missing"]
    assert any("VCOT_EVALUATE_CONDITIONS=real,blanc: no such condition: blanc" in line for line in missing), missing


def test_placeholders_are_told_and_not_tried(server, cluster):
    found = findings(text(OVERLAYS / "gpu"))
    assert len([line for line in found["missing"] if "is a placeholder" in line]) == 2
    assert cluster.created == []


def test_a_storage_that_breaks_a_promise(server, cluster, rendered):
    broken = GUARANTEES | {"write-once": "a second writer replaced the first one's object"}
    cluster.scripts = Trials(ends(78, message="1 of 3", guarantees=broken), ends())
    (missing,) = findings(rendered)["missing"]
    assert missing.startswith("storage, from inside the cluster: write-once: a second writer replaced")


def test_a_storage_that_cannot_be_reached_from_inside(server, cluster, rendered):
    cluster.scripts = Trials(ends(78, message="s3://vcot/x: there is no bucket 'vcot'"), ends())
    (missing,) = findings(rendered)["missing"]
    assert missing.startswith("storage, from inside the cluster: s3://vcot/x: there is no bucket 'vcot'")


def test_an_image_that_cannot_be_pulled(server, cluster, rendered):
    cluster.scripts = Trials(ends(guarantees=GUARANTEES), held(waiting=("ImagePullBackOff", "not found")))
    (missing,) = findings(rendered)["missing"]
    assert missing.startswith("image registry.local/vcot-gpu@sha256:1111")
    assert "ImagePullBackOff" in missing
    assert "write its name and digest under images:" in missing
    assert not [name for kind, name in cluster.objects if kind == "Job"]


def test_a_large_image_that_is_being_pulled_is_good_enough(server, cluster, rendered):
    def pulling(cluster: MemoryCluster, job: dict) -> None:
        pod = cluster.pod(job, "Pending", waiting=("ContainerCreating", ""))
        about = {"involvedObject": {"name": pod}, "type": "Normal", "reason": "Pulling", "message": "Pulling image"}
        cluster.put("Event", {"metadata": {"name": "pulling"}} | about)

    cluster.scripts = Trials(ends(guarantees=GUARANTEES), pulling)
    found = findings(rendered)
    assert found["missing"] == []
    assert any("is being pulled, and the registry does not refuse it" in line for line in found["ok"])


def test_an_operator_that_is_not_installed(server, rendered):
    (missing,) = findings(rendered + EXTERNAL, timeout=None)["missing"]
    assert "the cluster does not know external-secrets.io → install External Secrets" in missing


ROLE = "eks.amazonaws.com/role-arn"
POD_IDENTITY = (
    "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
    "metadata: {name: eks-pod-identity, namespace: vcot}\nspec: {podSelector: {}}\n"
)


def test_with_pod_identity_no_secret_is_needed_and_its_rights_come_with_the_serviceaccount(server, cluster, rendered):
    cluster.delete("Secret", "s3-credentials")
    cluster.scripts = Trials(ends(78, message="no keys"), ends())
    found = findings(rendered + POD_IDENTITY)
    assert found["missing"] == []
    assert [line.split(":")[0] for line in found["note"]] == [
        "no Secret s3-credentials", "the storage could not be probed",
    ]  # fmt: skip
    assert len([line for line in found["ok"] if line.endswith("can be pulled")]) == 2
    cluster.put("ServiceAccount", {"metadata": {"name": "stage"}})
    assert findings(rendered + POD_IDENTITY)["missing"][0].startswith("storage, from inside the cluster: no keys")


def test_a_role_that_is_not_applied_yet_cannot_be_probed(server, cluster, rendered):
    cluster.delete("Secret", "s3-credentials")
    cluster.scripts = Trials(ends(78, message="no keys"), ends())
    account = "kind: ServiceAccount\nmetadata:\n"
    before = "automountServiceAccountToken: false\n"
    with_role = rendered
    for name in ("stage", "conductor"):
        with_role = with_role.replace(
            f"{before}{account}  name: {name}",
            f"{before}{account}  annotations: {{{ROLE}: 'arn:mine'}}\n  name: {name}",
        )
    assert with_role != rendered
    cluster.put("ServiceAccount", {"metadata": {"name": "stage"}})
    found = findings(with_role)
    assert found["missing"] == []
    assert any("has not the role that the overlay gives it" in line for line in found["note"])
    cluster.put("ServiceAccount", {"metadata": {"name": "stage", "annotations": {ROLE: "arn:mine"}}})
    assert findings(with_role)["missing"][0].startswith("storage, from inside the cluster: no keys")


def test_a_role_that_the_stages_alone_have_is_not_enough(server, rendered):
    """The conductor asks the storage, too, and writes how the run ended."""
    only_stages = rendered.replace(
        "metadata:\n  name: stage\n", f"metadata:\n  annotations: {{{ROLE}: 'arn:mine'}}\n  name: stage\n"
    )
    assert only_stages != rendered
    (line,) = [line for line in findings(only_stages, timeout=None)["missing"] if "conductor" in line]
    assert line.startswith(f"ServiceAccount conductor lacks {ROLE}=arn:mine, which stage has")


def test_the_role_of_component_irsa_is_a_placeholder(server, tmp_path):
    overlay = text(around(tmp_path / "irsa", OVERLAYS / "gpu", ["irsa"], namespace="vcot"))
    assert any(
        line.startswith(f"{ROLE}=arn:aws:iam::111122223333:role/vcot-stage is a placeholder")
        for line in findings(overlay, timeout=None)["missing"]
    )


def test_keys_that_an_operator_will_bring_cannot_be_probed_yet(server, cluster, rendered):
    cluster.delete("Secret", "s3-credentials")
    cluster.scripts = Trials(ends(78, message="no keys"), ends())
    (missing,) = findings(rendered + EXTERNAL)["missing"]
    assert "external-secrets.io" in missing  # which is not installed here


def test_what_one_may_not_look_at_is_a_note(server, rendered):
    server.faults.append(Fault("GET", "/nodes", status=403, reason="Forbidden"))
    server.faults.append(Fault("GET", "/secrets/s3-credentials", status=403, reason="Forbidden"))
    found = findings(rendered, timeout=None)
    assert found["missing"] == []
    assert [line.split(":")[0] for line in found["note"]] == [
        "nodes could not be looked at", "Secret s3-credentials could not be looked at",
    ]  # fmt: skip


def test_a_run_that_was_started_before(server, cluster, rendered):
    name = Wanted.of("gpu", rendered).pipeline["metadata"]["name"]
    cluster.put("Job", {"metadata": {"name": name}, "spec": {}})
    assert any(f"(Job {name})" in line for line in findings(rendered, timeout=None)["note"])


def test_no_cluster_is_told_with_exit_code_78(rendered, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    code = look(rendered, tmp_path)
    assert code == 78
    assert "the cluster does not answer" in capsys.readouterr().out


def test_ctrl_c_ends_it_at_once_and_leaves_no_job(server, cluster, rendered, tmp_path, monkeypatch):
    class Impatient(RealClock):
        def sleep(self, seconds: float) -> None:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cluster.scripts = Trials(held(waiting=("ContainerCreating", "")))
        monkeypatch.setattr(doctor, "Clock", Impatient)
        assert look(rendered, tmp_path) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(cluster.created) == 1
    assert not [name for kind, name in cluster.objects if kind == "Job"]


def test_a_cluster_that_says_no_in_between_is_a_line_and_no_traceback(server, rendered, tmp_path, capsys):
    server.faults.append(Fault("GET", "/apis/external-secrets.io", status=403, reason="Forbidden"))
    assert look(rendered + EXTERNAL, tmp_path) == 78
    assert "MISSING the look ended early: " in capsys.readouterr().out
