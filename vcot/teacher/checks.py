"""What a box that a teacher proposed must stand, before anybody is asked about it: pure functions.

    placed      in the declared frame, inside the image
    sized       neither a speck nor everything (limits by data set; boxes that people drew are never measured)
    gold        the annotated object that it is, where there is one
    agreed      two proposals that do not know each other mean the same place
    apart       of one label, what lies on top of each other is one thing

A box that fails is a Fault; nothing raises.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vcot.answers import normalise
from vcot.grounding import Box, BoxError, BoxFault, Frame, iou, match_at
from vcot.records import Reason, Sample
from vcot.teacher.objects import Object, gives_away
from vcot.teacher.structured import Fault

AGREEMENT = 0.5
"""IoU from which two boxes are the same place."""

SAME_THING = 0.7
"""IoU from which two boxes of one label are one object."""

LONGEST_LABEL = 80
"""Characters."""

_MARKUP = re.compile(r"</?[a-z|!]|<\||\[\d|[{}]", re.IGNORECASE)

_REASONS = {
    BoxFault.WRONG_COUNT: Reason.BOX_MALFORMED,
    BoxFault.NOT_A_NUMBER: Reason.BOX_MALFORMED,
    BoxFault.NOT_FINITE: Reason.BOX_NOT_FINITE,
    BoxFault.INVERTED: Reason.BOX_INVERTED,
    BoxFault.ZERO_AREA: Reason.BOX_EMPTY,
    BoxFault.OUTSIDE: Reason.BOX_OUTSIDE,
    BoxFault.OUT_OF_RANGE: Reason.BOX_OUTSIDE,
}


@dataclass(frozen=True)
class Areas:
    """Limits of a proposed box's area, as shares of the image, by dataset; "" stands for all others."""

    smallest: Mapping[str, float] = field(default_factory=lambda: {"": 0.0005})
    largest: Mapping[str, float] = field(default_factory=lambda: {"": 0.9})


def placed(label: str, numbers: Sequence[float], frame: Frame) -> Box | Fault:
    """The box that these numbers mean in the declared frame."""
    if len(numbers) != 4:
        return Fault(Reason.BOX_MALFORMED, f"the box of {label!r} has {len(numbers)} numbers; four are wanted")
    try:
        return frame.decode(*numbers)
    except BoxError as error:
        return Fault(_REASONS.get(error.fault, Reason.BOX_MALFORMED), f"the box of {label!r}: {error}")


def sized(label: str, box: Box, sample: Sample, areas: Areas) -> Fault | None:
    share = box.area / (sample.shown.width * sample.shown.height)
    dataset = sample.origin.dataset
    low = areas.smallest.get(dataset, areas.smallest.get("", 0.0))
    high = areas.largest.get(dataset, areas.largest.get("", 1.0))
    if low <= share <= high:
        return None
    reason, limit = (Reason.BOX_TOO_SMALL, low) if share < low else (Reason.BOX_TOO_LARGE, high)
    which = "--min-proposed-area" if share < low else "--max-proposed-area"
    return Fault(reason, f"the box of {label!r} takes {share:.3%} of the image; {which} is {limit:.3%}")


def named(label: str, sample: Sample) -> Fault | None:
    """A label must say something in plain words, and must not say the answer."""
    if not normalise(label):
        return Fault(Reason.TEACHER_UNREADABLE, "an object has no name")
    if len(label) > LONGEST_LABEL or not plain(label):
        return Fault(Reason.TEACHER_UNREADABLE, f"the label {label[:80]!r} is no short name in plain words")
    if gives_away(label, sample):
        return Fault(Reason.ANSWER_IN_LABEL, f"the label {label!r} gives the answer away")
    return None


def plain(text: str) -> bool:
    """Without markup, special tokens and control characters: nothing that means more than its words."""
    return _MARKUP.search(text) is None and all(unicodedata.category(c)[0] != "C" for c in text)


def gold(label: str, box: Box, objects: Sequence[Object]) -> Object | Fault | None:
    """The annotated object that a proposal is; None where nothing of its name or place is annotated.

    A proposal on an annotated place is that object. One that bears the name of annotated objects and lies on none of
    them is wrong.
    """
    best = max(objects, key=lambda known: iou(box, known.box), default=None)
    if best is not None and iou(box, best.box) >= AGREEMENT:
        return best
    if any(normalise(known.label) == normalise(label) for known in objects):
        near = max(iou(box, known.box) for known in objects if normalise(known.label) == normalise(label))
        return Fault(
            Reason.TEACHER_BOX_OFF_GOLD,
            f"{label!r} is annotated, and elsewhere: its IoU with the nearest is {near:.2f}, {AGREEMENT} is wanted",
        )
    return None


def agreed(first: Sequence[tuple[str, Box]], second: Sequence[tuple[str, Box]]) -> list[bool]:
    """For each box of the first proposal, whether the second has one of the same label there, one to one."""
    found = [False] * len(first)
    for label in dict.fromkeys(normalise(label) for label, _ in first):
        mine = [index for index, (name, _) in enumerate(first) if normalise(name) == label]
        theirs = [box for name, box in second if normalise(name) == label]
        for index, _, _ in match_at([first[index][1] for index in mine], theirs, AGREEMENT).pairs:
            found[mine[index]] = True
    return found


def apart(found: Sequence[tuple[str, Box, float]], most: int) -> list[int]:
    """Per label, the surest of those that overlap (IoU 0.7); of all, the `most` surest. Their indices, in order."""
    kept: list[int] = []
    for index in sorted(range(len(found)), key=lambda index: -found[index][2]):
        label, box, _ = found[index]
        if all(normalise(found[k][0]) != normalise(label) or iou(found[k][1], box) < SAME_THING for k in kept):
            kept.append(index)
    return sorted(kept[:most])
