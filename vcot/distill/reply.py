"""Reasoning as a teacher writes it → a Trace, or Refused is raised, and nothing else, whatever the text; linear time.

    {"objects": [], "sentences": [{"text": "I see the [1] at the top left.", "objects": [1]}, …], "answer": "top left"}
    "I see the [1] at the top left.\\nAnswer: top left"       (from those that write no JSON)
      →  "I see the ", Mention("red disc", boxes of object 1), " at the top left."

Sentences speak of objects by number. One that types coordinates or markup is refused and not mended: what it says
about a place was then guessed from numbers, and nobody checked it. What else prose may not hold: prose.py; what it must
end in: conclusion.py.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from vcot.distill import conclusion, prose
from vcot.distill.dialogue import Proposed, Reasoned, Refused, Sentence, json_in, parse_reply, text_of
from vcot.distill.objects import Object, tells_answer
from vcot.grounding import Mention, Trace
from vcot.records import Completion, Reason, Sample

LONGEST = 4000
"""Characters; four short sentences have some four hundred."""

Parts = tuple[str | tuple[int, ...], ...]
"""Prose, and the numbers of the objects of which it speaks, in turn; it begins and ends with prose."""


class Said(NamedTuple):
    """Reasoning that can be used, with the answer that it ends in ("" where it states none) and the objects that it
    adds."""

    parts: Parts
    answer: str
    proposed: tuple[Proposed, ...]


def read(completion: Completion, sample: Sample, known: Collection[int], *, may_add: bool = False) -> Said:
    """What was said about the objects with these numbers; with none, prose that says what is not there.

    Args:
        may_add: whether it may speak of further objects and say where they are.

    Raises Refused.
    """
    sentences, answer, proposed = _said(completion)
    added = [one.number for one in proposed]
    if added and not may_add:
        raise Refused(Reason.TEACHER_UNGROUNDED, f"it added [{added[0]}], and nothing may be added to the list")
    if len({*known, *added}) < len(known) + len(added):
        raise Refused(Reason.TEACHER_UNREADABLE, f"it added objects {added}, and some of these numbers are taken")
    grounded = bool(known) or may_add
    if not answer and not grounded:  # where nothing can be pointed at, this alone tells sense from nonsense
        raise Refused(Reason.TEACHER_UNREADABLE, "it did not close with the answer")
    parts = parted(sentences, sample, {*known, *added})
    check(parts, sample, grounded=grounded)
    return Said(parts, answer, proposed)


def concluding(said: Said, sample: Sample, names: Mapping[int, str]) -> Said:
    """The same, if its sentences lead to an answer at all; else Refused is raised. That it is the right one,
    verification asks when the boxes have stood; who closes with another one is not asked again."""
    if not said.answer or conclusion.agrees(said.answer, sample):
        names = {**names, **{one.number: one.label for one in said.proposed}}
        fault = conclusion.fault_of(build(said.parts, names).text, sample)
        if fault is not None and fault.reason is Reason.TEACHER_NO_CONCLUSION:
            raise Refused(*fault)
    return said


def numbers_in(parts: Parts) -> list[int]:
    """The objects that it speaks of, each once, in order."""
    return list(dict.fromkeys(number for part in parts if not isinstance(part, str) for number in part))


def tidied(prose: str) -> str:
    """On one line, without marks of emphasis and lists."""
    return " ".join(_tidy(prose).split())


def parted(sentences: Sequence[Sentence], sample: Sample, known: Collection[int]) -> Parts:
    """The sentences, cut where they speak of objects: of those that a sentence lists, where it has a list. Raises
    Refused."""
    listed_anywhere = {number for one in sentences for number in one.objects}
    length = sum(len(one.text) for one in sentences)
    if length > LONGEST:
        raise Refused(Reason.TEACHER_UNREADABLE, f"it had {length} characters; two to four short sentences are wanted")
    parts: list[str | tuple[int, ...]] = [""]
    for one in sentences:
        unknown = next((number for number in one.objects if number not in known), None)
        if unknown is not None:
            raise _unknown(unknown, known)
        text = tidied(one.text)
        pieces = _REFERENCE.split(f" {text}" if parts != [""] and text else text)
        parts[-1] = f"{parts[-1]}{pieces[0]}"
        for group, after in zip(pieces[1::2], pieces[2::2], strict=True):
            numbers = tuple(_numbers(group))
            listed = "objects" not in one.model_fields_set or {*numbers} <= {*one.objects}
            there = {*numbers} <= {*known}
            if listed and there:
                parts += numbers, after
            elif _is_prose(group, numbers, sample) or (not listed and len(numbers) > 1):
                parts[-1] = f"{parts[-1]}[{group}]{after}"
            elif there and {*numbers} <= listed_anywhere:
                raise Refused(Reason.TEACHER_UNREADABLE, f"its sentence with [{group}] does not list it as an object")
            elif there:  # a footnote
                parts[-1] = f"{parts[-1]}[{group}]{after}"
            elif len(numbers) >= 4:
                raise Refused(Reason.TEACHER_UNREADABLE, f"it typed {list(numbers[:4])}, which look like coordinates")
            else:
                raise _unknown(next(n for n in numbers if n not in known), known)
    return tuple(parts)


def check(parts: Parts, sample: Sample, *, grounded: bool) -> None:
    """Raises Refused where such prose cannot be used. `grounded`: it must speak of an object."""
    numbers = numbers_in(parts)
    text = "".join(part if isinstance(part, str) else f"{prose.HERE}{part[0]}{prose.HERE}" for part in parts)
    fault = prose.fault_of(text, sample)
    if fault is not None:
        raise Refused(*fault)
    if grounded and not numbers:
        raise Refused(Reason.TEACHER_UNGROUNDED, "it spoke of no listed object by its number, as in [1]")
    if sum(c.isalpha() for part in parts if isinstance(part, str) for c in part) < 4:
        raise Refused(Reason.TEACHER_UNREADABLE, "it held no sentence")
    if grounded and tells_answer(str(parts[0]), sample):
        raise Refused(Reason.TEACHER_UNGROUNDED, "it stated the answer before it pointed at anything")


def _said(completion: Completion) -> tuple[Sequence[Sentence], str, tuple[Proposed, ...]]:
    text = text_of(completion)
    value = json_in(text)
    if (value is not None and {"sentences", "reasoning"} & {*value}) or text.lstrip("`json \n").startswith("{"):
        said = parse_reply(completion, Reasoned)
        if not said.answer.strip():
            raise Refused(Reason.TEACHER_UNREADABLE, "it did not close with the answer")
        return said.sentences, " ".join(said.answer.split()), tuple(said.objects)
    text = _tidy(text)
    if not text:
        raise Refused(Reason.TEACHER_EMPTY, "it was empty")
    if found := _ANSWER.search(text):
        return [Sentence(text=text[: found.start()])], found["answer"].strip(), ()
    return [Sentence(text=text)], "", ()


# ------------------------------------------------------------------------------------------ the text as it came

_BRACKETS = str.maketrans("［］【】", "[][]")
_BULLET = re.compile(r"^ *(?:[-*•]|\d{1,2}[.)]) +", re.MULTILINE)
_ANSWER = re.compile(r"(?:^|(?<=[.!?] ))[>*_#]*(?:the |final )?answer[*_]*[:：](?P<answer>[^\n]*)\Z", re.I | re.M)


def _tidy(text: str) -> str:
    """Without bold marks, bullets and control characters, brackets as in ASCII; one line break, one blank at a time."""
    text = "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else " " for c in text).translate(_BRACKETS)
    lines = (" ".join(line.split()) for line in text.replace("**", "").split("\n"))
    return _BULLET.sub("", "\n".join(filter(None, lines))).strip()


# ----------------------------------------------------------------------------------------------- its references

_ONE = r"(?:#|object |no\. ?)?\d{1,4}"
_REFERENCE = re.compile(rf"(?<!\[)\[ ?({_ONE}(?:(?: ?[,;&–-] ?| and ){_ONE})*) ?\](?!\])", re.IGNORECASE)
"""Not a row of a matrix, [[1, 2], [3, 4]]."""


def _numbers(group: str) -> list[int]:
    """ "1, 2" → 1 2; "2-4" → 2 3 4."""
    found: list[int] = []
    for first, dash, last in re.findall(r"(\d+)(?: ?([–-]) ?(?:#|object |no\. ?)?(\d+))?", group, re.IGNORECASE):
        start, end = int(first), int(last or first)
        found += range(start, end + 1) if dash and start <= end <= start + 99 else [start, end]
    return list(dict.fromkeys(found))


def _is_prose(group: str, numbers: Sequence[int], sample: Sample) -> bool:
    """Whether brackets belong to the text: a year, a footnote of which the row speaks."""
    given = " ".join([sample.question, sample.context or "", *(sample.choices or ()), *sample.answers])
    return f"[{group}]" in given or min(numbers) >= YEAR


YEAR = 100
"""A number in brackets from which it is none of an object: no row has as many."""


def _unknown(number: int, known: Collection[int]) -> Refused:
    there = f"the list ends at [{max(known)}]" if known else "no number belongs into it, nothing is there"
    return Refused(Reason.TEACHER_UNGROUNDED, f"it spoke of [{number}], but {there}")


# ---------------------------------------------------------------------------------------------------- a Trace of it


def build(parts: Parts, objects: Mapping[int, Object | str]) -> Trace:
    """The prose with a mention, or a mere name, in the place of each number. Objects of one label that stand side by
    side become one mention."""
    built: list[str | Mention] = []
    for part in parts:
        if isinstance(part, str):
            # "the [1] red disc" would name it twice, once its label stands there.
            built.append(_without_name_at_start(part, _name(built[-1])) if built else part)
            continue
        group = [objects[number] for number in part]
        runs = _joined([Mention(one.label, (one.box,)) if isinstance(one, Object) else one for one in group])
        built[-1] = _without_name_at_end(str(built[-1]), _name(runs[0]))  # "I see the red discs [1, 2]" as well
        built.append(runs[0])
        for run in runs[1:]:
            built += ", ", run
    return Trace(tuple(_joined(built)))


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


def _without_name_at_end(prose: str, label: str) -> str:
    return re.sub(rf"(?<!\w){re.escape(label)}(?:e?s)? ?\Z", "", prose, flags=re.IGNORECASE)


def _without_name_at_start(prose: str, label: str) -> str:
    name = rf"{re.escape(label)}(?:e?s)?"
    return re.sub(rf"\A ?(?:\({name}\)|{name}(?!\w))", "", prose, flags=re.IGNORECASE)
