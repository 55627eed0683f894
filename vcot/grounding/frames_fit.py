"""Compare the numbers of boxes in replies with annotated boxes, under every notation that a model may use.

A declared frame is never changed by what this module finds: callers report the figures, or stop with an error.

    rows = [NumberedRow(numbers=[(100, 200, 300, 400)], boxes=sample.true_boxes, size=(640, 480), sent=(512, 384))]
    comparison = compare_notations(rows, FrameSpec("thousandths"))
    comparison.contradicts    → True: another notation fits clearly better than the declared one
    str(comparison)           → "mean IoU 0.02 in thousandths as declared, 0.91 in pixels (20 rows, 31 boxes)"
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vcot.grounding.boxes import Box, BoxError, Frame, FrameName, FrameSpec, match

Order = Literal["xyxy", "yxyx", "xywh", "cxcywh"]

# Pixels of the image as it was sent, whatever processor the model has: smart_resize with these limits changes nothing.
SENT_PIXELS = FrameSpec("resized_pixels", 1, 1 << 40, factor=1)

MIN_ROWS = 5  # with fewer rows, a better fit may be chance
GOOD_FIT = 0.5  # mean IoU that another notation needs before it contradicts the declared one
CLEAR_MARGIN = 0.2  # and by how much it must exceed the declared one's

_ORDERS = {
    "xyxy": "",
    "yxyx": " in the order y1, x1, y2, x2",
    "xywh": " as x, y, width, height",
    "cxcywh": " as center x, center y, width, height",
}
_NAMES = {"resized_pixels": "pixels of the resized image", "padded_square": "fractions of the padded square"}


@dataclass(frozen=True)
class Notation:
    """A frame, and the order in which the four numbers of a box stand."""

    frame: FrameSpec
    order: Order = "xyxy"

    def __str__(self) -> str:
        name = "pixels of the image as sent" if self.frame == SENT_PIXELS else _NAMES.get(self.frame.name)
        return f"{name or self.frame.name}{_ORDERS[self.order]}"


@dataclass(frozen=True)
class NumberedRow:
    """The boxes of a reply as the numbers that it wrote, and the annotated boxes of the same image.

    Args:
        numbers: four for each box of the reply; entries of another length fit no notation.
        boxes: annotated, in pixels of the original.
        size: (width, height) of the original image.
        sent: (width, height) of the image that was sent; None: the original.
    """

    numbers: Sequence[Sequence[float]]
    boxes: Sequence[Box]
    size: tuple[int, int]
    sent: tuple[int, int] | None = None

    @property
    def pairs(self) -> int:
        """Number of boxes that could have a partner."""
        return min(len(self.numbers), len(self.boxes))


@dataclass(frozen=True)
class NotationComparison:
    """Mean IoU in the declared notation and in the one that fits best; the declared one where none fits better."""

    declared: Notation
    declared_iou: float
    best: Notation
    best_iou: float
    rows: int  # that have both boxes of the reply and annotated ones
    boxes: int  # pairs of which the means are

    @property
    def contradicts(self) -> bool:
        """Return True if another notation fits clearly better than the declared one."""
        clear = self.best_iou >= GOOD_FIT and self.best_iou >= self.declared_iou + CLEAR_MARGIN
        return self.rows >= MIN_ROWS and clear

    def __str__(self) -> str:
        better = "" if self.best == self.declared else f", {self.best_iou:.2f} in {self.best}"
        return (
            f"mean IoU {self.declared_iou:.2f} in {self.declared} as declared{better}"
            f" ({self.rows:,} rows, {self.boxes:,} boxes)"
        )


def compare_notations(rows: Iterable[NumberedRow], declared: FrameSpec) -> NotationComparison:
    """Return how well the numbers fit the annotated boxes, as declared and in the notation that fits best.

    Boxes are paired one to one for the largest total IoU, whatever their labels. Numbers that a notation does not allow
    count as IoU 0. Of notations that fit equally well the declared one wins.
    """
    usable = [row for row in rows if row.pairs]
    boxes = sum(row.pairs for row in usable)
    candidates = list(notations(declared))
    totals = [sum(_total_iou(row, notation) for row in usable) for notation in candidates]
    best = max(range(len(candidates)), key=lambda n: (round(totals[n], 9), -n))
    first, most = (total / boxes if boxes else 0.0 for total in (totals[0], totals[best]))
    return NotationComparison(candidates[0], first, candidates[best], most, len(usable), boxes)


def notations(declared: FrameSpec) -> Iterator[Notation]:
    """Yield every notation that is tried, the declared one first."""
    names: tuple[FrameName, ...] = ("thousandths", "pixels", "fractions", "padded_square")
    frames = dict.fromkeys([declared, *(FrameSpec(name) for name in names), SENT_PIXELS])
    for order in get_args(Order):
        for frame in frames:
            yield Notation(frame, order)


def _total_iou(row: NumberedRow, notation: Notation) -> float:
    frame = notation.frame.on(*row.size, kept=row.sent)
    decoded = (_box(numbers, frame, notation.order) for numbers in row.numbers)
    return match([box for box in decoded if box is not None], row.boxes).total


def _box(numbers: Sequence[float], frame: Frame, order: Order) -> Box | None:
    try:
        a, b, c, d = map(float, numbers)
        match order:
            case "xyxy":
                return frame.decode(a, b, c, d)
            case "yxyx":
                return frame.decode(b, a, d, c)
            case "xywh":
                return frame.decode(a, b, a + c, b + d)
            case "cxcywh":
                return frame.decode(a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    except (BoxError, TypeError, ValueError, OverflowError):
        return None
