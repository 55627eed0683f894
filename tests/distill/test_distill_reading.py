"""What a reply says: it is read or refused by class, as JSON of a shape or as reasoning, in linear time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.distill.made import CENTRE, HEIGHT, RIGHT, TOP_LEFT, WIDTH, sample, see
from tests.grounding.drawn import unhurried
from vcot.distill import Fault, Refused, conclusion, crops, dialogue, prose, verification
from vcot.distill.crops import Object, objects_of
from vcot.distill.dialogue import parse_reply
from vcot.distill.endpoint import LONGEST_BODY, LONGEST_TEXT, read_completion
from vcot.distill.prose import Span
from vcot.distill.reasoning import LONGEST, build, read
from vcot.distill.runner import reached
from vcot.distill.strategies.rationalise import anchored, find
from vcot.distill.strategies.two_level import Found, apart
from vcot.distill.verification import Looked
from vcot.grounding import Box, FrameSpec, Mention, Trace, overlap, tags
from vcot.records import Completion, Reason, Sample

IMAGE = sample().image

ROW = sample("What touches the lever?", "gear", evidence=(see("red disc", TOP_LEFT, CENTRE), see("blue lever", RIGHT)))
NOTHING = sample("Is there a dog?", "no", evidence=())

DISC, OTHER, LEVER = (see("red disc", TOP_LEFT), see("red disc", CENTRE), see("blue lever", RIGHT))
BOTH = Mention("red disc", (TOP_LEFT, CENTRE))


# --- a JSON object


def looked(text: str, finish: str = "stop") -> Looked | Fault:
    try:
        return parse_reply(Completion(text=text, model="m", finish_reason=finish), Looked)
    except Refused as refused:
        return refused.fault


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("", "content_filter", Reason.TEACHER_REFUSED), ("", "refusal", Reason.TEACHER_REFUSED),
        (" \n", "stop", Reason.TEACHER_EMPTY), ("<think>yes</think>", "stop", Reason.TEACHER_EMPTY),
        ('{"present": true', "length", Reason.TEACHER_CUT_OFF), ("yes", "stop", Reason.TEACHER_NOT_JSON),
        ("[true]", "stop", Reason.TEACHER_NOT_JSON), ("{" * (dialogue.LONGEST + 1), "stop", Reason.TEACHER_NOT_JSON),
        ('{"there": true}', "stop", Reason.TEACHER_WRONG_SHAPE),
        ('{"present": "perhaps"}', "stop", Reason.TEACHER_WRONG_SHAPE),
    ],
)  # fmt: skip
def test_a_reply_of_no_use_has_its_class(text: str, finish: str, reason: Reason) -> None:
    found = looked(text, finish)
    assert isinstance(found, Fault)
    assert found.reason is reason


@pytest.mark.parametrize(
    "text",
    ['{"present": true}', '```json\n{"present": true}\n```', "It is: {'present': True}", '{"present": true',
     '{"present": true, "why": "red"}', '<think>{"present": false}</think> {"present": true}'],
)  # fmt: skip
def test_what_is_meant_beyond_doubt_is_read(text: str) -> None:
    assert looked(text) == Looked(present=True)


@pytest.mark.parametrize("box", ["[31, 83, 188, 292]", "(31,83),(188,292)", "31 83 188 292", [31, "83", 188.0, 292]])
def test_a_box_may_be_a_string(box: object) -> None:
    found = Found.model_validate({"objects": [{"label": "disc", "box": box}]})
    assert found.objects[0].box == [31.0, 83.0, 188.0, 292.0]


# --- reasoning


def reading(text: str, row: Sample = ROW, finish: str = "stop") -> Trace | Fault:
    known = {seen.number: seen for seen in objects_of(row)}
    try:
        return build(read(Completion(text=text, model="m", finish_reason=finish), row, known).parts, known)
    except Refused as refused:
        return refused.fault


def sentences(*said: tuple[str, list[int]]) -> dict[str, object]:
    return {"sentences": [{"text": text, "objects": objects} for text, objects in said], "answer": "gear"}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("I see the [1] at the top left.\nAnswer: gear", ["I see the ", DISC, " at the top left."]),
        ("The [1] touches the [3]. Answer: Gear.", ["The ", DISC, " touches the ", LEVER, "."]),
        ("**[3]** is at the right.\n\n**Answer:** gear", [LEVER, " is at the right."]),
        ("I see the [1].", ["I see the ", DISC, "."]),  # no closing answer, but it came to its end
        ("I see [1, 2].\nAnswer: gear", ["I see ", BOTH, "."]),
        ("I see [1] [3].", ["I see ", DISC, " ", LEVER, "."]),
        ("I see [1][2].", ["I see ", BOTH, "."]),
        ("I see [1-3] here.", ["I see ", BOTH, ", ", LEVER, " here."]),
        ("I see [1 and 3] here.", ["I see ", DISC, ", ", LEVER, " here."]),
        ("I see [object 2] and [#3].", ["I see ", OTHER, " and ", LEVER, "."]),
        ("I see the Red Disc [1] here.", ["I see the ", DISC, " here."]),
        ("I see the red discs [1, 2] here.", ["I see the ", BOTH, " here."]),
        ("I see the [1] red disc here.", ["I see the ", DISC, " here."]),
        ("I see the [3] (blue lever) here.", ["I see the ", LEVER, " here."]),
        ("1. I see the [1].\n2. It touches the [3].", ["I see the ", DISC, ". It touches the ", LEVER, "."]),
        ("<think>Is [9] at (12, 40)? </think>I see the [1].", ["I see the ", DISC, "."]),
        ("The [1] is < 3 cm from the [3].", ["The ", DISC, " is < 3 cm from the ", LEVER, "."]),
        ("The [1] stands under 20 % of the [3] & \x00\x1b more.",
         ["The ", DISC, " stands under 20 % of the ", LEVER, " & more."]),
    ],
)  # fmt: skip
def test_numbers_become_mentions(text: str, parts: list[Any]) -> None:
    assert reading(text) == Trace(tuple(parts))


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (sentences(("The [1] reaches [0, 5].", [1])), "The red disc reaches [0, 5]."),  # not listed: an interval
        (sentences(("The [1] reaches [1, 2].", [1])), "The red disc reaches [1, 2]."),
        (sentences(("I see [1, 3].", [1, 3])), "I see red disc, blue lever."),
        (sentences(("The footnote [2] says so at [1].", [1])), "The footnote [2] says so at red disc."),
        (sentences(("The [1] bears [2015].", [1])), "The red disc bears [2015]."),
        (sentences(("The 【1】 is here.", [1])), "The red disc is here."),
        ({"sentences": ["I see the [1].", "It is here."], "answer": "gear"}, "I see the red disc. It is here."),
        ({"reasoning": "I see the [1].", "answer": "gear"}, "I see the red disc."),
        (sentences(("Look at [1]", [1]), ("It is [2]", [2])), "Look at red disc It is red disc"),
    ],
)
def test_brackets_are_objects_where_they_are_listed_or_known(said: object, text: str) -> None:
    found = reading(json.dumps(said))
    assert isinstance(found, Trace), found
    assert found.text == text


@pytest.mark.parametrize(
    "said",
    [
        "The [1]. So it is a gear.", "The [1]. It is a gear.", "The [1]. The answer is gear.", "See [1]. Hence gear.",
        "[1]. So the answer is gear.", "The [1] and the [3]. Therefore, it is a gear.", "The [1], so it is a gear.",
        "This [1] here. So it is a gear.", "The [1]\nSo it is a gear.", "Based on the [1]. So it is a gear.",
        "The [1]. The [2]. The [3]. So it is a gear.",
        sentences(("The [1].", [1]), ("So it is a gear.", [])), sentences(("The [1]", [1]), ("So it is a gear", [])),
    ],
    ids=str,
)  # fmt: skip
def test_reply_that_only_points_is_rejected(said: Any) -> None:
    found = reading(said if isinstance(said, str) else f"{json.dumps(said)}")
    assert isinstance(found, Fault), found
    assert found.reason is Reason.TEACHER_UNGROUNDED
    assert "does not describe it" in found.why


@pytest.mark.parametrize(
    "said",
    [
        "I see the [1]. So it is a gear.", "The [1] turns. So it is a gear.", "Look at the [1]. It is a gear.",
        "The [1]. It has teeth. So it is a gear.", "The [1] is here. So it is a gear.", "The [1]. It touches the [3].",
        "The toothed [1]. So it is a gear.", "So the [1] has teeth. It is a gear.", "I see the [1].",
        "Because the [1] has teeth, it is a gear.", "It is the [1] that turns the lever. So it is a gear.",
        "The answer follows from the teeth of the [1]. So it is a gear.",
    ],
    ids=str,
)  # fmt: skip
def test_reply_that_says_something_of_an_object_is_kept(said: str) -> None:
    found = reading(said)
    assert isinstance(found, Trace), found


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", Reason.TEACHER_EMPTY), ("I see a red disc at the top left.\nAnswer: gear", Reason.TEACHER_UNGROUNDED),
        ("I see the [4] at the top.", Reason.TEACHER_UNGROUNDED),
        ("I see the [0] at the top.", Reason.TEACHER_UNGROUNDED),
        ("I see the [1] and the [12].", Reason.TEACHER_UNGROUNDED),
        ("The gear is what touches it, see [1].", Reason.TEACHER_UNGROUNDED),  # the answer came first
        ("I'm sorry, but I can't help with that.", Reason.TEACHER_REFUSED), ("[1]", Reason.TEACHER_UNREADABLE),
        ("Answer: gear", Reason.TEACHER_UNGROUNDED), ("I see the [1]. " * 400, Reason.TEACHER_UNREADABLE),
        ('{"reasoning": "I see the [1]. It is clearly a thing because it has a', Reason.TEACHER_NOT_JSON),
        ('```json\n{"reasoning": "I see the [1]. It has a "tooth', Reason.TEACHER_WRONG_SHAPE),
        ('{"reasoning": "I see the [1]."}', Reason.TEACHER_WRONG_SHAPE),
        ('{"reasoning": "I see the [1].", "answer": " "}', Reason.TEACHER_UNREADABLE),
        (sentences(("I see the [1] and it.", [1, 7])), Reason.TEACHER_UNGROUNDED),
        (sentences(("I see the [1] and the [7].", [1])), Reason.TEACHER_UNGROUNDED),
        (sentences(("I see the red disc.", [1])), Reason.TEACHER_UNGROUNDED),
        (sentences(("I see the [1].", [])), Reason.TEACHER_UNGROUNDED),
        (sentences(("I see the [1].", [1]), ("So the [1] is it.", [])), Reason.TEACHER_UNREADABLE),  # or is it text?
        (sentences(("I see the [1] at [31, 83, 188, 292].", [1])), Reason.TEACHER_UNREADABLE),
    ],
)  # fmt: skip
def test_a_useless_reply_has_its_reason(said: Any, reason: Reason) -> None:
    found = reading(said if isinstance(said, str) else json.dumps(said))
    assert isinstance(found, Fault), found
    assert found.reason is reason


def test_absence_is_prose_that_closes_with_the_answer() -> None:
    none = "I looked for a dog. There is none."
    assert reading(f"{none}\nAnswer: no", NOTHING) == Trace((none,))
    for text, reason in {
        none: Reason.TEACHER_UNREADABLE,
        "How can I help you today?": Reason.TEACHER_UNREADABLE,
        "I see the [1].\nAnswer: no": Reason.TEACHER_UNGROUNDED,
        "Answer: no": Reason.TEACHER_UNREADABLE,
    }.items():
        found = reading(text, NOTHING)
        assert isinstance(found, Fault), text
        assert found.reason is reason, text


snippets = st.sampled_from(
    ['{"present"', ": true", "}", "{", '"', "'", ",", "\\", "```json",
     "[1]", "[2]", "[3]", "[4]", "[1, 2]", "[1-9]", "[", "]", "<box>", "</box>", "<ref>", "[31, 83, 188, 292]",
     "Answer:", "answer: gear", "red disc", "\n", " ", "I see the ", "<|im_end|>", "(1,2)", "<think>", "</think>", "**",
     "- ", "[9999]", '{"bbox_2d": [1, 2, 3, 4]}', "ß", "İ", "\ud7ff", "x=3", "12 %", "…"]
)  # fmt: skip
replies = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(snippets | st.text(max_size=5), max_size=25).map(
    "".join
)


@unhurried
@given(
    text=replies, finish=st.sampled_from(["stop", "length", "", "content_filter"]), row=st.sampled_from([ROW, NOTHING])
)
def test_no_reply_raises_and_no_box_comes_from_anywhere_but_the_evidence(text: str, finish: str, row: Sample) -> None:
    assert isinstance(looked(text, finish), Looked | Fault)
    found = reading(text, row, finish)
    if isinstance(found, Fault):
        assert found.reason.value.startswith("teacher-")
        return
    true = {m.label: set(m.boxes) for m in row.evidence or ()}
    assert all(set(mention.boxes) <= true[mention.label] for mention in found.mentions)
    assert bool(found.mentions) == bool(row.evidence)
    frame = FrameSpec("pixels").on(row.image.width, row.image.height)
    parsed = tags.parse(tags.render(found, frame), frame)
    assert parsed.well_formed
    assert len(parsed.boxes) == len(found.boxes)  # nothing that the teacher wrote is read as a box
    assert tags.split_answer(tags.render_reply(found, row.answers[0], frame))[1] == row.answers[0]


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
        ("Where is it?", "21 Jalan Taman Desa, Kuala Lumpur", "The ¤1¤ ends in 21 Jalan Taman Desa, Kuala Lumpur."),
        ("Which is 120?", "45", "The ¤1¤ at (one hundred and twenty, ４５) is marked."),
    ],
)
def test_what_the_row_is_about_may_be_said(question: str, answer: str, said: str) -> None:
    assert prose.fault_of(said, sample(question, answer)) is None


# --- time


@pytest.mark.parametrize(
    "text",
    ["[" * LONGEST, "1" * LONGEST, "1, " * 1300, "[1]" * 1300, "answer" * 600, "[1-9999]" * 490, " " * 10**6,
     "<think>" * 9**5, "(" * LONGEST, "one hundred " * 330, "x 1 " * 1000, "so " * 1300, "a. " * 1300,
     "{" * dialogue.LONGEST, '{"a":' * (dialogue.LONGEST // 5), "{'" * (dialogue.LONGEST // 2),
     '{"' + "\\" * dialogue.LONGEST, "{'" * 9, '{"a": ' + '"b" ' * 2900, "{" + "a:" * 5900,
     '{"a": [' + '"x", ' * 2300, '{"a": "' + "'" * 11_900],
)  # fmt: skip
def test_no_reply_takes_long(text: str) -> None:
    begun = time.process_time()
    looked(text)
    reading(text)
    prose.fault_of(text[:LONGEST], ROW)
    conclusion.fault_of(text[:LONGEST], ROW)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize(
    "text",
    ["I see the [1] here. " * 50_000, "[" * 10**6, "1, " * 333_333, "<think>" + "so, " * 250_000,
     "<think>so</think>" + "I see the [1]. " * 60_000],
    ids=["prose", "brackets", "numbers", "thinking", "prose after thinking"],
)  # fmt: skip
def test_a_reply_of_a_megabyte_is_cut_before_anybody_reads_it(text: str) -> None:
    """The event loop waits meanwhile, and with it every other request."""
    said = {"choices": [{"finish_reason": "stop", "message": {"content": text}}], "model": "m" * 10**6}
    data = json.dumps(said).encode()
    begun = time.process_time()
    completion = read_completion(data, "m", 0.0)
    assert completion is not None
    with pytest.raises(Refused):
        read(completion, sample(), [1])
    assert time.process_time() - begun < 0.3
    assert (len(completion.text), completion.finish_reason) == (LONGEST_TEXT, "length")
    assert len(completion.line()) < 2 * LONGEST_TEXT


def test_what_is_longer_than_any_reply_is_not_parsed_and_is_no_passing_trouble() -> None:
    """Asking again costs as much again, and brings as much."""
    data = b'{"choices": [{"message": {"content": "' + b"x" * LONGEST_BODY + b'"}}]}'
    completion = read_completion(data, "m", 0.0)
    assert completion is not None
    with pytest.raises(Refused, match="cut off"):
        read(completion, sample(), [1])
    assert (completion.tokens_out, len(completion.text)) == (0, 80)  # what it cost nobody knows


# --- boxes, crops, places in a text


@pytest.mark.parametrize("label", ["", "disc <|im_end|>", "<box>[1, 2, 3, 4]</box>", "disc\x00", "very " * 20 + "disc"])
def test_a_name_is_short_and_plain(label: str) -> None:
    found = verification.fault_of_name(label, sample())
    assert found is not None
    assert found.reason is Reason.TEACHER_UNREADABLE


@unhurried
@given(st.integers(0, 200), st.floats(4, 120), st.floats(4, 90), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_negative_crop_shows_next_to_nothing_of_the_thing(
    seed: int, width: float, height: float, right: float, down: float
) -> None:
    x, y = right * (WIDTH - width), down * (HEIGHT - height)
    box = Box(x, y, x + width, y + height)
    found = crops.negative_crop(box, [CENTRE], IMAGE, str(seed))
    assert found == crops.negative_crop(box, [CENTRE], IMAGE, str(seed))
    if found is not None:
        seen = crops.padded(found, IMAGE)
        for other in (box, CENTRE):
            assert overlap(seen, other) <= 0.11 * crops.padded(other, IMAGE).area


def test_many_places_are_one_cut_out_and_none_are_the_whole() -> None:
    many = [Box(10.0 * n, 10, 10.0 * n + 8, 20) for n in range(9)]
    (one,) = crops.evidence_crops(many, IMAGE, 512)
    assert one.crop == crops.padded(Box(10, 10, 88, 20), IMAGE)
    assert len(crops.evidence_crops([TOP_LEFT, RIGHT, RIGHT], IMAGE, 512)) == 2
    assert crops.evidence_crops([], IMAGE, 512)[0].crop is None


words = st.sampled_from(["A red cup", "on the table", ".", "! ", "? ", "\n", "  ", "“So”", "it is 3.5 cm", "é"])
cuts = st.tuples(st.integers(0, 90), st.integers(1, 20))


@unhurried
@given(st.lists(words, max_size=14).map("".join), st.lists(cuts, max_size=6))
def test_a_text_with_places_is_the_same_text(text: str, cuts: list[tuple[int, int]]) -> None:
    spans = [Span(start, start + length) for start, length in cuts if start + length <= len(text)]
    assert anchored(text, [(span, TOP_LEFT) for span in spans]).text == text
    assert bool(anchored(text, [(span, TOP_LEFT) for span in spans]).mentions) == bool(spans)
    covered = "".join(text[slice(*span)] for span in prose.sentences(text))
    assert "".join(covered.split()) == "".join(text.split())


def test_words_are_found_whole_and_within_their_sentence() -> None:
    text = "A cupboard holds cups. A red  Cup stands there."
    first, second = prose.sentences(text)
    assert find(text, first, "cup") is find(text, first, "") is None
    assert text[slice(*(find(text, second, "red cup") or first))] == "red  Cup"
    assert [*prose.sentences('He "went." So 3.5 cm')] == [(0, 10), (11, 20)]


def test_of_one_label_what_lies_on_top_of_each_other_is_one_thing() -> None:
    named = [("disc", TOP_LEFT), ("disc", Box(11, 20, 61, 70)), ("lever", TOP_LEFT), ("disc", RIGHT)]
    found = [(Object(0, *one), score) for one, score in zip(named, (0.5, 0.9, 0.1, 0.2), strict=True)]
    assert (apart(found, 8), apart(found, 2)) == ([1, 2, 3], [1, 3])


def test_every_reason_of_a_teacher_stands_at_a_gate() -> None:
    teachers = [reason for reason in Reason if reason.value.startswith("teacher-")]
    assert all(reached(reason) > 0 for reason in teachers)
    assert reached(Reason.NO_REASONING) == 0
    assert reached(None) == 5
