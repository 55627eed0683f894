"""What pods tell: why one does not start, and how one ended. Plain dicts in, words for people out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vcot.pipeline.client import Manifest
from vcot.pipeline.orchestrator import in_words
from vcot.pipeline.rendering import CONTAINER, QUEUE

#: Why a container does not start → what to do.
NOT_STARTED: Mapping[str, str] = {
    "ErrImagePull": "is the image's name right, and may this cluster read that registry?",
    "ImagePullBackOff": "is the image's name right, and may this cluster read that registry?",
    "InvalidImageName": "set the image in the overlay's images:",
    "ErrImageNeverPull": "bring the image onto the node, or change imagePullPolicy",
    "CreateContainerConfigError": "make what it names, or apply the overlay again",
    "CreateContainerError": "see the events of the pod",
    "RunContainerError": "see the events of the pod",
}
_ON_ITS_WAY = ("ContainerCreating", "PodInitializing")


@dataclass(frozen=True)
class Ended:
    """How one pod ended."""

    pod: str
    exit_code: int | None
    """None where its container never came to tell one: put off by the node, moved away before it ran."""
    reason: str = ""
    """The kubelet's word, as OOMKilled or Evicted."""
    index: str | None = None
    """Which shard it made."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What the stage wrote into its termination message."""
    message: str = ""
    """Its last error line, or the end of its log."""
    memory: str = ""
    """Limit of its memory, as the template writes it."""
    at: str = ""
    disrupted: bool = False
    """Moved away by the cluster: drained, preempted, its node lost."""


def why_not_running(job: Manifest, pods: Iterable[Manifest], events: Iterable[Manifest]) -> str | None:
    """One line on what holds the Job's pods back; None where nothing is known to.

    Args:
        pods: those that are Pending, or that still stand in the way of such.
        events: warnings about the Job, those pods and Kueue's Workload of the Job, in any order.
    """
    pods, events = list(pods), sorted(events, key=_when)
    if job["spec"].get("suspend"):
        return _suspended(job, events)
    lines = [line for pod in pods if (line := _why_stopping(pod) or _why_pending(pod, events))]
    if lines:
        others = f" (and {len(lines) - 1} more pods)" if len(lines) > 1 else ""
        return lines[0] + others
    newest = max((pod["metadata"].get("creationTimestamp") or "" for pod in pods), default="")
    newest = newest[:19]  # to the second: what all times of the API have
    refused = (e for e in reversed(events) if e.get("reason") == "FailedCreate" and _when(e) >= newest)
    return next((_refused(e["message"]) for e in refused), None)


def how_it_ended(pod: Manifest) -> Ended | None:
    """None while it runs, or where the cluster does not know."""
    status = pod.get("status") or {}
    ended = (_main_of(status.get("containerStatuses")).get("state") or {}).get("terminated")
    if ended is None and status.get("phase") not in ("Failed", "Succeeded"):
        return None
    ended = ended or {}
    resources = _main_of(pod["spec"]["containers"]).get("resources") or {}
    summary, message = _said(ended.get("message") or "")
    labels = pod["metadata"].get("labels") or {}
    return Ended(
        pod=pod["metadata"]["name"],
        exit_code=ended.get("exitCode"),
        reason=status.get("reason") or ended.get("reason") or "",
        index=labels.get("batch.kubernetes.io/job-completion-index"),
        summary=summary,
        message=" ".join((message or status.get("message") or "").split()),
        memory=str((resources.get("limits") or {}).get("memory", "")),
        at=ended.get("finishedAt") or "",
        disrupted=any(
            c["type"] == "DisruptionTarget" and c["status"] == "True" for c in status.get("conditions") or []
        ),
    )


def in_short(ended: Ended, template: str) -> str:
    """How a pod ended and what to change, in one line that begins with a space or a colon."""
    why = why_it_ended(ended, template)
    code = f" with exit code {in_words(ended.exit_code)}" if ended.exit_code is not None else ""
    return f"{code}{': ' if why else ''}{why}"


def why_it_ended(ended: Ended, template: str) -> str:
    """The same without its exit code; empty where nothing is known.

    Args:
        template: what to call the place where resources are set.
    """
    if ended.reason == "OOMKilled":
        limit = f"its limit of {ended.memory}" if ended.memory else "its limit"
        return (
            f"the kernel killed it for using more memory than {limit} (OOMKilled): raise resources.limits.memory "
            f"of {template}, or let the stage use less"
        )
    if ended.reason == "Evicted":
        return f"the node put it off: {ended.message or 'no reason was given'}"
    if ended.disrupted:
        return "the cluster moved it away"
    return ended.message


# --- not started yet -------------------------------------------------------------------------------------


def _suspended(job: Manifest, events: list[Manifest]) -> str:
    queue = (job["metadata"].get("labels") or {}).get(QUEUE)
    if queue:
        said = [e["message"] for e in events if e["involvedObject"].get("kind") == "Workload"]
        why = f": {_shortened(said[-1])}" if said else "; `kubectl get workloads` says what it waits for"
        return f"Kueue has not admitted it yet (queue {queue}){why}"
    return "it is suspended, and not by this orchestrator; set spec.suspend to false"


def _why_stopping(pod: Manifest) -> str | None:
    if not pod["metadata"].get("deletionTimestamp"):
        return None
    node = pod["spec"].get("nodeName", "")
    return (
        f"{pod['metadata']['name']} is still being stopped on {node}, and another one starts only when it is gone; "
        f"if that node is lost for good: kubectl delete node {node}"
    )


def _why_pending(pod: Manifest, events: list[Manifest]) -> str | None:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] != "True":
            return f"no node takes {name}: {condition.get('message') or condition.get('reason')}"
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if not reason or reason in _ON_ITS_WAY:
            continue
        hint = NOT_STARTED.get(reason, "see the events of the pod")
        message = _shortened(waiting.get("message") or "")
        return f"{name} cannot start, {reason}: {message + '; ' if message else ''}{hint}"
    for event in reversed(events):  # a volume that cannot be mounted, a sandbox that cannot be made
        # Here it has its node, so that none was found for it is past.
        if event["involvedObject"].get("name") == name and event.get("reason") != "FailedScheduling":
            return f"{name} cannot start, {event.get('reason')}: {_shortened(event.get('message') or '')}"
    return None


def _refused(message: str) -> str:
    """A pod that the API server does not let in: the Job is there, and its pods are not."""
    if "exceeded quota" in message:
        return f"the quota of the namespace is too small: {_shortened(message)}"
    if "violates PodSecurity" in message:
        return f"the template breaks the namespace's Pod Security: {_shortened(message)}"
    return f"its pods are refused: {_shortened(message)}"


def _shortened(message: str, most: int = 400) -> str:
    message = " ".join(message.split())
    return message if len(message) <= most else message[: most - 1] + "…"


def _when(event: Manifest) -> str:
    """Times of the API sort as text."""
    series = event.get("series") or {}
    return (
        series.get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp")
        or ""
    )


# --- ended -------------------------------------------------------------------------------------------------


def _main_of(containers: Iterable[Manifest] | None) -> Manifest:
    return next((one for one in containers or [] if one["name"] == CONTAINER), {})


def _said(text: str) -> tuple[Mapping[str, Any], str]:
    """Summary and last error line: from the stage's own JSON, or from the end of its log."""
    whole = _as_json(text)
    if whole:
        return whole, str(whole.get("message") or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return {}, ""
    return {}, _shortened(str(_as_json(lines[-1]).get("event") or lines[-1]))


def _as_json(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
