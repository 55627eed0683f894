"""Rows of random tokens and images, alone, padded on the right, and packed end to end; a base with windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from vcot.models.families import FAMILIES
from vcot.records.example import IGNORED

Row = dict[str, Any]

IMAGE = 474
"""The image token of the rehearsal base."""


def row(seed: int, tokens: int, grid: tuple[int, int, int] | None = None, *, image_token: int = IMAGE) -> Row:
    dice = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 460, (tokens,), generator=dice)
    if grid is not None:
        ids[3 : 3 + grid[1] * grid[2] // 4] = image_token
    labels = ids.clone()
    labels[: tokens // 2] = IGNORED
    return {
        "ids": ids, "labels": labels, "grid": grid,
        "positions": FAMILIES["qwen2_5_vl"].positions(
            ids.tolist(), [] if grid is None else [grid], image_token_id=image_token, merge_size=2
        ),
        "pixels": None if grid is None else torch.randn(grid[1] * grid[2], 1176, generator=dice),
    }  # fmt: skip


def _images(rows: Sequence[Row]) -> dict[str, Any]:
    seen = [row for row in rows if row["grid"] is not None]
    if not seen:
        return {}
    return {
        "pixel_values": torch.cat([row["pixels"] for row in seen]),
        "image_grid_thw": torch.tensor([row["grid"] for row in seen]),
    }


def padded(rows: Sequence[Row]) -> dict[str, Any]:
    longest = max(len(row["ids"]) for row in rows)

    def stacked(name: str, filling: int, dim: int = 0) -> torch.Tensor:
        return torch.stack(
            [functional.pad(row[name], (0, longest - row[name].shape[-1]), value=filling) for row in rows], dim
        )

    return {
        "input_ids": stacked("ids", 0), "labels": stacked("labels", IGNORED),
        "position_ids": stacked("positions", 0, 1), **_images(rows),
    }  # fmt: skip


def packed(rows: Sequence[Row]) -> dict[str, Any]:
    lengths = torch.tensor([len(row["ids"]) for row in rows])
    return {
        "input_ids": torch.cat([row["ids"] for row in rows])[None],
        "labels": torch.cat([row["labels"] for row in rows])[None],
        "position_ids": torch.cat([row["positions"] for row in rows], dim=1)[:, None],
        "row_bounds": functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32),
        "longest_row": int(lengths.max()),
        **_images(rows),
    }


def windowed_base(folder: Path) -> Path:
    """The rehearsal base with two of its four vision layers looking at windows of 2 x 2 tokens."""
    import json
    import shutil

    from tests.training.toy import BASE

    shutil.copytree(BASE, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {"fullatt_block_indexes": [1, 3], "window_size": 56}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
