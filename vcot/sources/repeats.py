"""Questions that were asked before: the same, or nearly the same, about the same picture.

A question is what is asked together with its choices and its context: "Which of these?" with other choices is
another one. Case, punctuation and blanks do not count. Nearly the same: by the pieces of four letters that two
questions share (MinHash of datasketch finds candidates, the pieces themselves decide), and only with the same numbers
in both, because "in 2010?" and "in 2011?" share nearly all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence

from vcot.records import Sample
from vcot.sources.labels import plain

_PIECE = 4
_PERMUTATIONS = 128
_BANDS = 32, 4
"""How datasketch looks for candidates: of questions that share six of ten pieces it finds 98.8 %, of nine of ten all.

Given, because it takes two seconds to compute for a threshold, and every picture has an index of its own.
"""


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
    """16 bytes for a question about a picture, as `asked` writes it."""
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
