from __future__ import annotations

import json

import pytest
from hypothesis import given

from tests.grounding.drawn import framed_traces, unhurried
from vcot.grounding import Box, Mention, Trace

GEAR = Mention("red gear", (Box(1, 2, 3, 4), Box(5, 6, 7, 8)))


def test_neighbouring_prose_is_one_part_and_empty_prose_none():
    trace = Trace(("", "I ", "see the ", GEAR, "", "."))
    assert trace.parts == ("I see the ", GEAR, ".")
    assert (trace.text, trace.mentions, trace.boxes) == ("I see the red gear.", (GEAR,), GEAR.boxes)


@unhurried
@given(framed_traces())
def test_json_gives_the_trace_back_exactly(drawn):
    _, trace = drawn
    assert Trace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


@pytest.mark.parametrize(
    "data",
    [
        "text", {"parts": []}, [1], [{"label": "x"}], [{"label": "x", "boxes": []}],
        [{"label": 5, "boxes": [[1, 2, 3, 4]]}], [{"label": "x", "boxes": [[1, 2, 3]]}],
        [{"label": "x", "boxes": [[1, 2, 3, "4"]]}], [{"label": "x", "boxes": [[True, 2, 3, 4]]}],
        [{"label": "x", "boxes": [[1, 2, 3, 4]], "score": 1}],
    ],
)  # fmt: skip
def test_json_of_another_shape_is_refused(data):
    with pytest.raises(ValueError, match=r"a (trace|mention|box) is|has no box"):
        Trace.from_json(data)
