"""The client of the teacher: a reply is looked up, else asked for, and stored the moment it arrives.

    request → stored reply
            → budget → endpoint → stored, then returned
              └── again, after a pause, where it failed in a way that passes

Whatever ends the process, nothing that was stored is paid for twice. Each try is reserved by itself, because an
endpoint may be paid for an answer that never arrived.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from vcot.distill.budget import Lease, Ledger
from vcot.distill.costs import NOTHING, SENT, CostReport, Costs, Prices
from vcot.distill.crops import ImagePacker
from vcot.distill.endpoint import Endpoint, SendAgain, Unanswered, body_of, refused
from vcot.distill.request import ReplyCache, Request, RowFailed
from vcot.errors import VcotError
from vcot.records import Completion
from vcot.storage.images import ImageError

# Seconds: a pause is anything between 0 and the first, doubled with each try, but no longer than the last.
FIRST_PAUSE, LAST_PAUSE = 1.0, 60.0
LEASED = 4  # requests that are leased at once, at most, for each that may be under way
CONTROL, CONTROL_TOKENS = "Say OK.", 16  # of a request that only shows whether the endpoint answers
FEW = 20  # failed rows of which no share is made
REMEMBERED = 1 << 16  # rows whose place in the order is remembered; many more than are under way at once


class Closing(Exception):
    """The work is being stopped: no new request."""


class TeacherClient:
    """For one event loop. `retries`: how often a request is tried again; `failures`: what becomes of one that is not
    answered in any of its tries."""

    def __init__(
        self, endpoint: Endpoint, cache: ReplyCache, prices: Prices, ledger: Ledger, *, retries: int = 8,
        failures: Failures | None = None,
    ) -> None:  # fmt: skip
        self.endpoint, self.cache, self.ledger = endpoint, cache, ledger
        self.images = ImagePacker(cache.store)
        self.costs, self.report = Costs(prices), CostReport()
        self.lease = Lease(ledger, LEASED * endpoint.rate.at_once)
        self._retries = retries
        self._failures = failures or Failures(10, 0.05)
        self._ready = asyncio.Semaphore(2 * endpoint.rate.at_once)  # that hold their images in memory
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._closing = asyncio.Event()
        self._first = asyncio.Lock()

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        """See request.Client. Raises Closing too, once `stop_asking` was called."""
        key = request.key()
        async with self._locks.setdefault(key, asyncio.Lock()):  # the same request twice at once is paid for once
            try:
                with self._failures.busy(row):
                    completion = await asyncio.to_thread(self.cache.get, key)
                    if completion is None:
                        return await self._pay_for(key, request, source)
                    self.report.replied(source, request.purpose, completion, kept=True)
                    if completion.finish_reason != "content_filter":
                        self._failures.answered_before.setdefault(request.model, request)
                    return completion
            except Unanswered as failed:
                if failed.whole:
                    raise failed.trouble from failed
                trouble = failed.trouble
            raise await self._failures.decide(row, request.model, trouble, partial(self._control, request, source))

    def stop_asking(self) -> None:
        self._closing.set()
        self._failures.stop(Closing())

    async def close(self) -> None:
        await self.lease.close()
        await self.endpoint.close()

    async def _pay_for(self, key: str, request: Request, source: str) -> Completion:
        """Raises Unanswered, whose trouble says how often it was tried."""
        async with self._ready:
            if self._closing.is_set():
                raise Closing
            completion = await self._tried(request, source)
        completion = await asyncio.to_thread(self.cache.keep, key, completion)
        self.report.replied(source, request.purpose, completion, kept=False)
        return completion

    async def _control(self, request: Request, source: str, answered: Request | None) -> bool:
        """Whether the endpoint answers what was answered before, for its prompt and a few words; None: a request like
        the one that failed, without what it says and shows of its row."""
        short = replace(answered or replace(request, parts=(CONTROL,)), purpose="control", reply_tokens=CONTROL_TOKENS)
        try:
            completion = await self._tried(short, source)
        except (Unanswered, ImageError):
            return False
        self.report.replied(source, short.purpose, completion, kept=False)
        return True

    async def _tried(self, request: Request, source: str) -> Completion:
        """The one place where anything is tried again."""
        body = await body_of(request, self.images)
        tries = AsyncRetrying(
            stop=stop_after_attempt(self._retries + 1),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=LAST_PAUSE),
            retry=retry_if_exception(lambda error: isinstance(error, Unanswered) and error.again),
            sleep=self._pause,
            reraise=True,
        )
        try:
            return await tries(self._try, body, request, source)
        except Unanswered as failed:
            if (number := int(tries.statistics["attempt_number"])) > 1:
                failed.trouble = type(failed.trouble)(f"after {number} tries: {failed.trouble}")
            raise

    async def _pause(self, seconds: float) -> None:
        """Cut short where the work is being stopped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _try(self, body: Mapping[str, Any], request: Request, source: str) -> Completion:
        redirects: list[str] = []
        while True:
            with suppress(SendAgain):  # of the requests under way, each by itself
                return await self._once(body, request, source, redirects)

    async def _once(self, body: Mapping[str, Any], request: Request, source: str, redirects: list[str]) -> Completion:
        """At most one request that leaves the process; whatever becomes of it, it counts as one."""
        if self.is_uncounted(request.model):
            async with self._first:
                if self.is_uncounted(request.model):
                    return await self._reserved(body, request, source, redirects)
        return await self._reserved(body, request, source, redirects)

    def is_uncounted(self, model: str) -> bool:
        """Return True if a limit depends on how the model's replies are counted, and none was counted yet.

        Such a model is sent one request at a time: its replies may have more tokens than the request allows.
        """
        return self.ledger.limits_tokens and model not in self.costs.counted

    async def _reserved(
        self, body: Mapping[str, Any], request: Request, source: str, redirects: list[str]
    ) -> Completion:
        worst = self.costs.worst(request)
        await self.lease.reserve(worst.usage)
        spent = NOTHING
        try:
            async with self.endpoint.rate.slot(worst.usage.tokens):
                if self._closing.is_set():
                    raise Closing
                spent = worst.usage  # until more is known, and if this is called off
                reply = await self.endpoint.ask(body, request.model, redirects)
            if reply is None:
                spent = SENT
                return refused(request.model)
            completion, spent = self.costs.spent(reply, worst)
            self._failures.answered(request)
            return completion
        except Unanswered as failed:
            spent = worst.usage if failed.billed else SENT if failed.sent else NOTHING
            if failed.again:
                self.report.failed(source, request.purpose, spent.pico)
            raise
        except VcotError:  # before anything was sent
            spent = NOTHING
            raise
        finally:
            self.lease.settle(worst.usage, spent)


class Failures:
    """Whose fault it is that a request is not answered: the row's, or the endpoint's. For one event loop.

        every try failed → wait → another request to the model was answered: the row is refused (RowFailed)
                                → nobody is left who could be answered: a request that was answered before is sent
                                  again, cut short; where none ever was, a tiny one of our own. Answered: the row is
                                  refused. Not: the run stops.

    So an endpoint that is down costs no row, and a row that an endpoint cannot take costs no run.
    """

    def __init__(self, in_a_row: int, share: float, flag: str = "--max-rejected-share") -> None:
        self.answered_before: dict[str, Request] = {}  # by model; in this run or, with a kept reply, in an earlier one
        self._most = in_a_row  # rows that fail one after another, in the order in which they came, that stop the run
        self._share = share  # of the rows that were asked about; when more than that fail, the run stops
        self._flag = flag  # which says so; "": none does
        self._rows = 0
        self._places: OrderedDict[str, int] = OrderedDict()  # row → its place in the order, of those remembered
        self._failed: dict[int, str] = {}  # place → row
        self._waiting: list[str] = []
        self._answers: Counter[str] = Counter()  # by model
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

    def answered(self, request: Request) -> None:
        self.answered_before[request.model] = request
        self._answers[request.model] += 1
        self._tell()

    def stop(self, error: Exception) -> None:
        """Nobody waits any longer."""
        self._stopped = self._stopped or error
        self._tell()

    async def decide(
        self, row: str, model: str, trouble: VcotError, control: Callable[[Request | None], Awaitable[bool]]
    ) -> Exception:
        """Waits until it is known: RowFailed where it is the row, else the trouble and whom it met. `control`: whether
        a request that was answered before is answered now; None: a tiny one."""
        self._count(row, trouble)
        seen = self._answers[model]
        self._waiting.append(row)
        try:
            while self._stopped is None and self._answers[model] == seen:
                if self._busy or self._proving:
                    await self._news.wait()
                    continue
                self._proving = True
                try:
                    if await control(self.answered_before.get(model)):
                        self._answers[model] += 1
                    else:
                        self._stop_for(f"nothing was answered since {_named(self._waiting)} failed", trouble)
                finally:
                    self._proving = False
                    self._tell()
        finally:
            self._waiting.remove(row)
        return self._stopped or RowFailed(str(trouble))

    def _count(self, row: str, trouble: VcotError) -> None:
        place = self._places.get(row, self._rows)
        self._failed[place] = row
        before = list(itertools.takewhile(self._failed.__contains__, itertools.count(place, -1)))
        after = itertools.takewhile(self._failed.__contains__, itertools.count(place + 1))
        run = [self._failed[n] for n in (*reversed(before), *after)]
        if len(run) >= self._most:
            what = f"{len(run)} rows in a row failed ({_named(run)}); --max-failed-in-a-row allows for more"
            self._stop_for(what, trouble)
        failed = [self._failed[n] for n in sorted(self._failed)]
        if len(failed) >= FEW and len(failed) > self._share * self._rows:
            what = f"{len(failed)} of {self._rows} rows failed ({_named(failed)})"
            most = f"{self._flag} {self._share:g} allows" if self._flag else f"{self._share:.0%}"
            self._stop_for(f"{what}, more than {most}", trouble)

    def _stop_for(self, what: str, trouble: VcotError) -> None:
        self.stop(type(trouble)(f"{what}: {trouble}"))

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _named(rows: Sequence[str]) -> str:
    """The first ten."""
    return ", ".join(rows[:10]) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
