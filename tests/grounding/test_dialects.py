from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.grounding.drawn import assert_same_trace, framed_traces, unhurried
from vcot.grounding import DIALECTS, Box, FrameSpec, Mention, Trace, parse, render

FRAME = FrameSpec("thousandths").on(1000, 1000)
GEAR, LEVER = Box(100, 200, 300, 400), Box(350, 180, 500, 250)
TRACE = Trace(("the ", Mention("gear", (GEAR,)), " turns"))


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
    assert render(TRACE, FRAME, name) == text


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
