"""What must hold of the overlays that serve a model."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.kustomize import POOLS, SERVING, Manifest, named, of_kind, render, rendered, serving
from tests.k8s.kustomize import ROOT as CHECKOUT
from tests.k8s.test_agreement import load
from tests.k8s.test_invariants import METADATA, METADATA_6, PRIVATE, PUBLIC, may_reach, selects, size
from vcot.pipeline.client import RESOURCES
from vcot.pipeline.rollout import PROMOTION
from vcot.settings import PREFIX

MODEL, PAGE, ROLLOUT = ({"vcot/serving": name} for name in ("model", "page", "rollout"))
PROMOTED = "s3://vcot/runs/pointers/latest/0000000003.json"


def templates(objects: list[Manifest]) -> Iterator[tuple[str, Any]]:
    """(kind/name, pod template) of all that becomes pods."""
    for one in of_kind(objects, "Deployment", "CronJob"):
        spec = one["spec"]["jobTemplate"]["spec"] if one["kind"] == "CronJob" else one["spec"]
        yield f"{one['kind']}/{one['metadata']['name']}", spec["template"]


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def pod(name: str, deployment: str) -> Any:
    return named(rendered(name), "Deployment", deployment)["spec"]["template"]["spec"]


def environment(objects: list[Manifest], container: Manifest) -> dict[str, str]:
    """What the process sees, without Secrets; of the pod itself the annotation and the namespace."""
    maps = {one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}
    own = {f"metadata.annotations['{PROMOTION}']": PROMOTED, "metadata.namespace": "vcot"}
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]] if "configMapRef" in source else {}
    for one in container.get("env", []):
        taken = one.get("valueFrom", {})
        if "configMapKeyRef" in taken:
            found[one["name"]] = maps[taken["configMapKeyRef"]["name"]][taken["configMapKeyRef"]["key"]]
        else:
            found[one["name"]] = own[taken["fieldRef"]["fieldPath"]] if taken else one["value"]
    return found


def test_every_pod_is_admitted_under_restricted_and_asks_for_what_it_may_use() -> None:
    for name, objects in serving():
        for where, template in templates(objects):
            spec = template["spec"]
            assert spec["securityContext"]["runAsNonRoot"], (name, where)
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, (name, where)
            assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001, (name, where)
            assert {kind for volume in spec["volumes"] for kind in volume} == {"name", "emptyDir"}, (name, where)
            for container in containers(template):
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
                }, (name, where)  # fmt: skip
                assert container["resources"]["limits"]["memory"], (name, where)
                mounted = {mount["name"] for mount in container["volumeMounts"]}
                assert mounted <= {volume["name"] for volume in spec["volumes"]}, (name, where)
    server = pod("serve", "model")
    on_disk = sum(size(v["emptyDir"]["sizeLimit"]) for v in server["volumes"] if "medium" not in v["emptyDir"])
    assert on_disk <= size(server["containers"][0]["resources"]["requests"]["ephemeral-storage"])


def test_a_server_has_no_keys_and_no_token() -> None:
    for name, objects in serving():
        for where, template in templates(objects):
            spec, job = template["spec"], where.startswith("CronJob")
            assert spec["serviceAccountName"] == ("rollout" if job else "serving"), (name, where)
            assert spec["automountServiceAccountToken"] is job, (name, where)
            assert spec["enableServiceLinks"] is False, (name, where)
            with_keys = [c["name"] for c in containers(template) if "secretRef" in str(c.get("envFrom"))]
            assert with_keys == (["main"] if job else ["fetch"]), (name, where)
            for container in spec["containers"] if not job else []:
                (model,) = (mount for mount in container["volumeMounts"] if mount["name"] == "model")
                assert model["readOnly"] is True, (name, where)
        assert not of_kind(objects, "Secret", "ClusterRole", "ClusterRoleBinding"), name


def test_rollout_may_change_the_two_deployments_and_no_other() -> None:
    for name, objects in serving():
        (role,) = of_kind(objects, "Role")
        group, _, resource = RESOURCES["Deployment"].removeprefix("/apis/").partition("/v1/namespaces/{}/")
        (container,) = dict(templates(objects))["CronJob/rollout"]["spec"]["containers"]
        (rule,) = role["rules"]
        assert rule == {
            "apiGroups": [group], "resources": [resource], "resourceNames": container["args"][-1].split(","),
            "verbs": ["get", "patch"],
        }, name  # fmt: skip
        assert rule["resourceNames"] == sorted(one["metadata"]["name"] for one in of_kind(objects, "Deployment"))
        (binding,) = of_kind(objects, "RoleBinding")
        assert [(s["kind"], s["name"]) for s in binding["subjects"]] == [("ServiceAccount", "rollout")], name


def test_every_process_understands_its_settings_and_takes_the_promotion_of_its_revision() -> None:
    for name in SERVING:
        objects = rendered(name)
        seen = set()
        for where, template in templates(objects):
            for container in containers(template):
                if "command" in container:
                    continue  # a server of the overlay; see below
                (module, *flags), variables = container["args"], environment(objects, container)
                given = {n: v for n, v in variables.items() if n.startswith(PREFIX)}
                settings: Any = load(module, flags, given)
                seen.add(settings.stage)
                if settings.stage == "fetch":
                    assert (settings.promotion_uri, settings.weights) == (PROMOTED, "model" in where), where
                    assert PROMOTED.startswith(settings.pointer_uri), where
        assert seen == {"fetch", "demo", "rollout"}


def started(name: str, folder: Path) -> list[str]:
    """The command line that the server's script comes to, with the model in this folder; its program only says it."""
    (script,) = pod(name, "model")["containers"][0]["args"]
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for program in ("vllm", "python"):
        (programs / program).write_text('#!/bin/sh\nfor word in "$0" "$@"; do echo "$word"; done\n')
        (programs / program).chmod(0o755)
    script = script.replace("/model/promoted", str(folder / "promoted")).replace("/opt/vcot", "/")
    path = f"{programs}:{os.environ['PATH']}"
    said = subprocess.run(["sh", "-c", script], env={"PATH": path}, capture_output=True, text=True, check=True)
    return said.stdout.replace(str(folder), "").splitlines()[1:]


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "whole weights"])
def test_the_servers_start_with_what_was_fetched_under_the_name_that_the_page_asks_for(
    adapter: bool, tmp_path: Path
) -> None:
    (tmp_path / "promoted" / ("base" if adapter else "served")).mkdir(parents=True)
    serve, served, *flags = started("serve", tmp_path)
    assert (serve, served) == ("serve", "/promoted/served")
    lora = ["--enable-lora", "--max-lora-rank", "64", "--lora-modules", "vcot=/promoted/train/model"]
    named_so = ["--served-model-name", "base", *lora] if adapter else ["--served-model-name", "vcot"]
    assert flags == ["--port", "8000", "--generation-config", "vllm", *named_so]

    _, module, *flags = started("serve-cpu", tmp_path)
    settings: Any = load(module, flags, {})
    taken = (settings.subject, settings.base_uri)
    assert taken == (("/promoted/train", "/promoted/base") if adapter else ("/promoted/served", None))
    assert (settings.name, settings.host, settings.port) == ("vcot", "0.0.0.0", 8000)


def test_the_page_asks_the_model_by_its_service() -> None:
    for name in SERVING:
        page, objects = pod(name, "page"), rendered(name)
        (main,) = page["containers"]
        settings: Any = load(*(main["args"][0], main["args"][1:]), {})
        assert settings.subject == "http://model:8000/v1#vcot"
        assert named(objects, "Service", "model")["spec"]["ports"][0]["port"] == 8000
        into = page["initContainers"][0]["args"][2]
        assert into == pod(name, "model")["initContainers"][0]["args"][2] == "/model/promoted"
        contract = environment(objects, main)["VCOT_DEMO_CONTRACT_URI"]
        assert contract == f"{into}/train/model/contract.json"
        for container, port in ((main, settings.port), (pod(name, "model")["containers"][0], 8000)):
            assert container["ports"] == [{"name": "http", "containerPort": port}]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}
        startup = pod(name, "model")["containers"][0]["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_a_new_model_is_up_before_the_old_one_goes() -> None:
    for name, objects in serving():
        for deployment in of_kind(objects, "Deployment"):
            update = deployment["spec"]["strategy"]["rollingUpdate"]
            assert (update["maxSurge"], update["maxUnavailable"]) == (1, 0), name
            assert deployment["spec"]["template"]["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"]
        (budget,) = of_kind(objects, "PodDisruptionBudget")
        assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": MODEL}}, name


def test_a_pool_moves_the_server_that_has_a_gpu_and_no_other() -> None:
    for pool in ["label", *POOLS]:
        variant = "serve" if pool == "label" else f"serve+{pool}"
        deployments = {one["metadata"]["name"]: one for one in of_kind(rendered(variant), "Deployment")}
        placed = {n for n, one in deployments.items() if "nodeSelector" in one["spec"]["template"]["spec"]}
        assert placed == {"model"}, pool
    server = pod("serve", "model")
    assert server["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" in {one["key"] for one in server["tolerations"]}
    assert "nvidia.com/gpu" not in pod("serve-cpu", "model")["containers"][0]["resources"]["limits"]


# --- the network ----------------------------------------------------------------------------------------


def entered(objects: list[Manifest], labels: Mapping[str, str], **peer: Mapping[str, str]) -> set[int]:
    """Ports on which a pod with these labels lets in a pod, or a namespace, with those."""
    ((kind, of_peer),) = peer.items()
    return {
        port["port"]
        for policy in of_kind(objects, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], labels)
        for rule in policy["spec"].get("ingress", [])
        if any(selects(one[f"{kind}Selector"], of_peer) for one in rule["from"] if f"{kind}Selector" in one)
        for port in rule["ports"]
    }


@pytest.mark.parametrize("name", SERVING)
def test_who_reaches_whom(name: str) -> None:
    objects = rendered(name)
    for labels in (MODEL, PAGE, ROLLOUT):
        deny = named(objects, "NetworkPolicy", "serving")["spec"]
        assert selects(deny["podSelector"], labels)
        assert deny["policyTypes"] == ["Ingress", "Egress"]
        assert "ingress" not in deny
        assert may_reach(objects, labels, PUBLIC, 443)
        assert may_reach(objects, labels, PRIVATE, 9000)
        assert not any(may_reach(objects, labels, PUBLIC, port) for port in (80, 8000, 9000))
        assert not any(may_reach(objects, labels, a, port) for a in (METADATA, METADATA_6) for port in (80, 443))
    assert may_reach(objects, ROLLOUT, PRIVATE, 6443)
    assert not may_reach(objects, MODEL, PRIVATE, 6443)
    assert entered(objects, MODEL, pod=PAGE) == entered(objects, MODEL, pod={"vcot/asks-model": "true"}) == {8000}
    assert entered(objects, MODEL, pod=ROLLOUT) == entered(objects, MODEL, namespace={}) == set()
    assert entered(objects, PAGE, namespace={"vcot/reaches-page": "true"}) == {7860}
    assert entered(objects, PAGE, namespace={}) == entered(objects, ROLLOUT, pod=PAGE) == set()
    minio = named(render(CHECKOUT / "k8s/minio"), "NetworkPolicy", "minio")["spec"]["ingress"][0]["from"]
    assert any(selects(peer["podSelector"], MODEL) for peer in minio)


def test_serving_shares_a_namespace_with_the_chain_and_no_object_but_it() -> None:
    def names(overlay: str) -> set[tuple[str, str]]:
        return {(one["kind"], one["metadata"]["name"]) for one in rendered(overlay)}

    for name in SERVING:
        assert names(name) & names("gpu") == {("Namespace", "vcot")}
        for one in rendered(name):
            namespace = None if one["kind"] == "Namespace" else "vcot"
            assert one["metadata"].get("namespace") == namespace
            if one["kind"] == "ConfigMap":  # a run's orchestrator deletes settings that no run names
                assert "vcot/holds" not in one["metadata"].get("labels", {})
