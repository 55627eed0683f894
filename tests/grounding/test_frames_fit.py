"""The notation that fits best: planted in every frame and order, and never claimed where there is no evidence."""

from __future__ import annotations

import random

import pytest

from vcot.grounding import Box, FrameSpec
from vcot.grounding.frames_fit import (
    MIN_ROWS,
    SENT_PIXELS,
    Notation,
    NumberedRow,
    compare_notations,
    notations,
)

SIZES = [(640, 480), (500, 375), (300, 800), (1920, 1080), (96, 64)]
FRAMES = [FrameSpec(name) for name in ("thousandths", "pixels", "fractions", "padded_square")] + [
    SENT_PIXELS,
    FrameSpec("resized_pixels", 100 * 28 * 28, 200 * 28 * 28),
]


def written(box, notation, size, sent):
    """The numbers of a box as a model that uses this notation writes them."""
    x1, y1, x2, y2 = notation.frame.on(*size, kept=sent).encode(box)
    return {
        "xyxy": (x1, y1, x2, y2),
        "yxyx": (y1, x1, y2, x2),
        "xywh": (x1, y1, x2 - x1, y2 - y1),
        "cxcywh": ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1),
    }[notation.order]


def rows_in(notation, count=20, seed=0):
    draw, rows = random.Random(seed), []
    for n in range(count):
        width, height = size = SIZES[n % len(SIZES)]
        sent = (width // 2, height // 2) if n % 2 else (width * 3 // 4, height * 3 // 4)
        boxes = []
        for _ in range(1 + n % 3):
            x, y = draw.uniform(0, 0.6) * width, draw.uniform(0, 0.6) * height
            boxes.append(Box(x, y, x + draw.uniform(0.1, 0.4) * width, y + draw.uniform(0.1, 0.4) * height))
        rows.append(NumberedRow([written(box, notation, size, sent) for box in boxes], boxes, size, sent))
    return rows


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: str(Notation(frame)))
@pytest.mark.parametrize("order", ["xyxy", "yxyx", "xywh", "cxcywh"])
def test_planted_notation_is_the_best_fit(frame, order):
    # What nobody declared with its limits cannot be named exactly, so it is declared in its usual order.
    declared = frame if frame.name == "resized_pixels" and frame != SENT_PIXELS else FrameSpec("thousandths")
    planted = Notation(frame, order)
    comparison = compare_notations(rows_in(planted), declared)
    assert comparison.best == planted
    assert comparison.best_iou > 0.9
    assert comparison.contradicts == (planted != Notation(declared))


def test_declared_notation_wins_where_fits_are_equal():
    size = (1000, 1000)  # thousandths and pixels are the same numbers
    box = Box(100.0, 200.0, 400.0, 900.0)
    rows = [NumberedRow([(100, 200, 400, 900)], [box], size)] * 10
    for name in ("thousandths", "pixels"):
        comparison = compare_notations(rows, FrameSpec(name))
        assert comparison.best == comparison.declared == Notation(FrameSpec(name))
        assert (comparison.contradicts, comparison.best_iou) == (False, 1.0)


def test_boxes_elsewhere_contradict_nothing():
    rows = rows_in(Notation(FrameSpec("thousandths")), 60)
    others = rows_in(Notation(FrameSpec("thousandths")), 60, seed=1)
    mixed = [NumberedRow(a.numbers, b.boxes, a.size, a.sent) for a, b in zip(rows, others, strict=True)]
    assert not compare_notations(mixed, FrameSpec("thousandths")).contradicts


def test_too_few_rows_contradict_nothing():
    rows = rows_in(Notation(FrameSpec("pixels")), MIN_ROWS)
    assert compare_notations(rows, FrameSpec("thousandths")).contradicts
    few = compare_notations(rows[1:], FrameSpec("thousandths"))
    assert not few.contradicts
    assert few.rows == MIN_ROWS - 1


def test_rows_without_both_sides_are_left_out():
    box = Box(1.0, 1.0, 5.0, 5.0)
    rows = [NumberedRow([], [box], (9, 9)), NumberedRow([(1, 1, 5, 5)], [], (9, 9))]
    comparison = compare_notations(rows, FrameSpec("pixels"))
    assert (comparison.rows, comparison.boxes, comparison.declared_iou) == (0, 0, 0.0)
    assert not comparison.contradicts


@pytest.mark.parametrize(
    "numbers", [(), (1, 2, 3), (float("nan"),) * 4, (10**400, 1, 2, 3), ("a", 1, 2, 3), (5, 5, 1, 1)]
)
def test_unusable_numbers_count_as_a_miss(numbers):
    box = Box(1.0, 1.0, 5.0, 5.0)
    row = NumberedRow([numbers, (1, 1, 5, 5)], [box, Box(6.0, 6.0, 8.0, 8.0)], (9, 9))
    comparison = compare_notations([row], FrameSpec("pixels"))
    assert comparison.declared_iou == 0.5


def test_comparison_names_both_figures():
    text = str(compare_notations(rows_in(Notation(FrameSpec("pixels"), "yxyx")), FrameSpec("thousandths")))
    assert "in thousandths as declared, 1.00 in pixels in the order y1, x1, y2, x2 (20 rows, " in text


def test_declared_notation_is_tried_first():
    declared = FrameSpec("resized_pixels", 1000, 2000)
    tried = list(notations(declared))
    assert tried[0] == Notation(declared)
    assert len(tried) == len(set(tried)) == 6 * 4
