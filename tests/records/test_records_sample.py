"""A Sample is one line of JSON, with an image or by text alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from vcot.grounding import Box, FrameSpec, Mention, Trace, parse
from vcot.records import Image, Origin, Sample
from vcot.records.sample import NO_IMAGE_SIZE

MENTION = Mention("red gear", (Box(1.5, 2.0, 30.25, 40.0),))


def sample(**changes: Any) -> Sample:
    values: dict[str, Any] = {
        "id": "s1",
        "image": Image(uri="s3://b/x.png", width=100, height=80, sha256="0" * 64),
        "question": "Where is the red gear?",
        "answers": ("left",),
        "reasoning": (Trace(("The ", MENTION, " is at the left.")),),
        "evidence": (MENTION,),
        "origin": Origin(dataset="drawn", split="train", row="1", licence="MIT"),
    }
    return Sample(**(values | changes))


BY_TEXT: dict[str, Any] = {"image": None, "evidence": None, "reasoning": (Trace(("Gears turn.",)),)}


@pytest.mark.parametrize("one", [sample(), sample(evidence=()), sample(evidence=None), sample(**BY_TEXT)])
def test_a_sample_comes_back_from_its_line(one: Sample) -> None:
    found = Sample.model_validate_json(one.line())
    assert found == one
    assert found.true_boxes == (None if one.evidence is None else MENTION.boxes if one.evidence else ())


def test_a_line_must_say_that_it_has_no_image() -> None:
    """A field that was forgotten is no decision."""
    said = json.loads(sample(**BY_TEXT).line())
    assert said.pop("image") is None
    with pytest.raises(ValidationError, match="image"):
        Sample.model_validate(said)
    with pytest.raises(ValueError, match="s1 is asked without an image"):
        _ = sample(**BY_TEXT).shown


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"evidence": (Mention("x", (Box(0, 0, 101, 10),)),)}, "leaves the image of 100×80"),
        ({"answers": ("half \ud83d",)}, "a text holds half a character"),
        (BY_TEXT | {"evidence": (MENTION,)}, r"box \[1.5, 2.0, 30.25, 40.0\] is on no image: image is null"),
        (BY_TEXT | {"reasoning": (Trace(("The ", MENTION)),)}, r"box \[1.5, 2.0, 30.25, 40.0\] is on no image"),
        (BY_TEXT | {"evidence": ()}, "image is null, so nobody looked whether the object is there"),
    ],
)
def test_a_sample_that_contradicts_itself_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sample(**changed)


@pytest.mark.parametrize("name", ["thousandths", "pixels", "resized_pixels", "padded_square", "fractions"])
def test_boxes_that_a_model_writes_about_no_image_can_be_read_in_every_frame(name: Any) -> None:
    frame = sample(**BY_TEXT).frame(FrameSpec(name, min_pixels=3136, max_pixels=12544))
    box = Box(0.0, 0.0, float(NO_IMAGE_SIZE[0]), float(NO_IMAGE_SIZE[1]))
    (found,) = parse(f"<ref>gear</ref><box>{[round(n, 3) for n in frame.numbers(box)]}</box>", frame).boxes
    assert found.as_list() == pytest.approx(box.as_list(), abs=1)
