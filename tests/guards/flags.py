"""Every flag of every command, as its --help shows it: what may be written, its default and its variable.

python -m tests.guards.flags > tests/guards/flags.txt     writes the list again
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from unittest import mock

from vcot.settings import STAGES, Declared

COMMANDS = (*STAGES, "pipeline", "probe", "publish", "serve", "demo", "fetch", "rollout")
OPTION = re.compile(r"^  (--\S.*?)(?:  +|\n +)(.*\(([^()]*)\))?$", re.M)


def help_of(command: str) -> str:
    module = importlib.import_module(f"jobs.{command}")
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Declared)]
    settings = next(c for c in classes if getattr(c, "stage", None) == command)
    said = io.StringIO()
    wide = mock.patch.dict(os.environ, COLUMNS="1000")
    with wide, contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        settings.load(["--help"])
    return said.getvalue()


def flags() -> str:
    lines = ["# command  flag  (choices; default; variable).  Written by: python -m tests.guards.flags"]
    for command in COMMANDS:
        found = OPTION.findall(help_of(command))
        lines += sorted(f"{command:9} {flag}  ({told or 'no variable'})" for flag, _, told in found)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(flags(), end="")
