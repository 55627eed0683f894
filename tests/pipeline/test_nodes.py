"""Which node takes which pod, and what is said of a pool that takes none."""

from __future__ import annotations

import pytest

from vcot.pipeline.nodes import judge_pool, misfits, quantity, requests


def node(name="gpu-1", *, labels=None, taints=(), ready="True", cordoned=False, **allocatable):
    """A node as a cluster shows it, with 8 cores and 64 GiB where nothing else is said."""
    room = {"cpu": "8", "memory": "64Gi", "ephemeral-storage": "100Gi", "pods": "110"} | allocatable
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": list(taints), **({"unschedulable": True} if cordoned else {})},
        "status": {"allocatable": room, "conditions": [{"type": "Ready", "status": ready}]},
    }


def pod(*, selector=None, tolerations=(), affinity=None, cpu="4", memory="24Gi", gpu=None):
    limits = {"memory": "48Gi"} | ({"nvidia.com/gpu": gpu} if gpu else {})
    found = {
        "containers": [{"name": "main", "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": limits}}],
        "tolerations": list(tolerations),
    }
    if selector:
        found["nodeSelector"] = selector
    if affinity:
        required = {"nodeSelectorTerms": [{"matchExpressions": terms} for terms in affinity]}
        found["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    return found


GPU = {"nvidia.com/gpu": "1"}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def words(pod, node) -> list[str]:
    return [misfit.words for misfit in misfits(pod, node)]


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("500m", 0.5),
        ("4", 4),
        ("24Gi", 24 * 2**30),
        ("1e3", 1000),
        ("128M", 128e6),
        ("1.5Ki", 1536),
        (3, 3),
        ("2k", 2000),
    ],
)
def test_quantities(text, amount):
    assert quantity(text) == pytest.approx(amount)


def test_what_is_no_quantity_is_told():
    with pytest.raises(ValueError, match="'24 GB' is no quantity"):
        quantity("24 GB")


def test_a_limit_is_a_request_where_none_is_written_and_init_containers_count_alone():
    asked = pod(gpu="2")
    asked["initContainers"] = [{"name": "first", "resources": {"requests": {"cpu": "6", "memory": "1Gi"}}}]
    assert requests(asked) == {"cpu": 6, "memory": 24 * 2**30, "nvidia.com/gpu": 2}


def test_a_node_that_fits_takes_the_pod():
    asked = pod(selector={"node-pool": "gpu"}, tolerations=[TOLERATION], gpu="1")
    assert words(asked, node(labels={"node-pool": "gpu"}, taints=[TAINT], **GPU)) == []


@pytest.mark.parametrize(
    ("asked", "there", "reason"),
    [
        (pod(selector={"node-pool": "gpu"}), node(), "lacks the label node-pool=gpu"),
        (
            pod(selector={"node-pool": "gpu"}),
            node(labels={"node-pool": "cpu"}),
            "lacks the label node-pool=gpu (it has node-pool=cpu)",
        ),
        (pod(), node(taints=[TAINT]), "has the taint nvidia.com/gpu=present:NoSchedule, which is not tolerated"),
        (pod(gpu="2"), node(**GPU), "has 1 of nvidia.com/gpu and not the 2 asked for"),
        (pod(gpu="1"), node(labels={"nvidia.com/cuda.driver-version.major": "575"}, **GPU), "has NVIDIA driver 575"),
        (pod(gpu="1"), node(labels={"nvidia.com/cuda.driver.major": "535"}, **GPU), "has NVIDIA driver 535"),
        (pod(memory="100Gi"), node(), "has 64Gi of memory and not the 100Gi asked for"),
        (pod(cpu="8500m"), node(), "has 8 of cpu and not the 8.5 asked for"),
        (pod(), node(ready="Unknown"), "is not ready"),
        (pod(), node(cordoned=True), "is cordoned"),
        (
            pod(affinity=[[{"key": "zone", "operator": "In", "values": ["a"]}]]),
            node(labels={"zone": "b"}),
            "does not fit the node affinity of the template",
        ),
    ],
)
def test_each_reason_is_told(asked, there, reason):
    assert words(asked, there) == [reason]


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"}, True),
        ({"key": "sku", "value": "gpu"}, True),  # Equal is the default, no effect is every effect
        ({"key": "sku", "value": "cpu"}, False),
        ({"key": "sku", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"operator": "Exists"}, True),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_tolerations(toleration, tolerated):
    taint = {"key": "sku", "value": "gpu", "effect": "NoSchedule"}
    assert (words(pod(tolerations=[toleration]), node(taints=[taint])) == []) is tolerated


def test_a_taint_that_only_prefers_and_the_nodes_own_are_no_reasons():
    taints = [
        {"key": "spot", "effect": "PreferNoSchedule"},
        {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},  # told as "is not ready"
    ]
    assert words(pod(), node(taints=taints)) == []


@pytest.mark.parametrize(
    ("terms", "fits"),
    [
        ([[{"key": "gpus", "operator": "Gt", "values": ["1"]}]], True),
        ([[{"key": "gpus", "operator": "Lt", "values": ["2"]}]], False),
        ([[{"key": "zone", "operator": "Exists"}], [{"key": "gpus", "operator": "Exists"}]], True),  # terms are or
        ([[{"key": "zone", "operator": "DoesNotExist"}, {"key": "gpus", "operator": "NotIn", "values": ["2"]}]], False),
    ],
)
def test_affinity(terms, fits):
    assert (words(pod(affinity=terms), node(labels={"gpus": "2"})) == []) is fits


def test_pods_for_which_the_same_is_true_are_told_together():
    pods = {"train": pod(gpu="1"), "evaluate": pod(gpu="1", cpu="2"), "convert": pod()}
    found = judge_pool(pods, [node(**GPU), node("cpu-1")])
    assert [(f.kind, f.words) for f in found] == [
        ("ok", "node gpu-1 for train, evaluate, with 1 GPU (driver 580 or newer is needed)"),
        ("ok", "2 nodes, gpu-1 among them, for convert"),
    ]


def test_a_driver_that_is_new_enough_or_unknown_or_not_needed_is_no_reason():
    label = "nvidia.com/cuda.driver-version.major"
    assert words(pod(gpu="1"), node(labels={label: "580"}, **GPU)) == []
    assert words(pod(gpu="1"), node(**GPU)) == []
    assert words(pod(), node(labels={label: "470"}, **GPU)) == []


def test_no_gpu_at_all_is_missing_or_a_pool_that_scales_from_zero():
    (finding,) = judge_pool({"train": pod(gpu="1")}, [node("cpu-1")])
    assert finding.kind == "missing"
    assert finding.words == "no node has nvidia.com/gpu, which is asked for by train"
    assert "device plugin" in finding.fix
    (finding,) = judge_pool({"train": pod(gpu="1")}, [node("cpu-1")], may_be_empty=True)
    assert finding.kind == "note"


def test_nodes_of_another_pool_say_nothing_of_one_that_scales_from_zero():
    asked = {"train": pod(selector={"gpu": "l4"}, gpu="1"), "convert": pod(cpu="16")}
    other = node(labels={"gpu": "a100"}, taints=[TAINT], **GPU)
    assert [finding.kind for finding in judge_pool(asked, [other])] == ["missing", "missing"]
    found = judge_pool(asked, [other], may_be_empty=True)
    assert [finding.kind for finding in found] == ["note", "note"]
    assert "lacks the label gpu=l4" in found[0].words
    assert "scale from zero" in found[0].words
    assert [finding.kind for finding in judge_pool(asked, [], may_be_empty=True)] == ["note", "note"]


def test_the_nearest_node_is_named_with_what_it_lacks_and_what_to_do():
    asked = pod(selector={"node-pool": "gpu"}, gpu="1")
    nodes = [node("cpu-1"), node("gpu-1", taints=[TAINT], **GPU), node("gpu-2", **GPU)]
    (finding,) = judge_pool({"train": asked}, nodes)
    assert finding.words == "no node takes train; the nearest, gpu-2, lacks the label node-pool=gpu"
    assert finding.fix.startswith("kubectl label node gpu-2 node-pool=gpu")
    assert finding.line.startswith("MISSING no node takes train")
