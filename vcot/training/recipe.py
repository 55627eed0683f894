"""The recipe of a training: what shapes the weights, without where things lie."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, Self


@dataclass(frozen=True)
class Recipe:
    """See the settings of the train stage for meanings and units; the names are the same."""

    tune: Literal["full", "lora", "qlora"]
    dtype: Literal["auto", "bfloat16", "float32"]
    r: int
    alpha: float
    dropout: float
    optimiser: str
    learning_rate: float
    schedule: str
    warmup: float
    weight_decay: float
    clip: float
    neftune: float
    batch_size: int
    accumulation: int
    epochs: float
    max_steps: int | None
    similar_lengths: bool
    eval_every: int
    save_every: int
    patience: int
    min_delta: float
    gradient_checkpointing: Literal["auto", "on", "off"]
    seed: int

    @classmethod
    def of(cls, settings: Any) -> Self:
        """From the settings of the stage."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(cls)})
