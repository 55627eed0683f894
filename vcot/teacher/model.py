"""A model behind an endpoint as the teacher: many rows under way at once, outcomes in the order of the rows.

How a row is taught is a `Way`'s business, and how a question is answered and paid for is the Desk's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

from vcot.errors import TemporaryError, VcotError
from vcot.records import Rejection, Sample
from vcot.stage import stop
from vcot.teacher.budget import Budget
from vcot.teacher.desk import Desk
from vcot.teacher.request import Asker
from vcot.teacher.row import Outcome, Way
from vcot.teacher.telling import Telling

T = TypeVar("T")
R = TypeVar("R")

GRACE = 10.0
"""Seconds that requests under way get to come home when the work is stopped; their replies are paid for."""


class ModelTeacher:
    """Use it as a context manager; it holds connections and threads.

    Args:
        ahead: rows that are worked on before the first of them is done.
    """

    def __init__(self, way: Way, desk: Desk, *, ahead: int = 32) -> None:
        self.name = way.name
        self.way, self.desk, self._ahead = way, desk, ahead
        self.telling = Telling(desk)
        self._trouble: VcotError | None = None

    def __enter__(self) -> ModelTeacher:
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(max_workers=16)
        self._loop.set_default_executor(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        self.telling.close()
        self._loop.run_until_complete(self.desk.close())
        self._threads.shutdown()
        self._loop.close()

    def counts(self) -> Mapping[str, Any]:
        return {**self.desk.counts(), **self.way.counts()}

    def teach(self, samples: Iterable[Sample]) -> Generator[tuple[Sample, Outcome], None, None]:
        """Every sample with its outcome, in order. Raises as `map` does."""
        with closing(self.map(samples, self.way.outcome)) as rows:
            for sample, outcome in rows:
                if outcome is not None:
                    self.telling.row(refused=isinstance(outcome, Rejection))
                yield sample, outcome

    def spend_from(self, budget: Budget) -> None:
        """From here on; what is left of the budget before goes back."""
        self.wait_for(self.desk.spend_from(budget))

    def wait_for(self, work: Coroutine[Any, Any, R]) -> R:
        """What this work gives, done in the teacher's event loop."""
        return self._loop.run_until_complete(work)

    def map(
        self, items: Iterable[T], work: Callable[[T, Asker], Coroutine[Any, Any, R]], asker: Asker | None = None
    ) -> Generator[tuple[T, R], None, None]:
        """Every item with what the work makes of it, in order; some items are worked on ahead.

        Args:
            asker: who answers; default: the desk.

        Raises:
            TemporaryError, SettingsError: the endpoint (see Endpoint.ask) or storage.
            BudgetSpent: the limit is reached.
            Interrupted: stopped by a signal. In every case replies that arrived are kept.
        """
        asker, self._trouble = asker or self.desk, None
        ahead: deque[tuple[T, asyncio.Task[R]]] = deque()
        try:
            for item in items:
                ahead.append((item, self._loop.create_task(self._watched(work(item, asker)))))
                if len(ahead) >= self._ahead:
                    yield self._settle(ahead)
            while ahead:
                yield self._settle(ahead)
        finally:
            self._drain([task for _, task in ahead])

    def _settle(self, ahead: deque[tuple[T, asyncio.Task[R]]]) -> tuple[T, R]:
        """Waits for the first item; those behind it go on meanwhile."""
        item, task = ahead[0]
        self._loop.run_until_complete(self._done(task))
        ahead.popleft()
        return item, task.result()

    async def _done(self, task: asyncio.Task[R]) -> None:
        while True:
            await asyncio.wait({task}, timeout=0.1)
            stop.raise_if_requested(f"replies that arrived are kept in {self.desk.kept_in}")
            if self._trouble is not None:
                raise self._trouble
            if task.done():
                return
            self.telling.tell()

    async def _watched(self, work: Coroutine[Any, Any, R]) -> R:
        """Trouble of any row stops the work now, not when the rows before it are done."""
        try:
            return await work
        except VcotError as error:
            self._trouble = self._trouble or self._with_advice(error)
            raise

    def _with_advice(self, error: VcotError) -> VcotError:
        if isinstance(error, TemporaryError):
            said = str(error)
            end = "" if said.endswith((".", "?", "!")) else "."
            return TemporaryError(
                f"{said}{end} Run the same command again; what was paid for is kept in {self.desk.kept_in}"
            )
        return error

    def _drain(self, tasks: Sequence[asyncio.Task[R]]) -> None:
        if not tasks:
            return
        self.desk.stop_asking()
        self._loop.run_until_complete(self._come_home(tasks))

    async def _come_home(self, tasks: Sequence[asyncio.Task[R]]) -> None:
        await asyncio.wait(tasks, timeout=GRACE)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
