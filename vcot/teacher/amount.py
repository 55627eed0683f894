"""An amount of what a budget limits: picodollars, tokens and requests, counted together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

UNLIMITED = 10**30
"""More than anybody will spend; sums and parts of it stay out of reach."""


class Amount(NamedTuple):
    """Whole numbers, so that sums are exact; as a ceiling, UNLIMITED where nothing is limited."""

    pico: int = 0
    tokens: int = 0
    requests: int = 0

    def plus(self, other: Amount) -> Amount:
        return Amount(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Amount) -> Amount:
        return Amount(*(a - b for a, b in zip(self, other, strict=True)))

    def times(self, factor: int) -> Amount:
        return Amount(*(a * factor for a in self))

    def least(self, other: Amount) -> Amount:
        return Amount(*map(min, self, other))

    def most(self, other: Amount) -> Amount:
        return Amount(*map(max, self, other))

    def within(self, other: Amount) -> bool:
        """Whether there is no more of anything in it than in the other."""
        return all(a <= b for a, b in zip(self, other, strict=True))


NOTHING = Amount()
SENT = Amount(requests=1)
"""Of a request that nobody is paid for: it left the process all the same."""

ENDLESS = Amount(UNLIMITED, UNLIMITED, UNLIMITED)


def total(amounts: Iterable[Amount]) -> Amount:
    summed = NOTHING
    for amount in amounts:
        summed = summed.plus(amount)
    return summed


def shared_out(ceiling: Amount, weights: Mapping[int, int]) -> dict[int, Amount]:
    """Index → its part, in proportion to its weight (equal parts where none has any); together exactly the ceiling."""
    whole = sum(weights.values())
    shares = dict(weights) if whole else dict.fromkeys(weights, 1)
    whole = whole or len(shares)
    parts: dict[int, Amount] = {}
    given, passed = NOTHING, 0
    for index, share in shares.items():
        passed += share
        upto = Amount(*(limit if limit == UNLIMITED else limit * passed // whole for limit in ceiling))
        parts[index] = Amount(*(u if u == UNLIMITED else u - g for u, g in zip(upto, given, strict=True)))
        given = upto
    return parts
