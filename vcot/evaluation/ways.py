"""Ways to ask the same question, and the prompt that a model of any kind is given.

direct       the answer alone
reason       reasoning in words, then the answer
ground       reasoning with boxes, then the answer: in the form that the subject was tuned in, or its family's own
look-again   a box, then the question again with what is in it as a second image (VisCoT, Shao et al. 2024)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

from vcot.grounding import Box, FrameSpec
from vcot.records import Sample

Way = Literal["direct", "reason", "ground", "look-again"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True)
class Prompt:
    """What a model is asked, whatever runs it.

    Attributes:
        sample: the question with its context, choices and earlier turns.
        images: upright RGB, those that the turns and the question show, in their order; none of a question by text.
        instruction: stands below the question.
        frame: in which boxes of the earlier turns are written.
        prefix: how the reply begins; the model goes on from there.
    """

    sample: Sample
    images: tuple[Image.Image, ...]
    instruction: str | None
    frame: FrameSpec
    prefix: str = ""


LEAST_HALF_SIDE = 112
"""Pixels of the original: VisCoT's encoder sees 224 x 224, and nothing smaller is cut out for it."""


def viscot_crop(box: Box, width: int, height: int) -> Box:
    """The square that VisCoT cuts out of an image of width x height for its second turn, in whole original pixels.

    Its centre is the box's, rounded down; its half side is the longer half side of the box, rounded down, and at least
    112 pixels. A square that leaves the image is moved inside, at the left and upper border first; of one that is
    larger than the image, what lies inside is left (VisCoT's evaluation code, Shao et al. 2024, arXiv 2403.16999).

    Raises BoxError: the box leaves the image.
    """
    box = Box.from_pixels(*box.as_list(), width=width, height=height)
    half = max(box.width // 2, box.height // 2, LEAST_HALF_SIDE)
    x1, x2 = _moved_inside((box.x1 + box.x2) // 2, half, width)
    y1, y2 = _moved_inside((box.y1 + box.y2) // 2, half, height)
    return Box(x1, y1, x2, y2)


def _moved_inside(middle: float, half: float, size: int) -> tuple[float, float]:
    """Both ends of 2 * half pixels round the middle, on an axis of `size` pixels."""
    middle = max(middle, half)
    middle = min(middle, size - half)
    return max(0.0, middle - half), min(float(size), middle + half)
