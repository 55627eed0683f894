"""The text form of a trace: `the <ref>red gear</ref><box>[100, 200, 300, 400]</box> touches …`.

`render` writes it, `parse` reads it. One grammar serves all dialects: the reader understands every spelling in
SPELLINGS, and JSON objects with a `bbox_2d`, wherever they stand. So a model that falls back into the habits of its
pre-training is still understood; what it may not do is leave things open, count wrongly or use numbers of another
frame. That is a Fault, never an exception.

Prose may hold anything, also what looks like a tag. Where it does, `render` escapes it and `parse` takes the
escape away: the `<` of a tag becomes `&lt;`, the `{` of a JSON box becomes `&lcub;`, and where the text had
such an entity itself, its `&` becomes `&amp;`. A plain `a < b & c` stays as it is. Hence parse(render(t))
gives t for every text, within the rounding of the frame.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from vcot.grounding.boxes import Box, BoxError, BoxFault, Frame, FrameSpec
from vcot.grounding.trace import Mention, Trace

# ----------------------------------------------------------------------------------------------- the grammar


class Spelling(NamedTuple):
    """How a dialect writes the tags around a label and around a box, and the four numbers."""

    ref: tuple[str, str]
    box: tuple[str, str]
    pairs: bool  # (x1,y1),(x2,y2) where the native form has [x1, y1, x2, y2]


# vcot           <ref>gear</ref><box>[100, 200, 300, 400]</box>
# obj-bbox       <obj>gear</obj><bbox>[100, 200, 300, 400]</bbox>                        two-level grounding
# qwen-special   <|object_ref_start|>gear<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>   Qwen2-VL
# qwen-vl        <ref>gear</ref><box>(100,200),(300,400)</box>                           first generation
# qwen-json      [{"bbox_2d": [100, 200, 300, 400], "label": "gear"}]                    Qwen2.5-VL, Qwen3-VL
# only read      [{"box_2d": [200, 100, 400, 300], "label": "gear"}]                     Gemini: y1, x1, y2, x2
SPELLINGS = {
    "vcot": Spelling(("<ref>", "</ref>"), ("<box>", "</box>"), pairs=False),
    "obj-bbox": Spelling(("<obj>", "</obj>"), ("<bbox>", "</bbox>"), pairs=False),
    "qwen-special": Spelling(
        ("<|object_ref_start|>", "<|object_ref_end|>"), ("<|box_start|>", "<|box_end|>"), pairs=True
    ),
    "qwen-vl": Spelling(("<ref>", "</ref>"), ("<box>", "</box>"), pairs=True),
}


class _Tag(NamedTuple):
    kind: str  # ref or box
    opens: bool
    pair: tuple[str, str]  # the tag and its partner


_TAGS = {
    pair[side]: _Tag(kind, side == 0, pair)
    for spelling in SPELLINGS.values()
    for kind, pair in (("ref", spelling.ref), ("box", spelling.box))
    for side in (0, 1)
}
_FLAGS = re.IGNORECASE | re.ASCII
_TAG = re.compile("|".join(map(re.escape, _TAGS)), _FLAGS)
_JSON_START = r"""\{\s*["']\w+["']\s*:"""
_TOKEN = re.compile(f"{_TAG.pattern}|{_JSON_START}", _FLAGS)

_ESCAPED = {"&": "&amp;", "<": "&lt;", "{": "&lcub;"}
_TO_ESCAPE = re.compile(f"&(?=(?:amp;)*(?:lt|lcub);)|(?={_TOKEN.pattern}).", _FLAGS)
_ENTITY = re.compile("&((?:amp;)*)(lt|lcub);")

_STRING = r'"(?:[^"\\\n]|\\.)*+"' + "|" + r"'(?:[^'\\\n]|\\.)*+'"
_OUTSIDE_STRINGS = re.compile(r"""[^"'{}<]*+""")
_INSIDE_STRING = {quote: re.compile(rf"(?:[^{quote}\\\n]|\\.)*+") for quote in ("'", '"')}
_JSON_FIELD = re.compile(rf"""({_STRING})\s*:\s*({_STRING}|[^"'}}]*)""")

_JSON_BOX = re.compile(r"""["'](?:bbox_2d|bbox|box_2d|box)["']\s*:""")

# What the end of a text may still become, when it is read while it is written.
_TAG_SO_FAR = {tag[:length] for tag in _TAGS for length in range(1, len(tag))}
_JSON_SO_FAR = re.compile(r"""\{\s*(?:["'](?:\w+(?:["']\s*)?)?)?""", _FLAGS)
_ENTITY_SO_FAR = re.compile("&(?:amp;)*(?:a|am|amp|l|lt|lc|lcu|lcub)?")
_COMPLETES_BOX = re.compile("[>}]")
_REREAD_ALWAYS = 64  # undecided characters at the end of a streamed text that are read again with each piece

_BETWEEN_BOXES = re.compile(r"\s*+(?:[,;:]|and)?\s*+")
_BRACKETED = re.compile(r"[\[(]([^\[\]()]*)[\])]")
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf|infinity)", _FLAGS)


def escape(prose: str) -> str:
    """Prose in which nothing looks like a tag any more; `unescape` undoes it exactly."""
    if "&" in prose or "<" in prose or "{" in prose:
        return _TO_ESCAPE.sub(lambda found: _ESCAPED[found[0]], prose)
    return prose


def unescape(prose: str) -> str:
    """The inverse of `escape`: one level of escaping less."""

    def char(found: re.Match[str]) -> str:
        deeper, name = found.groups()
        return f"&{deeper[4:]}{name};" if deeper else {"lt": "<", "lcub": "{"}[name]

    return _ENTITY.sub(char, prose)


# -------------------------------------------------------------------------------------------------- to write


def render(trace: Trace, frame: Frame, dialect: str = "vcot") -> str:
    """The trace as text, in the native form or as one of DIALECTS writes it.

    A mention without a label still gets its empty `<ref></ref>`, so that its box is not taken for one of the mention
    before it. Raises BoxError if a box does not belong to the frame's image.
    """
    if dialect == "qwen-json":
        return _render_json(trace, frame)
    ref, box_tags, pairs = SPELLINGS[dialect]
    text = ""
    for part in trace.parts:
        if isinstance(part, str):
            text += escape(part)
            continue
        text += f"{ref[0]}{escape(part.label)}{ref[1]}"
        for box in part.boxes:
            x1, y1, x2, y2 = frame.digits(box)
            numbers = f"({x1},{y1}),({x2},{y2})" if pairs else f"[{x1}, {y1}, {x2}, {y2}]"
            text += f"{box_tags[0]}{numbers}{box_tags[1]}"
    return text


def _render_json(trace: Trace, frame: Frame) -> str:
    """Prose as it is; each run of mentions as a list with one object per box.

    Objects of a list that follow each other under one label are read as one mention, so where the same label is
    mentioned twice in a row, the second begins a new list.
    """
    text = ""
    last: str | Mention = ""
    for part in trace.parts:
        if isinstance(part, str):
            text += escape(part)
        else:
            label = json.dumps(part.label, ensure_ascii=False)
            objects = [f'{{"bbox_2d": {frame.format(box)}, "label": {label}}}' for box in part.boxes]
            joins = isinstance(last, Mention) and last.label != part.label
            text = (text.removesuffix("]") + ", " if joins else text + "[") + ", ".join(objects) + "]"
        last = part
    return text


@dataclass(frozen=True)
class Dialect:
    """A way to write; `parse` reads them all. Which numbers stand in a text is said by the frame: Qwen2.5-VL wants
    resized_pixels, the other Qwens thousandths."""

    name: str

    def render(self, trace: Trace, frame: Frame) -> str:
        return render(trace, frame, self.name)


DIALECTS = {name: Dialect(name) for name in (*SPELLINGS, "qwen-json")}


# --------------------------------------------------------------------------------------------------- to read


@dataclass(frozen=True)
class Fault:
    """Something malformed: its kind, where it stands (text[start:end]), and what was written there."""

    kind: BoxFault
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Parsed:
    """What a text says, as far as it could be read, and what was wrong with it, in the order of the text.

    A label whose boxes are all faulty remains as prose. A text without any tag has no fault; whether it should
    have had a box is for the caller to say.

    places: of each box, where in the text its mention begins, and where the box ends.
    """

    trace: Trace
    faults: tuple[Fault, ...]
    places: tuple[tuple[int, int], ...] = ()

    @property
    def boxes(self) -> tuple[Box, ...]:
        return self.trace.boxes

    @property
    def well_formed(self) -> bool:
        return not self.faults


@dataclass(frozen=True)
class _RecordingFrame(Frame):
    """Accepts any four numbers, and remembers them."""

    seen: list[tuple[float, float, float, float]] = field(default_factory=list, hash=False)

    def decode(self, x1: float, y1: float, x2: float, y2: float) -> Box:
        self.seen.append((x1, y1, x2, y2))
        return Box(0.0, 0.0, 1.0, 1.0)


def numbers_of(text: str) -> list[tuple[float, float, float, float]]:
    """Return the four numbers of each box in a text, in any notation that `parse` reads and whatever they mean."""
    pixels = FrameSpec("pixels").on(1, 1)
    frame = _RecordingFrame("pixels", 1, 1, pixels.x_axis, pixels.y_axis, 0)
    Reader(frame).finish(text)
    return frame.seen


def parse(text: str, frame: Frame) -> Parsed:
    """Read a text that a model or a teacher wrote. Never raises, whatever the text; takes linear time.

    A box belongs to the label before it, also across a few words, and further boxes to the same label if nothing but a
    comma, an "and" or white space stands between; those separators are dropped. A box without a label is a mention with
    the label "". In one tag there may be [x1, y1, x2, y2], nested lists, pairs, or several lists of four.

    Faults: UNBALANCED_TAG (its content is in the fault; a label left open stays as prose), NO_BOX_TEXT (a label
    without a box, or an empty box), WRONG_COUNT, NOT_A_NUMBER, and what Frame.decode finds.
    """
    return Reader(frame).finish(text)


@dataclass
class _Open:
    """A tag that waits for its partner, and the text since."""

    tag: _Tag
    start: int
    inner: str = ""


@dataclass
class Label:
    """A mention in the making."""

    label: str
    start: int
    end: int
    boxes: list[Box] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)  # of the boxes in the text
    tried: bool = False  # a box was given, if only a faulty one


@dataclass
class _OpenObject:
    """A JSON object whose end has not been read yet. The scan resumes where the last one stopped.

    Attributes:
        start: where the object begins.
        scanned: where the scan resumes.
        string: where the current string begins; None outside a string.
    """

    start: int
    scanned: int
    string: int | None = None

    def end(self, text: str, unclosed: dict[str, int]) -> int | None:
        """Return where the object ends: at the first `}` outside a string, or where it turns out not to be JSON.

        A second `{`, a `<` and a line break inside a string show that the object is broken; in the last case it ends
        before that string.

        Args:
            unclosed: for each kind of quote, the line break up to which no string closes. Without it, escaped quotes
                would make the scan quadratic.

        Returns:
            None if the text ends first.
        """
        while self.scanned < len(text):
            if self.string is None:
                at = self.scanned = _match_end(_OUTSIDE_STRINGS, text, self.scanned)
                if at == len(text):
                    break
                if text[at] not in _INSIDE_STRING or at < unclosed.get(text[at], 0):
                    return at
                self.string, self.scanned = at, at + 1
            else:
                quote = text[self.string]
                at = self.scanned = _match_end(_INSIDE_STRING[quote], text, self.scanned)
                if text[at : at + 2] in ("", "\\"):  # the character after the backslash is still to come
                    break
                if text[at] != quote:
                    unclosed[quote] = at
                    return self.string
                self.string, self.scanned = None, at + 1
        return None


def next_reading(length: int, undecided: int) -> int:
    """Return the length of a streamed text at which its undecided end is worth reading again.

    A long end is read again only after it has grown by a quarter, so that the total time stays linear.
    """
    return length + undecided // 4 if undecided > _REREAD_ALWAYS else 0


def _match_end(pattern: re.Pattern[str], text: str, start: int) -> int:
    """Return where the match of a pattern that also matches the empty text ends."""
    match = pattern.match(text, start)
    assert match is not None
    return match.end()


class Reader:
    """One way through a text, from token to token, in pieces of any size.

    parts: what is certain of the text so far: prose, and labels that may still be given boxes. Prose that only
    separates two boxes is taken back when the second comes.
    """

    def __init__(self, frame: Frame) -> None:
        self._text, self._frame = "", frame
        self._done = 0  # up to here the text is understood
        self.parts: list[str | Label] = []
        self._faults: list[Fault] = []
        self._open: _Open | None = None
        self._current: Label | None = None  # the label to which a box would belong
        self._in_list = False  # after an object of a JSON list that is still open
        self._object: _OpenObject | None = None
        self._unclosed: dict[str, int] = {}
        self._reread_at = 0  # length of the text at which its undecided end is read again

    def feed(self, piece: str) -> None:
        """Read the next piece of the text. The result is the same however the text is cut.

        Takes time in proportion to the piece, on average.
        """
        self._extend(piece)
        if self._object is None and len(self._text) < self._reread_at and not _COMPLETES_BOX.search(piece):
            return
        self._read(whole=False)
        self._reread_at = next_reading(len(self._text), len(self._text) - self._done)

    def finish(self, piece: str = "") -> Parsed:
        """Read the last piece of the text and return the result; call it once."""
        self._extend(piece)
        self._read(whole=True)
        rest = self._text[self._done :]
        if self._open is None:
            self._prose(rest)
        else:
            self._open.inner += rest
            self._give_up(self._open, len(self._text))
        parts: list[str | Mention] = []
        for part in self.parts:
            if isinstance(part, str):
                parts.append(part)
            elif part.boxes:
                parts.append(Mention(part.label, tuple(part.boxes)))
            else:
                parts.append(part.label)
                if not part.tried:
                    self._fault(BoxFault.NO_BOX_TEXT, part.start, part.end)
        self._faults.sort(key=lambda fault: (fault.start, fault.end))
        places = ((part.start, end) for part in self.parts if not isinstance(part, str) for end in part.ends)
        return Parsed(Trace(tuple(parts)), tuple(self._faults), tuple(places))

    def _extend(self, piece: str) -> None:
        # CPython appends in place, without a copy of the text, if a local name is the only reference to it.
        text, self._text = self._text, ""
        text += piece
        self._text = text

    def _read(self, *, whole: bool) -> None:
        while self._object is not None or self._read_token():
            if self._object is not None and not self._read_object(whole):
                return
        if not whole:
            self._settle(self._possible_token())

    def _read_token(self) -> bool:
        """Read up to the next tag or the beginning of the next object. Return False if there is none."""
        token = (_TOKEN if self._open is None else _TAG).search(self._text, self._done)
        if token is None:
            return False
        start, end = token.span()
        if tag := _TAGS.get(token[0].lower()):
            before, self._done = self._text[self._done : start], end
            self._on_tag(tag, before, start, end)
        else:
            self._settle(start)
            self._object = _OpenObject(start, start + 1)
        return True

    def _read_object(self, whole: bool) -> bool:
        """Read the open object. Return False if it may end in a later piece."""
        assert self._object is not None
        end = self._object.end(self._text, self._unclosed)
        if end is None:
            if not whole:
                return False
            end = len(self._text)
        start, closed = self._object.start, self._text[end : end + 1] == "}"
        before, self._done = self._text[self._done : start], end + closed
        self._object = None
        self._on_object(before, start, closed)
        return True

    def _possible_token(self) -> int:
        """Where a tag, an object or an entity may have begun of which the text does not hold enough yet; else its
        end."""
        text, found = self._text, [len(self._text)]
        if (at := text.rfind("<", self._done)) >= 0 and text[at:].lower() in _TAG_SO_FAR:
            found.append(at)
        if (at := text.rfind("{", self._done)) >= 0 and _JSON_SO_FAR.fullmatch(text, at):
            found.append(at)
        if (at := text.rfind("&", self._done)) >= 0 and _ENTITY_SO_FAR.fullmatch(text, at):
            found.append(at)
        return min(found)

    def _settle(self, end: int) -> None:
        """Takes in the text before `end`, which no tag is in, but for what its next characters decide about."""
        raw = self._text[self._done : end]
        if self._open is not None:
            self._open.inner += raw
        else:
            if self._in_list and re.fullmatch(r"\s*,?\s*", raw):
                return  # the next object of the list, its end, or prose
            if (bare := raw.rstrip()).endswith("["):
                end = self._done + len(bare) - 1  # of a list of objects, or prose
            if end > self._done:
                self._prose(self._text[self._done : end])
        self._done = end

    def _on_tag(self, tag: _Tag, before: str, start: int, end: int) -> None:
        opened = self._open
        if opened is None:
            self._prose(before)
        else:
            opened.inner += before
        if tag.opens:
            if opened is not None:
                self._give_up(opened, start)
            self._open = _Open(tag, start)
        elif opened is None or opened.tag.kind != tag.kind:
            self._fault(BoxFault.UNBALANCED_TAG, start, end)
        else:
            self._open = None
            if opened.tag.pair != tag.pair:
                self._fault(BoxFault.UNBALANCED_TAG, opened.start, end)
            if tag.kind == "ref":
                self._add_label(Label(unescape(opened.inner), opened.start, end))
            else:
                self._add_boxes(self._label_for_box(opened.start, end), opened.inner, opened.start, end)

    def _give_up(self, opened: _Open, end: int) -> None:
        """A tag was not closed. A label still counts for a box that follows at once; a box is lost."""
        self._fault(BoxFault.UNBALANCED_TAG, opened.start, end)
        self._open = None
        if opened.tag.kind == "ref":
            self._add_label(Label(unescape(opened.inner), opened.start, end, tried=True))
        elif self._current is not None:
            self._current.tried = True

    def _prose(self, raw: str) -> None:
        if self._in_list:
            raw = re.sub(r"\A\s*\]", "", raw)
            self._in_list, self._current = False, None
        prose = unescape(raw)
        if self.parts and isinstance(self.parts[-1], str):
            last = self.parts.pop()  # in place, see _extend
            assert isinstance(last, str)
            last += prose
            prose = last
        if prose:
            self.parts.append(prose)

    def _add_label(self, label: Label) -> None:
        self._current = label
        self.parts.append(label)

    def _label_for_box(self, start: int, end: int) -> Label:
        label = self._current
        if label is not None:
            between = last if self.parts and isinstance(last := self.parts[-1], str) else ""
            joined = _BETWEEN_BOXES.fullmatch(between) is not None
            if joined and between:
                self.parts.pop()
            if joined or not (label.boxes or label.tried):
                return label
        self._add_label(label := Label("", start, end))
        return label

    def _add_boxes(self, label: Label, content: str, start: int, end: int, *, y_first: bool = False) -> None:
        label.tried = True
        for numbers in _numbers(content):
            if isinstance(numbers, BoxFault):
                self._fault(numbers, start, end)
                continue
            x1, y1, x2, y2 = (numbers[1], numbers[0], numbers[3], numbers[2]) if y_first else numbers
            try:
                label.boxes.append(self._frame.decode(x1, y1, x2, y2))
                label.ends.append(end)
            except BoxError as error:
                self._fault(error.fault, start, end)

    def _fault(self, kind: BoxFault, start: int, end: int) -> None:
        self._faults.append(Fault(kind, start, end, self._text[start:end]))

    # JSON: [{"bbox_2d": [x1, y1, x2, y2], "label": "…"}, …] anywhere in the prose. Brackets and commas of the
    # list are dropped; objects of one list that follow each other and share their label are one mention.

    def _on_object(self, before: str, start: int, closed: bool) -> None:
        """One that speaks of no box is prose."""
        if not (self._in_list and re.fullmatch(r"\s*,\s*", before)):
            self._current = None
            opening = re.search(r"\[\s*\Z", before)
            self._prose(before[: opening.start()] if opening else before)
            self._in_list = opening is not None
        if not _JSON_BOX.search(self._text, start, self._done):
            self._prose(self._text[start : self._done])
        elif closed:
            self._add_object(start, self._done)
        else:
            self._fault(BoxFault.UNBALANCED_TAG, start, self._done)

    def _add_object(self, start: int, end: int) -> None:
        fields = _JSON_FIELD.findall(self._text, start, end)
        found = {_unquoted(key): value.strip() for key, value in fields}
        key = next((key for key in ("bbox_2d", "bbox", "box_2d", "box") if key in found), "")
        name = _unquoted(found.get("label", ""))
        if self._current is None or self._current.label != name or not self._in_list:
            self._add_label(Label(name, start, end))
        assert self._current is not None
        self._add_boxes(self._current, _unquoted(found.get(key, "")), start, end, y_first=key == "box_2d")
        if not self._in_list:
            self._current = None


def _unquoted(value: str) -> str:
    """The text of a JSON string, also of one that is not quite JSON; other values as they are."""
    if not value.startswith(('"', "'")):
        return value
    try:
        text = json.loads(value, strict=False)
    except ValueError:
        return value[1:-1]
    return text if isinstance(text, str) else value


def _numbers(content: str) -> Iterator[tuple[float, float, float, float] | BoxFault]:
    """The groups of four numbers in the content of a box tag, or what is wrong with it."""
    rows = [_words(row) for row in _BRACKETED.findall(content)]
    words = _words(content)
    if len(rows) < 2 or any(len(row) != 4 for row in rows) or sum(map(len, rows)) != len(words):
        rows = [words]
    for row in rows:
        if not row:
            yield BoxFault.NO_BOX_TEXT
        elif not all(map(_NUMBER.fullmatch, row)):
            yield BoxFault.NOT_A_NUMBER
        elif len(row) != 4:
            yield BoxFault.WRONG_COUNT
        else:
            x1, y1, x2, y2 = map(float, row)
            yield x1, y1, x2, y2


def _words(content: str) -> list[str]:
    return re.sub(r"```(?:json)?|[,;\[\](){}]", " ", content).split()


# ------------------------------------------------------------------------------------ reasoning, then answer

ANSWER_MARK = r"[ \t>*_#-]*(?:final |the )?answer[ \t*_]*[:：]"
"""Pattern of what begins a line with the answer, in any case."""
_ANSWER_LINE = re.compile(f"^{ANSWER_MARK}", re.IGNORECASE | re.MULTILINE)
_ANSWER_HEADING = re.compile(
    r"^[ \t>]*(?:(?:#{1,6}[ \t]+|(?=\*\*|__))[*_]*(?:(?:the|my|final|correct)[ \t]+)*answer[*_]*[ \t]*$"
    r"|[*_]*(?:(?:my|final|correct)[ \t]+)*answer[*_]*[ \t]*[=–—-][ \t]+)",
    re.IGNORECASE | re.MULTILINE,
)
"""A line "## Final answer" above the answer, and "Answer - B"."""
_ANSWER_BLOCK = re.compile(r"<answer>", re.IGNORECASE)
_BLOCK_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_STATES = r"[*_]*[ \t]*(?:(?:is|would[ \t]+be|should[ \t]+be|must[ \t]+be)\b(?:[*_ \t]*[:：])?|[:：])"
_ANSWER_INLINE = re.compile(
    r"(?<!what )(?<!what the )(?<!whether )(?<!whether the )"
    rf"\b(?:(?:final|correct|right|best)[ \t]+(?:option|choice)|answer){_STATES}|答案(?:是|为|[:：])[:：]?",
    re.IGNORECASE,
)
"""A statement within a line: "so the correct option is (B)"."""
_RESTATED = re.compile(
    r"(?:^|(?<=[.!?…,;:：=–—>-]))[ \t*_]*"
    r"(?P<corrects>(?:(?:no|wait|actually|sorry|correction|rather|instead|hold on)\b[-,.:… ]*){0,4})"
    r"(?:(?:so|thus|therefore|hence|well|i think|i believe|that|the|my|final|correct|right|revised)[, \t]+){0,6}"
    rf"answer{_STATES}",
    re.IGNORECASE | re.MULTILINE,
)
"""A statement that replaces the one before it: "Answer: A … actually, Answer: B"."""
_BRACED = r"(?:[^{}]++|\{(?:[^{}]++|\{[^{}]*+\})*+\})*+"
_BOXED = re.compile(rf"\\boxed\{{({_BRACED})\}}|<\|begin_of_box\|>([^<]*)<\|end_of_box\|>")
_UNBOXED = re.compile(rf"(?:\$\$? ?)?(?:{_BOXED.pattern})(?: ?\$\$?)?")
_BETWEEN_BOXED = re.compile(r"(?:[$\s,;/&]|and|or)*")
_THOUGHT_ENDS = re.compile(r"</think>|◁/think▷", re.IGNORECASE)
_ANSWER_ALONE = re.compile(
    r"[*_]*(?:[(\[](?i:[A-Z])[)\]]|[A-Z](?:[).:]|(?=[*_]*\Z)))(?:[*_]*[ \t]+\S.*|[.*_]*)"
    r"|[*_]*(?i:yes|no)(?=[.,;:!*_]|\Z).*|[*_]*[-+$€£]?\d[\d.,]*%?[*_]*"
)
"""A reply that is nothing but an option, a number, or a yes or no with its explanation."""
_STATED = re.compile(r"(?:\s|(?:\\\[|\$\$)[ \t]*\n)*(.*?)(?:</answer>|\n|\Z)", re.IGNORECASE)
_CONTROL = re.compile(
    r"</?s>|<(?:eos|bos|pad|end_of_turn|start_of_turn|end_of_utterance)>"
    r"|<[|｜](?!box_|object_ref_)[^|｜<>\n]{1,40}[|｜]>",
    re.IGNORECASE,
)
"""A token that surrounds or ends a turn, where a server does not remove it."""
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf)\{([^{}]*)\}")


class Reply(NamedTuple):
    """A reply in its pieces: what comes before the answer, the answer (None if none is stated), what follows
    it, and how often an answer is marked."""

    reasoning: str
    answer: str | None
    after: str
    marks: int


def read_reply(text: str, *, marked: bool = False) -> Reply:
    """Return the pieces of a reply. These readers look for its answer, in this order; the last mark of a kind counts:

    1. a line that begins with "Answer:" (in any case, bold or not), a heading "Answer", an <answer> block, and a
       correction after one of these ("Answer: A … actually, Answer: B");
    2. "answer:", "the answer is" or "the correct option is" within a line, and \\boxed{…};
    3. the only line after </think>, if it shows no box;
    4. a reply that is nothing but an option, a number, or a yes or no with its explanation.

    The answer is one line without bold marks, \\boxed{…}, \\text{…} and control tokens. With `marked`, no sentence
    ("the answer is …") and no place marks an answer: rows that are converted would lose the text around it.
    """
    if marks := _marks(text) or _statements(text, with_sentences=not marked):
        begin, end, after = _span(text, marks[-1])
        start = marks[-1].start()
        for earlier, later in reversed([*pairwise(marks)]):
            if later.re is not _BOXED or not _BETWEEN_BOXED.fullmatch(text, earlier.end(), later.start()):
                break
            start = begin = earlier.start()
        return Reply(text[:start].removesuffix("\n"), _bare(text[begin:end]) or None, text[after:], len(marks))
    place = None if marked else _unmarked(text)
    return Reply(text, None, "", 0) if place is None else Reply(text[:place], _bare(text[place:]) or None, "", 0)


def _marks(text: str) -> list[re.Match[str]]:
    patterns = (_ANSWER_LINE, _ANSWER_HEADING, _ANSWER_BLOCK)
    marks = sorted((mark for each in patterns for mark in each.finditer(text)), key=lambda mark: mark.start())
    if marks:
        end = _span(text, marks[-1])[1]
        restated = _RESTATED.finditer(text, marks[-1].end())
        marks += [
            mark for mark in restated if mark["corrects"] or mark.start() < end or mark[0].rstrip("*_ \t")[-1:] in ":："
        ]
    return marks


def _statements(text: str, *, with_sentences: bool) -> list[re.Match[str]]:
    inline, boxed = [*_ANSWER_INLINE.finditer(text)], [*_BOXED.finditer(text)]
    if not with_sentences:
        inline = [mark for mark in inline if mark[0].endswith((":", "："))]
    return boxed if boxed and (not inline or _span(text, inline[-1])[1] <= boxed[-1].start()) else inline


def _span(text: str, mark: re.Match[str]) -> tuple[int, int, int]:
    """Return where the answer of a mark begins and ends, and where the text after it begins."""
    if mark.re is _BOXED:
        return mark.start(), mark.end(), mark.end()
    if mark.re is _ANSWER_BLOCK and (tag := _BLOCK_TAG.search(text, mark.end())) and tag[1]:
        return mark.end(), tag.start(), tag.end()
    stated = _STATED.match(text, mark.end())
    assert stated is not None  # it may be empty
    return stated.start(1), stated.end(1), stated.end()


def _unmarked(text: str) -> int | None:
    """Return where an answer without any mark begins: after the reasoning block, or with the reply."""
    start = reasoning_end(text)
    answer = text[start:].strip()
    if "\n" in answer or not answer or not (_ANSWER_ALONE.fullmatch(answer) or (start and not _TOKEN.search(answer))):
        return None
    return start


def reasoning_end(text: str) -> int:
    """Return where the last <think> block ends; 0 if there is none."""
    return max((thought.end() for thought in _THOUGHT_ENDS.finditer(text)), default=0)


def answer_line(text: str) -> int | None:
    """Where the last line begins that begins with "Answer:"; None: no line does."""
    return max((mark.start() for mark in _ANSWER_LINE.finditer(text)), default=None)


def split_answer(text: str) -> tuple[str, str | None]:
    """(reasoning, answer) of a reply; the answer is None if none is stated."""
    return read_reply(text)[:2]


def render_reply(trace: Trace, answer: str, frame: Frame) -> str:
    """The reasoning in the native form, a line break, and the answer on one line. Raises as `render` does."""
    reasoning = render(trace, frame)
    line = f"Answer: {' '.join(answer.split())}"
    return f"{reasoning}\n{line}" if reasoning else line


def _bare(answer: str) -> str:
    """Return the answer on one line, without control tokens, LaTeX boxes and bold marks (also half of them)."""
    if "\n" in answer:
        answer = " ".join(answer.split())
    for _ in range(3):  # \boxed{\textbf{\text{B}}}
        answer = _LATEX_TEXT.sub(r"\1", answer)
    answer = _UNBOXED.sub(lambda boxed: (boxed[1] or boxed[2] or "").replace("\\%", "%"), answer)
    answer = next((part.strip() for part in _CONTROL.split(answer) if part.strip()), "")
    if answer.startswith("**") or answer.endswith("**"):
        answer = answer.replace("**", "")
    return answer.strip()
