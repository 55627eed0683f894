"""What must hold for every overlay with every component, whatever it is for."""

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import yaml

from tests.k8s.kustomize import ROOT, Manifest, everything, job_specs, named, of_kind, render, rendered
from vcot.settings import STAGES

Pods = list[tuple[str, Manifest, Manifest]]

CLUSTER_SCOPED = {"Namespace", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}


def size(quantity: str) -> float:
    """Bytes of 8Gi."""
    return float(quantity[:-2]) * {"Mi": 2**20, "Gi": 2**30}[quantity[-2:]]


def main_of(spec: Manifest) -> Manifest:
    (container,) = spec["template"]["spec"]["containers"]
    return container


@pytest.fixture(scope="module")
def pods() -> Pods:
    """(``<variant> <kind>/<name>``, the Job's spec, the spec of its pods) of all that becomes pods."""
    specs = [(f"{name} {where}", spec) for name, objects in everything() for where, spec in job_specs(objects)]
    return [(where, spec, spec["template"]["spec"]) for where, spec in specs]


def stages(objects: Sequence[Manifest]) -> Iterator[tuple[Manifest, Manifest]]:
    """(CronJob, spec of its Job) of each."""
    return ((one, one["spec"]["jobTemplate"]["spec"]) for one in of_kind(objects, "CronJob"))


# --- a pod ----------------------------------------------------------------------------------------------


def test_every_pod_is_admitted_under_restricted(pods: Pods) -> None:
    for where, _, pod in pods:
        security = pod["securityContext"]
        assert security["runAsNonRoot"], where
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert security["runAsUser"] == security["fsGroup"] == 10001, where
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), where
        assert {kind for volume in pod["volumes"] for kind in volume} == {"name", "emptyDir"}, where
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            of_it = container["securityContext"]
            assert of_it["allowPrivilegeEscalation"] is False, where
            assert of_it["readOnlyRootFilesystem"] is True, where
            assert of_it["capabilities"] == {"drop": ["ALL"]}, where
            assert not any("hostPort" in port for port in container.get("ports", [])), where


def test_a_job_alone_replaces_its_pods_and_ends_for_good_where_trying_again_is_no_use(pods: Pods) -> None:
    for where, spec, pod in pods:
        assert pod["restartPolicy"] == "Never", where
        assert spec["podReplacementPolicy"] == "Failed", where
        rules = spec["podFailurePolicy"]["rules"]
        gang = spec.get("completionMode") == "Indexed"
        if gang:  # several nodes restart together
            ranks = {one["name"]: one.get("value") for one in main_of(spec)["env"]}["PET_NNODES"]
            assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (int(ranks), int(ranks), 0)
        assert [rule["action"] for rule in rules] == (["FailJob"] if gang else ["Ignore", "FailJob"]), where
        codes = rules[-1]["onExitCodes"]
        assert codes["containerName"] == main_of(spec)["name"], where
        assert codes["values"] == sorted(set(codes["values"]) - {0}), where  # as the API server wants them
        if "/pipeline-" not in where:
            assert 0 < spec["activeDeadlineSeconds"] <= 7 * 86400, where


def test_only_stages_of_the_gpu_pool_ask_for_a_gpu_and_then_compute_on_it() -> None:
    for name, objects in everything():
        for cron_job, spec in stages(objects):
            where, main = f"{name} {cron_job['metadata']['name']}", main_of(spec)
            pool, stage = (cron_job["metadata"]["labels"][f"vcot/{label}"] for label in ("pool", "stage"))
            tolerated = {one.get("key") for one in spec["template"]["spec"]["tolerations"]}
            assert "nvidia.com/gpu" not in main["resources"]["requests"], where  # the limit is the request
            asked = int(main["resources"]["limits"].get("nvidia.com/gpu", 0))
            assert ("nvidia.com/gpu" in tolerated) == (pool == "gpu"), where
            if pool == "gpu":
                devices = {one["name"]: one.get("value") for one in main["env"]}
                assert devices[f"VCOT_{stage.upper()}_DEVICE"] == ("cuda" if asked else "cpu"), where
            else:
                assert not asked, where


def test_the_small_chain_needs_no_gpu_and_fits_one_small_node() -> None:
    for where, spec in job_specs(rendered("cpu-smoke")):
        resources = main_of(spec)["resources"]
        assert "nvidia.com/gpu" not in resources["limits"], where
        assert resources["requests"]["cpu"].endswith("m"), where
        assert size(resources["limits"]["memory"]) <= 3 * 2**30, where


def test_disk_and_shared_memory_are_asked_for_as_they_may_be_used(pods: Pods) -> None:
    for where, spec, pod in pods:
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in main_of(spec)["volumeMounts"]}
        shared = {"shm": "/dev/shm"} if "shm" in volumes else {}
        served = {"vllm": "/tmp/vllm"} if "vllm" in volumes else {}  # what training and server both see
        assert mounts == {"scratch": "/scratch", "tmp": "/tmp"} | shared | served, where
        if where.startswith("cpu-smoke"):  # limits there say what is too much, not what is expected
            continue
        resources = main_of(spec)["resources"]
        on_disk = sum(size(one["sizeLimit"]) for one in volumes.values() if "medium" not in one)
        assert on_disk <= size(resources["requests"]["ephemeral-storage"]), where
        if shared:
            assert size(volumes["shm"]["sizeLimit"]) < size(resources["limits"]["memory"]) / 2, where


# --- rights ---------------------------------------------------------------------------------------------


def test_stages_have_no_token_and_nobody_has_a_secret_but_the_one_it_needs(pods: Pods) -> None:
    for where, spec, pod in pods:
        orchestrator = "/pipeline-" in where
        assert pod["serviceAccountName"] == ("orchestrator" if orchestrator else "stage"), where
        assert pod["automountServiceAccountToken"] is orchestrator, where
        assert pod["enableServiceLinks"] is False, where
        sources = [source["secretRef"] for source in main_of(spec)["envFrom"] if "secretRef" in source]
        teacher = {"teacher-credentials": True} if where.endswith("CronJob/stage-distill") else {}
        assert {one["name"]: one["optional"] for one in sources} == {"s3-credentials": True} | teacher, where
        for variable in main_of(spec).get("env", []):
            assert "value" not in variable or not re.search(r"KEY|SECRET|TOKEN|PASSWORD", variable["name"]), where
    for name, objects in everything():
        assert not of_kind(objects, "Secret", "ClusterRole", "ClusterRoleBinding"), name


RIGHTS = {
    ("batch", "cronjobs"): {"get", "list"},
    ("batch", "jobs"): {"get", "list", "create", "patch"},
    ("", "configmaps"): {"get", "list", "create", "patch", "delete"},
    ("", "pods"): {"list"},
    ("", "events"): {"list"},
}
"""What the orchestrator may; nothing of it deletes a Job, or reads a Secret."""
SETS = {("jobset.x-k8s.io", "jobsets"): {"get", "list", "create", "patch"}}
QUEUES = {("kueue.x-k8s.io", "workloads"): {"list", "patch"}}


def test_the_orchestrator_may_do_what_it_needs_and_no_more() -> None:
    for name, objects in everything():
        granted = {
            (group, resource): set(rule["verbs"])
            for rule in named(objects, "Role", "orchestrator")["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
        }
        sets, queues = (any(word in name for word in (component, "all-")) for component in ("jobset", "kueue"))
        assert granted == RIGHTS | (SETS if sets else {}) | (QUEUES if queues else {}), name
        (binding,) = of_kind(objects, "RoleBinding")
        assert [(s["kind"], s["name"]) for s in binding["subjects"]] == [("ServiceAccount", "orchestrator")], name


# --- names and references -------------------------------------------------------------------------------


def test_templates_say_with_which_run_they_were_applied() -> None:
    """By the name of a ConfigMap, the same as in the pipeline's Job: it ends in a hash that depends on the RUN_ID."""
    for name, objects in everything():
        (pipeline,) = of_kind(objects, "Job")
        sources = main_of(pipeline["spec"])["envFrom"]
        (run_env,) = (source["configMapRef"]["name"] for source in sources if "configMapRef" in source)
        run_id = named(objects, "ConfigMap", run_env)["data"]["RUN_ID"]
        assert pipeline["metadata"]["name"] == f"pipeline-{run_id}", name
        assert re.fullmatch(r"run-[a-z0-9]{10}", run_env), name
        templates = {one["metadata"]["name"]: main_of(spec) for one, spec in stages(objects)}
        templates.pop("reevaluate", None)
        assert templates.keys() == {f"stage-{stage}" for stage in STAGES}, name
        for main in templates.values():
            (stamp,) = (one for one in main["env"] if one["name"] == "RUN_ID")
            assert stamp["valueFrom"]["configMapKeyRef"]["name"] == run_env, name


def test_names_fit_with_the_longest_run_id_and_stand_in_the_namespace() -> None:
    longest_run = "r" * 30
    assert len(f"pipeline-{longest_run}") <= 63
    for variant, objects in everything():
        for one in objects:
            name = one["metadata"]["name"]
            assert len(name) <= (52 if one["kind"] == "CronJob" else 63), (variant, name)
            if name.startswith("stage-"):  # a host name of a shard's pod
                assert len(f"{longest_run}-{name.removeprefix('stage-')}-prepare-00000") <= 63, (variant, name)
            namespace = None if one["kind"] in CLUSTER_SCOPED else "vcot"
            assert one["metadata"].get("namespace") == namespace, (variant, name)


def test_what_is_referred_to_is_there_and_a_stage_sees_its_own_settings_alone() -> None:
    for name, objects in everything():
        maps = {one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}
        accounts = {one["metadata"]["name"] for one in of_kind(objects, "ServiceAccount")}
        for where, spec in job_specs(objects):
            assert spec["template"]["spec"]["serviceAccountName"] in accounts, (name, where)
            seen = {s["configMapRef"]["name"] for s in main_of(spec)["envFrom"] if "configMapRef" in s}
            assert seen <= maps.keys(), (name, where)
            keys = [variable.get("valueFrom", {}).get("configMapKeyRef") for variable in main_of(spec).get("env", [])]
            assert all(key is None or key["key"] in maps[key["name"]] for key in keys), (name, where)
            stage = where.partition("/")[2].removeprefix("stage-")
            own = {"reevaluate": {"settings-evaluate", "settings-reevaluate"}}.get(stage, {f"settings-{stage}"})
            if where.startswith("CronJob/"):
                assert {re.sub(r"-[a-z0-9]{10}$", "", one) for one in seen} == own, (name, where)


# --- the network ----------------------------------------------------------------------------------------


def selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    def holds(expression: Manifest) -> bool:
        if expression["operator"] == "NotIn":
            return labels.get(expression["key"]) not in expression["values"]
        assert expression["operator"] == "Exists"
        return expression["key"] in labels

    wanted = selector.get("matchLabels", {})
    return wanted.items() <= labels.items() and all(map(holds, selector.get("matchExpressions", [])))


def may_reach(objects: Sequence[Manifest], labels: Mapping[str, str], address: str, port: int) -> bool:
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


TRAIN, DISTILL = {"vcot/stage": "train"}, {"vcot/stage": "distill"}
ORCHESTRATOR = {"vcot/role": "orchestrator", "vcot/stage": "pipeline"}
METADATA, METADATA_6, POD_IDENTITY, POD_IDENTITY_6, PUBLIC, PRIVATE = (
    "169.254.169.254", "fd00:ec2::254", "169.254.170.23", "fd00:ec2::23", "52.216.0.1", "10.1.2.3"
)  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "address", "ports"),
    [(TRAIN, PUBLIC, {443}), (TRAIN, PRIVATE, {443, 9000}), (DISTILL, PUBLIC, {443}), ({}, PUBLIC, set()),
     (ORCHESTRATOR, PRIVATE, {443, 6443, 9000})],
    ids=["train", "train, private", "distill", "others", "orchestrator"],
)  # fmt: skip
def test_pods_reach_what_they_need_and_nothing_else(labels: Mapping[str, str], address: str, ports) -> None:
    assert {port for port in (80, 443, 6443, 8000, 9000) if may_reach(rendered("gpu"), labels, address, port)} == ports


def test_the_way_to_a_teacher_leads_into_no_private_network_and_needs_no_storage() -> None:
    without = [one for one in rendered("gpu") if one["metadata"]["name"] != "storage"]
    assert may_reach(without, DISTILL, PUBLIC, 443)
    assert not may_reach(without, TRAIN, PUBLIC, 443)
    teacher = [named(rendered("gpu"), "NetworkPolicy", "teacher")]
    assert may_reach(teacher, DISTILL, PUBLIC, 443)
    assert may_reach(teacher, DISTILL, "2606:4700::1", 443)
    private = (PRIVATE, "172.31.0.1", "192.168.1.1", "100.64.0.1", "127.0.0.1", METADATA, METADATA_6, "fd12::1")
    assert not [a for a in private for port in (80, 443, 8000) if may_reach(teacher, DISTILL, a, port)]


def test_nothing_comes_in_and_nobody_reaches_the_rights_of_the_node() -> None:
    for name, objects in everything():
        deny = named(objects, "NetworkPolicy", "default-deny")["spec"]
        assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, name
        for labels in (TRAIN, DISTILL, ORCHESTRATOR):
            for address in (METADATA, METADATA_6):
                assert not any(may_reach(objects, labels, address, port) for port in (80, 443)), name
            for resolver in (METADATA, "169.254.20.10"):  # Cloud DNS of GKE: the metadata's address, another port
                assert may_reach(objects, labels, resolver, 53), name
        for agent in (POD_IDENTITY, POD_IDENTITY_6):
            assert may_reach(objects, TRAIN, agent, 80) is any(word in name for word in ("irsa", "all-")), name
        doors = {p["metadata"]["name"] for p in of_kind(objects, "NetworkPolicy") if p["spec"].get("ingress")}
        ranks = {"ranks": "jobset", "trainjob-ranks": "trainjob"}
        assert doors == {policy for policy, word in ranks.items() if word in name or "all-" in name}, name


# --- what is beside the overlays ------------------------------------------------------------------------


def test_the_queue_of_the_example_covers_all_that_stages_ask_for() -> None:
    queues = list(yaml.safe_load_all((ROOT / "k8s/examples/kueue-queues.yaml").read_text()))
    (group,) = named(queues, "ClusterQueue", "vcot")["spec"]["resourceGroups"]
    asked: dict[str, Any] = {}
    queued = set()
    for cron_job, spec in stages(rendered("gpu-kueue")):
        asked |= main_of(spec)["resources"]["requests"] | main_of(spec)["resources"]["limits"]
        queued.add(cron_job["spec"]["jobTemplate"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"])
    assert set(asked) == set(group["coveredResources"])
    assert {one["name"] for flavor in group["flavors"] for one in flavor["resources"]} == set(asked)
    assert {one["metadata"]["name"] for one in of_kind(queues, "LocalQueue")} == queued


def test_stages_reach_minio_and_nobody_else_does() -> None:
    minio = render(ROOT / "k8s/minio")
    assert {one["kind"] for one in minio} == {"Deployment", "Service", "NetworkPolicy"}  # and no Secret
    template = named(minio, "Deployment", "minio")["spec"]["template"]
    (port,) = named(minio, "Service", "minio")["spec"]["ports"]
    assert port["port"] == 9000
    assert may_reach(rendered("cpu-smoke"), TRAIN, PRIVATE, port["port"])
    policy = named(minio, "NetworkPolicy", "minio")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert (policy["policyTypes"], "egress" in policy) == (["Ingress", "Egress"], False)
    (rule,) = policy["ingress"]
    for labels, may in ((TRAIN, True), (ORCHESTRATOR, True), ({}, False)):
        assert any(selects(peer["podSelector"], labels) for peer in rule["from"]) is may
    assert [p["port"] for p in rule["ports"]] == [9000]
