"""Looks at a cluster before anything is applied, and says what is missing, with the fix: ``make k8s-doctor``.

What an overlay would apply is held against what the cluster has: its version, the namespace, nodes for each template
(labels, taints, room), quotas, the Secret with the keys, the settings of all stages. Then short-lived Jobs try from
inside the cluster what cannot be seen from outside: whether the images come, and whether the storage keeps what vcot
builds on. Nothing else is created, and those Jobs are removed again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vcot import log
from vcot.errors import SettingsError, UsageError, VcotError
from vcot.pipeline.checking import judge
from vcot.pipeline.cluster import must_name_jobs
from vcot.pipeline.conductor import Clock
from vcot.pipeline.findings import Finding, missing, note, ok
from vcot.pipeline.kubectl import objects, overlay_folder, render
from vcot.pipeline.nodes import judge_pool
from vcot.pipeline.plan import IN_PARTS, make_plan
from vcot.pipeline.port import Change, Manifest, Refused
from vcot.pipeline.preflight import OLDEST, checked
from vcot.pipeline.quota import judge_quotas
from vcot.pipeline.submit import ROOT, containers, placeholder_images, runs_uri
from vcot.pipeline.trial import main_container, probe_storage, probing, trial_job, try_image
from vcot.stage import stop

if TYPE_CHECKING:
    from vcot.pipeline.kubernetes import Api

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
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
    stop.listen()
    try:
        wanted = Wanted.of(options.overlay, _rendered(options.overlay, options.rendered))
    except VcotError as error:
        print(missing(str(error), "correct that first").line)
        return SettingsError.exit_code
    faults = 0
    for finding in examine(wanted, options.empty_pools, None if options.no_trials else options.timeout):
        print(finding.line, flush=True)
        faults += finding.kind == "missing"
    print(f"\n{faults} missing" if faults else f"\nnothing is missing: make k8s-run OVERLAY={options.overlay}")
    return SettingsError.exit_code if faults else 0


def _rendered(overlay: str, given: Path | None) -> str:
    if given is None:
        return render(overlay_folder(ROOT / "k8s", overlay))
    return sys.stdin.read() if str(given) == "-" else given.read_text()


@dataclass(frozen=True)
class Wanted:
    """What an overlay would apply."""

    overlay: str
    objects: tuple[Manifest, ...]
    pipeline: Manifest

    @classmethod
    def of(cls, overlay: str, rendered: str) -> Wanted:
        """
        Raises:
            SettingsError: there is no Job of the pipeline in it.
        """
        there = tuple(objects(rendered))
        jobs = [one for one in there if one["kind"] == "Job" and one["metadata"]["name"].startswith("pipeline-")]
        if len(jobs) != 1:
            raise SettingsError(f"overlay {overlay}: {len(jobs)} Jobs pipeline-<RUN_ID>; there has to be one")
        return cls(overlay, there, jobs[0])

    @property
    def namespace(self) -> str:
        return str(self.pipeline["metadata"].get("namespace", "default"))

    @property
    def run_id(self) -> str:
        return str(self.pipeline["metadata"]["name"]).removeprefix("pipeline-")

    @property
    def templates(self) -> dict[str, Manifest]:
        """Stage (or "reevaluate") → its CronJob."""
        return {o["metadata"]["name"].removeprefix("stage-"): o for o in self.objects if o["kind"] == "CronJob"}

    @property
    def pods(self) -> dict[str, Manifest]:
        """What runs in it → its pod spec."""
        found = {name: t["spec"]["jobTemplate"]["spec"]["template"]["spec"] for name, t in self.templates.items()}
        return found | {"pipeline": self.pipeline["spec"]["template"]["spec"]}

    @property
    def config_maps(self) -> dict[str, dict[str, str]]:
        return {o["metadata"]["name"]: o.get("data") or {} for o in self.objects if o["kind"] == "ConfigMap"}

    def named(self, kind: str, name: str) -> Manifest | None:
        found = (o for o in self.objects if o["kind"] == kind and o["metadata"]["name"] == name)
        return next(found, None)


def examine(wanted: Wanted, empty_pools: bool, timeout: float | None) -> Iterator[Finding]:
    """Every finding, as it is found.

    Args:
        timeout: seconds for each trial; None: no trials.
    """
    from vcot.pipeline.kubernetes import connect

    # A person's own file is where kubectl looks for it, too.
    default = Path.home() / ".kube" / "config"
    if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" not in os.environ and default.exists():
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
    for image in placeholder_images(list(wanted.objects)):
        yield missing(f"image {image} is a placeholder", f"write your own under images: in {where}/kustomization.yaml")
    uri = runs_uri(list(wanted.objects))
    if not uri.startswith("s3://"):
        yield missing(f"RUNS_URI={uri}: pods share no folder", f"write s3://bucket/prefix in {where}/run.env")
    try:
        must_name_jobs(wanted.run_id)
        plan = make_plan(wanted.run_id, uri, {}, parts=IN_PARTS)
        checked(_Rendered(wanted, version), plan, judge)
    except (SettingsError, UsageError) as error:
        for line in str(error).splitlines():
            yield missing(f"settings: {line}", f"correct {where}/settings/ or run.env")
    else:
        yield ok(f"settings of {', '.join(dict.fromkeys(step.stage for step in plan.steps))}")


class _Rendered:
    """A cluster on which the overlay was applied and nothing else: what the conductor's own check is shown."""

    def __init__(self, wanted: Wanted, kubernetes: tuple[int, int]) -> None:
        self._wanted, self.namespace = wanted, wanted.namespace
        self._version = max(kubernetes, OLDEST)  # judged before, and worth one line

    def get(self, kind: str, name: str) -> Manifest | None:
        return self._wanted.named(kind, name)

    def version(self) -> tuple[int, int]:
        return self._version

    def create(self, kind: str, manifest: Manifest) -> Manifest | None:
        raise NotImplementedError("a check creates nothing")

    def list(self, kind: str, *, labels: str = "", fields: str = "", limit: int | None = None) -> Iterator[Manifest]:
        return iter(())

    def watch(self, kind: str, name: str, version: str, seconds: int) -> Iterator[Change]:
        return iter(())


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
    """The keys of the storage: in a Secret, or a role of the ServiceAccount in their place."""
    account = wanted.named("ServiceAccount", "stage") or {"metadata": {}}
    roles = [f"{key}={value}" for key, value in (account["metadata"].get("annotations") or {}).items() if key in ROLES]
    for name in sorted(_secret_names(wanted)):
        try:
            there = looking.get(f"/api/v1/namespaces/{{namespace}}/secrets/{name}")
        except Refused as error:
            yield note(f"Secret {name} could not be looked at: {error}", "the probe of the storage will tell")
            continue
        made = wanted.named("ExternalSecret", name)
        if there is not None:
            yield _judge_keys(name, there, bool(roles))
        elif made is not None:
            yield note(f"Secret {name} will be made by External Secrets once the overlay is applied")
        elif roles:
            yield ok(f"no Secret {name}: stages act as {', '.join(roles)}")
        else:
            yield missing(
                f"Secret {name}: there is none in namespace {looking.namespace}", _create(name, looking.namespace)
            )


def _secret_names(wanted: Wanted) -> set[str]:
    sources = [s for o in wanted.objects for c in containers(o) for s in c.get("envFrom") or []]
    return {source["secretRef"]["name"] for source in sources if "secretRef" in source}


def _judge_keys(name: str, secret: Manifest, has_role: bool) -> Finding:
    there = set(secret.get("data") or {})
    lacking = [key for key in KEYS if key not in there]
    if lacking and not has_role:
        has = f"; it has {', '.join(sorted(there))}" if there else "; it is empty"
        return missing(f"Secret {name} lacks {' and '.join(lacking)}{has}", "make it again, with keys of these names")
    return ok(f"Secret {name} ({', '.join(sorted(there))})")


def _create(name: str, namespace: str) -> str:
    literals = " ".join(f"--from-literal={key}=…" for key in ("AWS_ENDPOINT_URL_S3", "AWS_REGION", *KEYS))
    return f"kubectl -n {namespace} create secret generic {name} {literals} (AWS itself needs no endpoint)"


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
    templates = wanted.templates
    if "convert" not in templates:
        yield note("no template stage-convert: images and storage were not tried")
        return
    account = "stage" if looking.get("/api/v1/namespaces/{namespace}/serviceaccounts/stage") else None
    placeholders = placeholder_images(list(wanted.objects))
    template, uri = templates["convert"], runs_uri(list(wanted.objects)).rstrip("/") + "/_probe"
    tried = {main_image(template)}
    if tried & set(placeholders):
        yield note("storage could not be probed: the image of the probe is a placeholder")
    else:
        job = trial_job(_name(), template, account=account, **probing(template, wanted.config_maps, uri))
        yield from probe_storage(looking, job, uri, Clock(), timeout)
    for template in templates.values():
        image = main_image(template)
        if image not in tried and image not in placeholders:
            tried.add(image)
            quiet = {"command": ["python", "-c", "pass"], "env": [], "envFrom": []}
            yield try_image(looking, trial_job(_name(), template, account=account, **quiet), Clock(), timeout)


def _name() -> str:
    return f"doctor-{secrets.token_hex(4)}"


def main_image(template: Manifest) -> str:
    return str(main_container(template)["image"])


if __name__ == "__main__":
    sys.exit(main())
