"""Samples made for the tests of the teacher: a drawn image of known size, objects where the test says."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any, Literal

from PIL import Image as Pillow

from vcot.grounding import Box, Mention
from vcot.records import Image, Origin, Sample

WIDTH, HEIGHT = 320, 240

TOP_LEFT = Box(10, 20, 60, 70)
CENTRE = Box(140, 100, 180, 140)
RIGHT = Box(250, 90, 310, 150)


def draw_png(width: int = WIDTH, height: int = HEIGHT, shade: int = 90) -> bytes:
    data = io.BytesIO()
    Pillow.new("RGB", (width, height), (shade, 120, 40)).save(data, "PNG")
    return data.getvalue()


def see(label: str, *boxes: Box) -> Mention:
    return Mention(label, boxes)


def sample(
    question: str = "Where is the red disc?",
    *answers: str,
    evidence: tuple[Mention, ...] | None = (Mention("red disc", (TOP_LEFT,)),),
    split: Literal["train", "validation", "test"] = "train",
    uri: str = "images/one.png",
    name: str = "one",
    data: bytes | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
    **more: Any,
) -> Sample:
    digest = hashlib.sha256(data if data is not None else draw_png()).hexdigest()
    return Sample(
        id=name,
        image=Image(uri=uri, width=width, height=height, sha256=digest),
        question=question,
        answers=answers or ("top left",),
        evidence=evidence,
        origin=Origin(dataset="made", split=split, row=name, licence="CC0-1.0"),
        **more,
    )


def stored(folder: Path, name: str = "one", **given: Any) -> Sample:
    """A sample whose image lies in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    path.write_bytes(draw_png())
    return sample(uri=str(path), name=name, **given)
