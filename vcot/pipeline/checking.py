"""Are the settings of a stage in order? The stage itself is asked: ``python -m jobs.<stage> --check``.

In a process of its own, which takes the memory of the stage's classes with it when it ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from vcot.settings import PREFIX


def judge(stage: str, variables: Mapping[str, str]) -> list[str]:
    """A line for each fault; none where the settings are in order."""
    answer = subprocess.run(
        [*command(stage), "--check"], env=environment(variables), capture_output=True, text=True, check=False
    )
    if answer.returncode == 0:
        return []
    return answer.stderr.strip().splitlines() or [f"{stage}: --check ended with {answer.returncode} and said nothing"]


def command(stage: str) -> list[str]:
    return [sys.executable, "-m", f"jobs.{stage}"]


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's own, with these variables in place of those with our prefix."""
    return {n: v for n, v in os.environ.items() if not n.startswith(PREFIX)} | dict(variables)
