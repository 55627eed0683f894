"""What a training step has to compute, in floating point operations, and how long that takes a GPU.

A product of [a, b] and [b, c] is 2abc (Kaplan et al. 2020, arXiv 2001.08361: 2 a weight and token forward, 4 backward;
attention as in PaLM, arXiv 2204.02311, appendix B). Counted is what a step needs, not what it does: no activation
twice, no padding, no dequantisation, and the head where something is learned.

    language model   forward 2 · weights · tokens; backward as much again, as activations' gradients go through frozen
                     weights (nor do the first layer's inputs get any); where weights are trained, twice that
    adapters         forward 2 · r(in + out) · tokens, backward twice that
    attention        forward 4 · heads · size · Σ tokens² of each row, half of it where causal; backward twice that
    head             2 · vocabulary · hidden · learned tokens, forward and backward
    vision tower     forward alone where it is frozen: 2 · weights · patches, attention within windows or images
    again            what is computed twice where activations are (--gradient-checkpointing): language model and
                     attention forward once more, and what is trained of the vision tower
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType

from vcot.models.shapes import Shapes, Tower
from vcot.training.config import TrainingConfig


@dataclass(frozen=True)
class GPU:
    """memory: MiB as nvidia-smi tells them. peak: bfloat16 FLOP/s of dense matrices. bandwidth: bytes/s of memory."""

    memory: int
    peak: float
    bandwidth: float

    @property
    def bytes(self) -> int:
        return self.memory << 20


GPUS: Mapping[str, GPU] = MappingProxyType(
    {
        "l4-24gb": GPU(23034, 121e12, 300e9),
        "a10g-24gb": GPU(23028, 70e12, 600e9),
        "a10-24gb": GPU(23028, 125e12, 600e9),
        "rtx3090-24gb": GPU(24576, 71e12, 936e9),
        "rtx4090-24gb": GPU(24564, 165e12, 1008e9),
        "rtx5090-32gb": GPU(32607, 210e12, 1792e9),
        "a100-40gb": GPU(40960, 312e12, 1555e9),
        "l40s-48gb": GPU(46068, 362e12, 864e9),
        "rtxa6000-48gb": GPU(49140, 155e12, 768e9),
        "a100-80gb": GPU(81920, 312e12, 2039e9),
        "h100-pcie-80gb": GPU(81559, 756e12, 2000e9),
        "h100-80gb": GPU(81559, 989e12, 3350e9),
        "h200-141gb": GPU(143771, 989e12, 4800e9),
        "b200-180gb": GPU(183359, 2250e12, 8000e9),
    }
)
"""From NVIDIA's data sheets, without sparsity; SXM cards where there are several and nothing else is said."""

PEAKS = {"H100": GPUS["h100-80gb"].peak, "H200": GPUS["h200-141gb"].peak, "A100": GPUS["a100-80gb"].peak}
"""By a word of the device's name."""


@dataclass(frozen=True)
class Flops:
    language: float
    adapters: float
    attention: float
    head: float
    vision: float
    again: float = 0.0

    @property
    def total(self) -> float:
        """What is needed: without what is computed twice."""
        return float(sum(asdict(self).values())) - self.again


def step_flops(
    shapes: Shapes, config: TrainingConfig, *, lengths: Sequence[int], learned: float, grids: Iterable[Sequence[int]],
    causal: bool = True,
) -> Flops:  # fmt: skip
    """Of one forward and backward pass.

    Args:
        lengths: tokens of each row. learned: tokens whose loss counts. grids: (frames, rows, columns) in patches of
        each image. causal: halve attention, as a kernel can that leaves out what is masked.
    """
    text, vision, tokens, full = shapes.text, shapes.vision, sum(lengths), config.tune == "full"
    grids = [tuple(grid) for grid in grids]
    weights = text.matrices * text.layers
    into = sum(a * b for a, b in text.into_attention)
    sees = part_learns(config, "vision")
    attention = 4 * text.wide * sum(length**2 for length in lengths) * text.layers / (2 if causal else 1)
    patches = sum(rows * columns for _, rows, columns in grids)
    adapters = 0.0
    if not full:
        # Adapters of the vision tower and of what is behind it see patches and visual tokens.
        r = config.lora_r
        adapters = 6 * tokens * shapes.adapter_parameters(r, "language")
        adapters += (
            6
            * patches
            / shapes.merge**2
            * sum(r * (a + b) for a, b in shapes.mergers)
            * (part_learns(config, "merger"))
        )
        adapters += 6 * patches * r * sum(a + b for a, b in shapes.vision.linears) * shapes.vision.layers * sees
    seen = vision_flops(shapes, grids)
    return Flops(
        language=2 * tokens * (3 * weights if full else 2 * weights - into * (not part_learns(config, "merger"))),
        adapters=adapters,
        attention=3 * attention,
        head=(6 if full and not config.freeze_embeddings else 4) * shapes.embeddings * learned,
        vision=seen * (1 if not sees else 3 if full else 2),
        again=2 * tokens * text.layers * _again(text)
        + adapters / 3
        + attention
        + sees * (seen - 2 * patches * vision.layers * (vision.matrices - _again(vision))),
    )


def _again(tower: Tower) -> int:
    """Parameters of a layer's matrices that are used once more: what comes out of its last one nobody needs again."""
    return tower.matrices - tower.hidden * tower.inner


def part_learns(config: TrainingConfig, part: str) -> bool:
    """Whether gradients reach this part of the model, vision or merger."""
    if config.tune == "full":
        rates = [config.part_learning_rate("vision")]
        return any(rates if part == "vision" else [*rates, config.part_learning_rate("merger")])
    return config.targets == "all" or (part == "merger" and config.targets == "language+merger")


def vision_flops(shapes: Shapes, grids: Sequence[Sequence[int]]) -> float:
    """Of the vision tower and what is behind it, forward."""
    vision = shapes.vision
    patches = sum(rows * columns for _, rows, columns in grids)
    linear = 2.0 * patches * (shapes.patch * vision.hidden + vision.layers * vision.matrices)
    linear += 2 * patches / shapes.merge**2 * sum(a * b for a, b in shapes.mergers)
    whole = sum((rows * columns) ** 2 for _, rows, columns in grids)
    windowed = vision.layers - shapes.whole_layers
    side = shapes.window
    windows = sum(
        (min(side, rows - top) * min(side, columns - left)) ** 2
        for _, rows, columns in (grids if windowed else ())
        for top in range(0, rows, side)
        for left in range(0, columns, side)
    )
    return linear + 4 * vision.wide * (shapes.whole_layers * whole + windowed * windows)
