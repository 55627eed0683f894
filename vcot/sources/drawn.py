"""Drawn scenes as Samples: one picture, one question, exact boxes; needs no files at all.

Scene n is a pure function of the seed and n. Its picture is stored below the stage's own folder, so that it has a
URI like any other; drawing it again gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vcot.grounding import Box, Mention
from vcot.records import Sample
from vcot.sources.desk import Desk
from vcot.sources.row import Row
from vcot.sources.scenes import Pointing, SceneSpec, ask, draw_scene

if TYPE_CHECKING:
    from PIL import Image

LICENCE = "Apache-2.0"


def rows(desk: Desk) -> Iterator[Row]:
    """The kinds of questions take turns."""
    kinds = desk.options.questions
    for number in range(desk.options.scenes):
        yield Row(f"scene:{number:06d}", {"number": number, "kind": kinds[number % len(kinds)]})


def sample(row: Row, desk: Desk) -> Sample:
    number = row.value["number"]
    dice = np.random.default_rng([desk.options.seed, number])
    scene = draw_scene(dice, SceneSpec())
    question = ask(dice, scene, row.value["kind"])
    image = desk.pictures.keep(f"{number:06d}.png", _png(scene.image))
    return Sample(
        id=row.id,
        image=image,
        question=question.text,
        answers=(question.answer,),
        evidence=tuple(
            Mention(part.label, tuple(_box(edges, image.width, image.height) for edges in part.boxes))
            for part in question.reasoning
            if isinstance(part, Pointing)
        ),
        origin=desk.origin(row, image, "scenes"),
    )


def _box(edges: tuple[float, float, float, float], width: int, height: int) -> Box:
    return Box.from_pixels(*edges, width=width, height=height, overhang=1e-3)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
