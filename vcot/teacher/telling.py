"""How far it is: a live table on a terminal, a line every 30 s elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from vcot import log
from vcot.stage import REPORT_EVERY
from vcot.teacher.desk import Desk

REFRESH = 0.25
"""Seconds between two looks of a table."""


class Telling:
    """Args: whose requests are told. `total`: rows that are to be taught; None: nobody has counted them."""

    def __init__(self, desk: Desk) -> None:
        self.total: int | None = None
        self.done = self.refused = 0
        self._desk, self._begun = desk, time.monotonic()
        self._told = self._begun
        self._live: Live | None = None

    def row(self, refused: bool) -> None:
        """One more row is done."""
        self.done += 1
        self.refused += refused

    def tell(self) -> None:
        """To be called often; says something when it is time."""
        now = time.monotonic()
        if sys.stderr.isatty():
            if now - self._told >= REFRESH:
                self._told = now
                self._screen().update(_table(self.facts()), refresh=True)
        elif now - self._told >= REPORT_EVERY:
            self._told = now
            log.get().info("asking the teacher", **self.facts())

    def facts(self) -> dict[str, Any]:
        """Rows, requests, tokens a second, US dollars and seconds, all of this process."""
        paid, seconds = self._desk.bill.totals(), max(time.monotonic() - self._begun, 1e-9)
        facts: dict[str, Any] = {"done": self.done}
        if self.total is not None:
            facts["of"] = self.total
        facts |= {
            "refused": self.refused, "in_flight": self._desk.under_way, "requests": paid["requests"],
            "kept_replies_used": paid["kept_replies_used"], "tries_again": paid["tries_again"],
            "tokens_per_second": round(paid["tokens_paid"] / seconds),
        }  # fmt: skip
        if paid["requests"] and paid["unpriced"]:
            facts["usd"] = "unknown price"
        else:
            facts["usd"] = round(paid["usd_paid"] + paid["usd_lost"], 4)
        if self.total is not None and self.done:
            facts["seconds_left"] = round((self.total - self.done) * seconds / self.done)
        return facts

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _screen(self) -> Live:
        if self._live is None:
            self._live = Live(console=Console(file=sys.stderr), auto_refresh=False, transient=True)
            self._live.start()
        return self._live


def _table(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value))
    return table
