"""The checks of one Sample, the questions that repeat each other, and the labels that tell the answer."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.convert import ConvertSettings
from vcot.datasets import duplicate_questions
from vcot.datasets.inputs import Refused
from vcot.datasets.quality import QualityOptions, tells, validated
from vcot.errors import SettingsError
from vcot.grounding import Box, Mention, Trace
from vcot.records import Image, Origin, Sample


def box(*edges: float) -> Box:
    return Box.from_pixels(*edges, width=1000, height=500)


def sample(*boxes: Box, label: str = "bus", answers: tuple[str, ...] = ("Red.",), **more: Any) -> Sample:
    return Sample(
        id="a:1",
        image=Image(uri="a.png", width=1000, height=500, sha256="0" * 64),
        question="What colour?",
        answers=answers,
        evidence=(Mention(label, boxes or (box(0, 0, 100, 50),)),),
        origin=Origin(dataset="dude", split="train", row="1", licence="CC-BY-4.0"),
        **more,
    )


def reason(sample: Sample, **rules: Any) -> str | None:
    try:
        validated(sample, QualityOptions(**rules))
    except Refused as refused:
        return refused.reason.value
    return None


ONE_PERCENT, LINE, ALL = box(0, 0, 100, 50), box(0, 0, 1000, 5), box(0, 0, 1000, 500)


@pytest.mark.parametrize(
    ("rules", "given", "said"),
    [
        ({"min_box_area": "0.01"}, sample(ONE_PERCENT), None),
        ({"min_box_area": "0.011"}, sample(ONE_PERCENT), "box-too-small"),
        ({"min_box_area": "0.011,dude=0"}, sample(ONE_PERCENT), None),
        ({"min_box_area": "dude=0.011"}, sample(ALL, ONE_PERCENT), "box-too-small"),
        ({"min_box_area": "vsr=0.011"}, sample(ONE_PERCENT), None),
        ({"max_box_area": "0.9"}, sample(ALL), "box-too-large"),
        ({"max_box_area": "0.9,dude=1"}, sample(ALL), None),
        ({"max_box_aspect": 199}, sample(LINE), "box-too-thin"),
        ({"max_box_aspect": 200}, sample(LINE), None),
        ({"max_boxes": 1}, sample(ALL, LINE), "too-many-boxes"),
        ({"licences": ("cc-by-*", "MIT")}, sample(), None),
        ({"licences": ("CC-BY-SA-*", "MIT")}, sample(), "licence-not-allowed"),
        ({"answer_in_label": "refuse"}, sample(label="red bus"), "answer-in-label"),
        ({"answer_in_label": "keep"}, sample(label="red bus"), None),
    ],
)
def test_a_rule_refuses_what_is_beyond_it_and_nothing_else(
    rules: dict[str, Any], given: Sample, said: str | None
) -> None:
    assert reason(given, **rules) == said
    assert reason(given) is None  # without rules, what people drew is kept


@pytest.mark.parametrize(
    ("label", "answers", "told"),
    [
        ("red bus", ("Red.",), True),
        ("RED-bus", ("red bus",), True),
        ("bus", ("red bus",), False),  # a part of the answer is no answer
        ("reddish bus", ("red",), False),
        ("player 12", ("12",), True),
        ("player 12", ("1",), False),
        ("bus", ("blue", "bus"), True),  # any accepted answer
        ("no smoking sign", ("No",), False),
        ("bus", ("?!",), False),
    ],
)
def test_a_label_tells_an_answer_that_it_holds_as_words(label: str, answers: tuple[str, ...], told: bool) -> None:
    assert tells(label, answers) == told


def test_a_label_that_tells_is_renamed_in_evidence_and_reasoning() -> None:
    bus, wheel = Mention("red bus", (ALL,)), Mention("wheel", (LINE,))
    given = sample(ALL, label="red bus", reasoning=(Trace(("I see ", bus, " and ", wheel, ".")),))
    kept = validated(given, QualityOptions())
    assert kept.evidence == (Mention("region", (ALL,)),)
    assert kept.reasoning == (Trace(("I see ", Mention("region", (ALL,)), " and ", wheel, ".")),)
    absent = given.model_copy(update={"evidence": (), "reasoning": ()})
    assert validated(absent, QualityOptions()).evidence == ()  # annotated as none stays so


@pytest.mark.parametrize("wrong", ["2", "dude=five", "-1", "50%"])
def test_a_share_that_is_none_is_refused_as_it_was_written(wrong: str) -> None:
    with pytest.raises(SettingsError, match="is no share of an image; write"):
        ConvertSettings.load(["--run-uri", "r", "--source", "scenes", f"--min-box-area={wrong}"])


def test_questions_are_equal_but_for_case_blanks_and_points_where_choices_and_context_are() -> None:
    def asked(question: str, **more: Any) -> str:
        return duplicate_questions.question(sample().model_copy(update={"question": question} | more))

    other = ("Many bats?", "?", "!")
    more: list[dict[str, Any]] = [{"choices": ("a", "b")}, {"choices": ("a", "c")}, {"context": "a"}]
    assert asked("Many cats?") == asked("many  cats")
    assert len({asked("Many cats?"), *map(asked, other), *(asked("Many cats?", **each) for each in more)}) == 7


def test_nearly_the_same_question_repeats_the_first_of_its_kind() -> None:
    long = "what is the name of the company that is written at the top left of this invoice"
    questions = [
        ("1", long), ("2", f"{long} here"), ("3", "what was sold"), ("4", f"{long} please"), ("5", long),
        ("6", f"{long} of 2010"), ("7", f"{long} of 2011"),
    ]  # fmt: skip
    assert dict(duplicate_questions.nearly(questions, 0.9)) == {"2": "1", "4": "1", "5": "1"}
    assert dict(duplicate_questions.nearly(questions, 1.0)) == {"5": "1"}
