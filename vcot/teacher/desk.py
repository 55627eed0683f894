"""The one Asker: a reply is looked up, else asked for, and kept the moment it arrives.

    request → kept reply
            → budget → endpoint → kept, then given
              └── again, after a pause, where it failed in a way that passes

Whatever ends the process, nothing that was stored is paid for twice. Each try is reserved by itself, because an
endpoint may be paid for an answer that never arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from vcot.errors import VcotError
from vcot.records import Completion
from vcot.storage.images import ImageError
from vcot.teacher.amount import NOTHING, SENT
from vcot.teacher.answers import refused
from vcot.teacher.bill import Bill
from vcot.teacher.body import packed
from vcot.teacher.budget import Budget, Unlimited
from vcot.teacher.costs import Costs
from vcot.teacher.endpoint import Again, Endpoint, SchemaRefused, Unanswered
from vcot.teacher.endpoints import Endpoints
from vcot.teacher.failures import Failures, Where
from vcot.teacher.pictures import Pictures
from vcot.teacher.prices import Prices
from vcot.teacher.rates import LONGEST_PAUSE
from vcot.teacher.replies import Replies
from vcot.teacher.request import Request

FIRST_PAUSE, LAST_PAUSE = 1.0, 60.0
"""Seconds: a pause is anything between 0 and the first, doubled with each try, but no longer than the last."""

CONTROL, CONTROL_TOKENS = "Say OK.", 16
"""Of a request that only shows whether an endpoint answers: its words, where none was answered before, and the most
tokens of its reply."""


class Closing(Exception):
    """The work is being stopped: no new request."""


class Desk:
    """For one event loop.

    Args:
        endpoints: who is asked; replies: where replies are kept; pictures: how pictures are packed.
        prices: what a reply costs.
        retries: how often a request is tried again.
        failures: what becomes of a request that is not answered in any of its tries.
    """

    def __init__(
        self, endpoints: Endpoints, replies: Replies, pictures: Pictures, prices: Prices, *, retries: int = 8,
        failures: Failures | None = None,
    ) -> None:  # fmt: skip
        self.replies, self.costs, self.bill = replies, Costs(prices), Bill()
        self.pictures, self._endpoints = pictures, endpoints
        self._retries = retries
        self._failures = failures or Failures(10, 0.05)
        self._budget: Budget = Unlimited()
        self._ready = asyncio.Semaphore(2 * endpoints.at_once)
        self._asking: dict[str, asyncio.Future[None]] = {}
        self._closing = asyncio.Event()

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        """See request.Asker. Raises Closing too, once `stop_asking` was called."""
        key = request.key()
        while (twin := self._asking.get(key)) is not None:
            await asyncio.wait([twin])
        asking = self._asking[key] = asyncio.get_running_loop().create_future()
        try:
            with self._failures.busy(row):
                completion = await asyncio.to_thread(self.replies.get, key)
                if completion is not None:
                    self.bill.reply(source, request.purpose, completion, kept=True)
                    self._failures.kept(request, completion)
                    return completion
                found = await self._pay_for(key, request, source)
            if isinstance(found, Completion):
                return found
            where = Where(found.at, request.model)
            await self._failures.judge(row, where, found.trouble, partial(self._answers, found.at, source, request))
        finally:
            del self._asking[key]
            asking.set_result(None)

    async def spend_from(self, budget: Budget) -> None:
        """From here on. What is left of the budget before goes back."""
        await self._budget.close()
        self._budget = budget

    def stop_asking(self) -> None:
        self._closing.set()
        self._failures.stop(Closing())

    @property
    def kept_in(self) -> str:
        return self.replies.uri

    @property
    def first_endpoint(self) -> Endpoint:
        return self._endpoints.all[0]

    @property
    def at_once(self) -> int:
        return self._endpoints.at_once

    @property
    def under_way(self) -> int:
        return self._endpoints.under_way

    def counts(self) -> Mapping[str, Any]:
        return self.bill.totals()

    async def close(self) -> None:
        await self._budget.close()
        await self._endpoints.close()

    async def _pay_for(self, key: str, request: Request, source: str) -> Completion | Unanswered:
        """Unanswered: it may be this request's own fault."""
        async with self._ready:
            if self._closing.is_set():
                raise Closing
            body = await packed(request, self.pictures)
            try:
                completion = await self._tried(body, request, source)
            except Unanswered as failed:
                if failed.whole:
                    raise failed.trouble from failed
                return failed
        completion = await asyncio.to_thread(self.replies.keep, key, completion)
        self.bill.reply(source, request.purpose, completion, kept=False)
        return completion

    async def _answers(self, address: str, source: str, failed: Request, known: Request | None) -> bool:
        """Whether an endpoint answers what was answered before, which costs its prompt again, and a few words; None: a
        request like the one that failed, without what it says and shows of its row."""
        known = known or replace(failed, parts=(CONTROL,))
        short = replace(known, purpose="control", reply_tokens=CONTROL_TOKENS)
        try:
            completion = await self._tried(await packed(short, self.pictures), short, source, at=address)
        except (Unanswered, ImageError):
            return False
        self.bill.reply(source, short.purpose, completion, kept=False)
        return True

    async def _tried(self, body: bytes, request: Request, source: str, at: str | None = None) -> Completion:
        """The one place where anything is tried again. Raises Unanswered, whose trouble says how often it was."""
        tries = AsyncRetrying(
            stop=stop_after_attempt(self._retries + 1),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=LAST_PAUSE),
            retry=retry_if_exception(self._may_pass),
            sleep=self._pause,
            reraise=True,
        )
        try:
            return await tries(self._try, body, request, source, at)
        except Unanswered as failed:
            number = int(tries.statistics["attempt_number"])
            if number > 1:
                failed.trouble = type(failed.trouble)(f"after {number} tries: {failed.trouble}")
            raise

    def _may_pass(self, error: BaseException) -> bool:
        """A pause longer than we sit out is left to whoever starts this again, unless there is somebody else to ask."""
        if not isinstance(error, Again):
            return False
        return len(self._endpoints.all) > 1 or (error.after or 0) <= LONGEST_PAUSE

    async def _pause(self, seconds: float) -> None:
        """Cut short where the work is being stopped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _try(self, body: bytes, request: Request, source: str, at: str | None) -> Completion:
        while True:
            try:
                return await self._once(body, request, source, at)
            except SchemaRefused:  # each endpoint says so once to each request under way
                continue

    async def _once(self, body: bytes, request: Request, source: str, at: str | None) -> Completion:
        """At most one request that leaves the process; whatever becomes of it, it counts as one."""
        worst = self.costs.worst(request)
        await self._budget.reserve(worst.amount)
        spent = NOTHING
        try:
            async with self._endpoints.slot(worst.amount.tokens, at) as endpoint:
                if self._closing.is_set():
                    raise Closing
                spent = worst.amount  # until more is known, and if this is called off
                reply = await endpoint.ask(body, request.model)
            if reply is None:
                spent = SENT
                return refused(request.model)
            completion, spent = self.costs.spent(reply, worst)
            if at is None:
                self._failures.answered(Where(endpoint.address, request.model), request)
            return completion
        except Unanswered as failed:
            failed.at = endpoint.address
            spent = worst.amount if failed.billed else SENT if failed.sent else NOTHING
            if isinstance(failed, Again):
                self.bill.again(source, request.purpose, spent.pico)
            raise
        except VcotError:  # before anything was sent
            spent = NOTHING
            raise
        finally:
            self._budget.settle(worst.amount, spent)
