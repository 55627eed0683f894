"""Where the gates of prose begin and end, beside the tables of test_teacher_replies.py."""

from __future__ import annotations

import json
import time

import pytest

from tests.teacher.made import CENTRE, TOP_LEFT, sample, see
from vcot.grounding import Trace
from vcot.records import Completion, Reason, Sample
from vcot.teacher import conclusion, prose
from vcot.teacher.dialogue import Anchored, Fault, Found, Located, Reasoned
from vcot.teacher.reply import build, read

DISC, LEVER = see("red disc", TOP_LEFT), see("lever", CENTRE)
ROW = sample("What touches the lever?", "gear", evidence=(DISC, LEVER))


def traced(said: object, row: Sample = ROW) -> Trace | Fault:
    text = said if isinstance(said, str) else json.dumps(said)
    found = read(Completion(text=text, model="m", finish_reason="stop"), row, [1, 2])
    return found if isinstance(found, Fault) else build(found.parts, {1: "red disc", 2: "lever"})


def sentences(*said: tuple[str, list[int]]) -> dict[str, object]:
    return {"sentences": [{"text": text, "objects": objects} for text, objects in said], "answer": "gear"}


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (sentences(("The [1] reaches [0, 5].", [1])), "The red disc reaches [0, 5]."),  # not listed: an interval
        (sentences(("The [1] reaches [1, 2].", [1])), "The red disc reaches [1, 2]."),
        (sentences(("I see [1, 2].", [1, 2])), "I see red disc, lever."),
        (sentences(("The footnote [2] says so at [1].", [1])), "The footnote [2] says so at red disc."),
        (sentences(("The [1] bears [2015].", [1])), "The red disc bears [2015]."),
        (sentences(("The 【1】 is here.", [1])), "The red disc is here."),
        ({"sentences": ["I see the [1].", "It is here."], "answer": "gear"}, "I see the red disc. It is here."),
        ({"reasoning": "I see the [1].", "answer": "gear"}, "I see the red disc."),
        (sentences(("Look at [1]", [1]), ("It is [2]", [2])), "Look at red disc It is lever"),
    ],
)
def test_brackets_are_objects_where_they_are_listed_or_known(said: object, text: str) -> None:
    found = traced(said)
    assert isinstance(found, Trace), found
    assert found.text == text


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (sentences(("I see the [1] and it.", [1, 7])), Reason.TEACHER_UNGROUNDED),
        (sentences(("I see the [1] and the [7].", [1])), Reason.TEACHER_UNGROUNDED),
        (sentences(("I see the red disc.", [1])), Reason.TEACHER_UNGROUNDED),
        (sentences(("I see the [1].", [])), Reason.TEACHER_UNGROUNDED),
        (sentences(("I see the [1].", [1]), ("So the [1] is it.", [])), Reason.TEACHER_UNREADABLE),  # or is it text?
        (sentences(("I see the [1] at [31, 83, 188, 292].", [1])), Reason.TEACHER_UNREADABLE),
    ],
)
def test_what_is_listed_must_be_there_and_spoken_of(said: object, reason: Reason) -> None:
    found = traced(said)
    assert isinstance(found, Fault), found
    assert found.reason is reason


@pytest.mark.parametrize("box", ["[31, 83, 188, 292]", "(31,83),(188,292)", "31 83 188 292", [31, "83", 188.0, 292]])
def test_a_box_may_be_a_string(box: object) -> None:
    edges = [31.0, 83.0, 188.0, 292.0]
    objects = [{"number": 1, "label": "disc", "box": box}]
    assert Reasoned.model_validate({"objects": objects, "sentences": "I see.", "answer": ""}).objects[0].box == edges
    assert Anchored.model_validate({"anchors": [{"sentence": 1, "words": "w", "box": box}]}).anchors[0].box == edges
    assert Found.model_validate({"objects": objects}).objects[0].box == edges
    assert Located.model_validate({"objects": [{"label": "disc", "boxes": [box]}]}).objects[0].boxes == [edges]


def test_numbers_are_read_however_they_are_written() -> None:
    said = "１２ and ٣٤, one hundred and twenty, forty-five, zero point three one, x² of 101₂"
    assert prose.in_digits(said) == "12 and 34, 120, 45, 0.31 , x^2 of 101_2"


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("What was it in 2010?", "45", "The ¤1¤ at (2010, 45) is marked."),  # a point of the chart that is asked about
        ("How many pixels has it?", "1920", "The ¤1¤ says 1920 pixels."),
        ("What is the offer?", "free trial", "The ¤1¤ reads 'Visit www.acme.com', and that it is free."),
        ("What must one wear?", "a helmet", 'The ¤1¤ reads "You must always wear a helmet".'),
        ("Can it be told?", "it cannot be determined", "The ¤1¤ has no scale, so it cannot be determined."),
        ("Was ist das?", "eine Tasse", "Das ¤1¤ hat einen Henkel und steht auf dem Tisch."),
        ("图中有几只猫？", "两只", "沙发上有 ¤1¤，窗边有 ¤2¤。"),
        (
            "What is the address?",
            "21 Jalan Taman Desa, Kuala Lumpur",
            "The ¤1¤ ends in 21 Jalan Taman Desa, Kuala Lumpur.",
        ),
    ],
)
def test_what_the_row_is_about_may_be_said(question: str, answer: str, said: str) -> None:
    assert prose.fault_of(said, sample(question, answer)) is None


@pytest.mark.parametrize(
    "text", ["(" * 4000, "1, " * 1300, "one hundred " * 330, "x 1 " * 1000, "so " * 1300, "a. " * 1300, "[" * 4000]
)
def test_a_long_text_takes_no_long_time(text: str) -> None:
    begun = time.process_time()
    prose.fault_of(text, ROW)
    conclusion.fault_of(text, ROW)
    assert time.process_time() - begun < 2
