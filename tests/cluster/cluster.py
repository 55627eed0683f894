"""What tests do with a cluster: kubectl as a person types it, runs of the pipeline, and the storage beside it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.configuration import ADMIN, KUBECTL, ROOT
from tests.cluster.node import READY, Node, bring
from tools.gomodules import locked
from tools.submit import copied
from vcot.pipeline.client import ClusterClient, Manifest, connect
from vcot.pipeline.local import publish
from vcot.pipeline.orchestrator import Clock
from vcot.stage import Stop
from vcot.storage import Store

#: What a pod needs to know of the storage; the rest of a client's variables are about files of this machine.
FOR_PODS = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")

#: What kubectl says while nobody listens, or the server has only begun to.
AWAY = ("connection refused", "was refused", "EOF", "connection reset", "TLS handshake", "apiserver not ready")
AWAY_AT_MOST = 120.0
CLONE_NEWNET = 0x40000000


class CommandFailed(Exception):
    """kubectl said no; the message is all that it said."""


@dataclass(frozen=True)
class Cluster:
    """A cluster and one namespace of it: KUBECONFIG names it."""

    kubectl: Sequence[str]
    s3: Mapping[str, str]
    namespace: str = "vcot"
    node: Node | None = None
    """The node of these tests; None on a cluster of the user's."""

    @cached_property
    def api(self) -> ClusterClient:
        """For tests that wait: they ask often, on cores that the pods need, and a kubectl for each look costs them."""
        return connect(self.namespace, Clock(), Stop(), away=AWAY_AT_MOST, patience=0)

    def run(self, *words: str, stdin: str | None = None) -> str:
        command, begun = [*self.kubectl, "--namespace", self.namespace, *words], time.monotonic()
        while True:
            done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
            if not done.returncode:
                return done.stdout
            away = any(word in done.stderr for word in AWAY)
            if not away or time.monotonic() - begun > AWAY_AT_MOST:
                raise CommandFailed(f"kubectl {' '.join(words)}: {done.stderr.strip()}\n{done.stdout.strip()}")
            time.sleep(0.5)

    def apply(self, *objects: Manifest) -> str:
        return self.run("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def create(self, manifest: Manifest) -> Any:
        return json.loads(self.run("create", "-o", "json", "-f", "-", stdin=json.dumps(manifest)))

    def get(self, kind: str, name: str) -> Any:
        """The object, or None."""
        return self.api.get(kind, name)

    def list(self, kind: str, **labels: str) -> list[Manifest]:
        """Those with these labels, all if none is given; ``run="r1"`` is the label vcot/run."""
        return list(self.api.list(kind, labels=",".join(f"vcot/{name}={value}" for name, value in labels.items())))

    def pods_of(self, job: str) -> list[Manifest]:
        found = self.api.list("Pod", labels=f"batch.kubernetes.io/job-name={job}")
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def terminated(self, job: str) -> Any:
        """How the last pod of a Job ended: exitCode, message, startedAt, finishedAt."""
        return self.pods_of(job)[-1]["status"]["containerStatuses"][0]["state"]["terminated"]

    def logs(self, job: str) -> str:
        """Of all its pods, the oldest first."""
        return "".join(self.run("logs", pod["metadata"]["name"]) for pod in self.pods_of(job))

    # --- waiting ------------------------------------------------------------------------------------------------

    def until(self, what: str, ready: Callable[[], Any], seconds: float = 60) -> Any:
        """The first answer of `ready` that is not empty.

        Raises:
            AssertionError: none within the time; with what stands in the namespace.
        """
        deadline = time.monotonic() + seconds
        while True:
            asked = time.monotonic()
            if found := ready():
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.situation()}")
            deadline += max(0.0, time.monotonic() - asked - 5)  # a test beside this one stops the API server
            time.sleep(0.5)

    def ended(self, job: str, how: str, seconds: float) -> Any:
        """The condition Complete or Failed of a Job."""

        def end() -> Manifest | None:
            conditions = ((self.get("Job", job) or {}).get("status") or {}).get("conditions") or []
            return next((c for c in conditions if c["type"] in ("Complete", "Failed") and c["status"] == "True"), None)

        found = self.until(f"{job} ends", end, seconds)
        said = f"{job} is {found['type']}: {found.get('reason')}: {found.get('message')}"
        assert found["type"] == how, f"{said}\n{self.situation()}"
        return found

    def completes(self, job: str, seconds: float = 120) -> Any:
        """The Job, Complete."""
        self.ended(job, "Complete", seconds)
        return self.get("Job", job)

    def fails(self, job: str, seconds: float = 120) -> Any:
        """The condition Failed of a Job."""
        return self.ended(job, "Failed", seconds)

    def situation(self) -> str:
        """For a person who reads a failure: what there is, and the end of every log."""
        lines = [
            self.run("get", "jobs,pods", "-o", "wide"),
            self.run("get", "events", "--sort-by=.lastTimestamp")[-3000:],
        ]
        for pod in self.list("Pod"):
            name = pod["metadata"]["name"]
            try:
                lines.append(f"--- {name}\n{self.run('logs', '--tail=15', name)}")
            except CommandFailed as error:
                lines.append(f"--- {name}: {error}")
        return "\n".join(lines)

    # --- disturbing ---------------------------------------------------------------------------------------------

    def evict(self, pod: str) -> None:
        """As a drain does it: through the Eviction API."""
        metadata = {"name": pod, "namespace": self.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.run("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))

    def running_pod(self, job: str, seconds: float = 120) -> str:
        """Name of a pod of the Job whose container runs, and that is not on its way out."""

        def find() -> str | None:
            for pod in self.pods_of(job):
                states = [c["state"] for c in pod["status"].get("containerStatuses", ())]
                if states and all("running" in s for s in states) and "deletionTimestamp" not in pod["metadata"]:
                    return str(pod["metadata"]["name"])
            return None

        return str(self.until(f"a pod of {job} runs", find, seconds))

    # --- a namespace and what belongs into it ---------------------------------------------------------------------

    @contextmanager
    def own_namespace(self, name: str) -> Iterator[Cluster]:
        """A namespace under Pod Security `restricted`, with the keys of the storage; gone at the end."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        there = replace(self, namespace=name)
        try:
            there.give_keys()
            yield there
        finally:
            self.run("delete", "namespace", name, "--wait=false")

    def give_keys(self) -> None:
        values = {name: self.s3[name] for name in FOR_PODS if self.s3.get(name)}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-credentials"}}
        self.apply(secret | {"stringData": values})


@dataclass(frozen=True)
class Overlay:
    """A copy of k8s/ with an overlay in it, changed as a user would change it."""

    folder: Path
    run_id: str

    @classmethod
    def of(cls, place: Path, run_id: str, namespace: str, name: str = "cpu-smoke") -> Overlay:
        overlay = cls(copied(ROOT / "k8s", place / run_id, name, run_id), run_id)
        overlay.edit(lambda k: k.update(namespace=namespace))
        # Several tests run at once: no pod waits until another leaves a core
        requests = "/spec/jobTemplate/spec/template/spec/containers/0/resources/requests"
        return overlay.patch("CronJob", "stage-.*", {"op": "replace", "path": f"{requests}/cpu", "value": "20m"})

    @property
    def pipeline(self) -> str:
        return f"pipeline-{self.run_id}"

    def edit(self, change: Callable[[Manifest], None]) -> Overlay:
        """Changes kustomization.yaml."""
        path = self.folder / "kustomization.yaml"
        kustomization = yaml.safe_load(path.read_text())
        change(kustomization)
        path.write_text(yaml.safe_dump(kustomization, sort_keys=False))
        return self

    def settings(self, stage: str, **values: object) -> Overlay:
        """``settings("train", num_train_epochs=2)`` is a last word in settings/train.env."""
        path = self.folder / "settings" / f"{stage}.env"
        prefix = f"VCOT_{stage.upper()}_"
        names = {f"{prefix}{name.upper()}": value for name, value in values.items()}
        kept = [line for line in path.read_text().splitlines() if line.partition("=")[0] not in names]
        path.write_text("\n".join([*kept, *(f"{name}={value}" for name, value in names.items())]) + "\n")
        return self

    def patch(self, kind: str, name: str, *operations: Manifest) -> Overlay:
        """A JSON 6902 patch of one object."""
        patch = {"target": {"kind": kind, "name": name}, "patch": yaml.safe_dump([*operations])}
        return self.edit(lambda k: k.setdefault("patches", []).append(patch))

    def orchestrator(self, *flags: str) -> Overlay:
        """More flags for the orchestrator, as --until or --only."""
        args = ["jobs.pipeline", "--where", "kubernetes", *flags]
        path = "/spec/template/spec/containers/0/args"
        return self.patch("Job", "pipeline", {"op": "replace", "path": path, "value": args})

    def without_pipeline(self) -> Overlay:
        """The templates alone: nothing runs by itself."""
        removed = {"patch": "$patch: delete\napiVersion: batch/v1\nkind: Job\nmetadata: {name: pipeline}\n"}
        self.edit(lambda k: k.pop("replacements", None))
        return self.edit(lambda k: k.setdefault("patches", []).append(removed))

    def apply(self, cluster: Cluster) -> str:
        return cluster.run("apply", "-k", str(self.folder))


# --- what every test and measurement begins with --------------------------------------------------------------------


@contextmanager
def cluster_on(node: Node) -> Iterator[Cluster]:
    """A node with the project's images and the data of overlay cpu-smoke; inside, this process is in its network."""
    if READY not in os.environ:
        bring(("data", "gpu"))
    with network_of(node.pid), pytest.MonkeyPatch.context() as environment:
        for name in [n for n in os.environ if n.startswith(("AWS_", "VCOT_", "KUBE"))]:
            environment.delenv(name)
        for name, value in (node.s3 | {"KUBECONFIG": str(ADMIN)}).items():
            environment.setenv(name, value)
        publish_example()
        yield Cluster([str(KUBECTL)], node.s3, node=node)


def publish_example() -> None:
    """Where overlay cpu-smoke looks for them, and where `make local-train` puts them."""
    with at_a_time("example"):
        for folder in ("blood-cells", "rehearsal"):
            publish(Store(), ROOT / "examples" / folder, f"s3://vcot/examples/{folder}")


def at_a_time(what: str) -> AbstractContextManager[object]:
    """Tests run in several processes, and share what is made once."""
    return locked(Path(tempfile.gettempdir()) / f"vcot-cluster-{what}.lock", f"another process makes the {what}")


@contextlib.contextmanager
def network_of(pid: int) -> Iterator[None]:
    """This thread, and all that it starts, in the network namespace of that process: clients need no tricks then."""
    with open("/proc/self/ns/net") as here, open(f"/proc/{pid}/ns/net") as there:  # noqa: PTH123
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(here.fileno())


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
