"""A reply that is read while it is written: `tags`' own reader, fed piece by piece.

stream = ReplyStream(frame)
for piece in pieces:                 of any size, as a server sends them
    for event in stream.feed(piece):
        match event:
            case Text(text): …       prose, as soon as no tag can come of it
            case Opened(label): …    a name was given; mentions are numbered from 0 as they come
            case Boxed(mention, box): …      with the very piece that closes its tag
            case Answering(mark): …  from here on the text is the answer; again, if a later line says so again
events, parsed = stream.finish()     `parsed` is what grounding.parse gives of the whole text
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from vcot.grounding.boxes import Box, Frame
from vcot.grounding.tags import ANSWER_MARK, Label, Parsed, Reader, next_reading


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Opened:
    """A name, as it is written; if no box follows, it was prose."""

    label: str


@dataclass(frozen=True)
class Boxed:
    """`mention`: its number, counted by `Opened`. `box`: in pixels of the original image."""

    mention: int
    box: Box


@dataclass(frozen=True)
class Answering:
    """`mark`: what was written to say so, as "Answer:"."""

    mark: str


Event = Text | Opened | Boxed | Answering

# Between two boxes of one mention, as far as it is written; `tags` drops it when the second comes.
_SEPARATOR_SO_FAR = re.compile(r"\s*(?:[,;:]\s*|a|an|and\s*)?")
_MARK = re.compile(ANSWER_MARK, re.IGNORECASE)
_BEGUN = "|".join(
    re.escape(words[:length])
    for words in ("answer", "final answer", "the answer")
    for length in range(1, len(words) + 1)
)
_MARK_SO_FAR = re.compile(rf"[ \t>*_#-]*(?:(?:{_BEGUN})|(?:final |the )?answer[ \t*_]*)?", re.IGNORECASE)


class ReplyStream:
    """Events of a reply, in the order of its text; a box that joins an earlier name comes when its own tag closes."""

    def __init__(self, frame: Frame) -> None:
        self._reader = Reader(frame)
        self._at = 0  # the part that is being told
        self._told = 0  # characters of it that were
        self._length = 0  # of the text so far
        self._reread_at = 0  # length of the text at which the held-back end of its last part is read again
        self._line_begins = True  # where an answer may be marked
        self._mentions = 0
        self._last = Label("", 0, 0)  # of them; no other is given boxes any more
        self._boxed = 0  # of its boxes, how many were told

    def feed(self, piece: str) -> list[Event]:
        self._reader.feed(piece)
        self._length += len(piece)
        return [*self._news(whole=False)]

    def finish(self) -> tuple[list[Event], Parsed]:
        """The text has ended; call it once."""
        parsed = self._reader.finish()
        return [*self._news(whole=True)], parsed

    def _news(self, *, whole: bool) -> Iterator[Event]:
        parts = self._reader.parts
        yield from self._boxes()
        while self._at < len(parts):
            part, last = parts[self._at], self._at == len(parts) - 1
            if isinstance(part, str):
                if not last or whole:
                    yield from self._prose(part, held=False)
                elif self._length >= self._reread_at:
                    yield from self._prose(part, held=True)
                    self._reread_at = next_reading(self._length, len(part) - self._told)
                if last:
                    break
                self._told = 0
            else:
                yield Opened(part.label)
                self._mentions, self._last, self._boxed = self._mentions + 1, part, 0
                self._line_begins = False
                yield from self._boxes()
            self._at += 1

    def _boxes(self) -> Iterator[Event]:
        for box in self._last.boxes[self._boxed :]:
            yield Boxed(self._mentions - 1, box)
        self._boxed = len(self._last.boxes)

    def _prose(self, part: str, *, held: bool) -> Iterator[Event]:
        """What can be told of a part. held: more of it may come, so that its end waits where that would change it."""
        if held and not self._told and self._at and _SEPARATOR_SO_FAR.fullmatch(part):
            return
        said = ""
        while self._told < len(part):
            if self._line_begins:
                if mark := _MARK.match(part, self._told):
                    if said:
                        yield Text(said)
                    yield Answering(mark[0])
                    said, self._told, self._line_begins = "", mark.end(), False
                    continue
                if held and _MARK_SO_FAR.fullmatch(part, self._told):
                    break
            newline = part.find("\n", self._told)
            end = newline + 1 or len(part)
            said += part[self._told : end]
            self._told, self._line_begins = end, newline >= 0
        if said:
            yield Text(said)
