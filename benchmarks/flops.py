"""What a training step of adapters on a frozen Qwen2.5-VL has to compute, in floating point operations.

A product of [a, b] and [b, c] is 2abc. Counted is what a step needs, not what it does: no activation twice, no padding,
no dequantisation, and the head where something is learned.

    language model   forward 2 · weights · tokens, backward as much again: activations' gradients go through frozen
                     weights, which get none themselves (nor do the first layer's inputs)
    adapters         forward 2 · r(in + out) · tokens, backward twice that
    attention        forward 4 · heads · size · Σ tokens² of each row, half of it where causal; backward twice that
    head             2 · vocabulary · hidden · learned tokens, forward and backward
    vision tower     forward alone: 2 · weights · patches, attention within windows or images
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""bfloat16 FLOP/s without sparsity of the SXM cards, from NVIDIA's data sheets, by a word of the device's name."""


@dataclass(frozen=True)
class Flops:
    language: float
    adapters: float
    attention: float
    head: float
    vision: float

    @property
    def total(self) -> float:
        return float(sum(asdict(self).values()))


def step_flops(
    config: Any, *, lengths: Sequence[int], learned: int, grids: Iterable[Sequence[int]], r: int, causal: bool = True
) -> Flops:
    """Of one forward and backward pass.

    Args:
        config: of Qwen2.5-VL. lengths: tokens of each row. learned: tokens whose loss counts. grids: (frames, rows,
        columns) in patches of each image. r: rank of adapters on the language model's seven linear layers.
        causal: halve attention, as a kernel can that leaves out what is masked.
    """
    text = config.text_config
    hidden, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    size = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    wide, narrow = size * text.num_attention_heads, size * text.num_key_value_heads
    into = [(hidden, wide), (hidden, narrow), (hidden, narrow)]
    shapes = [*into, (wide, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]
    weights, tokens = sum(a * b for a, b in shapes) * layers, sum(lengths)
    adapters = sum(r * (a + b) for a, b in shapes) * layers
    attention = 4 * wide * sum(length**2 for length in lengths) * layers / (2 if causal else 1)
    return Flops(
        language=2 * tokens * (2 * weights - sum(a * b for a, b in into)),
        adapters=6 * tokens * adapters,
        attention=3 * attention,
        head=4 * text.vocab_size * hidden * learned,
        vision=_vision(config.vision_config, [tuple(grid) for grid in grids]),
    )


def _vision(vision: Any, grids: list[tuple[int, ...]]) -> float:
    hidden, merge = vision.hidden_size, vision.spatial_merge_size
    patches = sum(rows * columns for _, rows, columns in grids)
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    layer = 4 * hidden**2 + 3 * hidden * vision.intermediate_size
    merged = hidden * merge**2
    linear = 2 * patches * (pixels * hidden + vision.depth * layer)
    linear += 2 * patches // merge**2 * merged * (merged + vision.out_hidden_size)
    whole = sum((rows * columns) ** 2 for _, rows, columns in grids)
    side = vision.window_size // vision.patch_size
    windows = sum(
        (min(side, rows - top) * min(side, columns - left)) ** 2
        for _, rows, columns in grids
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    )
    full = len(vision.fullatt_block_indexes)
    return float(linear + 4 * hidden * (full * whole + (vision.depth - full) * windows))
