"""The template teacher: the exact sentences, what they may never say, and that they stay the same."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.distill.made import CENTRE, HEIGHT, RIGHT, TOP_LEFT, WIDTH, sample, see
from tests.grounding.drawn import unhurried
from vcot.distill import DistilledReasoning
from vcot.distill.template import Asked, Kind, TemplateTeacher, read_question
from vcot.grounding import Box, FrameSpec, Mention, tags
from vcot.records import Reason, Rejection, Sample

FIRST = TemplateTeacher(phrasings=1)
DISC, MORE = "<ref>red disc</ref><box>[31, 83, 188, 292]</box>", "<box>[438, 417, 562, 583]</box>"
ONE, TWO = [see("red disc", TOP_LEFT)], [see("red disc", TOP_LEFT, CENTRE)]


def said(row: Sample, teacher: TemplateTeacher = FIRST) -> str:
    made = teacher.teach_row(row)
    assert isinstance(made, DistilledReasoning), made
    frame = FrameSpec("thousandths").on(row.image.width, row.image.height)
    return tags.render_reply(made.traces[0], row.answers[0], frame)


@pytest.mark.parametrize(
    ("question", "answer", "evidence", "reply"),
    [
        ("Point at the red disc.", "top left", ONE, f"The {DISC} is at the top left."),
        ("Point at every red disc.", "2", TWO, f"I see {DISC}{MORE}. That makes 2."),
        ("Where are the red discs?", "2", [see("red disc", CENTRE), *ONE], f"I see {DISC}{MORE}. That makes 2."),
        ("How many things are there?", "two", [*ONE, see("blue star", CENTRE)],
         f"I see {DISC} and <ref>blue star</ref>{MORE}. That makes 2."),
        ("Where is the red disc?", "no", [], "I see no red disc."),
        ("Point at every platelet.", "0", [], "I see no platelet. That makes 0."),
        ("What does the sign say?", "not answerable", [], "I see nothing of the kind."),
        ("What is on the table?", "a cup", [see("table", RIGHT)],
         "Look at the <ref>table</ref><box>[781, 375, 969, 625]</box> at the right. That shows the answer."),
    ],
)  # fmt: skip
def test_the_first_phrasing_is_what_the_base_has_met(
    question: str, answer: str, evidence: list[Mention], reply: str
) -> None:
    assert said(sample(question, answer, evidence=tuple(evidence))) == f"{reply}\nAnswer: {answer}"


def test_the_drawn_scenes_and_the_template_speak_alike() -> None:
    """The base learned from scenes.py; the first phrasing must be those very sentences."""
    np = pytest.importorskip("numpy")
    from vcot.datasets.scenes import drawing
    from vcot.datasets.scenes import objects as scenes

    rng = np.random.default_rng(5)
    seen = set()

    def spoken(parts: Any) -> str:
        return "".join(p if isinstance(p, str) else f"{{{p.label} {len(p.boxes)}}}" for p in parts)

    for _ in range(60):
        scene = drawing.draw_scene(rng, scenes.SceneSpec(width=64, height=48, rough=0.0))
        for asked in (scenes.ask(rng, scene, kind) for kind in get_args(scenes.QuestionKind)):
            mentions = [p for p in asked.reasoning if not isinstance(p, str)]
            evidence = tuple(Mention(p.label, tuple(Box(*map(float, b)) for b in p.boxes)) for p in mentions)
            made = FIRST.teach_row(sample(asked.text, asked.answer, evidence=evidence, width=64, height=48))
            assert isinstance(made, DistilledReasoning)
            assert spoken(made.traces[0].parts) == spoken(asked.reasoning)
            seen.add((asked.kind, bool(mentions)))
    assert len(seen) >= 7  # every kind, with and without something to see


@pytest.mark.parametrize(
    ("question", "answer", "evidence"),
    [("What is it?", "a cup", None), ("Is there a dog?", "yes", ()), ("How many dogs are there?", "3", ())],
)
def test_nobody_annotated_or_annotated_against_the_answer_is_refused(question: str, answer: str, evidence: Any) -> None:
    refused = FIRST.teach_row(sample(question, answer, evidence=evidence))
    assert isinstance(refused, Rejection)
    assert refused.reason is Reason.NO_REASONING


@pytest.mark.parametrize(
    ("question", "answer", "label", "spoken"),
    [
        ("What animal is this?", "dog", "dog", "region"), ("What animal is this?", "dog", "The Dog", "region"),
        ("Who is the dealer?", "A. C. Monk", "a. c. monk", "region"),
        ("What colour is the disc?", "red", "red disc", "region"), ("Which animal?", "B", "dog", "region"),
        ("What is this?", "x", "", "region"),
        ("Where is the left glove?", "left", "left glove", "left glove"),  # the question's own word
        ("How many people are there?", "3", "people", "people"),  # a count that disagrees with the boxes is not stated
        ("Where is the dog?", "on the sofa", "dog", "dog"),  # a place that disagrees with the box is not claimed
    ],
)  # fmt: skip
def test_a_label_gives_no_answer_away_and_what_disagrees_is_not_said(
    question: str, answer: str, label: str, spoken: str
) -> None:
    row = sample(question, answer, evidence=(see(label, RIGHT),), choices=("cat", "dog") if answer == "B" else None)
    assert said(row).startswith(f"Look at the <ref>{spoken}</ref>")


def test_phrasings_differ_between_rows_and_stay_for_each() -> None:
    rows = [sample(name=f"row-{n}") for n in range(60)]
    mixed = [said(row, TemplateTeacher()) for row in rows]
    assert len(set(mixed)) == 3
    assert mixed == [said(row, TemplateTeacher()) for row in rows]
    assert mixed != [said(row, TemplateTeacher(seed=1)) for row in rows]
    several = TemplateTeacher(alternatives=3).teach_row(rows[0])
    assert isinstance(several, DistilledReasoning)
    assert len({trace.text for trace in several.traces}) == 3


OPENINGS = {
    "The ", "I see ", "I see the ", "Here is the ", "Here I see ", "I look for it and see ", "I look for them and see ",
    "Look at the ", "What matters is the ",
}  # fmt: skip
words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
boxes = st.tuples(st.floats(0, 300), st.floats(0, 200), st.floats(1, 20), st.floats(1, 40)).map(
    lambda b: Box(b[0], b[1], b[0] + b[2], b[1] + b[3])
)
evidences = st.lists(st.builds(Mention, words, st.lists(boxes, min_size=1, max_size=3).map(tuple)), max_size=3)


@unhurried
@given(
    question=words | st.sampled_from(["Where is the dog?", "How many dogs are there?", "Is there a dog?"]),
    answer=words | st.sampled_from(["yes", "no", "1", "2", "left", "dog"]),
    evidence=evidences,
    phrasing=st.integers(0, 2),
)
def test_any_row_gets_a_trace_of_its_own_boxes_whatever_it_says(
    question: str, answer: str, evidence: list[Mention], phrasing: int
) -> None:
    row = sample(question, answer, evidence=tuple(evidence))
    outcome = TemplateTeacher(seed=phrasing).teach_row(row)
    if isinstance(outcome, Rejection):
        assert not evidence
        return
    (trace,) = outcome.traces
    assert sorted(trace.boxes) == sorted(row.true_boxes or ())
    if evidence:  # nothing of the row is said before something is pointed at
        assert trace.parts[0] in OPENINGS
    frame = FrameSpec("pixels").on(WIDTH, HEIGHT)
    assert tags.parse(tags.render(trace, frame), frame).well_formed


@pytest.mark.parametrize(
    ("question", "kind", "thing"),
    [
        ("Where do you see the violet ring?", Kind.WHERE, "violet ring"),
        ("Where's my cup in the picture?", Kind.WHERE, "cup"),
        ("How many boxes do you see?", Kind.COUNT, "box"), ("How many RBCs are there?", Kind.COUNT, "RBC"),
        ("How many people are in the image?", Kind.COUNT, "person"),
        ("Where are the scissors?", Kind.COUNT, "scissors"),
        ("Find all of the buses.", Kind.COUNT, "bus"), ("Find every bus.", Kind.COUNT, "bus"),
        ("How many people are wearing hats?", Kind.COUNT, None), ("Are there any cherries?", Kind.PRESENCE, "cherry"),
        ("Is a boat in the picture?", Kind.PRESENCE, "boat"), ("Can you see a leaf?", Kind.PRESENCE, "leaf"),
        ("Is the car over the cat?", None, None), ("Where was it made, and when?", None, None), ("", None, None),
    ],
)  # fmt: skip
def test_questions_are_read(question: str, kind: Kind | None, thing: str | None) -> None:
    assert read_question(question) == (Asked(kind, thing) if kind else None)
