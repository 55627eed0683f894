from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.grounding.drawn import SPECS, assert_same_trace, framed_traces, prose, snippets, unhurried
from vcot.grounding import (
    DIALECTS,
    Box,
    BoxFault,
    FrameSpec,
    Mention,
    Parsed,
    Trace,
    parse,
    read_reply,
    render,
    render_reply,
    split_answer,
)
from vcot.grounding.tags import escape, unescape

# On this image a thousandth is a pixel, so that the numbers in the texts are those of the boxes.
FRAME = FrameSpec("thousandths").on(1000, 1000)
GEAR, LEVER = Box(100, 200, 300, 400), Box(350, 180, 500, 250)
SENTENCE = (
    "First, I see the <ref>red gear</ref><box>[100, 200, 300, 400]</box> touching the"
    " <ref>blue lever</ref><box>[350, 180, 500, 250]</box>."
)
RED, BLUE = Mention("red gear", (GEAR,)), Mention("blue lever", (LEVER,))
TRACE = Trace(("First, I see the ", RED, " touching the ", BLUE, "."))


NATIVE = "the <ref>gear</ref><box>[100, 200, 300, 400]</box> turns"
SPECIAL = "the <|object_ref_start|>gear<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|> turns"


def test_only_what_looks_like_a_tag_is_escaped():
    trace = Trace(('if a < b & c: {"x"} &amp; <b>[1]</b> <box> &lt;', Mention("</ref>", (GEAR,))))
    text = 'if a < b & c: {"x"} &amp; <b>[1]</b> &lt;box> &amp;lt;<ref>&lt;/ref></ref><box>[100, 200, 300, 400]</box>'
    assert render(trace, FRAME) == text
    assert parse(text, FRAME).trace == trace


@unhurried
@given(prose)
@example("&&amp;lt;&amp;amp;lcub;<ref&<REF>")
def test_escaped_prose_comes_back_and_holds_no_tag(text):
    assert unescape(escape(text)) == text
    assert parse(escape(text), FRAME) == Parsed(Trace((text,)), ())


@unhurried
@given(framed_traces(), st.sampled_from(sorted(DIALECTS)))
def test_every_dialect_gives_the_trace_back_within_the_rounding_of_the_frame(drawn, name):
    frame, trace = drawn
    parsed = parse(render(trace, frame, name), frame)
    assert parsed.faults == ()
    assert_same_trace(parsed.trace, trace, frame)


def test_mentions_alone_are_json_that_other_readers_understand():
    mentions = (Mention("gear", (GEAR, LEVER)), Mention('a "quoted" {label}\n', (LEVER,)))
    found = [(each["label"], each["bbox_2d"]) for each in json.loads(render(Trace(mentions), FRAME, "qwen-json"))]
    assert found == [(mention.label, box.as_list()) for mention in mentions for box in mention.boxes]
    twice = Trace((RED, RED))
    assert parse(render(twice, FRAME, "qwen-json"), FRAME).trace == twice


ONE = [("gear", (GEAR,))]
TWO = [("gears", (GEAR, LEVER))]
APART = [("gear", (GEAR,)), ("", (LEVER,))]


@pytest.mark.parametrize(
    ("written", "mentions"),
    [
        *((f"<ref>gear</ref><box>{content}</box>", ONE) for content in (
            "[100, 200, 300, 400]", "[100.0,200.00,3e2,+400]", "[ 100,200 , 300  400 ]", "100, 200, 300, 400",
            "[[100, 200, 300, 400]]", "[[100, 200], [300, 400]]", "(100,200),(300,400)", "[100, 200, 300, 400,]",
            "\n```json\n[100, 200, 300, 400]\n```\n",
        )),
        (f"```\n{NATIVE}\n```", ONE), (NATIVE.replace("ref>", "REF>").replace("box>", "Box>"), ONE), (SPECIAL, ONE),
        ("<obj>gear</obj> \n, which is at <bbox>[100, 200, 300, 400]</bbox>", ONE),
        ('```json\n[\n  {"label": "gear", "bbox_2d": [100, 200, 300, 400,],},\n]\n```', ONE),
        ("{'bbox_2d': [100, 200, 300, 400], 'label': 'gear'}", ONE),
        ('{"box_2d": [200, 100, 400, 300], "label": "gear"}', ONE),  # Gemini: y1, x1, y2, x2
        ('{"id": 3, "bbox_2d": "[100, 200, 300, 400]", "label": "gear", "score": 0.5}', ONE),
        ('{"objects": [{"bbox_2d": [100, 200, 300, 400], "label": "gear"}]}', ONE),
        *((f"<ref>gears</ref><box>[100, 200, 300, 400]</box>{between}<box>[350, 180, 500, 250]</box>", TWO)
          for between in ("", ", ", " and ")),
        ("<ref>gears</ref><box>[[100, 200, 300, 400], [350, 180, 500, 250]]</box>", TWO),
        ('[{"bbox_2d": [100,200,300,400], "label": "gears"},\n {"bbox_2d": [350,180,500,250], "label": "gears"}]', TWO),
        (NATIVE + " <box>[350, 180, 500, 250]</box>", APART),
        ("rows [100, 200, 300, 400]", []), ('as in {"label": "gear"} and {"a": ', []),
    ],
)  # fmt: skip
def test_one_gear_and_two_in_many_spellings(written, mentions):
    parsed = parse(written, FRAME)
    assert [(mention.label, mention.boxes) for mention in parsed.trace.mentions] == mentions
    assert parsed.well_formed
    assert mentions or parsed.trace == Trace((written,))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", BoxFault.NO_BOX_TEXT), ("[]", BoxFault.NO_BOX_TEXT), ("[100, 200, 300]", BoxFault.WRONG_COUNT),
        ("[1, 2, 3, 4, 5, 6, 7, 8]", BoxFault.WRONG_COUNT),
        ("[[1, 2], [3, 4], [5, 6], [7, 8]]", BoxFault.WRONG_COUNT), ("[x1, y1, x2, y2]", BoxFault.NOT_A_NUMBER),
        ("[100, 200, 300, 400px]", BoxFault.NOT_A_NUMBER), ("top left", BoxFault.NOT_A_NUMBER),
        ("[0, 0, 1e999, 5]", BoxFault.NOT_FINITE), ("[nan, 0, 10, 5]", BoxFault.NOT_FINITE),
        ("[300, 200, 100, 400]", BoxFault.INVERTED), ("[100, 200, 100, 400]", BoxFault.ZERO_AREA),
        ("[1, 1, 1, 1]", BoxFault.ZERO_AREA), ("[-100, 200, 300, 400]", BoxFault.OUT_OF_RANGE),
        ("[100, 200, 1300, 400]", BoxFault.OUT_OF_RANGE), ("[0.1, 0.2, 0.9, 0.5]", BoxFault.OUT_OF_RANGE),
    ],
)  # fmt: skip
def test_a_faulty_box_is_classified_and_its_label_remains_as_prose(content, fault):
    text = f"the <ref>gear</ref><box>{content}</box> turns"
    parsed = parse(text, FRAME)
    assert [found.kind for found in parsed.faults] == [fault]
    assert parsed.faults[0].text == text[parsed.faults[0].start : parsed.faults[0].end] == f"<box>{content}</box>"
    assert parsed.trace == Trace(("the gear turns",))
    assert not parsed.well_formed


@pytest.mark.parametrize(
    ("text", "kinds", "mentions"),
    [
        ("<ref>gear</ref> turns", ["no_box_text"], []), ("<ref>gear", ["unbalanced_tag"], []),
        ("<ref>gear</ref><box>[100, 200, 30", ["unbalanced_tag"], []),
        ("gear</ref><box>[100, 200, 300, 400]</box>", ["unbalanced_tag"], [""]),
        ("<ref>gear<box>[100, 200, 300, 400]</box>", ["unbalanced_tag"], ["gear"]),
        ("<ref>gear</ref><box>[100, 200, 300, 400] <ref>x</ref>", ["unbalanced_tag", "no_box_text"], []),
        ("<ref>gear</ref><box>[100, 200, 300, 400]</bbox>", ["unbalanced_tag"], ["gear"]),
        ("<ref>gear</ref><box>[100, 200, 300, 400]</ref></box>", ["unbalanced_tag"], ["gear"]),
        ('[{"bbox_2d": [100, 200, 300, 400], "label": "ge', ["unbalanced_tag"], []),
        ('[{"bbox_2d": [100, 200, 300, 400], {"bbox_2d": [1, 2, 3, 4]}]', ["unbalanced_tag"], [""]),
        ('{"bbox_2d": [100, 200, 300], "label": "gear"}', ["wrong_count"], []),
        ('{"bbox_2d": null, "label": "gear"}', ["not_a_number"], []),
        ("<ref>gears</ref><box>[9, 9, 1, 1]</box><box>[100, 200, 300, 400]</box>", ["inverted"], ["gears"]),
    ],
)  # fmt: skip
def test_what_is_left_open_or_alone_is_a_fault(text, kinds, mentions):
    parsed = parse(text, FRAME)
    assert [fault.kind for fault in parsed.faults] == kinds
    assert [mention.label for mention in parsed.trace.mentions] == mentions


@unhurried
@given(st.text(max_size=200) | snippets, st.sampled_from(SPECS))
def test_parse_never_raises_and_its_faults_quote_the_text(text, spec):
    parsed = parse(text, spec.on(640, 480))
    for fault in parsed.faults:
        assert fault.text == text[fault.start : fault.end] != ""
    assert [fault.start for fault in parsed.faults] == sorted(fault.start for fault in parsed.faults)


@pytest.mark.parametrize(
    "piece",
    ["<ref>", "</box>", "<box>[1,2,3,4]", '{"a":', '{"bbox_2d":', '"', "'", "\\", " ", "[", "((", "&amp;", "&", "<",
     "a</ref>", "<ref></ref>", "<ref>a</ref><box>[1,2,3,4]</box> ", '{"bbox_2d": "', "9", "answer", "Answer: ",
     "<answer>", "<answer>a", "</think>", "\\boxed{", "\\boxed{}", "\\boxed{{}", "\\text{", "the answer is ",
     "no, wait, ", "$$", "- ", "**", "# ", "Answer: A. ", "<|im_end|>", "<|", ":\n",
     "{'a':\\\"", '{"a":\\\''],
)  # fmt: skip
def test_a_hostile_text_takes_no_hostile_time(piece):
    much = piece * (60_000 // len(piece))
    for text in (much, f"<box>{much}", f'{{"bbox_2d": {much}', f"{much}\n"):
        started = time.process_time()
        read_reply(text)
        parse(text, FRAME)
        assert time.process_time() - started < 2


def test_converted_rows_lose_no_text_to_a_sentence():
    for text in ("The answer is simple.\nDogs bark.", "Yes, it is.", "<think>It turns.</think>\nIt is up."):
        assert read_reply(text, marked=True).answer is None
        assert read_reply(text).answer
    for text in ("It turns. Answer: up", "It turns.\nAnswer: up", "<answer>up</answer>", "\\boxed{up}"):
        assert read_reply(text, marked=True) == read_reply(text)


def test_a_reply_is_the_reasoning_and_an_answer_of_one_line():
    assert render_reply(TRACE, "two\n lines", FRAME) == SENTENCE + "\nAnswer: two lines"
    reply = read_reply("a\nAnswer: up\nb\nAnswer: down\nand more")
    assert (reply.answer, reply.after, reply.marks) == ("down", "and more", 2)


@unhurried
@given(framed_traces(), st.from_regex(r"[a-zA-Z0-9$%.,' -]{1,20}", fullmatch=True).filter(lambda t: t.strip()))
def test_splitting_gives_reasoning_and_answer_back(drawn, answer):
    frame, trace = drawn
    reasoning, found = split_answer(render_reply(trace, answer, frame))
    assert found == " ".join(answer.split())
    assert_same_trace(parse(reasoning, frame).trace, trace, frame)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("It turns.\nAnswer: up", "It turns.", "up"), ("It turns. Answer: up", "It turns. ", "up"),
        ("It turns.\n**Answer:** up", "It turns.", "up"), ("It turns.\n**Answer: up**", "It turns.", "up"),
        ("It turns.\nAnswer: **up**.", "It turns.", "up."), ("It turns.\nFinal answer: up\n", "It turns.", "up"),
        ("It turns.\nANSWER : up", "It turns.", "up"), ("It turns.\nAnswer:\nup", "It turns.", "up"),
        ("Answer: down\nNo.\nAnswer: up\nbecause the answer: down", "Answer: down\nNo.", "up"),
        ("<think>It turns.</think><answer>up</answer>", "<think>It turns.</think>", "up"),
        ("<answer>down</answer>\nAnswer: up", "<answer>down</answer>", "up"),
        ("<answer>\nAnswer: up</answer>", "<answer>", "up"), ("It turns \\boxed{up}", "It turns ", "up"),
        ("It turns.\nAnswer: $\\boxed{5}$", "It turns.", "5"), ("Answer: Answer: 5", "Answer:", "5"),
        ("It turns.", "It turns.", None), ("It turns.\nAnswer:", "It turns.", None),
        ("An unanswered question", "An unanswered question", None), ("", "", None),
    ],
)  # fmt: skip
def test_the_answer_is_found_where_models_put_it(text, reasoning, answer):
    assert split_answer(text) == (reasoning, answer)
