"""What a model generates: greedily, or drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from vcot.models.families import family_of
from vcot.models.loading import whole_model


@dataclass(frozen=True)
class Decoding:
    """How replies are made.

    Attributes:
        max_new_tokens: longest reply.
        temperature: 0: the most likely token each time, else tokens are drawn.
        samples: replies to each prompt; more than one only where they are drawn.
        seed: of the draws; each prompt's replies depend on it and on the prompt alone, not on the batch.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0


@torch.no_grad()
def generate(
    model: Any, batch: Mapping[str, Tensor], *, max_new_tokens: int, eos_token_ids: Sequence[int], pad_token_id: int
) -> list[list[int]]:
    """The most likely continuation of each prompt, token by token.

    Neither sampling nor a repetition penalty, whatever the base's generation_config.json asks for: a penalty
    punishes digits that were used before, and so bends coordinates.

    Args:
        batch: as `Encoder.prompts` makes it: input_ids, attention_mask, mm_token_type_ids [B, T], padded on the
            left; pixel_values and image_grid_thw where there are images.
        eos_token_ids: a row ends at the first of these.

    Returns:
        Per prompt its new tokens, with the end token where the row ended by itself, without padding.
    """
    inner = whole_model(model)
    weights = inner.get_input_embeddings().weight  # never quantised: a 4-bit weight calls itself uint8
    given = family_of(inner.config).model_inputs(batch)
    inputs = {name: value.to(weights.device) for name, value in given.items()}
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=max_new_tokens, use_cache=True,
        eos_token_id=list(eos_token_ids), pad_token_id=pad_token_id,
    )  # fmt: skip
    was_training, own = model.training, inner.generation_config
    model.eval()
    inner.generation_config = greedy  # what a config leaves out is taken from the model's own
    narrow = weights.dtype == torch.bfloat16
    try:
        with torch.autocast(weights.device.type, dtype=torch.bfloat16, enabled=narrow):
            rows = inner.generate(**inputs, generation_config=greedy)
    finally:
        inner.generation_config = own
        model.train(was_training)
    replies: list[list[int]] = rows[:, inputs["input_ids"].shape[1] :].tolist()
    ends = [next((place + 1 for place, token in enumerate(row) if token in eos_token_ids), None) for row in replies]
    return [row[:end] for row, end in zip(replies, ends, strict=True)]
