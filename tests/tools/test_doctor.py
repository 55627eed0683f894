"""The doctor and a cluster in memory: one in order has nothing missing, and each thing that lacks is named.

The overlay is the real one, rendered. That its Jobs run on a cluster is for the real node to show.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.cluster import FakeClock, MemoryCluster, Script
from tests.k8s.kustomize import OVERLAYS, around, text
from tools import doctor, trial
from tools.overlay import Overlay
from vcot.pipeline.client import Manifest, Refused
from vcot.pipeline.local import validate

KEYS = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"), "x")
ROLE = "eks.amazonaws.com/role-arn"
EXTERNAL = (
    "\n---\napiVersion: external-secrets.io/v1\nkind: ExternalSecret\n"
    "metadata: {name: s3-credentials, namespace: vcot}\nspec: {}\n"
)
POD_IDENTITY = (
    "\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
    "metadata: {name: eks-pod-identity, namespace: vcot}\nspec: {podSelector: {}}\n"
)


class Trials(dict[str, Script]):
    """What becomes of the doctor's Jobs, whose names nobody knows before: of the probe, of those with GPUs."""

    def __init__(self, probe: Script | None = None, gpu: Script | None = None) -> None:
        super().__init__()
        self.probe = probe or ends(guarantees=dict.fromkeys(("bytes", "write-once", "one-winner"), "ok"))
        self.gpu = gpu or ends()
        self.seen: list[Manifest] = []

    def get(self, name: str, default: Any = None) -> Any:
        def script(cluster: MemoryCluster, job: Manifest) -> None:
            self.seen.append(job["spec"]["template"]["spec"])
            (container,) = self.seen[-1]["containers"]
            becomes = self.probe if container.get("args") == ["jobs.probe"] else ends()
            (self.gpu if "nvidia.com/gpu" in container["resources"]["limits"] else becomes)(cluster, job)

        return script


def ends(code: int = 0, **said: Any) -> Script:
    def script(cluster: MemoryCluster, job: Manifest) -> None:
        cluster.pod(job, "Failed" if code else "Succeeded", exit_code=code, message=json.dumps({"exit": code} | said))

    return script


def trials(probe: Script | None = None, gpu: Script | None = None) -> Callable[[MemoryCluster], object]:
    return lambda cluster: setattr(cluster, "scripts", Trials(probe, gpu))


def held(**why: Any) -> Script:
    return lambda cluster, job: cluster.pod(job, "Pending", **why) and None


def pulling(cluster: MemoryCluster, job: Manifest) -> None:
    pod = cluster.pod(job, "Pending", waiting=("ContainerCreating", ""))
    about = {"involvedObject": {"name": pod}, "type": "Normal", "reason": "Pulling", "message": "Pulling image"}
    cluster.put("Event", {"metadata": {"name": f"pulling-{pod}"}} | about)


def no_room(cluster: MemoryCluster, job: Manifest) -> None:
    cluster.event(job["metadata"]["name"], "FailedCreate", "pods is forbidden: exceeded quota: team")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> MemoryCluster:
    """In order for overlay gpu, and what the doctor is connected to; nobody waits for its clock or its settings."""
    made = MemoryCluster(FakeClock(), Trials())
    monkeypatch.setattr(doctor, "cluster_of", lambda *_, **__: made)
    monkeypatch.setattr(doctor, "validate", lambda stage, variables: [])
    monkeypatch.setattr(trial, "Clock", lambda: made.clock)
    made.put("Namespace", {"metadata": {"name": "vcot"}})
    secret(made, **KEYS)
    return made


def secret(cluster: MemoryCluster, **values: str) -> None:
    data = {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}
    cluster.put("Secret", {"metadata": {"name": "s3-credentials"}, "data": data})


@pytest.fixture(scope="module")
def rendered() -> str:
    """Overlay gpu as somebody has filled it in."""
    return text(OVERLAYS / "gpu").replace("registry.example.com", "registry.local").replace("0" * 64, "1" * 64)


def look(rendered: str, tmp_path: Path) -> int:
    """The whole command; returns its exit code."""
    path = tmp_path / "rendered.yaml"
    path.write_text(rendered)
    return doctor.main(["--rendered", str(path), "--timeout", "60"])


def findings(rendered: str, *, empty_pools: bool = False) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"ok": [], "missing": [], "note": []}
    for finding in doctor.examine(Overlay.of("gpu", rendered), empty_pools, timeout=60):
        found[finding.kind].append(finding.words + (f" → {finding.fix}" if finding.fix else ""))
    return found


def test_a_cluster_in_order_lacks_nothing_and_is_left_as_it_was(cluster, rendered, tmp_path, capsys) -> None:
    code = look(rendered, tmp_path)
    said = capsys.readouterr().out
    assert code == 0, said
    assert "nothing is missing: make k8s-run OVERLAY=gpu" in said
    for words in ("Kubernetes 1.36", "settings of convert, distill", "node node-0 takes a pod of train",
                  "Secret s3-credentials", "storage at s3://"):  # fmt: skip
        assert words in said
    assert not [name for kind, name in cluster.objects if kind == "Job"]
    assert all(name.startswith("doctor-") for name in cluster.created)


def test_trials_ask_for_what_the_stages_ask_for_and_see_the_keys_alone(cluster: MemoryCluster, rendered: str) -> None:
    findings(rendered)
    assert isinstance(cluster.scripts, Trials)
    pods = cluster.scripts.seen
    (probe,) = [pod for pod in pods if pod["containers"][0].get("args") == ["jobs.probe"]]
    (main,) = probe["containers"]
    assert main["securityContext"]["readOnlyRootFilesystem"] is True
    assert probe["securityContext"]["runAsUser"] == 10001
    assert [source["secretRef"]["name"] for source in main["envFrom"]] == ["s3-credentials"]
    ours = {variable["name"]: variable["value"] for variable in main["env"] if variable["name"].startswith("VCOT_")}
    assert list(ours) == ["VCOT_PROBE_URI"]
    assert ours["VCOT_PROBE_URI"].endswith("/_probe")
    assert "serviceAccountName" not in probe  # it comes with the overlay
    wanted = Overlay.of("gpu", rendered).pods
    train = wanted["train"]["spec"]
    (tried,) = [pod for pod in pods if pod["containers"][0]["resources"] == train["containers"][0]["resources"]]
    assert (tried["nodeSelector"], tried["tolerations"]) == (train["nodeSelector"], train["tolerations"])
    assert len(pods) < len(wanted)  # one of each kind


NO_NODE = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."
BROKEN = {"bytes": "ok", "write-once": "a second writer replaced the first"}
OLD_DRIVER = {"metadata": {"name": "node-0", "labels": {"nvidia.com/cuda.driver-version.major": "550"}}}

#: What is done to a cluster in order, and to the overlay → of which kind every finding is, and what each says.
FINDS: dict[str, tuple[Callable[[MemoryCluster], object], str, str, list[str]]] = {
    "no node in the pool": (
        trials(gpu=held(unschedulable=NO_NODE)), "", "missing",
        [NO_NODE, "1 of nvidia.com/gpu", "kubectl label node <name> node-pool=gpu", "make k8s-doctor EMPTY_POOLS=1"],
    ),
    "a small quota": (trials(gpu=no_room), "", "missing", ["exceeded quota: team → raise the quota"]),
    "a lossy storage": (
        trials(ends(78, message="1 of 2", guarantees=BROKEN)), "", "missing",
        ["storage, from inside the cluster: write-once: a second writer replaced the first"],
    ),
    "no bucket": (
        trials(ends(78, message="s3://vcot/x: there is no bucket 'vcot'")), "", "missing",
        ["storage, from inside the cluster: s3://vcot/x: there is no bucket 'vcot'"],
    ),
    "no image": (
        trials(gpu=held(waiting=("ImagePullBackOff", "not found"))), "", "missing",
        ["ImagePullBackOff", "write its name and digest under images:"],
    ),
    "an old driver": (
        lambda c: c.put("Node", OLD_DRIVER), "", "missing", ["node node-0 has NVIDIA driver 550 → CUDA 13 needs 580"],
    ),
    "an old version": (
        lambda c: setattr(c, "kubernetes", (1, 32)), "", "missing",
        ["Kubernetes 1.32: too old, vcot needs 1.33 or later → upgrade the cluster"],
    ),
    "keys in the Secret": (
        lambda c: secret(c, ACCESS_KEY="x"), "", "missing",
        ["lacks AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; it has ACCESS_KEY"],
    ),
    "the Secret": (
        lambda c: c.delete("Secret", "s3-credentials"), "", "missing",
        ["kubectl -n vcot create secret generic s3-credentials --from-literal=AWS_ENDPOINT_URL_S3=…"],
    ),
    "an operator": (
        lambda c: None, EXTERNAL, "missing",
        ["the cluster does not know external-secrets.io → install External Secrets"],
    ),
    "a Secret that one may not look at": (
        lambda c: c.refused.add(("get", "Secret")), "", "note", ["Secret s3-credentials could not be looked at"],
    ),
    "a run that was started before": (
        lambda c: c.put("Job", {"metadata": {"name": "pipeline-first"}, "spec": {}}), "", "note",
        ["(Job pipeline-first)"],
    ),
    "a port that the network policy closes": (
        lambda c: secret(c, **KEYS | {"AWS_ENDPOINT_URL_S3": "http://10.0.0.7:7480"}), "", "note",
        ["is on port 7480; NetworkPolicy storage lets out 443, 9000"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FINDS)
def test_what_a_cluster_lacks_is_named_with_the_fix(case, cluster: MemoryCluster, rendered: str) -> None:
    change, more, kind, words = FINDS[case]
    change(cluster)
    found = findings(rendered + more)
    assert found[kind]
    for line in found["missing"] + found["note"]:
        assert [word for word in words if word not in line] == [], line
    assert not [name for kind, name in cluster.objects if kind == "Job" and name.startswith("doctor-")]
    if case == "no node in the pool":
        found = findings(rendered, empty_pools=True)
        assert found["missing"] == []
        assert any("the pool has to scale from zero" in line for line in found["note"])


def test_without_a_namespace_nothing_more_is_looked_at(cluster: MemoryCluster, rendered: str) -> None:
    cluster.delete("Namespace", "vcot")
    (missing,) = findings(rendered)["missing"]
    assert "kubectl apply -f k8s/overlays/gpu/namespace.yaml" in missing
    assert cluster.created == []


def test_a_large_image_that_is_being_pulled_is_good_enough(cluster: MemoryCluster, rendered: str) -> None:
    cluster.scripts = Trials(gpu=pulling)
    found = findings(rendered)
    assert found["missing"] == []
    assert any("is being pulled, and no registry refuses it" in line for line in found["ok"])


def test_wrong_settings_are_told_as_the_stage_tells_them(cluster: MemoryCluster, rendered: str, monkeypatch) -> None:
    real: dict[str, Callable[..., list[str]]] = {"evaluate": validate}
    monkeypatch.setattr(doctor, "validate", lambda stage, given: real.get(stage, lambda *_: [])(stage, given))
    wrong = rendered.replace("VCOT_EVALUATE_CONDITIONS: real,blank,shuffled", "VCOT_EVALUATE_CONDITIONS: real,blanc")
    (missing,) = findings(wrong)["missing"]
    assert "VCOT_EVALUATE_CONDITIONS=real,blanc: no such condition: blanc" in missing


def test_placeholders_are_told_and_not_tried(cluster: MemoryCluster, tmp_path: Path) -> None:
    overlay = text(around(tmp_path / "irsa", OVERLAYS / "gpu", ["irsa"], namespace="vcot"))
    missing = [line for line in findings(overlay)["missing"] if "is a placeholder" in line]
    assert len(missing) == 3
    assert any(line.startswith(f"{ROLE}=arn:aws:iam::111122223333:role/vcot-stage") for line in missing)
    assert cluster.created == []


# --- rights without keys ------------------------------------------------------------------------------------------


def test_with_pod_identity_no_secret_is_needed_and_it_is_tried_when_the_account_is_there(cluster, rendered) -> None:
    cluster.delete("Secret", "s3-credentials")
    cluster.scripts = Trials(ends(78, message="no keys"))
    found = findings(rendered + POD_IDENTITY)
    assert found["missing"] == []
    assert [n.split(":")[0] for n in found["note"]] == ["no Secret s3-credentials", "the storage could not be probed"]
    cluster.put("ServiceAccount", {"metadata": {"name": "stage"}})
    missing = findings(rendered + POD_IDENTITY)["missing"]
    assert missing[0].startswith("storage, from inside the cluster: no keys")


@pytest.mark.parametrize("accounts", [("stage",), ("stage", "orchestrator")])
def test_a_role_has_to_be_the_orchestrators_too_and_is_tried_when_it_is_applied(cluster, rendered, accounts) -> None:
    cluster.delete("Secret", "s3-credentials")
    cluster.put("ServiceAccount", {"metadata": {"name": "stage"}})
    for name in accounts:
        account = f"kind: ServiceAccount\nmetadata:\n  name: {name}\n"
        assert account in rendered
        annotated = account.replace("  name", f"  annotations: {{{ROLE}: 'arn:mine'}}\n  name")
        rendered = rendered.replace(account, annotated)
    found = findings(rendered)
    lacks = f"ServiceAccount orchestrator lacks {ROLE}=arn:mine, which stage has"
    assert [line.startswith(lacks) for line in found["missing"]] == [True] * (2 - len(accounts))
    assert any("has not the role that the overlay gives it" in line for line in found["note"])


# --- how it ends --------------------------------------------------------------------------------------------------


def test_no_cluster_or_one_that_refuses_is_told_with_exit_code_78(cluster, rendered, tmp_path, monkeypatch, capsys):
    def refuse(group: str) -> bool:
        raise Refused(403, "not allowed")

    monkeypatch.setattr(cluster, "knows", refuse)
    assert look(rendered + EXTERNAL, tmp_path) == 78
    assert "MISSING the look ended early: " in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr(doctor, "validate", lambda stage, variables: [])
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert look(rendered, tmp_path) == 78
    assert "the cluster does not answer" in capsys.readouterr().out


def test_ctrl_c_ends_it_at_once_and_leaves_no_job(cluster: MemoryCluster, rendered: str, tmp_path, monkeypatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    cluster.scripts = Trials(held(waiting=("ContainerCreating", "")))
    monkeypatch.setattr(cluster.clock, "sleep", interrupted)
    assert look(rendered, tmp_path) == 130
    assert len(cluster.created) == 1
    assert not [name for kind, name in cluster.objects if kind == "Job"]
