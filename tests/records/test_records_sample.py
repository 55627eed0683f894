"""A Sample is one line of JSON, with an image or by text alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from vcot.grounding import Box, FrameSpec, Mention, Trace, parse
from vcot.records import Image, Origin, Sample
from vcot.records.sample import NO_IMAGE_SIZE, Turn

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
    if "images" in changes:
        del values["image"]
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
    assert said.pop("images") == []
    with pytest.raises(ValidationError, match="images"):
        Sample.model_validate(said)
    with pytest.raises(ValueError, match="s1 is asked without an image"):
        _ = sample(**BY_TEXT).shown


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"evidence": (Mention("x", (Box(0, 0, 101, 10),)),)}, "leaves the image of 100×80"),
        ({"answers": ("half \ud83d",)}, "a text holds half a character"),
        (BY_TEXT | {"evidence": (MENTION,)}, r"box \[1.5, 2.0, 30.25, 40.0\] is on no image: the sample has none"),
        (BY_TEXT | {"reasoning": (Trace(("The ", MENTION)),)}, r"box \[1.5, 2.0, 30.25, 40.0\] is on no image"),
        (BY_TEXT | {"evidence": ()}, "there is no image, so nobody looked whether the object is there"),
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


def test_a_line_of_version_1_is_read() -> None:
    """As earlier versions of vcot wrote it: one image or null, no turns."""
    line = (
        '{"version":1,"id":"s1","image":{"uri":"s3://b/x.png","width":100,"height":80,"sha256":"' + "0" * 64 + '",'
        '"stored":null},"question":"Where is the red gear?","context":null,"choices":null,"answers":["left"],'
        '"reasoning":[["The ",{"label":"red gear","boxes":[[1.5,2.0,30.25,40.0]]}," is at the left."]],"evidence":'
        '[{"label":"red gear","boxes":[[1.5,2.0,30.25,40.0]]}],"metadata":{},"origin":{"dataset":"drawn","split":'
        '"train","row":"1","licence":"MIT","teacher":null}}'
    )
    assert Sample.model_validate_json(line) == sample()
    assert json.loads(Sample.model_validate_json(line).line())["version"] == 2
    by_text = json.loads(line) | {"image": None, "evidence": None, "reasoning": [["Gears turn."]]}
    assert Sample.model_validate(by_text) == sample(**BY_TEXT)
    with pytest.raises(ValidationError, match="version"):
        Sample.model_validate(json.loads(line) | {"version": 3})


OTHER = Image(uri="s3://b/y.png", width=30, height=20, sha256="1" * 64)
ASKED = Turn(role="user", said=Trace(("Where do you look?",)), images=1)
SAID = Turn(role="assistant", said=Trace(("At the ", MENTION)))


def test_several_images_and_turns_come_back() -> None:
    two = sample(images=(*sample().images, OTHER), turns=(ASKED, SAID))
    assert Sample.model_validate_json(two.line()) == two
    assert (two.image, two.images_asked) == (sample().image, 1)
    assert len(list(two.all_boxes())) == 3
    said = json.loads(two.line())["turns"]
    assert said[1] == {"role": "assistant", "said": ["At the ", MENTION.to_json()]}


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((ASKED,), "up to one of the assistant"),
        ((SAID, ASKED), "turns are one of the user"),
        ((ASKED.model_copy(update={"images": 2}), SAID), "the turns show 2 images, the sample has 1"),
        ((ASKED, SAID.model_copy(update={"images": 1})), "turns of the assistant show no images"),
        ((ASKED, SAID.model_copy(update={"said": Trace(())})), "says nothing"),
        ((ASKED, Turn(role="assistant", said=Trace((Mention("x", (Box(0, 0, 101, 10),)),)))), "leaves the image"),
    ],
)
def test_turns_that_cannot_be_are_refused(turns: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sample(turns=turns)


@pytest.mark.parametrize("answers", [("",), ("left", " \n")])
def test_a_blank_answer_is_refused(answers: tuple[str, ...]) -> None:
    """Whichever stage reads it: a row with it would be learned as a reply that says nothing."""
    with pytest.raises(ValidationError, match="an answer is blank"):
        sample(answers=answers)
    line = sample().line().replace(b'"answers":["left"]', json.dumps({"answers": answers})[1:-1].encode())
    with pytest.raises(ValidationError, match="an answer is blank"):
        Sample.model_validate_json(line)
