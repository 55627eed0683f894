"""The template teacher: the exact sentences, what they may never say, and that they stay the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.grounding.drawn import unhurried
from tests.teacher.made import CENTRE, HEIGHT, RIGHT, TOP_LEFT, WIDTH, sample, see
from vcot.grounding import Box, FrameSpec, Mention, tags
from vcot.records import Reason, Rejection, Sample
from vcot.teacher import Lesson, TemplateTeacher, questions
from vcot.teacher.questions import Kind

FIRST = TemplateTeacher(phrasings=1)


def said(row: Sample, teacher: TemplateTeacher = FIRST) -> str:
    lesson = teacher.lesson(row)
    assert isinstance(lesson, Lesson), lesson
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
    from vcot.sources import drawing, scenes

    rng = np.random.default_rng(5)
    seen = set()
    for _ in range(60):
        scene = drawing.draw_scene(rng, scenes.SceneSpec(width=64, height=48, rough=0.0))
        for asked in scenes.ask_several(rng, scene):
            mentions = [p for p in asked.reasoning if not isinstance(p, str)]
            wanted = "".join(p if isinstance(p, str) else f"{{{p.label} {len(p.boxes)}}}" for p in asked.reasoning)
            evidence = tuple(Mention(p.label, tuple(Box(*map(float, b)) for b in p.boxes)) for p in mentions)
            row = sample(asked.text, asked.answer, evidence=evidence, width=64, height=48)
            lesson = FIRST.lesson(row)
            assert isinstance(lesson, Lesson)
            parts = lesson.traces[0].parts
            assert "".join(p if isinstance(p, str) else f"{{{p.label} {len(p.boxes)}}}" for p in parts) == wanted
            seen.add((asked.kind, bool(mentions)))
    assert len(seen) >= 7  # every kind, with and without something to see


def test_nobody_annotated_is_refused_and_annotated_as_absent_is_not() -> None:
    refused = FIRST.lesson(sample(evidence=None))
    assert isinstance(refused, Rejection)
    assert refused.reason is Reason.NO_REASONING
    assert isinstance(FIRST.lesson(sample("Is there a dog?", "no", evidence=())), Lesson)


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


def test_a_count_that_disagrees_with_the_boxes_is_not_stated() -> None:
    reply = said(sample("How many people are there?", "3", evidence=(see("people", TOP_LEFT),)))
    assert reply.startswith("Look at the <ref>people</ref>")
    assert "makes" not in reply


def test_a_region_without_a_name_is_not_counted_as_what_was_asked_for() -> None:
    reply = said(sample("How many tables are there?", "1", evidence=(see("region", CENTRE),)))
    assert reply.startswith("Look at the <ref>region</ref>")


def test_a_place_that_disagrees_with_the_box_is_not_claimed_to_be_the_answer() -> None:
    reply = said(sample("Where is the dog?", "on the sofa", evidence=(see("dog", RIGHT),)))
    assert reply.startswith("Look at the <ref>dog</ref>")


def test_phrasings_differ_between_rows_and_stay_for_each() -> None:
    rows = [sample(name=f"row-{n}") for n in range(60)]
    mixed = [said(row, TemplateTeacher()) for row in rows]
    assert len(set(mixed)) == 3
    assert mixed == [said(row, TemplateTeacher()) for row in rows]
    assert mixed != [said(row, TemplateTeacher(seed=1)) for row in rows]
    assert len({said(row) for row in rows}) == 1


def test_alternatives_are_different_phrasings_of_one_row() -> None:
    lesson = TemplateTeacher(alternatives=3).lesson(sample())
    assert isinstance(lesson, Lesson)
    assert sorted(trace.text for trace in lesson.traces) == [
        "Here is the red disc. It is at the top left.",
        "I see the red disc at the top left.",
        "The red disc is at the top left.",
    ]


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
    assert questions.read(question) == questions.Asked(kind, thing)


@pytest.mark.parametrize(
    "question", ["Is the car over the cat?", "What is the date?", "Where was it made, and when?", "", "Who is there?"]
)
def test_other_questions_are_left_to_the_general_phrasing(question: str) -> None:
    assert questions.read(question) is None


CATEGORIES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie "
    "suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
    "tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot "
    "hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv laptop mouse remote keyboard "
    "cell_phone microwave oven toaster sink refrigerator book clock vase scissors teddy_bear hair_drier "
    "toothbrush platelet red_blood_cell white_blood_cell "
)


def test_what_convert_asks_about_is_named_again_in_the_singular() -> None:
    """The absence of a thing is told with the name that a mention of it would have."""
    from vcot.sources.coco import PHRASINGS, plural

    for one in (category.replace("_", " ") for category in CATEGORIES.split()):
        for kind, wordings in PHRASINGS.items():
            for wording in wordings:
                question = wording.format(one=one, a=f"a {one}", many=plural(one))
                asked = questions.read(question)
                assert asked is not None, question
                assert asked.thing == one, question
                assert (asked.kind is Kind.COUNT) == (kind in ("count", "point"))
