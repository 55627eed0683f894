"""Predicted and true boxes, paired one to one. Rewards and evaluation use the same pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vcot.grounding.boxes import Box, iou


@dataclass(frozen=True)
class Match:
    """Pairs (index of the predicted box, index of the true box, their IoU > 0), by predicted index.

    No index occurs twice on its side: a box that is predicted three times finds one partner.
    """

    pairs: tuple[tuple[int, int, float], ...]

    @property
    def total(self) -> float:
        """The sum of the pairs' IoU."""
        return math.fsum(overlap for _, _, overlap in self.pairs)


Pairable = Sequence[Sequence[bool]]
"""For each predicted box (row) and each true one (column), whether they may be a pair; by their labels, say."""


def match(predicted: Sequence[Box], true: Sequence[Box], pairable: Pairable | None = None) -> Match:
    """The pairing with the largest total IoU (Hungarian method). The same boxes in the same order give the same
    pairs, also where several pairings are equally good. `pairable` None: every box may go with every other."""
    overlaps = _overlaps(predicted, true, pairable)
    return _assign(overlaps, overlaps)


def match_at(
    predicted: Sequence[Box], true: Sequence[Box], threshold: float, pairable: Pairable | None = None
) -> Match:
    """The largest possible number of pairs with IoU >= threshold; among those, the largest total IoU.

    This is not `match` with the weak pairs left out: that may give away a second good pair for a better total.
    Raises ValueError unless 0 < threshold <= 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"an IoU threshold lies in 0 < threshold <= 1; got {threshold}")
    overlaps = _overlaps(predicted, true, pairable)
    # A pair more is worth more than all the IoU that any pairing can add up to.
    pair = 1.0 + min(len(predicted), len(true))
    return _assign(overlaps, [[pair + o if o >= threshold else 0.0 for o in row] for row in overlaps])


def _overlaps(predicted: Sequence[Box], true: Sequence[Box], pairable: Pairable | None) -> list[list[float]]:
    return [
        [iou(p, t) if pairable is None or pairable[i][j] else 0.0 for j, t in enumerate(true)]
        for i, p in enumerate(predicted)
    ]


def _assign(overlaps: list[list[float]], gains: list[list[float]]) -> Match:
    """The pairing with the largest total gain, without the pairs that gain nothing."""
    if not gains or not gains[0]:
        return Match(())
    # Here, not above: scipy takes longer to import than everything else in this room, and few need it.
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(gains, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return Match(tuple((p, t, overlaps[p][t]) for p, t in pairs if gains[p][t] > 0))
