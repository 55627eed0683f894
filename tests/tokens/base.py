"""The rehearsal base's processor, and Samples to feed it with. Fixtures for tests that need a processor:

from tests.tokens.base import *  # in a conftest.py
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import pytest
from PIL import Image as PILImage

from tests.training.toy import MAX_PIXELS, MIN_PIXELS, toy_base, toy_encoder
from vcot.grounding import Box, Mention, Trace
from vcot.grounding.ways import LearnedWay
from vcot.records import Image, Origin, Rejection, Sample
from vcot.records.example import IGNORED, Example
from vcot.storage import images
from vcot.tokens import Encoder, contract_of
from vcot.tokens.rows import check_mask

__all__ = ["processor", "toy_base", "toy_encoder"]


@pytest.fixture(scope="session")
def processor(toy_base: Any) -> Any:
    from vcot.tokens import load_processor

    return load_processor(toy_base, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)


def png(width: int = 320, height: int = 240, colour: str = "navy") -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


DISC = Mention("red disc", (Box(32.0, 24.0, 96.0, 72.0),))  # [100, 100, 300, 300] in thousandths of 320x240
WHERE = Trace(("The ", DISC, " is at the top left."))


def sample(data: bytes | None = None, uri: str = "a.png", **changes: Any) -> Sample:
    """A question about a disc in an image of 320x240 pixels, or of the image given."""
    data = data or png()
    width, height = PILImage.open(io.BytesIO(data)).size
    values: dict[str, Any] = {
        "id": "s1",
        "image": Image(uri=uri, width=width, height=height, sha256=hashlib.sha256(data).hexdigest()),
        "question": "Where is the red disc?",
        "answers": ("top left",),
        "reasoning": (WHERE,),
        "evidence": (DISC,),
        "origin": Origin(dataset="drawn", split="train", row="1", licence="MIT"),
    }
    return Sample(**(values | changes))


SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def encoder(processor: Any, **changes: Any) -> Encoder:
    values: dict[str, Any] = {"mode": "multimodal", "frame": "thousandths", "max_length": 512}
    return Encoder(processor, contract_of(processor, **(values | changes)))


def made(
    coder: Encoder, row: Sample, data: bytes | None = None, alternative: int = 0, way: LearnedWay = "ground"
) -> Example | Rejection:
    data = data or png(row.image.width, row.image.height)
    return coder.example(row, alternative, [images.decode(data, "a.png")], [data], way)


def example(
    coder: Encoder, row: Sample, data: bytes | None = None, alternative: int = 0, way: LearnedWay = "ground"
) -> Example:
    found = made(coder, row, data, alternative, way)
    assert isinstance(found, Example), found
    check_mask(found, coder.processor)
    return found


def halves(found: Example, processor: Any) -> tuple[str, str]:
    """The text that is given, and the text that is learned."""
    parts = []
    for wanted in (False, True):
        ids = [i for i, label in zip(found.ids, found.labels, strict=True) if (label != IGNORED) == wanted]
        parts.append(processor.tokenizer.decode(ids))
    return parts[0], parts[1]
