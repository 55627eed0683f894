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

from vcot.grounding import FrameSpec
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
