"""What a model is told when it is asked to teach: the rules, the question with its answer, the numbered objects.

The model never types a place. It is shown where the objects are and speaks of them by number; our code puts
label and box there (see reply.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from vcot.records import Sample
from vcot.teacher.objects import Object

VERSION = 1
"""Part of every request's key: a new number where these words change."""

RULES = """\
You write the reasoning that leads from an image to the answer of a question, so that a smaller model can learn \
to look before it answers. You get the image, the question, the right answer, and a numbered list of objects \
whose places are known.

1. Write two to four short plain sentences: what is seen and where, then what follows from it.
2. Speak of a listed object by its number in square brackets, in the place of its name: "The [1] is left of the \
[2]." A program puts name and place there. Use only numbers of the list, and use at least one.
3. Never write coordinates, percentages of the image, boxes, tags or markup.
4. Do not state the answer before you have pointed at what shows it. Do not mention the list, these rules, or \
that you were given the answer.
5. Close with a line of its own: "Answer: " and the answer."""

NOTHING_THERE = """\
None of it: somebody checked that what the question asks for is not in the image. So use no brackets; say what \
was looked for and that it is not there."""


def words_for(sample: Sample, objects: Sequence[Object], faults: Sequence[str] = ()) -> str:
    """The text beside the image. `faults` are what was wrong with earlier attempts, in order."""
    lines = [f"Question: {sample.question}"]
    if sample.context:
        lines.append(f"Context: {sample.context}")
    if sample.choices:
        letters = (chr(ord("A") + n) for n in range(len(sample.choices)))
        lines.append("Choices: " + "; ".join(map(". ".join, zip(letters, sample.choices, strict=True))))
    lines.append(f"Right answer: {sample.answers[0]}")
    if len(sample.answers) > 1:
        lines.append("Also accepted: " + "; ".join(sample.answers[1:]))
    lines.append("Objects:")
    lines += [_line(seen, sample) for seen in objects] or [NOTHING_THERE]
    if faults:
        lines += ["", _stricter(faults)]
    return "\n".join(lines)


def _line(seen: Object, sample: Sample) -> str:
    """`[1] red disc, top left, across 10-24 %, down 3-18 %`"""
    across = _percent(seen.box.x1, seen.box.x2, sample.shown.width)
    down = _percent(seen.box.y1, seen.box.y2, sample.shown.height)
    return f"[{seen.number}] {seen.label}, {seen.place}, across {across}, down {down}"


def _percent(low: float, high: float, whole: int) -> str:
    return f"{round(100 * low / whole)}-{round(100 * high / whole)} %"


def _stricter(faults: Sequence[str]) -> str:
    return (
        f"This is attempt {len(faults) + 1}. The last reply was thrown away: {faults[-1]}. "
        "Keep to the rules exactly, or the row is lost."
    )
