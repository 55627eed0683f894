from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.grounding.drawn import boxes, unhurried
from vcot.grounding import Box, iou, match, match_at

few = st.lists(boxes(100, 80), max_size=4)


def best_by_trying_all(predicted: list[Box], true: list[Box]) -> float:
    fewer, more = sorted((predicted, true), key=len)
    return max(sum(iou(a, b) for a, b in zip(fewer, order, strict=False)) for order in permutations(more, len(fewer)))


@unhurried
@given(few, few)
def test_no_pairing_has_a_larger_total(predicted, true):
    assert match(predicted, true).total == pytest.approx(best_by_trying_all(predicted, true))


@unhurried
@given(few, few)
def test_every_box_has_at_most_one_partner_and_every_pair_overlaps(predicted, true):
    pairs = match(predicted, true).pairs
    assert len({p for p, _, _ in pairs}) == len({t for _, t, _ in pairs}) == len(pairs)
    assert list(pairs) == sorted(pairs)
    for p, t, overlap in pairs:
        assert overlap == iou(predicted[p], true[t]) > 0


@unhurried
@given(few, few, st.floats(0.01, 1))
def test_at_a_threshold_no_pairing_has_more_pairs(predicted, true, threshold):
    fewer, more = sorted((predicted, true), key=len)
    most = max(
        sum(iou(a, b) >= threshold for a, b in zip(fewer, order, strict=False))
        for order in permutations(more, len(fewer))
    )
    found = match_at(predicted, true, threshold)
    assert len(found.pairs) == most
    assert all(overlap >= threshold for _, _, overlap in found.pairs)


def test_at_a_threshold_two_fair_pairs_beat_an_exact_one():
    true = [Box(0, 0, 10, 10), Box(4, 0, 14, 10)]
    predicted = [Box(4, 0, 14, 10), Box(8, 0, 18, 10)]
    assert [pair[:2] for pair in match(predicted, true).pairs] == [(0, 1), (1, 0)]  # IoU 1 and .11
    assert [pair[:2] for pair in match_at(predicted, true, 0.4).pairs] == [(0, 0), (1, 1)]  # .43 and .43


def test_a_threshold_is_reached_by_being_equal_to_it():
    box, half = Box(0, 0, 1, 1), [Box(0, 0, 10, 5)]
    assert len(match_at(half, [Box(0, 0, 10, 10)], 0.5).pairs) == 1
    assert match([], [box]).pairs == match([box], []).pairs == match([], []).pairs == ()


@pytest.mark.parametrize("threshold", [0, -1, 1.01])
def test_a_threshold_outside_of_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match="0 < threshold <= 1"):
        match_at([], [], threshold)
