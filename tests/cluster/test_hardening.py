"""Component hardening: what the orchestrator's token is good for ends at the Jobs of stages.

The orchestrator has every right in the namespace here, so that the policy is tried and not its Role.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.cluster import Cluster, CommandFailed, Manifest, Overlay
from tests.cluster.configuration import ROOT
from tests.cluster.node import Node
from vcot.pipeline.orchestrator import make_plan
from vcot.pipeline.templates import Owner, complete, freeze
from vcot.settings import STAGES

OUTSIDE = ("Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
DIGEST = "sha256:" + "1" * 64


def hardened_overlay(place: Path, run_id: str, cluster: Cluster, name: str = "cpu-smoke") -> tuple[Overlay, Overlay]:
    """An overlay for this namespace, and the one around it that has the component."""
    inner = Overlay.of(place, run_id, cluster.namespace, name)
    outer = inner.folder.parent / "hardened"
    outer.mkdir()
    kustomization = {"resources": [f"../{inner.folder.name}"], "components": ["../../components/hardening"]}
    (outer / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return inner, Overlay(outer, run_id)


@contextmanager
def applied(overlay: Overlay, cluster: Cluster, *, run: bool) -> Iterator[None]:
    """The overlay, and its policy in force. That one is the whole cluster's and names the namespace vcot; here it gets
    a name of its own and names this namespace.

    Args:
        run: whether the pipeline's Job is applied too.
    """
    rendered = list(yaml.safe_load_all(cluster.run("kustomize", str(overlay.folder))))
    whole = json.dumps([one for one in rendered if one["kind"] in OUTSIDE[1:]])
    whole = whole.replace('metadata.name": "vcot"', f'metadata.name": "{cluster.namespace}"')
    policy = json.loads(whole.replace("vcot-orchestrator", f"{cluster.namespace}-orchestrator"))
    assert len(policy) == 2
    try:
        cluster.apply(*policy)
        cluster.apply(*[one for one in rendered if one["kind"] not in (*OUTSIDE, "Job")], EVERY_RIGHT)
        # A new policy counts after some seconds.
        cluster.until("the policy denies", lambda: refusal(cluster, config_map("other")), 60)
        if run:
            cluster.apply(*[one for one in rendered if one["kind"] == "Job"])
        yield
    finally:
        names = [f"{one['kind']}/{one['metadata']['name']}" for one in policy]
        cluster.run("delete", "--ignore-not-found", *names)


EVERY_RIGHT = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "RoleBinding",
    "metadata": {"name": "every-right"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    "subjects": [{"kind": "ServiceAccount", "name": "orchestrator"}],
}


@pytest.fixture(scope="module")
def hardened(cluster: Cluster, node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A namespace behind the policy, with the templates of cpu-smoke, in which nothing runs."""
    with cluster.own_namespace(f"vcot-test-{uuid.uuid4().hex[:8]}") as there:
        _, overlay = hardened_overlay(tmp_path_factory.mktemp("hardened"), "r1", there)
        with applied(overlay, there, run=False):
            pipeline = job(there, "convert-prepare")
            pipeline["metadata"] = {"name": "pipeline-r1", "labels": {"vcot/role": "orchestrator"}}
            pipeline["spec"]["suspend"] = True
            there.create(pipeline)
            yield there


def as_orchestrator(cluster: Cluster, *words: str, stdin: str | None = None) -> str:
    return cluster.run("--as", f"system:serviceaccount:{cluster.namespace}:orchestrator", *words, stdin=stdin)


def refusal(cluster: Cluster, manifest: Manifest) -> str:
    """What the API server says when the orchestrator makes this; empty where it is let in. Nothing is kept."""
    try:
        as_orchestrator(cluster, "create", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
    except CommandFailed as error:
        said = str(error)
        assert "ValidatingAdmissionPolicy" in said, "denied, but not by the policy"
        assert "resulted in error" not in said, "an expression that fails denies legitimate Jobs, too"
        return said
    return ""


def jobs(cluster: Cluster, **more: Any) -> dict[str, Manifest]:
    """Step → its Job, as the orchestrator makes it of the templates that are there."""
    plan = make_plan("r1", "s3://vcot/runs", {}, in_parts=True, **more)
    templates = {stage: cluster.get("CronJob", f"stage-{stage}") or {} for stage in STAGES}
    frozen, owner = freeze(plan, templates), owner_of(cluster)
    return {
        step.name: complete(frozen.jobs[step.name], owner, frozen.digest, 2 if step.part == "shards" else None)
        for step in plan.steps
    }


def job(cluster: Cluster, step: str) -> Manifest:
    return jobs(cluster)[step]


def owner_of(cluster: Cluster) -> Owner:
    """The pipeline's Job, once it is there."""
    return Owner("pipeline-r1", (cluster.get("Job", "pipeline-r1") or {"metadata": {}})["metadata"].get("uid", "none"))


def config_map(name: str, **data: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def pod_of(job: Manifest) -> Any:
    return job["spec"]["template"]["spec"]


def main_of(job: Manifest) -> Any:
    return pod_of(job)["containers"][0]


# --- what a run needs -------------------------------------------------------------------------------------------


def test_every_job_of_a_run_is_let_in(hardened: Cluster) -> None:
    of_its_own, of_another = jobs(hardened), jobs(hardened, from_run=["other:tokenize"])
    assert len(of_its_own) == 11
    for step, one in [*of_its_own.items(), *of_another.items()]:
        assert refusal(hardened, one) == "", step


def test_every_job_of_overlay_gpu_with_every_component_of_pods_is_let_in(
    namespace: Cluster, node: Node, operators: None, tmp_path: Path
) -> None:
    inner, overlay = hardened_overlay(tmp_path, "r1", namespace, "gpu")
    components = ["pool-aks", "spot", "kueue", "multinode-jobset", "irsa"]
    inner.edit(lambda k: k.update(components=[f"../../components/{name}" for name in ["reevaluate", *components]]))
    with applied(overlay, namespace, run=False):
        made = jobs(namespace)
        assert made["train"]["kind"] == "JobSet"
        assert "@sha256:" in main_of(made["evaluate"])["image"]
        for step, one in made.items():
            assert refusal(namespace, one) == "", step


def test_a_run_frozen_before_the_last_apply_is_let_in(hardened: Cluster) -> None:
    """With other settings, sizes and places."""
    frozen = job(hardened, "train")
    main_of(frozen)["envFrom"][0]["configMapRef"]["name"] = "settings-train-0123456789"
    main_of(frozen)["resources"]["limits"]["memory"] = "7Gi"
    pod_of(frozen)["nodeSelector"] = {"node-pool": "earlier"}
    pod_of(frozen)["volumes"][0]["emptyDir"] = {"sizeLimit": "3Gi"}
    assert refusal(hardened, frozen) == ""


def test_any_digest_of_the_overlays_repository_is_let_in_and_no_other_image(
    namespace: Cluster, node: Node, tmp_path: Path
) -> None:
    """A run that was frozen with the images of an earlier apply goes on with them."""
    repository = "registry.example.com:5000/team/vcot-gpu"
    inner, overlay = hardened_overlay(tmp_path, "r1", namespace)
    by_digest = {"name": "vcot-gpu", "newName": repository, "digest": "sha256:" + "0" * 64}
    inner.edit(lambda k: k["images"].append(by_digest) or k["images"].pop(1))
    with applied(overlay, namespace, run=False):

        def said(image: str) -> str:
            one = job(namespace, "evaluate")
            main_of(one)["image"] = image
            return refusal(namespace, one)

        assert main_of(job(namespace, "evaluate"))["image"] == f"{repository}@sha256:{'0' * 64}"
        for digest in ("0" * 64, "1" * 64):
            assert said(f"{repository}@sha256:{digest}") == ""
        for image in (
            f"{repository}:dev", repository, f"{repository}-2@{DIGEST}", f"{repository}/x@{DIGEST}",
            f"{repository}:dev@{DIGEST}", f"{repository}@sha256:1", f"evil.example.com/team/vcot-gpu@{DIGEST}",
            f"vcot-gpu@{DIGEST}", "localhost/vcot-gpu:dev",
        ):  # fmt: skip
            assert "or another digest of that repository" in said(image), image


def test_a_run_reaches_its_end_behind_the_policy(namespace: Cluster, node: Node, tmp_path: Path) -> None:
    inner, overlay = hardened_overlay(tmp_path, "behind", namespace)
    inner.orchestrator("--until", "distill")
    with applied(overlay, namespace, run=True):
        namespace.completes(overlay.pipeline, 300)
        assert len(namespace.list("Job", run="behind")) == 6


def test_training_on_several_nodes_is_let_in_and_all_its_pods_are_judged(hardened: Cluster, operators: None) -> None:
    patch = yaml.safe_load((ROOT / "k8s/components/multinode-jobset/train.yaml").read_text())
    template = json.loads(
        hardened.run("patch", "--dry-run=server", "-o", "json", "cronjob", "stage-train", "-p", json.dumps(patch))
    )
    plan = make_plan("r1", "s3://vcot/runs", {}, only=["train"])
    frozen = freeze(plan, {"train": template})
    legitimate = complete(frozen.jobs["train"], owner_of(hardened), frozen.digest)
    assert legitimate["kind"] == "JobSet"
    assert refusal(hardened, legitimate) == ""

    for attack in ("a foreign image", "a command", "the node's network"):
        foreign = copy.deepcopy(legitimate)
        groups = foreign["spec"]["replicatedJobs"]
        groups.append(copy.deepcopy(groups[0]) | {"name": "more"})
        change(groups[1]["template"], *ATTACKS[attack][1:3])
        assert refusal(hardened, foreign) != ""


@pytest.fixture(scope="module")
def operators(hardened: Cluster) -> None:
    """The kinds of JobSet and Kueue alone, without their fields and controllers. They stay: tests in other processes
    use them, too."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    kinds = {"JobSet": ("jobset.x-k8s.io", "v1alpha2"), "Workload": ("kueue.x-k8s.io", "v1beta1")}
    names = [f"{kind.lower()}s.{group}" for kind, (group, _) in kinds.items()]
    for name, (kind, (group, version)) in zip(names, kinds.items(), strict=True):
        versions = [{"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": anything}}]
        plural = {"kind": kind, "plural": f"{kind.lower()}s", "singular": kind.lower(), "listKind": f"{kind}List"}
        approved = {"api-approved.kubernetes.io": "unapproved, for a test"}
        hardened.apply(
            {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": name, "annotations": approved},
                "spec": {"group": group, "scope": "Namespaced", "names": plural, "versions": versions},
            }
        )
        hardened.run("wait", "--for=condition=Established", f"crd/{name}", "--timeout=60s")


# --- what somebody with its token would try ---------------------------------------------------------------------

TEACHER, KEY = {"name": "teacher-credentials"}, {"name": "s3-credentials", "key": "AWS_SECRET_ACCESS_KEY"}
SECOND = {"name": "second", "image": "localhost/vcot-data:dev"}
PODS = ("spec", "template", "metadata")
POD = ("spec", "template", "spec")
MAIN = (*POD, "containers", 0)
GONE = object()

#: What → the step whose Job is changed, where ("+": one more in a list), to what, and what the API server says.
ATTACKS: dict[str, tuple[str, tuple[str | int, ...], Any, str]] = {
    "a foreign image": ("convert-finish", (*MAIN, "image"), "docker.io/library/busybox:1", "image docker.io"),
    "another tag": ("train", (*MAIN, "image"), "localhost/vcot-gpu:other", "runs localhost/vcot-gpu:dev"),
    "another stage's image": ("train", (*MAIN, "image"), "localhost/vcot-data:dev", "runs localhost/vcot-gpu:dev"),
    "a command": ("convert-finish", (*MAIN, "command"), ["sh", "-c", "env"], "have no command"),
    "arguments": ("convert-finish", (*MAIN, "args"), ["jobs.probe"], "args of stage convert"),
    "a command after the start": (
        "train", (*MAIN, "lifecycle"), {"postStart": {"exec": {"command": ["env"]}}}, "have no lifecycle",
    ),
    "another folder to start in": ("train", (*MAIN, "workingDir"), "/scratch", "have no workingDir"),
    "another stage's Secret": ("train", (*MAIN, "envFrom", "+"), {"secretRef": TEACHER}, "envFrom of stage train"),
    "another stage's settings": (
        "train", (*MAIN, "envFrom", "+"), {"configMapRef": {"name": "settings-distill-0123456789"}},
        "envFrom of stage train",
    ),
    "settings of its own": (
        "distill-shards", (*MAIN, "envFrom", "+"), {"configMapRef": {"name": "r2-plan"}}, "envFrom of stage distill",
    ),
    "a key in a variable": (
        "train", (*MAIN, "env", "+"), {"name": "K", "valueFrom": {"secretKeyRef": KEY}}, "env of stages",
    ),
    "a token, projected": (
        "train", (*POD, "volumes", "+"),
        {"name": "more", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}, "of kind emptyDir",
    ),
    "a Secret as a volume": (
        "train", (*POD, "volumes", "+"), {"name": "more", "secret": {"secretName": "teacher-credentials"}},
        "of kind emptyDir",
    ),
    "a folder of the node": (
        "train", (*POD, "volumes", "+"), {"name": "more", "hostPath": {"path": "/"}}, "of kind emptyDir",
    ),
    "a container beside": ("train", (*POD, "containers", "+"), SECOND | {"command": ["env"]}, "one container, main"),
    "a container before": (
        "train", (*POD, "initContainers"), [SECOND | {"restartPolicy": "Always"}], "have no initContainers",
    ),
    "the orchestrator's account": ("train", (*POD, "serviceAccountName"), "orchestrator", "serviceAccountName: stage"),
    "the account's token": (
        "train", (*POD, "automountServiceAccountToken"), True, "automountServiceAccountToken: false",
    ),
    "a Secret to pull with": ("train", (*POD, "imagePullSecrets"), [TEACHER], "have no imagePullSecrets"),
    "names": (
        "distill-shards", (*POD, "hostAliases"), [{"ip": "10.0.0.1", "hostnames": ["a"]}], "have no hostAliases",
    ),
    "the node's network": ("train", (*POD, "hostNetwork"), True, "have no hostNetwork"),
    "a chosen node": ("train", (*POD, "nodeName"), "node-1", "have no nodeName"),
    "distill's network": ("train", (*PODS, "labels", "vcot/stage"), "distill", "network policies go by them"),
    "the orchestrator's network": (
        "train", (*PODS, "labels", "vcot/role"), "orchestrator", "network policies go by them",
    ),
    "a webhook's container": ("train", (*PODS, "annotations"), {"inject": "true"}, "webhooks"),
    "another stage's label": ("distill-finish", ("metadata", "labels", "vcot/stage"), "convert", "network policies"),
    "no stage": ("train", ("metadata", "labels", "vcot/stage"), GONE, "names none"),
    "a stage that there is not": ("train", ("metadata", "labels", "vcot/stage"), "serve", "names none"),
    "no owner": ("train", ("metadata", "ownerReferences"), GONE, "owned by the Job pipeline-"),
    "another run's owner": ("train", ("metadata", "ownerReferences", 0, "name"), "pipeline-r2", "owned by the Job"),
}  # fmt: skip
#: The same for a variable of the container: its name, its value.
ATTACKS |= {
    f"variable {name}": (step, (*MAIN, "env", "+"), {"name": name, "value": value}, f"not {name}")
    for step, name, value in (
        ("train", "VCOT_RUN_URI", "s3://x/$(AWS_REGION)"), ("train", "VCOT_TRAIN_INPUT_URI", "http://x"),
        ("train", "VCOT_PART", "finish\nx"), ("distill-shards", "OPENAI_BASE_URL", "https://evil.example.com"),
        ("distill-shards", "VCOT_DISTILL_MODEL", "other"),
    )
}  # fmt: skip


def change(manifest: Any, where: tuple[str | int, ...], value: Any) -> None:
    *path, last = where
    for key in path:
        manifest = manifest[key]
    if value is GONE:
        del manifest[last]
    elif last == "+":
        manifest.append(value)
    else:
        manifest[last] = value


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_a_stages_job_is_denied(attack: str, hardened: Cluster) -> None:
    step, where, value, words = ATTACKS[attack]
    one = job(hardened, step)
    change(one, where, value)
    assert words in refusal(hardened, one)


def test_a_job_that_is_there_may_be_suspended_and_not_changed(hardened: Cluster) -> None:
    waiting = job(hardened, "evaluate")
    pod_of(waiting)["nodeSelector"] = {"node-pool": "nowhere"}
    name = waiting["metadata"]["name"]
    as_orchestrator(hardened, "create", "-f", "-", stdin=json.dumps(waiting))

    def patch(merged: Manifest) -> str:
        return as_orchestrator(hardened, "patch", "job", name, "--type", "merge", "-p", json.dumps(merged))

    patch({"metadata": {"annotations": {"vcot/given-up": "it waited too long"}}, "spec": {"suspend": True}})
    suspended = hardened.get("Job", name)
    assert suspended is not None
    assert suspended["spec"]["suspend"] is True
    for merged in (
        {"spec": {"suspend": False}},
        {"spec": {"activeDeadlineSeconds": 1}},
        {"spec": {"template": {"metadata": {"labels": {"vcot/stage": "distill"}}}}},
        {"spec": {"template": {"spec": {"nodeSelector": {"node-pool": "x"}}}}},
        {"metadata": {"labels": {"vcot/part": "other"}}},
        {"metadata": {"annotations": {"vcot/plan": "other"}}},
        {"metadata": {"finalizers": ["x.example.com/y"]}},
    ):
        with pytest.raises(CommandFailed, match="suspends a Job that is there, and changes nothing else"):
            patch(merged)
    hardened.run("delete", "job", name, "--wait=false")


def test_a_job_may_be_taken_out_of_its_queue_and_not_put_before_others(hardened: Cluster, operators: None) -> None:
    one: Manifest = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload", "metadata": {"name": "job-r1"}}
    hardened.create(one | {"spec": {"active": True, "priority": 0}})

    def patch(**spec: object) -> str:
        return as_orchestrator(
            hardened, "patch", "workload", "job-r1", "--type", "merge", "-p", json.dumps({"spec": spec})
        )

    with pytest.raises(CommandFailed, match="takes its Jobs out of a queue"):
        patch(active=False, priority=1000)
    patch(active=False)
    with pytest.raises(CommandFailed, match="takes its Jobs out of a queue"):
        patch(active=True)
    assert "not CREATE of workloads" in refusal(hardened, one)


def test_the_pipelines_job_is_not_the_orchestrators_to_change(hardened: Cluster) -> None:
    given_up = {"metadata": {"annotations": {"vcot/given-up": "x"}}}
    with pytest.raises(CommandFailed, match="Jobs of stages alone"):
        as_orchestrator(hardened, "patch", "job", "pipeline-r1", "-p", json.dumps(given_up))
    with pytest.raises(CommandFailed, match="not DELETE of jobs"):
        as_orchestrator(hardened, "delete", "job", "pipeline-r1")


def test_of_configmaps_the_orchestrator_writes_the_plan_and_the_state_of_runs(hardened: Cluster) -> None:
    for name in ("r1-plan", "r1-state"):
        assert refusal(hardened, config_map(name)) == ""
    for name in ("settings-distill-0123456789", "run-0123456789", "kube-root-ca.crt2", "plan"):
        assert "and no settings" in refusal(hardened, config_map(name, OPENAI_BASE_URL="https://evil.example.com"))
    names = [one["metadata"]["name"] for one in hardened.list("ConfigMap")]
    (settings,) = [name for name in names if name.startswith("settings-train")]
    with pytest.raises(CommandFailed, match="and no settings"):
        as_orchestrator(
            hardened, "patch", "configmap", settings, "-p", json.dumps({"data": {"VCOT_TRAIN_NUM_TRAIN_EPOCHS": "1"}})
        )
    old = config_map("settings-train-0123456789")
    old["metadata"]["labels"] = {"vcot/holds": "settings"}
    hardened.apply(config_map("anything"), old)
    as_orchestrator(hardened, "delete", "configmap", old["metadata"]["name"])  # of runs that are gone
    with pytest.raises(CommandFailed, match="and no settings"):
        as_orchestrator(hardened, "delete", "configmap", "anything")


def test_nothing_else_is_the_orchestrators_to_write_whatever_rights_it_has(hardened: Cluster) -> None:
    template = hardened.get("CronJob", "stage-train") or {}
    pod_spec = template["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for kind, version, name, more in (
        ("Pod", "v1", "pods", {"spec": pod_spec}),
        ("CronJob", "batch/v1", "cronjobs.batch", {"spec": template["spec"]}),
        ("Secret", "v1", "secrets", {"stringData": {"a": "b"}}),
    ):
        one = {"apiVersion": version, "kind": kind, "metadata": {"name": "mine"}, **more}
        assert f"not CREATE of {name}" in refusal(hardened, one)
    with pytest.raises(CommandFailed, match="not UPDATE of cronjobs"):
        as_orchestrator(hardened, "patch", "cronjob", "stage-train", "-p", json.dumps({"spec": {"suspend": False}}))
    with pytest.raises(CommandFailed, match="not CREATE of serviceaccounts/token"):
        as_orchestrator(hardened, "create", "token", "stage")


def test_others_are_not_judged(hardened: Cluster) -> None:
    """A person who may make Jobs makes what they like, as `make k8s-doctor` does."""
    one = job(hardened, "train")
    main_of(one)["command"] = ["env"]
    hardened.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(one))


def test_the_api_server_has_nothing_to_say_about_the_expressions(hardened: Cluster) -> None:
    """It warns of fields that a kind does not have; nobody sees that when the policy is applied."""

    def judged() -> Manifest | None:
        name = f"{hardened.namespace}-orchestrator-jobs"
        policy = json.loads(hardened.run("get", "validatingadmissionpolicy", name, "-o", "json"))
        found: Manifest = policy.get("status") or {}
        return found if found.get("observedGeneration") == policy["metadata"]["generation"] else None

    status = hardened.until("the policy is type-checked", judged, 60)
    assert "expressionWarnings" not in (status.get("typeChecking") or {}), status
