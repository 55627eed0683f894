"""Which Samples are good enough to learn from: a table of checks of one Sample, and the rules for labels of boxes.

By default no box is refused for its size or shape: people drew them, and small or long ones are what documents are
about (docs/datasets.md has numbers). The limits are for rows whose boxes a model proposed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Literal
from unicodedata import category

from vcot.answers import letter, normalise
from vcot.datasets.inputs import Refused
from vcot.grounding import Mention, Trace
from vcot.records import Reason, Sample
from vcot.settings import CommaSeparated, Options, flag, setting

_SHARE = re.compile(r"([^=,]+=)?(0?\.\d+|[01])")
LONGEST_TEXT = 100_000
"""Characters of one text of a row: more than any model reads at once, and less than a line of 50 MB."""


class QualityOptions(Options):
    """What is asked of a Sample, and the checks that follow from it."""

    min_box_area: CommaSeparated = setting(
        (), "boxes must cover this share of their image: 0.0005, or 0.0005,docvqa=0.0001 by dataset; default: any, "
        "because what people drew is not too small", unit="0..1",
    )  # fmt: skip
    max_box_area: CommaSeparated = setting(
        (), "boxes must not cover more: 0.9, or 0.9,vsr=1 by dataset; default: any", unit="0..1"
    )
    max_box_aspect: float | None = setting(None, "longer by shorter side of a box, at most; default: any", ge=1)
    max_boxes: int | None = setting(None, "places that a row points at, at most; default: any", unit="boxes", ge=1)
    answer_in_label: Literal["relabel", "refuse", "keep"] = setting(
        "relabel", "a place whose label holds the answer tells it before anybody has looked: relabel calls it region"
    )
    licences: CommaSeparated = setting(
        (), "keep only rows under these licences, comma-separated, * and ? stand for anything: Apache-2.0*,CC-BY-*"
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        for name in ("min_box_area", "max_box_area"):
            for entry in getattr(self, name):
                if not _SHARE.fullmatch(entry):
                    yield (
                        f"{flag(name)}: {entry!r} is no share of an image; write 0.0005, or 0.0005,docvqa=0.0001 by "
                        "dataset"
                    )

    @cached_property
    def checks(self) -> Sequence[tuple[Reason, Callable[[Sample], str | None]]]:
        """Reason → what is wrong with a Sample, or None, in order. Mostly there are none; every row goes through."""
        smallest, largest = _by_dataset(self.min_box_area), _by_dataset(self.max_box_area)
        table: tuple[tuple[Reason, object, Callable[[Sample], str | None]], ...] = (
            (Reason.LICENCE_NOT_ALLOWED, self.licences, self._licence),
            (Reason.TOO_MANY_BOXES, self.max_boxes, self._count),
            (Reason.BOX_TOO_SMALL, smallest, partial(_area, limits=smallest, of="--min-box-area", beyond=-1)),
            (Reason.BOX_TOO_LARGE, largest, partial(_area, limits=largest, of="--max-box-area", beyond=1)),
            (Reason.BOX_TOO_THIN, self.max_box_aspect, self._thin),
            (Reason.ANSWER_IN_LABEL, self.answer_in_label == "refuse", _leak),
        )
        return [(reason, check) for reason, wanted, check in table if wanted]

    def _licence(self, sample: Sample) -> str | None:
        licence = sample.origin.licence
        if any(fnmatchcase(licence.casefold(), pattern.casefold()) for pattern in self.licences):
            return None
        return f"the licence is {licence!r:.80}; --licences allows {', '.join(self.licences)}"

    def _count(self, sample: Sample) -> str | None:
        assert self.max_boxes is not None
        boxes = sample.true_boxes or ()
        return f"{len(boxes)} boxes; --max-boxes is {self.max_boxes}" if len(boxes) > self.max_boxes else None

    def _thin(self, sample: Sample) -> str | None:
        assert self.max_box_aspect is not None
        for box in sample.all_boxes():
            width, height = box.x2 - box.x1, box.y2 - box.y1
            if (aspect := max(width / height, height / width)) > self.max_box_aspect:
                return (
                    f"{box.as_list()} is {aspect:.1f} times as long as wide; --max-box-aspect is "
                    f"{self.max_box_aspect:g}"
                )
        return None


def validated(sample: Sample, rules: QualityOptions) -> Sample:
    """The Sample, perhaps with other labels. Raises Refused: the reason of the first check that says no."""
    for reason, check in rules.checks:
        if (detail := check(sample)) is not None:
            raise Refused(reason, detail)
    return relabelled(sample) if rules.answer_in_label == "relabel" else sample


def _by_dataset(written: Sequence[str]) -> dict[str, float]:
    """`0.0005`, or `docvqa=0.0001` for one dataset → {dataset or "": share of the image}."""
    return {name.strip(): float(share) for name, _, share in (entry.rpartition("=") for entry in written)}


def _area(sample: Sample, limits: dict[str, float], of: str, beyond: Literal[-1, 1]) -> str | None:
    """beyond: whether less (-1) or more (1) than the limit is wrong."""
    limit = limits.get(sample.origin.dataset, limits.get(""))
    if limit is None or sample.image is None:
        return None
    whole = sample.image.width * sample.image.height
    for box in sample.all_boxes():
        if (box.area / whole - limit) * beyond > 0:
            return f"{box.as_list()} is {box.area / whole:.3%} of the image; {of} is {limit:.3%} here"
    return None


def _leak(sample: Sample) -> str | None:
    leaking = next((m.label for m in _mentions(sample) if tells(m.label, sample.answers)), None)
    return leaking and f"the label {leaking!r:.80} holds the answer: whoever names the place has answered"


# -------------------------------------------------------------------------------------------------------- texts


def demand_readable(sample: Sample) -> None:
    """Raises Refused: a text is too long or shows nothing to a reader, or the answer is none of the choices."""
    reasonings = (trace.text for trace in sample.traces)
    own = map(str, sample.metadata.values())
    longest = max(map(len, (sample.question, sample.context or "", *sample.answers, *reasonings, *own)))
    if longest > LONGEST_TEXT:
        raise Refused(
            Reason.WRONG_SHAPE, f"a text of {longest:,} characters; {LONGEST_TEXT:,} of one text are read at most"
        )
    if not _shows(sample.question):
        raise Refused(Reason.NO_QUESTION, f"the question shows nothing: {sample.question!r:.80}")
    if (blank := next((answer for answer in sample.answers if not _shows(answer)), None)) is not None:
        raise Refused(Reason.NO_ANSWER, f"an answer shows nothing: {blank!r:.80}")
    answer, choices = sample.answers[0], sample.choices
    if choices and not names_a_choice(answer, choices):
        raise Refused(Reason.NO_ANSWER, f"the answer {answer!r:.60} is none of the choices {list(choices)!r:.120}")


def names_a_choice(answer: str, choices: Sequence[str]) -> bool:
    return letter(answer, choices) is not None or normalise(answer) in map(normalise, choices)


def _shows(text: str) -> bool:
    """Whether anything is seen of it: white space, NUL and what has no width (Unicode's C and Z) is not."""
    return any(category(sign)[0] not in "CZ" for sign in text)


# ------------------------------------------------------------------------------- labels: what a box is said to show

NEUTRAL = "region"

_WORD = re.compile(r"\w+")
_SIGNS_TO_BLANKS = bytes(sign if _WORD.match(chr(sign)) else ord(" ") for sign in range(128)) + bytes(128)

_IS = r"(?:is|are|was|were|has|have|does|do|did|can|will|appears?|seems?)"
_NOUNS = r"(?P<thing>[a-z][a-z'-]*(?: [a-z][a-z'-]*){0,2}?)"
_PHRASE = r"(?P<thing>[a-z][a-z'-]*(?: [a-z][a-z'-]*){0,5}?)"
_IMAGE = r"(?:in|on) (?:the|this) (?:picture|image|photo|photograph|snapshot|scene)"
# What is the total amount in the invoice shown in the image
_OF_TEXT = (re.compile(rf"what (?:is|are) the {_NOUNS} in the (?:invoice|receipt|form|document|letter)\b.*"),)
_OF_THINGS = tuple(
    re.compile(rule)
    for rule in (
        # Does the bird in the image have …
        rf"(?:is|are|do|does|did|has|have|can) the {_NOUNS} {_IMAGE}\b.*",
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


def tells(label: str, answers: Sequence[str]) -> bool:
    """Whether a label holds an answer, as words: "red bus" tells "Red.", not "re". Yes and no are told by no label."""
    said = f" {plain(label)} "
    return any(f" {words} " in said for a in answers if (words := plain(a)) not in ("", "yes", "no"))


def relabelled(sample: Sample) -> Sample:
    """The same Sample; what its label would have told is now called "region"."""
    labels = {mention.label for mention in _mentions(sample)} - {NEUTRAL}
    telling = {label for label in labels if tells(label, sample.answers)}
    if not telling:
        return sample

    def renamed(mention: Mention) -> Mention:
        return Mention(NEUTRAL, mention.boxes) if mention.label in telling else mention

    evidence = sample.evidence and tuple(map(renamed, sample.evidence))
    reasoning = tuple(
        Trace(tuple(part if isinstance(part, str) else renamed(part) for part in trace.parts))
        for trace in sample.reasoning
    )
    turns = tuple(
        turn.model_copy(
            update={"said": Trace(tuple(part if isinstance(part, str) else renamed(part) for part in turn.said.parts))}
        )
        for turn in sample.turns
    )
    return sample.model_copy(update={"evidence": evidence, "reasoning": reasoning, "turns": turns})


def _mentions(sample: Sample) -> list[Mention]:
    return [*(sample.evidence or ()), *(m for trace in sample.traces for m in trace.mentions)]
