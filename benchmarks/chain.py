"""The stages through their own entrypoints, below a folder of one's own, and figures out of their reports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.rows import ROOT


def run(stage: str, folder: Path, *flags: str, variables: Mapping[str, str] | None = None, **settings: Any) -> None:
    """A stage, whose flags beat `variables` (VCOT_<STAGE>_<NAME>); what it says stands in <folder>/<stage>.log.

    Raises SystemExit: it failed, with the end of what it said.
    """
    flags += tuple(f"--{name.replace('_', '-')}={value}" for name, value in settings.items())
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VCOT_")}
    command, log = [sys.executable, "-m", f"jobs.{stage}", f"--run-uri={folder}", *flags], folder / f"{stage}.log"
    folder.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as said:
        code = subprocess.run(
            command, cwd=ROOT, env=clean | dict(variables or {}), stdout=said, stderr=said, check=False
        ).returncode
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}:\n{log.read_text()[-2000:]}")


def figures(report: Mapping[str, Any], key: str, part: str = "results") -> Any:
    """Of a row of a report of evaluate: name of a figure → value, low, high."""
    return next(one for one in report[part] if one["key"] == key)["figures"]
