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
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tools.overlay import PLACEHOLDER, Overlay, cluster_of, overlay_folder, render
from tools.trial import AGAIN, Finding, missing, note, ok, trial_job, tried
from vcot import logging
from vcot.errors import KeyboardStop, SettingsError, UsageError, VcotError
from vcot.pipeline.client import ClusterClient, Manifest, Refused
from vcot.pipeline.executor import must_name_jobs
from vcot.pipeline.local import validate
from vcot.pipeline.orchestrator import Plan, make_plan
from vcot.pipeline.templates import OLDEST, frozen_where_valid, templates_of, variables_of
from vcot.settings import PREFIX, STAGES

S3_KEYS, TEACHER_KEYS = "s3-credentials", "teacher-credentials"
#: Secret → keys that it must have, and others that are worth a word.
KEYS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    S3_KEYS: (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("AWS_ENDPOINT_URL_S3", "AWS_REGION")),
    TEACHER_KEYS: (("OPENAI_API_KEY",), ()),
}
ROLES = ("eks.amazonaws.com/role-arn", "iam.gke.io/gcp-service-account", "azure.workload.identity/client-id")
"""Annotations of a ServiceAccount that give its pods rights without keys."""
POD_IDENTITY = "eks-pod-identity"
"""The network policy that opens the way to its agent, which is all of it that an overlay holds."""
#: API group that an object of the overlay needs → what to install.
OPERATORS: Mapping[str, str] = {
    "external-secrets.io": "External Secrets (component external-secrets)",
    "jobset.x-k8s.io": "JobSet (component multinode-jobset)",
    "kueue.x-k8s.io": "Kueue (component kueue)",
}


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
    logging.configure("lines")
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
    try:
        cluster = cluster_of(overlay.namespace, away=10, patience=0)
        version = cluster.version()
    except VcotError as error:
        choose = "choose it: kubectl config use-context …, or KUBECONFIG=…"
        yield missing(f"the cluster does not answer: {error}", choose)
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
        if cluster.get("Job", job):
            yield note(
                f"run {overlay.run_id} was started before (Job {job})", "a new RUN_ID in run.env, or make k8s-run"
            )
    if timeout is not None:
        yield from _trials(overlay, cluster, empty_pools, timeout)


# --- settings: the overlay by itself, validated as the orchestrator will do it -------------------------------


def _manifests(overlay: Overlay) -> Iterator[Finding]:
    where = f"k8s/overlays/{overlay.name}"
    for image in overlay.placeholders:
        yield missing(f"image {image} is a placeholder", f"write your own under images: in {where}/kustomization.yaml")
    roles = _roles(overlay.named("ServiceAccount", "stage"))
    for role in roles:
        if PLACEHOLDER.search(role):
            yield missing(f"{role} is a placeholder", "write your own role in k8s/components/irsa/kustomization.yaml")
    for role in sorted(set(roles) - set(_roles(overlay.named("ServiceAccount", "orchestrator")))):
        words = f"ServiceAccount orchestrator lacks {role}, which stage has: it asks the storage, too"
        yield missing(words, "annotate both ServiceAccounts alike")
    if not overlay.runs_uri.startswith("s3://"):
        write = f"write s3://bucket/prefix in {where}/run.env"
        yield missing(f"RUNS_URI={overlay.runs_uri}: pods share no folder", write)
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
    return make_plan(overlay.run_id, overlay.runs_uri, only=only, until=until, from_run=from_run, in_parts=True)


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
            yield missing(f"the cluster does not know {group}", f"install {OPERATORS[group]}, or drop its component")


def _namespace(overlay: Overlay, cluster: ClusterClient) -> Finding:
    name = overlay.namespace
    try:
        if cluster.get("Namespace", name) is not None:
            return ok(f"namespace {name}")
    except Refused as error:
        return note(f"namespace {name} could not be looked at: {error}")
    own = f"kubectl apply -f k8s/overlays/{overlay.name}/namespace.yaml"
    make = own if overlay.named("Namespace", name) else f"kubectl create namespace {name}"
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
    if name == S3_KEYS and overlay.named("NetworkPolicy", POD_IDENTITY):
        return note(f"no Secret {name}: EKS Pod Identity needs none; the probe of the storage tells if it works")
    return missing(f"Secret {name}: there is none in namespace {overlay.namespace}", create)


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
            yield note(f"pods of {', '.join(names)} were not tried: its image is a placeholder")
            continue
        probed = "convert" in names and not later
        if "convert" in names and later:
            yield note(f"the storage could not be probed: {later}", "look again when the overlay is applied")
        job = trial_job(cluster, pod, _probing(overlay, pod, uri) if probed else None, _pull_secrets(overlay))
        yield from tried(cluster, job, names, uri if probed else None, empty_pools, timeout)


def _keys_that_come_later(overlay: Overlay, cluster: ClusterClient) -> str:
    """Why no pod could have the keys of the storage before the overlay is applied; empty where one could."""
    roles = _roles(overlay.named("ServiceAccount", "stage"))
    with contextlib.suppress(Refused):
        if cluster.get("Secret", S3_KEYS) is not None:
            return ""
        account = cluster.get("ServiceAccount", "stage")
        if overlay.named("ExternalSecret", S3_KEYS) is not None:
            return "External Secrets makes its keys once the overlay is applied"
        if account is None and (roles or overlay.named("NetworkPolicy", POD_IDENTITY)):
            return "the rights of the stages come with their ServiceAccount"
        if account is not None and not set(roles) <= set(_roles(account)):
            return "the ServiceAccount of the stages, as it is now, has not the role that the overlay gives it"
    return ""


def _probing(overlay: Overlay, pod: Manifest, uri: str) -> dict[str, Any]:
    """What a container runs to probe the storage: with the keys of the stage and nothing of its settings.

    ConfigMaps are written out, because they are not there before the overlay is applied.
    """
    variables, _ = variables_of(overlay.named, overlay.namespace, "probe", {"kind": "Job", "spec": {"template": pod}})
    kept = {name: value for name, value in variables.items() if not name.startswith(PREFIX) and "$(" not in value}
    env = [{"name": name, "value": value} for name, value in sorted((kept | {f"{PREFIX}PROBE_URI": uri}).items())]
    sources = pod["spec"]["containers"][0].get("envFrom") or []
    secrets_of_it = [source for source in sources if "configMapRef" not in source]
    return {"args": ["jobs.probe"], "env": env, "envFrom": secrets_of_it}


if __name__ == "__main__":
    sys.exit(main())
