"""Reliability and calibration error against cases worked out by hand, and against what is known to be calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from vcot.evaluation.calibration import calibration


def test_two_bins_by_hand() -> None:
    """0.2 and 0.4 (one of two right) against 0.6 and 1.0 (both right): |0.5 - 0.3| / 2 + |1 - 0.8| / 2."""
    found = calibration([1.0, 0.2, 0.6, 0.4], [True, False, True, True], ["a", "b", "c", "d"], bins=2)
    assert [(b.confidence, b.accuracy, b.replies) for b in found.bins] == [
        (pytest.approx(0.3), 0.5, 2),
        (pytest.approx(0.8), 1.0, 2),
    ]
    assert found.error == pytest.approx(0.2)
    assert (found.replies, found.images) == (4, 4)


def test_bins_hold_equally_many_and_equal_confidences_stay_together() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(1000) ** 0.1
    found = calibration(sure.tolist(), [True] * 1000, [None] * 1000, bins=8)
    assert [b.replies for b in found.bins] == [125] * 8
    agreement = [0.25] * 3 + [0.5] * 10 + [1.0] * 87
    found = calibration(agreement, [True] * 100, [None] * 100, bins=10)
    assert [(b.confidence, b.replies) for b in found.bins][-1] == (1.0, 87)
    assert sum(b.replies for b in found.bins) == 100
    order = rng.permutation(100)
    right = (rng.random(100) < 0.5).tolist()
    one = calibration(agreement, right, [None] * 100)
    other = calibration([agreement[i] for i in order], [right[i] for i in order], [None] * 100)
    assert one.error == pytest.approx(other.error)


def test_who_is_calibrated_has_a_small_error_and_who_is_too_sure_the_distance() -> None:
    rng = np.random.default_rng(1)
    sure = rng.random(20000)
    right = rng.random(20000) < sure
    assert calibration(sure.tolist(), right.tolist(), [None] * 20000).error < 0.02
    found = calibration([0.9] * 20000, (rng.random(20000) < 0.6).tolist(), [None] * 20000)
    assert found.error == pytest.approx(0.3, abs=0.02)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.error < found.high
    assert found.high - found.low == pytest.approx(4 * (0.24 / 20000) ** 0.5, rel=0.1)


def test_replies_about_one_image_stand_and_fall_together() -> None:
    """100 images with 20 replies each, all right or all wrong, are 100 things measured and not 2000."""
    rng = np.random.default_rng(2)
    right = np.repeat(rng.random(100) < 0.5, 20).tolist()
    together = calibration([0.9] * 2000, right, [str(i // 20) for i in range(2000)])
    apart = calibration([0.9] * 2000, right, [None] * 2000)
    widths = [(c.high or 0) - (c.low or 0) for c in (together, apart)]
    assert widths[0] == pytest.approx(20**0.5 * widths[1], rel=0.1)
    assert together == calibration([0.9] * 2000, right, [str(i // 20) for i in range(2000)])
    alone = calibration([0.9] * 20, right[:20], ["x"] * 20)
    assert (alone.low, alone.high, alone.bins[0].low, alone.images) == (None, None, None, 1)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="0 confidences"):
        calibration([], [], [])
    with pytest.raises(ValueError, match="2 confidences, 1 verdicts"):
        calibration([0.1, 0.2], [True], ["a", "b"])
    with pytest.raises(ValueError, match=r"between 0 and 1; got -1.2 to 0.5"):
        calibration([-1.2, 0.5], [True, True], ["a", "b"])
