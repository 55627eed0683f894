"""Looks at a cluster before anything is applied, and says what is missing, with the fix: ``make k8s-doctor``.

What an overlay would apply is held against what the cluster has: its version, its operators, the namespace, the Secret
with the keys, the settings of all stages. The rest is tried: for each kind of pod of the overlay a short-lived Job of
one, with its image, resources, node selector and tolerations, finds out whether the cluster takes it, and the first of
them probes the storage from inside. Nothing else is created, and those Jobs are removed again.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import copy
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tools.overlay import PLACEHOLDER, Overlay, overlay_folder, render
from vcot import log
from vcot.errors import KeyboardStop, SettingsError, UsageError, VcotError
from vcot.pipeline.client import ClusterClient, Manifest, Refused, connect
from vcot.pipeline.executor import must_name_jobs
from vcot.pipeline.local import validate
from vcot.pipeline.orchestrator import Clock
from vcot.pipeline.plan import IN_PARTS, Plan, make_plan
from vcot.pipeline.pods import NOT_STARTED, how_it_ended, why_not_running
from vcot.pipeline.preflight import OLDEST, frozen_where_valid, templates_of
from vcot.pipeline.rendering import CONTAINER
from vcot.ranks import OLDEST_DRIVER
from vcot.settings import PREFIX, STAGES
from vcot.stage import stop
from vcot.teacher.addresses import read_address

S3_KEYS, TEACHER_KEYS = "s3-credentials", "teacher-credentials"
#: Secret → keys that it must have, and others that are worth a word.
KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    S3_KEYS: (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_ENDPOINT_URL_S3", "AWS_REGION")),
    TEACHER_KEYS: (("OPENAI_API_KEY",), ()),
}
ROLES = ("eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account", "azure.workload.identity/client-id")
"""Annotations of a ServiceAccount that give its pods rights without keys."""
#: API group that an object of the overlay needs → what to install.
OPERATORS: Mapping[str, str] = {
    "external-secrets.io": "External Secrets (component external-secrets)",
    "jobset.x-k8s.io": "JobSet (component multinode-jobset)",
    "kueue.x-k8s.io": "Kueue (component kueue)",
}
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
        mark = {"ok": "ok     ", "missing": "MISSING", "note": "note   "}[self.kind]
        return f"{mark} {self.words}" + (f"\n        → {self.fix}" if self.fix else "")


def ok(words: str) -> Finding:
    return Finding("ok", words)


def missing(words: str, fix: str) -> Finding:
    return Finding("missing", words, fix)


def note(words: str, fix: str = "") -> Finding:
    return Finding("note", words, fix)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.doctor", description=__doc__)
    parser.add_argument("--overlay", default="gpu", help="a folder of k8s/overlays")
    parser.add_argument(
        "--rendered", type=Path, help="this file instead of an overlay: what kustomize made, - for stdin"
    )
    parser.add_argument("--empty-pools", action="store_true", help="pools may have no node until a pod asks for one")
    parser.add_argument("--no-trials", action="store_true", help="create nothing: pools, images, storage are not tried")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each trial")
    options = parser.parse_args(argv)
    log.configure("lines")
    try:
        if options.rendered is None:
            rendered = render(overlay_folder(options.overlay))
        else:
            rendered = sys.stdin.read() if str(options.rendered) == "-" else options.rendered.read_text()
        overlay = Overlay.of(options.overlay, rendered)
    except VcotError as error:
        print(missing(str(error), "correct that first").line)
        return SettingsError.exit_code
    faults = 0
    try:
        for finding in examine(overlay, options.empty_pools, None if options.no_trials else options.timeout):
            print(finding.line, flush=True)
            faults += finding.kind == "missing"
    except VcotError as error:
        print(missing(f"the look ended early: {error}", AGAIN).line)
        return SettingsError.exit_code
    except KeyboardInterrupt:  # a trial that was under way is removed by then
        return KeyboardStop.exit_code
    print(f"\n{faults} missing" if faults else f"\nnothing is missing: make k8s-run OVERLAY={options.overlay}")
    return SettingsError.exit_code if faults else 0


def examine(overlay: Overlay, empty_pools: bool, timeout: float | None) -> Iterator[Finding]:
    """Every finding, as it is found.

    Args:
        timeout: seconds for each trial; None: no trials.
    """
    # A person's own file is where kubectl looks for it, too.
    default = Path.home() / ".kube" / "config"
    if not os.environ.get("KUBECONFIG") and "KUBERNETES_SERVICE_HOST" not in os.environ and default.exists():
        os.environ["KUBECONFIG"] = str(default)
    try:
        cluster = connect(overlay.namespace, Clock(), stop, away=10, patience=0)
        version = cluster.version()
    except VcotError as error:
        yield missing(
            f"the cluster does not answer: {error}", "choose it: kubectl config use-context …, or KUBECONFIG=…"
        )
        return
    found, needed = (".".join(map(str, each)) for each in (version, OLDEST))
    if version < OLDEST:
        yield missing(f"Kubernetes {found}: too old, vcot needs {needed} or later", "upgrade the cluster")
    else:
        yield ok(f"Kubernetes {found}")
    yield from _manifests(overlay)
    yield from _operators(overlay, cluster)
    namespace = _namespace(overlay, cluster)
    yield namespace
    if namespace.kind == "missing":
        yield note("Secret, pools, images and storage are looked at when the namespace is there")
        return
    yield from _secrets(overlay, cluster)
    job = overlay.pipeline["metadata"]["name"]
    with contextlib.suppress(Refused):
        if cluster.get("Job", job) is not None:
            words = f"run {overlay.run_id} was started before (Job {job})"
            yield note(words, "a new RUN_ID in run.env, or make k8s-run")
    if timeout is not None:
        yield from _trials(overlay, cluster, empty_pools, timeout)


# --- settings: the overlay by itself, judged as the orchestrator will judge it -------------------------------


def _manifests(overlay: Overlay) -> Iterator[Finding]:
    where = f"k8s/overlays/{overlay.name}"
    for image in overlay.placeholders:
        yield missing(f"image {image} is a placeholder", f"write your own under images: in {where}/kustomization.yaml")
    roles = _roles(overlay.named("ServiceAccount", "stage"))
    for role in roles:
        if PLACEHOLDER.search(role):
            yield missing(f"{role} is a placeholder", "write your own role in k8s/components/irsa/kustomization.yaml")
    for role in sorted(set(roles) - set(_roles(overlay.named("ServiceAccount", "conductor")))):
        yield missing(
            f"ServiceAccount conductor lacks {role}, which stage has: it asks the storage, too",
            "annotate both ServiceAccounts alike",
        )
    if not overlay.runs_uri.startswith("s3://"):
        words = f"RUNS_URI={overlay.runs_uri}: pods share no folder"
        yield missing(words, f"write s3://bucket/prefix in {where}/run.env")
    try:
        must_name_jobs(overlay.run_id)
        plan = _plan(overlay)
        templates = templates_of(overlay.named, overlay.namespace, plan)
        frozen_where_valid(overlay.named, overlay.namespace, plan, templates, validate)
    except (SettingsError, UsageError) as error:
        for line in str(error).splitlines():
            yield missing(f"settings: {line}", f"correct {where}/settings/ or run.env")
    else:
        yield ok(f"settings of {', '.join(templates)}")


def _plan(overlay: Overlay) -> Plan:
    """The steps that run.env asks for: ONLY, UNTIL and FROM_RUN are settings of the orchestrator.

    Raises:
        SettingsError, UsageError: they are none, or do not fit together.
    """
    run = overlay.run
    variables = {f"{PREFIX}PIPELINE_{name}": value for name, value in run.items()}
    if faults := validate("pipeline", variables | {f"{PREFIX}PIPELINE_WHERE": "kubernetes"}):
        raise SettingsError("\n".join(faults))
    only, from_run = ([w.strip() for w in run.get(n, "").split(",") if w.strip()] for n in ("ONLY", "FROM_RUN"))
    until = run.get("UNTIL") or None
    return make_plan(overlay.run_id, overlay.runs_uri, {}, only=only, until=until, from_run=from_run, parts=IN_PARTS)


def _roles(account: Manifest | None) -> list[str]:
    annotations = ((account or {}).get("metadata") or {}).get("annotations") or {}
    return [f"{key}={value}" for key, value in annotations.items() if key in ROLES]


# --- what the cluster has --------------------------------------------------------------------------------------


def _operators(overlay: Overlay, cluster: ClusterClient) -> Iterator[Finding]:
    """What the overlay's components need installed on the cluster."""
    groups = {one["apiVersion"].partition("/")[0] for one in overlay.objects if "/" in one["apiVersion"]}
    for template in overlay.templates.values():
        inner = template["spec"]["jobTemplate"].get("metadata") or {}
        annotations = {**(template["metadata"].get("annotations") or {}), **(inner.get("annotations") or {})}
        if annotations.get("vcot/engine") == "jobset":
            groups.add("jobset.x-k8s.io")
        if "kueue.x-k8s.io/queue-name" in (inner.get("labels") or {}):
            groups.add("kueue.x-k8s.io")
    for group in sorted(groups & set(OPERATORS)):
        if cluster.knows(group):
            yield ok(f"{OPERATORS[group]} is installed")
        else:
            fix = f"install {OPERATORS[group]}, or leave its component out"
            yield missing(f"the cluster does not know {group}", fix)


def _namespace(overlay: Overlay, cluster: ClusterClient) -> Finding:
    name = overlay.namespace
    try:
        if cluster.get("Namespace", name) is not None:
            return ok(f"namespace {name}")
    except Refused as error:
        return note(f"namespace {name} could not be looked at: {error}")
    own = f"kubectl apply -f k8s/overlays/{overlay.name}/namespace.yaml"
    make = own if overlay.named("Namespace", name) is not None else f"kubectl create namespace {name}"
    return missing(f"namespace {name}: there is none yet, and the Secret belongs into it", make)


def _secrets(overlay: Overlay, cluster: ClusterClient) -> Iterator[Finding]:
    """The keys of the storage (or a role of the ServiceAccount in their place), of a teacher, and of the registry."""
    sources = [source for container in overlay.containers for source in container.get("envFrom") or []]
    names = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
    if not any(data.get("VCOT_DISTILL_TEACHER") == "openai" for data in overlay.config_maps.values()):
        names.discard(TEACHER_KEYS)
    for name in sorted(names):
        try:
            there = cluster.get("Secret", name)
        except Refused as error:
            yield note(f"Secret {name} could not be looked at: {error}", "the probe of the storage will tell")
            continue
        yield _secret(overlay, name, there)
        if name == S3_KEYS:
            yield from _way_out(overlay, there or {})
    for name in _pull_secrets(overlay):
        with contextlib.suppress(Refused):
            if cluster.get("Secret", name) is None:
                create = f"kubectl -n {cluster.namespace} create secret docker-registry {name} --docker-server=…"
                yield missing(f"Secret {name}, with which images are pulled: there is none", create)


def _secret(overlay: Overlay, name: str, secret: Manifest | None) -> Finding:
    needed, others = KEYS.get(name, ((), ()))
    if name == TEACHER_KEYS:
        needed = _keys_of_endpoints(overlay) or needed
    literals = " ".join(f"--from-literal={key}=…" for key in (*others, *needed))
    create = f"kubectl -n {overlay.namespace} create secret generic {name} {literals}"
    create += " (AWS itself needs no endpoint)" if "AWS_ENDPOINT_URL_S3" in others else ""
    roles = _roles(overlay.named("ServiceAccount", "stage")) if name == S3_KEYS else []
    if secret is not None:
        there = sorted(secret.get("data") or {})
        lacking = [key for key in needed if key not in there]
        if not lacking or roles:
            return ok(f"Secret {name} ({', '.join(there)})")
        has = f"it has {', '.join(there)}" if there else "it is empty"
        return missing(f"Secret {name} lacks {' and '.join(lacking)}; {has}", f"delete it, then {create}")
    if overlay.named("ExternalSecret", name) is not None:
        return note(f"Secret {name} will be made by External Secrets once the overlay is applied")
    if roles:
        return ok(f"no Secret {name}: stages act as {', '.join(roles)}")
    if name == S3_KEYS and _pod_identity(overlay):
        return note(f"no Secret {name}: EKS Pod Identity needs none; the probe of the storage tells if it works")
    return missing(f"Secret {name}: there is none in namespace {overlay.namespace}", create)


def _keys_of_endpoints(overlay: Overlay) -> tuple[str, ...]:
    """The variables that hold the keys of --endpoints; none where there are no such, or they are no addresses, which
    the validation of the settings tells."""
    written = ",".join(data.get("VCOT_DISTILL_ENDPOINTS", "") for data in overlay.config_maps.values())
    with contextlib.suppress(ValueError):
        addresses = [read_address(one.strip()) for one in written.split(",") if one.strip()]
        return tuple(sorted({one.key or "OPENAI_API_KEY" for one in addresses}))
    return ()


def _way_out(overlay: Overlay, secret: Manifest) -> Iterator[Finding]:
    """A port of the storage that the overlay's network policy would close; the probe, run before, would not show it."""
    given = (secret.get("data") or {}).get("AWS_ENDPOINT_URL_S3", "")
    policy = overlay.named("NetworkPolicy", "storage")
    with contextlib.suppress(ValueError):  # no base64, or no URL: the probe of the storage tells
        endpoint = urlsplit(base64.b64decode(given).decode())
        port = endpoint.port or {"https": 443, "http": 80}.get(endpoint.scheme)
        if port is None or policy is None:
            return
        rules = policy["spec"].get("egress") or []
        if any("ports" not in rule for rule in rules):  # which is for every port
            return
        let_out = {str(one.get("port")) for rule in rules for one in rule["ports"]}
        if str(port) not in let_out:
            yield note(
                f"AWS_ENDPOINT_URL_S3 is on port {port}; NetworkPolicy storage lets out {', '.join(sorted(let_out))}",
                "add the port to `storage` in k8s/base/networkpolicy.yaml; a cluster that enforces policies closes it",
            )


def _pod_identity(overlay: Overlay) -> bool:
    """Whether the way to its agent is open, which is all of it that an overlay holds."""
    return overlay.named("NetworkPolicy", "eks-pod-identity") is not None


def _pull_secrets(overlay: Overlay) -> list[str]:
    return [one["name"] for one in (overlay.named("ServiceAccount", "stage") or {}).get("imagePullSecrets") or []]


# --- tried: pools, quotas, images, storage ------------------------------------------------------------------------


def _trials(overlay: Overlay, cluster: ClusterClient, empty_pools: bool, timeout: float) -> Iterator[Finding]:
    """One Job for each kind of pod: what decides where and whether it starts is the same for all of that kind."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(overlay.pods, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES)):
        pod = overlay.pods[name]
        (container, *_) = pod["spec"]["containers"]
        decides = ("nodeSelector", "affinity", "tolerations", "runtimeClassName")
        kind = [container["image"], container.get("resources"), *(pod["spec"].get(each) for each in decides)]
        kinds.setdefault(json.dumps(kind, sort_keys=True), []).append(name)
    uri, untried = f"{overlay.runs_uri}/_probe", set(overlay.placeholders)
    later = _keys_that_come_later(overlay, cluster)
    for names in kinds.values():
        pod = overlay.pods[names[0]]
        if pod["spec"]["containers"][0]["image"] in untried:
            what = "its image is a placeholder"
            yield note(f"pods of {', '.join(names)} were not tried: {what}")
            continue
        probed = "convert" in names and not later
        if "convert" in names and later:
            yield note(f"the storage could not be probed: {later}", "look again when the overlay is applied")
        job = _trial_job(overlay, cluster, pod, _probing(overlay, pod, uri) if probed else None)
        yield from _tried(cluster, job, names, uri if probed else None, empty_pools, timeout)


def _keys_that_come_later(overlay: Overlay, cluster: ClusterClient) -> str:
    """Why no pod could have the keys of the storage before the overlay is applied; empty where one could."""
    roles = _roles(overlay.named("ServiceAccount", "stage"))
    with contextlib.suppress(Refused):
        if cluster.get("Secret", S3_KEYS) is not None:
            return ""
        account = cluster.get("ServiceAccount", "stage")
        if overlay.named("ExternalSecret", S3_KEYS) is not None:
            return "External Secrets makes its keys once the overlay is applied"
        if account is None and (roles or _pod_identity(overlay)):
            return "the rights of the stages come with their ServiceAccount"
        if account is not None and not set(roles) <= set(_roles(account)):
            return "the ServiceAccount of the stages, as it is now, has not the role that the overlay gives it"
    return ""


def _probing(overlay: Overlay, pod: Manifest, uri: str) -> dict[str, Any]:
    """What a container runs to probe the storage: with the keys of the stage and nothing of its settings.

    ConfigMaps are written out, because they are not there before the overlay is applied.
    """
    (main, *_) = pod["spec"]["containers"]
    variables: dict[str, str] = {}
    for source in main.get("envFrom") or []:
        if "configMapRef" in source:
            data = overlay.config_maps.get(source["configMapRef"]["name"], {})
            variables |= {source.get("prefix", "") + name: value for name, value in data.items()}
    variables |= {variable["name"]: variable["value"] for variable in main.get("env") or [] if "value" in variable}
    kept = {name: value for name, value in variables.items() if not name.startswith(PREFIX) and "$(" not in value}
    env = [{"name": name, "value": value} for name, value in sorted((kept | {f"{PREFIX}PROBE_URI": uri}).items())]
    secrets_of_it = [source for source in main.get("envFrom") or [] if "configMapRef" not in source]
    return {"args": ["jobs.probe"], "env": env, "envFrom": secrets_of_it}


def _trial_job(overlay: Overlay, cluster: ClusterClient, pod: Manifest, runs: Mapping[str, Any] | None) -> Manifest:
    """A Job of one such pod that does nothing, or runs something else; that it could be started is the news."""
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
    if pull_secrets := _pull_secrets(overlay):
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


def _tried(
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
            ended = how_it_ended(pod)
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
    why = why.replace(f"no node takes {job['metadata']['name']}", f"no node takes {stages}")
    if "no node takes" not in why:
        return missing(f"a pod of {stages} does not start: {why}", _fix(why))
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


if __name__ == "__main__":
    sys.exit(main())
