"""How far a run is and how it ended, where pods and nodes that go away do not take it with them.

The ConfigMap ``<run>-state`` is there as long as the pipeline Job, ``<run>/pipeline/state.json`` in storage for good:

    {"run": "first", "made": "s3://vcot/runs/first",
     "steps": {"convert-prepare": {"job": "first-convert-prepare", "state": "done", "exit": 0, "seconds": 41.0, …},
               "train": {"job": "first-train", "state": "failed", "exit": 137, "message": "the kernel killed it …"}},
     "end": {"exit": 3, "message": "train failed with exit code 137 …"}}

`state` of a step: running, done, or failed; beside it stands what the stage said of itself. No `end`: it goes on.
Of a run that was refused before it began, `end` says why, and steps are those that storage knows of that name.
"""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime
from typing import Any

from vcot import log
from vcot.errors import Interrupted, VcotError
from vcot.pipeline.conductor import Outcome
from vcot.pipeline.kept import Kept
from vcot.pipeline.plan import Plan, Step
from vcot.pipeline.port import Cluster, Refused
from vcot.pipeline.rendering import Owner
from vcot.redaction import redacted

KEY = "state.json"


class State:
    """Written at each change; what cannot be written is told once, and ends no run."""

    def __init__(self, cluster: Cluster, kept: Kept, owner: Owner, plan: Plan, *, refused: bool = False) -> None:
        self._cluster, self._kept, self._owner, self._run_uri = cluster, kept, owner, plan.run_uri
        self._name, self._run_id = f"{plan.run_id}-state", plan.run_id
        self._mute: set[str] = set()
        self._places = {"the cluster": self._to_cluster, "storage": self._to_storage}
        steps = self._earlier() or (self._in_storage() if refused else {})
        self._said: dict[str, Any] = {"run": plan.run_id, "made": plan.run_uri, "steps": steps, "end": None}

    def began(self, step: Step, job: str) -> None:
        known = self._said["steps"].get(step.name)
        if known is None or known["state"] != "done":
            self._said["steps"][step.name] = {"job": job, "state": "running"}
            self._write()

    def ended(self, step: Step, outcome: Outcome) -> None:
        """What was known of it before stays where its pods are gone, and cannot say it again."""
        known = self._said["steps"].setdefault(step.name, {})
        told = {"exit": outcome.exit_code, "seconds": round(outcome.seconds, 1), **outcome.summary}
        if outcome.exit_code == 0:
            told["state"] = "done"
        else:
            told |= {"state": "failed", "message": outcome.said}
        known |= told
        self._write()

    def end(self, error: Exception | None) -> None:
        """The run is over, and so is what it did; where somebody asked for a stop it is not, and another conductor
        takes over. (One does, too, after an error that the pipeline Job tries again; it writes that over this.)"""
        if isinstance(error, Interrupted):
            return
        exit_code, message = 0, ""
        if isinstance(error, VcotError):
            exit_code, message = error.exit_code, str(error)
        elif error is not None:
            exit_code = VcotError.exit_code
            message = f"unforeseen: {''.join(traceback.format_exception_only(error)).strip()}"
        for step in self._said["steps"].values():
            if step["state"] == "running":
                step |= {"state": "failed", "message": message}
        self._said["end"] = {"exit": exit_code, "message": message}
        self._mute.clear()
        self._write()

    def _earlier(self) -> dict[str, Any]:
        """The steps that an earlier conductor of the same pipeline Job wrote down."""
        there = self._cluster.get("ConfigMap", self._name) or {"metadata": {}}
        owners = there["metadata"].get("ownerReferences") or []
        if not any(owner["uid"] == self._owner.uid for owner in owners):
            return {}
        return _steps((there.get("data") or {}).get(KEY))

    def _in_storage(self) -> dict[str, Any]:
        """Those of an earlier run of that name; a refusal must not take their place."""
        try:
            return _steps(self._kept.state(self._run_uri))
        except VcotError as error:
            log.get().warning(f"what is known of an earlier run {self._run_id} cannot be read: {error}")
            del self._places["storage"]
            return {}

    def _write(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        text = redacted(json.dumps(self._said | {"written": now}, indent=1, ensure_ascii=False))
        for place, write in self._places.items():
            if place not in self._mute:
                try:
                    write(text)
                except VcotError as error:
                    if isinstance(error, Interrupted):
                        raise
                    self._mute.add(place)
                    log.get().warning(f"the run's state cannot be written to {place}: {error}; the run goes on")

    def _to_cluster(self, text: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self._name,
                "labels": {"vcot/run": self._run_id},
                "ownerReferences": [self._owner.reference],
            },
            "data": {KEY: text},
        }
        try:
            self._cluster.patch("ConfigMap", self._name, body)
        except Refused as error:
            if error.status != 404:
                raise
            self._cluster.create("ConfigMap", body)

    def _to_storage(self, text: str) -> None:
        self._kept.write(self._run_uri, text)


def _steps(text: str | None) -> dict[str, Any]:
    try:
        steps = json.loads(text or "{}")["steps"]
    except (KeyError, TypeError, ValueError):
        return {}
    return steps if isinstance(steps, dict) else {}
