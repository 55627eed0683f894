"""Whole numbers and how often each was counted: what is in the middle, and how far it reaches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import Field

from vcot.records.base import Record

Number = int | float
N = TypeVar("N", int, float)


class Spread(Record):
    """Of values that were counted. Half of them are no larger than the median, nine of ten no larger than p90."""

    n: int = Field(description="how many values")
    min: Number
    median: Number
    p90: Number
    max: Number


class Bar(Record):
    """How many values lie in low ≤ value < below; the last bar holds all above, too (below: null)."""

    low: Number
    below: Number | None
    n: int


class Distribution(Spread):
    bars: tuple[Bar, ...] = Field(description="one beside the other, from the first to the last that is not empty")


def percentile(counts: Mapping[N, int], share: float) -> N:
    """The smallest value below or at which `share` of what was counted lies; 0 of nothing."""
    total, below = sum(counts.values()), 0
    for value in sorted(counts):
        below += counts[value]
        if below >= share * total:
            return value
    return 0


def spread(counts: Mapping[float, int]) -> Spread:
    return Spread(
        n=sum(counts.values()), min=min(counts, default=0), median=percentile(counts, 0.5),
        p90=percentile(counts, 0.9), max=max(counts, default=0),
    )  # fmt: skip


def distribution(counts: Mapping[float, int], edges: Sequence[float]) -> Distribution:
    """edges: where bars begin, rising; the first stands for all below it, too."""
    found = [0] * len(edges)
    for value, often in counts.items():
        found[max(0, bisect_right(edges, value) - 1)] += often
    filled = [place for place, often in enumerate(found) if often] or [0]
    bars = [
        Bar(low=edges[place], below=edges[place + 1] if place + 1 < len(edges) else None, n=found[place])
        for place in range(filled[0], filled[-1] + 1)
    ]
    return Distribution(**spread(counts).model_dump(), bars=tuple(bars))
