"""HTML pages that need no other file: Jinja2 templates of this package, in which every value is escaped.

render("convert.html.j2", found=…)     → the whole page
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

MOST_LINES = 40
"""Lines of a table; what rows call their dataset may be anything."""

REASONS: Mapping[str, Any] = tomllib.loads(files("vcot.reports").joinpath("reasons.toml").read_text("utf-8"))
"""What each reason of a refusal means: of convert by its name, of distill by the gate and its name."""


@dataclass(frozen=True)
class Finding:
    """What is said of a result at a glance. `good`: nothing to do; else somebody should look."""

    good: bool
    text: str


def render(template: str, **values: Any) -> str:
    """A whole HTML file. An unknown name in the template is an error, not an empty place."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # which processes without a page need not wait for

    environment = Environment(
        loader=PackageLoader("vcot.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "share": share, "dollars": dollars, "tail": tail}
    return environment.get_template(template).render(**values)


def number(value: float) -> str:
    return f"{value:,.0f}"


def share(part: float, whole: float = 1) -> str:
    """In percent, with a digit where it would else look like none or all."""
    if not whole:
        return "–"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if 0 < percent < 10 or 90 < percent < 100 else f"{percent:.0f} %"


def dollars(value: float) -> str:
    """ "$0.0042", "$12.50": as many digits as matter."""
    if value >= 1 or not value:
        return f"${value:,.2f}"
    return f"${value:.{max(4, 1 - math.floor(math.log10(abs(value))))}f}"


def plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


def tail(text: str, most: int = 64) -> str:
    """The end of a URI, which is what tells images apart."""
    return text if len(text) <= most else f"…{text[-most:]}"


def most_frequent(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def where(counts: Mapping[str, Mapping[str, int]], name: str) -> str:
    """Of dataset → name → rows: "vsr 12, docvqa 3 and 2 more"."""
    found = most_frequent({dataset: of[name] for dataset, of in counts.items() if name in of})
    more = f" and {len(found) - 6} more" if len(found) > 6 else ""
    return ", ".join(f"{dataset} {rows:,}" for dataset, rows in found[:6]) + more


def chart(name: str, about: str, counted: str, counts: Iterable[tuple[str, int]], spread: str = "") -> dict[str, Any]:
    """What the macro of this name draws. about: in which unit. counted: what the counts are of. spread: in words."""
    found = list(counts)
    most = max((count for _, count in found), default=0) or 1
    bars = [(label, count, 100 * count / most) for label, count in found]
    n = sum(count for _, count in found)
    return {"name": name, "about": about, "counted": counted, "n": n, "bars": bars, "spread": spread}
