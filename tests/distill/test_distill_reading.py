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
from vcot.distill.conclusion import tells_answer
from vcot.distill.crops import Object, objects_of
from vcot.distill.dialogue import parse_reply, schema_of
from vcot.distill.endpoint import LONGEST_BODY, LONGEST_TEXT, read_completion
from vcot.distill.prose import Span
from vcot.distill.reasoning import LONGEST, Reasoned, build, read
from vcot.distill.runner import reached
from vcot.distill.strategies.rationalise import Anchored, anchored, find
from vcot.distill.strategies.two_level import Found, Judged, Synthesised, apart
from vcot.distill.verification import Located, Looked
from vcot.grounding import Box, FrameSpec, Mention, Trace, tags
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
        ("", "content_filter", Reason.TEACHER_REFUSED),
        ("", "refusal", Reason.TEACHER_REFUSED),
        (" \n", "stop", Reason.TEACHER_EMPTY),
        ("<think>yes</think>", "stop", Reason.TEACHER_EMPTY),
        ('{"present": true', "length", Reason.TEACHER_CUT_OFF),
        ("yes", "stop", Reason.TEACHER_NOT_JSON),
        ("[true]", "stop", Reason.TEACHER_NOT_JSON),
        ("{" * (dialogue.LONGEST + 1), "stop", Reason.TEACHER_NOT_JSON),
        ('{"there": true}', "stop", Reason.TEACHER_WRONG_SHAPE),
        ('{"present": "perhaps"}', "stop", Reason.TEACHER_WRONG_SHAPE),
    ],
)
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


pieces = st.sampled_from(
    ['{"present"', ": true", "}", "{", "[", "]", '"', "'", ",", "\\", "```json", "<think>", "</think>", "é", "\n"]
)


@unhurried
@given(st.lists(pieces | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=25).map("".join))
def test_no_text_raises(text: str) -> None:
    assert isinstance(looked(text), Looked | Fault)


@pytest.mark.parametrize(
    "text",
    ["{" * dialogue.LONGEST, '{"a":' * (dialogue.LONGEST // 5), "{'" * (dialogue.LONGEST // 2),
     '{"' + "\\" * dialogue.LONGEST, "{'" * 9, '{"a": ' + '"b" ' * 2900, "{" + "a:" * 5900,
     '{"a": [' + '"x", ' * 2300, '{"a": "' + "'" * 11_900],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    begun = time.process_time()
    looked(text)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize("shape", [Reasoned, Anchored, Located, Judged, Synthesised])
def test_a_schema_is_one_that_strict_endpoints_take(shape: type[Looked]) -> None:
    """Every object says all its properties are required and there are no others; nothing has a default."""

    def objects(schema: object) -> list[dict[str, object]]:
        inside = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
        own = [schema] if isinstance(schema, dict) and schema.get("type") == "object" else []
        return own + [found for one in inside for found in objects(one)]

    for one in objects(schema_of(shape)):
        assert one["additionalProperties"] is False
        assert one["required"] == list(one["properties"])  # type: ignore[call-overload]
    assert '"default"' not in json.dumps(schema_of(shape))


@pytest.mark.parametrize("box", ["[31, 83, 188, 292]", "(31,83),(188,292)", "31 83 188 292", [31, "83", 188.0, 292]])
def test_a_box_may_be_a_string(box: object) -> None:
    edges = [31.0, 83.0, 188.0, 292.0]
    objects = [{"number": 1, "label": "disc", "box": box}]
    assert Reasoned.model_validate({"objects": objects, "sentences": "I see.", "answer": ""}).objects[0].box == edges
    assert Anchored.model_validate({"anchors": [{"sentence": 1, "words": "w", "box": box}]}).anchors[0].box == edges
    assert Found.model_validate({"objects": objects}).objects[0].box == edges
    assert Located.model_validate({"objects": [{"label": "disc", "boxes": [box]}]}).objects[0].boxes == [edges]


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
    found = reading(said if isinstance(said, str) else json.dumps(said))
    assert isinstance(found, Trace), found
    assert found.text == text


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", Reason.TEACHER_EMPTY),
        ("I see a red disc at the top left.\nAnswer: gear", Reason.TEACHER_UNGROUNDED),
        ("colourless green ideas sleep furiously", Reason.TEACHER_UNGROUNDED),
        ("I see the [4] at the top.", Reason.TEACHER_UNGROUNDED),
        ("I see the [0] at the top.", Reason.TEACHER_UNGROUNDED),
        ("I see the [1] and the [12].", Reason.TEACHER_UNGROUNDED),
        ("The gear is what touches it, see [1].", Reason.TEACHER_UNGROUNDED),  # the answer came first
        ("I'm sorry, but I can't help with that.", Reason.TEACHER_REFUSED),
        ("[1]", Reason.TEACHER_UNREADABLE),
        ("Answer: gear", Reason.TEACHER_UNGROUNDED),
        ("I see the [1]. " * 400, Reason.TEACHER_UNREADABLE),
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
)
def test_a_useless_reply_has_its_reason(said: Any, reason: Reason) -> None:
    found = reading(said if isinstance(said, str) else json.dumps(said))
    assert isinstance(found, Fault), found
    assert found.reason is reason


@pytest.mark.parametrize(
    ("text", "answer", "told"),
    [
        ("The answer is 19. I see the ", "19", True),
        ("Yes, I see the ", "yes", True),
        ("Yes. I see the ", "yes", True),
        ("No dogs are beside the ", "no", False),
        ("Two of the 19 cells are here: ", "2", False),
        ("Answer: no. I see ", "no", True),
    ],
)
def test_short_answers_are_told_by_saying_that_they_are_the_answer(text: str, answer: str, told: bool) -> None:
    row = sample("Which is it?", answer, evidence=(see("board", RIGHT),))
    assert tells_answer(text, row) == told


def test_absence_is_prose_that_closes_with_the_answer() -> None:
    assert reading("I looked for a dog. There is none.\nAnswer: no", NOTHING) == Trace(
        ("I looked for a dog. There is none.",)
    )
    for text, reason in {
        "I looked for a dog. There is none.": Reason.TEACHER_UNREADABLE,
        "How can I help you today?": Reason.TEACHER_UNREADABLE,
        "I see the [1].\nAnswer: no": Reason.TEACHER_UNGROUNDED,
        "Answer: no": Reason.TEACHER_UNREADABLE,
    }.items():
        found = reading(text, NOTHING)
        assert isinstance(found, Fault), text
        assert found.reason is reason, text


snippets = st.sampled_from(
    ["[1]", "[2]", "[3]", "[4]", "[1, 2]", "[1-9]", "[", "]", "<box>", "</box>", "<ref>", "[31, 83, 188, 292]",
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


# --- time


@pytest.mark.parametrize(
    "text",
    ["[" * LONGEST, "1" * LONGEST, "1, " * 1300, "[1]" * 1300, "answer" * 600, "[1-9999]" * 490, " " * 10**6,
     "<think>" * 9**5, "(" * LONGEST, "one hundred " * 330, "x 1 " * 1000, "so " * 1300, "a. " * 1300],
)  # fmt: skip
def test_a_long_reply_takes_no_long_time(text: str) -> None:
    begun = time.process_time()
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


def test_two_proposals_agree_one_to_one() -> None:
    disc, other, shifted = Object(0, "disc", TOP_LEFT), Object(0, "disc", RIGHT), Box(12, 20, 62, 70)
    assert verification.unmatched([disc, other], [("Disc", shifted)]) == [other]
    assert len(verification.unmatched([disc, Object(0, "disc", shifted)], [("disc", TOP_LEFT)])) == 1
    assert verification.unmatched([disc], [("lever", TOP_LEFT)]) == [disc]
    assert verification.unmatched([], [("disc", TOP_LEFT)]) == []


def test_of_one_label_what_lies_on_top_of_each_other_is_one_thing() -> None:
    boxes = [
        ("disc", TOP_LEFT, 0.5),
        ("disc", Box(11, 20, 61, 70), 0.9),
        ("lever", TOP_LEFT, 0.1),
        ("disc", RIGHT, 0.2),
    ]
    found = [(Object(0, label, box), score) for label, box, score in boxes]
    assert apart(found, 8) == [1, 2, 3]
    assert apart(found, 2) == [1, 3]
    assert apart([found[0], found[0]], 8) == [0]


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("", Reason.TEACHER_UNREADABLE),
        ("the", None),
        ("red disc", None),
        ("disc <|im_end|>", Reason.TEACHER_UNREADABLE),
        ("<box>[1, 2, 3, 4]</box>", Reason.TEACHER_UNREADABLE),
        ("disc\x00", Reason.TEACHER_UNREADABLE),
        ("very " * 20 + "red disc", Reason.TEACHER_UNREADABLE),
        ("top left", Reason.ANSWER_IN_LABEL),
    ],
)
def test_a_name_is_short_plain_and_not_the_answer(label: str, reason: Reason | None) -> None:
    found = verification.fault_of_name(label, sample())
    assert (found and found.reason) == reason


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
            across, along = (
                min(seen.x2, other.x2) - max(seen.x1, other.x1),
                min(seen.y2, other.y2) - max(seen.y1, other.y1),
            )
            assert across <= 0 or along <= 0 or across * along <= 0.11 * crops.padded(other, IMAGE).area


def test_many_places_are_one_cut_out_and_none_are_the_whole() -> None:
    many = [Box(10.0 * n, 10, 10.0 * n + 8, 20) for n in range(9)]
    (one,) = crops.evidence_crops(many, IMAGE, 512)
    assert one.crop == crops.padded(Box(10, 10, 88, 20), IMAGE)
    assert len(crops.evidence_crops([TOP_LEFT, RIGHT, RIGHT], IMAGE, 512)) == 2
    assert crops.evidence_crops([], IMAGE, 512)[0].crop is None


words = st.sampled_from(
    ["A red cup", "stands", "on the table", ".", "! ", "? ", "\n", "  ", "“So”", "it is 3.5 cm", "é"]
)


@unhurried
@given(
    st.lists(words, max_size=14).map("".join), st.lists(st.tuples(st.integers(0, 90), st.integers(1, 20)), max_size=6)
)
def test_a_text_with_places_is_the_same_text(text: str, cuts: list[tuple[int, int]]) -> None:
    spans = [Span(start, start + length) for start, length in cuts if start + length <= len(text)]
    assert anchored(text, [(span, TOP_LEFT) for span in spans]).text == text
    assert bool(anchored(text, [(span, TOP_LEFT) for span in spans]).mentions) == bool(spans)
    covered = "".join(text[slice(*span)] for span in prose.sentences(text))
    assert "".join(covered.split()) == "".join(text.split())


def test_words_are_found_whole_and_within_their_sentence() -> None:
    text = "A cupboard holds cups. A red  Cup stands there."
    first, second = prose.sentences(text)
    assert find(text, first, "cup") is None
    assert text[slice(*(find(text, second, "red cup") or first))] == "red  Cup"
    assert find(text, first, "") is None
    quoted = 'He said "go." Then he went.\nBut 3.5 cm?'
    assert [quoted[slice(*span)] for span in prose.sentences(quoted)] == [
        'He said "go."',
        "Then he went.",
        "But 3.5 cm?",
    ]


def test_every_reason_of_a_teacher_stands_at_a_gate() -> None:
    teachers = [reason for reason in Reason if reason.value.startswith("teacher-")]
    assert all(reached(reason) > 0 for reason in teachers)
    assert reached(Reason.NO_REASONING) == 0
    assert reached(None) == 5
