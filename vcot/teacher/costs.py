"""What a try can cost at worst, and what its reply did cost; the same two functions for requests sent singly and in
batches.

    worst = costs.worst(request)           reserved before it is sent
    reply, spent = costs.spent(reply, worst)     settled, and kept with the reply

An endpoint counts the tokens, and may count wrongly or not at all. Each count that cannot be believed is taken at its
worst, so that the ceiling holds whatever an endpoint says.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from vcot import log
from vcot.records import Completion
from vcot.teacher.amount import Amount
from vcot.teacher.estimate import prompt_tokens
from vcot.teacher.prices import PICO, Prices
from vcot.teacher.request import Request

BELIEVED_TIMES, BELIEVED_TOKENS = 16, 131_072
"""A prompt may have more tokens than foreseen at most, where a model cuts pictures finer than its formula says or a
gateway adds words of its own. It is believed up to so many times, or so many tokens, whichever is more. A reply may be
longer than it should be, where a server does not know max_completion_tokens; it is believed up to so many tokens."""


class Worst(NamedTuple):
    """The most that one try can take.

    Args:
        tokens_in, tokens_out: of the prompt and of the reply.
        amount: what is reserved for it.
        stretch: by which factor tokens_in are more than they were foreseen to be, as earlier prompts taught.
    """

    model: str
    tokens_in: int
    tokens_out: int
    batch: bool
    amount: Amount
    stretch: float = 1.0


class Costs:
    """Args: what tokens cost. It learns from prompts and replies that have more tokens than foreseen at most."""

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self._stretch = 1.0
        self._longest = 0  # reply of those that were longer than they should be; one of 16 tokens may be as long

    def worst(self, request: Request, *, batch: bool = False) -> Worst:
        """Every byte of its words a token, its pictures by the provider's formula, the longest reply that it may have,
        or that came all the same."""
        foreseen = prompt_tokens(request, self.prices.of(request.model)).most
        tokens_in = math.ceil(foreseen * self._stretch)
        tokens_out = max(request.reply_tokens, self._longest)
        worst = self.worst_of(request.model, tokens_in, tokens_out, batch=batch)
        return worst._replace(stretch=self._stretch)

    def worst_of(self, model: str, tokens_in: int, tokens_out: int, *, batch: bool) -> Worst:
        """The same, of tokens that were counted before."""
        price = self.prices.of(model)
        pico = price.cost(tokens_in, tokens_out, batch=batch) if price else 0
        return Worst(model, tokens_in, tokens_out, batch, Amount(pico, tokens_in + tokens_out, 1))

    def spent(self, reply: Completion, worst: Worst) -> tuple[Completion, Amount]:
        """The reply with its cost and with tokens that can be believed, and what the try takes of the budget."""
        foreseen = worst.tokens_in / worst.stretch
        tokens_in, cached, tokens_out = reply.tokens_in, reply.tokens_cached, reply.tokens_out
        if not 0 < tokens_in <= max(BELIEVED_TOKENS, BELIEVED_TIMES * foreseen):
            tokens_in, cached = worst.tokens_in, 0
        if not 0 < tokens_out <= max(BELIEVED_TOKENS, worst.tokens_out):
            tokens_out = worst.tokens_out
        if cached > tokens_in:
            cached = 0
        if tokens_in > worst.tokens_in:
            log.get().warning("a prompt had more tokens than foreseen; the rest is counted higher", tokens=tokens_in)
            self._stretch = max(self._stretch, tokens_in / foreseen)
        if tokens_out > worst.tokens_out:
            log.get().warning("a reply had more tokens than allowed; the rest is counted higher", tokens=tokens_out)
            self._longest = max(self._longest, tokens_out)
        price = self.prices.of(worst.model)
        pico = price.cost(tokens_in, tokens_out, cached, batch=worst.batch) if price else 0
        believed = {"tokens_in": tokens_in, "tokens_cached": cached, "tokens_out": tokens_out}
        counted = reply.model_copy(update={**believed, "cost": pico / PICO if price else None})
        return counted, Amount(pico, tokens_in + tokens_out, 1)
