"""Whose fault it is that a request is not answered: the row's, or the endpoint's.

    every try failed → wait → its endpoint has answered another request: the row is refused (RowFailed)
                            → nobody is left who could be answered: one that was answered before is sent again, cut
                              short; where none ever was, a tiny one of our own. Answered: the row is refused. Not:
                              the run stops.

Too many rows in a row that fail, or too large a share of them, stop the run, too. So an endpoint that is down costs
no row, and a row that an endpoint cannot take costs no run.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from vcot.errors import VcotError
from vcot.records import Completion
from vcot.teacher.request import Request, RowFailed

FEW = 20
"""Failed rows of which no share is made."""

REMEMBERED = 1 << 16
"""Rows whose place in the order is known; many more than are under way at once."""


class Where(NamedTuple):
    """Who answers, or does not."""

    address: str
    model: str


class Failures:
    """For one event loop.

    Args:
        in_a_row: so many rows that fail one after another, in the order in which they came, stop the run.
        share: of the rows that were asked about; when more than that fail, the run stops.
    """

    def __init__(self, in_a_row: int, share: float) -> None:
        self._most, self._share = in_a_row, share
        self._rows = 0
        self._places: OrderedDict[str, int] = OrderedDict()  # row → the how manieth it is, of those remembered
        self._failed: dict[int, str] = {}  # place → row
        self._waiting: dict[Where, list[str]] = defaultdict(list)
        self._answers: Counter[Where] = Counter()
        self._answered: dict[Where, Request] = {}
        self._kept: dict[str, Request] = {}  # by model
        self._busy = 0
        self._proving = False
        self._stopped: Exception | None = None
        self._news = asyncio.Event()

    @contextmanager
    def busy(self, row: str) -> Iterator[None]:
        """While a request of this row may still be answered."""
        if row not in self._places:
            self._places[row], self._rows = self._rows, self._rows + 1
            if len(self._places) > REMEMBERED:
                self._places.popitem(last=False)
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._tell()

    def kept(self, request: Request, reply: Completion) -> None:
        """Some endpoint answered it at some time."""
        if reply.finish_reason != "content_filter":
            self._kept[request.model] = request

    def answered(self, where: Where, request: Request) -> None:
        self._answered[where] = request
        self._proved(where)

    def stop(self, error: Exception) -> None:
        """Nobody waits any longer."""
        self._stopped = self._stopped or error
        self._tell()

    async def judge(
        self, row: str, where: Where, trouble: VcotError, ask: Callable[[Request | None], Awaitable[bool]]
    ) -> NoReturn:
        """Waits until it is known.

        Args:
            ask: whether this endpoint answers a request that was answered before; None: a tiny one.

        Raises:
            RowFailed: it is the row.
            VcotError: it is not, or nobody can tell: the trouble, and whom it met.
        """
        self._count(row, trouble)
        seen = self._answers[where]
        self._waiting[where].append(row)
        try:
            while self._stopped is None and self._answers[where] == seen:
                if self._busy or self._proving:
                    await self._news.wait()
                else:
                    await self._prove(where, trouble, ask)
        finally:
            self._waiting[where].remove(row)
        if self._stopped is not None:
            raise self._stopped
        raise RowFailed(str(trouble))

    def _count(self, row: str, trouble: VcotError) -> None:
        place = self._places.get(row, self._rows)
        self._failed[place] = row
        first, last = place, place
        while first - 1 in self._failed:
            first -= 1
        while last + 1 in self._failed:
            last += 1
        if last - first + 1 >= self._most:
            rows = [self._failed[n] for n in range(first, last + 1)]
            what = f"{len(rows)} rows in a row failed ({_named(rows)}); --max-failed-in-a-row allows for more"
            self.stop(_told(what, trouble))
        if len(self._failed) >= FEW and len(self._failed) > self._share * self._rows:
            what = (
                f"{len(self._failed)} of {self._rows} rows failed ({_named(list(self._failed.values()))}), more than "
                f"--max-rejected-share {self._share:g} allows"
            )
            self.stop(_told(what, trouble))

    async def _prove(self, where: Where, trouble: VcotError, ask: Callable[[Request | None], Awaitable[bool]]) -> None:
        known = self._answered.get(where) or self._kept.get(where.model)
        self._proving = True
        try:
            if await ask(known):
                self._proved(where)
            else:
                self.stop(_told(f"nothing was answered since {_named(self._waiting[where])} failed", trouble))
        finally:
            self._proving = False
            self._tell()

    def _proved(self, where: Where) -> None:
        self._answers[where] += 1
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _told(what: str, trouble: VcotError) -> VcotError:
    return type(trouble)(f"{what}: {trouble}")


def _named(rows: Sequence[str]) -> str:
    """The first ten."""
    return ", ".join(rows[:10]) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
