"""A grounded trace made by code: what is seen, where it is, hence the answer.

The sentences are short and few, because a model of a few million parameters must be able to learn them. The
first phrasing of each family is the one that the rehearsal base has met; the others say the same in other
words. Which of them a sample gets depends on its id and the seed alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vcot.answers import normalise, number, singular
from vcot.distill import DistilledReasoning, Outcome, needs_teacher, refuse
from vcot.distill.crops import NEUTRAL, objects_of
from vcot.grounding import Box, Mention, Trace, place
from vcot.records import Reason, Rejection, Sample
from vcot.stage import stop

NAME = "template/1"  # goes into `origin.teacher`; a new number where the same evidence would give other words

PHRASINGS = 3

_WHERE = ("The {it} is at the {place}.", "I see the {it} at the {place}.", "Here is the {it}. It is at the {place}.")
_COUNT = (
    "I see {them}. That makes {n}.",
    "Here I see {them}. I count {n}.",
    "I look for them and see {them}: {n} in all.",
)
_PRESENCE = ("I see {them}.", "Here I see {them}.", "I look for it and see {them}.")
_ABSENT = ("I see no {thing}.", "There is no {thing}.", "I look for it and see no {thing}.")
_NONE = (" That makes 0.", " I count 0.", " That is 0 in all.")
_NOTHING = ("I see nothing of the kind.", "There is nothing of the kind.", "I look for it and see nothing of the kind.")
_GENERAL = ("Look at {them}. That shows the answer.", "I see {them}. That is what matters.", "What matters is {them}.")


@dataclass(frozen=True)
class TemplateTeacher:
    """Args: how many phrasings are in use, how many of them each Sample gets, and the seed of the choice."""

    phrasings: int = PHRASINGS
    alternatives: int = 1
    seed: int = 0
    name: str = NAME

    def teach(self, samples: Iterable[Sample]) -> Generator[tuple[Sample, Outcome], None, None]:
        for sample in samples:
            stop.raise_if_requested()
            yield sample, self.teach_row(sample) if needs_teacher(sample) else None

    def counts(self) -> Mapping[str, int]:
        return {}

    def teach_row(self, sample: Sample) -> DistilledReasoning | Rejection:
        if sample.evidence is None:
            return refuse(sample, Reason.NO_REASONING, "nobody annotated where the evidence is")

        def rank(phrasing: int) -> bytes:
            return hashlib.sha256(f"{self.seed}\0{phrasing}\0{sample.id}".encode()).digest()

        write = _absence if not sample.true_boxes else _presence
        chosen = sorted(range(self.phrasings), key=rank)[: self.alternatives]
        traces = [trace for phrasing in chosen if (trace := write(sample, phrasing)) is not None]
        if not traces:
            why = f"annotated as absent, but the answer to {sample.question!r} is {sample.answers[0]!r}"
            return refuse(sample, Reason.NO_REASONING, why)
        return DistilledReasoning(tuple(traces))


# --- there is something to see


def _presence(sample: Sample, phrasing: int) -> Trace:
    """The sentence of the question's own kind where evidence and answer agree with it, else a general one.

    They cannot agree where a label is missing or had to be hidden: who knows whether such a region is one of the
    things that were asked for.
    """
    asked, answer, mentions = read_question(sample.question), normalise(sample.answers[0]), _mentions(sample)
    boxes = [box for mention in mentions for box in mention.boxes]
    if asked is not None and all(mention.label != NEUTRAL for mention in mentions):
        if asked.kind is Kind.PRESENCE and answer == "yes":
            return _fill(_PRESENCE[phrasing], them=_listed(mentions))
        if asked.kind is not Kind.PRESENCE and number(answer) == len(boxes):
            return _fill(_COUNT[phrasing], them=_listed(mentions), n=[str(len(boxes))])
        if asked.kind is not Kind.PRESENCE and len(boxes) == 1 and answer == _place(sample, boxes):
            return _fill(_WHERE[phrasing], it=[mentions[0]], place=[_place(sample, boxes)])
    return _fill(_GENERAL[phrasing], them=_listed([_placed(sample, mention) for mention in mentions]))


def _mentions(sample: Sample) -> list[Mention]:
    """One mention per label, in the order of the evidence; its boxes from left to right."""
    boxes: dict[str, list[Box]] = {}
    for seen in objects_of(sample):
        boxes.setdefault(seen.label, []).append(seen.box)
    return [Mention(label, tuple(sorted(found))) for label, found in boxes.items()]


def _place(sample: Sample, boxes: Sequence[Box]) -> str:
    return place(boxes[0], sample.shown.width, sample.shown.height)


_Parts = list[str | Mention]


def _placed(sample: Sample, mention: Mention) -> _Parts:
    """ "the <dog> at the top left"; several boxes speak for themselves."""
    where = f" at the {_place(sample, mention.boxes)}" if len(mention.boxes) == 1 else ""
    return ["the ", mention, where]


def _listed(items: Sequence[Mention | _Parts]) -> _Parts:
    """ "a", "a and b", "a, b and c"."""
    listed: _Parts = []
    for index, item in enumerate(items):
        if index:
            listed.append(" and " if index == len(items) - 1 else ", ")
        listed += [item] if isinstance(item, Mention) else item
    return listed


def _fill(sentence: str, **parts: Sequence[str | Mention]) -> Trace:
    """The sentence with its {names} replaced by parts."""
    filled: _Parts = []
    for piece in sentence.replace("{", "}").split("}"):
        filled += parts.get(piece, [piece])
    return Trace(tuple(filled))


# --- there is nothing to see


_PLACES = {"top", "bottom", "left", "right", "centre", "center"}


def _absence(sample: Sample, phrasing: int) -> Trace | None:
    """None where the answer says that there is something after all."""
    asked, answer = read_question(sample.question), normalise(sample.answers[0])
    counted, is_place = number(answer), {*answer.split()} <= _PLACES and answer != ""
    if asked is not None and (counted or answer == "yes" or is_place):
        return None
    if asked is None or asked.thing is None:
        return Trace((_NOTHING[phrasing],))
    zero = _NONE[phrasing] if asked.kind is Kind.COUNT and counted == 0 else ""
    return Trace((_ABSENT[phrasing].format(thing=asked.thing) + zero,))


# --- what a question asks for


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
_IMAGE = r"(?:in|on) (?:the|this) (?:picture|image|photo|photograph|scene)"
_TAIL = rf"(?: (?:(?:are|is) )?(?:there|here|visible|shown|do you see|can you see|can be seen|{_IMAGE}))*"
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
    (Kind.PRESENCE, False, rf"is (?:a|an|any) {_THING} (?:there|visible|shown|{_IMAGE})"),
)
_COMPILED = tuple((kind, plural, re.compile(wording)) for kind, plural, wording in _WORDINGS)

_NOT_A_NOUN_PHRASE = re.compile(r"\b(?:is|are|was|were|do|does|has|have|can|that|which|who|and|or|not)\b")


def read_question(question: str) -> Asked | None:
    """What a question asks for, where its wording says so plainly; None where it is not one of those known."""
    spaced = " ".join(question.split())
    words = spaced.casefold().rstrip("?.! ")
    for kind, plural, wording in _COMPILED:
        if found := wording.fullmatch(words):
            named = found["thing"]
            if len(named.split()) > 5 or _NOT_A_NOUN_PHRASE.search(named):
                return Asked(kind, None)
            start = spaced.casefold().find(named)  # with the capitals that the question gave it
            thing = spaced[start : start + len(named)] if start >= 0 else named
            return Asked(kind, singular(thing) if plural else thing)
    return None
