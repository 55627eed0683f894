"""Short-lived Jobs that find out, from inside the cluster, what cannot be seen from outside: does an image come, does
the storage answer there as it should? They are made of a stage's own template, so that the same rules hold for them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vcot.errors import SettingsError, VcotError
from vcot.pipeline.conductor import Clock
from vcot.pipeline.findings import Finding, missing, ok
from vcot.pipeline.pods import NOT_STARTED, Ended, how_it_ended, why_not_running
from vcot.pipeline.port import Manifest
from vcot.pipeline.rendering import CONTAINER
from vcot.settings import PREFIX

LABEL = "vcot/doctor"
JOB_NAME = "batch.kubernetes.io/job-name"
LASTS = 20.0
"""Seconds after which what holds a pod up is no passing matter any more, and a pull that was not refused goes well."""
LIFE = 600
"""Seconds after which the cluster removes a trial by itself, should the doctor be killed."""


QUIET: Mapping[str, Any] = {"command": ["python", "-c", "pass"], "env": [], "envFrom": []}
"""A container that does nothing: that it could be started is the news."""


class Namespace(Protocol):
    """One namespace of a cluster, for somebody who may also delete."""

    def create(self, kind: str, manifest: Manifest) -> Manifest | None: ...
    def list(
        self, kind: str, *, labels: str = "", fields: str = "", limit: int | None = None
    ) -> Iterator[Manifest]: ...
    def delete(self, kind: str, name: str) -> None: ...


def trial_job(
    name: str, template: Manifest, container: Mapping[str, Any], account: str | None, pull_secrets: Sequence[str] = ()
) -> Manifest:
    """A Job of one small pod, like those of the template, that runs something else.

    Args:
        container: fields that take the place of the template's.
        account: ServiceAccount, where it is there already; else the namespace's own.
        pull_secrets: what the ServiceAccount will bring, so that a private registry is asked with its keys.
    """
    inner = copy.deepcopy(template["spec"]["jobTemplate"]["spec"]["template"])
    pod = inner["spec"]
    main = next(one for one in pod["containers"] if one["name"] == CONTAINER)
    main.pop("args", None)
    main |= dict(container) | {
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "64Mi"},
            "limits": {"cpu": "1", "memory": "512Mi"},
        }
    }
    for scheduling in ("nodeSelector", "affinity", "serviceAccountName"):
        pod.pop(scheduling, None)
    if account is not None:
        pod["serviceAccountName"] = account
    if pull_secrets:
        pod["imagePullSecrets"] = [{"name": each} for each in pull_secrets]
    labels = {**(inner.get("metadata") or {}).get("labels", {}), LABEL: name}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {LABEL: name}},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": LIFE,
            "ttlSecondsAfterFinished": LIFE,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def probing(template: Manifest, config_maps: Mapping[str, Mapping[str, str]], uri: str) -> dict[str, Any]:
    """What the container of a trial runs to probe the storage: with the keys of the stage and nothing of its settings.

    ConfigMaps are written out, because they are not there before the overlay is applied.
    """
    main = main_container(template)
    variables: dict[str, str] = {}
    sources = []
    for source in main.get("envFrom") or []:
        if "configMapRef" in source:
            data = config_maps.get(source["configMapRef"]["name"], {})
            variables |= {source.get("prefix", "") + name: value for name, value in data.items()}
        else:
            sources.append(source)
    for variable in main.get("env") or []:
        if "value" in variable:
            variables[variable["name"]] = variable["value"]
    kept = {name: value for name, value in variables.items() if not name.startswith(PREFIX) and "$(" not in value}
    env = [{"name": name, "value": value} for name, value in sorted(kept.items())]
    env.append({"name": f"{PREFIX}PROBE_URI", "value": uri})
    return {"args": ["jobs.probe"], "env": env, "envFrom": sources}


def main_container(template: Manifest) -> Manifest:
    containers = template["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    found: Manifest = next(one for one in containers if one["name"] == CONTAINER)
    return found


@dataclass(frozen=True)
class Look:
    """A trial as it stands at one moment."""

    pod: Manifest | None
    events: Sequence[Manifest]
    held_up: str | None
    """What has kept it from starting for `LASTS` seconds now."""


def looks(place: Namespace, job: Manifest, clock: Clock, timeout: float) -> Iterator[Look]:
    """Creates the Job, looks once a second, and deletes it when nobody wants to look any more.

    Raises:
        SettingsError: the cluster refuses the Job.
    """
    name = job["metadata"]["name"]
    if (made := place.create("Job", job)) is None:
        raise SettingsError(f"there is a Job {name} already; try again")
    begun, held_since, held_by = clock.now(), clock.now(), None
    try:
        while clock.now() - begun < timeout:
            pods = list(place.list("Pod", labels=f"{JOB_NAME}={name}"))
            about = [name, *(pod["metadata"]["name"] for pod in pods)]
            events = [e for each in about for e in place.list("Event", fields=f"involvedObject.name={each}")]
            waiting = [pod for pod in pods if (pod.get("status") or {}).get("phase", "Pending") == "Pending"]
            now_by = why_not_running(made, waiting, [e for e in events if e.get("type") == "Warning"])
            if now_by is None or held_by is None:
                held_since = clock.now()
            held_by = now_by
            yield Look(pods[0] if pods else None, events, held_by if clock.now() - held_since >= LASTS else None)
            clock.sleep(1)
    finally:
        place.delete("Job", name)


def probe_storage(place: Namespace, job: Manifest, uri: str, clock: Clock, timeout: float) -> list[Finding]:
    """Runs the probe in the cluster: what it says of each guarantee."""
    what = "the storage cannot be probed from inside the cluster"
    try:
        for look in looks(place, job, clock, timeout):
            if look.held_up:
                return [missing(f"{what}: {look.held_up}", _fix(look.held_up))]
            if look.pod is not None and (ended := how_it_ended(look.pod)) is not None:
                return [ok(f"image {_image(job)} can be pulled"), *_guarantees(ended, uri)]
    except VcotError as error:
        return [missing(f"{what}: {error}", _fix(str(error)))]
    return [
        missing(
            f"{what}: no end after {timeout:.0f} s", "look at its pod while it runs, or give it longer: TIMEOUT=600"
        )
    ]


def _guarantees(ended: Ended, uri: str) -> list[Finding]:
    said = ended.summary.get("guarantees")
    if not isinstance(said, dict) or not said:
        words = ended.message or f"the probe ended with exit code {ended.exit_code}"
        return [missing(f"storage, from inside the cluster: {words}", "correct that, and look again: make k8s-doctor")]
    broken = {name: words for name, words in said.items() if words != "ok"}
    if not broken:
        return [ok(f"storage at {uri}, from inside the cluster: {', '.join(said)}")]
    fix = "vcot would lose data on this storage: use one, or a release of it, that keeps this"
    return [missing(f"storage, from inside the cluster: {name}: {words}", fix) for name, words in broken.items()]


def try_image(place: Namespace, job: Manifest, clock: Clock, timeout: float) -> Finding:
    """Can the image be pulled? A large one need not arrive: a registry that refuses does so at once."""
    pulling_since = None
    try:
        for look in looks(place, job, clock, timeout):
            if look.held_up:
                return missing(f"image {_image(job)}: {look.held_up}", _fix(look.held_up))
            if look.pod is None:
                continue
            state = _state(look.pod)
            if "running" in state or "terminated" in state:
                return ok(f"image {_image(job)} can be pulled")
            refused = (state.get("waiting") or {}).get("reason") in NOT_STARTED
            if refused or not any(event.get("reason") == "Pulling" for event in look.events):
                pulling_since = None
            elif pulling_since is None:
                pulling_since = clock.now()
            elif clock.now() - pulling_since >= LASTS:
                return ok(f"image {_image(job)} is being pulled, and the registry does not refuse it")
    except VcotError as error:
        return missing(f"image {_image(job)}: {error}", _fix(str(error)))
    return missing(f"image {_image(job)}: no answer after {timeout:.0f} s", "give it longer: TIMEOUT=600")


def _state(pod: Manifest) -> Manifest:
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    return statuses[0].get("state") or {}


def _image(job: Manifest) -> str:
    return str(job["spec"]["template"]["spec"]["containers"][0]["image"])


def _fix(words: str) -> str:
    if "ImagePull" in words or "ImageNeverPull" in words or "InvalidImageName" in words:
        return (
            "push the image and write its name and digest under images: in the overlay; a registry with a login needs "
            "imagePullSecrets (docs/kubernetes.md, Install)"
        )
    if "no node takes" in words:
        return "the cluster has no room for one small pod: add a node, or free some"
    if "quota" in words:
        return "raise the quota of the namespace, or free some of it"
    return "correct that, and look again: make k8s-doctor"
