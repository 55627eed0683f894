"""The template teacher: the exact sentences, what they may never say, and that they stay the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.distill.made import CENTRE, HEIGHT, RIGHT, TOP_LEFT, WIDTH, sample, see
from tests.grounding.drawn import unhurried
from vcot.distill import DistilledReasoning, TemplateTeacher
from vcot.distill.template import Asked, Kind, read_question
from vcot.grounding import Box, FrameSpec, Mention, tags
from vcot.records import Reason, Rejection, Sample

FIRST = TemplateTeacher(phrasings=1)


def said(row: Sample, teacher: TemplateTeacher = FIRST) -> str:
    lesson = teacher.lesson(row)
    assert isinstance(lesson, DistilledReasoning), lesson
    frame = FrameSpec("thousandths").on(row.image.width, row.image.height)
    return tags.render_reply(lesson.traces[0], row.answers[0], frame)


DISC = "<ref>red disc</ref><box>[31, 83, 188, 292]</box>"


@pytest.mark.parametrize(
    ("question", "answer", "evidence", "reply"),
    [
        ("Where is the red disc?", "top left", [see("red disc", TOP_LEFT)],
         f"The {DISC} is at the top left.\nAnswer: top left"),
        ("Point at the red disc.", "top left", [see("red disc", TOP_LEFT)],
         f"The {DISC} is at the top left.\nAnswer: top left"),
        ("How many red discs are there?", "1", [see("red disc", TOP_LEFT)],
         f"I see {DISC}. That makes 1.\nAnswer: 1"),
        ("Point at every red disc.", "2", [see("red disc", TOP_LEFT, CENTRE)],
         f"I see {DISC}<box>[438, 417, 562, 583]</box>. That makes 2.\nAnswer: 2"),
        ("Where are the red discs?", "2", [see("red disc", CENTRE), see("red disc", TOP_LEFT)],
         f"I see {DISC}<box>[438, 417, 562, 583]</box>. That makes 2.\nAnswer: 2"),
        ("How many things are there?", "two", [see("red disc", TOP_LEFT), see("blue star", CENTRE)],
         f"I see {DISC} and <ref>blue star</ref><box>[438, 417, 562, 583]</box>. That makes 2.\nAnswer: two"),
        ("Is there a red disc?", "yes", [see("red disc", TOP_LEFT)], f"I see {DISC}.\nAnswer: yes"),
        ("Is there a red disc?", "no", [], "I see no red disc.\nAnswer: no"),
        ("Where is the red disc?", "no", [], "I see no red disc.\nAnswer: no"),
        ("How many red discs are there?", "0", [], "I see no red disc. That makes 0.\nAnswer: 0"),
        ("Point at every platelet.", "0", [], "I see no platelet. That makes 0.\nAnswer: 0"),
        ("What does the sign say?", "not answerable", [], "I see nothing of the kind.\nAnswer: not answerable"),
        ("What is on the table?", "a cup", [see("table", RIGHT)],
         "Look at the <ref>table</ref><box>[781, 375, 969, 625]</box> at the right. "
         "That shows the answer.\nAnswer: a cup"),
    ],
)  # fmt: skip
def test_the_first_phrasing_is_what_the_base_has_met(
    question: str, answer: str, evidence: list[Mention], reply: str
) -> None:
    assert said(sample(question, answer, evidence=tuple(evidence))) == reply


def test_the_drawn_scenes_and_the_template_speak_alike() -> None:
    """The base learned from scenes.py; the first phrasing must be those very sentences."""
    np = pytest.importorskip("numpy")
    from vcot.datasets import drawing, scenes

    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(60):
        scene = drawing.draw_scene(rng, scenes.SceneSpec(width=64, height=48, rough=0.0))
        for asked in (scenes.ask(rng, scene, kind) for kind in scenes.KINDS):
            mentions = [p for p in asked.reasoning if not isinstance(p, str)]
            wanted = "".join(p if isinstance(p, str) else f"{{{p.label} {len(p.boxes)}}}" for p in asked.reasoning)
            evidence = tuple(Mention(p.label, tuple(Box(*map(float, b)) for b in p.boxes)) for p in mentions)
            row = sample(asked.text, asked.answer, evidence=evidence, width=64, height=48)
            lesson = FIRST.lesson(row)
            assert isinstance(lesson, DistilledReasoning)
            parts = lesson.traces[0].parts
            assert "".join(p if isinstance(p, str) else f"{{{p.label} {len(p.boxes)}}}" for p in parts) == wanted
            seen.add((asked.kind, bool(mentions)))
    assert len(seen) >= 7  # every kind, with and without something to see


def test_nobody_annotated_is_refused_and_annotated_as_absent_is_not() -> None:
    refused = FIRST.lesson(sample(evidence=None))
    assert isinstance(refused, Rejection)
    assert refused.reason is Reason.NO_REASONING
    assert isinstance(FIRST.lesson(sample("Is there a dog?", "no", evidence=())), DistilledReasoning)


@pytest.mark.parametrize(
    ("question", "answer"),
    [("Is there a dog?", "yes"), ("How many dogs are there?", "3"), ("Where is it?", "top left")],
)
def test_absence_that_contradicts_the_answer_is_refused(question: str, answer: str) -> None:
    refused = FIRST.lesson(sample(question, answer, evidence=()))
    assert isinstance(refused, Rejection)
    assert repr(answer) in refused.detail


@pytest.mark.parametrize(
    ("question", "answer", "label"),
    [
        ("What animal is this?", "dog", "dog"),
        ("What animal is this?", "dog", "The Dog"),
        ("Who is the dealer?", "A. C. Monk", "a. c. monk"),
        ("What colour is the disc?", "red", "red disc"),
        ("Which animal?", "B", "dog"),
        ("What is this?", "x", ""),
    ],
)
def test_a_label_never_gives_the_answer_away(question: str, answer: str, label: str) -> None:
    choices = ("cat", "dog") if answer == "B" else None
    assert "<ref>region</ref>" in said(sample(question, answer, evidence=(see(label, TOP_LEFT),), choices=choices))


def test_a_word_of_the_question_may_stay_in_the_label() -> None:
    row = sample("Where is the left glove?", "left", evidence=(see("left glove", Box(10, 100, 60, 140)),))
    assert said(row).startswith("The <ref>left glove</ref>")


def test_phrasings_differ_between_rows_and_stay_for_each() -> None:
    rows = [sample(name=f"row-{n}") for n in range(60)]
    mixed = [said(row, TemplateTeacher()) for row in rows]
    assert len(set(mixed)) == 3
    assert mixed == [said(row, TemplateTeacher()) for row in rows]
    assert mixed != [said(row, TemplateTeacher(seed=1)) for row in rows]
    assert len({said(row) for row in rows}) == 1


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
    outcome = TemplateTeacher(seed=phrasing).lesson(row)
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
        ("Locate the white blood cell.", Kind.WHERE, "white blood cell"),
        ("How many boxes do you see?", Kind.COUNT, "box"),
        ("How many people are in the image?", Kind.COUNT, "person"),
        ("How many RBCs are there?", Kind.COUNT, "RBC"),
        ("Where do you see the bus?", Kind.WHERE, "bus"),
        ("Where are the scissors?", Kind.COUNT, "scissors"),
        ("Count the red blood cells in this image.", Kind.COUNT, "red blood cell"),
        ("Find all of the buses.", Kind.COUNT, "bus"),
        ("Find every bus.", Kind.COUNT, "bus"),
        ("How many people are wearing hats?", Kind.COUNT, None),
        ("Are there any cherries in the photo?", Kind.PRESENCE, "cherry"),
        ("Is a boat in the picture?", Kind.PRESENCE, "boat"),
        ("Can you see a leaf?", Kind.PRESENCE, "leaf"),
    ],
)
def test_questions_are_read(question: str, kind: Kind, thing: str | None) -> None:
    assert read_question(question) == Asked(kind, thing)


@pytest.mark.parametrize(
    "question", ["Is the car over the cat?", "What is the date?", "Where was it made, and when?", "", "Who is there?"]
)
def test_other_questions_are_left_to_the_general_phrasing(question: str) -> None:
    assert read_question(question) is None


@pytest.mark.parametrize(
    ("question", "answer", "label"),
    [
        ("How many people are there?", "3", "people"),  # a count that disagrees with the boxes is not stated
        ("How many tables are there?", "1", "region"),  # nobody knows whether such a region is a table
        ("Where is the dog?", "on the sofa", "dog"),  # a place that disagrees with the box is not claimed
    ],
)
def test_what_disagrees_with_the_evidence_is_not_said(question: str, answer: str, label: str) -> None:
    assert said(sample(question, answer, evidence=(see(label, RIGHT),))).startswith(f"Look at the <ref>{label}</ref>")


def test_alternatives_are_different_phrasings() -> None:
    reasoning = TemplateTeacher(alternatives=3).lesson(sample())
    assert isinstance(reasoning, DistilledReasoning)
    assert len({trace.text for trace in reasoning.traces}) == 3
