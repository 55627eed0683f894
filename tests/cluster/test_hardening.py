"""Component hardening: what the orchestrator's token is good for ends at the Jobs of stages.

The orchestrator has every right in the namespace here, so that the policy is tried and not its Role.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable, Iterator
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


@contextmanager
def behind_the_policy(
    cluster: Cluster, place: Path, run_id: str = "r1", name: str = "cpu-smoke", *, run: bool = False,
    edit: Callable[[Overlay], object] = lambda overlay: None,
) -> Iterator[Overlay]:  # fmt: skip
    """An overlay with the component around it, applied in this namespace, and its policy in force.

    The policy is the whole cluster's and names the namespace vcot; here it gets another name and this namespace.

    Args:
        run: whether the pipeline's Job is applied too.
        edit: changes the overlay inside.
    """
    inner = Overlay.of(place, run_id, cluster.namespace, name)
    edit(inner)
    outer = inner.folder.parent / "hardened"
    outer.mkdir()
    kustomization = {"resources": [f"../{inner.folder.name}"], "components": ["../../components/hardening"]}
    (outer / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    rendered = list(yaml.safe_load_all(cluster.run("kustomize", str(outer))))
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
        yield inner
    finally:
        names = [f"{one['kind']}/{one['metadata']['name']}" for one in policy]
        cluster.run("delete", "--ignore-not-found", *names)


EVERY_RIGHT = {
    "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "every-right"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
    "subjects": [{"kind": "ServiceAccount", "name": "orchestrator"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def hardened(cluster: Cluster, node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A namespace behind the policy, with the templates of cpu-smoke, in which nothing runs."""
    place = tmp_path_factory.mktemp("hardened")
    with cluster.own_namespace(f"vcot-test-{uuid.uuid4().hex[:8]}") as there, behind_the_policy(there, place):
        pipeline = jobs(there)["convert-prepare"]
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
    templates = {stage: cluster.get("CronJob", f"stage-{stage}") for stage in STAGES}
    frozen, owner = freeze(plan, templates), owner_of(cluster)
    return {
        step.name: complete(frozen.jobs[step.name], owner, frozen.digest, 2 if step.part == "shards" else None)
        for step in plan.steps
    }


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
    frozen = of_its_own["train"]  # before the last apply, with other settings, sizes and places
    main_of(frozen)["envFrom"][0]["configMapRef"]["name"] = "settings-train-0123456789"
    main_of(frozen)["resources"]["limits"]["memory"] = "7Gi"
    pod_of(frozen)["nodeSelector"] = {"node-pool": "earlier"}
    pod_of(frozen)["volumes"][0]["emptyDir"] = {"sizeLimit": "3Gi"}
    assert refusal(hardened, frozen) == ""
    # A person who may make Jobs makes what they like, as `make k8s-doctor` does.
    main_of(frozen)["command"] = ["env"]
    hardened.run("create", "--dry-run=server", "-f", "-", stdin=json.dumps(frozen))


def test_every_job_of_overlay_gpu_with_every_component_of_pods_is_let_in(namespace, node, operators, tmp_path) -> None:
    names = ["reevaluate", "pool-aks", "spot", "kueue", "multinode-jobset", "irsa"]
    components = {"components": [f"../../components/{name}" for name in names]}
    edit = lambda inner: inner.edit(lambda k: k.update(components))  # noqa: E731
    with behind_the_policy(namespace, tmp_path, name="gpu", edit=edit):
        made = jobs(namespace)
        assert made["train"]["kind"] == "JobSet"
        assert "@sha256:" in main_of(made["evaluate"])["image"]
        for step, one in made.items():
            assert refusal(namespace, one) == "", step


def test_any_digest_of_the_overlays_repository_is_let_in_and_no_other_image(namespace: Cluster, node, tmp_path) -> None:
    """A run that was frozen with the images of an earlier apply goes on with them."""
    repository = "registry.example.com:5000/team/vcot-gpu"
    by_digest = {"name": "vcot-gpu", "newName": repository, "digest": "sha256:" + "0" * 64}
    edit = lambda inner: inner.edit(lambda k: k["images"].append(by_digest) or k["images"].pop(1))  # noqa: E731
    with behind_the_policy(namespace, tmp_path, edit=edit):
        evaluate = jobs(namespace)["evaluate"]
        assert main_of(evaluate)["image"] == f"{repository}@sha256:{'0' * 64}"

        def said(image: str) -> str:
            main_of(evaluate)["image"] = image
            return refusal(namespace, evaluate)

        for digest in ("0" * 64, "1" * 64):
            assert said(f"{repository}@sha256:{digest}") == ""
        for image in (
            f"{repository}:dev", repository, f"{repository}-2@{DIGEST}", f"{repository}/x@{DIGEST}",
            f"{repository}:dev@{DIGEST}", f"{repository}@sha256:1", f"evil.example.com/team/vcot-gpu@{DIGEST}",
            f"vcot-gpu@{DIGEST}", "localhost/vcot-gpu:dev",
        ):  # fmt: skip
            assert "or another digest of that repository" in said(image), image


def test_a_run_reaches_its_end_behind_the_policy(namespace: Cluster, node: Node, tmp_path: Path) -> None:
    edit = lambda inner: inner.orchestrator("--until", "distill")  # noqa: E731
    with behind_the_policy(namespace, tmp_path, "behind", run=True, edit=edit) as overlay:
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
        _, where, value, _ = ATTACKS[attack]
        change(groups[1]["template"], where, value)
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
        hardened.apply({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": name, "annotations": approved},
            "spec": {"group": group, "scope": "Namespaced", "names": plural, "versions": versions},
        })  # fmt: skip
        hardened.run("wait", "--for=condition=Established", f"crd/{name}", "--timeout=60s")


# --- what somebody with its token would try ---------------------------------------------------------------------

WHERE: dict[str, tuple[str | int, ...]] = {
    "job": ("metadata",), "pods": ("spec", "template", "metadata"), "pod": ("spec", "template", "spec"),
    "main": ("spec", "template", "spec", "containers", 0),
}  # fmt: skip
GONE = object()
TEACHER, KEY = {"name": "teacher-credentials"}, {"name": "s3-credentials", "key": "AWS_SECRET_ACCESS_KEY"}
SECOND = {"name": "second", "image": "localhost/vcot-data:dev"}
TOKEN = {"sources": [{"serviceAccountToken": {"path": "t"}}]}
OTHER_SETTINGS = {"configMapRef": {"name": "settings-distill-0123456789"}}

#: What → the step whose Job is changed, where ("+": one more in a list), to what, and what the API server says.
ATTACKS: dict[str, tuple[str, str, Any, str]] = {
    "a foreign image": ("convert-finish", "main.image", "docker.io/library/busybox:1", "image docker.io"),
    "another tag": ("train", "main.image", "localhost/vcot-gpu:other", "runs localhost/vcot-gpu:dev"),
    "another stage's image": ("train", "main.image", "localhost/vcot-data:dev", "runs localhost/vcot-gpu:dev"),
    "a command": ("convert-finish", "main.command", ["sh", "-c", "env"], "have no command"),
    "arguments": ("convert-finish", "main.args", ["jobs.probe"], "args of stage convert"),
    "a command after": ("train", "main.lifecycle", {"postStart": {"exec": {"command": ["x"]}}}, "have no lifecycle"),
    "another folder to start in": ("train", "main.workingDir", "/scratch", "have no workingDir"),
    "another stage's Secret": ("train", "main.envFrom.+", {"secretRef": TEACHER}, "envFrom of stage train"),
    "another stage's settings": ("train", "main.envFrom.+", OTHER_SETTINGS, "envFrom of stage train"),
    "settings of its own": (
        "distill-shards", "main.envFrom.+", {"configMapRef": {"name": "r2-plan"}}, "envFrom of stage distill",
    ),
    "a key in a variable": ("train", "main.env.+", {"name": "K", "valueFrom": {"secretKeyRef": KEY}}, "env of stages"),
    "a token, projected": ("train", "pod.volumes.+", {"name": "more", "projected": TOKEN}, "of kind emptyDir"),
    "a Secret as a volume": (
        "train", "pod.volumes.+", {"name": "more", "secret": {"secretName": TEACHER["name"]}}, "of kind emptyDir",
    ),
    "a folder of the node": (
        "train", "pod.volumes.+", {"name": "more", "hostPath": {"path": "/"}}, "of kind emptyDir",
    ),
    "a container beside": ("train", "pod.containers.+", SECOND | {"command": ["env"]}, "one container, main"),
    "a container before": (
        "train", "pod.initContainers", [SECOND | {"restartPolicy": "Always"}], "have no initContainers",
    ),
    "the orchestrator's account": ("train", "pod.serviceAccountName", "orchestrator", "serviceAccountName: stage"),
    "the account's token": ("train", "pod.automountServiceAccountToken", True, "automountServiceAccountToken: false"),
    "a Secret to pull with": ("train", "pod.imagePullSecrets", [TEACHER], "have no imagePullSecrets"),
    "names": ("distill-shards", "pod.hostAliases", [{"ip": "10.0.0.1", "hostnames": ["a"]}], "have no hostAliases"),
    "the node's network": ("train", "pod.hostNetwork", True, "have no hostNetwork"),
    "a chosen node": ("train", "pod.nodeName", "node-1", "have no nodeName"),
    "distill's network": ("train", "pods.labels.vcot/stage", "distill", "network policies go by them"),
    "the orchestrator's network": ("train", "pods.labels.vcot/role", "orchestrator", "network policies go by them"),
    "a webhook's container": ("train", "pods.annotations", {"inject": "true"}, "webhooks"),
    "another stage's label": ("distill-finish", "job.labels.vcot/stage", "convert", "network policies"),
    "no stage": ("train", "job.labels.vcot/stage", GONE, "names none"),
    "a stage that there is not": ("train", "job.labels.vcot/stage", "serve", "names none"),
    "no owner": ("train", "job.ownerReferences", GONE, "owned by the Job pipeline-"),
    "another run's owner": ("train", "job.ownerReferences.0.name", "pipeline-r2", "owned by the Job"),
}  # fmt: skip
#: The same for a variable of the container: its name, its value.
ATTACKS |= {
    f"variable {name}": (step, "main.env.+", {"name": name, "value": value}, f"not {name}")
    for step, name, value in (
        ("train", "VCOT_RUN_URI", "s3://x/$(AWS_REGION)"), ("train", "VCOT_TRAIN_INPUT_URI", "http://x"),
        ("train", "VCOT_PART", "finish\nx"), ("distill-shards", "OPENAI_BASE_URL", "https://evil.example.com"),
        ("distill-shards", "VCOT_DISTILL_MODEL", "other"),
    )
}  # fmt: skip


def change(manifest: Any, where: str, value: Any) -> None:
    begin, *rest = where.split(".")
    *path, last = (*WHERE[begin], *(int(key) if key.isdigit() else key for key in rest))
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
    one = jobs(hardened)[step]
    change(one, where, value)
    assert words in refusal(hardened, one)


def denied(cluster: Cluster, words: str, *what: str, **change: Any) -> None:
    """The orchestrator's kubectl is refused with these words; where it patches, `change` is the patch."""
    patch = ["--type", "merge", "-p", json.dumps(change)] if change else []
    with pytest.raises(CommandFailed, match=words):
        as_orchestrator(cluster, *what, *patch)


def test_a_job_that_is_there_may_be_suspended_and_not_changed(hardened: Cluster) -> None:
    waiting = jobs(hardened)["evaluate"]
    pod_of(waiting)["nodeSelector"] = {"node-pool": "nowhere"}
    name = waiting["metadata"]["name"]
    as_orchestrator(hardened, "create", "-f", "-", stdin=json.dumps(waiting))
    given_up = {"metadata": {"annotations": {"vcot/given-up": "it waited too long"}}, "spec": {"suspend": True}}
    as_orchestrator(hardened, "patch", "job", name, "--type", "merge", "-p", json.dumps(given_up))
    assert hardened.get("Job", name)["spec"]["suspend"] is True
    changes: list[dict[str, Any]] = [
        {"spec": {"suspend": False}},
        {"spec": {"activeDeadlineSeconds": 1}},
        {"spec": {"template": {"metadata": {"labels": {"vcot/stage": "distill"}}}}},
        {"spec": {"template": {"spec": {"nodeSelector": {"node-pool": "x"}}}}},
        {"metadata": {"labels": {"vcot/part": "other"}}},
        {"metadata": {"annotations": {"vcot/plan": "other"}}},
        {"metadata": {"finalizers": ["x.example.com/y"]}},
    ]
    for each in changes:
        denied(hardened, "suspends a Job that is there, and changes nothing else", "patch", "job", name, **each)
    hardened.run("delete", "job", name, "--wait=false")


def test_a_job_may_be_taken_out_of_its_queue_and_not_put_before_others(hardened: Cluster, operators: None) -> None:
    one: Manifest = {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload", "metadata": {"name": "job-r1"}}
    hardened.create(one | {"spec": {"active": True, "priority": 0}})
    patch, words = ("patch", "workload", "job-r1"), "takes its Jobs out of a queue"
    denied(hardened, words, *patch, spec={"active": False, "priority": 1000})
    as_orchestrator(hardened, *patch, "--type", "merge", "-p", '{"spec": {"active": false}}')
    denied(hardened, words, *patch, spec={"active": True})
    assert "not CREATE of workloads" in refusal(hardened, one)


def test_of_configmaps_the_orchestrator_writes_the_plan_and_the_state_of_runs(hardened: Cluster) -> None:
    for name in ("r1-plan", "r1-state"):
        assert refusal(hardened, config_map(name)) == ""
    for name in ("settings-distill-0123456789", "run-0123456789", "kube-root-ca.crt2", "plan"):
        assert "and no settings" in refusal(hardened, config_map(name, OPENAI_BASE_URL="https://evil.example.com"))
    names = [one["metadata"]["name"] for one in hardened.list("ConfigMap")]
    (settings,) = [name for name in names if name.startswith("settings-train")]
    denied(hardened, "and no settings", "patch", "configmap", settings, data={"VCOT_TRAIN_NUM_TRAIN_EPOCHS": "1"})
    old = config_map("settings-train-0123456789")
    old["metadata"]["labels"] = {"vcot/holds": "settings"}
    hardened.apply(config_map("anything"), old)
    as_orchestrator(hardened, "delete", "configmap", old["metadata"]["name"])  # of runs that are gone
    denied(hardened, "and no settings", "delete", "configmap", "anything")


def test_nothing_else_is_the_orchestrators_to_write_whatever_rights_it_has(hardened: Cluster) -> None:
    template = hardened.get("CronJob", "stage-train")
    pod_spec = template["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    for kind, version, name, more in (
        ("Pod", "v1", "pods", {"spec": pod_spec}),
        ("CronJob", "batch/v1", "cronjobs.batch", {"spec": template["spec"]}),
        ("Secret", "v1", "secrets", {"stringData": {"a": "b"}}),
    ):
        one = {"apiVersion": version, "kind": kind, "metadata": {"name": "mine"}, **more}
        assert f"not CREATE of {name}" in refusal(hardened, one)
    denied(hardened, "not UPDATE of cronjobs", "patch", "cronjob", "stage-train", spec={"suspend": False})
    denied(hardened, "not CREATE of serviceaccounts/token", "create", "token", "stage")
    given_up = {"annotations": {"vcot/given-up": "x"}}
    denied(hardened, "Jobs of stages alone", "patch", "job", "pipeline-r1", metadata=given_up)
    denied(hardened, "not DELETE of jobs", "delete", "job", "pipeline-r1")


def test_the_api_server_has_nothing_to_say_about_the_expressions(hardened: Cluster) -> None:
    """It warns of fields that a kind does not have; nobody sees that when the policy is applied."""

    def judged() -> Manifest | None:
        name = f"{hardened.namespace}-orchestrator-jobs"
        policy = json.loads(hardened.run("get", "validatingadmissionpolicy", name, "-o", "json"))
        found = policy.get("status") or {}
        return found if found.get("observedGeneration") == policy["metadata"]["generation"] else None

    status = hardened.until("the policy is type-checked", judged, 60)
    assert "expressionWarnings" not in (status.get("typeChecking") or {}), status
