"""The budget of a run: it is never passed, by any number of requests at once, of processes, pods, batches or kills. And
what a run, or the rest of one, will take of it.

    await lease.reserve(worst)  →  send  →  lease.settle(worst, spent)

One ledger in storage holds what was taken from the budget before it is spent:

    <stage>/_budget/0000000001.json    {"holder": "pod-a-…", "taken": [picodollars, tokens, requests], "total": […]}
                    0000000002.json    {"holder": "pod-a-…", "taken": [-…], "total": […]}    given back

A process takes a lease that serves several requests and gives back what is left of it when it ends. What a killed
process had taken and not given back counts as spent.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING

from vcot.distill import lacks_places
from vcot.distill.costs import NOTHING, PICO, UNLIMITED, Prices, Usage, dollars, prompt_tokens
from vcot.distill.request import ReplyCache, Request
from vcot.errors import BudgetSpent, SettingsError, VcotError
from vcot.records import Completion, Sample
from vcot.storage import Store, append, join, numbered, read_json

if TYPE_CHECKING:
    from vcot.distill.runner import ModelTeacher

FLAGS = ("--budget-usd", "--budget-tokens", "--budget-requests")

# A lease takes no more than this part of what is left, so that the last money is not stuck with one process, and a
# killed one loses little.
SHARE = 64


def budget_of(usd: Decimal | None, tokens: int | None, requests: int | None) -> Usage:
    return Usage(UNLIMITED if usd is None else int(usd * PICO), tokens or UNLIMITED, requests or UNLIMITED)


def check_prices(prices: Prices, models: Iterable[str | None], budget: Usage) -> None:
    """Raises SettingsError: dollars are limited, and nobody knows what a model costs."""
    unknown = [model for model in models if model and prices.of(model) is None]
    if unknown and budget.pico != UNLIMITED:
        raise SettingsError(
            f"{FLAGS[0]} {dollars(budget.pico)}: unknown price of {', '.join(unknown)}, so nobody can keep to it. "
            "Give the price with --prices FILE (vcot/distill/prices.toml shows the form), or limit --budget-tokens"
        )


class Ledger:
    """What was taken of a budget, by all processes of the run. Entries are numbered and written once: of two that take
    at the same moment, one must look again."""

    def __init__(self, store: Store, stage_uri: str, budget: Usage) -> None:
        self.budget = budget
        self._store, self._uri = store, join(stage_uri, "_budget")
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._taken, self._last = NOTHING, 0
        self.limited = any(limit != UNLIMITED for limit in budget)
        self.limits_tokens = budget.pico != UNLIMITED or budget.tokens != UNLIMITED

    def take(self, least: Usage, wanted: Usage) -> Usage | None:
        """Takes what is wanted, as far as a fair share of what is left goes; None, and nothing happens, where less
        than `least` is left."""
        while True:
            left = self.budget.minus(self._taken).most(NOTHING)
            if not least.within(left):
                left = self.left()  # somebody may have given back
                if not least.within(left):
                    return None
            share = Usage(*(limit // SHARE for limit in left))
            granted = least.most(wanted.least(share)).most(NOTHING)
            if self._write(granted):
                return granted

    def give_back(self, usage: Usage) -> None:
        """Below zero where more was spent than was taken: then that is written down, too."""
        while self.limited and usage != NOTHING and not self._write(NOTHING.minus(usage)):
            pass

    def taken(self) -> Usage:
        self._catch_up()
        return self._taken

    def left(self) -> Usage:
        return self.budget.minus(self.taken()).most(NOTHING)

    def _write(self, taken: Usage) -> bool:
        """Whether it became the next entry; else the entries of others are known now."""
        total = self._taken.plus(taken)
        entry = json.dumps({"holder": self._holder, "taken": taken, "total": total}).encode()
        if append(self._store, self._uri, entry, self._last) is None:
            self._catch_up()
            return False
        self._taken, self._last = total, self._last + 1
        return True

    def _catch_up(self) -> None:
        """An entry holds the total of all before it, so the newest one is enough."""
        entries = numbered(self._store, self._uri)
        newest = max(entries, default=0)
        if newest <= self._last:
            return
        uri = entries[newest]
        taken = read_json(self._store, uri, lambda entry: Usage(*map(int, entry["total"])), "use another run name")
        self._taken, self._last = taken, newest


class Lease:
    """What one process has taken of the budget and not yet spent; for one event loop. `requests`: how many of the
    present size are taken at once, at most."""

    def __init__(self, ledger: Ledger, requests: int) -> None:
        self._ledger, self._requests = ledger, requests
        self._taking: asyncio.Future[bool] | None = None
        self._free, self._under_way = (NOTHING if ledger.limited else ledger.budget), 0
        self._turn, self._returned = asyncio.Lock(), asyncio.Event()

    async def reserve(self, worst: Usage) -> None:
        """Raises BudgetSpent: so much is not left, and nothing that is under way can come back."""
        async with self._turn:  # who came first is served first
            while not worst.within(self._free):
                self._returned.clear()
                missing = worst.minus(self._free).most(NOTHING)
                wanted = Usage(*(self._requests * one for one in worst)).minus(self._free)
                self._taking = asyncio.ensure_future(self._take(missing, wanted))
                if await asyncio.shield(self._taking) or self._returned.is_set():
                    continue
                if not self._under_way:
                    raise BudgetSpent(self._explain(missing))
                await self._returned.wait()
            self._free = self._free.minus(worst)
            self._under_way += 1

    def settle(self, worst: Usage, spent: Usage) -> None:
        """The try is over: what it did not spend is free again."""
        self._free = self._free.plus(worst).minus(spent)
        self._under_way -= 1
        self._returned.set()

    async def close(self) -> None:
        """Gives back what was not spent."""
        async with self._turn:
            if self._taking is not None:
                await self._taking  # of a request that was called off
            free, self._free = self._free, NOTHING
            await asyncio.to_thread(self._ledger.give_back, free)

    async def _take(self, least: Usage, wanted: Usage) -> bool:
        granted = await asyncio.to_thread(self._ledger.take, least, wanted)
        self._free = self._free.plus(granted or NOTHING)
        return granted is not None

    def _explain(self, missing: Usage) -> str:
        left, budget = self._ledger.left(), self._ledger.budget
        limited = [n for n, limit in enumerate(budget) if limit != UNLIMITED]
        lacks = [n for n in limited if missing[n] > left[n]] or limited
        needs = " and ".join(f"{_written(missing)[n]} at worst, of {_written(left)[n]}" for n in lacks)
        limits = ", ".join(f"{FLAGS[n]} {_written(budget)[n]}" for n in limited)
        return f"{' and '.join(FLAGS[n] for n in lacks)} is spent: the next request needs {needs} left of {limits}"


def _written(usage: Usage) -> tuple[str, str, str]:
    """In the order of FLAGS."""
    return dollars(usage.pico), f"{usage.tokens:,}", f"{usage.requests:,}"


# --- what rows will take of it
#
# Stored replies are free, and where a row's are stored, its next request is known as well; beyond that, rows ask what
# their strategy estimates. Tokens of images come from the provider's formula, those of text from its length, those of
# replies from what is stored.

# Where no reply is stored: tokens of one, four short sentences or a small JSON, and seconds until it comes.
LIKELY_REPLY, LIKELY_SECONDS = 150, 5.0
LOOKED_UP = 1000  # rows of which it is looked up what is stored, when the budget is spent; of more, one in so many


class NotKept(Exception):
    """The reply would have to be paid for."""


class KeptReplies:
    """A Client of one row that has what is stored, and asks nobody."""

    def __init__(self, cache: ReplyCache) -> None:
        self.found: list[tuple[Request, Completion]] = []
        self.missing: Request | None = None  # the first that is not stored; what follows hangs on its reply
        self._cache = cache

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        """Raises NotKept."""
        completion = await asyncio.to_thread(self._cache.get, request.key())
        if completion is None:
            self.missing = request
            raise NotKept
        self.found.append((request, completion))
        return completion

    @classmethod
    async def of(cls, row: Sample, teacher: ModelTeacher) -> KeptReplies:
        kept = cls(teacher.client.cache)
        with suppress(NotKept):
            await teacher.strategy.outcome(row, kept)
        return kept


class Estimate:
    """Of these rows: what is stored, and what is still to be paid for."""

    def __init__(self, teacher: ModelTeacher, rows: Iterable[Sample]) -> None:
        self.rows = self.rows_to_ask = 0
        self.requests = self.unpriced = self.tokens_in = self.tokens_out = self.pico = self.pico_in_batches = 0
        self._client = teacher.client
        self._kept: Counter[str] = Counter()  # replies, by purpose
        self._kept_tokens: Counter[str] = Counter()
        self._kept_seconds = 0.0
        for row, kept in teacher.map(rows, lambda row, _: KeptReplies.of(row, teacher)):
            self.rows += 1
            self.rows_to_ask += kept.missing is not None
            for request, reply in kept.found:
                self._kept[request.purpose] += 1
                # A stored reply may hold a count that was believed when it came.
                self._kept_tokens[request.purpose] += min(reply.tokens_out, request.reply_tokens)
                self._kept_seconds += reply.seconds
            if kept.missing is not None:
                likely = teacher.strategy.estimate(row)
                done = sum(request.again == kept.missing.again for request, _ in kept.found)
                self._add(likely[min(done, len(likely) - 1) :], teacher.client.costs.prices)

    def add_pilot(self, requests: Iterable[Request]) -> None:
        """Add the requests of a pilot that are not stored."""
        for request in requests:
            if self._client.cache.get(request.key()) is None:
                self._add([request], self._client.costs.prices)

    def _add(self, requests: Sequence[Request], prices: Prices) -> None:
        for request in requests:
            price, number = prices.of(request.model), self._kept[request.purpose]
            tokens_in, tokens_out = prompt_tokens(request, price).likely, min(LIKELY_REPLY, request.reply_tokens)
            if number:
                tokens_out = round(self._kept_tokens[request.purpose] / number)
            self.requests += 1
            self.tokens_in += tokens_in
            self.tokens_out += tokens_out
            self.unpriced += price is None
            self.pico += price.cost(tokens_in, tokens_out) if price else 0
            self.pico_in_batches += price.cost(tokens_in, tokens_out, batch=True) if price else 0

    def table(self, at_once: int) -> str:
        """For people. Args: how many requests would be under way at once."""
        kept = self._kept.total()
        each = self._kept_seconds / kept if self._kept_seconds else LIKELY_SECONDS
        basis = f"as the {kept:,} kept replies" if kept else "assumed"
        seconds = self.requests * each / at_once
        hours, minutes = divmod(round(seconds / 60), 60)
        time = f"{seconds:.0f} s" if seconds < 90 else f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
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


def the_rest(rows: Iterable[Sample], number: int, teacher: ModelTeacher) -> str:
    """What is still to be asked of these rows, of the shards that are not finished. `number`: of the rows of all
    shards; of many, only some are looked up."""
    go_on = "What was paid for is kept, so the same command with more goes on from here"
    every = -(-number // LOOKED_UP) or 1
    try:
        rest = Estimate(teacher, islice(filter(lacks_places, rows), 0, None, every))
    except VcotError as error:  # that there is no more money is what matters
        return f"What the rest would cost cannot be told now ({error}). {go_on}"
    cost = f" and cost about {dollars(every * rest.pico)}" if rest.pico else ""
    return (
        f"The rest, about {every * rest.rows_to_ask:,} of {number:,} rows, would take about "
        f"{every * rest.requests:,} requests, {every * (rest.tokens_in + rest.tokens_out):,} tokens{cost}. {go_on}"
    )
