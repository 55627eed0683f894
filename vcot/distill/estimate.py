"""What rows will ask, cost and take, before anything is asked: `--dry-run`, and what is said when the budget is spent.

Stored replies are free, and where a row's are stored, its next request is known as well; beyond that, rows ask what
their strategy estimates. Tokens of images come from the provider's formula, those of text from its length, those of
replies from what is stored: all of it is an estimate, and says so. Limits are the business of budget.py.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from itertools import islice

from vcot.distill import lacks_places
from vcot.distill.costs import dollars, prompt_tokens
from vcot.distill.request import Client, Request
from vcot.distill.runner import ModelTeacher
from vcot.errors import VcotError
from vcot.records import Completion, Sample

# Where no reply is stored: tokens of one, four short sentences or a small JSON, and seconds until it comes.
LIKELY_REPLY, LIKELY_SECONDS = 150, 5.0
LOOKED_UP = 1000  # rows of which it is looked up what is stored, when the budget is spent; of more, one in so many


class NotKept(Exception):
    """The reply would have to be paid for."""


class Estimate:
    """Of all rows: what is stored, and what is still to be paid for."""

    def __init__(self, teacher: ModelTeacher) -> None:
        self.rows = self.rows_to_ask = 0
        self.requests = self.unpriced = self.tokens_in = self.tokens_out = self.pico = self.pico_in_batches = 0
        self._teacher = teacher
        self._kept: Counter[str] = Counter()  # replies, by purpose
        self._kept_tokens: Counter[str] = Counter()
        self._kept_seconds = 0.0

    def add(self, rows: Iterable[Sample]) -> None:
        async def missing(row: Sample, _: Client) -> list[Request]:
            kept = KeptReplies(self)
            try:
                await self._teacher.strategy.outcome(row, kept)
            except NotKept:
                likely = self._teacher.strategy.estimate(row)
                return list(likely[min(kept.found, len(likely) - 1) :])
            return []

        for _, requests in self._teacher.map(rows, missing):
            self.rows += 1
            self.rows_to_ask += bool(requests)
            for request in requests:
                self._add(request)

    def _add(self, request: Request) -> None:
        price = self._teacher.client.costs.prices.of(request.model)
        tokens_in, tokens_out = prompt_tokens(request, price).likely, self._reply_tokens(request)
        self.requests += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        if price is None:
            self.unpriced += 1
        else:
            self.pico += price.cost(tokens_in, tokens_out)
            self.pico_in_batches += price.cost(tokens_in, tokens_out, batch=True)

    def _reply_tokens(self, request: Request) -> int:
        if number := self._kept[request.purpose]:
            return round(self._kept_tokens[request.purpose] / number)
        return min(LIKELY_REPLY, request.reply_tokens)

    async def kept(self, request: Request) -> Completion | None:
        completion = await asyncio.to_thread(self._teacher.client.cache.get, request.key())
        if completion is not None:
            self._kept[request.purpose] += 1
            # A stored reply may hold a count that was believed when it came.
            self._kept_tokens[request.purpose] += min(completion.tokens_out, request.reply_tokens)
            self._kept_seconds += completion.seconds
        return completion

    def table(self, at_once: int) -> str:
        """For people. Args: how many requests would be under way at once."""
        kept = self._kept.total()
        each = self._kept_seconds / kept if self._kept_seconds else LIKELY_SECONDS
        basis = f"as the {kept:,} kept replies" if kept else "assumed"
        seconds = self.requests * each / at_once
        hours, minutes = divmod(round(seconds / 60), 60)
        hours_and_minutes = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
        time = f"{seconds:.0f} s" if seconds < 90 else hours_and_minutes
        lines = {
            "rows": f"{self.rows:,}, of which {self.rows_to_ask:,} need new replies",
            "replies kept": f"{kept:,}, free",
            "requests": f"{self.requests:,}, if each reply is good at once",
            "tokens in": f"about {self.tokens_in:,} (images by the provider's formula: an estimate)",
            "tokens out": f"about {self.tokens_out:,} ({basis})",
            "cost": self._cost(self.pico),
            "as a batch": self._cost(self.pico_in_batches),
            "time": f"about {time} at {at_once} at once, {each:.1f} s a reply ({basis})",
        }
        return "\n".join(f"{name:<14}{value}" for name, value in lines.items())

    def _cost(self, pico: int) -> str:
        if self.unpriced == self.requests > 0:
            return "unknown price; --prices FILE gives one"
        some = f", and {self.unpriced:,} requests of unknown price" if self.unpriced else ""
        return f"about {dollars(pico)}{some}"


class KeptReplies:
    """A Client of one row that only has what is stored."""

    def __init__(self, estimate: Estimate) -> None:
        self.found = 0  # since the row was begun, or asked about again
        self._again, self._estimate = 0, estimate

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        if request.again != self._again:
            self._again, self.found = request.again, 0
        completion = await self._estimate.kept(request)
        if completion is None:
            raise NotKept
        self.found += 1
        return completion


def the_rest(rows: Iterable[Sample], number: int, teacher: ModelTeacher) -> str:
    """What is still to be asked of these rows, for whom the budget has ended.

    Args:
        rows: of the shards that are not finished.
        number: of the rows of all shards; of many, only some are looked up.
    """
    go_on = "What was paid for is kept, so the same command with more goes on from here"
    every = -(-number // LOOKED_UP) or 1
    rest = Estimate(teacher)
    try:
        rest.add(islice(filter(lacks_places, rows), 0, None, every))
    except VcotError as error:  # that there is no more money is what matters
        return f"What the rest would cost cannot be told now ({error}). {go_on}"
    cost = f" and cost about {dollars(every * rest.pico)}" if rest.pico else ""
    return (
        f"The rest, about {every * rest.rows_to_ask:,} of {number:,} rows, would take about "
        f"{every * rest.requests:,} requests, {every * (rest.tokens_in + rest.tokens_out):,} tokens{cost}. {go_on}"
    )
