"""Is a model right as often as it is sure? Reliability curve and expected calibration error (Guo et al. 2017).

A confidence is any number between 0 and 1 that comes with a reply: the agreement of its draws (`voting.select`), or
the probability of its answer. Bins hold equally many replies (Nguyen and O'Connor 2015): bins of equal width are all
but empty where a model is always sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
_CELLS = 4_000_000  # numbers held at once while drawing: 32 MB


@dataclass(frozen=True)
class Bin:
    """Replies of like confidence: the mean of it, the share that is right, and its interval (None: of one image)."""

    confidence: float
    accuracy: float
    low: float | None
    high: float | None
    replies: int


@dataclass(frozen=True)
class Calibration:
    """The reliability curve, and the expected calibration error: Σ over bins of |accuracy − confidence|, weighted by
    their replies.

    `low` and `high` None: all replies are about one image. With few replies in a bin the error is too high, and its
    interval with it: chance alone parts accuracy from confidence, and only the distance counts.
    """

    bins: tuple[Bin, ...]
    error: float
    low: float | None
    high: float | None
    replies: int
    images: int


def calibration(
    confidence: Sequence[float], right: Sequence[bool], images: Sequence[str | None], *, bins: int = 10, seed: int = 0,
    resamples: int = 2000,
) -> Calibration:  # fmt: skip
    """How far confidence and accuracy are apart, with 95 % percentile bootstrap intervals over images.

    Images are drawn, each with all its replies (as in `metrics`); the bins stay as they are.

    Args:
        confidence: of each reply, 0 to 1.
        images: which image each reply is about, by any name; None: one of its own.
        bins: at most so many. Replies of the same confidence are in one bin, so that there may be fewer: the agreement
            of four draws has five values.

    Raises ValueError: there are no replies, the lengths differ, or a confidence is not between 0 and 1.
    """
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if not len(sure) or not len(sure) == len(hits) == len(images) or bins < 1:
        raise ValueError(f"{len(sure)} confidences, {len(hits)} verdicts and {len(images)} images in {bins} bins")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(f"a confidence lies between 0 and 1; got {sure.min():g} to {sure.max():g}")
    place = _bins(sure, bins)
    numbers: dict[object, int] = {}
    image = np.array([numbers.setdefault(i if name is None else name, len(numbers)) for i, name in enumerate(images)])
    sums = np.zeros((3, len(numbers), place.max() + 1))  # replies, right ones, confidence: of each image in each bin
    for row, values in enumerate((np.ones_like(sure), hits, sure)):
        np.add.at(sums[row], (image, place), values)
    drawn = _draw(sums, seed, resamples)  # [3, resamples, bins]
    count, correct, trusted = sums.sum(axis=1)
    with np.errstate(invalid="ignore"):  # a bin without any reply, in some draw
        shares = drawn[1] / drawn[0]
    found = tuple(
        Bin(float(trusted[b] / count[b]), float(correct[b] / count[b]), *_interval(shares[:, b]), int(count[b]))
        for b in range(len(count))
    )
    errors = np.abs(drawn[1] - drawn[2]).sum(axis=1) / drawn[0].sum(axis=1)
    error = float(np.abs(correct - trusted).sum() / count.sum())
    return Calibration(found, error, *_interval(errors), len(sure), len(numbers))


def _bins(sure: Floats, bins: int) -> NDArray[np.int64]:
    """The bin of each reply: 0, 1, …, none of them empty. Equal values go by the middle of their ranks."""
    _, inverse, counts = np.unique(sure, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    _, dense = np.unique(np.minimum((middle * bins / len(sure)).astype(np.int64), bins - 1), return_inverse=True)
    return np.asarray(dense[inverse], dtype=np.int64)


def _draw(sums: Floats, seed: int, resamples: int) -> Floats:
    """[3, images, bins] → [3, resamples, bins]: the sums over as many images, drawn with replacement."""
    kinds, images, bins = sums.shape
    if images < 2:
        return np.zeros((kinds, 0, bins))
    rng, at_once, drawn = np.random.default_rng(seed), max(1, _CELLS // images), []
    for first in range(0, resamples, at_once):
        times = rng.multinomial(images, np.full(images, 1 / images), size=min(at_once, resamples - first))
        drawn.append(times.astype(np.float64) @ sums)
    return np.concatenate(drawn, axis=1)


def _interval(values: Floats) -> tuple[float | None, float | None]:
    kept = values[np.isfinite(values)]
    if not kept.size:
        return None, None
    low, high = np.quantile(kept, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return low, high
