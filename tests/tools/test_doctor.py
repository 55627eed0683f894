"""The doctor and a cluster in memory: one in order has nothing missing, and each thing that lacks is named.

The overlay is the real one, rendered. That its Jobs run on a cluster is for the real node to show.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cluster import FakeClock, MemoryCluster
from tests.k8s.kustomize import OVERLAYS, around, text
from tools import doctor, trial
from tools.overlay import Overlay
from vcot.pipeline.client import Refused
from vcot.pipeline.local import validate

GUARANTEES = {"bytes": "ok", "write-once": "ok", "one-winner": "ok"}
ROLE = "eks.amazonaws.com/role-arn"
EXTERNAL = (
    "\n---\napiVersion: external-secrets.io/v1\nkind: ExternalSecret\n"
    "metadata: {name: s3-credentials, namespace: vcot}\nspec: {}\n"
)
POD_IDENTITY = (
    "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
    "metadata: {name: eks-pod-identity, namespace: vcot}\nspec: {podSelector: {}}\n"
)


class Trials(dict):
    """What becomes of the doctor's Jobs, whose names nobody knows before: of the probe, of those with GPUs."""

    def __init__(self, probe: Any, gpu: Any = None, seen: list | None = None) -> None:
        super().__init__()
        self.probe, self.gpu, self.seen = probe, gpu or ends(), seen

    def get(self, name: str, default: Any = None) -> Any:
        def script(cluster: MemoryCluster, job: dict) -> None:
            if self.seen is not None:
                self.seen.append(job)
            container = job["spec"]["template"]["spec"]["containers"][0]
            becomes = self.probe if container.get("args") == ["jobs.probe"] else ends()
            (self.gpu if "nvidia.com/gpu" in container["resources"]["limits"] else becomes)(cluster, job)

        return script


def ends(code: int = 0, **said: Any) -> Callable:
    def script(cluster: MemoryCluster, job: dict) -> None:
        cluster.pod(job, "Failed" if code else "Succeeded", exit_code=code, message=json.dumps({"exit": code} | said))

    return script


def held(**why: Any) -> Callable:
    return lambda cluster, job: cluster.pod(job, "Pending", **why)


@functools.cache
def validated(stage: str, variables: frozenset[tuple[str, str]]) -> list[str]:
    return validate(stage, dict(variables))


@pytest.fixture(autouse=True)
def settings_are_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the stages themselves; the same settings need no second process."""
    monkeypatch.setattr(doctor, "validate", lambda stage, variables: validated(stage, frozenset(variables.items())))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> MemoryCluster:
    """In order for overlay gpu, and what the doctor is connected to; nobody waits for its clock."""
    made = MemoryCluster(FakeClock())
    monkeypatch.setattr(doctor, "connect", lambda *_, **__: made)
    monkeypatch.setattr(trial, "Clock", lambda: made.clock)
    made.scripts = Trials(ends(guarantees=GUARANTEES))
    made.put("Namespace", {"metadata": {"name": "vcot"}})
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"), "eA==")
    made.put("Secret", {"metadata": {"name": "s3-credentials"}, "data": keys})
    return made


@pytest.fixture(scope="module")
def rendered() -> str:
    """Overlay gpu as somebody has filled it in."""
    return text(OVERLAYS / "gpu").replace("registry.example.com", "registry.local").replace("0" * 64, "1" * 64)


def look(rendered: str, tmp_path: Path) -> int:
    """The whole command; returns its exit code."""
    path = tmp_path / "rendered.yaml"
    path.write_text(rendered)
    return doctor.main(["--rendered", str(path), "--timeout", "60"])


def findings(rendered: str, *, empty_pools: bool = False, timeout: float | None = None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"ok": [], "missing": [], "note": []}
    for finding in doctor.examine(Overlay.of("gpu", rendered), empty_pools, timeout):
        found[finding.kind].append(finding.words + (f" → {finding.fix}" if finding.fix else ""))
    return found


def test_a_cluster_in_order_lacks_nothing_and_is_left_as_it_was(cluster, rendered, tmp_path, capsys):
    code = look(rendered, tmp_path)
    said = capsys.readouterr().out
    assert code == 0, said
    assert "nothing is missing: make k8s-run OVERLAY=gpu" in said
    for words in ("Kubernetes 1.36", "settings of convert, distill", "node node-0 takes a pod of train",
                  "Secret s3-credentials", "storage at s3://"):  # fmt: skip
        assert words in said
    assert not [name for kind, name in cluster.objects if kind == "Job"]
    assert all(name.startswith("doctor-") for name in cluster.created)


def test_trials_ask_for_what_the_stages_ask_for_and_see_the_keys_alone(cluster, rendered):
    seen: list[dict] = []
    cluster.scripts = Trials(ends(guarantees=GUARANTEES), seen=seen)
    findings(rendered, timeout=60)
    pods = [job["spec"]["template"]["spec"] for job in seen]
    (probe,) = [pod for pod in pods if pod["containers"][0].get("args") == ["jobs.probe"]]
    (main,) = probe["containers"]
    assert main["securityContext"]["readOnlyRootFilesystem"] is True
    assert probe["securityContext"]["runAsUser"] == 10001
    assert [source["secretRef"]["name"] for source in main["envFrom"]] == ["s3-credentials"]
    ours = {variable["name"]: variable["value"] for variable in main["env"] if variable["name"].startswith("VCOT_")}
    assert list(ours) == ["VCOT_PROBE_URI"]
    assert ours["VCOT_PROBE_URI"].endswith("/_probe")
    assert "serviceAccountName" not in probe  # it comes with the overlay
    wanted = Overlay.of("gpu", rendered).pods["train"]["spec"]
    assert any(
        (pod["nodeSelector"], pod["tolerations"], pod["containers"][0]["resources"])
        == (wanted["nodeSelector"], wanted["tolerations"], wanted["containers"][0]["resources"])
        for pod in pods
        if "nodeSelector" in pod
    )
    assert len(pods) < len(Overlay.of("gpu", rendered).pods)  # one of each kind


def test_too_old_a_cluster(cluster, rendered):
    cluster.kubernetes = (1, 32)
    assert findings(rendered)["missing"] == ["Kubernetes 1.32: too old, vcot needs 1.33 or later → upgrade the cluster"]


def test_no_namespace_ends_the_look_there(cluster, rendered):
    cluster.delete("Namespace", "vcot")
    (missing,) = findings(rendered, timeout=60)["missing"]
    assert "kubectl apply -f k8s/overlays/gpu/namespace.yaml" in missing
    assert cluster.created == []


NO_NODE = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."


def test_a_pool_that_no_node_is_in_is_missing_with_its_label_and_its_room(cluster, rendered):
    cluster.scripts = Trials(ends(guarantees=GUARANTEES), held(unschedulable=NO_NODE))
    missing = findings(rendered, timeout=60)["missing"]
    assert any(line.startswith(f"no node takes a pod of train: {NO_NODE}") for line in missing)
    for line in missing:
        assert NO_NODE in line
        assert "1 of nvidia.com/gpu" in line
        assert "kubectl label node <name> node-pool=gpu" in line
        assert "make k8s-doctor EMPTY_POOLS=1" in line


def test_a_pool_that_may_be_empty_is_a_note(cluster, rendered):
    cluster.scripts = Trials(ends(guarantees=GUARANTEES), held(unschedulable=NO_NODE))
    found = findings(rendered, timeout=60, empty_pools=True)
    assert found["missing"] == []
    assert any("the pool has to scale from zero" in line for line in found["note"])


def test_a_driver_that_is_too_old_is_named(cluster, rendered):
    labels = {"nvidia.com/cuda.driver-version.major": "550"}
    cluster.put("Node", {"metadata": {"name": "node-0", "labels": labels}})
    missing = findings(rendered, timeout=60)["missing"]
    assert missing
    assert all(line.startswith("node node-0 has NVIDIA driver 550 → CUDA 13 needs 580") for line in missing)


def test_a_quota_that_is_too_small(cluster, rendered):
    def refused(cluster: MemoryCluster, job: dict) -> None:
        cluster.event(job["metadata"]["name"], "FailedCreate", "pods is forbidden: exceeded quota: team")

    cluster.scripts = Trials(ends(guarantees=GUARANTEES), refused)
    missing = findings(rendered, timeout=60)["missing"]
    assert missing
    assert all("exceeded quota: team → raise the quota" in line for line in missing)


def test_no_secret_or_one_without_its_keys(cluster, rendered):
    cluster.put("Secret", {"metadata": {"name": "s3-credentials"}, "data": {"ACCESS_KEY": "eA=="}})
    (missing,) = findings(rendered)["missing"]
    assert "lacks AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; it has ACCESS_KEY" in missing
    cluster.delete("Secret", "s3-credentials")
    (missing,) = findings(rendered)["missing"]
    assert "kubectl -n vcot create secret generic s3-credentials --from-literal=AWS_ENDPOINT_URL_S3=…" in missing


@pytest.mark.parametrize(
    ("endpoint", "closed"),
    [("https://s3.example.com", False), ("http://10.0.0.7:9000", False), ("http://10.0.0.7:7480", True), ("x", False)],
)
def test_a_port_of_the_storage_that_the_network_policy_closes(cluster, rendered, endpoint, closed):
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "eA==")
    keys["AWS_ENDPOINT_URL_S3"] = base64.b64encode(endpoint.encode()).decode()
    cluster.put("Secret", {"metadata": {"name": "s3-credentials"}, "data": keys})
    found = findings(rendered)["note"]
    assert any("NetworkPolicy storage lets out 443, 9000" in line for line in found) is closed


def test_wrong_settings_are_told_as_the_stage_tells_them(cluster, rendered):
    wrong = rendered.replace("VCOT_EVALUATE_CONDITIONS: real,blank,shuffled", "VCOT_EVALUATE_CONDITIONS: real,blanc")
    assert wrong != rendered
    missing = findings(wrong)["missing"]
    assert any("VCOT_EVALUATE_CONDITIONS=real,blanc: no such condition: blanc" in line for line in missing), missing


def test_placeholders_are_told_and_not_tried(cluster):
    found = findings(text(OVERLAYS / "gpu"), timeout=60)
    assert len([line for line in found["missing"] if "is a placeholder" in line]) == 2
    assert cluster.created == []


@pytest.mark.parametrize(
    ("probe", "says"),
    [
        (
            ends(78, message="1 of 3", guarantees=GUARANTEES | {"write-once": "a second writer replaced the first"}),
            "write-once: a second writer replaced the first",
        ),
        (ends(78, message="s3://vcot/x: there is no bucket 'vcot'"), "s3://vcot/x: there is no bucket 'vcot'"),
    ],
)
def test_a_storage_that_will_not_do_from_inside(cluster, rendered, probe, says):
    cluster.scripts = Trials(probe)
    (missing,) = findings(rendered, timeout=60)["missing"]
    assert missing.startswith(f"storage, from inside the cluster: {says}")


def test_an_image_that_cannot_be_pulled(cluster, rendered):
    cluster.scripts = Trials(ends(guarantees=GUARANTEES), held(waiting=("ImagePullBackOff", "not found")))
    missing = findings(rendered, timeout=60)["missing"]
    assert missing
    for line in missing:
        assert "ImagePullBackOff" in line
        assert "write its name and digest under images:" in line
    assert not [name for kind, name in cluster.objects if kind == "Job"]


def test_a_large_image_that_is_being_pulled_is_good_enough(cluster, rendered):
    def pulling(cluster: MemoryCluster, job: dict) -> None:
        pod = cluster.pod(job, "Pending", waiting=("ContainerCreating", ""))
        about = {"involvedObject": {"name": pod}, "type": "Normal", "reason": "Pulling", "message": "Pulling image"}
        cluster.put("Event", {"metadata": {"name": f"pulling-{pod}"}} | about)

    cluster.scripts = Trials(ends(guarantees=GUARANTEES), pulling)
    found = findings(rendered, timeout=60)
    assert found["missing"] == []
    assert any("is being pulled, and no registry refuses it" in line for line in found["ok"])


def test_an_operator_that_is_not_installed(cluster, rendered):
    (missing,) = findings(rendered + EXTERNAL)["missing"]
    assert "the cluster does not know external-secrets.io → install External Secrets" in missing


def test_with_pod_identity_no_secret_is_needed_and_its_rights_come_with_the_serviceaccount(cluster, rendered):
    cluster.delete("Secret", "s3-credentials")
    cluster.scripts = Trials(ends(78, message="no keys"))
    found = findings(rendered + POD_IDENTITY, timeout=60)
    assert found["missing"] == []
    assert [line.split(":")[0] for line in found["note"]] == [
        "no Secret s3-credentials", "the storage could not be probed",
    ]  # fmt: skip
    cluster.put("ServiceAccount", {"metadata": {"name": "stage"}})
    missing = findings(rendered + POD_IDENTITY, timeout=60)["missing"]
    assert missing[0].startswith("storage, from inside the cluster: no keys")


def test_a_role_that_is_not_applied_yet_cannot_be_probed(cluster, rendered):
    cluster.delete("Secret", "s3-credentials")
    before, account = "automountServiceAccountToken: false\n", "kind: ServiceAccount\nmetadata:\n"
    with_role = rendered
    for name in ("stage", "orchestrator"):
        with_role = with_role.replace(
            f"{before}{account}  name: {name}",
            f"{before}{account}  annotations: {{{ROLE}: 'arn:mine'}}\n  name: {name}",
        )
    assert with_role != rendered
    cluster.put("ServiceAccount", {"metadata": {"name": "stage"}})
    found = findings(with_role, timeout=60)
    assert found["missing"] == []
    assert any("has not the role that the overlay gives it" in line for line in found["note"])


def test_a_role_that_the_stages_alone_have_is_not_enough(cluster, rendered):
    """The orchestrator asks the storage, too, and writes how the run ended."""
    only_stages = rendered.replace(
        "metadata:\n  name: stage\n", f"metadata:\n  annotations: {{{ROLE}: 'arn:mine'}}\n  name: stage\n"
    )
    (line,) = [line for line in findings(only_stages)["missing"] if "orchestrator" in line]
    assert line.startswith(f"ServiceAccount orchestrator lacks {ROLE}=arn:mine, which stage has")


def test_the_role_of_component_irsa_is_a_placeholder(cluster, tmp_path):
    overlay = text(around(tmp_path / "irsa", OVERLAYS / "gpu", ["irsa"], namespace="vcot"))
    placeholder = f"{ROLE}=arn:aws:iam::111122223333:role/vcot-stage is a placeholder"
    assert any(line.startswith(placeholder) for line in findings(overlay)["missing"])


def test_what_one_may_not_look_at_is_a_note(cluster, rendered):
    cluster.unreadable = {"Secret"}
    found = findings(rendered)
    assert found["missing"] == []
    assert [line.split(":")[0] for line in found["note"]] == ["Secret s3-credentials could not be looked at"]


def test_a_run_that_was_started_before(cluster, rendered):
    name = Overlay.of("gpu", rendered).pipeline["metadata"]["name"]
    cluster.put("Job", {"metadata": {"name": name}, "spec": {}})
    assert any(f"(Job {name})" in line for line in findings(rendered)["note"])


def test_no_cluster_is_told_with_exit_code_78(rendered, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert look(rendered, tmp_path) == 78
    assert "the cluster does not answer" in capsys.readouterr().out


def test_ctrl_c_ends_it_at_once_and_leaves_no_job(cluster, rendered, tmp_path, monkeypatch):
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    cluster.scripts = Trials(held(waiting=("ContainerCreating", "")))
    monkeypatch.setattr(cluster.clock, "sleep", interrupted)
    assert look(rendered, tmp_path) == 130
    assert len(cluster.created) == 1
    assert not [name for kind, name in cluster.objects if kind == "Job"]


def test_a_cluster_that_says_no_in_between_is_a_line_and_no_traceback(cluster, rendered, tmp_path, capsys):
    cluster.knows = lambda group: (_ for _ in ()).throw(Refused(403, "not allowed"))  # type: ignore[method-assign]
    assert look(rendered + EXTERNAL, tmp_path) == 78
    assert "MISSING the look ended early: " in capsys.readouterr().out
