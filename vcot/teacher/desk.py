"""The one Asker: a reply is looked up, else asked for, and kept the moment it arrives.

    request → kept reply
            → budget → endpoint → kept, then given
              └── again, after a pause, where it failed in a way that passes

Whatever ends the process, nothing that was stored is paid for twice. Each try is reserved by itself, because an
endpoint may be paid for an answer that never arrived.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from vcot import log
from vcot.errors import VcotError
from vcot.records import Completion
from vcot.teacher.amount import NOTHING, Amount
from vcot.teacher.bill import Bill
from vcot.teacher.body import packed
from vcot.teacher.budget import Budget, Unlimited
from vcot.teacher.endpoint import Again, Endpoint
from vcot.teacher.endpoints import Endpoints
from vcot.teacher.estimate import prompt_tokens
from vcot.teacher.pictures import Pictures
from vcot.teacher.prices import PICO, Prices
from vcot.teacher.rates import LONGEST_PAUSE
from vcot.teacher.replies import Replies
from vcot.teacher.request import Request

FIRST_PAUSE, LAST_PAUSE = 1.0, 60.0
"""Seconds: a pause is anything between 0 and the first, doubled with each try, but no longer than the last."""


class Closing(Exception):
    """The work is being stopped: no new request."""


class Desk:
    """For one event loop.

    Args:
        endpoints: who is asked; replies: where replies are kept; pictures: how pictures are packed.
        prices: what a reply costs.
        retries: how often a request is tried again.
    """

    def __init__(
        self, endpoints: Endpoints, replies: Replies, pictures: Pictures, prices: Prices, *, retries: int = 8
    ) -> None:
        self.replies, self.prices, self.bill = replies, prices, Bill()
        self.pictures, self._endpoints = pictures, endpoints
        self._retries = retries
        self._budget: Budget = Unlimited()
        self._ready = asyncio.Semaphore(2 * endpoints.at_once)
        self._asking: dict[str, asyncio.Future[None]] = {}
        self._closing = asyncio.Event()
        self._stretch = 1.0

    async def ask(self, request: Request, *, source: str) -> Completion:
        """See request.Asker. Raises Closing too, once `stop_asking` was called."""
        key = request.key()
        while (twin := self._asking.get(key)) is not None:
            await asyncio.wait([twin])
        asking = self._asking[key] = asyncio.get_running_loop().create_future()
        try:
            completion = await asyncio.to_thread(self.replies.get, key)
            if completion is not None:
                self.bill.reply(source, request.purpose, completion, kept=True)
                return completion
            return await self._pay_for(key, request, source)
        finally:
            del self._asking[key]
            asking.set_result(None)

    async def spend_from(self, budget: Budget) -> None:
        """From here on. What is left of the budget before goes back."""
        await self._budget.close()
        self._budget = budget

    def stop_asking(self) -> None:
        self._closing.set()

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

    async def _pay_for(self, key: str, request: Request, source: str) -> Completion:
        async with self._ready:
            if self._closing.is_set():
                raise Closing
            body = await packed(request, self.pictures)
            completion = await self._tried(body, request, source)
        completion = await asyncio.to_thread(self.replies.keep, key, completion)
        self.bill.reply(source, request.purpose, completion, kept=False)
        return completion

    async def _tried(self, body: bytes, request: Request, source: str) -> Completion:
        """The one place where anything is tried again."""
        tries = AsyncRetrying(
            stop=stop_after_attempt(self._retries + 1),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE, max=LAST_PAUSE),
            retry=retry_if_exception(self._may_pass),
            sleep=self._pause,
            reraise=True,
        )
        try:
            return await tries(self._try, body, request, source)
        except Again as again:
            number = int(tries.statistics["attempt_number"])
            raise _given_up(again.trouble, number) from again

    def _may_pass(self, error: BaseException) -> bool:
        """A pause longer than we sit out is left to whoever starts this again, unless there is somebody else to ask."""
        if not isinstance(error, Again):
            return False
        return len(self._endpoints.all) > 1 or (error.after or 0) <= LONGEST_PAUSE

    async def _pause(self, seconds: float) -> None:
        """Cut short where the work is being stopped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _try(self, body: bytes, request: Request, source: str) -> Completion:
        price = self.prices.of(request.model)
        prompt = math.ceil(prompt_tokens(request, price).most * self._stretch)
        whole = prompt + request.reply_tokens
        worst = Amount(price.cost(prompt, request.reply_tokens) if price else 0, whole, 1)
        await self._budget.reserve(worst)
        spent = NOTHING
        try:
            async with self._endpoints.slot(whole) as endpoint:
                if self._closing.is_set():
                    raise Closing
                spent = worst  # until more is known, and if this is called off
                completion = await endpoint.ask(body, request.model)
            used = completion.tokens_in + completion.tokens_out
            if not used:  # refused for its content, or nobody says what it was
                spent = NOTHING if completion.finish_reason == "content_filter" else worst
                return completion
            cost = price.cost(completion.tokens_in, completion.tokens_out, completion.tokens_cached) if price else None
            spent = Amount(cost or 0, used, 1)
            self._learn(completion.tokens_in, prompt)
            return completion.model_copy(update={"cost": None if cost is None else cost / PICO})
        except Again as again:
            spent = worst if again.billed else NOTHING
            self.bill.again(source, request.purpose, spent.pico)
            raise
        except VcotError:
            spent = NOTHING  # refused
            raise
        finally:
            self._budget.settle(worst, spent)

    def _learn(self, tokens: int, foreseen: int) -> None:
        """A prompt with more tokens than it was thought to have at most: later ones are thought to have more."""
        if tokens > foreseen:
            log.get().warning("a prompt had more tokens than foreseen; the rest is counted higher", tokens=tokens)
            self._stretch *= tokens / foreseen


def _given_up(trouble: VcotError, tries: int) -> VcotError:
    return trouble if tries == 1 else type(trouble)(f"after {tries} tries: {trouble}")
