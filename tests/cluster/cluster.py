"""What tests do with a cluster: kubectl as a person types it, runs of the pipeline, and the storage beside it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.layout import ROOT
from tests.cluster.node import Node
from tests.cluster.reads import Lost, Manifest, Reads, while_away
from tools.submit import copied

#: What a pod needs to know of the storage; the rest of a client's variables are about files of this machine.
FOR_PODS = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")

#: What kubectl says while nobody listens, or the server has only begun to.
AWAY = ("connection refused", "was refused", "EOF", "connection reset", "TLS handshake", "apiserver not ready")


class CommandFailed(Exception):
    """kubectl said no; the message is all that it said."""


@dataclass(frozen=True)
class Cluster:
    """A cluster and one namespace of it."""

    kubectl: Sequence[str]
    s3: Mapping[str, str]
    reads: Reads
    namespace: str = "vcot"
    node: Node | None = None
    """The node of these tests; None on a cluster of the user's."""

    def run(self, *words: str, stdin: str | None = None) -> str:
        command = [*self.kubectl, "--namespace", self.namespace, *words]
        done = while_away(
            lambda: subprocess.run(command, input=stdin, capture_output=True, text=True, check=False),
            lambda done: done.returncode != 0 and any(word in done.stderr for word in AWAY),
        )
        if done.returncode:
            raise CommandFailed(f"kubectl {' '.join(words)}: {done.stderr.strip()}\n{done.stdout.strip()}")
        return done.stdout

    def apply(self, *objects: Manifest) -> str:
        return self.run("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def create(self, manifest: Manifest) -> Manifest:
        found: Manifest = json.loads(self.run("create", "-o", "json", "-f", "-", stdin=json.dumps(manifest)))
        return found

    def get(self, kind: str, name: str) -> Manifest | None:
        """One object; kinds in the plural."""
        return self.reads.get(self.namespace, kind, name)

    def list(self, kind: str, **labels: str) -> list[Manifest]:
        """Those with these labels, all if none is given; ``run="r1"`` is the label vcot/run."""
        selector = ",".join(f"vcot/{name}={value}" for name, value in labels.items())
        return self._items(kind, selector)

    def pods_of(self, job: str) -> list[Manifest]:
        found = self._items("pods", f"batch.kubernetes.io/job-name={job}")
        return sorted(found, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def _items(self, kind: str, selector: str) -> list[Manifest]:
        found: list[Manifest] = (self.reads.get(self.namespace, kind, selector=selector) or {})["items"]
        return found

    def logs(self, job: str) -> str:
        """Of all its pods, the oldest first."""
        return "".join(self.run("logs", pod["metadata"]["name"]) for pod in self.pods_of(job))

    # --- waiting ------------------------------------------------------------------------------------------------

    def until(self, what: str, ready: Callable[[], Any], seconds: float = 60) -> Any:
        """The first answer of `ready` that is not empty.

        Raises:
            AssertionError: none within the time; with what stands in the namespace.
        """
        deadline = time.monotonic() + seconds - Lost.seconds
        while True:
            if found := ready():
                return found
            if time.monotonic() > deadline + Lost.seconds:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.situation()}")
            time.sleep(0.5)

    def ended(self, job: str, seconds: float = 120) -> Manifest:
        """The condition Complete or Failed of a Job."""
        found: Manifest = self.until(f"{job} ends", lambda: self._end(job), seconds)
        return found

    def completes(self, job: str, seconds: float = 120) -> Manifest:
        """The Job, Complete."""
        end = self.ended(job, seconds)
        assert end["type"] == "Complete", f"{job}: {end['reason']}: {end['message']}\n{self.situation()}"
        there = self.get("jobs", job)
        assert there is not None
        return there

    def fails(self, job: str, seconds: float = 120) -> Manifest:
        """The condition Failed of a Job."""
        end = self.ended(job, seconds)
        assert end["type"] == "Failed", f"{job} is {end['type']}"
        return end

    def _end(self, job: str) -> Manifest | None:
        conditions = ((self.get("jobs", job) or {}).get("status") or {}).get("conditions") or []
        return next((c for c in conditions if c["type"] in ("Complete", "Failed") and c["status"] == "True"), None)

    def situation(self) -> str:
        """For a person who reads a failure: what there is, and the end of every log."""
        lines = [
            self.run("get", "jobs,pods", "-o", "wide"),
            self.run("get", "events", "--sort-by=.lastTimestamp")[-3000:],
        ]
        for pod in self.list("pods"):
            name = pod["metadata"]["name"]
            try:
                lines.append(f"--- {name}\n{self.run('logs', '--tail=15', name)}")
            except CommandFailed as error:
                lines.append(f"--- {name}: {error}")
        return "\n".join(lines)

    # --- disturbing ---------------------------------------------------------------------------------------------

    def evict(self, pod: str) -> None:
        """As a drain does it: through the Eviction API."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        }
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
        self.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s3-credentials"}, "stringData": values}
        )  # fmt: skip


@dataclass(frozen=True)
class Overlay:
    """A copy of k8s/ with an overlay in it, changed as a user would change it."""

    folder: Path
    run_id: str
    changes: Manifest = field(default_factory=dict)

    @classmethod
    def of(cls, place: Path, run_id: str, namespace: str, name: str = "cpu-smoke") -> Overlay:
        folder = copied(ROOT / "k8s", place / run_id, name, run_id)
        overlay = cls(folder, run_id)
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
        return self.edit(
            lambda k: k.setdefault("patches", []).append(
                {"target": {"kind": kind, "name": name}, "patch": yaml.safe_dump([*operations])}
            )
        )

    def orchestrator(self, *flags: str) -> Overlay:
        """More flags for the orchestrator, as --until or --only."""
        args = ["jobs.pipeline", "--where", "kubernetes", *flags]
        path = "/spec/template/spec/containers/0/args"
        return self.patch("Job", "pipeline", {"op": "replace", "path": path, "value": args})

    def apply(self, cluster: Cluster) -> str:
        return cluster.run("apply", "-k", str(self.folder))
