"""What a run would ask, cost and take, without asking: `--dry-run`.

Replies that are kept already are free, and where a row's are, its next question is known as well; beyond that, rows
ask what their way foresees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from vcot.records import Completion, Sample
from vcot.teacher.forecast import Foreseen, Replied, of_requests
from vcot.teacher.model import ModelTeacher
from vcot.teacher.prices import Prices, dollars
from vcot.teacher.replies import Replies
from vcot.teacher.request import Asker, Request


class NotKept(Exception):
    """The reply would have to be paid for."""


class Shelf:
    """An Asker that only has what is kept."""

    def __init__(self, replies: Replies, replied: Replied) -> None:
        self.found = 0
        self.begun = 0  # what was found before the row was asked about again
        self._again = 0
        self._replies, self._replied = replies, replied

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        if request.again != self._again:
            self._again, self.begun = request.again, self.found
        completion = await asyncio.to_thread(self._replies.get, request.key())
        if completion is None:
            raise NotKept
        self.found += 1
        self._replied.saw(request.purpose, completion)
        return completion


class Forecast:
    """Of all rows: what is kept, and what is still to be paid for."""

    def __init__(self, replies: Replies, prices: Prices) -> None:
        self.kept, self.rows, self.missing, self.replied = 0, 0, Foreseen(), Replied()
        self._replies, self._prices = replies, prices

    def add(self, rows: Iterable[Sample], teacher: ModelTeacher) -> None:
        async def left(row: Sample, _: Asker) -> list[Request]:
            shelf = Shelf(self._replies, self.replied)
            try:
                await teacher.way.outcome(row, shelf)
            except NotKept:
                foreseen = teacher.way.foreseen(row)
                return list(foreseen[min(shelf.found - shelf.begun, len(foreseen) - 1) :])
            finally:
                self.kept += shelf.found
            return []

        for _, requests in teacher.map(rows, left):
            self.rows += 1
            self.missing = self.missing.plus(of_requests(requests, self._prices, self.replied))

    def told(self, at_once: int) -> str:
        """A table for people. Args: how many requests would be under way at once."""
        todo = self.missing
        each = self.replied.seconds()
        time = _clock(todo.requests * each / at_once)
        source = f"as the {self.replied.seen:,} kept replies" if self.replied.seen else "assumed"
        lines = [
            ("rows", f"{self.rows:,}, of which {todo.rows:,} need new replies"),
            ("replies kept", f"{self.kept:,}, free"),
            ("requests", f"{todo.requests:,}, if each reply is good at once"),
            ("tokens in", f"about {todo.tokens_in:,} (pictures by the provider's formula: an estimate)"),
            ("tokens out", f"about {todo.tokens_out:,} ({source})"),
            ("cost", self._cost(todo.pico)),
            ("as a batch", self._cost(todo.pico_in_batches)),
            (
                "time",
                f"about {time} at {at_once} at once, {each:.1f} s a reply ({source})",
            ),
        ]
        return "\n".join(f"{name:<14}{value}" for name, value in lines)

    def _cost(self, pico: int) -> str:
        if self.missing.unpriced == self.missing.requests > 0:
            return "unknown price; --prices FILE gives one"
        some = f", and {self.missing.unpriced:,} requests of unknown price" if self.missing.unpriced else ""
        return f"about {dollars(pico)}{some}"


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
