"""The ceiling: what a try may cost at worst is reserved before it is sent, and the rest comes back when it is known.

    await budget.reserve(worst)  →  send  →  budget.settle(worst, spent)

A process takes from storage in chunks (see account.py), so that one written entry serves several requests; what it
has taken beyond what it spends it gives back when it ends. The sum of what is spent and what is reserved never
passes the ceiling, with any number of requests at once and of processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from vcot.errors import BudgetSpent
from vcot.teacher.account import Account
from vcot.teacher.amount import NOTHING, Amount


class Budget(Protocol):
    async def reserve(self, worst: Amount) -> None:
        """Raises BudgetSpent: so much is not left, and nothing that is under way can come back."""

    def settle(self, worst: Amount, spent: Amount) -> None:
        """The try is over: what it did not spend is free again."""

    async def close(self) -> None:
        """What was not spent goes back."""


class Unlimited:
    """No ceiling: nothing is written."""

    async def reserve(self, worst: Amount) -> None: ...

    def settle(self, worst: Amount, spent: Amount) -> None: ...

    async def close(self) -> None: ...


class Purse:
    """Money of one process, for one event loop.

    Args:
        accounts: where it is taken from, in order: the shard's own part, then what finished shards left.
        chunk: how many requests of the present size are taken at once.
        says: the message when the budget is spent, from what is missing.
    """

    def __init__(self, accounts: Callable[[], Iterable[Account]], chunk: int, says: Callable[[Amount], str]) -> None:
        self._accounts, self._chunk, self._says = accounts, chunk, says
        self._from: Account | None = None
        self._taking: asyncio.Future[bool] | None = None
        self._free, self._out = NOTHING, 0
        self._turn, self._returned = asyncio.Lock(), asyncio.Event()

    async def reserve(self, worst: Amount) -> None:
        async with self._turn:  # who came first is served first
            while not worst.within(self._free):
                self._returned.clear()
                missing = worst.minus(self._free).most(NOTHING)
                self._taking = asyncio.ensure_future(self._take(missing, missing.most(worst.times(self._chunk))))
                if await asyncio.shield(self._taking):
                    continue
                if self._returned.is_set():  # a reply came home meanwhile
                    continue
                if not self._out:
                    raise BudgetSpent(self._says(missing))
                await self._returned.wait()
            self._free = self._free.minus(worst)
            self._out += 1

    def settle(self, worst: Amount, spent: Amount) -> None:
        self._free = self._free.plus(worst).minus(spent)
        self._out -= 1
        self._returned.set()

    async def close(self) -> None:
        async with self._turn:
            if self._taking is not None:
                await self._taking  # of a request that was called off
            free, self._free = self._free, NOTHING
            if self._from is not None:
                await asyncio.to_thread(self._from.give_back, free)

    async def _take(self, least: Amount, wanted: Amount) -> bool:
        account, granted = await asyncio.to_thread(self._granted, least, wanted)
        self._from = account or self._from
        self._free = self._free.plus(granted)
        return account is not None

    def _granted(self, least: Amount, wanted: Amount) -> tuple[Account | None, Amount]:
        for account in self._accounts():
            if (granted := account.take(least, wanted)) is not None:
                return account, granted
        return None, NOTHING
