"""Looks at a cluster before anything is applied, and says what is missing, with the fix: ``make k8s-doctor``.

What an overlay would apply is held against what the cluster has: its version, the namespace, nodes for each template
(labels, taints, room), quotas, the Secret with the keys, the settings of all stages. Then short-lived Jobs try from
inside the cluster what cannot be seen from outside: whether the images come, and whether the storage keeps what vcot
builds on. Nothing else is created, and those Jobs are removed again.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vcot import log
from vcot.errors import KeyboardStop, SettingsError, UsageError, VcotError
from vcot.pipeline.checking import judge
from vcot.pipeline.cluster import must_name_jobs
from vcot.pipeline.conductor import Clock
from vcot.pipeline.findings import Finding, missing, note, ok
from vcot.pipeline.kubectl import overlay_folder, render
from vcot.pipeline.nodes import judge_pool
from vcot.pipeline.plan import IN_PARTS, Plan, make_plan
from vcot.pipeline.port import Manifest, Refused
from vcot.pipeline.preflight import OLDEST, checked
from vcot.pipeline.quota import judge_quotas
from vcot.pipeline.submit import ROOT
from vcot.pipeline.trial import QUIET, main_container, probe_storage, probing, trial_job, try_image
from vcot.pipeline.wanted import PLACEHOLDER, Rendered, Wanted
from vcot.stage import stop

if TYPE_CHECKING:
    from vcot.pipeline.kubernetes import Api

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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vcot.pipeline.doctor", description=__doc__)
    parser.add_argument("--overlay", default="gpu", help="a folder of k8s/overlays")
    parser.add_argument(
        "--rendered", type=Path, help="this file instead of an overlay: what kustomize made, - for stdin"
    )
    parser.add_argument("--empty-pools", action="store_true", help="pools may have no node until a pod asks for one")
    parser.add_argument("--no-trials", action="store_true", help="create nothing: images and storage are not tried")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each trial")
    options = parser.parse_args(argv)
    log.configure("lines")
    try:
        wanted = Wanted.of(options.overlay, _rendered(options.overlay, options.rendered))
    except VcotError as error:
        print(missing(str(error), "correct that first").line)
        return SettingsError.exit_code
    faults = 0
    try:
        for finding in examine(wanted, options.empty_pools, None if options.no_trials else options.timeout):
            print(finding.line, flush=True)
            faults += finding.kind == "missing"
    except VcotError as error:
        print(missing(f"the look ended early: {error}", "correct that, and look again: make k8s-doctor").line)
        return SettingsError.exit_code
    except KeyboardInterrupt:  # a trial that was under way is removed by then
        return KeyboardStop.exit_code
    print(f"\n{faults} missing" if faults else f"\nnothing is missing: make k8s-run OVERLAY={options.overlay}")
    return SettingsError.exit_code if faults else 0


def _rendered(overlay: str, given: Path | None) -> str:
    if given is None:
        return render(overlay_folder(ROOT / "k8s", overlay))
    return sys.stdin.read() if str(given) == "-" else given.read_text()


def examine(wanted: Wanted, empty_pools: bool, timeout: float | None) -> Iterator[Finding]:
    """Every finding, as it is found.

    Args:
        timeout: seconds for each trial; None: no trials.
    """
    from vcot.pipeline.kubernetes import connect

    # A person's own file is where kubectl looks for it, too.
    default = Path.home() / ".kube" / "config"
    if not os.environ.get("KUBECONFIG") and "KUBERNETES_SERVICE_HOST" not in os.environ and default.exists():
        os.environ["KUBECONFIG"] = str(default)
    try:
        api = connect(wanted.namespace, Clock(), stop, away=10)
        looking = Looking(api)
        version = api.version()
    except VcotError as error:
        yield missing(
            f"the cluster does not answer: {error}", "choose it: kubectl config use-context …, or KUBECONFIG=…"
        )
        return
    yield _version(version)
    yield from _manifests(wanted, version)
    yield from _operators(wanted, looking)
    yield from _nodes(wanted, looking, empty_pools)
    namespace = _namespace(wanted, looking)
    yield namespace
    if namespace.kind == "missing":
        yield note("quotas, Secret, images and storage are looked at when the namespace is there")
        return
    yield from _quotas(wanted, looking)
    yield from _secrets(wanted, looking)
    yield from _run(wanted, looking)
    if timeout is not None:
        yield from _trials(wanted, looking, timeout)


class Looking:
    """The cluster as the doctor asks it: every answer at once, a refusal is an answer."""

    def __init__(self, api: Api) -> None:
        self._api, self.namespace = api, api.namespace

    def get(self, path: str) -> Manifest | None:
        """What lies at a path; {namespace} stands for ours. None where there is nothing.

        Raises:
            Refused: we may not look.
        """
        try:
            return self._api.request("GET", path.format(namespace=self.namespace), patience=0)
        except Refused as error:
            if error.status == 404:
                return None
            raise

    def items(self, path: str) -> list[Manifest]:
        return list((self.get(path) or {}).get("items") or [])

    def create(self, kind: str, manifest: Manifest) -> Manifest | None:
        return self._api.create(kind, manifest)

    def list(self, kind: str, *, labels: str = "", fields: str = "", limit: int | None = None) -> Iterator[Manifest]:
        return self._api.list(kind, labels=labels, fields=fields, limit=limit)

    def delete(self, kind: str, name: str) -> None:
        """With its pods, in the background; what is gone already is no news."""
        with contextlib.suppress(VcotError):
            path = f"/apis/batch/v1/namespaces/{self.namespace}/{kind.lower()}s/{name}"
            self._api.request("DELETE", path, [("propagationPolicy", "Background")], patience=0)


# --- what is there before a namespace is ------------------------------------------------------------------


def _version(version: tuple[int, int]) -> Finding:
    found, needed = (".".join(map(str, each)) for each in (version, OLDEST))
    if version < OLDEST:
        return missing(f"Kubernetes {found}: too old, vcot needs {needed} or later", "upgrade the cluster")
    return ok(f"Kubernetes {found}")


def _manifests(wanted: Wanted, version: tuple[int, int]) -> Iterator[Finding]:
    """The overlay by itself, judged as the conductor will judge it: images, the run's name, settings of all stages."""
    where = f"k8s/overlays/{wanted.overlay}"
    for image in wanted.placeholders:
        yield missing(f"image {image} is a placeholder", f"write your own under images: in {where}/kustomization.yaml")
    for role in _roles(wanted):
        if PLACEHOLDER.search(role):
            yield missing(f"{role} is a placeholder", "write your own role in k8s/components/irsa/kustomization.yaml")
    conductors = _roles_of(wanted.named("ServiceAccount", "conductor") or {"metadata": {}})
    for role in sorted(set(_roles(wanted)) - set(conductors)):
        yield missing(
            f"ServiceAccount conductor lacks {role}, which stage has: it asks the storage, too",
            "annotate both ServiceAccounts alike",
        )
    uri = wanted.runs_uri
    if not uri.startswith("s3://"):
        yield missing(f"RUNS_URI={uri}: pods share no folder", f"write s3://bucket/prefix in {where}/run.env")
    try:
        must_name_jobs(wanted.run_id)
        plan = _plan(wanted)
        checked(Rendered(wanted, version), plan, judge)
    except (SettingsError, UsageError) as error:
        for line in str(error).splitlines():
            yield missing(f"settings: {line}", f"correct {where}/settings/ or run.env")
    else:
        yield ok(f"settings of {', '.join(dict.fromkeys(step.stage for step in plan.steps))}")


def _plan(wanted: Wanted) -> Plan:
    """The steps that run.env asks for: ONLY, UNTIL and FROM_RUN are settings of the conductor.

    Raises:
        SettingsError, UsageError: they are none, or do not fit together.
    """
    run = wanted.run
    faults = judge(
        "pipeline", {f"VCOT_PIPELINE_{n}": v for n, v in run.items()} | {"VCOT_PIPELINE_WHERE": "kubernetes"}
    )
    if faults:
        raise SettingsError("\n".join(faults))
    only, from_run = (_words(run.get(name, "")) for name in ("ONLY", "FROM_RUN"))
    until = run.get("UNTIL") or None
    return make_plan(wanted.run_id, wanted.runs_uri, {}, only=only, until=until, from_run=from_run, parts=IN_PARTS)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _operators(wanted: Wanted, looking: Looking) -> Iterator[Finding]:
    """What the overlay's components need installed on the cluster."""
    groups = {one["apiVersion"].partition("/")[0] for one in wanted.objects if "/" in one["apiVersion"]}
    for template in wanted.templates.values():
        inner = template["spec"]["jobTemplate"].get("metadata") or {}
        annotations = {**(template["metadata"].get("annotations") or {}), **(inner.get("annotations") or {})}
        if annotations.get("vcot/engine") == "jobset":
            groups.add("jobset.x-k8s.io")
        if "kueue.x-k8s.io/queue-name" in (inner.get("labels") or {}):
            groups.add("kueue.x-k8s.io")
    for group in sorted(groups & set(OPERATORS)):
        if looking.get(f"/apis/{group}") is None:
            yield missing(
                f"the cluster does not know {group}", f"install {OPERATORS[group]}, or leave its component out"
            )
        else:
            yield ok(f"{OPERATORS[group]} is installed")


def _nodes(wanted: Wanted, looking: Looking, empty_pools: bool) -> Iterator[Finding]:
    try:
        nodes = looking.items("/api/v1/nodes")
    except Refused as error:
        yield note(f"nodes could not be looked at: {error}", "ask somebody who may list nodes to run this")
        return
    yield from judge_pool(wanted.pods, nodes, may_be_empty=empty_pools)


def _namespace(wanted: Wanted, looking: Looking) -> Finding:
    name = wanted.namespace
    try:
        there = looking.get(f"/api/v1/namespaces/{name}")
    except Refused as error:
        return note(f"namespace {name} could not be looked at: {error}")
    if there is None:
        own = wanted.named("Namespace", name) is not None
        make = (
            f"kubectl apply -f k8s/overlays/{wanted.overlay}/namespace.yaml"
            if own
            else f"kubectl create namespace {name}"
        )
        return missing(f"namespace {name}: there is none yet, and the Secret belongs into it", make)
    return ok(f"namespace {name}")


# --- in the namespace -----------------------------------------------------------------------------------------


def _quotas(wanted: Wanted, looking: Looking) -> Iterator[Finding]:
    try:
        quotas = looking.items("/api/v1/namespaces/{namespace}/resourcequotas")
        ranges = looking.items("/api/v1/namespaces/{namespace}/limitranges")
    except Refused as error:
        yield note(f"quotas could not be looked at: {error}")
        return
    yield from judge_quotas(wanted.pods, "pipeline", quotas, ranges)


def _secrets(wanted: Wanted, looking: Looking) -> Iterator[Finding]:
    """The keys of the storage (or a role of the ServiceAccount in their place), of a teacher, and of the registry."""
    for name in sorted(_secret_names(wanted)):
        try:
            there = looking.get(f"/api/v1/namespaces/{{namespace}}/secrets/{name}")
        except Refused as error:
            yield note(f"Secret {name} could not be looked at: {error}", "the probe of the storage will tell")
            continue
        yield _judge_secret(wanted, name, there)
        if name == S3_KEYS:
            yield from _way_out(wanted, there or {})
    for name in _pull_secrets(wanted):
        with contextlib.suppress(Refused):
            if looking.get(f"/api/v1/namespaces/{{namespace}}/secrets/{name}") is None:
                create = f"kubectl -n {looking.namespace} create secret docker-registry {name} --docker-server=…"
                yield missing(f"Secret {name}, with which images are pulled: there is none", create)


def _secret_names(wanted: Wanted) -> set[str]:
    """Those that the stages read; that of a teacher only where one is asked."""
    sources = [source for container in wanted.containers for source in container.get("envFrom") or []]
    names = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
    asks = any(data.get("VCOT_DISTILL_TEACHER") == "openai" for data in wanted.config_maps.values())
    return names if asks else names - {TEACHER_KEYS}


def _judge_secret(wanted: Wanted, name: str, secret: Manifest | None) -> Finding:
    needed, others = KEYS.get(name, ((), ()))
    literals = " ".join(f"--from-literal={key}=…" for key in (*others, *needed))
    create = f"kubectl -n {wanted.namespace} create secret generic {name} {literals}"
    create += " (AWS itself needs no endpoint)" if "AWS_ENDPOINT_URL_S3" in others else ""
    roles = _roles(wanted) if name == S3_KEYS else []
    there = sorted((secret or {}).get("data") or {})
    lacking = [key for key in needed if key not in there]
    if secret is not None and (not lacking or roles):
        return ok(f"Secret {name} ({', '.join(there)})")
    if secret is not None:
        has = f"it has {', '.join(there)}" if there else "it is empty"
        return missing(f"Secret {name} lacks {' and '.join(lacking)}; {has}", f"delete it, then {create}")
    if wanted.named("ExternalSecret", name) is not None:
        return note(f"Secret {name} will be made by External Secrets once the overlay is applied")
    if roles:
        return ok(f"no Secret {name}: stages act as {', '.join(roles)}")
    if name == S3_KEYS and _pod_identity(wanted):
        return note(f"no Secret {name}: EKS Pod Identity needs none; the probe of the storage tells if it works")
    return missing(f"Secret {name}: there is none in namespace {wanted.namespace}", create)


def _way_out(wanted: Wanted, secret: Manifest) -> Iterator[Finding]:
    """A port of the storage that the overlay's network policy would close; the probe, run before, would not show it."""
    given = (secret.get("data") or {}).get("AWS_ENDPOINT_URL_S3", "")
    policy = wanted.named("NetworkPolicy", "storage")
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


def _roles(wanted: Wanted) -> list[str]:
    return _roles_of(_account(wanted))


def _roles_of(account: Manifest) -> list[str]:
    annotations = account["metadata"].get("annotations") or {}
    return [f"{key}={value}" for key, value in annotations.items() if key in ROLES]


def _pod_identity(wanted: Wanted) -> bool:
    """Whether the way to its agent is open, which is all of it that an overlay holds."""
    return wanted.named("NetworkPolicy", "eks-pod-identity") is not None


def _pull_secrets(wanted: Wanted) -> list[str]:
    return [one["name"] for one in _account(wanted).get("imagePullSecrets") or []]


def _account(wanted: Wanted) -> Manifest:
    return wanted.named("ServiceAccount", "stage") or {"metadata": {}}


def _run(wanted: Wanted, looking: Looking) -> Iterator[Finding]:
    name = wanted.pipeline["metadata"]["name"]
    try:
        there = looking.get(f"/apis/batch/v1/namespaces/{{namespace}}/jobs/{name}")
    except Refused:
        return
    if there is not None:
        yield note(f"run {wanted.run_id} was started before (Job {name})", "a new RUN_ID in run.env, or make k8s-run")


# --- tried from inside ----------------------------------------------------------------------------------------


def _trials(wanted: Wanted, looking: Looking, timeout: float) -> Iterator[Finding]:
    """One Job that probes the storage with the image of the data stages, and one for every other image."""
    if (template := wanted.templates.get("convert")) is None:
        yield note("no template stage-convert: images and storage were not tried")
        return
    account, pull_secrets = _known_account(looking), _pull_secrets(wanted)
    placeholders = wanted.placeholders
    uri = f"{wanted.runs_uri}/_probe"
    tried = {main_image(template), *placeholders}
    if main_image(template) in placeholders:
        yield note("the storage could not be probed: the image of the probe is a placeholder")
    elif later := _keys_that_come_later(wanted, looking):
        yield note(f"the storage could not be probed: {later}", "look again when the overlay is applied")
        tried.remove(main_image(template))
    else:
        job = trial_job(_name(), template, probing(template, wanted.config_maps, uri), account, pull_secrets)
        yield from probe_storage(looking, job, uri, Clock(), timeout)
    for template in wanted.templates.values():
        if main_image(template) not in tried:
            tried.add(main_image(template))
            yield try_image(looking, trial_job(_name(), template, QUIET, account, pull_secrets), Clock(), timeout)


def _keys_that_come_later(wanted: Wanted, looking: Looking) -> str:
    """Why no pod could have the keys of the storage before the overlay is applied; empty where one could."""
    try:
        if looking.get(f"/api/v1/namespaces/{{namespace}}/secrets/{S3_KEYS}") is not None:
            return ""
        account = looking.get("/api/v1/namespaces/{namespace}/serviceaccounts/stage")
    except Refused:
        return ""
    if wanted.named("ExternalSecret", S3_KEYS) is not None:
        return "External Secrets makes its keys once the overlay is applied"
    if account is None and (_roles(wanted) or _pod_identity(wanted)):
        return "the rights of the stages come with their ServiceAccount"
    if account is not None and not set(_roles(wanted)) <= set(_roles_of(account)):
        return "the ServiceAccount of the stages, as it is now, has not the role that the overlay gives it"
    return ""


def _known_account(looking: Looking) -> str | None:
    """Before the overlay is applied for the first time, the ServiceAccount of the stages is not there."""
    try:
        return "stage" if looking.get("/api/v1/namespaces/{namespace}/serviceaccounts/stage") else None
    except Refused:
        return None


def _name() -> str:
    return f"doctor-{secrets.token_hex(4)}"


def main_image(template: Manifest) -> str:
    return str(main_container(template)["image"])


if __name__ == "__main__":
    sys.exit(main())
