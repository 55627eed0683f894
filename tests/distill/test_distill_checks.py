"""The pure parts: replies are read or refused by class, boxes are checked, texts are anchored without a change."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.distill.made import CENTRE, HEIGHT, RIGHT, TOP_LEFT, WIDTH, sample
from tests.grounding.drawn import unhurried
from vcot.distill import Fault, Refused, verification
from vcot.distill.dialogue import LONGEST, parse_reply, schema_of
from vcot.distill.funnel import reached
from vcot.distill.prose import Span, sentences
from vcot.distill.reasoning import Reasoned
from vcot.distill.strategies.rationalise import Anchored, anchored, find
from vcot.distill.strategies.two_level import Captioned, Judged, Synthesised
from vcot.distill.verification import Located, Looked
from vcot.grounding import Box
from vcot.records import Completion, Reason

IMAGE = sample().image


def reading(text: str, finish: str = "stop") -> Looked | Fault:
    try:
        return parse_reply(Completion(text=text, model="m", finish_reason=finish), Looked)
    except Refused as refused:
        return refused.fault


# -------------------------------------------------------------------------------------------------- the text of a reply


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
        ("{" * (LONGEST + 1), "stop", Reason.TEACHER_NOT_JSON),
        ('{"there": true}', "stop", Reason.TEACHER_WRONG_SHAPE),
        ('{"present": "perhaps"}', "stop", Reason.TEACHER_WRONG_SHAPE),
    ],
)
def test_a_reply_of_no_use_has_its_class(text: str, finish: str, reason: Reason) -> None:
    found = reading(text, finish)
    assert isinstance(found, Fault)
    assert found.reason is reason


@pytest.mark.parametrize(
    "text",
    ['{"present": true}', '```json\n{"present": true}\n```', "It is: {'present': True}", '{"present": true',
     '{"present": true, "why": "red"}', '<think>{"present": false}</think> {"present": true}'],
)  # fmt: skip
def test_what_is_meant_beyond_doubt_is_read(text: str) -> None:
    assert reading(text) == Looked(present=True)


def test_half_a_character_becomes_a_question_mark() -> None:
    said = Completion(text='{"caption": "a \\ud800 cup"}', model="m", finish_reason="stop")
    assert parse_reply(said, Captioned) == Captioned(caption="a ? cup")


pieces = st.sampled_from(
    ['{"present"', ": true", "}", "{", "[", "]", '"', "'", ",", "\\", "```json", "<think>", "</think>", "é", "\n"]
)


@unhurried
@given(st.lists(pieces | st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=25).map("".join))
def test_no_text_raises(text: str) -> None:
    assert isinstance(reading(text), Looked | Fault)


@pytest.mark.parametrize(
    "text",
    ["{" * LONGEST, '{"a":' * (LONGEST // 5), "{'" * (LONGEST // 2), '{"' + "\\" * LONGEST, "{'" * 9,
     '{"a": ' + '"b" ' * 2900, "{" + "a:" * 5900, '{"a": [' + '"x", ' * 2300, '{"a": "' + "'" * 11_900],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    begun = time.process_time()
    reading(text)
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


# ---------------------------------------------------------------------------------------------------------------- boxes


def test_two_proposals_agree_one_to_one() -> None:
    shifted = Box(12, 20, 62, 70)
    assert verification.agreed([("disc", TOP_LEFT), ("disc", RIGHT)], [("Disc", shifted)]) == [True, False]
    assert verification.agreed([("disc", TOP_LEFT), ("disc", shifted)], [("disc", TOP_LEFT)]).count(True) == 1
    assert verification.agreed([("disc", TOP_LEFT)], [("lever", TOP_LEFT)]) == [False]
    assert verification.agreed([], [("disc", TOP_LEFT)]) == []


def test_of_one_label_what_lies_on_top_of_each_other_is_one_thing() -> None:
    found = [
        ("disc", TOP_LEFT, 0.5),
        ("disc", Box(11, 20, 61, 70), 0.9),
        ("lever", TOP_LEFT, 0.1),
        ("disc", RIGHT, 0.2),
    ]
    assert verification.apart(found, 8) == [1, 2, 3]
    assert verification.apart(found, 2) == [1, 3]
    assert verification.apart([found[0], found[0]], 8) == [0]


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
    found = verification.named(label, sample())
    assert (found and found.reason) == reason


@unhurried
@given(st.integers(0, 200), st.floats(4, 120), st.floats(4, 90), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_decoy_shows_next_to_nothing_of_the_thing(
    seed: int, width: float, height: float, right: float, down: float
) -> None:
    x, y = right * (WIDTH - width), down * (HEIGHT - height)
    box = Box(x, y, x + width, y + height)
    found = verification.negative_crop(box, [CENTRE], IMAGE, str(seed))
    assert found == verification.negative_crop(box, [CENTRE], IMAGE, str(seed))
    if found is not None:
        seen = verification.padded(found, IMAGE)
        for other in (box, CENTRE):
            across, along = (
                min(seen.x2, other.x2) - max(seen.x1, other.x1),
                min(seen.y2, other.y2) - max(seen.y1, other.y1),
            )
            assert across <= 0 or along <= 0 or across * along <= 0.11 * verification.padded(other, IMAGE).area


def test_many_places_are_one_cut_out_and_none_are_the_whole() -> None:
    many = [Box(10.0 * n, 10, 10.0 * n + 8, 20) for n in range(9)]
    (one,) = verification.evidence_crops(many, IMAGE, 512)
    assert one.crop == verification.padded(Box(10, 10, 88, 20), IMAGE)
    assert len(verification.evidence_crops([TOP_LEFT, RIGHT, RIGHT], IMAGE, 512)) == 2
    assert verification.evidence_crops([], IMAGE, 512)[0].crop is None


# ---------------------------------------------------------------------------------------------------------------- texts

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
    covered = "".join(text[slice(*span)] for span in sentences(text))
    assert "".join(covered.split()) == "".join(text.split())


def test_words_are_found_whole_and_within_their_sentence() -> None:
    text = "A cupboard holds cups. A red  Cup stands there."
    first, second = sentences(text)
    assert find(text, first, "cup") is None
    assert text[slice(*(find(text, second, "red cup") or first))] == "red  Cup"
    assert find(text, first, "") is None
    quoted = 'He said "go." Then he went.\nBut 3.5 cm?'
    assert [quoted[slice(*span)] for span in sentences(quoted)] == ['He said "go."', "Then he went.", "But 3.5 cm?"]


# --------------------------------------------------------------------------------------------------------------- funnel


def test_every_reason_of_a_teacher_stands_at_a_gate() -> None:
    teachers = [reason for reason in Reason if reason.value.startswith("teacher-")]
    assert all(reached(reason) > 0 for reason in teachers)
    assert reached(Reason.NO_REASONING) == 0
    assert reached(None) == 5
