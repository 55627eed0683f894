"""What is cut out of an image to look at one thing, and decoys: cut-outs that do not show it.

Sides are padded, so that a thing is seen with what is around it, and small cut-outs are enlarged; the same object
always gives the same cut-out. Pixels are those of the upright original.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from vcot.grounding import Box
from vcot.records import Image
from vcot.teacher.request import Picture

PAD, LEAST_PAD = 0.15, 16.0
"""Added on each side: this share of the box's side, at least so many pixels."""

SHORT_SIDE = 336
"""Pixels that the short side of a cut-out has at least, as it is sent."""

MOST = 8
"""Cut-outs in one request; where there is more to show, one around everything takes their place."""

_TRIES = 32
_SHARED = 0.1


@dataclass(frozen=True)
class Crop:
    """`box` is cut out and enlarged by `scale`: x in the image = box.x1 + x in the cut-out / scale."""

    box: Box
    scale: float

    @property
    def size(self) -> tuple[int, int]:
        return round(self.box.width * self.scale), round(self.box.height * self.scale)


def crop_of(box: Box, image: Image) -> Crop:
    """The cut-out that shows this box."""
    across, down = max(PAD * box.width, LEAST_PAD), max(PAD * box.height, LEAST_PAD)
    wide = Box(
        max(0.0, box.x1 - across), max(0.0, box.y1 - down),
        min(float(image.width), box.x2 + across), min(float(image.height), box.y2 + down),
    )  # fmt: skip
    return Crop(wide, max(1.0, SHORT_SIDE / min(wide.width, wide.height)))


def shown(box: Box, image: Image, side: int) -> Picture:
    """The cut-out around a box as a part of a request."""
    return Picture(image, side, crop_of(box, image).box, least=SHORT_SIDE)


def evidence(boxes: Sequence[Box], image: Image, side: int) -> list[Picture]:
    """The cut-outs that show all these boxes; the whole image where there is none (nothing there is seen by looking
    everywhere)."""
    boxes = list(dict.fromkeys(boxes))
    if not boxes:
        return [Picture(image, side)]
    if len(boxes) > MOST:
        boxes = [hull(boxes)]
    return [shown(box, image, side) for box in boxes]


def hull(boxes: Sequence[Box]) -> Box:
    return Box(
        min(b.x1 for b in boxes), min(b.y1 for b in boxes), max(b.x2 for b in boxes), max(b.y2 for b in boxes)
    )  # fmt: skip


def decoy(box: Box, others: Sequence[Box], image: Image, seed: str) -> Box | None:
    """A place of the same size that shows none of these boxes, chosen by the seed; None where no such place is found.

    It may show another thing of the same name that nobody has marked. The rate at which decoys are accepted is
    therefore an upper limit of how often nonsense is.
    """
    draw = random.Random(seed)
    taken = [crop_of(one, image).box for one in (box, *others)]
    for _ in range(_TRIES):
        left, top = draw.uniform(0, image.width - box.width), draw.uniform(0, image.height - box.height)
        place = Box(left, top, left + box.width, top + box.height)
        if all(_covered(crop_of(place, image).box, one) <= _SHARED for one in taken):
            return place
    return None


def _covered(a: Box, b: Box) -> float:
    """The share of the smaller that the two have in common."""
    across, down = min(a.x2, b.x2) - max(a.x1, b.x1), min(a.y2, b.y2) - max(a.y1, b.y1)
    return across * down / min(a.area, b.area) if across > 0 and down > 0 else 0.0
