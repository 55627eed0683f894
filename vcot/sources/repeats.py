"""Questions that were asked before: the same, or nearly the same, about the same picture.

A question is what is asked together with its choices and its context: "Which of these?" with other choices is
another one. Case, punctuation and blanks do not count. Nearly the same: by the pieces of four letters that two
questions share (MinHash of datasketch finds candidates, the pieces themselves decide), and only with the same numbers
in both, because "in 2010?" and "in 2011?" share nearly all.

A question without a picture is told apart, and put on its side of the split, by what it asks alone; of those only
the same ones are found, not nearly the same.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vcot.records import Image, Sample
from vcot.sources.labels import plain

_PIECE = 4
_PERMUTATIONS = 128
_BANDS = 32, 4
"""How datasketch looks for candidates: of questions that share six of ten pieces it finds 98.8 %, of nine of ten all.

Given, because it takes two seconds to compute for a threshold, and every picture has an index of its own.
"""


@dataclass(frozen=True)
class Asked:
    """What a question without a picture is known by, in the place of a picture. `uri` is empty: it lies nowhere."""

    sha256: str
    uri: str = ""

    @classmethod
    def of(cls, question: str, context: str | None, choices: Sequence[str] | None) -> Asked:
        """The same for the same question: its choices in any order, case, punctuation and blanks aside."""
        said = asked(question, context, sorted(map(_told, choices)) if choices else choices)
        return cls(hashlib.sha256(f"without a picture\0{said}".encode(errors="replace")).hexdigest())


def about(sample: Sample) -> Image | Asked:
    """What decides on which side of the split a sample is."""
    return sample.image or Asked.of(sample.question, sample.context, sample.choices)


def question(sample: Sample) -> str:
    """What a sample asks, in a form in which equal questions are equal texts."""
    return asked(sample.question, sample.context, sample.choices)


def asked(question: str, context: str | None, choices: Sequence[str] | None) -> str:
    """The same of a question that is no sample's yet."""
    if context is None and choices is None:
        return _told(question)
    return "\n".join(map(_told, (question, context or "", *(choices or ()))))


def _told(text: str) -> str:
    """A text of signs alone stays as it is."""
    return plain(text) or text.strip()


def key(sha256: str, said: str) -> bytes:
    """16 bytes for a question about a picture (or an Asked) of this digest, as `asked` writes it."""
    return hashlib.blake2b(f"{sha256}\0{said}".encode(errors="replace"), digest_size=16).digest()


def nearly(questions: Iterable[tuple[str, str]], similarity: float) -> Iterator[tuple[str, str]]:
    """(name, question)s about one picture, in order → (name, name of an earlier one) of those that repeat it.

    similarity: shared pieces by all pieces, from which on two questions are one.
    """
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=_PERMUTATIONS, params=_BANDS)
    first: dict[str, tuple[int, frozenset[str], list[str]]] = {}
    for order, (name, asked) in enumerate(questions):
        pieces, numbers = _pieces(asked), re.findall(r"\d+", asked)
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
        sketch.update_batch([piece.encode(errors="replace") for piece in sorted(pieces)])
        like = [
            (first[other][0], other)
            for other in map(str, index.query(sketch))
            if numbers == first[other][2] and _shared(pieces, first[other][1]) >= similarity
        ]
        if like:
            yield name, min(like)[1]
        else:
            first[name] = (order, pieces, numbers)
            index.insert(name, sketch)


def _pieces(text: str) -> frozenset[str]:
    return frozenset(text[i : i + _PIECE] for i in range(max(1, len(text) - _PIECE + 1)))


def _shared(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)
