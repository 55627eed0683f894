"""Images with questions that the page offers: drawn when it starts, so that none need be shipped, and photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vcot.datasets.base import QuestionKind


@dataclass(frozen=True)
class Example:
    title: str
    question: str
    kind: str  # of the image, as a Content-Type
    data: bytes


def drawn() -> Iterator[Example]:
    """Of the worlds that the models of examples/ learn from."""
    import numpy as np

    from vcot.datasets.scenes.boards import draw_board
    from vcot.datasets.scenes.drawing import draw_scene
    from vcot.datasets.scenes.objects import SceneSpec, ask
    from vcot.datasets.scenes.puzzles import puzzle

    kinds: tuple[tuple[int, QuestionKind], ...] = ((2, "where"), (12, "count"))
    for seed, kind in kinds:
        dice = np.random.default_rng(seed)
        scene = draw_scene(dice, SceneSpec())
        yield _example("Shapes", ask(dice, scene, kind).text, scene.image)
    dice = np.random.default_rng(2)
    board = puzzle(dice, "following", 4, 6, 0)
    yield _example("Arrows", board.question, draw_board(dice, board.board))


def photographs(folder: Path, most: int = 2) -> Iterator[Example]:
    """Of blood cells, from a checkout's examples; none where it is none."""
    for path in sorted((folder / "images").glob("*.jpg"))[:most]:
        yield Example("Blood cells", "Where is the white blood cell?", "image/jpeg", path.read_bytes())


def _example(title: str, question: str, image: object) -> Example:
    from PIL import Image

    assert isinstance(image, Image.Image)
    png = io.BytesIO()
    image.save(png, "PNG")
    return Example(title, question, "image/png", png.getvalue())
