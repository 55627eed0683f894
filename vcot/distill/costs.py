"""What requests use and cost: the worst case beforehand, the real cost afterwards, and the cost report.

    worst = costs.worst(request)                 reserved before the request is sent
    reply, spent = costs.spent(reply, worst)     settled, and stored with the reply

An endpoint counts the tokens, and may count wrongly or not at all. A count that cannot be believed is replaced by its
worst case, so that the budget holds whatever an endpoint says. Single requests and batches use the same functions.
"""

from __future__ import annotations

import json
import math
import operator
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import reduce
from typing import Any, NamedTuple

from vcot import logging
from vcot.distill.images import size_of
from vcot.distill.prices import PICO, UNKNOWN_IMAGE, Price, Prices
from vcot.distill.request import Request
from vcot.records import Completion
from vcot.records.metadata import Line

UNLIMITED = 10**30  # more than anybody will spend
MESSAGES = 64  # tokens around the messages at most: roles, separators, the frame of an image or a schema
BYTES_A_TOKEN = 4  # common in English prose; a token has at least one byte

# A prompt may have more tokens than foreseen, where a model cuts images finer than its formula says or a gateway adds
# words: it is believed up to so many times the estimate, or so many tokens, whichever is more. A reply may be longer
# than allowed, where a server does not know max_completion_tokens: it is believed up to so many tokens.
BELIEVED_TIMES, BELIEVED_TOKENS = 16, 131_072


class Usage(NamedTuple):
    """What a budget limits, in whole numbers so that sums are exact. As a limit: UNLIMITED where nothing is limited."""

    pico: int = 0
    tokens: int = 0
    requests: int = 0

    def plus(self, other: Usage) -> Usage:
        return Usage(*map(operator.add, self, other))

    def minus(self, other: Usage) -> Usage:
        return Usage(*map(operator.sub, self, other))

    def least(self, other: Usage) -> Usage:
        return Usage(*map(min, self, other))

    def most(self, other: Usage) -> Usage:
        return Usage(*map(max, self, other))

    def within(self, limit: Usage) -> bool:
        return all(map(operator.le, self, limit))


NOTHING = Usage()
SENT = Usage(requests=1)
"""Of a request that is not paid for: it left the process all the same."""


def total(usages: Iterable[Usage]) -> Usage:
    return reduce(Usage.plus, usages, NOTHING)


class PromptTokens(NamedTuple):
    likely: int
    most: int


def prompt_tokens(request: Request, price: Price | None) -> PromptTokens:
    """Tokens of all that is sent, before it is sent and without the model's tokenizer.

    Images by the provider's formula (see prices.toml); text has at most one token a byte.
    """
    texts = [request.prompt.text, *(part for part in request.parts if isinstance(part, str))]
    if request.schema is not None:
        texts.append(json.dumps(request.schema))
    text = sum(len(part.encode()) for part in texts)
    formula = UNKNOWN_IMAGE if price is None or price.image is None else price.image
    images = sum(formula.tokens(*size_of(part)) for part in request.parts if not isinstance(part, str))
    return PromptTokens(likely=text // BYTES_A_TOKEN + images + 16, most=text + images + MESSAGES)


class Worst(NamedTuple):
    """The most that one try can use. `stretch`: by which factor tokens_in exceeds the estimate, as earlier prompts
    taught."""

    model: str
    tokens_in: int
    tokens_out: int
    batch: bool
    usage: Usage
    stretch: float = 1.0


class Costs:
    """What tries may cost and did cost. It learns from prompts and replies that have more tokens than foreseen."""

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self._stretch = 1.0
        self._longest = 0  # of the replies that were longer than allowed: from then on each may be as long

    def worst(self, request: Request, *, batch: bool = False) -> Worst:
        foreseen = prompt_tokens(request, self.prices.of(request.model)).most
        tokens_out = max(request.reply_tokens, self._longest)
        worst = self.worst_of(request.model, math.ceil(foreseen * self._stretch), tokens_out, batch=batch)
        return worst._replace(stretch=self._stretch)

    def worst_of(self, model: str, tokens_in: int, tokens_out: int, *, batch: bool) -> Worst:
        """The same, of tokens that were counted before."""
        price = self.prices.of(model)
        pico = price.cost(tokens_in, tokens_out, batch=batch) if price else 0
        return Worst(model, tokens_in, tokens_out, batch, Usage(pico, tokens_in + tokens_out, 1))

    def spent(self, reply: Completion, worst: Worst) -> tuple[Completion, Usage]:
        """The reply with its cost and with tokens that can be believed, and what the try used of the budget."""
        foreseen = worst.tokens_in / worst.stretch
        tokens_in, cached, tokens_out = reply.tokens_in, reply.tokens_cached, reply.tokens_out
        if not 0 < tokens_in <= max(BELIEVED_TOKENS, BELIEVED_TIMES * foreseen):
            tokens_in, cached = worst.tokens_in, 0
        if not 0 < tokens_out <= max(BELIEVED_TOKENS, worst.tokens_out):
            tokens_out = worst.tokens_out
        if cached > tokens_in:
            cached = 0
        if tokens_in > worst.tokens_in:
            logging.get().warning(
                "a prompt had more tokens than foreseen; the rest is counted higher", tokens=tokens_in
            )
            self._stretch = max(self._stretch, tokens_in / foreseen)
        if tokens_out > worst.tokens_out:
            logging.get().warning("a reply had more tokens than allowed; the rest is counted higher", tokens=tokens_out)
            self._longest = max(self._longest, tokens_out)
        price = self.prices.of(worst.model)
        pico = price.cost(tokens_in, tokens_out, cached, batch=worst.batch) if price else 0
        believed = {"tokens_in": tokens_in, "tokens_cached": cached, "tokens_out": tokens_out}
        counted = reply.model_copy(update={**believed, "cost": pico / PICO if price else None})
        return counted, Usage(pico, tokens_in + tokens_out, 1)


class CostReport:
    """What was asked and paid, by source (dataset of the rows) and purpose of the request; the names of a line are
    those of records.metadata.Line. Money is summed in picodollars and reported in US dollars."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def replied(self, source: str, purpose: str, reply: Completion, *, kept: bool) -> None:
        """A reply was used; `kept`: it was in storage before."""
        cost = None if reply.cost is None else round(reply.cost * PICO)
        line = self._lines[source, purpose]
        line["kept_replies_used" if kept else "requests"] += 1
        line["tokens_in"] += reply.tokens_in
        line["tokens_cached"] += reply.tokens_cached
        line["tokens_out"] += reply.tokens_out
        line["unpriced"] += cost is None
        line["usd"] += cost or 0
        if not kept:
            line["tokens_paid"] += reply.tokens_in + reply.tokens_out
            line["usd_paid"] += cost or 0

    def failed(self, source: str, purpose: str, lost: int) -> None:
        """A try failed; `lost`: picodollars that it may have cost."""
        line = self._lines[source, purpose]
        line["tries_again"] += 1
        line["usd_lost"] += lost

    def lines(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{source: {purpose: line}}"""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for (source, purpose), line in sorted(self._lines.items()):
            found.setdefault(source, {})[purpose] = _in_dollars(line)
        return found

    def totals(self) -> dict[str, Any]:
        return _in_dollars(sum(self._lines.values(), Counter()))


def _in_dollars(line: Counter[str]) -> dict[str, Any]:
    names = Line.model_fields
    return {name: round(line[name] / PICO, 9) if name.startswith("usd") else line[name] for name in names}
