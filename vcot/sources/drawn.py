"""Drawn scenes as Samples: one picture, one question, exact boxes; needs no files at all.

Scene n is a pure function of the seed and n. Its picture is stored below the stage's own folder, so that it has a
URI like any other; drawing it again gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vcot.grounding import Box, Mention
from vcot.records import Sample
from vcot.settings import setting
from vcot.sources.base import ConversionContext, QuestionOptions, dataset
from vcot.sources.row import Row

if TYPE_CHECKING:
    from PIL import Image


class SceneOptions(QuestionOptions):
    scenes: int = setting(200, "scenes: how many are drawn", unit="scenes", ge=1)


def rows(context: ConversionContext) -> Iterator[Row]:
    """The kinds of questions take turns."""
    kinds = context.own.questions
    for number in range(context.own.scenes):
        yield Row(f"scene:{number:06d}", {"number": number, "kind": kinds[number % len(kinds)]})


@dataset(
    "scenes",
    "drawn scenes with exact boxes; needs no input",
    "--scenes 2000",
    options=SceneOptions,
    rows=rows,
    needs_input=False,
    called="scenes",
    licence="Apache-2.0",
)
def sample(row: Row, context: ConversionContext) -> Sample:
    import numpy as np  # which --check need not wait for

    from vcot.sources.scenes import Pointing, SceneSpec, ask, draw_scene

    number = row.value["number"]
    dice = np.random.default_rng([context.options.seed, number])
    scene = draw_scene(dice, SceneSpec())
    question = ask(dice, scene, row.value["kind"])
    image = context.pictures.keep(f"{number:06d}.png", _png(scene.image))
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
        origin=context.origin(row, image, "scenes"),
    )


def _box(edges: tuple[float, float, float, float], width: int, height: int) -> Box:
    return Box.from_pixels(*edges, width=width, height=height, overhang=1e-3)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
