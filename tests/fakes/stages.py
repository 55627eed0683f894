"""A stage in this process, with its settings as flags."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def stage(settings: Any, run: Callable[[Any], None], run_uri: Path, **options: Any) -> dict[str, Any]:
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    run(settings.load(["--run-uri", str(run_uri), *flags])[0])
    report = run_uri / settings.stage / "report.json"
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    return found
