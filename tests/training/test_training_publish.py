"""What a training shows of its losses and rewards."""

from __future__ import annotations

import random

import pytest

from vcot.training.publish import smoothed


@pytest.mark.parametrize("count", [1, 2, 3, 17, 400])
def test_smoothed_line_follows_a_steady_fall(count: int) -> None:
    """An average of the past would stand above it, one around each step at both ends."""
    values = [3.0 - 0.005 * step for step in range(count)]
    assert smoothed(values) == pytest.approx(values, abs=1e-9)


def test_smoothed_line_turns_where_the_loss_does() -> None:
    values = [2.0] * 200 + [1.0] * 200
    line = smoothed(values)
    crossing = next(step for step, value in enumerate(line) if value < 1.5)
    assert abs(crossing - 200) <= 1


def test_smoothed_line_takes_the_noise_away() -> None:
    dice = random.Random(0)
    noise = [dice.gauss(0, 1) for _ in range(2000)]
    line = smoothed(noise)
    assert sum(value**2 for value in line) < 0.1 * sum(value**2 for value in noise)
