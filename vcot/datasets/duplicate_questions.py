"""Questions that were asked before: the same, or nearly the same, about the same image, with the same answers and
boxes. The same words about another of two people are another question.

A question is what is asked together with its choices and its context: "Which of these?" with other choices is
another one. Case, punctuation and blanks do not count. Where the wording is drawn (Source.asks), what is asked about
counts in its place, so that one dataset repeats the same rows whatever the seed. Nearly the same: by the pieces of
four letters that two questions share (MinHash of datasketch finds candidates, the pieces themselves decide), and only
with the same numbers in both, because "in 2010?" and "in 2011?" share nearly all.

A question without an image is told apart, and put on its side of the split, by what it asks alone; of those only
the same ones are found, not nearly the same.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vcot.datasets.quality import plain
from vcot.records import Image, Sample

_PIECE = 4
_PERMUTATIONS = 128
_BANDS = 32, 4
"""How datasketch looks for candidates: of questions that share six of ten pieces it finds 98.8 %, of nine of ten all.

Given, because it takes two seconds to compute for a threshold, and every image has an index of its own.
"""
_SAME_PLACE = 2.0
"""Pixels by which edges of one box may differ: VisCoT has rows in several forms, and each rounds boxes in its way."""


class Question(NamedTuple):
    """What is asked about an image. `asked`: as `asked` below writes it. `kind`: of questions whose wording is drawn;
    those of two kinds are never nearly the same. `answers`: all that are accepted.
    """

    asked: str
    answers: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Asked:
    """What a question without an image is known by, in the place of an image. `uri` is empty: it lies nowhere."""

    sha256: str
    uri: str = ""

    @classmethod
    def of(cls, question: str, context: str | None, choices: Sequence[str] | None) -> Asked:
        """The same for the same question: its choices in any order, case, punctuation and blanks aside."""
        said = asked(question, context, sorted(map(_normalised, choices)) if choices else choices)
        return cls(hashlib.sha256(f"without a picture\0{said}".encode(errors="replace")).hexdigest())


def about(sample: Sample) -> Image | Asked:
    """What decides on which side of the split a sample is."""
    return sample.image or Asked.of(sample.question, sample.context, sample.choices)


def others(sample: Sample) -> list[Image]:
    """Its further images. A crop of the first shows nothing that the first does not."""
    known = {image.sha256 for image in sample.images}
    return [image for image in sample.images[1:] if image.cut_from not in known]


def question(sample: Sample) -> str:
    """What a sample asks, in a form in which equal questions are equal texts: with what was said before, and of
    several images which the others are."""
    said = asked(sample.question, sample.context, sample.choices)
    before = (f"{turn.role} {turn.images}: {_normalised(turn.said.text)}" for turn in sample.turns)
    return "\n".join((said, *before, *(image.sha256 for image in others(sample))))


def asked(question: str, context: str | None, choices: Sequence[str] | None) -> str:
    """The same of a question that is no sample's yet."""
    if context is None and choices is None:
        return _normalised(question)
    return "\n".join(map(_normalised, (question, context or "", *(choices or ()))))


def _normalised(text: str) -> str:
    """A text of signs alone stays as it is."""
    return plain(text) or text.strip()


def key(sha256: str, question: Question, *, near: bool = False) -> bytes:
    """16 bytes for a question about an image (or an Asked) of this digest; near: whatever its words are."""
    answers = sorted(set(map(_normalised, question.answers)))
    said = [sha256, question.kind, *answers, *(() if near else (question.asked,))]
    return hashlib.blake2b("\0".join(said).encode(errors="replace"), digest_size=16).digest()


def places(sample: Sample) -> bytes | None:
    """The left edges of all boxes of the evidence, smallest first, then the top, right and lower ones, as 32-bit
    floats; None where nobody said where it is.
    """
    if sample.evidence is None:
        return None
    edges = zip(*(box.as_list() for mention in sample.evidence for box in mention.boxes), strict=True)
    return array("f", (value for side in edges for value in sorted(side))).tobytes()


def of_one_place(rows: Iterable[tuple[str, str, bytes | None]]) -> list[list[tuple[str, str]]]:
    """(name, question, its `places`)s in order → (name, question)s, those together whose boxes are the first one's."""
    found: list[tuple[array[float] | None, list[tuple[str, str]]]] = []
    for name, said, packed in rows:
        edges = None if packed is None else array("f", packed)
        for first, together in found:
            if _same_places(edges, first):
                together.append((name, said))
                break
        else:
            found.append((edges, [(name, said)]))
    return [together for _, together in found]


def _same_places(one: array[float] | None, other: array[float] | None) -> bool:
    if one is None or other is None:
        return one is other
    return len(one) == len(other) and all(abs(a - b) <= _SAME_PLACE for a, b in zip(one, other, strict=True))


def nearly(questions: Iterable[tuple[str, str]], similarity: float) -> Iterator[tuple[str, str]]:
    """(name, question)s about one image, in order → (name, name of an earlier one) of those that repeat it.

    similarity: shared pieces by all pieces, from which on two questions are one.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=_PERMUTATIONS, params=_BANDS)
    first: dict[str, tuple[int, frozenset[str], list[str]]] = {}
    for order, (name, asked) in enumerate(questions):
        pieces = frozenset(asked[i : i + _PIECE] for i in range(max(1, len(asked) - _PIECE + 1)))
        numbers = re.findall(r"\d+", asked)
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch([piece.encode(errors="replace") for piece in sorted(pieces)])
        like = [
            (first[other][0], other)
            for other in map(str, index.query(sketch))
            if numbers == first[other][2]
            and len(pieces & first[other][1]) / len(pieces | first[other][1]) >= similarity
        ]
        if like:
            yield name, min(like)[1]
        else:
            first[name] = (order, pieces, numbers)
            index.insert(name, sketch)
