"""Reasoning as a teacher writes it → a Trace, or why it cannot be one. Never raises, whatever the text; linear time.

    {"reasoning": "I see the [1] at the top left.", "objects": [], "answer": "top left"}
    "I see the [1] at the top left.\\nAnswer: top left"       (from those that write no JSON)
      →  "I see the ", Mention("red disc", boxes of object 1), " at the top left."

Sentences speak of objects by number. One that types coordinates or markup is refused and not mended: what it says
about a place was then guessed from numbers, and nobody checked it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from vcot.grounding import Mention, Trace
from vcot.records import Completion, Reason, Sample
from vcot.teacher import structured
from vcot.teacher.objects import Object, tells_answer
from vcot.teacher.shapes import Proposed, Reasoned
from vcot.teacher.structured import Fault

LONGEST = 4000
"""Characters; four short sentences have some four hundred."""


class Said(NamedTuple):
    """Reasoning that can be used, with the answer that it ends in ("" where it states none) and the objects that it
    adds."""

    prose: str
    answer: str
    proposed: tuple[Proposed, ...]


def read(completion: Completion, sample: Sample, known: Collection[int], *, may_add: bool = False) -> Said | Fault:
    """What was said about the objects with these numbers; with none, prose that says what is not there.

    Args:
        may_add: whether it may speak of further objects and say where they are.
    """
    said = _said(completion)
    if isinstance(said, Fault):
        return said
    added = [one.number for one in said.proposed]
    if added and not may_add:
        return Fault(Reason.TEACHER_UNGROUNDED, f"it added [{added[0]}], and nothing may be added to the list")
    if len({*known, *added}) < len(known) + len(added):
        return Fault(Reason.TEACHER_UNREADABLE, f"it added objects {added}, and some of these numbers are taken")
    if (
        not said.answer and not known and not may_add
    ):  # where nothing can be pointed at, this alone tells sense from nonsense
        return Fault(Reason.TEACHER_UNREADABLE, "it did not close with the answer")
    return check(said.prose, sample, {*known, *added}, grounded=bool(known) or may_add) or said


def numbers_in(prose: str) -> list[int]:
    """The objects that it speaks of, each once, in order."""
    groups = map(_numbers, _REFERENCE.split(prose)[1::2])
    return list(dict.fromkeys(number for group in groups for number in group))


def build(prose: str, objects: Mapping[int, Object | str]) -> Trace:
    """The prose with a mention, or a mere name, in the place of each number."""
    pieces = _REFERENCE.split(prose)
    return _build(pieces[::2], [[objects[n] for n in _numbers(group)] for group in pieces[1::2]])


def tidied(prose: str) -> str:
    """On one line, without marks of emphasis and lists."""
    return " ".join(_tidy(prose).split())


def _said(completion: Completion) -> Said | Fault:
    text = structured.text_of(completion)
    if isinstance(text, Fault):
        return text
    value = structured.json_in(text)
    if (value is not None and "reasoning" in value) or text.lstrip("`json \n").startswith("{"):
        found = structured.read(completion, Reasoned)
        if isinstance(found, Fault):
            return found
        if not found.answer.strip():
            return Fault(Reason.TEACHER_UNREADABLE, "it did not close with the answer")
        return Said(tidied(found.reasoning), " ".join(found.answer.split()), tuple(found.objects))
    text = _tidy(text)
    if not text:
        return Fault(Reason.TEACHER_EMPTY, "it was empty")
    prose, answer = _split_answer(text)
    return Said(" ".join(prose.split()), answer, ())


def check(prose: str, sample: Sample, known: Collection[int], *, grounded: bool) -> Fault | None:
    """Why such prose about the objects with these numbers cannot be used. `grounded`: it must speak of one."""
    if len(prose) > LONGEST:
        return Fault(
            Reason.TEACHER_UNREADABLE, f"it had {len(prose)} characters; two to four short sentences are wanted"
        )
    pieces = _REFERENCE.split(prose)  # prose, numbers, prose, numbers, …, prose
    numbers = [_numbers(group) for group in pieces[1::2]]
    fault = _typed(pieces[::2], numbers, known, sample) or _unknown(numbers, known)
    if fault is not None:
        return fault
    if not numbers and _REFUSAL.match(prose):
        return Fault(Reason.TEACHER_REFUSED, f"it declined: {prose[:80]!r}")
    if grounded and not numbers:
        return Fault(Reason.TEACHER_UNGROUNDED, "it spoke of no listed object by its number, as in [1]")
    if sum(map(str.isalpha, "".join(pieces[::2]))) < 4:
        return Fault(Reason.TEACHER_UNREADABLE, "it held no sentence")
    if grounded and tells_answer(pieces[0], sample):
        return Fault(Reason.TEACHER_UNGROUNDED, "it stated the answer before it pointed at anything")
    return None


# ------------------------------------------------------------------------------------------ the text as it came

_BULLET = re.compile(r"^ *(?:[-*•]|\d{1,2}[.)]) +", re.MULTILINE)
_ANSWER = re.compile(r"(?:^|(?<=[.!?] ))[>*_#]*(?:the |final )?answer[*_]*[:：](?P<answer>[^\n]*)\Z", re.I | re.M)


def _tidy(text: str) -> str:
    """Without bold marks, bullets and control characters; one line break, one blank at a time."""
    text = "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else " " for c in text)
    lines = (" ".join(line.split()) for line in text.replace("**", "").split("\n"))
    return _BULLET.sub("", "\n".join(filter(None, lines))).strip()


def _split_answer(text: str) -> tuple[str, str]:
    """The reasoning, and the answer that closes it ("" where none does)."""
    found = _ANSWER.search(text)
    return (text[: found.start()], found["answer"].strip()) if found else (text, "")


_REFUSAL = re.compile(
    r"(?:i['’]?m |i am )?(?:very )?(?:sorry|afraid|unable)\b|i (?:can['’]?t|cannot|can not|won['’]?t|will not) "
    r"|as an ai\b",
    re.IGNORECASE,
)

# ----------------------------------------------------------------------------------------------- its references

_ONE = r"(?:#|object |no\. ?)?[0-9]{1,4}"
_REFERENCE = re.compile(rf"\[ ?({_ONE}(?:(?: ?[,;&–-] ?| and ){_ONE})*) ?\]", re.IGNORECASE)

# What a reply may not type. Percentages and ranges are how the list states places.
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_TYPED = re.compile(
    r"</?[a-z|!]|<\|"  # markup, special tokens
    rf"|[\[({{] ?{_NUMBER} ?[,;] ?{_NUMBER}"  # (12, 34   [0.1, 0.2
    rf"|{_NUMBER}(?:(?: ?[,;] ?| ){_NUMBER}){{3}}"  # four numbers in a row
    r"|\b(?:[xy][12]?|bbox(?:_2d)?|box|coordinates?)\"? ?[=:] ?[\[(\"]?[0-9]"
    r"|[0-9] ?[–-] ?[0-9]+ ?%|[0-9] ?% (?:across|down|from the (?:left|right|top|bottom))",
    re.IGNORECASE,
)


def _numbers(group: str) -> list[int]:
    """ "1, 2" → 1 2; "2-4" → 2 3 4."""
    found: list[int] = []
    for first, dash, last in re.findall(r"([0-9]+)(?: ?([–-]) ?(?:#|object |no\. ?)?([0-9]+))?", group, re.IGNORECASE):
        start, end = int(first), int(last or first)
        found += range(start, end + 1) if dash and start <= end <= start + 99 else [start, end]
    return list(dict.fromkeys(found))


def _typed(
    prose: Sequence[str], numbers: Sequence[Sequence[int]], known: Collection[int], sample: Sample
) -> Fault | None:
    """Coordinates or markup in the prose; and four numbers in brackets that are not all of the list."""
    given = "\n".join([sample.question, *sample.answers])
    for piece in prose:
        for found in _TYPED.finditer(piece):
            if found[0] not in given:
                return Fault(
                    Reason.TEACHER_UNREADABLE, f"it typed {found[0]!r}: coordinates and markup are not allowed"
                )
    for group in numbers:
        if len(group) >= 4 and not set(group) <= set(known):
            return Fault(Reason.TEACHER_UNREADABLE, f"it typed {list(group[:4])}, which look like coordinates")
    return None


def _unknown(numbers: Sequence[Sequence[int]], known: Collection[int]) -> Fault | None:
    for number in (n for group in numbers for n in group):
        if number not in known:
            there = f"the list ends at [{max(known)}]" if known else "no number belongs into it, nothing is there"
            return Fault(Reason.TEACHER_UNGROUNDED, f"it spoke of [{number}], but {there}")
    return None


def _build(prose: Sequence[str], groups: Sequence[Sequence[Object | str]]) -> Trace:
    """Prose and mentions in turn. Objects of one label that stand side by side become one mention."""
    texts = list(prose)
    parts: list[str | Mention] = []
    for index, group in enumerate(groups):
        runs = _joined([Mention(one.label, (one.box,)) if isinstance(one, Object) else one for one in group])
        texts[index] = _without_name_at_end(texts[index], _name(runs[0]))
        texts[index + 1] = _without_name_at_start(texts[index + 1], _name(runs[-1]))
        parts.append(texts[index])
        parts.append(runs[0])
        for run in runs[1:]:
            parts += ", ", run
    return Trace(tuple(_joined([*parts, texts[-1]])))


def _name(part: str | Mention) -> str:
    return part if isinstance(part, str) else part.label


def _joined(parts: Sequence[str | Mention]) -> list[str | Mention]:
    """ "[1][2]" of one label are one mention with two boxes."""
    joined: list[str | Mention] = []
    for part in parts:
        last = joined[-1] if joined else ""
        if part == "":
            continue
        if isinstance(part, Mention) and isinstance(last, Mention) and last.label == part.label:
            joined[-1] = Mention(part.label, tuple(dict.fromkeys([*last.boxes, *part.boxes])))
        else:
            joined.append(part)
    return joined


# "I see the red discs [1, 2]" and "the [1] red disc" name them twice, once we put the label there: so once less.


def _without_name_at_end(prose: str, label: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(label)}(?:e?s)? ?\Z", "", prose, flags=re.IGNORECASE)


def _without_name_at_start(prose: str, label: str) -> str:
    return re.sub(
        rf"\A ?(?:\({re.escape(label)}(?:e?s)?\)|{re.escape(label)}(?:e?s)?(?!\w))", "", prose, flags=re.IGNORECASE
    )
