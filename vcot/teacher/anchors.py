"""A text that somebody wrote, and the places of what it names: the same text, with mentions in it.

    "A red cup stands on the table."  +  sentence 1, "red cup" → box
      →  "A ", Mention("red cup", box), " stands on the table."

The text is cut, never written again: `Trace.text` is the text, letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from vcot.grounding import Box, Mention, Trace

_END = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+|\s*\n\s*")


class Span(NamedTuple):
    start: int
    end: int


def sentences(text: str) -> list[Span]:
    """Where the sentences of a text stand, without the white space between them."""
    spans, start = [], len(text) - len(text.lstrip())
    for gap in _END.finditer(text):
        if start < gap.start():
            spans.append(Span(start, gap.start() + len(gap[0].rstrip())))
        start = max(start, gap.end())
    end = len(text.rstrip())
    return [*spans, Span(start, end)] if start < end else spans


def find(text: str, sentence: Span, words: str) -> Span | None:
    """Where these words stand in the sentence for the first time, as whole words; in any case and spacing."""
    wanted = r"\s+".join(map(re.escape, words.split()))
    if not wanted:
        return None
    found = re.compile(rf"(?<!\w){wanted}(?!\w)", re.IGNORECASE).search(text, sentence.start, sentence.end)
    return Span(*found.span()) if found else None


def anchored(text: str, places: Iterable[tuple[Span, Box]]) -> Trace:
    """The text with a mention at each span. Several boxes of one span are one mention; of spans that overlap, the one
    that begins first counts, then the longer one."""
    boxes: dict[Span, list[Box]] = {}
    for span, box in places:
        boxes.setdefault(span, []).append(box)
    parts: list[str | Mention] = []
    done = 0
    for span in sorted(boxes, key=lambda span: (span.start, -span.end)):
        if span.start >= done:
            parts += text[done : span.start], Mention(text[slice(*span)], tuple(dict.fromkeys(boxes[span])))
            done = span.end
    return Trace((*parts, text[done:]))
