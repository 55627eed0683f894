"""What a training needs of a GPU's memory, by arithmetic, and what follows: parts of the model, activations made twice.

Rough on purpose (a third too much rather than too little): a run that was planned too large ends, one that was planned
too small is a fifth slower.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vcot import logging
from vcot.errors import SettingsError
from vcot.models.device import device
from vcot.training.config import TrainingConfig

WEIGHTS = {"qlora": 0.35, "lora": 1.1, "full": 8.0}
"""Memory of weights, gradients and optimiser by the size of the base's files in bfloat16: 4 bits and adapters, 16 bits
and adapters, four numbers in float32 for each weight."""


def gpu_bytes() -> int | None:
    """Of this process' GPU; None without one."""
    return torch.cuda.get_device_properties(0).total_memory if device().type == "cuda" else None


def weight_bytes(config: TrainingConfig, base: Path, ranks: int = 1) -> float:
    """Of weights, gradients and optimiser on each of so many ranks that divide them."""
    return sum(path.stat().st_size for path in base.glob("*.safetensors")) * WEIGHTS[config.tune] / ranks


def activation_bytes(config: TrainingConfig, language: Any, compute: torch.dtype) -> float:
    """What the backward pass needs of the language model's layers, for one batch. `language`: its configuration.

    Of each token and layer are kept: inputs of both norms and what they give, queries, keys, values, and the
    attention's result (about 6 numbers for each of `hidden_size`), and of the gated MLP gate, up, their product
    and its activation (4 of `intermediate_size`).
    """
    numbers = 6 * language.hidden_size + 4 * language.intermediate_size
    return float(config.batch_tokens * language.num_hidden_layers * numbers * compute.itemsize)


def divided(config: TrainingConfig, base: Path, ranks: int) -> bool:
    """Whether each rank holds only a part of every weight (FSDP2).

    Raises SettingsError: --parallel fsdp with one rank; an optimiser in 8 bits, which takes no parts of weights.
    """
    if (parts := _divided(config, base, ranks)) and config.tune == "full" and config.optim != "adamw_torch_fused":
        raise SettingsError(
            f"--optim={config.optim} cannot learn weights that are divided among ranks (--parallel {config.parallel}, "
            "--tune full); choose --optim adamw_torch_fused"
        )
    return parts


def _divided(config: TrainingConfig, base: Path, ranks: int) -> bool:
    if ranks == 1 and config.parallel == "fsdp":
        raise SettingsError(
            "--parallel fsdp divides a model among several ranks, and there is one; leave it out, or start more "
            "(--nproc-per-node, PET_NNODES)"
        )
    memory = gpu_bytes()
    if ranks == 1 or memory is None or config.parallel != "auto" or config.tune == "qlora":
        return config.parallel == "fsdp"
    needed = weight_bytes(config, base)
    fits = needed < 0.7 * memory  # the rest is for activations
    logging.get().info("parallel", by="ddp" if fits else "fsdp", needs_gib=round(needed / 2**30), has_gib=memory >> 30)
    return not fits


def twice(config: TrainingConfig, base: Path, language: Any, compute: torch.dtype, ranks: int) -> bool:
    """Whether activations are computed twice instead of kept (--gradient-checkpointing). ranks: that divide weights."""
    memory = gpu_bytes()
    if config.gradient_checkpointing != "auto" or memory is None:
        return config.gradient_checkpointing == "on"
    needed = weight_bytes(config, base, ranks) + 1.3 * activation_bytes(config, language, compute)
    logging.get().info(
        "activations", kept=(fits := needed < 0.85 * memory), needs_gib=round(needed / 2**30), has_gib=memory >> 30
    )
    return not fits
