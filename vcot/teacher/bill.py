"""What was asked and paid, by source (dataset of the rows) and purpose of the request.

{source: {purpose: {"requests": new ones that were answered, "kept_replies_used": found in storage, "tries_again",
                    "tokens_in", "tokens_cached": of those in, "tokens_out": of every reply used, kept ones too,
                    "tokens_paid": of new ones, "usd": what every reply used did cost when it was paid for,
                    "usd_paid": of new ones, "usd_lost": tries cut off that the endpoint may be paid for,
                    "unpriced": replies whose cost nobody knows}}}
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from vcot.records import Completion
from vcot.teacher.prices import PICO

_COUNTED = (
    "requests", "kept_replies_used", "tries_again", "unpriced",
    "tokens_in", "tokens_cached", "tokens_out", "tokens_paid",
)  # fmt: skip
_MONEY = ("usd", "usd_paid", "usd_lost")


class Bill:
    """Money is counted in picodollars, and told in dollars."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def reply(self, source: str, purpose: str, reply: Completion, *, kept: bool) -> None:
        """A reply was used; `kept`: it was in storage before."""
        cost = None if reply.cost is None else round(reply.cost * PICO)
        line = self._lines[source, purpose]
        line["kept_replies_used" if kept else "requests"] += 1
        line["tokens_in"] += reply.tokens_in
        line["tokens_cached"] += reply.tokens_cached
        line["tokens_out"] += reply.tokens_out
        line["unpriced"] += cost is None
        line["usd"] += cost or 0
        if not kept:
            line["tokens_paid"] += reply.tokens_in + reply.tokens_out
            line["usd_paid"] += cost or 0

    def again(self, source: str, purpose: str, lost: int) -> None:
        """A try failed; `lost`: picodollars that it may have cost."""
        line = self._lines[source, purpose]
        line["tries_again"] += 1
        line["usd_lost"] += lost

    def lines(self) -> dict[str, dict[str, dict[str, Any]]]:
        """As above, sorted."""
        told: dict[str, dict[str, dict[str, Any]]] = {}
        for (source, purpose), line in sorted(self._lines.items()):
            told.setdefault(source, {})[purpose] = _told(line)
        return told

    def totals(self) -> dict[str, Any]:
        """The sums of all lines."""
        return _told(sum(self._lines.values(), Counter()))


def since(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What was added to the lines of a bill meanwhile."""
    return {
        name: since(before.get(name, {}), value) if isinstance(value, Mapping) else value - before.get(name, 0)
        for name, value in now.items()
    }


def costs(bill: Mapping[str, Mapping[str, Mapping[str, Any]]], kept: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The sums of each source, with what a row of it costs.

    Args:
        kept: source → rows that were kept with new reasoning.

    Returns:
        source → the names of a line, "rows_kept", "usd_a_row_kept" (None where a price is missing, or no row was kept).
    """
    told: dict[str, dict[str, Any]] = {}
    for source, purposes in bill.items():
        whole = {name: sum(line[name] for line in purposes.values()) for name in (*_COUNTED, *_MONEY)}
        rows = kept.get(source, 0)
        priced = rows and not whole["unpriced"]
        spent = whole["usd"] + whole["usd_lost"]
        told[source] = whole | {"rows_kept": rows, "usd_a_row_kept": round(spent / rows, 9) if priced else None}
    return told


def _told(line: Counter[str]) -> dict[str, Any]:
    counts: dict[str, Any] = {name: line[name] for name in _COUNTED}
    return counts | {name: round(line[name] / PICO, 9) for name in _MONEY}
