"""Examples become tensors, and several of them what a model takes at once: padded, or packed end to end.

Legend: B rows of a batch, T tokens of a row (of the longest in a padded batch, of all in a packed one), P patches of
all images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vcot.errors import InputError
from vcot.models.device import device
from vcot.records.example import IGNORED, Example, Examples
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
        self.free_bytes = cache_bytes
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
            places = self._encoder.family.positions(
                example.ids, example.image_grids, image_token_id=self._encoder.processor.image_token_id,
                merge_size=self._encoder.contract.merge_size,
            )  # fmt: skip
        except ValueError as error:
            raise InputError(f"example {example.id}: {error}; run tokenize again") from None
        item = {
            "id": example.id, "ids": torch.tensor(example.ids), "labels": torch.tensor(example.labels),
            "positions": places, "pixels": pixels, "grids": grids,
        }  # fmt: skip
        size = 5 * places.nbytes // 3  # with ids and labels
        if cached and size <= self.free_bytes:
            self.free_bytes -= size
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
        if cached := size <= self.free_bytes:
            self.free_bytes -= size
            self._patches[key] = pixels, grid
        return pixels, grid, cached


class Collator:
    """Items → what the model's forward takes, and beside it what the trainer counts (`names`, `tokens`).

    packed: rows lie end to end in one, each with positions of its own, and `row_bounds` keeps their attention apart.
    Else they are padded on the right. No mask either way: causal attention keeps what is learned from seeing padding,
    and a mask would shut out the fast kernels.
    """

    def __init__(self, pad_token_id: int, *, packed: bool = False) -> None:
        self._pad, self._packed = pad_token_id, packed

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """
        Returns:
            input_ids, labels: int64 [B, T], or [1, T] packed; position_ids: int64 [3, B, T]; pixel_values: float32
            [P, channels · frames · patch²] and image_grid_thw: int64 [images, 3], where there are images.
            Packed also row_bounds: int32 [rows + 1], where rows begin and the last ends; longest_row: int.
            names: the examples' ids. tokens: how many are real.
            Of no items (a rank's share of a small step): a row of one token, which teaches nothing.
        """
        names, tokens = [item["id"] for item in items], sum(len(item["ids"]) for item in items)
        if not items:
            nothing = torch.full((1,), self._pad)
            empty = {"ids": nothing, "labels": nothing, "positions": nothing.new_zeros(3, 1), "pixels": None}
            items = [empty]
        labels = [_first_ignored(item["labels"]) for item in items]
        batch: dict[str, Any]
        if self._packed:
            lengths = [len(row) for row in labels]
            batch = {
                "input_ids": torch.cat([item["ids"] for item in items])[None],
                "labels": torch.cat(labels)[None],
                "position_ids": torch.cat([item["positions"] for item in items], dim=1)[:, None],
                "row_bounds": torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32),
                "longest_row": max(lengths),
            }
        else:
            longest = max(map(len, labels))

            def padded(values: Tensor, filling: int) -> Tensor:  # [… t] → [… T]
                return torch.nn.functional.pad(values, (0, longest - values.shape[-1]), value=filling)

            batch = {
                "input_ids": torch.stack([padded(item["ids"], self._pad) for item in items]),
                "labels": torch.stack([padded(row, IGNORED) for row in labels]),
                "position_ids": torch.stack([_continue_positions(item["positions"], longest) for item in items], dim=1),
            }
        return batch | images_of(items) | {"names": names, "tokens": tokens}


def images_of(items: Sequence[Item]) -> dict[str, Tensor]:
    """pixel_values and image_grid_thw of their images, one after another; empty where none has any."""
    seen = [item for item in items if item["pixels"] is not None]
    if not seen:
        return {}
    return {
        "pixel_values": torch.cat([item["pixels"] for item in seen]),
        "image_grid_thw": torch.cat([item["grids"] for item in seen]),
    }


def _continue_positions(positions: Tensor, length: int) -> Tensor:
    """Return positions [3, T] extended to [3, length], counting on from the last one.

    transformers takes a position that does not follow its predecessor for the start of a packed row and builds a mask
    of length × length numbers (`find_packed_sequence_indices`, transformers 5.23).
    """
    padding = torch.arange(1, length - positions.shape[-1] + 1)
    return torch.cat([positions, positions[:, -1:] + padding], dim=1)


def _first_ignored(labels: Tensor) -> Tensor:
    """A row's first token is predicted from nothing; in a packed batch it would be from the row before."""
    labels = labels.clone()
    labels[0] = IGNORED
    return labels


def loaders(
    examples: Examples, encoder: Encoder, train: Sampler[list[int]], validation: list[list[int]], *,
    samples: Mapping[str, int], packed: bool, workers: int, cache_bytes: int,
) -> tuple[DataLoader[Item], DataLoader[Item] | None]:  # fmt: skip
    """Of the batches to learn, and of those of an evaluation where there are any.

    Args:
        samples: of each split. cache_bytes: all workers of both loaders together; each has a cache of its own.
    """
    total = max(samples["train"] + samples["validation"], 1)
    shares = [cache_bytes * samples[split] // total // max(workers, 1) for split in ("train", "validation")]
    datasets = [SFTDataset(examples, encoder, cache_bytes=share) for share in shares]
    held_out = loader(datasets[1], validation, Collator(encoder.pad_token_id), workers) if validation else None
    return loader(datasets[0], train, Collator(encoder.pad_token_id, packed=packed), workers), held_out


def loader(
    dataset: SFTDataset, batches: Sampler[list[int]] | list[list[int]], collate: Collator, workers: int
) -> DataLoader[Item]:
    return DataLoader(
        dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers,
        pin_memory=device().type == "cuda", persistent_workers=workers > 0,
    )  # fmt: skip
