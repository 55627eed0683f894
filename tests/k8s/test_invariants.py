"""What must hold for every overlay with every component, whatever it is for."""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import yaml

from tests.k8s.kustomize import OVERLAYS, ROOT, VARIANTS, Manifest, job_specs, named, of_kind, render

Rendered = Callable[[str], list[Manifest]]
everywhere = pytest.mark.parametrize("name", VARIANTS)

CLUSTER_SCOPED = {"Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
UNITS = {"Mi": 2**20, "Gi": 2**30}


def size(quantity: str) -> float:
    """Bytes of 8Gi."""
    return float(quantity[:-2]) * UNITS[quantity[-2:]]


def containers(spec: Manifest) -> list[Manifest]:
    pod = spec["template"]["spec"]
    return [*pod["containers"], *pod.get("initContainers", [])]


def main_of(spec: Manifest) -> Manifest:
    (container,) = spec["template"]["spec"]["containers"]
    return container


def stages(objects: Sequence[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """(CronJob, spec of its Job) of each."""
    for one in of_kind(objects, "CronJob"):
        yield one, one["spec"]["jobTemplate"]["spec"]


# --- a pod ----------------------------------------------------------------------------------------------


@everywhere
def test_every_pod_is_admitted_where_pod_security_is_restricted(name: str, rendered: Rendered) -> None:
    for where, spec in job_specs(rendered(name)):
        pod = spec["template"]["spec"]
        security = pod["securityContext"]
        assert security["runAsNonRoot"], where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert security["runAsUser"] == security["fsGroup"] == 10001, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), where
        assert {kind for volume in pod["volumes"] for kind in volume} == {"name", "emptyDir"}, where
        for container in containers(spec):
            of_it = container["securityContext"]
            assert of_it["allowPrivilegeEscalation"] is False, where
            assert of_it["readOnlyRootFilesystem"] is True, where
            assert of_it["capabilities"] == {"drop": ["ALL"]}, where
            assert not any("hostPort" in port for port in container.get("ports", [])), where


@everywhere
def test_a_pod_is_replaced_by_the_job_alone_and_ends_for_good_where_trying_again_is_no_use(
    name: str, rendered: Rendered
) -> None:
    for where, spec in job_specs(rendered(name)):
        assert spec["template"]["spec"]["restartPolicy"] == "Never", where
        assert spec["podReplacementPolicy"] == "Failed", where
        rules = spec["podFailurePolicy"]["rules"]
        gang = spec.get("completionMode") == "Indexed"
        assert [rule["action"] for rule in rules] == (["FailJob"] if gang else ["Ignore", "FailJob"]), where
        codes = rules[-1]["onExitCodes"]
        assert codes["containerName"] == main_of(spec)["name"], where
        assert codes["values"] == sorted(set(codes["values"]) - {0}), where  # as the API server wants them


@everywhere
def test_no_stage_runs_for_ever(name: str, rendered: Rendered) -> None:
    for cron_job, spec in stages(rendered(name)):
        assert 0 < spec["activeDeadlineSeconds"] <= 7 * 86400, cron_job["metadata"]["name"]


@everywhere
def test_only_stages_of_the_gpu_pool_ask_for_a_gpu(name: str, rendered: Rendered) -> None:
    for cron_job, spec in stages(rendered(name)):
        resources = main_of(spec)["resources"]
        pool = cron_job["metadata"]["labels"]["vcot/pool"]
        tolerated = {one.get("key") for one in spec["template"]["spec"]["tolerations"]}
        assert "nvidia.com/gpu" not in resources["requests"]  # the limit is the request
        if "nvidia.com/gpu" in resources["limits"]:
            assert pool == "gpu"
            assert int(resources["limits"]["nvidia.com/gpu"]) >= 1
        assert ("nvidia.com/gpu" in tolerated) == (pool == "gpu")


@everywhere
def test_who_asks_for_a_gpu_computes_on_it_or_fails(name: str, rendered: Rendered) -> None:
    for cron_job, spec in stages(rendered(name)):
        if cron_job["metadata"]["labels"]["vcot/pool"] == "gpu":
            main, stage = main_of(spec), cron_job["metadata"]["labels"]["vcot/stage"]
            devices = {one["name"]: one.get("value") for one in main["env"]}
            asked = "nvidia.com/gpu" in main["resources"]["limits"]
            assert devices[f"VCOT_{stage.upper()}_DEVICE"] == ("cuda" if asked else "cpu"), cron_job["metadata"]["name"]


def test_the_small_chain_needs_no_gpu_and_fits_one_small_node() -> None:
    for where, spec in job_specs(render(OVERLAYS / "cpu-smoke")):
        resources = main_of(spec)["resources"]
        assert "nvidia.com/gpu" not in resources["limits"], where
        assert resources["requests"]["cpu"].endswith("m"), where
        assert size(resources["limits"]["memory"]) <= 3 * 2**30, where


@everywhere
def test_disk_and_shared_memory_are_asked_for_as_they_may_be_used(name: str, rendered: Rendered) -> None:
    for where, spec in job_specs(rendered(name)):
        volumes = {volume["name"]: volume["emptyDir"] for volume in spec["template"]["spec"]["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in main_of(spec)["volumeMounts"]}
        assert mounts == {"scratch": "/scratch", "tmp": "/tmp"} | ({"shm": "/dev/shm"} if "shm" in volumes else {})
        resources = main_of(spec)["resources"]
        if name.startswith("cpu-smoke"):  # limits there say what is too much, not what is expected
            continue
        on_disk = sum(size(one["sizeLimit"]) for one in volumes.values() if "medium" not in one)
        assert on_disk <= size(resources["requests"]["ephemeral-storage"]), where
        if "shm" in volumes:
            assert size(volumes["shm"]["sizeLimit"]) < size(resources["limits"]["memory"]) / 2, where


@everywhere
def test_images_are_ours_and_say_which_they_are(name: str, rendered: Rendered) -> None:
    for where, spec in job_specs(rendered(name)):
        image = main_of(spec)["image"]
        assert re.search(r"/vcot-(data|gpu)[@:]", image), where
        assert not image.endswith(":latest"), where
        if name.startswith("gpu"):
            assert re.search(r"@sha256:[0-9a-f]{64}$", image), where


# --- rights ---------------------------------------------------------------------------------------------


@everywhere
def test_stages_have_no_token_and_the_orchestrator_no_key_but_the_storages(name: str, rendered: Rendered) -> None:
    for where, spec in job_specs(rendered(name)):
        pod, source = spec["template"]["spec"], main_of(spec)["envFrom"]
        orchestrator = where.startswith("Job/")
        assert pod["serviceAccountName"] == ("orchestrator" if orchestrator else "stage"), where
        assert pod["automountServiceAccountToken"] is orchestrator, where
        assert pod["enableServiceLinks"] is False, where
        secrets = {one["secretRef"]["name"]: one["secretRef"]["optional"] for one in source if "secretRef" in one}
        if where == "CronJob/stage-distill":
            assert secrets == {"s3-credentials": True, "teacher-credentials": True}
        else:
            assert secrets == {"s3-credentials": True}, where


@everywhere
def test_nothing_secret_is_in_the_manifests(name: str, rendered: Rendered) -> None:
    assert not of_kind(rendered(name), "Secret")
    values = [
        (where, variable["name"])
        for where, spec in job_specs(rendered(name))
        for variable in main_of(spec).get("env", [])
        if "value" in variable and re.search(r"KEY|SECRET|TOKEN|PASSWORD", variable["name"])
    ]
    assert values == []


RIGHTS = {
    ("batch", "cronjobs"): {"get", "list"},
    ("batch", "jobs"): {"get", "list", "watch", "create", "patch"},
    ("", "configmaps"): {"get", "list", "create", "patch", "delete"},
    ("", "pods"): {"list"},
    ("", "events"): {"list"},
}
"""What the orchestrator may; nothing of it deletes a Job, or reads a Secret."""


@everywhere
def test_the_orchestrator_may_do_what_it_needs_and_no_more(name: str, rendered: Rendered) -> None:
    objects = rendered(name)
    granted = {
        (group, resource): set(rule["verbs"])
        for rule in named(objects, "Role", "orchestrator")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    sets = {("jobset.x-k8s.io", "jobsets"): {"get", "list", "watch", "create", "patch"}}
    queues = {("kueue.x-k8s.io", "workloads"): {"list", "patch"}}
    assert granted == RIGHTS | (sets if any(word in name for word in ("jobset", "all-")) else {}) | (
        queues if any(word in name for word in ("kueue", "all-")) else {}
    )
    (binding,) = of_kind(objects, "RoleBinding")
    assert [(s["kind"], s["name"]) for s in binding["subjects"]] == [("ServiceAccount", "orchestrator")]
    assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding")


@everywhere
def test_templates_say_with_which_run_they_were_applied(name: str, rendered: Rendered) -> None:
    """By the name of a ConfigMap, the same as in the pipeline's Job: it ends in a hash that depends on the RUN_ID."""
    objects = rendered(name)
    (pipeline,) = of_kind(objects, "Job")
    ((run_env,),) = ([s["configMapRef"]["name"] for s in main_of(pipeline["spec"])["envFrom"] if "configMapRef" in s],)
    assert named(objects, "ConfigMap", run_env)["data"]["RUN_ID"]
    assert re.fullmatch(r"run-[a-z0-9]{10}", run_env)
    for cron_job, spec in stages(objects):
        if cron_job["metadata"]["name"].startswith("stage-"):
            (stamp,) = (one for one in main_of(spec)["env"] if one["name"] == "RUN_ID")
            assert stamp["valueFrom"]["configMapKeyRef"]["name"] == run_env


# --- names and references -------------------------------------------------------------------------------


@everywhere
def test_names_fit_with_the_longest_run_id(name: str, rendered: Rendered) -> None:
    longest_run = "r" * 30
    for one in rendered(name):
        limit = 52 if one["kind"] == "CronJob" else 63
        assert len(one["metadata"]["name"]) <= limit
        if one["metadata"]["name"].startswith("stage-"):
            stage = one["metadata"]["name"].removeprefix("stage-")
            assert len(f"{longest_run}-{stage}-prepare-00000") <= 63  # a host name of a shard's pod
    assert len(f"pipeline-{longest_run}") <= 63


@everywhere
def test_what_is_referred_to_is_there(name: str, rendered: Rendered) -> None:
    objects = rendered(name)
    maps = {one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}
    accounts = {one["metadata"]["name"] for one in of_kind(objects, "ServiceAccount")}
    for where, spec in job_specs(objects):
        assert spec["template"]["spec"]["serviceAccountName"] in accounts, where
        for source in main_of(spec)["envFrom"]:
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in maps, where
        for variable in main_of(spec).get("env", []):
            key = variable.get("valueFrom", {}).get("configMapKeyRef")
            assert key is None or key["key"] in maps[key["name"]], where


@everywhere
def test_a_stage_sees_its_own_settings_alone(name: str, rendered: Rendered) -> None:
    for cron_job, spec in stages(rendered(name)):
        seen = {s["configMapRef"]["name"] for s in main_of(spec)["envFrom"] if "configMapRef" in s}
        own = cron_job["metadata"]["labels"]["vcot/stage"]
        expected = {f"settings-{own}"} | (
            {"settings-reevaluate"} if cron_job["metadata"]["name"] == "reevaluate" else set()
        )
        assert {re.sub(r"-[a-z0-9]{10}$", "", one) for one in seen} == expected


@everywhere
def test_all_is_in_the_namespace_and_what_belongs_to_the_cluster_is_not(name: str, rendered: Rendered) -> None:
    for one in rendered(name):
        namespace = one["metadata"].get("namespace")
        assert namespace == (None if one["kind"] in CLUSTER_SCOPED else "vcot"), one["metadata"]["name"]


# --- the network ----------------------------------------------------------------------------------------


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    def holds(expression: Manifest) -> bool:
        if expression["operator"] == "NotIn":
            return labels.get(expression["key"]) not in expression["values"]
        assert expression["operator"] == "Exists"
        return expression["key"] in labels

    wanted = selector.get("matchLabels", {})
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        holds(expression) for expression in selector.get("matchExpressions", [])
    )


def may_reach(objects: Sequence[Manifest], labels: dict[str, str], address: str, port: int) -> bool:
    """Whether any policy lets a pod with these labels open a TCP connection to an address outside the cluster."""
    target = ipaddress.ip_address(address)

    def inside(block: str) -> bool:
        network = ipaddress.ip_network(block)
        return target.version == network.version and target in network

    return any(
        any(p["port"] == port and p["protocol"] == "TCP" for p in rule.get("ports", []))
        and any(
            inside(peer["ipBlock"]["cidr"]) and not any(map(inside, peer["ipBlock"].get("except", [])))
            for peer in rule["to"]
            if "ipBlock" in peer
        )
        for policy in of_kind(objects, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], labels)
        for rule in policy["spec"].get("egress", [])
    )


TRAIN, DISTILL, ORCHESTRATOR = (
    {"vcot/stage": "train"},
    {"vcot/stage": "distill"},
    {"vcot/role": "orchestrator", "vcot/stage": "pipeline"},
)
METADATA, METADATA_6, POD_IDENTITY, POD_IDENTITY_6, PUBLIC, PRIVATE = (
    "169.254.169.254", "fd00:ec2::254", "169.254.170.23", "fd00:ec2::23", "52.216.0.1", "10.1.2.3"
)  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "address", "port", "may"),
    [
        (TRAIN, PUBLIC, 443, True),
        (TRAIN, PUBLIC, 9000, False),
        (TRAIN, PRIVATE, 9000, True),
        (TRAIN, PUBLIC, 80, False),
        (TRAIN, PRIVATE, 6443, False),
        (DISTILL, PUBLIC, 443, True),
        (DISTILL, PUBLIC, 80, False),
        (DISTILL, PUBLIC, 8000, False),
        (ORCHESTRATOR, PRIVATE, 6443, True),
        (ORCHESTRATOR, PRIVATE, 443, True),
        (ORCHESTRATOR, PRIVATE, 9000, True),
        ({}, PUBLIC, 443, False),
    ],
)
def test_pods_reach_what_they_need_and_nothing_else(
    labels: dict[str, str], address: str, port: int, may: bool, gpu: list[Manifest]
) -> None:
    assert may_reach(gpu, labels, address, port) is may


def test_the_way_to_a_teacher_stays_when_storage_is_narrowed(gpu: list[Manifest]) -> None:
    without = [one for one in gpu if one["metadata"]["name"] != "storage"]
    assert may_reach(without, DISTILL, PUBLIC, 443)
    assert not may_reach(without, TRAIN, PUBLIC, 443)


@pytest.mark.parametrize(
    "address", [PRIVATE, "172.31.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", METADATA, METADATA_6, "fd12::1"]
)
def test_what_lets_distill_out_to_a_teacher_lets_it_into_no_private_network(address: str, gpu: list[Manifest]) -> None:
    teacher = [named(gpu, "NetworkPolicy", "teacher")]
    assert may_reach(teacher, DISTILL, PUBLIC, 443)
    assert may_reach(teacher, DISTILL, "2606:4700::1", 443)
    assert not any(may_reach(teacher, DISTILL, address, port) for port in (80, 443, 8000))


def test_by_name_distill_reaches_two_hosts_and_no_address(rendered: Rendered) -> None:
    objects = rendered("gpu+teacher-fqdn")
    assert not may_reach(objects, DISTILL, PUBLIC, 443)
    assert not may_reach(objects, DISTILL, PRIVATE, 9000)
    assert may_reach(objects, TRAIN, PUBLIC, 443)  # the others reach storage as before
    (policy,) = of_kind(objects, "CiliumNetworkPolicy")
    assert policy["spec"]["endpointSelector"] == {"matchLabels": DISTILL}
    names, hosts = policy["spec"]["egress"]
    assert names["toPorts"][0]["rules"] == {"dns": [{"matchPattern": "*"}]}  # or it would not learn their addresses
    assert [list(host) for host in hosts["toFQDNs"]] == [["matchName"], ["matchName"]]
    assert hosts["toPorts"] == [{"ports": [{"port": "443", "protocol": "TCP"}]}]


@everywhere
def test_nothing_comes_in_and_nobody_reaches_the_rights_of_the_node(name: str, rendered: Rendered) -> None:
    objects = rendered(name)
    deny = named(objects, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for labels in (TRAIN, DISTILL, ORCHESTRATOR):
        for address in (METADATA, METADATA_6):
            assert not any(may_reach(objects, labels, address, port) for port in (80, 443))
        for resolver in (METADATA, "169.254.20.10"):  # Cloud DNS of GKE has the address of the metadata, another port
            assert may_reach(objects, labels, resolver, 53)
    for agent in (POD_IDENTITY, POD_IDENTITY_6):
        assert may_reach(objects, TRAIN, agent, 80) is any(word in name for word in ("irsa", "all-"))
    open_doors = {p["metadata"]["name"] for p in of_kind(objects, "NetworkPolicy") if p["spec"].get("ingress")}
    assert open_doors == ({"ranks"} if any(word in name for word in ("jobset", "all-")) else set())


# --- what is beside the overlays ------------------------------------------------------------------------


def test_the_queue_of_the_example_covers_all_that_stages_ask_for() -> None:
    queues = list(yaml.safe_load_all((ROOT / "k8s/examples/kueue-queues.yaml").read_text()))
    (group,) = named(queues, "ClusterQueue", "vcot")["spec"]["resourceGroups"]
    asked: dict[str, Any] = {}
    queued = set()
    for cron_job, spec in stages(render(OVERLAYS / "gpu-kueue")):
        asked |= main_of(spec)["resources"]["requests"] | main_of(spec)["resources"]["limits"]
        queued.add(cron_job["spec"]["jobTemplate"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"])
    assert set(asked) == set(group["coveredResources"])
    assert {one["name"] for flavor in group["flavors"] for one in flavor["resources"]} == set(asked)
    assert {one["metadata"]["name"] for one in of_kind(queues, "LocalQueue")} == queued


def test_the_pods_of_the_trainjob_are_like_those_of_train(gpu: list[Manifest]) -> None:
    """The namespace's Pod Security would refuse them otherwise, its network policies let nothing out."""
    (patch,) = yaml.safe_load((ROOT / "k8s/examples/trainjob.yaml").read_text())["spec"]["runtimePatches"]
    (nodes,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = nodes["template"]["spec"]["template"]
    assert template["metadata"]["labels"] == TRAIN
    train = dict(job_specs(gpu))["CronJob/stage-train"]
    (container,) = template["spec"]["containers"]
    for key in ("securityContext", "serviceAccountName", "terminationGracePeriodSeconds"):
        assert template["spec"][key] == train["template"]["spec"][key]
    assert container["securityContext"] == main_of(train)["securityContext"]
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {mount["mountPath"] for mount in main_of(train)["volumeMounts"]}


def test_alerts_ask_about_the_cronjob_that_there_is(gpu: list[Manifest]) -> None:
    rules = yaml.safe_load((ROOT / "k8s/examples/alerts.yaml").read_text())["spec"]["groups"][0]["rules"]
    cron_job = named(gpu, "CronJob", "reevaluate")["metadata"]["name"]
    failed, missing = (rule["expr"] for rule in rules)
    pattern = re.search(r'job_name=~"([^"]+)"', failed)
    assert pattern
    assert re.fullmatch(pattern[1], f"{cron_job}-29920626")
    assert f'cronjob="{cron_job}"' in missing


# --- the storage for trying, which stands beside the overlays ---------------------------------------------


def test_stages_reach_minio_and_nobody_else_does() -> None:
    minio = render(ROOT / "k8s/minio")
    assert {one["kind"] for one in minio} == {"Deployment", "Service", "NetworkPolicy"}  # and no Secret
    template = named(minio, "Deployment", "minio")["spec"]["template"]
    (port,) = named(minio, "Service", "minio")["spec"]["ports"]
    assert port["port"] == 9000
    assert may_reach(render(OVERLAYS / "cpu-smoke"), TRAIN, PRIVATE, port["port"])
    policy = named(minio, "NetworkPolicy", "minio")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "egress" not in policy
    (rule,) = policy["ingress"]
    for labels, may in ((TRAIN, True), (ORCHESTRATOR, True), ({}, False)):
        assert any(selects(peer["podSelector"], labels) for peer in rule["from"]) is may
    assert [p["port"] for p in rule["ports"]] == [9000]
