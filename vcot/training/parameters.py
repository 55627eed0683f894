"""Which parameters a training changes, and how fast each part of the model learns."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.trainer_pt_utils import get_parameter_names

from vcot.errors import InputError
from vcot.models.families import Family
from vcot.training.config import TrainingConfig

NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Of transformers' Trainer (a test holds them equal): what only shifts or scales is not pulled towards zero."""


def freeze(model: Any, config: TrainingConfig, family: Family) -> None:
    """Takes out of a full training the parts with a learning rate of 0 and, where asked for, embeddings and head.

    Raises InputError where nothing is left to train.
    """
    embeddings: set[int] = set()
    if config.freeze_embeddings:
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        embeddings = {id(layer.weight) for layer in layers if layer is not None}
    for name, parameter in model.named_parameters():
        if id(parameter) in embeddings or not config.part_learning_rate(family.part(name)):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("nothing of this base is left to train")


def parameter_groups(model: nn.Module, config: TrainingConfig, family: Family) -> list[dict[str, Any]]:
    """What is trained, for an optimiser: groups of one learning rate (lr) and one weight_decay each, the language
    model's first. No group is empty.

    Not decayed are biases and norms, as transformers does, and the lengths that DoRA learns: those are the weights'
    own, and pulling them to zero would switch layers off.
    """
    decayed = set(get_parameter_names(model, [nn.LayerNorm], [*NO_DECAY, r"lora_magnitude_vector"]))
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (part, decays): [] for part in ("language", "merger", "vision") for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[family.part(name), name in decayed].append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.part_learning_rate(part),  # type: ignore[arg-type]  # the keys above
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (part, decays), parameters in groups.items()
        if parameters
    ]
