"""Shards of Samples through a teacher; a model as the teacher: many rows under way at once, outcomes in their order.

How a row is taught is a strategy's business, and how a request is answered and paid for is the client's.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from vcot import logging
from vcot.distill.funnel import TRUST, Funnel
from vcot.distill.request import Asker
from vcot.distill.row import Outcome, Teacher, needs_teacher, refuse, taught
from vcot.distill.strategy import Strategy
from vcot.errors import TemporaryError, VcotError
from vcot.records import Reason, Rejection, Sample
from vcot.records.metadata import DistillShardMetadata
from vcot.records.shards import ShardWriter
from vcot.stage import REPORT_EVERY, Bar, stop

if TYPE_CHECKING:  # openai takes a second to load, and the template teacher needs none
    from vcot.distill.client import TeacherClient

T = TypeVar("T")
R = TypeVar("R")

GRACE = 10.0  # seconds that requests under way get to come home when the work is stopped: they are paid for
REFRESH = 0.25  # seconds between two looks of the bar on a terminal


def distil(samples: Iterable[Sample], teacher: Teacher, writer: ShardWriter) -> tuple[Funnel, DistillShardMetadata]:
    """Every sample goes to the writer once, in order: kept, with or without new reasoning, or refused.

    Returns what became of them, for the report and for the marker.
    """
    before = dict(teacher.counts())
    with closing(teacher.teach(samples)) as rows:  # whatever happens here, requests under way come home
        funnel = write(rows, teacher.name, writer)
    spent = _since(before, teacher.counts())
    trust = {name: spent.pop(name, 0) for name in TRUST}
    counted = funnel.facts() | {"trust": trust, "bill": spent.pop("bill", {}), "spent": spent}
    return funnel, DistillShardMetadata(**counted)


def write(rows: Iterable[tuple[Sample, Outcome]], teacher: str, writer: ShardWriter) -> Funnel:
    """The rows as they came out, into the shard."""
    funnel = Funnel()
    for sample, outcome in rows:
        if outcome is None and needs_teacher(sample):  # which is left alone only where there is no image
            outcome = refuse(sample, Reason.NO_REASONING, "it is asked by text alone: there is nothing to point at")
        if isinstance(outcome, Rejection):
            funnel.refused(sample, outcome)
            writer.reject(outcome)
        elif outcome is None:
            funnel.passed(sample)
            writer.keep(sample)
        else:
            made = taught(sample, outcome, teacher)
            funnel.kept(sample, made, outcome.flags, outcome.parts)
            writer.keep(*made)
            for part in outcome.parts:
                writer.leave_out(part)
    return funnel


def _since(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What was counted meanwhile."""
    return {
        name: _since(before.get(name, {}), value) if isinstance(value, Mapping) else value - before.get(name, 0)
        for name, value in now.items()
    }


class ModelTeacher:
    """A model behind an endpoint. A context manager, because it holds connections and threads.

    Args:
        ahead: rows that are worked on before the first of them is done.
    """

    def __init__(self, strategy: Strategy, client: TeacherClient, *, ahead: int = 32) -> None:
        self.name = strategy.name
        self.strategy, self.client, self._ahead = strategy, client, ahead
        self.progress = Progress(client)
        self._trouble: VcotError | None = None

    def __enter__(self) -> ModelTeacher:
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(max_workers=16)
        self._loop.set_default_executor(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self.wait_for(self.client.close())
        self._threads.shutdown()
        self._loop.close()

    def counts(self) -> Mapping[str, Any]:
        report = self.client.report
        return {**report.totals(), **self.strategy.counts(), "bill": report.lines()}

    def teach(self, samples: Iterable[Sample]) -> Generator[tuple[Sample, Outcome], None, None]:
        """Every sample with its outcome, in order. Raises as `map` does."""
        with closing(self.map(samples, self.strategy.outcome)) as rows:
            for sample, outcome in rows:
                self.progress.row(refused=isinstance(outcome, Rejection))
                yield sample, outcome

    def wait_for(self, work: Coroutine[Any, Any, R]) -> R:
        """What this work gives, done in the teacher's event loop."""
        return self._loop.run_until_complete(work)

    def map(
        self, items: Iterable[T], work: Callable[[T, Asker], Coroutine[Any, Any, R]], asker: Asker | None = None
    ) -> Generator[tuple[T, R], None, None]:
        """Every item with what the work makes of it, in order; some items are worked on ahead.

        Args:
            asker: who answers; default: the client.

        Raises:
            TemporaryError, SettingsError: the endpoint (see Endpoint.ask) or storage.
            BudgetSpent: the limit is reached.
            Interrupted: stopped by a signal. In every case replies that arrived are kept.
        """
        asker, self._trouble = asker or self.client, None
        ahead: deque[tuple[T, asyncio.Task[R]]] = deque()
        try:
            for item in items:
                ahead.append((item, self._loop.create_task(self._watched(work(item, asker)))))
                if len(ahead) >= self._ahead:
                    yield self._first_of(ahead)
            while ahead:
                yield self._first_of(ahead)
        finally:
            if ahead:
                self.client.stop_asking()
                self.wait_for(_come_home([task for _, task in ahead]))

    def _first_of(self, ahead: deque[tuple[T, asyncio.Task[R]]]) -> tuple[T, R]:
        """Waits for the first item; those behind it go on meanwhile."""
        item, task = ahead[0]
        self.wait_for(self._done(task))
        ahead.popleft()
        return item, task.result()

    async def _done(self, task: asyncio.Task[R]) -> None:
        while True:
            await asyncio.wait({task}, timeout=0.1)
            stop.raise_if_requested(f"replies that arrived are kept in {self.client.cache.uri}")
            if self._trouble is not None:
                raise self._trouble
            if task.done():
                return
            self.progress.tell()

    async def _watched(self, work: Coroutine[Any, Any, R]) -> R:
        """Trouble of any row stops the work now, not when the rows before it are done."""
        try:
            return await work
        except VcotError as error:
            if isinstance(error, TemporaryError):
                said = str(error) if str(error).endswith((".", "?", "!")) else f"{error}."
                advice = f"Run the same command again; what was paid for is kept in {self.client.cache.uri}"
                error = TemporaryError(f"{said} {advice}")
            self._trouble = self._trouble or error
            raise


async def _come_home(tasks: Sequence[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks, timeout=GRACE)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Progress:
    """How far the teacher is: a bar of the rows on a terminal, a line every 30 s elsewhere.

    `total`: rows that will pass; None: nobody has counted them.
    """

    def __init__(self, client: TeacherClient) -> None:
        self.total: int | None = None
        self._done = self._refused = 0
        self._client, self._begun = client, time.monotonic()
        self._told = self._begun
        self._bar: Bar | None = None

    def row(self, *, refused: bool) -> None:
        """One more row is done."""
        self._done += 1
        self._refused += refused

    def tell(self) -> None:
        """To be called often; says something when it is time."""
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if now - self._told < (REFRESH if terminal else REPORT_EVERY):
            return
        self._told, facts = now, self.facts()
        if not terminal:
            logging.get().info("asking the teacher", **facts)
            return
        if self._bar is None:
            self._bar = Bar("distill", self.total).__enter__()
        self._bar.advance(self._done - self._bar.count, f"{self._refused:,} refused, ${facts['usd']}")

    def facts(self) -> dict[str, Any]:
        """Rows, requests, tokens a second, US dollars and seconds, all of this process."""
        paid, seconds = self._client.report.totals(), max(time.monotonic() - self._begun, 1e-9)
        facts: dict[str, Any] = {"done": self._done} | ({} if self.total is None else {"of": self.total})
        facts |= {"refused": self._refused, "in_flight": self._client.endpoint.rate.under_way}
        facts |= {name: paid[name] for name in ("requests", "kept_replies_used", "tries_again")}
        facts["tokens_per_second"] = round(paid["tokens_paid"] / seconds)
        unknown = paid["requests"] and paid["unpriced"]
        facts["usd"] = "unknown" if unknown else round(paid["usd_paid"] + paid["usd_lost"], 4)
        if self.total is not None and self._done:
            facts["seconds_left"] = round((self.total - self._done) * seconds / self._done)
        return facts

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__()
            self._bar = None
