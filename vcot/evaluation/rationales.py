"""What has to be scored so that an answer can be judged over rationales: P(answer | question, rationale of a draw), of
every answer that was drawn after every rationale that was (`voting.marginal`).

Of the answer's tokens alone, and of the end of the reply: without it "1" would be likely wherever "17" is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from vcot.evaluation.config import Way
from vcot.evaluation.voting import Draw, clusters
from vcot.grounding.tags import read_reply

UNSCORED: Mapping[Way, str] = MappingProxyType(
    {
        "direct": "the answer is given without a rationale, so there is nothing to average over",
        "look-again": "the answer is given in a second turn, to the image of what its own box holds; under another "
        "draw's box it would be the answer to another question",
    }
)
"""Ways whose answers are not scored, and why."""

_MARK = re.compile(r"answer[ \t*_]*[:：][*_]*", re.IGNORECASE)


class Rationales(NamedTuple):
    """Of one question.

    prefixes: of each draw its reply up to and with the mark of its answer; None where it comes to none.
    answers: what is said after that, of each cluster the answer of its first draw.
    """

    prefixes: tuple[str | None, ...]
    answers: tuple[str, ...]

    @property
    def distinct(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(prefix for prefix in self.prefixes if prefix is not None))


def rationales(texts: Sequence[str], choices: Sequence[str] | None) -> Rationales:
    """Of the draws for one question. Where an answer is marked in another way than by "Answer:" (\\boxed, a tag), its
    rationale goes on with that line, so that any answer can follow."""
    draws = [Draw(read_reply(text).answer, right=False, tokens=0) for text in texts]
    answers = tuple(f" {draws[group[0]].answer}" for group in clusters(draws, choices))
    return Rationales(tuple(_prefix(text) if answers else None for text in texts), answers)


def _prefix(text: str) -> str | None:
    reply = read_reply(text)
    if reply.answer is None:
        return None
    mark = _MARK.search(text, len(reply.reasoning), len(text) - len(reply.after))
    if mark is None:
        return f"{reply.reasoning}\nAnswer:" if reply.reasoning else "Answer:"
    return text[: mark.end()]
