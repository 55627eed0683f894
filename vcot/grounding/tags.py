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
_JSON_BODY = re.compile(rf"""(?:[^"'{{}}<]|{_STRING})*+""")
_JSON_STRING_SO_FAR = re.compile(r'"(?:[^"\\\n]|\\.)*+\\?' + "|" + r"'(?:[^'\\\n]|\\.)*+\\?")
_JSON_FIELD = re.compile(rf"""({_STRING})\s*:\s*({_STRING}|[^"'}}]*)""")

_JSON_BOX = re.compile(r"""["'](?:bbox_2d|bbox|box_2d|box)["']\s*:""")

# What the end of a text may still become, when it is read while it is written.
_TAG_SO_FAR = {tag[:length] for tag in _TAGS for length in range(1, len(tag))}
_JSON_SO_FAR = re.compile(r"""\{\s*(?:["'](?:\w+(?:["']\s*)?)?)?""", _FLAGS)
_ENTITY_SO_FAR = re.compile("&(?:amp;)*(?:a|am|amp|l|lt|lc|lcu|lcub)?")
_MAY_END_OBJECT = re.compile(r"[{}<\n]")

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
        self._in_object = False  # an object has begun and not ended

    def feed(self, piece: str) -> None:
        """The text goes on. What comes of it is the same however it is cut."""
        self._text += piece
        if not self._in_object or _MAY_END_OBJECT.search(piece):
            self._read(whole=False)

    def finish(self, piece: str = "") -> Parsed:
        """The text ends with this piece; call it once."""
        self._text += piece
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

    def _read(self, *, whole: bool) -> None:
        self._in_object = False
        while token := (_TOKEN if self._open is None else _TAG).search(self._text, self._done):
            start, before = token.start(), self._text[self._done : token.start()]
            if tag := _TAGS.get(token[0].lower()):
                self._done = token.end()
                self._on_tag(tag, before, start, token.end())
            elif (end := self._object_end(start, whole)) is not None:
                closed = self._text[end : end + 1] == "}"
                self._done = end + closed
                self._on_object(before, start, closed)
            else:
                self._in_object = True
                self._settle(start)
                return
        if not whole:
            self._settle(self._possible_token())

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
        if self.parts and isinstance(last := self.parts[-1], str):
            self.parts[-1] = last + prose
        elif prose:
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

    def _add_boxes(self, label: Label, content: str, start: int, end: int) -> None:
        label.tried = True
        for numbers in _numbers(content):
            if isinstance(numbers, BoxFault):
                self._fault(numbers, start, end)
                continue
            try:
                label.boxes.append(self._frame.decode(*numbers))
                label.ends.append(end)
            except BoxError as error:
                self._fault(error.fault, start, end)

    def _fault(self, kind: BoxFault, start: int, end: int) -> None:
        self._faults.append(Fault(kind, start, end, self._text[start:end]))

    # JSON: [{"bbox_2d": [x1, y1, x2, y2], "label": "…"}, …] anywhere in the prose. Brackets and commas of the
    # list are dropped; objects of one list that follow each other and share their label are one mention.

    def _object_end(self, start: int, whole: bool) -> int | None:
        """Where it ends: at the first `}` outside a string. Another `{`, a `<`, or a line break inside a string say
        that it never will, and so does the end of the whole text. None: nothing of that is written yet."""
        body = _JSON_BODY.match(self._text, start + 1)
        assert body is not None  # it may be empty
        end = body.end()
        string = _JSON_STRING_SO_FAR.match(self._text, end)
        if max(end, string.end() if string else 0) == len(self._text):
            return len(self._text) if whole else None
        return end

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
        content = next((found[key] for key in ("bbox_2d", "bbox", "box_2d", "box") if key in found), "")
        name = _unquoted(found.get("label", ""))
        if self._current is None or self._current.label != name or not self._in_list:
            self._add_label(Label(name, start, end))
        assert self._current is not None
        self._add_boxes(self._current, _unquoted(content), start, end)
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
_ANSWER_BLOCK = re.compile(r"<answer>", re.IGNORECASE)
_ANSWER_INLINE = re.compile(r"\banswer[ \t]*[:：]", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_STATED = re.compile(r"\s*(.*?)(?:</answer>|\n|\Z)", re.IGNORECASE)


class Reply(NamedTuple):
    """A reply in its pieces: what comes before the answer, the answer (None if none is stated), what follows
    it, and how often an answer is marked."""

    reasoning: str
    answer: str | None
    after: str
    marks: int


def read_reply(text: str) -> Reply:
    """Find the answer in a reply.

    It is what stands behind the last line that begins with "Answer:" (in any case, bold or not), or in the last
    <answer>…</answer>, whichever comes later; else behind the last "answer:" within a line; else in the last
    \\boxed{…}. The answer is one line, bare of bold marks.
    """
    marks = [*_ANSWER_LINE.finditer(text), *_ANSWER_BLOCK.finditer(text)]
    marks = sorted(marks or _ANSWER_INLINE.finditer(text), key=lambda mark: mark.start())
    if marks:
        start, stated = marks[-1].start(), _STATED.match(text, marks[-1].end())
        assert stated is not None  # it may be empty
        answer, end = stated[1], stated.end()
    elif marks := list(_BOXED.finditer(text)):
        start, end, answer = marks[-1].start(), marks[-1].end(), marks[-1][0]
    else:
        return Reply(text, None, "", 0)
    return Reply(text[:start].removesuffix("\n"), _bare(answer) or None, text[end:], len(marks))


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
    """The answer without bold marks (also half of them: `**Answer: up**`) and \\boxed{}."""
    if boxed := _BOXED.fullmatch(answer.strip("$ ")):
        answer = boxed[1]
    if answer.startswith("**") or answer.endswith("**"):
        answer = answer.replace("**", "")
    return answer.strip()
