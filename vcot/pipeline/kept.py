"""What storage knows of a run, for its conductor: pods and nodes go away, and what they said with them.

<run>/<stage>/…               what stages have made, and whether it is whole
      pipeline/state.json     how far the run is, and how it ended (`state.State` writes it)
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from vcot import log
from vcot.errors import InputError, NotWhole, VcotError
from vcot.pipeline.checking import command, environment
from vcot.pipeline.conductor import Outcome
from vcot.pipeline.plan import INPUTS, Step
from vcot.records.shards import DONE, read_mark
from vcot.settings import PREFIX
from vcot.storage import Store, join

FOR_GOOD = (20, 21, 64, 65, 78)
"""Exit codes of a look after which no Job is made: it would end the same."""
STATE = ("pipeline", "state.json")
LONGEST_LOOK = 300.0
"""Seconds."""


class Kept(Protocol):
    """What the hand asks of storage."""

    def shards(self, step: Step) -> int:
        """How many shards the stage of this step has; its prepare is done."""

    def look(self, step: Step, variables: Mapping[str, str]) -> Outcome | None:
        """How a whole stage ends that is started again; None where something is left to do, or nobody can say."""

    def write(self, run_uri: str, state: str) -> None:
        """The run's state, in place of what was written before."""

    def state(self, run_uri: str) -> str | None:
        """What was written last, by whichever run of that name; None where nothing was."""


class InStorage:
    """The same of a real one."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def shards(self, step: Step) -> int:
        """From the settings that its prepare wrote down, or as many as the stage before it has made.

        Raises:
            InputError: they are not there, or damaged.
        """
        uri = join(step.run_uri, step.stage, "settings.json")
        try:
            settings: dict[str, Any] = json.loads(self._store.read(uri))["all_settings"]
        except (ValueError, KeyError) as error:
            raise InputError(f"{uri} is damaged ({error}); delete it and start the stage again") from None
        if settings.get("num_shards") is not None:
            return int(settings["num_shards"])
        (source,) = INPUTS[step.stage]
        mark, _ = read_mark(self._store, settings.get("input_uri") or join(step.run_uri, source))
        return len(mark.shards)

    def look(self, step: Step, variables: Mapping[str, str]) -> Outcome | None:
        """Where its mark is there, the stage itself is asked: ``python -m jobs.<stage> --part look``."""
        try:
            if self._store.stat(join(step.run_uri, step.stage, DONE)) is None:
                return None
        except VcotError as error:
            log.get().warning(f"{step.name}: nobody can say whether it is whole ({error})")
            return None
        with tempfile.TemporaryDirectory(prefix="look-") as folder:
            said = Path(folder) / "said.json"
            variables = {**variables, f"{PREFIX}TERMINATION_LOG": str(said)}
            try:
                answer = subprocess.run(
                    [*command(step.stage), "--part", "look"], env=environment(variables), capture_output=True,
                    check=False, timeout=LONGEST_LOOK,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                log.get().warning(f"{step.name}: nobody can say whether it is whole (no answer in {LONGEST_LOOK:g} s)")
                return None
            summary = json.loads(said.read_bytes()) if said.exists() else {}
        if answer.returncode == 0 or answer.returncode in FOR_GOOD:
            last_word = str(summary.get("message") or "it gave no reason")
            return Outcome(answer.returncode, 0.0, summary=summary, said=last_word)
        if answer.returncode != NotWhole.exit_code:
            why = summary.get("message") or f"exit code {answer.returncode}"
            log.get().warning(f"{step.name}: nobody can say whether it is whole ({why})")
        return None

    def write(self, run_uri: str, state: str) -> None:
        self._store.write(join(run_uri, *STATE), state.encode())

    def state(self, run_uri: str) -> str | None:
        uri = join(run_uri, *STATE)
        return None if self._store.stat(uri) is None else self._store.read(uri).decode(errors="replace")
