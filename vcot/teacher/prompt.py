"""The words beside the image: the question with its answer, the numbered objects, in which numbers boxes are written.

What a teacher is told in general stands in vcot/teacher/prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

from vcot.grounding import Box, Frame
from vcot.records import Image, Sample
from vcot.teacher.objects import Object, choices_of

NOTHING_THERE = """\
None of it: somebody checked that what the question asks for is not in the image. So use no brackets; say what \
was looked for and that it is not there."""

NONE_KNOWN = "None is known."


def words_for(sample: Sample, objects: Sequence[Object], adding: Frame | None = None) -> str:
    """The text beside the image. `adding`: the frame of objects that the teacher may add."""
    lines = [*asked(sample), f"Right answer: {sample.answers[0]}"]
    if len(sample.answers) > 1:
        lines.append("Also accepted: " + "; ".join(sample.answers[1:]))
    lines += listed(sample, objects)
    if adding is not None:
        lines.append(f"You may add objects, from [{len(objects) + 1}] on. {in_frame(adding)}")
    return "\n".join(lines)


def asked(sample: Sample) -> list[str]:
    """The question as somebody sees it who does not know its answer."""
    context = [f"Context: {sample.context}"] if sample.context else []
    return [f"Question: {sample.question}", *context, *choices_of(sample)]


def listed(sample: Sample, objects: Sequence[Object]) -> list[str]:
    nothing = NOTHING_THERE if sample.evidence == () else NONE_KNOWN
    return ["Objects:", *([line(seen, sample) for seen in objects] or [nothing])]


def in_frame(frame: Frame) -> str:
    """In which numbers boxes are written."""
    return (
        f"Boxes are [x1, y1, x2, y2] in {frame.name.replace('_', ' ')} of the image (left, top, right, bottom); the "
        f"numbers run over {frame.range}, x to the right, y down."
    )


def line(seen: Object, sample: Sample) -> str:
    """`[1] red disc, top left, across 10-24 %, down 3-18 %`"""
    across, down = reach(seen.box, sample.shown)
    return f"[{seen.number}] {seen.label}, {seen.place}, across {across}, down {down}"


def reach(box: Box, image: Image) -> tuple[str, str]:
    """From where to where it goes, across and down: `10-24 %`, in whole per cent of the image."""
    return _percent(box.x1, box.x2, image.width), _percent(box.y1, box.y2, image.height)


def _percent(low: float, high: float, whole: int) -> str:
    return f"{round(100 * low / whole)}-{round(100 * high / whole)} %"
