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
    BoxError,
    BoxFault,
    FrameSpec,
    Mention,
    Parsed,
    Stream,
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


class TestRender:
    def test_writes_the_native_form(self):
        assert render(TRACE, FRAME) == SENTENCE

    def test_ordinary_prose_is_not_touched(self):
        assert render(Trace(('if a < b & c > d: {"x"} &amp; <b>[1, 2, 3, 4]</b>',)), FRAME) == (
            'if a < b & c > d: {"x"} &amp; <b>[1, 2, 3, 4]</b>'
        )

    def test_what_looks_like_a_tag_is_escaped(self):
        trace = Trace(("write <box> or &lt;", Mention("</ref>", (GEAR,))))
        text = "write &lt;box> or &amp;lt;<ref>&lt;/ref></ref><box>[100, 200, 300, 400]</box>"
        assert render(trace, FRAME) == text
        assert parse(text, FRAME).trace == trace

    def test_a_box_of_another_image_is_refused(self):
        with pytest.raises(BoxError, match="not a box of this image"):
            render(TRACE, FrameSpec("thousandths").on(200, 200))


@unhurried
@given(prose)
@example("&&amp;lt;&amp;amp;lcub;<ref&<REF>")
def test_escaped_prose_comes_back_and_holds_no_tag(text):
    assert unescape(escape(text)) == text
    assert parse(escape(text), FRAME) == Parsed(Trace((text,)), ())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vcot", "the <ref>gear</ref><box>[100, 200, 300, 400]</box> turns"),
        ("obj-bbox", "the <obj>gear</obj><bbox>[100, 200, 300, 400]</bbox> turns"),
        (
            "qwen-special",
            "the <|object_ref_start|>gear<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|> turns",
        ),
        ("qwen-vl", "the <ref>gear</ref><box>(100,200),(300,400)</box> turns"),
        ("qwen-json", 'the [{"bbox_2d": [100, 200, 300, 400], "label": "gear"}] turns'),
    ],
)
def test_each_dialect_is_written_as_its_models_write_it(name, text):
    assert render(Trace(("the ", Mention("gear", (GEAR,)), " turns")), FRAME, name) == text


@unhurried
@given(framed_traces(), st.sampled_from(sorted(DIALECTS)))
def test_every_dialect_gives_the_trace_back_within_the_rounding_of_the_frame(drawn, name):
    frame, trace = drawn
    parsed = parse(render(trace, frame, name), frame)
    assert parsed.faults == ()
    assert_same_trace(parsed.trace, trace, frame)


def test_mentions_alone_are_json_that_other_readers_understand():
    trace = Trace((Mention("gear", (GEAR, LEVER)), Mention('a "quoted" {label}\n', (LEVER,))))
    assert json.loads(render(trace, FRAME, "qwen-json")) == [
        {"bbox_2d": [100, 200, 300, 400], "label": "gear"},
        {"bbox_2d": [350, 180, 500, 250], "label": "gear"},
        {"bbox_2d": [350, 180, 500, 250], "label": 'a "quoted" {label}\n'},
    ]


def test_the_same_label_twice_in_a_row_stays_two_mentions_in_json():
    trace = Trace((Mention("gear", (GEAR,)), Mention("gear", (LEVER,))))
    assert parse(render(trace, FRAME, "qwen-json"), FRAME).trace == trace


class TestParse:
    def boxes(self, text):
        parsed = parse(text, FRAME)
        return [(mention.label, *mention.boxes) for mention in parsed.trace.mentions], parsed.well_formed

    @pytest.mark.parametrize(
        "written",
        [
            "<ref>gear</ref><box>[100, 200, 300, 400]</box>", "<ref>gear</ref><box>[100.0,200.00,3e2,+400]</box>",
            "<ref>gear</ref><box>[ 100,200 , 300  400 ]</box>", "<ref>gear</ref><box>100, 200, 300, 400</box>",
            "<ref>gear</ref><box>[[100, 200, 300, 400]]</box>", "<ref>gear</ref><box>[[100, 200], [300, 400]]</box>",
            "<ref>gear</ref><box>(100,200),(300,400)</box>", "<ref>gear</ref><box>[100, 200, 300, 400,]</box>",
            "<ref>gear</ref><box>\n```json\n[100, 200, 300, 400]\n```\n</box>",
            "<ref>gear</ref> \n<box>[100, 200, 300, 400]</box>",
            "<ref>gear</ref>, which is at <box>[100, 200, 300, 400]</box>",
            "```\n<ref>gear</ref><box>[100, 200, 300, 400]</box>\n```",
            "<REF>gear</REF><Box>[100, 200, 300, 400]</Box>", "<obj>gear</obj><bbox>[100, 200, 300, 400]</bbox>",
            "<|object_ref_start|>gear<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>",
            '[{"bbox_2d": [100, 200, 300, 400], "label": "gear"}]',
            '```json\n[\n  {"label": "gear", "bbox_2d": [100, 200, 300, 400,],},\n]\n```',
            "{'bbox_2d': [100, 200, 300, 400], 'label': 'gear'}",
            '{"id": 3, "bbox_2d": "[100, 200, 300, 400]", "label": "gear", "score": 0.5}',
        ],
    )  # fmt: skip
    def test_one_gear_in_many_spellings(self, written):
        assert self.boxes(written) == ([("gear", GEAR)], True)

    @pytest.mark.parametrize(
        "written",
        [
            "<ref>gears</ref><box>[100, 200, 300, 400]</box><box>[350, 180, 500, 250]</box>",
            "<ref>gears</ref><box>[100, 200, 300, 400]</box>, <box>[350, 180, 500, 250]</box>",
            "<ref>gears</ref><box>[100, 200, 300, 400]</box> and <box>[350, 180, 500, 250]</box>",
            "<ref>gears</ref><box>[[100, 200, 300, 400], [350, 180, 500, 250]]</box>",
            '[{"bbox_2d": [100,200,300,400], "label": "gears"},\n {"bbox_2d": [350,180,500,250], "label": "gears"}]',
        ],
    )
    def test_two_boxes_of_one_label(self, written):
        assert self.boxes(written) == ([("gears", GEAR, LEVER)], True)

    def test_a_box_after_other_words_is_not_the_labels_second_one(self):
        text = "<ref>gear</ref><box>[100, 200, 300, 400]</box> turns <box>[350, 180, 500, 250]</box>"
        assert self.boxes(text) == ([("gear", GEAR), ("", LEVER)], True)

    def test_a_box_without_a_label_has_the_empty_one(self):
        assert self.boxes("see <box>[100, 200, 300, 400]</box>") == ([("", GEAR)], True)

    def test_numbers_outside_of_tags_are_no_box(self):
        assert parse("rows [100, 200, 300, 400]", FRAME).trace == Trace(("rows [100, 200, 300, 400]",))

    def test_json_that_speaks_of_no_box_is_prose(self):
        text = 'as in {"label": "gear"} and {"a": '
        assert parse(text, FRAME) == Parsed(Trace((text,)), ())

    def test_an_object_inside_another_is_found(self):
        text = '{"objects": [{"bbox_2d": [100, 200, 300, 400], "label": "gear"}]}'
        assert self.boxes(text) == ([("gear", GEAR)], True)

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
    def test_a_faulty_box_is_classified_and_its_label_remains_as_prose(self, content, fault):
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
        ],
    )  # fmt: skip
    def test_what_is_left_open_or_alone_is_a_fault(self, text, kinds, mentions):
        parsed = parse(text, FRAME)
        assert [fault.kind for fault in parsed.faults] == kinds
        assert [mention.label for mention in parsed.trace.mentions] == mentions

    def test_one_faulty_box_does_not_cost_the_good_one_beside_it(self):
        text = "<ref>gears</ref><box>[9, 9, 1, 1]</box><box>[100, 200, 300, 400]</box>"
        parsed = parse(text, FRAME)
        assert parsed.trace.mentions == (Mention("gears", (GEAR,)),)
        assert [fault.kind for fault in parsed.faults] == [BoxFault.INVERTED]

    @unhurried
    @given(st.text(max_size=200) | snippets, st.sampled_from(SPECS))
    def test_never_raises_and_its_faults_quote_the_text(self, text, spec):
        parsed = parse(text, spec.on(640, 480))
        for fault in parsed.faults:
            assert fault.text == text[fault.start : fault.end] != ""
        assert [fault.start for fault in parsed.faults] == sorted(fault.start for fault in parsed.faults)

    @pytest.mark.parametrize(
        "piece",
        ["<ref>", "</box>", "<box>[1,2,3,4]", '{"a":', '{"bbox_2d":', '"', "'", "\\", " ", "[", "((", "&amp;", "&", "<",
         "a</ref>", "<ref></ref>", "<ref>a</ref><box>[1,2,3,4]</box> ", '{"bbox_2d": "', "9", "answer", "Answer: "],
    )  # fmt: skip
    def test_a_hostile_text_takes_no_hostile_time(self, piece):
        much = piece * (60_000 // len(piece))
        for text in (much, f"<box>{much}", f'{{"bbox_2d": {much}'):
            started = time.process_time()
            read_reply(text)
            parse(text, FRAME)
            assert time.process_time() - started < 2


class TestStream:
    @unhurried
    @given(framed_traces().map(lambda drawn: render(drawn[1], drawn[0])) | snippets, st.data())
    def test_how_the_text_is_cut_does_not_matter(self, text, data):
        cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted) | st.just(range(len(text))))
        stream = Stream(FRAME)
        chunks = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        seen = [mention for chunk in chunks for mention in stream.feed(chunk)]
        parsed = stream.close()
        assert parsed == parse(text, FRAME)
        assert [(m.label, m.boxes[0]) for m in seen] == [(m.label, b) for m in parsed.trace.mentions for b in m.boxes]

    def test_a_box_is_reported_with_the_last_letter_of_its_tag(self):
        stream = Stream(FRAME)
        reported = {}
        for index, char in enumerate(SENTENCE):
            for mention in stream.feed(char):
                reported[SENTENCE[: index + 1]] = mention
        assert list(reported.values()) == [RED, BLUE]
        assert all(text.endswith("]</box>") for text in reported)


class TestReply:
    def test_reasoning_comes_first_and_the_answer_last(self):
        assert render_reply(TRACE, "up", FRAME) == SENTENCE + "\nAnswer: up"

    def test_an_answer_is_one_line(self):
        assert render_reply(Trace(()), "two\n lines", FRAME) == "Answer: two lines"

    @unhurried
    @given(framed_traces(), st.from_regex(r"[a-zA-Z0-9$%.,' -]{1,20}", fullmatch=True).filter(lambda t: t.strip()))
    def test_splitting_gives_reasoning_and_answer_back(self, drawn, answer):
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
            ("It turns.\nAnswer: $\\boxed{5}$", "It turns.", "5"), ("Answer: Answer: 5", "", "Answer: 5"),
            ("It turns.", "It turns.", None), ("It turns.\nAnswer:", "It turns.", None),
            ("An unanswered question", "An unanswered question", None), ("", "", None),
        ],
    )  # fmt: skip
    def test_the_answer_is_found_where_models_put_it(self, text, reasoning, answer):
        assert split_answer(text) == (reasoning, answer)

    def test_what_follows_the_answer_and_how_often_it_is_marked_is_told(self):
        reply = read_reply("a\nAnswer: up\nb\nAnswer: down\nand more")
        assert (reply.answer, reply.after, reply.marks) == ("down", "and more", 2)
