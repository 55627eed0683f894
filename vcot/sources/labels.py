"""A name for what a question's box shows, from the question alone.

Never from the answer: a label that holds the answer would let a model say it before it has looked. Where no plain
rule finds a noun phrase, the name is "region".
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NEUTRAL = "region"

_WORD = re.compile(r"\w+")
_SIGNS_TO_BLANKS = bytes(sign if _WORD.match(chr(sign)) else ord(" ") for sign in range(128)) + bytes(128)

_IS = r"(?:is|are|was|were|has|have|does|do|did|can|will|appears?|seems?)"
_NOUNS = r"(?P<thing>[a-z][a-z'-]*(?: [a-z][a-z'-]*){0,2}?)"
_PHRASE = r"(?P<thing>[a-z][a-z'-]*(?: [a-z][a-z'-]*){0,5}?)"
_PICTURE = r"(?:in|on) (?:the|this) (?:picture|image|photo|photograph|snapshot|scene)"
# What is the total amount in the invoice shown in the picture
_OF_TEXT = (re.compile(rf"what (?:is|are) the {_NOUNS} in the (?:invoice|receipt|form|document|letter)\b.*"),)
_OF_THINGS = tuple(
    re.compile(rule)
    for rule in (
        # Does the bird in the picture have …
        rf"(?:is|are|do|does|did|has|have|can) the {_NOUNS} {_PICTURE}\b.*",
        # What is the person in the green jacket doing
        rf"what (?:is|are) the {_PHRASE} (?:doing|looking at)",
        # What kind of furniture is to the right of …
        rf"(?:what|which) (?:kind|type|sort) of {_NOUNS} {_IS}\b.*",
        # What vegetable is above …, which animal eats …
        rf"(?:what|which) {_NOUNS} {_IS}\b.*",
    )
)
_WHO = re.compile(rf"who(?:'s)? (?:{_IS} |[a-z]+s ).*")
_NOT_NAMES = frozenset(
    "is are was were do does did has have can could would will a an the this that these those it they there what "  # noqa: SIM905
    "which who how of and or not to in on at for with else many much color colour kind type sort shape size pattern "
    "material activity action position percentage direction number".split()
)
"""What begins or ends with one of these names no thing that one sees, but grammar, or what kind of answer is wanted."""


def label_for(question: str, answers: Sequence[str], *, of_text: bool = False) -> str:
    """A noun phrase of the question for what its box shows, or "region".

    `of_text`: boxes of this dataset surround text, so "who" and "what company" ask for letters, not for things.
    """
    label = _thing(" ".join(question.casefold().split()).rstrip("?.! "), of_text)
    return NEUTRAL if label is None or gives_away(label, answers) else label


def _thing(words: str, of_text: bool) -> str | None:
    for rule in _OF_TEXT if of_text else _OF_THINGS:
        if found := rule.fullmatch(words):
            named = found["thing"].split()
            return None if {named[0], named[-1]} & _NOT_NAMES else " ".join(named)
    return "person" if not of_text and _WHO.fullmatch(words) else None


def gives_away(label: str, answers: Sequence[str]) -> bool:
    """Whether the label and an answer are the same, or one holds the other as words."""
    said = f" {label} "
    return any(f" {a} " in said or said in f" {a} " for a in map(plain, answers))


def plain(text: str) -> str:
    """Its words in lower case, with blanks between them and nothing else."""
    lower = text.casefold()
    if lower.isalnum():
        return lower
    if lower.isascii():  # the same in a third of the time, and every row is asked for its words
        return b" ".join(lower.encode().translate(_SIGNS_TO_BLANKS).split()).decode()
    return " ".join(_WORD.findall(lower))
