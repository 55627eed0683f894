"""What storage knows of a run: pods and nodes go away, and what they said with them.

    <run>/<stage>/…               what stages have made, and whether it is whole
          pipeline/state.json     how far the run is, and how it ended

The same state stands in the ConfigMap ``<run>-state``, as long as the pipeline Job is there:

    {"run": "first", "made": "s3://vcot/runs/first",
     "steps": {"convert-prepare": {"job": "first-convert-prepare", "state": "done", "exit": 0, "seconds": 41.0, …},
               "train": {"job": "first-train", "state": "failed", "exit": 137, "message": "the kernel killed it …"}},
     "end": {"exit": 3, "message": "train failed with exit code 137 …"}}

`state` of a step: running, done, or failed; beside it stands what the stage said of itself. No `end`: it goes on.
Of a run that was refused before it began, `end` says why, and steps are those that storage knows of that name.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vcot import logging
from vcot.errors import Interrupted, NotWhole, VcotError
from vcot.pipeline.client import ClusterClient, Refused
from vcot.pipeline.local import command, environment
from vcot.pipeline.orchestrator import INPUTS, Outcome, Plan, Step
from vcot.pipeline.templates import Owner
from vcot.records.shards import DONE, read_marker
from vcot.redaction import redacted
from vcot.settings import PREFIX
from vcot.storage import Store, join, read_json

KEY = "state.json"
FOR_GOOD = (20, 21, 64, 65, 78)
"""Exit codes of a look after which no Job is made: it would end the same."""
LONGEST_LOOK = 300.0
"""Seconds."""


class RunStorage:
    """What the executor asks of storage."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def shards(self, step: Step) -> int:
        """How many shards the stage of this step has, from the settings that its prepare wrote down, or as many as the
        stage before it has made.

        Raises:
            InputError: they are not there, or damaged.
        """
        uri = join(step.run_uri, step.stage, "settings.json")
        advice = "delete it and start the stage again"
        settings: dict[str, Any] = read_json(self._store, uri, lambda stated: dict(stated["all_settings"]), advice)
        if settings.get("num_shards") is not None:
            return int(settings["num_shards"])
        (source,) = INPUTS[step.stage]
        marker, _ = read_marker(self._store, settings.get("input_uri") or join(step.run_uri, source))
        return len(marker.shards)

    def look(self, step: Step, variables: Mapping[str, str]) -> Outcome | None:
        """How a whole stage ends that is started again; None where something is left to do, or nobody can say.

        Where its marker is there, the stage itself is asked: ``python -m jobs.<stage> --part look``.
        """
        try:
            if self._store.stat(join(step.run_uri, step.stage, DONE)) is None:
                return None
            with tempfile.TemporaryDirectory(prefix="look-") as folder:
                said = Path(folder) / "said.json"
                code = subprocess.run(
                    [*command(step.stage), "--part", "look"], capture_output=True, check=False, timeout=LONGEST_LOOK,
                    env=environment({**variables, f"{PREFIX}TERMINATION_LOG": str(said)}),
                ).returncode  # fmt: skip
                summary = json.loads(said.read_bytes()) if said.exists() else {}
        except (VcotError, subprocess.TimeoutExpired) as error:
            logging.get().warning(f"{step.name}: nobody can say whether it is whole ({error})")
            return None
        last_word = str(summary.get("message") or f"exit code {code}")
        if code == 0 or code in FOR_GOOD:
            return Outcome(code, 0.0, summary=summary, said=last_word)
        if code != NotWhole.exit_code:
            logging.get().warning(f"{step.name}: nobody can say whether it is whole ({last_word})")
        return None

    def write(self, run_uri: str, state: str) -> None:
        """The run's state, in place of what was written before."""
        self._store.write(join(run_uri, "pipeline", KEY), state.encode())

    def state(self, run_uri: str) -> str | None:
        """What was written last, by whichever run of that name; None where nothing was."""
        uri = join(run_uri, "pipeline", KEY)
        return None if self._store.stat(uri) is None else self._store.read(uri).decode(errors="replace")


class RunState:
    """Written at each change; what cannot be written is logged once, and ends no run."""

    def __init__(
        self, cluster: ClusterClient, storage: RunStorage, owner: Owner, plan: Plan, *, refused: bool = False
    ) -> None:
        """
        Args:
            refused: the run has not begun; then steps of an earlier run of that name are kept.
        """
        self._cluster, self._owner, self._plan = cluster, owner, plan
        self._name = f"{plan.run_id}-state"
        self._mute: set[str] = set()
        self._places: dict[str, Callable[[str], None]] = {
            "the cluster": self._to_cluster, "storage": lambda text: storage.write(plan.run_uri, text),
        }  # fmt: skip
        # Those that an earlier orchestrator of the same pipeline Job wrote down.
        there = cluster.get("ConfigMap", self._name)
        steps = _steps((there.get("data") or {}).get(KEY)) if there and owner.owns(there) else {}
        if refused and not steps:  # a refusal must not take the place of an earlier run of that name
            try:
                steps = _steps(storage.state(plan.run_uri))
            except VcotError as error:
                logging.get().warning(f"what is known of an earlier run {plan.run_id} cannot be read: {error}")
                del self._places["storage"]
        self._state: dict[str, Any] = {"run": plan.run_id, "made": plan.run_uri, "steps": steps, "end": None}

    def began(self, step: Step, job: str) -> None:
        before = self._state["steps"].get(step.name)
        if before is None or before["state"] != "done":
            self._state["steps"][step.name] = {"job": job, "state": "running"}
            self._write()

    def ended(self, step: Step, outcome: Outcome) -> None:
        """What an earlier orchestrator noted of it stays where its pods are gone, and cannot say it again."""
        noted = self._state["steps"].setdefault(step.name, {})
        noted |= {"exit": outcome.exit_code, "seconds": round(outcome.seconds, 1), **outcome.summary}
        noted |= {"state": "done"} if outcome.exit_code == 0 else {"state": "failed", "message": outcome.said}
        self._write()

    def end(self, error: Exception | None) -> None:
        """The run is over, and so is what it did; where somebody asked for a stop it is not, and another orchestrator
        takes over. (One does, too, after an error that the pipeline Job tries again; it writes that over this.)"""
        if isinstance(error, Interrupted):
            return
        exit_code, message = 0, ""
        if isinstance(error, VcotError):
            exit_code, message = error.exit_code, str(error)
        elif error is not None:
            exit_code = VcotError.exit_code
            message = f"unforeseen: {''.join(traceback.format_exception_only(error)).strip()}"
        for step in self._state["steps"].values():
            if step["state"] == "running":
                step |= {"state": "failed", "message": message}
        self._state["end"] = {"exit": exit_code, "message": message}
        self._mute.clear()
        self._write()

    def _write(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        text = redacted(json.dumps(self._state | {"written": now}, indent=1, ensure_ascii=False))
        for place, write in self._places.items():
            if place not in self._mute:
                try:
                    write(text)
                except Interrupted:
                    raise
                except VcotError as error:
                    self._mute.add(place)
                    logging.get().warning(f"the run's state cannot be written to {place}: {error}; the run goes on")

    def _to_cluster(self, text: str) -> None:
        labels, owners = {"vcot/run": self._plan.run_id}, [self._owner.reference]
        metadata = {"name": self._name, "labels": labels, "ownerReferences": owners}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: text}}
        try:
            self._cluster.patch("ConfigMap", self._name, body)
        except Refused as error:
            if error.status != 404:
                raise
            self._cluster.create("ConfigMap", body)


def _steps(text: str | None) -> dict[str, Any]:
    try:
        steps = json.loads(text or "{}")["steps"]
    except (KeyError, TypeError, ValueError):
        return {}
    return steps if isinstance(steps, dict) else {}
