"""Rows of a dataset → the batch that a model takes.

Legend: B rows of a batch, T tokens of its longest row, P patches of all its images together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vcot.records.example import IGNORED

Item = dict[str, Any]
"""id: str; ids, labels: int64 [T]; positions: int64 [3, T]; pixels: float32 [P, …] and grid: int64 [3], or None."""


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
        batch: dict[str, Any] = {
            "input_ids": torch.stack([_padded(item["ids"], longest, self._pad) for item in items]),
            "labels": torch.stack([_padded(item["labels"], longest, IGNORED) for item in items]),
            "attention_mask": torch.stack([_padded(torch.ones_like(item["ids"]), longest, 0) for item in items]),
            "position_ids": torch.stack([_padded(item["positions"], longest, 0) for item in items], dim=1),
            "names": [item["id"] for item in items],
        }
        seen = [item for item in items if item["pixels"] is not None]
        if seen:
            batch["pixel_values"] = torch.cat([item["pixels"] for item in seen])
            batch["image_grid_thw"] = torch.stack([item["grid"] for item in seen])
        return batch


def _padded(values: Tensor, length: int, filling: int) -> Tensor:
    """[…, t] → […, length]."""
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]), value=filling)
