"""The table of `make local-train`, small as in CI, against `table.json`: `python -m tests.frozen.table [--write]`.

Another processor adds in another order, so that a few of the 50 answers come out otherwise: SLACK is what the figures
of one commit differed by on several machines, and twice that.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.frozen.names import as_frozen

FROZEN = Path(__file__).parent / "table.json"
LOCAL_RUNS = Path(__file__).parents[2] / ".local" / "runs"
SLACK = 0.12


def table(report: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Row of the table → figure → value."""
    rows = [*report["results"], *report["guesses"]]
    return {
        row["key"]: {name: figure["value"] for name, figure in sorted(row["figures"].items()) if "value" in figure}
        for row in rows
    }


def main() -> None:
    newest = max(LOCAL_RUNS.glob("*/evaluate-report.json"), key=lambda path: path.stat().st_mtime)
    now = table(as_frozen(json.loads(newest.read_text())))
    if "--write" in sys.argv:
        FROZEN.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    was = json.loads(FROZEN.read_text())
    wrong = [
        f"{key}: there were {sorted(was.get(key, {}))}" for key in was if was[key].keys() != now.get(key, {}).keys()
    ]
    for key, figures in was.items():
        for name, value in figures.items():
            other = now.get(key, {}).get(name)
            apart = value != other if None in (value, other) else abs(value - other) > SLACK * max(1.0, abs(value))
            if apart:
                wrong.append(f"{key} {name}: was {value}, is {other}")
    print(f"{newest}: the table is what it was" if not wrong else "\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
