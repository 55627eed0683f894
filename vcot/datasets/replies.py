"""Replies of chat rows and conversations: their thinking, their places and their answer, in notations that are read.

    <think>The <ref>cat</ref><box>[…]</box> sits.</think> A cat.      the thinking is reasoning, the rest the answer
    ```json [{"bbox_2d": […], "label": "van"}] ```                     only places: a grounding answer
    [0.39, 0.21, 0.60, 0.50]                                           the same, in the declared frame
    {"box_2d": [ymin, xmin, ymax, xmax]}                               the same, as Gemini writes it

The answer to which only places are replied is where in the image the place is, or how many there are. Places in other
notations (PaliGemma's <loc0100>, Molmo's <point …>, `point_2d`, dictionaries of corners, plain numbers within a
sentence) are refused, because a text that is kept with them would teach numbers of another frame. So are questions with
places.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from vcot.datasets.base import BOX_REASONS, check_pixels
from vcot.datasets.inputs import Refused
from vcot.datasets.quality import NEUTRAL
from vcot.grounding import Box, FrameSpec, Mention, Trace, place, tags
from vcot.records import Image, Reason

# Possessive, so that a hostile text takes linear time.
_NUMBER = r"\s*+[-+]?(?:\d++(?:\.\d*+)?|\.\d++)\s*+"
_FOUR = rf"[\[(]{_NUMBER}(?:,{_NUMBER}){{3}}[\])]"
_PAIR = rf"[\[(]{_NUMBER},{_NUMBER}[\])]"
_PLAIN_BOX = re.compile(_FOUR)
_ONLY_PLAIN_BOXES = re.compile(rf"\s*+(?:\[\s*+)?{_FOUR}(?:\s*+(?:[,;]\s*+)?{_FOUR})*+\s*+(?:\]\s*+)?")
_UNREAD = re.compile(
    rf"""<loc_?\d+>|<points?\b|<patch_index|<\|[^|<>\s]{{1,40}}\|>|["'](?:point(?:_2d|s)?|polygon)["']\s*:\s*[\[{{]"""
    rf"""|["'](?:x1|xmin|x_min|left)["']\s*:|["']x["']\s*:{_NUMBER}|{_FOUR}|{_PAIR}\s*+(?:,\s*+)?{_PAIR}""",
    re.IGNORECASE,
)
_ROTATED = re.compile(r"""["'](?:rotation|angle)["']\s*+:\s*+-?[\d.]*+""")
_LEFT_MARKUP = re.compile(r"</?(?:think(?:ing)?|thought|answer|summary|caption|reasoning|conclusion)>", re.IGNORECASE)
_THOUGHT = re.compile(r"(.*)</(?:think|thinking|thought)>", re.IGNORECASE | re.DOTALL)
_THINK_TAG = re.compile(r"</?(?:think|thinking|thought)>", re.IGNORECASE)
_ANSWER_START = re.compile(r"<answer>", re.IGNORECASE)
_ANSWER_END = "</answer>"
_FENCE = re.compile(r"```(?:json)?[ \t]*\n?", re.IGNORECASE)
_AROUND_PLACES = re.compile(r"""(?:"\w+"\s*:|[\[\]{},.:;\s])*+""")
_LABEL_TAG = re.compile(r"</?(?:ref|obj)>|<\|object_ref_(?:start|end)\|>", re.IGNORECASE)
_LABEL = re.compile(r"(?:<ref>|<obj>|<\|object_ref_start\|>)([^<]*+)<(?:/|\|object_ref_end)", re.IGNORECASE)


class ReadReply(NamedTuple):
    """A reply: its reasoning with the places it names, and its answer."""

    reasoning: Trace
    answer: str


def read_question(text: str) -> str:
    """Return a question without tags around labels. Raises Refused: it names a place by numbers."""
    question = _LABEL_TAG.sub("", text).strip()
    if (number := _UNREAD.search(question)) is not None:
        raise Refused(
            Reason.BOX_NOTATION,
            f"the question names a place by numbers or control tokens, {number[0]!r:.60}; such questions are not read",
        )
    return question


def read_reply(text: str, image: Image, spec: FrameSpec, question: str = "") -> ReadReply:
    """Split a reply into reasoning and answer.

    Args:
        question: as it is written; a label in its tags names a place that has no label of its own.

    Raises:
        Refused: it has no answer, a box is none, or a place is in a notation that is not read.
    """
    thought, rest = split_thought(text)
    thinking = read_trace(thought, image, spec)
    before, places = _answer_block(rest)
    answer: str | None = None
    if not _names_places(places, image, spec):
        before, answer, *_ = tags.read_reply(rest, marked=True)
        places = answer or ""
        if answer is not None and _names_places(answer, image, spec):
            answer = None
        elif answer is None:
            before, places = "", before
    reasoning = _joined(thinking, read_trace(before, image, spec))
    if answer is not None:
        return ReadReply(reasoning, _checked(answer))
    replied = read_trace(places, image, spec)
    if _is_only_places(places, replied):
        labels = _LABEL.findall(question)
        replied = _with_labels(replied, labels[0] if len(labels) == 1 else NEUTRAL)
        return ReadReply(_joined(reasoning, replied), _grounding_answer(replied.boxes, image))
    answer = _checked(" ".join(replied.text.split()))
    if _FENCE.sub("", answer).strip() in ("", "[]"):
        raise Refused(Reason.NO_ANSWER, f"no answer is stated in {text[-80:]!r}")
    return ReadReply(_joined(reasoning, replied) if replied.boxes else reasoning, answer)


def _answer_block(text: str) -> tuple[str, str]:
    """Return the text before the last <answer>, and the lines in it; "" where it is not the end of the text."""
    starts = [found.span() for found in _ANSWER_START.finditer(text)]
    if not starts or not text.rstrip().lower().endswith(_ANSWER_END):
        return text, ""
    start, end = starts[-1]
    return text[:start], text.rstrip()[end : -len(_ANSWER_END)]


def split_thought(text: str) -> tuple[str, str]:
    """Return the thinking of a reply, without its tags, and the rest. Raises Refused: the reply ends within it."""
    found = _THOUGHT.match(text)
    thought, rest = (found[1], text[found.end() :]) if found else ("", text)
    if _THINK_TAG.search(rest):
        raise Refused(Reason.NO_ANSWER, f"the reply ends within its thinking: {text[-80:]!r}")
    return _THINK_TAG.sub("", thought).strip(), rest


def read_trace(text: str, image: Image, spec: FrameSpec) -> Trace:
    """Return a text with the places that it names.

    Raises:
        Refused: a box in it is none, or a place is in a notation that is not read.
    """
    if _ONLY_PLAIN_BOXES.fullmatch(bare := _FENCE.sub("", text)):
        text = "".join(f"<box>{box}</box>" for box in _PLAIN_BOX.findall(bare))
    frame = spec.on(image.width, image.height)
    parsed = tags.parse(text, frame)
    if parsed.faults:
        fault = parsed.faults[0]
        raise Refused(
            BOX_REASONS[fault.kind],
            f"{fault.text[:80]!r} ({fault.kind.replace('_', ' ')}): a label is followed by its box, [x1, y1, x2, y2] "
            f"with x1 < x2 and y1 < y2; the frame {frame.name} runs over {frame.range} on an image of "
            f"{image.width} x {image.height} pixels",
        )
    for box in parsed.boxes:
        check_pixels(box)
    if parsed.boxes and any(found[0].rpartition(":")[2].strip(" -0.") for found in _ROTATED.finditer(text)):
        raise Refused(Reason.BOX_NOTATION, "a box is rotated; replace it by the upright box around it")
    parts = parsed.trace.parts
    if parsed.boxes:
        cleaned = (_FENCE.sub("", part) if isinstance(part, str) else part for part in parts)
        parts = tuple(part for part in cleaned if part != "")
    for part in parts:
        _checked(part if isinstance(part, str) else part.label)
    return Trace(parts)


def _names_places(text: str, image: Image, spec: FrameSpec) -> bool:
    bare = _FENCE.sub("", text)
    return bool(_ONLY_PLAIN_BOXES.fullmatch(bare) or tags.parse(text, spec.on(image.width, image.height)).boxes)


def _is_only_places(text: str, replied: Trace) -> bool:
    """Return True if a reply names places and no words but the labels of JSON objects."""
    prose = "".join(part for part in replied.parts if isinstance(part, str))
    return bool(replied.boxes and not _LABEL_TAG.search(text) and _AROUND_PLACES.fullmatch(prose))


def _with_labels(trace: Trace, label: str) -> Trace:
    return Trace(tuple(Mention(mention.label.strip() or label, mention.boxes) for mention in trace.mentions))


def _grounding_answer(boxes: Sequence[Box], image: Image) -> str:
    return place(boxes[0], image.width, image.height) if len(boxes) == 1 else str(len(boxes))


def _joined(first: Trace, second: Trace) -> Trace:
    return Trace((*first.parts, *(("\n",) if first.parts and second.parts else ()), *second.parts))


def _checked(text: str) -> str:
    """Return a text. Raises Refused: it still holds places or markup."""
    if (place_ := _UNREAD.search(text)) is not None:
        raise Refused(
            Reason.BOX_NOTATION,
            f"{place_[0]!r:.60} looks like a place in a notation that is not read; write <box>[x1, y1, x2, y2]</box> "
            "in the declared --frame, or take it out of the text",
        )
    if (markup := _LEFT_MARKUP.search(text)) is not None:
        raise Refused(
            Reason.WRONG_SHAPE,
            f"{markup[0]!r} is left in the reply; read are <think>…</think> before the answer and one "
            "<answer>…</answer>, and LLaVA-CoT's stages by --source llava-cot",
        )
    return text
