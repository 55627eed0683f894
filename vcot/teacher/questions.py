"""What a question asks for, where its wording says so plainly: a place, a number, or whether there is one.

Only whole questions of a known wording are understood; anything else is None and gets the general treatment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    WHERE = "where"
    COUNT = "count"  # "point at every …" is one of these: its answer is how many there are
    PRESENCE = "presence"


@dataclass(frozen=True)
class Asked:
    """`thing` is what the question names, in the singular; None where it is more than a noun phrase."""

    kind: Kind
    thing: str | None


_THING = r"(?P<thing>[^?.!,;:]+?)"
_PICTURE = r"(?:in|on) (?:the|this) (?:picture|image|photo|photograph|scene)"
_TAIL = rf"(?: (?:(?:are|is) )?(?:there|here|visible|shown|do you see|can you see|can be seen|{_PICTURE}))*"
_POINT = r"(?:point (?:at|to|out)|find|locate|show me|show|mark)"
_ARTICLE = r"(?:the|a|an|my|this|that)"

# The first that fits counts. True: the thing stands in the plural.
_WORDINGS: tuple[tuple[Kind, bool, str], ...] = (
    (Kind.COUNT, True, rf"how many (?:of the )?{_THING}{_TAIL}"),
    (Kind.COUNT, True, rf"count (?:all |all of )?(?:the )?{_THING}{_TAIL}"),
    (Kind.COUNT, True, rf"{_POINT} all (?:of )?(?:the )?{_THING}{_TAIL}"),
    (Kind.COUNT, False, rf"{_POINT} (?:every|each) {_THING}{_TAIL}"),
    (Kind.COUNT, True, rf"where are (?:all )?(?:the )?{_THING}{_TAIL}"),
    (Kind.WHERE, False, rf"where(?: is|'s| do you see| can you see) (?:{_ARTICLE} )?{_THING}{_TAIL}"),
    (Kind.WHERE, False, rf"{_POINT} {_ARTICLE} {_THING}{_TAIL}"),
    (Kind.PRESENCE, True, rf"are there (?:any |some )?{_THING}{_TAIL}"),
    (Kind.PRESENCE, False, rf"is there (?:a |an |any |some )?{_THING}{_TAIL}"),
    (Kind.PRESENCE, False, rf"(?:do|can) you see (?:a|an|any|some|the) {_THING}{_TAIL}"),
    (Kind.PRESENCE, False, rf"is (?:a|an|any) {_THING} (?:there|visible|shown|{_PICTURE})"),
)
_COMPILED = tuple((kind, plural, re.compile(wording)) for kind, plural, wording in _WORDINGS)

_NOT_A_NOUN_PHRASE = re.compile(r"\b(?:is|are|was|were|do|does|has|have|can|that|which|who|and|or|not)\b")
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "wolves": "wolf",
    "buses": "bus", "cookies": "cookie", "scissors": "scissors", "trousers": "trousers", "shoes": "shoe",
    "movies": "movie", "broccolis": "broccoli", "taxis": "taxi",
}  # fmt: skip


def read(question: str) -> Asked | None:
    """What the question asks for, or None where its wording is not one of those known."""
    words = " ".join(question.casefold().split()).rstrip("?.! ")
    for kind, plural, wording in _COMPILED:
        if found := wording.fullmatch(words):
            return Asked(kind, _thing(_as_written(found["thing"], question), plural))
    return None


def _as_written(found: str, question: str) -> str:
    """The words with the capitals that the question gave them."""
    spaced = " ".join(question.split())
    start = spaced.casefold().find(found)
    return spaced[start : start + len(found)] if start >= 0 else found


def _thing(words: str, plural: bool) -> str | None:
    if len(words.split()) > 5 or _NOT_A_NOUN_PHRASE.search(words.casefold()):
        return None
    return singular(words) if plural else words


def singular(words: str) -> str:
    """The last word in the singular: "red discs" → "red disc". English only, and only its common forms."""
    *before, last = words.split(" ")
    return " ".join([*before, _singular(last)])


def _singular(word: str) -> str:
    lower = word.casefold()
    if lower in _IRREGULAR:
        return _IRREGULAR[lower]
    if lower.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if lower.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    if lower.endswith("s") and not lower.endswith(("ss", "us", "is")) and len(word) > 2:
        return word[:-1]
    return word
