"""What a teacher may point at: the annotated objects of a Sample, numbered, under names that give nothing away."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vcot.answers import letter
from vcot.grounding import Box
from vcot.grounding.places import place
from vcot.records import Sample

NEUTRAL = "region"
"""The name of an object whose own label is missing, or would tell the answer."""


@dataclass(frozen=True)
class Object:
    """One annotated object. `number` counts from 1 in the order of the evidence; `place` is one of nine words."""

    number: int
    label: str
    box: Box
    place: str


def objects_of(sample: Sample) -> tuple[Object, ...]:
    """The objects of the evidence, a number for each box; none where nothing is annotated."""
    found = [(spoken(m.label, sample), box) for m in sample.evidence or () for box in m.boxes]
    return tuple(
        Object(n, label, box, place(box, sample.shown.width, sample.shown.height))
        for n, (label, box) in enumerate(found, 1)
    )


def spoken(label: str, sample: Sample) -> str:
    """The label as a sentence can hold it: on one line, without an article, and never the answer.

    A label that is an accepted answer, or holds one and is not the question's own word for the thing ("red
    disc" where the answer is "red"), would let a model name the answer before it looked. It becomes "region".
    """
    words = re.sub(r"^(?:the|an?) (?=\S)", "", " ".join(label.split()), flags=re.IGNORECASE)
    return NEUTRAL if not words or gives_away(words, sample) else words


def gives_away(label: str, sample: Sample) -> bool:
    said, asked = _words(label), _words(sample.question)
    return any(
        answer == said or (_holds(said, answer) and not _holds(asked, said))
        for answer in map(_words, accepted(sample))
        if answer
    )


def accepted(sample: Sample) -> list[str]:
    """The accepted answers, and the choices that letters among them stand for."""
    choices = sample.choices or ()
    letters = {letter(answer, choices) for answer in sample.answers}
    return [*sample.answers, *(c for n, c in enumerate(choices) if chr(ord("A") + n) in letters)]


def choices_of(sample: Sample) -> list[str]:
    """The choices as a line, "Choices: A. disc; B. lever"; no line where there are none."""
    if not sample.choices:
        return []
    letters = (chr(ord("A") + n) for n in range(len(sample.choices)))
    return ["Choices: " + "; ".join(map(". ".join, zip(letters, sample.choices, strict=True)))]


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
            return _holds(said, answer) and not _holds(asked, answer)
        return bool(answer) and (
            answer == alone or _holds(said, ["answer", "is", *answer]) or _holds(said, ["answer", *answer])
        )

    return any(told(_words(answer)) for answer in accepted(sample))


_OPENING = re.compile(r"\s*(\w+)\s*(?:[.,:;!–—]|$)")
"""One word that stands by itself at the beginning."""


def _words(text: str) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    return words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words


def _holds(words: list[str], part: list[str]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))
