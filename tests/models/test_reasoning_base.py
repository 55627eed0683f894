"""The base that reads boards: what its recipe shows it, and that the weights beside it read."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcot.datasets.scenes.objects import COLOURS
from vcot.datasets.scenes.puzzles import DIRECTIONS, puzzle
from vcot.grounding import FrameSpec, split_answer
from vcot.grounding.tags import parse

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BASE = EXAMPLES / "reasoning"


@pytest.fixture(scope="module")
def recipe() -> Any:
    """The script that made the weights."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("reasoning.make_base")
    finally:
        sys.path.remove(str(EXAMPLES))


def test_a_batch_is_a_function_of_the_seed_and_its_number(recipe: Any) -> None:
    small = dataclasses.replace(recipe.Recipe(), batch=2, scenes=2)
    first, again, other = (recipe.draw_batches(small, number)[0] for number in (3, 3, 4))
    assert {name: value.tobytes() for name, value in first.items()} == {k: v.tobytes() for k, v in again.items()}
    assert first["pixels"].tobytes() != other["pixels"].tobytes()


@pytest.mark.parametrize("world", ["following", "permuting"])
def test_it_looks_where_what_it_says_is_seen(recipe: Any, world: str) -> None:
    """At each colour that it is to say while it looks somewhere, that square has this colour; none is held out."""
    rng = np.random.default_rng(5)
    batch = recipe.encoded([recipe.drawn_board(rng, world) for _ in range(10)], recipe.Recipe())
    decode, seen = recipe.encoder().tok.decode, 0
    for ids, looks, weights, cells in zip(batch["ids"], batch["looks"], batch["weights"], batch["cells"], strict=True):
        # The token at which it looks is the one before the one that it says.
        for place in np.flatnonzero((looks[:-1] >= 0) & (weights[1:] > 1)):
            word, (colour, *marks) = decode([int(ids[place + 1])]).strip(), cells[looks[place]]
            assert word == COLOURS[colour] or (word in DIRECTIONS and marks[DIRECTIONS.index(word)])
            seen += 1
    assert seen > 30


needs_weights = pytest.mark.skipif(not (BASE / "model.safetensors").is_file(), reason="examples/reasoning: no weights")


@needs_weights
def test_the_weights_read_boards_they_have_not_seen(recipe: Any) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(BASE)
    processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 66640}
    rng = np.random.default_rng(11)
    drawn = [puzzle(rng, "following", 1, 6, number) for number in range(400)]
    drawn = [one for one in drawn if one.held_out][:24]
    images = [recipe.draw_board(rng, one.board) for one in drawn]
    said = recipe.pointing.reply(model, processor, images, [one.question for one in drawn])
    frame = FrameSpec("thousandths").on(*images[0].size)
    right = [split_answer(text)[1] == one.answer for text, one in zip(said, drawn, strict=True)]
    assert sum(right) >= 22
    for text, one, good in zip(said, drawn, right, strict=True):
        boxes = parse(split_answer(text)[0], frame).boxes
        places = [(round(box.y1 / 28), round(box.x1 / 28)) for box in boxes]
        assert not good or places == [(seen.places[0].row, seen.places[0].column) for seen in one.routes[0]]


@needs_weights
def test_the_weights_of_both_bases_are_small_together() -> None:
    sizes = [(EXAMPLES / name / "model.safetensors").stat().st_size for name in ("rehearsal", "reasoning")]
    assert sum(sizes) <= 16_000_000
