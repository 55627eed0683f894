"""What an overlay would apply, before it is applied: kustomize's output, and the questions that are asked of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vcot.errors import SettingsError
from vcot.pipeline.kubectl import objects
from vcot.pipeline.port import Manifest
from vcot.pipeline.preflight import OLDEST

PLACEHOLDER = re.compile(r"registry\.example\.com|sha256:0{64}|arn:aws:iam::111122223333:")
"""What stands in the overlays where everybody writes an address of their own."""


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
            raise SettingsError(
                f"overlay {overlay} makes {len(jobs)} Jobs pipeline-<RUN_ID> and not one; see `replacements` "
                "in k8s/overlays/gpu"
            )
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

    @property
    def run(self) -> dict[str, str]:
        """The lines of run.env."""
        return next((data for data in self.config_maps.values() if {"RUN_ID", "RUNS_URI"} <= set(data)), {})

    @property
    def runs_uri(self) -> str:
        return self.run.get("RUNS_URI", "").rstrip("/")

    @property
    def containers(self) -> list[Manifest]:
        return [container for pod in self.pods.values() for container in pod["containers"]]

    @property
    def placeholders(self) -> list[str]:
        """Images that nobody has put an own address in place of."""
        return sorted({c["image"] for c in self.containers if PLACEHOLDER.search(c["image"])})

    def named(self, kind: str, name: str) -> Manifest | None:
        found = (o for o in self.objects if o["kind"] == kind and o["metadata"]["name"] == name)
        return next(found, None)


class Rendered:
    """A cluster on which the overlay was applied and nothing else: what the conductor's own check is shown."""

    def __init__(self, wanted: Wanted, kubernetes: tuple[int, int]) -> None:
        self._wanted, self.namespace = wanted, wanted.namespace
        self._version = max(kubernetes, OLDEST)  # judged before, and worth one line

    def get(self, kind: str, name: str) -> Manifest | None:
        return self._wanted.named(kind, name)

    def version(self) -> tuple[int, int]:
        return self._version
