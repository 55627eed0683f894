"""Who may have the model write now, and who waits, in the order in which they came.

async with queue.place(lambda before: …):      told how many are before it, whenever that changes
    …                                          one of `at_once` that write
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

Told = Callable[[int], None]


class Queue:
    """at_once: replies that are written at a time. For one event loop."""

    def __init__(self, at_once: int) -> None:
        self.at_once, self.under_way = at_once, 0
        self._waiting: deque[tuple[asyncio.Future[None], Told]] = deque()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, told: Told) -> AsyncIterator[None]:
        if self.under_way < self.at_once and not self._waiting:
            self.under_way += 1
        else:
            await self._turn(told)
        try:
            yield
        finally:
            self.under_way -= 1
            self._move_up()

    async def _turn(self, told: Told) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((mine, told))
        told(len(self._waiting) - 1)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # its turn had just come
                self.under_way -= 1
            elif (mine, told) in self._waiting:  # else it was passed over as cancelled
                self._waiting.remove((mine, told))
            self._move_up()
            raise

    def _move_up(self) -> None:
        while self._waiting and self.under_way < self.at_once:
            turn, _ = self._waiting.popleft()
            if not turn.cancelled():
                self.under_way += 1
                turn.set_result(None)
        for before, (_, told) in enumerate(self._waiting):
            told(before)
