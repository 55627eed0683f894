"""A short-lived Job of one pod that tries what cannot be seen from outside: whether the cluster takes such a pod, its
image comes, and the storage keeps from inside what vcot builds on; and how findings are told.
"""

from __future__ import annotations

import contextlib
import copy
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from vcot.errors import SettingsError, VcotError
from vcot.pipeline.client import ClusterClient, Manifest, Refused
from vcot.pipeline.orchestrator import Clock
from vcot.pipeline.progress import NOT_STARTED, Ended, why_not_running
from vcot.pipeline.templates import CONTAINER
from vcot.settings import OLDEST_DRIVER

AGAIN = "correct that, and look again: make k8s-doctor"
LABEL, JOB_NAME = "vcot/doctor", "batch.kubernetes.io/job-name"
GPU = "nvidia.com/gpu"
LASTS = 20.0
"""Seconds after which what holds a pod up is no passing matter any more, and a pull that was not refused goes well."""
LIFE = 600
"""Seconds after which the cluster removes a trial by itself, should the doctor be killed."""


@dataclass(frozen=True)
class Finding:
    """`missing` has to be put right before a run can end well; a `note` is for a person to judge."""

    kind: Literal["ok", "missing", "note"]
    words: str
    fix: str = ""

    @property
    def line(self) -> str:
        mark = "MISSING" if self.kind == "missing" else self.kind
        return f"{mark:7} {self.words}" + (f"\n        → {self.fix}" if self.fix else "")


ok, missing, note = partial(Finding, "ok"), partial(Finding, "missing"), partial(Finding, "note")


def trial_job(
    cluster: ClusterClient, pod: Manifest, runs: Mapping[str, Any] | None, pull_secrets: Sequence[str]
) -> Manifest:
    """A Job of one such pod that does nothing, or runs something else; that it could be started is the news.

    Args:
        runs: fields that take the place of the container's.
        pull_secrets: what the ServiceAccount will bring, so that a private registry is asked with its keys.
    """
    template, name = copy.deepcopy(pod), f"doctor-{secrets.token_hex(4)}"
    spec = template["spec"]
    (main, *_) = spec["containers"]
    main.pop("args", None)
    main |= runs or {"command": ["python", "-c", "pass"], "env": [], "envFrom": []}
    main["name"] = CONTAINER
    spec["restartPolicy"] = "Never"
    account = spec.pop("serviceAccountName", None)
    with contextlib.suppress(Refused):  # before the overlay is applied for the first time it is not there
        if account and cluster.get("ServiceAccount", account):
            spec["serviceAccountName"] = account
    spec.pop("priorityClassName", None)  # a trial puts nobody else off a node
    if pull_secrets:
        spec["imagePullSecrets"] = [{"name": each} for each in pull_secrets]
    labels = {**(template.get("metadata") or {}).get("labels", {}), LABEL: name}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {LABEL: name}},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": LIFE,
            "ttlSecondsAfterFinished": LIFE,
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def tried(
    cluster: ClusterClient, job: Manifest, names: Sequence[str], uri: str | None, empty_pools: bool, timeout: float
) -> Iterator[Finding]:
    """What becomes of the trial: whether a node takes it, its image comes, and what the probe of the storage said."""
    stages, (container, *_) = ", ".join(names), job["spec"]["template"]["spec"]["containers"]
    pulling_since, clock = None, Clock()
    try:
        for pod, events, held_up in _looks(cluster, job, clock, timeout):
            if held_up:
                yield _held_up(job, stages, held_up, empty_pools)
                return
            if pod is None:
                continue
            state = ((pod.get("status") or {}).get("containerStatuses") or [{}])[0].get("state") or {}
            ended = Ended.of(pod)
            if ended is not None or ("running" in state and uri is None):
                yield from _started(cluster, pod, stages, container)
                if uri is not None and ended is not None:
                    yield from _guarantees(ended.summary, ended.message or f"exit code {ended.exit_code}", uri)
                return
            refused = (state.get("waiting") or {}).get("reason") in NOT_STARTED
            if uri is not None or refused or not any(event.get("reason") == "Pulling" for event in events):
                pulling_since = None
            elif pulling_since is None:
                pulling_since = clock.now()
            elif clock.now() - pulling_since >= LASTS:  # a large one need not arrive
                yield from _started(cluster, pod, stages, container, "is being pulled, and no registry refuses it")
                return
    except VcotError as error:
        yield missing(f"pods of {stages} could not be tried: {error}", _fix(str(error)))
        return
    words = f"a pod of {stages} (image {container['image']}): no end after {timeout:.0f} s"
    yield missing(words, "look at its pod while it runs, or give it longer: TIMEOUT=600")


def _looks(
    cluster: ClusterClient, job: Manifest, clock: Clock, timeout: float
) -> Iterator[tuple[Manifest | None, list[Manifest], str | None]]:
    """Creates the Job, looks once a second, and deletes it when nobody wants to look any more.

    Yields:
        Its pod, the events about both, and what has kept it from starting for `LASTS` seconds now.

    Raises:
        SettingsError: the cluster refuses the Job.
    """
    name = job["metadata"]["name"]
    if (made := cluster.create("Job", job)) is None:
        raise SettingsError(f"there is a Job {name} already; try again")
    begun, held_since, held_by = clock.now(), clock.now(), None
    try:
        while clock.now() - begun < timeout:
            pods = list(cluster.list("Pod", labels=f"{JOB_NAME}={name}"))
            about = [name, *(pod["metadata"]["name"] for pod in pods)]
            events = [e for each in about for e in cluster.list("Event", fields=f"involvedObject.name={each}")]
            waiting = [pod for pod in pods if (pod.get("status") or {}).get("phase", "Pending") == "Pending"]
            now_by = why_not_running(made, waiting, [e for e in events if e.get("type") == "Warning"])
            if now_by is None or held_by is None:
                held_since = clock.now()
            held_by = now_by
            yield pods[0] if pods else None, events, held_by if clock.now() - held_since >= LASTS else None
            clock.sleep(1)
    finally:
        with contextlib.suppress(VcotError):
            cluster.delete("Job", name)


def _held_up(job: Manifest, stages: str, why: str, empty_pools: bool) -> Finding:
    spec = job["spec"]["template"]["spec"]
    why = re.sub(rf"{job['metadata']['name']}[\w-]*", f"a pod of {stages}", why)
    if "no node takes" not in why:
        return missing(f"{stages}: {why}", _fix(why))
    resources = spec["containers"][0].get("resources") or {}
    asked = (resources.get("limits") or {}) | (resources.get("requests") or {})
    labels = [f"{key}={value}" for key, value in (spec.get("nodeSelector") or {}).items()]
    room = [f"{amount} of {name}" for name, amount in asked.items()]
    fix = f"it asks for {', '.join(room) or 'nothing'}: give it such a node, or let the template ask for less"
    if labels:
        fix += f"; the label: kubectl label node <name> {' '.join(labels)}, or choose another pool component"
    fix += "; a taint that it does not tolerate: tolerate it in the pool component"
    if asked.get(GPU):
        fix += f"; {GPU} is announced by the device plugin (or GPU operator)"
    if empty_pools:
        return note(f"{why}; the pool has to scale from zero", f"if it is there already, {fix}")
    return missing(why, f"{fix}. If the pool is busy, or empty until a pod asks: make k8s-doctor EMPTY_POOLS=1")


def _started(
    cluster: ClusterClient, pod: Manifest, stages: str, container: Manifest, image: str = "can be pulled"
) -> Iterator[Finding]:
    node = pod["spec"].get("nodeName", "")
    yield ok(f"node {node} takes a pod of {stages}; image {container['image']} {image}")
    if not ((container.get("resources") or {}).get("limits") or {}).get(GPU):
        return
    with contextlib.suppress(Refused):
        labels = ((cluster.get("Node", node) or {}).get("metadata") or {}).get("labels") or {}
        # As NVIDIA's feature discovery labels it, under the name of today or the one before; unknown without it.
        said = labels.get("nvidia.com/cuda.driver-version.major", labels.get("nvidia.com/cuda.driver.major", ""))
        if said.isdecimal() and int(said) < OLDEST_DRIVER:
            fix = f"CUDA 13 needs {OLDEST_DRIVER} or newer: update the pool"
            yield missing(f"node {node} has NVIDIA driver {said}", fix)


def _guarantees(summary: Mapping[str, Any], words: str, uri: str) -> Iterator[Finding]:
    said = summary.get("guarantees")
    if not isinstance(said, dict) or not said:
        yield missing(f"storage, from inside the cluster: {words}", AGAIN)
        return
    broken = {name: fault for name, fault in said.items() if fault != "ok"}
    if not broken:
        yield ok(f"storage at {uri}, from inside the cluster: {', '.join(said)}")
    for name, fault in broken.items():
        fix = "vcot would lose data on this storage: use one, or a release of it, that keeps this"
        yield missing(f"storage, from inside the cluster: {name}: {fault}", fix)


def _fix(words: str) -> str:
    if "ImagePull" in words or "ImageNeverPull" in words or "InvalidImageName" in words:
        return (
            "push the image and write its name and digest under images: in the overlay; a registry with a login needs "
            "imagePullSecrets (docs/kubernetes.md, Install)"
        )
    if "quota" in words:
        return "raise the quota of the namespace, or free some of it"
    return AGAIN
