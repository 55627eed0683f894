"""Boards of cells: pictures in which seeing is easy, so that a question about them can be hard for another reason.

A board is a grid of square cells, each of one colour, with arrows to its neighbours, a frame or a ball. Cells are as
large as a visual token of most models (28 pixels), so what is in a cell takes one look. Everything is a pure function
of the random generator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vcot.datasets.scenes.drawing import shade_of
from vcot.datasets.scenes.objects import BoxXYXY

CELL = 28
"""Pixels of a cell's side."""

Direction = Literal["right", "down", "left", "up"]


class Place(NamedTuple):
    """Row and column of a cell, from 0 at the top left."""

    row: int
    column: int

    def step(self, direction: Direction) -> Place:
        down, right = STEPS[direction]
        return Place(self.row + down, self.column + right)

    @property
    def box(self) -> BoxXYXY:
        """Pixels of the board's image."""
        x, y = float(self.column * CELL), float(self.row * CELL)
        return x, y, x + CELL, y + CELL


STEPS: Mapping[Direction, tuple[int, int]] = MappingProxyType(
    {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}
)
"""Direction → rows and columns that a step goes on."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows: its colour (one of COLOURS), arrows from its middle to these sides, a frame, a ball."""

    colour: str
    arrows: tuple[Direction, ...] = ()
    framed: bool = False
    ball: bool = False


Board = Mapping[Place, Cell]
"""All cells of a rectangle."""


def draw_board(rng: np.random.Generator, board: Board) -> Image.Image:
    """RGB, CELL pixels a cell. The shades, the light and the grain are drawn; what the cells show is not."""
    rows, columns = (max(at) + 1 for at in zip(*board, strict=True))
    canvas = np.zeros((rows * CELL, columns * CELL, 3), np.float32)
    for place, cell in board.items():
        top, left = place.row * CELL, place.column * CELL
        patch = canvas[top : top + CELL, left : left + CELL]
        shade = shade_of(rng, cell.colour, 0.4)
        ink = np.float32(0.0 if cell.colour in _PALE else 1.0)
        patch[:] = shade * 0.7 + 0.15  # a rim that tells a cell from a neighbour of its colour
        patch[1:-1, 1:-1] = shade
        for direction in cell.arrows:
            _blend(patch, _arrow(direction), ink)
        if cell.ball:
            _blend(patch, _disc(), ink)
        if cell.framed:
            _blend(patch, _frame(), ink)
    canvas *= float(rng.uniform(0.88, 1.0))
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * float(rng.uniform(0, 0.03))
    return Image.fromarray((np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8))


_PALE = ("yellow", "white")
_Alpha = NDArray[np.float32]


def _blend(patch: _Alpha, alpha: _Alpha, ink: np.float32) -> None:
    patch += alpha * (ink - patch)


def _stencil(draw: Callable[[ImageDraw.ImageDraw], None]) -> _Alpha:
    """What is drawn on a cell eight times as large, as [CELL, CELL, 1] in 0..1."""
    large = Image.new("L", (8 * CELL, 8 * CELL))
    draw(ImageDraw.Draw(large))
    return np.asarray(large.resize((CELL, CELL), Image.Resampling.BOX), np.float32)[..., None] / np.float32(255)


@lru_cache(maxsize=4)
def _arrow(direction: Direction) -> _Alpha:
    """From the middle to a side."""

    def draw(pen: ImageDraw.ImageDraw) -> None:
        pen.rectangle((84, 100, 140, 124), fill=255)
        pen.polygon(((132, 66), (186, 112), (132, 158)), fill=255)

    turns = {"right": 0, "up": 1, "left": 2, "down": 3}[direction]
    return np.ascontiguousarray(np.rot90(_stencil(draw), turns))


@lru_cache(maxsize=1)
def _disc() -> _Alpha:
    return _stencil(lambda pen: pen.ellipse((62, 62, 162, 162), fill=255))


@lru_cache(maxsize=1)
def _frame() -> _Alpha:
    return _stencil(lambda pen: pen.rectangle((8, 8, 215, 215), outline=255, width=22))
