"""What one training step learns from: examples become tensors, epochs become batches.

Legend: T tokens of a row, P patches of its image.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vcot.errors import InputError
from vcot.models import device, positions
from vcot.records.example import Example, Examples, Row
from vcot.storage import images
from vcot.tokens import Encoder
from vcot.training.collator import Collator, Item


class SFTDataset(Dataset[Item]):
    """Examples as tensors, by row number; images that were cut into patches once are kept while there is room.

    Args:
        cache_bytes: for patches, in this process.

    Raises (on access):
        InputError: an image cannot be read, or its grid is not the one that tokenize wrote down.
    """

    def __init__(self, examples: Examples, encoder: Encoder, *, cache_bytes: int) -> None:
        self.examples, self._encoder = examples, encoder
        self._room = cache_bytes
        self._cut: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._ready: dict[int, Item] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> Item:
        if row in self._ready:
            return self._ready[row]
        example = self.examples[row]
        pixels, grid, kept = self._image(example)
        item = {
            "id": example.id,
            "ids": torch.tensor(example.ids),
            "labels": torch.tensor(example.labels),
            "positions": self._positions(example),
            "pixels": pixels,
            "grid": grid,
        }
        if kept:
            self._ready[row] = item
        return item

    def _positions(self, example: Example) -> Tensor:
        try:
            return positions(
                example.ids,
                example.image_grid,
                image_token_id=self._encoder.processor.image_token_id,
                merge_size=self._encoder.contract.merge_size,
            )
        except ValueError as error:
            raise InputError(f"example {example.id}: {error}; run tokenize again") from None

    def _image(self, example: Example) -> tuple[Tensor | None, Tensor | None, bool]:
        if example.image is None:
            return None, None, True
        key = blake2b(example.image, digest_size=16).digest()
        if key in self._cut:  # several questions about one image
            return *self._cut[key], True
        image = images.decode(example.image, f"image of example {example.id}")
        cut = self._encoder.pixels([image.pixels])
        pixels, grid = cut["pixel_values"], cut["image_grid_thw"][0]
        if tuple(grid.tolist()) != example.image_grid:
            raise InputError(
                f"example {example.id}: its image gives the grid {tuple(grid.tolist())} with this base, "
                f"{example.image_grid} was written down; run tokenize again"
            )
        size = pixels.numel() * pixels.element_size()
        kept = size <= self._room
        if kept:
            self._room -= size
            self._cut[key] = (pixels, grid)
        return pixels, grid, kept


class Epochs(Sampler[list[int]]):
    """Which rows stand in which batch: a function of seed and epoch alone, so that a resumed run draws the same.

    Of each sample one row (one alternative of its reasoning) is drawn per epoch. With `similar_lengths`, rows are
    put into batches with rows of their length, within windows of 16 batches, so that little is padding.
    """

    WINDOW = 16

    def __init__(self, rows: Sequence[Row], *, batch_size: int, seed: int, similar_lengths: bool) -> None:
        self.epoch = 0
        self._batch_size, self._seed, self._similar = batch_size, seed, similar_lengths
        self._lengths = [row.tokens for row in rows]
        self._samples = list(samples_of(rows, "train").values())

    def __len__(self) -> int:
        return -(-len(self._samples) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        dice = random.Random(f"{self._seed}/{self.epoch}")
        drawn = [dice.choice(alternatives) for alternatives in self._samples]
        dice.shuffle(drawn)
        if not self._similar:
            yield from _cut(drawn, self._batch_size)
            return
        batches = []
        for window in _cut(drawn, self.WINDOW * self._batch_size):
            batches += _cut(sorted(window, key=lambda row: self._lengths[row]), self._batch_size)
        dice.shuffle(batches)
        yield from batches


def held_out(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Batches of the validation split, always the same: the first alternative of each sample, short ones first."""
    chosen = [alternatives[0] for alternatives in samples_of(rows, "validation").values()]
    return _cut(sorted(chosen, key=lambda row: rows[row].tokens), batch_size)


def samples_of(rows: Sequence[Row], split: str) -> dict[str, list[int]]:
    """Sample → its rows, in the order of their alternatives."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row.split == split:
            found[row.sample].append(number)
    return {sample: sorted(numbers, key=lambda n: rows[n].alternative) for sample, numbers in found.items()}


def loader(
    dataset: SFTDataset, batches: Sampler[list[int]] | list[list[int]], collate: Collator, workers: int
) -> DataLoader[Item]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=device().type == "cuda",
        persistent_workers=workers > 0,
    )


def _cut(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
