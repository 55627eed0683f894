"""Positions of tokens as Qwen2.5-VL counts them: in time, down and across, so that an image is no long line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def positions(ids: Sequence[int], grid: tuple[int, int, int] | None, *, image_token_id: int, merge_size: int) -> Tensor:
    """int64 [3, T]: (time, row, column) of each token.

    Text counts on in all three alike. An image's tokens share the time at which it begins and have their own row
    and column; text goes on after the larger of its sides. This is `Qwen2_5_VLModel.get_rope_index` for one
    image (a test holds them equal), but needs no model, so that a loader's worker can do it.

    Args:
        ids: [T] tokens, among them one run of `image_token_id` where there is an image.
        grid: (frames = 1, rows, columns) in patches; merge_size² patches are one token.

    Raises:
        ValueError: the grid does not give as many tokens as stand in `ids`.
    """
    length = len(ids)
    plain = torch.arange(length).repeat(3, 1)
    seen = sum(token == image_token_id for token in ids)
    rows, columns = (0, 0) if grid is None else (grid[1] // merge_size, grid[2] // merge_size)
    if rows * columns != seen:
        raise ValueError(f"{seen} tokens stand for the image, its grid {grid} makes {rows * columns}")
    if not seen:
        return plain
    start = list(ids).index(image_token_id)
    image = torch.stack(
        [
            torch.zeros(seen, dtype=torch.int64),
            torch.arange(rows).repeat_interleave(columns),
            torch.arange(columns).repeat(rows),
        ]
    )
    after = torch.arange(length - start - seen).repeat(3, 1) + max(rows, columns)
    return torch.cat([plain[:, :start], start + image, start + after], dim=1)
