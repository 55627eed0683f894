"""Samples that ask by text alone: what they may say, and that all others are what they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tests.records.test_records_shards import MENTION, sample
from vcot.grounding import Box, FrameSpec, Trace, parse
from vcot.records import Sample
from vcot.records.sample import NO_IMAGE_SIZE

BY_TEXT: dict[str, Any] = {"image": None, "evidence": None, "reasoning": (Trace(("Gears turn.",)),)}


def test_a_sample_by_text_alone_comes_back_from_its_line() -> None:
    one = sample(1, **BY_TEXT)
    assert json.loads(one.line())["image"] is None
    assert Sample.model_validate_json(one.line()) == one
    assert (one.true_boxes, list(one.all_boxes())) == (None, [])


def test_a_line_must_say_that_it_has_no_image() -> None:
    """A field that was forgotten is no decision."""
    said = json.loads(sample(1, **BY_TEXT).line())
    del said["image"]
    with pytest.raises(ValidationError, match="image"):
        Sample.model_validate(said)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"evidence": (MENTION,)}, r"box \[1.5, 2.0, 30.25, 40.0\] is on no image: image is null"),
        ({"reasoning": (Trace(("The ", MENTION)),)}, r"box \[1.5, 2.0, 30.25, 40.0\] is on no image"),
        ({"evidence": ()}, "image is null, so nobody looked whether the object is there"),
    ],
)
def test_without_an_image_nothing_is_pointed_at(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sample(1, **(BY_TEXT | changed))


def test_the_image_where_there_must_be_one() -> None:
    assert sample(1).shown == sample(1).image
    with pytest.raises(ValueError, match="s1 is asked without an image"):
        _ = sample(1, **BY_TEXT).shown


@pytest.mark.parametrize("name", ["thousandths", "pixels", "resized_pixels", "padded_square", "fractions"])
def test_boxes_that_a_model_writes_about_no_image_can_be_read_in_every_frame(name: Any) -> None:
    frame = sample(1, **BY_TEXT).frame(FrameSpec(name, min_pixels=3136, max_pixels=12544))
    box = Box(0.0, 0.0, float(NO_IMAGE_SIZE[0]), float(NO_IMAGE_SIZE[1]))
    (found,) = parse(f"<ref>gear</ref><box>{[round(n, 3) for n in frame.numbers(box)]}</box>", frame).boxes
    assert found.as_list() == pytest.approx(box.as_list(), abs=1)
