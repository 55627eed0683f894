from __future__ import annotations

import ast
import copy
import importlib.util
import math
import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.grounding.drawn import assert_same_place, boxes, framed_boxes, unhurried, unit_in_pixels
from vcot.grounding import Box, BoxError, BoxFault, FrameSpec, giou, iou, smart_resize

# Four rows of the VisCoT benchmark: size, true box, padded-square numbers, thousandths, resized size and numbers
# (4·28·28 to 1280·28·28 pixels).
ROWS = {
    "docvqa": (
        (1695, 2200), (74, 398, 404, 1118), (0.148, 0.181, 0.298, 0.508), (73.6, 398.2, 403.6, 1117.6),
        (44, 181, 238, 508), (868, 1120), (38, 203, 207, 569),
    ),
    "cub": (
        (500, 357), (141, 87, 397, 298), (0.282, 0.316, 0.794, 0.738), (141, 87, 397, 298),
        (282, 244, 794, 835), (504, 364), (142, 89, 400, 304),
    ),
    "sroie": (
        (931, 1870), (86, 208, 840, 257), (0.297, 0.111, 0.700, 0.137), (86.4, 207.6, 840.0, 256.2),
        (92, 111, 902, 137), (700, 1400), (65, 156, 632, 192),
    ),
    "visual7w": (
        (500, 375), (2, 0, 390, 282), (0.004, 0.124, 0.780, 0.688), (2, 0, 390, 282),
        (4, 0, 780, 752), (504, 364), (2, 0, 393, 274),
    ),
}  # fmt: skip


def smart_resize_of_transformers():
    """Their function, compiled from the installed source: importing it takes ten seconds, for it brings torch."""
    installed = importlib.util.find_spec("transformers")
    if installed is None:
        pytest.skip("transformers is not installed")
    source = Path(installed.origin).parent / "models/qwen2_vl/image_processing_qwen2_vl.py"
    functions = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)]
    names = {"math": math}
    exec(ast.unparse(next(node for node in functions if node.name == "smart_resize")), names)
    return names["smart_resize"]


RESIZED = FrameSpec("resized_pixels", min_pixels=4 * 28 * 28, max_pixels=1280 * 28 * 28)


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_the_true_box_is_written_in_every_frame_as_published(row):
    (width, height), true, padded, unpadded, thousandths, size, resized = row
    box = Box.from_pixels(*true, width=width, height=height)
    assert FrameSpec("thousandths").on(width, height).encode(box) == thousandths
    # The published numbers come from unrounded boxes; the boxes themselves are published with two decimals.
    square = FrameSpec("padded_square").on(width, height).numbers(box)
    assert square == pytest.approx(padded, abs=0.0005 + 0.005 / height)
    assert RESIZED.on(width, height).encode(box) == resized
    assert smart_resize(width, height, min_pixels=4 * 28 * 28, max_pixels=1280 * 28 * 28) == size
    found = Box.from_padded_square(*padded, width=width, height=height)
    assert found.as_list() == pytest.approx(unpadded, abs=0.06)


@pytest.mark.parametrize(
    ("edges", "fault"),
    [
        ((0, 0, math.nan, 1), BoxFault.NOT_FINITE), ((0, 0, math.inf, 1), BoxFault.NOT_FINITE),
        ((0, 0, 10**400, 1), BoxFault.NOT_FINITE), ((0, 0, "wide", 1), BoxFault.NOT_A_NUMBER),
        ((0, 0, None, 1), BoxFault.NOT_A_NUMBER), ((5, 0, 3, 4), BoxFault.INVERTED),
        ((868, 213, 859, 389), BoxFault.INVERTED), ((0, 4, 3, 1), BoxFault.INVERTED),
        ((3, 0, 3, 4), BoxFault.ZERO_AREA), ((0, 4, 3, 4), BoxFault.ZERO_AREA), ((-1, 0, 3, 4), BoxFault.OUTSIDE),
    ],
)  # fmt: skip
def test_a_box_that_cannot_be_built_says_its_fault(edges, fault):
    with pytest.raises(BoxError) as caught:
        Box(*edges)
    assert caught.value.fault is fault


def test_an_overhang_is_moved_to_the_border_as_far_as_it_is_allowed():
    size = {"width": 1000, "height": 500, "overhang": 5}
    assert Box.from_pixels(-2, 10, 1005, 505, **size) == Box(0, 10, 1000, 500)
    assert Box.from_padded_square(0.2, 0.245, 0.8, 0.5, **size) == Box(200, 0, 800, 250)
    assert Box.from_padded_square(0.1, 0.2, 1.002, 0.5, width=500, height=500, overhang=5).x2 == 500
    for build, edges, said in (
        (Box.from_pixels, (90, 10, 1006, 20), "leaves the image of 1000x500 pixels by 6 px; at most 5 px are"),
        (Box.from_pixels, (1000, 10, 1004, 20), "lies outside"),
        (Box.from_padded_square, (0.2, 0.2, 0.8, 0.5), "leaves the"),
    ):  # fmt: skip
        with pytest.raises(BoxError, match=re.escape(said)) as caught:
            build(*edges, **size)
        assert caught.value.fault is BoxFault.OUTSIDE
        assert copy.copy(caught.value).fault is BoxFault.OUTSIDE  # rebuilt as pickle does it


def test_padding_is_cut_off_for_a_model_and_alone_it_is_outside():
    assert Box.from_padded_square(0.2, 0.0, 0.8, 0.5, width=1000, height=500) == Box(200, 0, 800, 250)
    with pytest.raises(BoxError, match="lies outside"):
        Box.from_padded_square(0.2, 0.0, 0.8, 0.2, width=1000, height=500)


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda: RESIZED.on(1695, 2200).decode(74, 398, 1404, 1118), "resized_pixels, which runs over 0..868 across"),
        (lambda: FrameSpec("thousandths").on(100, 100).encode(Box(10, 10, 400, 50)), "not a box of this image of"),
        (lambda: FrameSpec.from_dict({"name": "permille"}), "'permille'; known are thousandths, resized_"),
        (lambda: FrameSpec.from_dict({"name": "thousandths", "maximum": 999}), "maximum"),
        (lambda: FrameSpec("resized_pixels", min_pixels=3136), "max_pixels=None"),
        (lambda: smart_resize(2010, 10, min_pixels=3136, max_pixels=10**6), "side ratio of 201"),
        (lambda: smart_resize(50, 50, min_pixels=100, max_pixels=10), "min_pixels=100, max_pixels=10"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_its_numbers(attempt, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        attempt()


def test_the_constructors_agree_on_one_box():
    size = {"width": 200, "height": 100}
    box = Box(20, 25, 100, 75)
    assert Box.from_pixels(20, 25, 100, 75, **size) == box
    assert Box.from_fractions(0.1, 0.25, 0.5, 0.75, **size) == box
    assert Box.from_padded_square(0.1, 0.375, 0.5, 0.625, **size) == box
    assert box.to_fractions(**size) == (0.1, 0.25, 0.5, 0.75)
    assert (box.width, box.height, box.area) == (80, 50, 4000)


@pytest.mark.parametrize(
    ("name", "numbers", "fault"),
    [
        ("thousandths", (0, 0, 1200, 500), BoxFault.OUT_OF_RANGE),
        ("thousandths", (-50, 0, 200, 500), BoxFault.OUT_OF_RANGE),
        ("thousandths", (0.148, 0.181, 0.298, 0.508), BoxFault.OUT_OF_RANGE),
        ("thousandths", (1, 1, 1, 1), BoxFault.ZERO_AREA), ("thousandths", (500, 10, 400, 20), BoxFault.INVERTED),
        ("thousandths", (1000, 10, 1001, 20), BoxFault.OUTSIDE),
        ("fractions", (148, 181, 298, 508), BoxFault.OUT_OF_RANGE),
        ("padded_square", (0.2, 0.3, 1.2, 0.5), BoxFault.OUT_OF_RANGE),
        ("padded_square", (0.2, 0.01, 0.4, 0.02), BoxFault.OUTSIDE),
        ("pixels", (0, 0, 900, 100), BoxFault.OUTSIDE), ("pixels", (0, 0, math.inf, 100), BoxFault.NOT_FINITE),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_declared_frame_is_a_fault(name, numbers, fault):
    with pytest.raises(BoxError) as caught:
        FrameSpec(name).on(500, 300).decode(*numbers)
    assert caught.value.fault is fault


def test_an_excess_that_rounding_explains_is_moved_to_the_border():
    for name, numbers in (
        ("thousandths", (-1, 0, 1001, 1000)), ("fractions", (0, -0.001, 1.002, 1)),
        ("padded_square", (0, 0, 1.002, 1)), ("pixels", (0, 0, 500.4, 300)),
    ):  # fmt: skip
        assert FrameSpec(name).on(500, 300).decode(*numbers) == Box(0, 0, 500, 300)


@unhurried
@given(framed_boxes())
def test_decoding_gives_the_box_back_within_half_a_unit_or_a_unit_if_it_was_thinner(drawn):
    frame, box = drawn
    found = frame.decode(*frame.encode(box))
    across, down = unit_in_pixels(frame)
    thin = box.width <= across or box.height <= down
    assert_same_place(found, box, frame, units=1.0 if thin else 0.5)


def test_numbers_are_written_with_the_digits_of_the_frame_and_frames_survive_json():
    for spec, text in (
        (FrameSpec("thousandths"), "[200, 100, 500, 1000]"),
        (FrameSpec("pixels"), "[100.00, 25.00, 250.00, 250.00]"),
        (FrameSpec("fractions"), "[0.200, 0.100, 0.500, 1.000]"),
        (FrameSpec("padded_square"), "[0.200, 0.300, 0.500, 0.750]"),
        (FrameSpec("resized_pixels", 28 * 28, 1280 * 28 * 28), "[101, 25, 252, 252]"),
    ):  # fmt: skip
        assert spec.on(500, 250).format(Box(100, 25, 250, 250)) == text
        assert FrameSpec.from_dict(spec.to_dict()) == spec
    assert FrameSpec("thousandths", min_pixels=3136, max_pixels=10**6) == FrameSpec("thousandths")


def test_smart_resize_agrees_with_the_processor_over_many_sizes():
    theirs = smart_resize_of_transformers()
    sides = (1, 5, 13, 14, 15, 27, 28, 29, 41, 42, 43, 70, 100, 224, 331, 500, 640, 931, 1001, 2200, 4096, 9999)
    limits = ((28, 4, 1280), (28, 256, 1280), (28, 4, 16384), (32, 256, 1280), (28, 1, 4))
    compared = 0
    for (factor, least, most), width, height in product(limits, sides, sides):
        pixels = {"min_pixels": least * factor**2, "max_pixels": most * factor**2, "factor": factor}
        if max(width, height) / min(width, height) <= 200:
            down, across = theirs(height, width, **pixels)
            assert smart_resize(width, height, **pixels) == (across, down), (width, height, pixels)
            compared += 1
    assert compared > 1500


@unhurried
@given(st.data())
def test_overlap_is_symmetric_bounded_and_one_with_itself(data):
    a, b = data.draw(boxes(1000, 700)), data.draw(boxes(1000, 700))
    assert iou(a, b) == iou(b, a)
    assert giou(a, b) == giou(b, a)
    assert 0 <= iou(a, b) <= 1
    assert -1 <= giou(a, b) <= iou(a, b) + 1e-9
    assert iou(a, a) == giou(a, a) == 1
