"""Images, boxes, texts and traces for Hypothesis to draw: the harmless and the malicious."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from vcot.grounding import Box, Frame, FrameSpec, Mention, Trace

# The machines that run this are slow and busy; what a property says does not depend on the clock.
unhurried = settings(deadline=None, database=None, max_examples=60)

SPECS = (
    FrameSpec("thousandths"),
    FrameSpec("resized_pixels", min_pixels=4 * 28 * 28, max_pixels=1280 * 28 * 28),
    FrameSpec("resized_pixels", min_pixels=256 * 32 * 32, max_pixels=1280 * 32 * 32, factor=32),
    FrameSpec("pixels"),
    FrameSpec("padded_square"),
    FrameSpec("fractions"),
)

SNIPPETS = (
    "<ref>", "</ref>", "<box>", "</box>", "<obj>", "</obj>", "<bbox>", "</bbox>", "<BOX>", "<", ">", "&", ";",
    "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "&lt;", "&amp;", "&amp;lt;",
    "&lcub;", "amp;", "lt;", "{", "}", "[", "]", ",", '"', "'", "\\", ":", "\n", " ", "```", "```json\n", "and",
    '{"bbox_2d": [1, 2, 3, 4], "label": "x"}', '{"bbox_2d": ', '{"label": "', '"bbox_2d": [10, 20, 30, 40],}',
    "[100, 200, 300, 400]", "(100,200),(300,400)", "[[1, 2, 3, 4], [5, 6, 7, 8]]", "[1e2, -3, 4.5, 1001]",
    "nan", "inf", "1e999", "9" * 400, "[1, 1, 1, 1]", "[0.1, 0.2, 1.002, 0.5]", "[9, 9, 1, 1]", "1, 2, 3",
    "Answer:", "\nAnswer: up", "<answer>", "</answer>", "<think>", "red gear", "\\boxed{5}", "\u00a0", "ſ", "\x00",
)  # fmt: skip

snippets = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=5), max_size=14).map("".join)
prose = st.text(max_size=20) | snippets
sizes = st.tuples(st.integers(20, 4000), st.integers(20, 4000))


@st.composite
def boxes(draw: st.DrawFn, width: int, height: int) -> Box:
    """Any box inside the image, from a hundredth of a pixel to the whole image."""

    def edges(length: int) -> tuple[float, float]:
        low = draw(st.floats(0, length - 0.01))
        return low, draw(st.floats(low + 0.01, length)) if low + 0.01 < length else float(length)

    (x1, x2), (y1, y2) = edges(width), edges(height)
    return Box.from_pixels(x1, y1, x2, y2, width=width, height=height)


@st.composite
def framed_boxes(draw: st.DrawFn) -> tuple[Frame, Box]:
    width, height = draw(sizes)
    return draw(st.sampled_from(SPECS)).on(width, height), draw(boxes(width, height))


@st.composite
def framed_traces(draw: st.DrawFn) -> tuple[Frame, Trace]:
    width, height = draw(sizes)
    places = st.lists(boxes(width, height), min_size=1, max_size=3).map(tuple)
    mentions = st.builds(Mention, st.sampled_from(("gear", "")) | prose, places)
    parts = draw(st.lists(prose | mentions, max_size=6))
    return draw(st.sampled_from(SPECS)).on(width, height), Trace(tuple(parts))


def unit_in_pixels(frame: Frame) -> tuple[float, float]:
    """How many original pixels the last written digit is worth, across and down."""
    origin = frame.edges(0, 0, 10**-frame.decimals, 10**-frame.decimals)
    return origin[2] - origin[0], origin[3] - origin[1]


def assert_same_place(found: Box, true: Box, frame: Frame, units: float = 1.0) -> None:
    across, down = unit_in_pixels(frame)
    for index, (a, b) in enumerate(zip(found.as_list(), true.as_list(), strict=True)):
        assert abs(a - b) <= units * (down if index % 2 else across) + 1e-6, (found, true, frame)


def assert_same_trace(found: Trace, true: Trace, frame: Frame) -> None:
    """Equal up to the rounding of the frame."""

    def words(trace: Trace) -> list[str | tuple[str, int]]:
        return [part if isinstance(part, str) else (part.label, len(part.boxes)) for part in trace.parts]

    assert words(found) == words(true)
    for a, b in zip(found.boxes, true.boxes, strict=True):
        assert_same_place(a, b, frame)
