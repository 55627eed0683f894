"""What follows from a GPU's memory when a training begins: parts of the model, activations made twice.

The arithmetic is `vcot.training.estimate`'s, so that `--plan` says beforehand what is decided here.
"""

from __future__ import annotations

from pathlib import Path

import torch

from vcot import logging
from vcot.models.device import device
from vcot.models.shapes import Shapes
from vcot.training.config import TrainingConfig
from vcot.training.estimate import DtypeName, checkpoints, divides
from vcot.training.start import StartFacts, check_start


def gpu_bytes() -> int | None:
    """Of this process' GPU; None without one."""
    return torch.cuda.get_device_properties(0).total_memory if device().type == "cuda" else None


def divided(config: TrainingConfig, base: Path, ranks: int) -> bool:
    """Return whether each rank holds only a part of every weight (FSDP2).

    Raises SettingsError: settings that conflict with the number of ranks.
    """
    check_start(config, None, StartFacts(ranks=ranks, on_gpu=device().type == "cuda"))
    parts = divides(Shapes.read(base), config, ranks=ranks, memory=gpu_bytes())
    if ranks > 1 and config.parallel == "auto":
        logging.get().info("parallel", by="fsdp" if parts else "ddp")
    return parts


def twice(config: TrainingConfig, base: Path, compute: torch.dtype, *, ranks: int = 1, parts: int = 1) -> bool:
    """Whether activations are computed twice instead of kept (--gradient-checkpointing). ranks: that train together,
    and divide weights into so many parts."""
    memory = gpu_bytes()
    dtype: DtypeName = "bfloat16" if compute == torch.bfloat16 else "float32"
    found = checkpoints(Shapes.read(base), config, dtype=dtype, memory=memory, ranks=ranks, sharded=parts > 1)
    if config.gradient_checkpointing == "auto" and memory is not None:
        logging.get().info("activations", kept=not found, has_gib=memory >> 30)
    return found
