"""What a teacher may point at, and in which words it is told: annotated objects, numbered, under names that give
nothing away; the question; and where in a text that somebody wrote a thing is named.

What a teacher is told in general stands in vcot/distill/prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vcot.answers import letter
from vcot.grounding import Box, Frame, Mention, Trace, place
from vcot.records import Image, Sample

NEUTRAL = "region"
"""The name of an object whose own label is missing, or would tell the answer."""

NOTHING_THERE = """\
None of it: somebody checked that what the question asks for is not in the image. So use no brackets; say what \
was looked for and that it is not there."""


@dataclass(frozen=True)
class Object:
    """`number` counts annotated objects from 1 in the order of the evidence."""

    number: int
    label: str
    box: Box


def objects_of(sample: Sample) -> tuple[Object, ...]:
    """The objects of the evidence, a number for each box; none where nothing is annotated."""
    found = [(spoken(m.label, sample), box) for m in sample.evidence or () for box in m.boxes]
    return tuple(Object(n, label, box) for n, (label, box) in enumerate(found, 1))


def spoken(label: str, sample: Sample) -> str:
    """The label as a sentence can hold it: on one line, without an article, and never the answer.

    A label that is an accepted answer, or holds one and is not the question's own word for the thing ("red
    disc" where the answer is "red"), would let a model name the answer before it looked. It becomes "region".
    """
    words = re.sub(r"^(?:the|an?) (?=\S)", "", " ".join(label.split()), flags=re.IGNORECASE)
    return NEUTRAL if not words or gives_away(words, sample) else words


# ------------------------------------------------------------------------------------ does a text tell the answer?


def gives_away(label: str, sample: Sample) -> bool:
    said, asked = _words(label), _words(sample.question)
    answers = [_words(answer) for answer in accepted(sample)]
    return any(one and (one == said or (holds(said, one) and not holds(asked, said))) for one in answers)


def accepted(sample: Sample) -> list[str]:
    """The accepted answers, and the choices that letters among them stand for."""
    choices = sample.choices or ()
    letters = {letter(answer, choices) for answer in sample.answers}
    return [*sample.answers, *(c for n, c in enumerate(choices) if chr(ord("A") + n) in letters)]


_OPENING = re.compile(r"\s*(\w+)\s*(?:[.,:;!–—]|$)")
"""One word that stands by itself at the beginning."""


def tells_answer(prose: str, sample: Sample) -> bool:
    """Whether prose names an accepted answer that the question does not hold.

    Answers of one short word (yes, no, 2, up) stand in innocent sentences too: they are told by "the answer is 2", and
    by "Yes, …".
    """
    said, asked = _words(prose), _words(sample.question)
    opening = _OPENING.match(prose)
    alone = _words(opening[1]) if opening else []

    def told(answer: list[str]) -> bool:
        if len("".join(answer)) > 3:
            return holds(said, answer) and not holds(asked, answer)
        return bool(answer) and (
            answer == alone or holds(said, ["answer", "is", *answer]) or holds(said, ["answer", *answer])
        )

    return any(told(_words(answer)) for answer in accepted(sample))


def _words(text: str) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words


def holds(words: Sequence[str], part: Sequence[str]) -> bool:
    """Whether these words stand among the others side by side."""
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))


# ------------------------------------------------------------------------------------ the words beside the image


def words_for(sample: Sample, objects: Sequence[Object], adding: Frame | None = None) -> str:
    """The text beside the image. `adding`: the frame of objects that the teacher may add."""
    lines = [*asked(sample), f"Right answer: {sample.answers[0]}"]
    if len(sample.answers) > 1:
        lines.append("Also accepted: " + "; ".join(sample.answers[1:]))
    lines += listed(sample, objects)
    if adding is not None:
        lines.append(f"You may add objects, from [{len(objects) + 1}] on. {in_frame(adding)}")
    return "\n".join(lines)


def asked(sample: Sample) -> list[str]:
    """The question as somebody sees it who does not know its answer."""
    lines = [f"Question: {sample.question}", *([f"Context: {sample.context}"] if sample.context else [])]
    if sample.choices:
        lines.append("Choices: " + "; ".join(f"{chr(ord('A') + n)}. {one}" for n, one in enumerate(sample.choices)))
    return lines


def listed(sample: Sample, objects: Sequence[Object]) -> list[str]:
    nothing = NOTHING_THERE if sample.evidence == () else "None is known."
    return ["Objects:", *([line(seen, sample.shown) for seen in objects] or [nothing])]


def in_frame(frame: Frame) -> str:
    """In which numbers boxes are written."""
    return (
        f"Boxes are [x1, y1, x2, y2] in {frame.name.replace('_', ' ')} of the image (left, top, right, bottom); the "
        f"numbers run over {frame.range}, x to the right, y down."
    )


def line(seen: Object, image: Image) -> str:
    """`[1] red disc, top left, across 10-24 %, down 3-18 %`"""
    across, down = reach(seen.box, image)
    where = place(seen.box, image.width, image.height)
    return f"[{seen.number}] {seen.label}, {where}, across {across}, down {down}"


def reach(box: Box, image: Image) -> tuple[str, str]:
    """From where to where it goes, across and down: `10-24 %`, in whole per cent of the image."""

    def percent(low: float, high: float, whole: int) -> str:
        return f"{round(100 * low / whole)}-{round(100 * high / whole)} %"

    return percent(box.x1, box.x2, image.width), percent(box.y1, box.y2, image.height)


# ------------------------------------------------------------------------------------ places in a text as it stands

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
    """The text, letter by letter, with a mention at each span. Several boxes of one span are one mention; of spans that
    overlap, the one that begins first counts, then the longer one."""
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
