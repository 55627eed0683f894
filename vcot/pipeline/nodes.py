"""Does a node take a pod? The rules of the scheduler that decide on GPU pools: labels, taints, room.

Plain dicts in, words for people out. Other rules (spreading, ports, volumes) are left to the scheduler.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vcot.pipeline.findings import Finding, missing, note, ok
from vcot.pipeline.port import Manifest
from vcot.ranks import OLDEST_DRIVER

GPU = "nvidia.com/gpu"
_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "n": 1e-9, "u": 1e-6}
_UNITS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)}


@dataclass(frozen=True)
class Misfit:
    """Why one node does not take one pod, and what would make it."""

    words: str
    fix: str


def quantity(text: str | float) -> float:
    """``500m`` is 0.5, ``24Gi`` is 25769803776, ``1e3`` is 1000."""
    found = re.fullmatch(r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)([numkMGTPE]|[KMGTPE]i)?", str(text))
    if found is None:
        raise ValueError(f"{text!r} is no quantity of Kubernetes, as 500m or 24Gi")
    return float(found[1]) * _UNITS[found[2] or ""]


def requests(pod: Manifest) -> dict[str, float]:
    """Resource → what the pod asks for: the sum over its containers, or what an init container needs by itself.

    Where only a limit is written, that is what is asked for.
    """
    total: dict[str, float] = {}
    for container in pod["containers"]:
        for name, amount in _asked(container).items():
            total[name] = total.get(name, 0.0) + amount
    for container in pod.get("initContainers") or []:
        for name, amount in _asked(container).items():
            total[name] = max(total.get(name, 0.0), amount)
    return total


def _asked(container: Manifest) -> dict[str, float]:
    resources = container.get("resources") or {}
    written = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: quantity(amount) for name, amount in written.items()}


def judge_pool(pods: Mapping[str, Manifest], nodes: Sequence[Manifest], *, may_be_empty: bool = False) -> list[Finding]:
    """A finding for each group of pods for which the same is true.

    Args:
        pods: what runs in it ("train") → its pod spec.
        may_be_empty: a pool without a node is a pool that scales from zero.
    """
    said: dict[Finding, list[str]] = {}
    for name, pod in pods.items():
        said.setdefault(_judge(pod, nodes, may_be_empty), []).append(name)
    return [Finding(f.kind, f.words.replace("{}", ", ".join(names)), f.fix) for f, names in said.items()]


def _judge(pod: Manifest, nodes: Sequence[Manifest], may_be_empty: bool) -> Finding:
    asked = requests(pod)
    near = {node["metadata"]["name"]: misfits(pod, node) for node in nodes}
    if takers := [name for name, reasons in near.items() if not reasons]:
        return ok(f"{_some(takers)} for {{}}{_gpus(asked)}")
    if asked.get(GPU) and not any(_allocatable(node).get(GPU) for node in nodes):
        words = f"no node has {GPU}, which is asked for by {{}}"
        if may_be_empty:
            return note(f"{words}; the pool has to scale from zero")
        return missing(
            words,
            "add GPU nodes, and the device plugin (or GPU operator) that announces their GPUs; if the pool is empty "
            "until a pod asks for it: make k8s-doctor EMPTY_POOLS=1",
        )
    if not nodes:
        if may_be_empty:
            return note("the cluster has no nodes; they have to come when {} asks for one")
        return missing("the cluster has no nodes", "add some")
    has_gpus = [n["metadata"]["name"] for n in nodes if _allocatable(n).get(GPU)] if asked.get(GPU) else list(near)
    nearest = min(has_gpus, key=lambda name: (len(near[name]), name))
    reasons = near[nearest]
    words = f"no node takes {{}}; the nearest, {nearest}, {' and '.join(reason.words for reason in reasons)}"
    fix = "; ".join(reason.fix for reason in reasons)
    if may_be_empty:  # that there are nodes of another pool says nothing of this one
        return note(f"{words}; the pool has to scale from zero", f"if it is that node's pool: {fix}")
    return missing(words, f"{fix}; if the pool is empty until a pod asks for it: make k8s-doctor EMPTY_POOLS=1")


def _some(names: Sequence[str]) -> str:
    return f"node {names[0]}" if len(names) == 1 else f"{len(names)} nodes, {names[0]} among them,"


def _gpus(asked: Mapping[str, float]) -> str:
    if not asked.get(GPU):
        return ""
    return f", with {asked[GPU]:.0f} GPU{'s' if asked[GPU] > 1 else ''} (driver {OLDEST_DRIVER} or newer is needed)"


def misfits(pod: Manifest, node: Manifest) -> list[Misfit]:
    """Every reason why this node does not take the pod; none where it does."""
    name, spec = node["metadata"]["name"], node.get("spec") or {}
    labels = node["metadata"].get("labels") or {}
    found = []
    if spec.get("unschedulable"):
        found.append(Misfit("is cordoned", f"kubectl uncordon {name}"))
    if not _ready(node):
        found.append(Misfit("is not ready", f"see kubectl describe node {name}"))
    found += _labels(pod, labels, name)
    found += _driver(pod, labels)
    found += _taints(pod, _lasting(spec.get("taints") or []), name)
    return found + _room(pod, node)


def _ready(node: Manifest) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _lasting(taints: Iterable[Manifest]) -> list[Manifest]:
    """Without those that the node's own state sets and clears (told by the state)."""
    return [taint for taint in taints if not taint["key"].startswith("node.kubernetes.io/")]


def _labels(pod: Manifest, labels: Mapping[str, str], name: str) -> list[Misfit]:
    found = []
    for key, value in (pod.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            has = f" (it has {key}={labels[key]})" if key in labels else ""
            found.append(
                Misfit(
                    f"lacks the label {key}={value}{has}",
                    f"kubectl label node {name} {key}={value}{' --overwrite' if has else ''}, or on its pool; or "
                    "choose another pool component in the overlay",
                )
            )
    affinity = ((pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    terms = affinity.get("nodeSelectorTerms") or []
    if terms and not any(_fits(term, labels) for term in terms):
        found.append(
            Misfit("does not fit the node affinity of the template", "give it the labels that the affinity names")
        )
    return found


def _fits(term: Manifest, labels: Mapping[str, str]) -> bool:
    return all(_matches(e, labels) for e in term.get("matchExpressions") or [])


def _matches(expression: Manifest, labels: Mapping[str, str]) -> bool:
    key, values, value = expression["key"], expression.get("values") or [], labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case "Gt":
            return value is not None and value.isdigit() and int(value) > int(values[0])
        case "Lt":
            return value is not None and value.isdigit() and int(value) < int(values[0])
    return True


def _taints(pod: Manifest, taints: Sequence[Manifest], name: str) -> list[Misfit]:
    found = []
    for taint in taints:
        if taint["effect"] in ("NoSchedule", "NoExecute") and not _tolerated(taint, pod.get("tolerations") or []):
            said = f"{taint['key']}{'=' + taint['value'] if taint.get('value') else ''}:{taint['effect']}"
            fix = f"tolerate {taint['key']} in the pool component, or take it off: kubectl taint node {name} {said}-"
            found.append(Misfit(f"has the taint {said}, which is not tolerated", fix))
    return found


def _tolerated(taint: Manifest, tolerations: Iterable[Manifest]) -> bool:
    return any(
        t.get("key") in (taint["key"], None, "")
        and (t.get("operator", "Equal") == "Exists" or (t.get("value") or "") == (taint.get("value") or ""))
        and t.get("effect") in (taint["effect"], None, "")
        and (t.get("key") or t.get("operator") == "Exists")
        for t in tolerations
    )


def _allocatable(node: Manifest) -> dict[str, float]:
    status = node.get("status") or {}
    return {name: quantity(amount) for name, amount in (status.get("allocatable") or {}).items()}


def _driver(pod: Manifest, labels: Mapping[str, str]) -> list[Misfit]:
    """As NVIDIA's feature discovery labels it, under the name of today or the one before; unknown without it."""
    said = labels.get("nvidia.com/cuda.driver-version.major", labels.get("nvidia.com/cuda.driver.major", ""))
    if not requests(pod).get(GPU) or not said.isdecimal() or int(said) >= OLDEST_DRIVER:
        return []
    return [Misfit(f"has NVIDIA driver {said}", f"CUDA 13 needs {OLDEST_DRIVER} or newer: update the pool")]


def _room(pod: Manifest, node: Manifest) -> list[Misfit]:
    """Of the whole node: what runs there now is another day's matter."""
    allocatable = _allocatable(node)
    short = {n: amount for n, amount in requests(pod).items() if amount > allocatable.get(n, 0.0)}
    return [
        Misfit(
            f"has {written(name, allocatable.get(name, 0.0))} of {name} and not the {written(name, amount)} asked for",
            f"use larger nodes, or ask for less {name} in the template",
        )
        for name, amount in short.items()
    ]


def written(resource: str, amount: float) -> str:
    """An amount as a person writes it: 0.5 of cpu, 24Gi of memory."""
    if "memory" in resource or "storage" in resource:
        for power, letter in ((3, "G"), (2, "M")):
            if amount >= 1024**power:
                return f"{amount / 1024**power:.3g}{letter}i"
    return f"{amount:.4g}"
