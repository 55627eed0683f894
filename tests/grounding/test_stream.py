from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.grounding.drawn import SNIPPETS, framed_traces, snippets, unhurried
from vcot.grounding import DIALECTS, Box, FrameSpec, Mention, Trace, parse, render
from vcot.grounding.stream import Answering, Boxed, Event, Opened, ReplyStream, Text

FRAME = FrameSpec("thousandths").on(1000, 1000)
GEAR = Box(100, 200, 300, 400)
REPLY = "The <ref>gear</ref><box>[100, 200, 300, 400]</box> turns.\nAnswer: up"


def cut(text: str, places: list[int]) -> list[str]:
    return [text[a:b] for a, b in pairwise([0, *sorted(p % (len(text) + 1) for p in places), len(text)])]


def flat(each: list[list[Event]]) -> list[Event]:
    return [event for events in each for event in events]


def told(events: list[Event]) -> Trace:
    """What a reader has put together from the events."""
    parts: list[str | Mention] = []
    mentions: list[tuple[int, str, list[Box]]] = []
    for event in events:
        match event:
            case Text(text) | Answering(text):
                parts.append(text)
            case Opened(label):
                mentions.append((len(parts), label, []))
                parts.append(label)
            case Boxed(mention, box):
                mentions[mention][2].append(box)
    for place, label, boxes in mentions:
        if boxes:
            parts[place] = Mention(label, tuple(boxes))
    return Trace(tuple(parts))


def streamed(pieces: list[str], frame=FRAME) -> tuple[list[list[Event]], object]:
    stream = ReplyStream(frame)
    each = [stream.feed(piece) for piece in pieces]
    last, parsed = stream.finish()
    return [*each, last], parsed


places = st.lists(st.integers(0, 400), max_size=12)


@unhurried
@given(snippets, places)
@example("[{'bbox_2d': [1, 2, 3, 4], 'label': 'x'} , {'bbox_2d': [5, 6, 7, 8], 'label': 'x'}] and so", [*range(90)])
@example('{"bbox_2d": [1, 2, 3, 4], "label": "x}', [*range(90)])
@example("<box>[1, 2, 3, 4]</box> and <box>[5, 6, 7, 8]</box> and then", [*range(90)])
@example("<ref>a</ref><box>[1, 2, 3, 4]</box>, <box>[5, 6, 7, 8]</box> touches", [9, 36])
@example("a &amp;lt; b &lt;box> <ref>a&lcub;", [*range(40)])
def test_any_text_however_it_is_cut_is_read_as_the_whole_is(text, cuts):
    events, parsed = streamed(cut(text, cuts))
    assert parsed == parse(text, FRAME)
    assert told(flat(events)) == parsed.trace


@unhurried
@given(framed_traces(), st.sampled_from(sorted(DIALECTS)), places)
def test_every_dialect_can_be_streamed(drawn, dialect, cuts):
    frame, trace = drawn
    text = render(trace, frame, dialect)
    events, parsed = streamed(cut(text, cuts), frame)
    assert parsed == parse(text, frame)
    assert told(flat(events)) == parsed.trace


@unhurried
@given(snippets | framed_traces().map(lambda drawn: render(drawn[1], drawn[0])))
def test_after_every_character_exactly_those_boxes_are_told_whose_tags_are_closed(text):
    stream, found = ReplyStream(FRAME), list[Box]()
    for end, char in enumerate(text, 1):
        found += [event.box for event in stream.feed(char) if isinstance(event, Boxed)]
        assert found == list(parse(text[:end], FRAME).boxes), text[:end]


def test_a_box_comes_with_the_piece_that_closes_its_tag_and_prose_at_once():
    events, _ = streamed(["See ", "<re", "f>ge", "ar</ref>", "<box>[100, 200, 300, 400]</box", "> turns", "."])
    assert events == [
        [Text("See ")], [], [], [Opened("gear")], [], [Boxed(0, GEAR), Text(" turns")], [Text(".")], [],
    ]  # fmt: skip


def test_the_answer_is_told_apart_before_its_first_word():
    events = flat(streamed(list(REPLY))[0])
    place = next(n for n, event in enumerate(events) if isinstance(event, Answering))
    assert "".join(event.text for event in events[place + 1 :]) == " up"
    assert "".join(event.text for event in events[:place] if isinstance(event, Text)) == "The  turns.\n"


@pytest.mark.parametrize("text", ["The answer is up", "an answer", "a\nThe final answers", "x Answer: up"])
def test_prose_that_only_begins_like_an_answer_stays_prose(text):
    events = flat(streamed(list(text))[0])
    assert "".join(event.text for event in events) == text
    assert all(isinstance(event, Text) for event in events)


def cpu_seconds(text: str) -> float:
    begun = time.process_time()
    streamed([text[n : n + 4] for n in range(0, len(text), 4)])
    return time.process_time() - begun


def assert_linear(opening: str, unit: str, length: int = 12_000) -> None:
    """Assert that twice the text takes at most 2.5 times the CPU time; a busy machine gets more tries."""
    short, long = (opening + unit * (chars // len(unit)) for chars in (length, 2 * length))
    seconds = [float("inf")] * 2
    for _ in range(6):
        seconds = [min(best, cpu_seconds(text)) for best, text in zip(seconds, (short, long), strict=True)]
        if seconds[1] < 2.5 * max(seconds[0], 0.004):
            return
    pytest.fail(f"{opening!r} + {unit!r} * n: {seconds[0]:.3f} s, and {seconds[1]:.3f} s for twice the text")


OPENINGS = (
    "",
    "<ref>",
    "<box>",
    "<ref>gear</ref>",
    "<ref>gear</ref><box>[1, 2, 3, 4]</box>",
    "[",
    "{",
    '{"',
    '{"bbox_2d"',
    '{"bbox_2d": [',
    "{'bbox_2d': '",
    '[{"bbox_2d": [1, 2, 3, 4], "label": "x"}',
    "&",
    "Answer",
    "[\n  {",
    "**",
)
UNITS = (
    *SNIPPETS,
    "> ",
    "word ",
    "1, ",
    "1,\n",
    "*",
    "\t",
    "- ",
    "a",
    '"a", ',
    "}'",
    '>"',
    "{'a':\\\"",
    "amp;amp;",
    REPLY + "\n",
)


@pytest.mark.parametrize(
    ("opening", "unit"),
    [
        ("", " "),
        ("", "> "),
        ("", "\t"),
        ("", "**"),
        ("answer", " "),
        ("<ref>gear</ref><box>[1, 2, 3, 4]</box>", " "),
        ('{"bbox_2d": [', "1,\n"),
        ('{"bbox_2d": "', "}}"),
        ('{"bbox_2d": [', ">"),
        ('{"', "a"),
        ("{", " "),
        ('{"bbox_2d"', " "),
        ("[", " "),
        ("&", "amp;"),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "x"}', " "),
        ("", "{'a':\\\""),
        ("", "word "),
        ("", REPLY),
    ],
)
def test_streaming_an_unclosed_piece_takes_linear_time(opening, unit):
    assert_linear(opening, unit)


@settings(unhurried, max_examples=30)
@given(st.sampled_from(OPENINGS), st.lists(st.sampled_from(UNITS), min_size=1, max_size=2).map("".join))
def test_streaming_any_repetition_takes_linear_time(opening, unit):
    assert_linear(opening, unit)


def test_streaming_long_prose_takes_linear_time():
    """At this length, one copy of all earlier text for each piece would take most of the time."""
    assert_linear("", "word ", length=240_000)
