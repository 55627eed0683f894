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
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from vcot.distill import Refused, conclusion, prose
from vcot.distill.crops import Object
from vcot.distill.dialogue import Numbers, Shape, json_in, parse_reply, text_of
from vcot.grounding import Mention, Trace
from vcot.records import Completion, Reason, Sample

LONGEST = 4000  # characters; four short sentences have some four hundred
YEAR = 100  # a number in brackets from which it is none of an object: no row has as many


class Proposed(Shape):
    """An object that nobody annotated, under the number by which the sentences speak of it."""

    number: int
    label: str
    box: Numbers


class Sentence(Shape):
    """`objects`: the numbers in brackets of its text that stand for objects."""

    text: str
    objects: list[int] = Field(default_factory=list)


def _sentences(said: Any) -> Any:
    """Plain text, or a list of it, from those that keep to no schema."""
    if isinstance(said, str):
        said = [said]
    return [{"text": one} if isinstance(one, str) else one for one in said] if isinstance(said, list) else said


Sentences = Annotated[list[Sentence], BeforeValidator(_sentences)]


class Reasoned(Shape, purpose="reason"):
    objects: list[Proposed] = Field(default_factory=list)
    sentences: Sentences
    answer: str

    @model_validator(mode="before")
    @classmethod
    def _as_version_1(cls, said: Any) -> Any:
        """Version 1 of the prompt asks for all sentences as one text, under another name."""
        if isinstance(said, dict) and "sentences" not in said and "reasoning" in said:
            return said | {"sentences": said["reasoning"]}
        return said


Parts = tuple[str | tuple[int, ...], ...]
"""Prose, and the numbers of the objects of which it speaks, in turn; it begins and ends with prose."""


class Reasoning(NamedTuple):
    """What can be used, with the answer that it ends in ("" where it states none) and the objects that it adds."""

    parts: Parts
    answer: str
    proposed: tuple[Proposed, ...] = ()


def read(completion: Completion, sample: Sample, listed: Collection[int], *, may_add: bool = False) -> Reasoning:
    """What was said about the objects with these numbers; with none, prose that says what is not there. `may_add`:
    whether it may speak of further objects and say where they are. Raises Refused."""
    sentences, answer, proposed = _sentences_of(completion)
    added = [one.number for one in proposed]
    if added and not may_add:
        raise Refused(Reason.TEACHER_UNGROUNDED, f"it added [{added[0]}], and nothing may be added to the list")
    if len({*listed, *added}) < len(listed) + len(added):
        raise Refused(Reason.TEACHER_UNREADABLE, f"it added objects {added}, and some of these numbers are taken")
    grounded = bool(listed) or may_add
    if not answer and not grounded:  # where nothing can be pointed at, this alone tells sense from nonsense
        raise Refused(Reason.TEACHER_UNREADABLE, "it did not close with the answer")
    parts = cut(sentences, sample, {*listed, *added})
    check(parts, sample, grounded=grounded)
    return Reasoning(parts, answer, proposed)


def check_conclusion(said: Reasoning, sample: Sample, names: Mapping[int, str]) -> None:
    """Raises Refused where its sentences lead to no answer at all. That it is the right one, verification asks when the
    boxes have stood; who closes with another one is not asked again."""
    if said.answer and not conclusion.agrees(said.answer, sample):
        return
    names = {**names, **{one.number: one.label for one in said.proposed}}
    fault = conclusion.fault_of(build(said.parts, names).text, sample)
    if fault is not None and fault.reason is Reason.TEACHER_NO_CONCLUSION:
        raise Refused(*fault)


def numbers_in(parts: Parts) -> list[int]:
    """The objects that it speaks of, each once, in order."""
    return list(dict.fromkeys(number for part in parts if not isinstance(part, str) for number in part))


def cut(sentences: Sequence[Sentence], sample: Sample, listed: Collection[int]) -> Parts:
    """The sentences, cut where they speak of objects: of those that a sentence lists, where it has a list. Raises
    Refused."""
    listed_anywhere = {number for one in sentences for number in one.objects}
    length = sum(len(one.text) for one in sentences)
    if length > LONGEST:
        raise Refused(Reason.TEACHER_UNREADABLE, f"it had {length} characters; two to four short sentences are wanted")
    given = " ".join([sample.question, sample.context or "", *(sample.choices or ()), *sample.answers])
    parts: list[str | tuple[int, ...]] = [""]
    for one in sentences:
        for number in (number for number in one.objects if number not in listed):
            raise _unknown(number, listed)
        text = tidied(one.text)
        pieces = _REFERENCE.split(f" {text}" if parts != [""] and text else text)
        parts[-1] = f"{parts[-1]}{pieces[0]}"
        for group, after in zip(pieces[1::2], pieces[2::2], strict=True):
            numbers = tuple(_numbers(group))
            spoken_of = "objects" not in one.model_fields_set or {*numbers} <= {*one.objects}
            there = {*numbers} <= {*listed}
            is_text = f"[{group}]" in given or min(numbers) >= YEAR  # a year, a footnote of which the row speaks
            if spoken_of and there:
                parts += numbers, after
            elif is_text or (not spoken_of and len(numbers) > 1):
                parts[-1] = f"{parts[-1]}[{group}]{after}"
            elif there and {*numbers} <= listed_anywhere:
                raise Refused(Reason.TEACHER_UNREADABLE, f"its sentence with [{group}] does not list it as an object")
            elif there:  # a footnote
                parts[-1] = f"{parts[-1]}[{group}]{after}"
            elif len(numbers) >= 4:
                raise Refused(Reason.TEACHER_UNREADABLE, f"it typed {list(numbers[:4])}, which look like coordinates")
            else:
                raise _unknown(next(n for n in numbers if n not in listed), listed)
    return tuple(parts)


def check(parts: Parts, sample: Sample, *, grounded: bool) -> None:
    """Raises Refused where such prose cannot be used. `grounded`: it must speak of an object."""
    text = "".join(part if isinstance(part, str) else f"{prose.HERE}{part[0]}{prose.HERE}" for part in parts)
    if fault := prose.fault_of(text, sample):
        raise Refused(*fault)
    if grounded and not numbers_in(parts):
        raise Refused(Reason.TEACHER_UNGROUNDED, "it spoke of no listed object by its number, as in [1]")
    if sum(c.isalpha() for part in parts if isinstance(part, str) for c in part) < 4:
        raise Refused(Reason.TEACHER_UNREADABLE, "it held no sentence")
    if grounded and conclusion.only_points(text):
        raise Refused(Reason.TEACHER_UNGROUNDED, f"it only points at [{numbers_in(parts)[0]}] and does not describe it")
    if grounded and conclusion.tells_answer(str(parts[0]), sample):
        raise Refused(Reason.TEACHER_UNGROUNDED, "it stated the answer before it pointed at anything")


def _unknown(number: int, listed: Collection[int]) -> Refused:
    there = f"the list ends at [{max(listed)}]" if listed else "no number belongs into it, nothing is there"
    return Refused(Reason.TEACHER_UNGROUNDED, f"it spoke of [{number}], but {there}")


# --- the text as it came

_BRACKETS = str.maketrans("［］【】", "[][]")
_BULLET = re.compile(r"^ *(?:[-*•]|\d{1,2}[.)]) +", re.MULTILINE)
_ANSWER = re.compile(r"(?:^|(?<=[.!?] ))[>*_#]*(?:the |final )?answer[*_]*[:：](?P<answer>[^\n]*)\Z", re.I | re.M)
_ONE = r"(?:#|object |no\. ?)?\d{1,4}"
_REFERENCE = re.compile(rf"(?<!\[)\[ ?({_ONE}(?:(?: ?[,;&–-] ?| and ){_ONE})*) ?\](?!\])", re.IGNORECASE)
"""Not a row of a matrix, [[1, 2], [3, 4]]."""


def _sentences_of(completion: Completion) -> tuple[Sequence[Sentence], str, tuple[Proposed, ...]]:
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


def tidied(text: str) -> str:
    """On one line, without marks of emphasis and lists."""
    return " ".join(_tidy(text).split())


def _tidy(text: str) -> str:
    """Without bold marks, bullets and control characters, brackets as in ASCII; one line break, one blank at a time."""
    text = "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else " " for c in text).translate(_BRACKETS)
    lines = (" ".join(line.split()) for line in text.replace("**", "").split("\n"))
    return _BULLET.sub("", "\n".join(filter(None, lines))).strip()


def _numbers(group: str) -> list[int]:
    """ "1, 2" → 1 2; "2-4" → 2 3 4."""
    found: list[int] = []
    for first, dash, last in re.findall(r"(\d+)(?: ?([–-]) ?(?:#|object |no\. ?)?(\d+))?", group, re.IGNORECASE):
        start, end = int(first), int(last or first)
        found += range(start, end + 1) if dash and start <= end <= start + 99 else [start, end]
    return list(dict.fromkeys(found))


# --- a Trace of it


def build(parts: Parts, objects: Mapping[int, Object | str]) -> Trace:
    """The prose with a mention, or a mere name, in the place of each number. Objects of one label that stand side by
    side become one mention."""
    built: list[str | Mention] = []
    for part in parts:
        if isinstance(part, str):
            if built:  # "the [1] red disc" would name it twice, once its label stands there
                name = _name_pattern(built[-1])
                part = re.sub(rf"\A ?(?:\({name}\)|{name}(?!\w))", "", part, flags=re.IGNORECASE)
            built.append(part)
            continue
        group = [objects[number] for number in part]
        runs = _joined([Mention(one.label, (one.box,)) if isinstance(one, Object) else one for one in group])
        # "I see the red discs [1, 2]" as well
        built[-1] = re.sub(rf"(?<!\w){_name_pattern(runs[0])} ?\Z", "", str(built[-1]), flags=re.IGNORECASE)
        built.append(runs[0])
        for run in runs[1:]:
            built += ", ", run
    return Trace(tuple(_joined(built)))


def _name_pattern(part: str | Mention) -> str:
    return rf"{re.escape(part if isinstance(part, str) else part.label)}(?:e?s)?"


def _joined(parts: Sequence[str | Mention]) -> list[str | Mention]:
    """ "[1][2]" of one label are one mention with two boxes."""
    joined: list[str | Mention] = []
    for part in parts:
        last = joined[-1] if joined else ""
        if isinstance(part, Mention) and isinstance(last, Mention) and last.label == part.label:
            joined[-1] = Mention(part.label, tuple(dict.fromkeys([*last.boxes, *part.boxes])))
        elif part != "":
            joined.append(part)
    return joined
