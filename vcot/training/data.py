"""What one training step learns from: examples become tensors, epochs become batches, rows become what a model takes.

Legend: B rows of a batch, T tokens of a row (of the longest, in a batch), P patches of its images (of all of them).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vcot.errors import InputError
from vcot.models.device import device
from vcot.models.loading import positions
from vcot.records.example import IGNORED, Example, Examples, Row
from vcot.storage import images
from vcot.tokens import Encoder

Item = dict[str, Any]
"""id: str; ids, labels: int64 [T]; positions: int64 [3, T]; pixels: float32 [P, …] and grids: int64 [images, 3], or
None."""


class SFTDataset(Dataset[Item]):
    """Examples as tensors, by row number; images that were cut into patches once are kept while `cache_bytes` suffice.

    Raises (on access):
        InputError: an image cannot be read, or its grid is not the one that tokenize wrote down.
    """

    def __init__(self, examples: Examples, encoder: Encoder, *, cache_bytes: int) -> None:
        self.examples, self._encoder = examples, encoder
        self._free_bytes = cache_bytes
        self._patches: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._items: dict[int, Item] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, row: int) -> Item:
        if row in self._items:
            return self._items[row]
        example = self.examples[row]
        pixels, grids, cached = self._images(example)
        try:
            places = positions(
                example.ids, example.image_grids, image_token_id=self._encoder.processor.image_token_id,
                merge_size=self._encoder.contract.merge_size,
            )  # fmt: skip
        except ValueError as error:
            raise InputError(f"example {example.id}: {error}; run tokenize again") from None
        item = {
            "id": example.id, "ids": torch.tensor(example.ids), "labels": torch.tensor(example.labels),
            "positions": places, "pixels": pixels, "grids": grids,
        }  # fmt: skip
        if cached:
            self._items[row] = item
        return item

    def _images(self, example: Example) -> tuple[Tensor | None, Tensor | None, bool]:
        """The patches of its images one after another and their grids, and whether they stay in memory as they are."""
        if not example.images:
            return None, None, True
        found = [self._image(example, *one) for one in zip(example.images, example.image_grids, strict=True)]
        pixels, grids, cached = zip(*found, strict=True)
        if len(found) > 1:  # put together they are a copy, for which the cache has no room
            return torch.cat(pixels), torch.stack(grids), False
        return pixels[0], torch.stack(grids), cached[0]

    def _image(self, example: Example, data: bytes, written: tuple[int, int, int]) -> tuple[Tensor, Tensor, bool]:
        key = blake2b(data, digest_size=16).digest()
        if key in self._patches:  # several questions about one image
            return *self._patches[key], True
        made = self._encoder.pixels([images.decode(data, f"image of example {example.id}").pixels])
        pixels, grid = made["pixel_values"], made["image_grid_thw"][0]
        if tuple(grid.tolist()) != written:
            raise InputError(
                f"example {example.id}: its image gives the grid {tuple(grid.tolist())} with this base, "
                f"{written} was written down; run tokenize again"
            )
        size = pixels.numel() * pixels.element_size()
        if cached := size <= self._free_bytes:
            self._free_bytes -= size
            self._patches[key] = pixels, grid
        return pixels, grid, cached


class EpochSampler(Sampler[list[int]]):
    """Which rows stand in which batch: a function of seed and epoch alone, so that a resumed run draws the same.

    Of each sample one row (one alternative of its reasoning) is drawn per epoch. With `group_by_length`, rows are
    put into batches with rows of their length, within windows of 16 batches, so that little is padding.
    """

    WINDOW = 16

    def __init__(self, rows: Sequence[Row], *, batch_size: int, seed: int, group_by_length: bool) -> None:
        self.epoch = 0
        self._batch_size, self._seed, self._group_by_length = batch_size, seed, group_by_length
        self._lengths = [row.tokens for row in rows]
        self._samples = list(samples_of(rows, "train").values())

    def __len__(self) -> int:
        return -(-len(self._samples) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        dice = random.Random(f"{self._seed}/{self.epoch}")
        drawn = [dice.choice(alternatives) for alternatives in self._samples]
        dice.shuffle(drawn)
        if not self._group_by_length:
            yield from _batches(drawn, self._batch_size)
            return
        batches = []
        for window in _batches(drawn, self.WINDOW * self._batch_size):
            batches += _batches(sorted(window, key=lambda row: self._lengths[row]), self._batch_size)
        dice.shuffle(batches)
        yield from batches


def validation_batches(rows: Sequence[Row], batch_size: int) -> list[list[int]]:
    """Of the validation split, always the same: the first alternative of each sample, short ones first."""
    chosen = [alternatives[0] for alternatives in samples_of(rows, "validation").values()]
    return _batches(sorted(chosen, key=lambda row: rows[row].tokens), batch_size)


def samples_of(rows: Sequence[Row], split: str) -> dict[str, list[int]]:
    """Sample → its rows, in the order of their alternatives."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row.split == split:
            found[row.sample].append(number)
    return {sample: sorted(numbers, key=lambda n: rows[n].alternative) for sample, numbers in found.items()}


def _batches(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


class Collator:
    """Items → one batch, padded on the right, where the causal mask keeps padding from being seen."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """
        Returns:
            input_ids, labels, attention_mask: int64 [B, T]; position_ids: int64 [3, B, T]; pixel_values: float32
            [P, channels · frames · patch²] and image_grid_thw: int64 [images, 3], where there are images;
            names: the examples' ids.
            Of no items (a rank's share of a small batch): names and labels alone, both empty.
        """
        if not items:
            return {"names": [], "labels": torch.empty(0, 1, dtype=torch.long)}
        longest = max(len(item["ids"]) for item in items)

        def padded(values: Tensor, filling: int) -> Tensor:  # [… t] → [… T]
            return torch.nn.functional.pad(values, (0, longest - values.shape[-1]), value=filling)

        batch: dict[str, Any] = {
            "input_ids": torch.stack([padded(item["ids"], self._pad) for item in items]),
            "labels": torch.stack([padded(item["labels"], IGNORED) for item in items]),
            "attention_mask": torch.stack([padded(torch.ones_like(item["ids"]), 0) for item in items]),
            "position_ids": torch.stack([padded(item["positions"], 0) for item in items], dim=1),
            "names": [item["id"] for item in items],
        }
        seen = [item for item in items if item["pixels"] is not None]
        if seen:
            batch["pixel_values"] = torch.cat([item["pixels"] for item in seen])
            batch["image_grid_thw"] = torch.cat([item["grids"] for item in seen])
        return batch


def loader(
    dataset: SFTDataset, batches: Sampler[list[int]] | list[list[int]], collate: Collator, workers: int
) -> DataLoader[Item]:
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers,
        pin_memory=device().type == "cuda", persistent_workers=workers > 0,
    )  # fmt: skip
