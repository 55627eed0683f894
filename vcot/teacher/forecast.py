"""What rows will ask and cost, before anything is asked: the sum of what each way foresees for each row.

Tokens of pictures come from the provider's formula, those of text from its length, those of replies from what was
seen so far: all of it is an estimate, and says so. Nothing here is a limit; budget.py has those.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import Field

from vcot.records import Completion, Sample
from vcot.records.base import Record
from vcot.teacher.estimate import LIKELY_REPLY, prompt_tokens
from vcot.teacher.prices import Prices
from vcot.teacher.request import Request
from vcot.teacher.row import Way

LIKELY_SECONDS = 5.0
"""For a reply, where none was seen yet."""


class Foreseen(Record):
    """Rows that need a teacher, and what they will ask, each reply being good at once."""

    version: Literal[1] = 1
    rows: int = Field(0, ge=0)
    requests: int = Field(0, ge=0)
    tokens_in: int = Field(0, ge=0)
    tokens_out: int = Field(0, ge=0)
    pico: int = Field(0, ge=0, description="picodollars, of those requests whose model has a known price")
    pico_in_batches: int = Field(0, ge=0, description="the same, asked in batches")
    unpriced: int = Field(0, ge=0, description="requests whose model has none")

    def plus(self, other: Foreseen) -> Foreseen:
        names = [name for name in Foreseen.model_fields if name != "version"]
        return Foreseen(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Replied:
    """How long replies are, and how long they take, by the purpose of the request; of those that are kept."""

    def __init__(self) -> None:
        self._seen: dict[str, list[Completion]] = defaultdict(list)

    def saw(self, purpose: str, reply: Completion) -> None:
        self._seen[purpose].append(reply)

    @property
    def seen(self) -> int:
        return sum(map(len, self._seen.values()))

    def tokens(self, request: Request) -> int:
        seen = self._seen.get(request.purpose)
        if not seen:
            return min(LIKELY_REPLY, request.reply_tokens)
        # A kept reply may hold a count that was believed when it was stored.
        return round(sum(min(reply.tokens_out, request.reply_tokens) for reply in seen) / len(seen))

    def seconds(self) -> float:
        times = [reply.seconds for replies in self._seen.values() for reply in replies]
        return sum(times) / len(times) if any(times) else LIKELY_SECONDS


def of_requests(requests: Sequence[Request], prices: Prices, replied: Replied) -> Foreseen:
    """Of one row's requests, or what is left of them."""
    sum_in = sum_out = pico = in_batches = unpriced = 0
    for request in requests:
        price = prices.of(request.model)
        prompt, reply = prompt_tokens(request, price).likely, replied.tokens(request)
        sum_in, sum_out = sum_in + prompt, sum_out + reply
        if price is None:
            unpriced += 1
            continue
        pico += price.cost(prompt, reply)
        in_batches += price.cost(prompt, reply, batch=True)
    return Foreseen(
        rows=bool(requests), requests=len(requests), tokens_in=sum_in, tokens_out=sum_out, pico=pico,
        pico_in_batches=in_batches, unpriced=unpriced,
    )  # fmt: skip


def of_rows(rows: Iterable[Sample], way: Way, prices: Prices) -> Foreseen:
    """Whatever is kept already."""
    total, nothing_seen = Foreseen(), Replied()
    for row in rows:
        total = total.plus(of_requests(way.foreseen(row), prices, nothing_seen))
    return total
