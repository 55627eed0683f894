from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.grounding.drawn import boxes, unhurried
from vcot.grounding import Box, iou, match, match_at

few = st.lists(boxes(100, 80), max_size=4)


@unhurried
@given(few, few, st.floats(0.01, 1))
def test_no_pairing_is_better(predicted, true, threshold):
    fewer, more = sorted((predicted, true), key=len)
    ways = [[iou(a, b) for a, b in zip(fewer, order, strict=False)] for order in permutations(more, len(fewer))]
    best = match(predicted, true)
    assert best.total == pytest.approx(max(map(sum, ways)))
    assert len({p for p, _, _ in best.pairs}) == len({t for _, t, _ in best.pairs}) == len(best.pairs)
    assert list(best.pairs) == sorted(best.pairs)
    for p, t, overlap in best.pairs:
        assert overlap == iou(predicted[p], true[t]) > 0
    found = match_at(predicted, true, threshold)
    assert len(found.pairs) == max(sum(overlap >= threshold for overlap in way) for way in ways)
    assert all(overlap >= threshold for _, _, overlap in found.pairs)


def test_at_a_threshold_two_fair_pairs_beat_an_exact_one():
    true = [Box(0, 0, 10, 10), Box(4, 0, 14, 10)]
    predicted = [Box(4, 0, 14, 10), Box(8, 0, 18, 10)]
    assert [pair[:2] for pair in match(predicted, true).pairs] == [(0, 1), (1, 0)]  # IoU 1 and .11
    assert [pair[:2] for pair in match_at(predicted, true, 0.4).pairs] == [(0, 0), (1, 1)]  # .43 and .43


def test_a_threshold_is_reached_by_being_equal_to_it_and_lies_in_its_range():
    assert len(match_at([Box(0, 0, 10, 5)], [Box(0, 0, 10, 10)], 0.5).pairs) == 1
    for threshold in (0, -1, 1.01):
        with pytest.raises(ValueError, match="0 < threshold <= 1"):
            match_at([], [], threshold)
