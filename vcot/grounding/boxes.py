"""Boxes, and the numbers in which a text writes them.

A Box is four floats: pixels of the original, upright image, x to the right, y down. The project computes in nothing
else. A text writes other numbers (thousandths of the image, pixels of the resized input, …). Which ones is *declared*
in a FrameSpec, stored with every dataset and every model, and never guessed from how large the numbers are: rounding
costs about one per cent of IoU, a wrong frame half of it.

    FrameSpec("thousandths").on(width, height)  →  Frame:  encode, decode, format

Every frame is the same line on each axis, `number = (pixel + offset) · span / size`, with the three constants of
`FrameSpec.on`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self, SupportsFloat, get_args


class BoxFault(StrEnum):
    """What may be wrong with a box, or with the text that should hold one."""

    NO_BOX_TEXT = "no_box_text"  # a label without a box, or a box without content
    WRONG_COUNT = "wrong_count"  # not four numbers
    NOT_A_NUMBER = "not_a_number"
    NOT_FINITE = "not_finite"
    INVERTED = "inverted"  # x2 < x1 or y2 < y1
    ZERO_AREA = "zero_area"
    OUTSIDE = "outside"  # a place that is not in the image
    OUT_OF_RANGE = "out_of_range"  # numbers that do not fit the declared convention
    UNBALANCED_TAG = "unbalanced_tag"  # opened and not closed, closed and not opened, or closed by another tag


class BoxError(ValueError):
    """A box that cannot be built. `fault` says why in one word, the message with the numbers."""

    def __init__(self, fault: BoxFault, message: str) -> None:
        super().__init__(fault, message)  # both as arguments, so that the error survives pickling
        self.fault = fault
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """Left, top, right and bottom edge in pixels of the original upright image.

    Raises BoxError if an edge is not a finite number, if the box is inverted or empty, or if it begins left of
    or above the image. The right and bottom borders are known only with the image: the `from_…` constructors
    check them, so build a Box through the one that names your numbers.
    """

    x1: float
    y1: float
    x2: float
    y2: float

    def __post_init__(self) -> None:
        floats = type(self.x1) is type(self.y1) is type(self.x2) is type(self.y2) is float
        if floats and 0 <= self.x1 < self.x2 < math.inf and 0 <= self.y1 < self.y2 < math.inf:
            return  # what nearly every box is; the rest says what is wrong with the others
        edges = _floats(self.x1, self.y1, self.x2, self.y2)
        if not floats:
            # Floats always: 100 and 100.0 are equal, but they would be written as different bytes.
            for name, edge in zip(("x1", "y1", "x2", "y2"), edges, strict=True):
                object.__setattr__(self, name, edge)
        _check_order(*edges)
        if self.x1 < 0 or self.y1 < 0:
            raise BoxError(BoxFault.OUTSIDE, f"{self.as_list()} begins outside the image; pixels start at 0")

    @classmethod
    def from_pixels(
        cls, x1: float, y1: float, x2: float, y2: float, *, width: int, height: int, overhang: float = 0.0
    ) -> Self:
        """From pixels of the original image (width × height).

        An edge up to `overhang` pixels outside is moved to the border; further out raises BoxError(OUTSIDE),
        and so does a box of which nothing lies inside. In published datasets 5 px separates careless
        annotation from coordinates of another page.
        """
        _check_size(width, height)
        edges = _floats(x1, y1, x2, y2)
        if 0 <= edges[0] < edges[2] <= width and 0 <= edges[1] < edges[3] <= height:
            return cls(*edges)
        _check_order(*edges)
        excess = max(-edges[0], -edges[1], edges[2] - width, edges[3] - height)
        if excess > overhang:
            raise BoxError(
                BoxFault.OUTSIDE,
                f"{list(edges)} leaves the image of {width}x{height} pixels by {excess:g} px;"
                f" at most {overhang:g} px are allowed",
            )
        return cls(*_cut(edges, width, height))

    @classmethod
    def from_fractions(cls, x1: float, y1: float, x2: float, y2: float, *, width: int, height: int) -> Self:
        """From 0..1 of the image's width and height: x = X · width."""
        return cls(*_FRACTIONS.on(width, height).decode(x1, y1, x2, y2).as_list())

    @classmethod
    def from_padded_square(
        cls, u1: float, v1: float, u2: float, v2: float, *, width: int, height: int, overhang: float | None = None
    ) -> Self:
        """From 0..1 of the image padded to a square (VisCoT, LLaVA-1.5 in pad mode).

        With m = max(width, height): x = u · m − floor((m − width) / 2), y = v · m − floor((m − height) / 2).

        What lies in the padding is cut off, and a box wholly in the padding raises BoxError(OUTSIDE): a model
        is allowed to be a little generous there. An annotation is not: give `overhang`, and a box that leaves
        the image by more pixels than that, and more than three decimals explain (0.0005 · m), is refused as
        in `from_pixels`. Numbers outside 0..1 are then judged by the overhang too.
        """
        frame = _PADDED_SQUARE.on(width, height)
        if overhang is None:
            return cls(*frame.decode(u1, v1, u2, v2).as_list())
        edges = frame.edges(*_floats(u1, v1, u2, v2))
        rounding = 0.0005 * max(width, height) + 1e-6
        return cls.from_pixels(*edges, width=width, height=height, overhang=overhang + rounding)

    def to_fractions(self, *, width: int, height: int) -> tuple[float, float, float, float]:
        """Fractions of the image's width and height, not rounded."""
        return _FRACTIONS.on(width, height).numbers(self)

    def as_list(self) -> list[float]:
        """[x1, y1, x2, y2] in pixels: the form in JSON."""
        return [self.x1, self.y1, self.x2, self.y2]

    @property
    def width(self) -> float:
        return self.x2 - self.x1

    @property
    def height(self) -> float:
        return self.y2 - self.y1

    @property
    def area(self) -> float:
        return self.width * self.height


def iou(a: Box, b: Box) -> float:
    """Intersection over union, 0..1."""
    shared = overlap(a, b)
    union = a.area + b.area - shared
    return shared / union if union > 0 else 0.0


def giou(a: Box, b: Box) -> float:
    """Generalised IoU, −1..1: the IoU less the empty share of the hull (Rezatofighi et al. 2019, eq. 1–3).

    Unlike IoU it still says which of two misses is nearer.
    """
    shared = overlap(a, b)
    union = a.area + b.area - shared
    hull = (max(a.x2, b.x2) - min(a.x1, b.x1)) * (max(a.y2, b.y2) - min(a.y1, b.y1))
    return iou(a, b) - (hull - union) / hull if hull > 0 else -1.0


def overlap(a: Box, b: Box) -> float:
    """Square pixels that two boxes share."""
    across = min(a.x2, b.x2) - max(a.x1, b.x1)
    down = min(a.y2, b.y2) - max(a.y1, b.y1)
    return across * down if across > 0 and down > 0 else 0.0


def smart_resize(width: int, height: int, *, min_pixels: int, max_pixels: int, factor: int = 28) -> tuple[int, int]:
    """The size (width, height) at which a Qwen2-VL, Qwen2.5-VL (factor 28) or Qwen3-VL (32) sees an image.

    Both sides become multiples of `factor`, the area goes into min_pixels..max_pixels, the aspect ratio is
    kept as well as that allows. Python's rounding, half to even, is part of the formula. Held equal to the
    image processor of transformers by a test: where its formula and a paper's differ (sides shorter than half
    a factor), the processor is right, because it makes what the model sees.

    Raises ValueError for a side ratio above 200 and for limits that make no sense.
    """
    _check_size(width, height)
    if not 1 <= min_pixels <= max_pixels or factor < 1:
        raise ValueError(
            "smart_resize needs 1 <= min_pixels <= max_pixels and a positive factor;"
            f" got min_pixels={min_pixels}, max_pixels={max_pixels}, factor={factor}"
        )
    ratio = max(width, height) / min(width, height)
    if ratio > 200:
        raise ValueError(f"an image of {width}x{height} has a side ratio of {ratio:.0f}; at most 200 is possible")
    across = round(width / factor) * factor
    down = round(height / factor) * factor
    if across * down > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        across = max(factor, math.floor(width / shrink / factor) * factor)
        down = max(factor, math.floor(height / shrink / factor) * factor)
    elif across * down < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        across = math.ceil(width * grow / factor) * factor
        down = math.ceil(height * grow / factor) * factor
    return across, down


FrameName = Literal["thousandths", "resized_pixels", "pixels", "padded_square", "fractions"]


@dataclass(frozen=True)
class FrameSpec:
    """Which numbers a text uses for its boxes: the declared convention of a dataset or a model.

    `resized_pixels` needs the pixel limits of the processor, because labels made with other limits than the
    model is served with are wrong labels. For the other names the limits mean nothing and are dropped, so that
    two specs are equal exactly if they say the same. Raises ValueError for an unknown name or missing limits.
    """

    name: FrameName
    min_pixels: int | None = None
    max_pixels: int | None = None
    factor: int = 28

    def __post_init__(self) -> None:
        if self.name not in get_args(FrameName):
            raise ValueError(f"unknown frame {self.name!r}; known are {', '.join(get_args(FrameName))}")
        if self.name != "resized_pixels":
            object.__setattr__(self, "min_pixels", None)
            object.__setattr__(self, "max_pixels", None)
            object.__setattr__(self, "factor", 28)
        elif self.min_pixels is None or self.max_pixels is None:
            raise ValueError(
                "the frame resized_pixels needs min_pixels and max_pixels, the limits of the model's processor;"
                f" got min_pixels={self.min_pixels}, max_pixels={self.max_pixels}"
            )

    def on(self, width: int, height: int, *, kept: tuple[int, int] | None = None) -> Frame:
        """The frame on one image of this original, upright size in pixels.

        `kept`: (width, height) of the image that the processor is handed, where that is a smaller one. Boxes are
        of the original all the same, but the processor resizes what it gets.
        """
        _check_size(width, height)
        sizes, offsets = (width, height), (0, 0)
        match self.name:
            case "resized_pixels":
                assert self.min_pixels is not None  # __post_init__ saw to it
                assert self.max_pixels is not None
                limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels, "factor": self.factor}
                spans, decimals = smart_resize(*(kept or (width, height)), **limits), 0
            case "padded_square":
                side = max(width, height)
                sizes, offsets = (side, side), ((side - width) // 2, (side - height) // 2)
                spans, decimals = (1, 1), 3
            case "pixels":
                spans, decimals = (width, height), 2
            case "thousandths":
                spans, decimals = (1000, 1000), 0
            case "fractions":
                spans, decimals = (1, 1), 3
        x_axis, y_axis = map(_Axis, offsets, sizes, spans)
        return Frame(self.name, width, height, x_axis, y_axis, decimals)

    def to_dict(self) -> dict[str, str | int]:
        """For JSON; only what has a meaning for this name."""
        if self.min_pixels is None or self.max_pixels is None:
            return {"name": self.name}
        limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return {"name": self.name, **limits, "factor": self.factor}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of to_dict. Raises ValueError for unknown names and for unknown or missing entries."""
        unknown = set(data) - {"name", "min_pixels", "max_pixels", "factor"}
        if unknown or "name" not in data:
            raise ValueError(
                f"a frame is {{name, min_pixels, max_pixels, factor}} with at least a name; got {dict(data)}"
            )
        return cls(**data)


@dataclass(frozen=True)
class _Axis:
    """number = (pixel + offset) · span / size, over the pixels of one side of the image."""

    offset: int
    size: int
    span: int  # numbers run from 0 to this

    def number(self, pixel: float) -> float:
        return (pixel + self.offset) * self.span / self.size

    def pixel(self, number: float) -> float:
        return number * self.size / self.span - self.offset


@dataclass(frozen=True)
class Frame:
    """A FrameSpec on one image. Numbers are written with `decimals` digits; one unit is the last of them."""

    name: FrameName
    width: int
    height: int
    x_axis: _Axis = field(hash=False)
    y_axis: _Axis = field(hash=False)
    decimals: int

    def encode(self, box: Box) -> tuple[int | float, ...]:
        """The four numbers a text writes: integers, or floats rounded to the frame's decimals.

        Each is within half a unit of the truth. A box thinner than a unit is widened to one, so that it can be
        read again; then each number is within one unit. Raises BoxError(OUTSIDE) if the box leaves this image
        by more than a pixel, because then it was measured on another one.
        """
        if box.x2 > self.width + 1 or box.y2 > self.height + 1:
            raise BoxError(
                BoxFault.OUTSIDE, f"{box.as_list()} is not a box of this image of {self.width}x{self.height} pixels"
            )
        x1, x2 = self._round(self.x_axis, box.x1, box.x2)
        y1, y2 = self._round(self.y_axis, box.y1, box.y2)
        return x1, y1, x2, y2

    def decode(self, x1: float, y1: float, x2: float, y2: float) -> Box:
        """The box that these numbers mean.

        Up to two units outside the range (1001 of 1000, 1.002 of 1) are rounding and are moved to the border.
        Raises BoxError; OUT_OF_RANGE if the numbers cannot be of this frame: too large, negative, or, in a
        frame of whole numbers, all of them fractions of one. In the frame of original pixels a number outside
        the range is a place outside the image: OUTSIDE.
        """
        numbers = _floats(x1, y1, x2, y2)
        self._check_range(numbers)
        _check_order(*numbers)
        return Box(*_cut(self.edges(*numbers), self.width, self.height))

    def format(self, box: Box) -> str:
        """The numbers as text: "[100, 200, 300, 400]", "[0.282, 0.316, 0.794, 0.738]"."""
        return f"[{', '.join(self.digits(box))}]"

    def digits(self, box: Box) -> tuple[str, ...]:
        """The four numbers as text, one by one."""
        numbers = self.encode(box)
        return tuple(f"{n:.{self.decimals}f}" for n in numbers) if self.decimals else tuple(map(str, numbers))

    def numbers(self, box: Box) -> tuple[float, float, float, float]:
        """The numbers of a box, neither rounded nor checked."""
        x, y = self.x_axis.number, self.y_axis.number
        return x(box.x1), y(box.y1), x(box.x2), y(box.y2)

    @property
    def range(self) -> str:
        """What the numbers run over: "0..1000", or "0..196 across and 0..112 down"."""
        x, y = self.x_axis.span, self.y_axis.span
        return f"0..{x}" if x == y else f"0..{x} across and 0..{y} down"

    def edges(self, x1: float, y1: float, x2: float, y2: float) -> tuple[float, float, float, float]:
        """The original pixels of four numbers, neither cut at the border nor checked."""
        x, y = self.x_axis.pixel, self.y_axis.pixel
        return x(x1), y(y1), x(x2), y(y2)

    def _round(self, axis: _Axis, low: float, high: float) -> tuple[float, float]:
        units = 10**self.decimals
        top = axis.span * units
        exact_low, exact_high = axis.number(low) * units, axis.number(high) * units
        first, last = max(0, round(exact_low)), min(top, round(exact_high))
        if first >= last:
            # Around the middle, which is inside the image, and so is some of the unit that holds it.
            first = max(0, min(math.floor((exact_low + exact_high) / 2), top - 1))
            last = first + 1
        return (first, last) if self.decimals == 0 else (first / units, last / units)

    def _check_range(self, numbers: tuple[float, float, float, float]) -> None:
        slack = 2 / 10**self.decimals if self.name != "pixels" else 1.0
        tops = (self.x_axis.span, self.y_axis.span) * 2
        tiny = self.decimals == 0 and max(numbers) <= 1 and any(n != int(n) for n in numbers)
        fits = all(-slack <= n <= top + slack for n, top in zip(numbers, tops, strict=True))
        if fits and not tiny:
            return
        raise BoxError(
            BoxFault.OUTSIDE if self.name == "pixels" else BoxFault.OUT_OF_RANGE,
            f"{list(numbers)} does not fit the declared frame {self.name}, which runs over {self.range}"
            f" on an image of {self.width}x{self.height} pixels",
        )


_FRACTIONS = FrameSpec("fractions")
_PADDED_SQUARE = FrameSpec("padded_square")


def _floats(*numbers: SupportsFloat) -> tuple[float, float, float, float]:
    try:
        x1, y1, x2, y2 = map(float, numbers)
    except OverflowError:  # an integer too large for a float
        raise BoxError(BoxFault.NOT_FINITE, f"a box needs finite numbers; got {list(numbers)!r:.200}") from None
    except (TypeError, ValueError):
        raise BoxError(BoxFault.NOT_A_NUMBER, f"a box needs four numbers; got {list(numbers)!r:.200}") from None
    finite = math.isfinite
    if not (finite(x1) and finite(y1) and finite(x2) and finite(y2)):
        raise BoxError(BoxFault.NOT_FINITE, f"a box needs finite numbers; got {[x1, y1, x2, y2]}")
    return x1, y1, x2, y2


def _check_order(x1: float, y1: float, x2: float, y2: float) -> None:
    if x2 < x1 or y2 < y1:
        raise BoxError(BoxFault.INVERTED, f"{[x1, y1, x2, y2]} is inverted; left, top, right, bottom is the order")
    if x1 == x2 or y1 == y2:
        raise BoxError(BoxFault.ZERO_AREA, f"{[x1, y1, x2, y2]} is empty; a box needs x1 < x2 and y1 < y2")


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ValueError(f"an image has at least one pixel; got {width}x{height}")


def _cut(edges: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    """The part inside the image. Raises BoxError(OUTSIDE) if there is none."""
    x1, y1, x2, y2 = edges
    if 0.0 <= x1 < x2 <= width and 0.0 <= y1 < y2 <= height:
        return edges
    x1, x2 = min(max(x1, 0.0), float(width)), min(max(x2, 0.0), float(width))
    y1, y2 = min(max(y1, 0.0), float(height)), min(max(y2, 0.0), float(height))
    if x1 >= x2 or y1 >= y2:
        raise BoxError(BoxFault.OUTSIDE, f"{list(edges)} lies outside the image of {width}x{height} pixels")
    return x1, y1, x2, y2


# --- where a box lies, in words ---------------------------------------------------------------------------


def place(box: Box, width: int, height: int) -> str:
    """One of nine words by the thirds of the image that hold the box's centre.

    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right".
    """
    x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
    row = ("top", "", "bottom")[min(int(3 * y / height), 2)]
    column = ("left", "", "right")[min(int(3 * x / width), 2)]
    return f"{row} {column}".strip() or "centre"


# --- predicted and true boxes, paired one to one ----------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """Pairs (index of the predicted box, index of the true box, their IoU > 0), by predicted index.

    No index occurs twice on its side: a box that is predicted three times finds one partner.
    """

    pairs: tuple[tuple[int, int, float], ...]

    @property
    def total(self) -> float:
        """The sum of the pairs' IoU."""
        return math.fsum(overlap for _, _, overlap in self.pairs)


Pairable = Sequence[Sequence[bool]]
"""For each predicted box (row) and each true one (column), whether they may be a pair; by their labels, say."""


def match(predicted: Sequence[Box], true: Sequence[Box], pairable: Pairable | None = None) -> Match:
    """The pairing with the largest total IoU (Hungarian method). The same boxes in the same order give the same
    pairs, also where several pairings are equally good. `pairable` None: every box may go with every other."""
    overlaps = _overlaps(predicted, true, pairable)
    return _assign(overlaps, overlaps)


def match_at(
    predicted: Sequence[Box], true: Sequence[Box], threshold: float, pairable: Pairable | None = None
) -> Match:
    """The largest possible number of pairs with IoU >= threshold; among those, the largest total IoU.

    This is not `match` with the weak pairs left out: that may give away a second good pair for a better total.
    Raises ValueError unless 0 < threshold <= 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"an IoU threshold lies in 0 < threshold <= 1; got {threshold}")
    overlaps = _overlaps(predicted, true, pairable)
    # A pair more is worth more than all the IoU that any pairing can add up to.
    pair = 1.0 + min(len(predicted), len(true))
    return _assign(overlaps, [[pair + o if o >= threshold else 0.0 for o in row] for row in overlaps])


def _overlaps(predicted: Sequence[Box], true: Sequence[Box], pairable: Pairable | None) -> list[list[float]]:
    return [
        [iou(p, t) if pairable is None or pairable[i][j] else 0.0 for j, t in enumerate(true)]
        for i, p in enumerate(predicted)
    ]


def _assign(overlaps: list[list[float]], gains: list[list[float]]) -> Match:
    """The pairing with the largest total gain, without the pairs that gain nothing."""
    if not gains or not gains[0]:
        return Match(())
    # Here, not above: scipy takes longer to import than everything else in this room, and few need it.
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(gains, maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return Match(tuple((p, t, overlaps[p][t]) for p, t in pairs if gains[p][t] > 0))
