"""Greedy generation for a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from vcot.models.loading import weights_dtype, whole_model


@torch.no_grad()
def generate(
    model: Any, batch: Mapping[str, Tensor], *, max_new_tokens: int, eos_token_ids: Sequence[int], pad_token_id: int
) -> list[list[int]]:
    """The most likely continuation of each prompt, token by token.

    Neither sampling nor a repetition penalty, whatever the base's generation_config.json asks for: a penalty
    punishes digits that were used before, and so bends coordinates.

    Args:
        batch: input_ids, attention_mask, mm_token_type_ids [B, T], padded on the left; pixel_values and
            image_grid_thw where there are images.
        eos_token_ids: a row ends at the first of these.

    Returns:
        Per prompt its new tokens, with the end token where the row ended by itself, without padding.
    """
    inner = whole_model(model)
    where = inner.get_input_embeddings().weight.device
    inputs = {name: value.to(where) for name, value in batch.items()}
    ways = GenerationConfig(
        do_sample=False, num_beams=1, repetition_penalty=1.0, max_new_tokens=max_new_tokens, use_cache=True,
        eos_token_id=list(eos_token_ids), pad_token_id=pad_token_id,
    )  # fmt: skip
    was_training, own_ways = model.training, inner.generation_config
    model.eval()
    inner.generation_config = ways  # what a config leaves out is taken from the model's own
    narrow = weights_dtype(model) == torch.bfloat16
    try:
        with torch.autocast(where.type, dtype=torch.bfloat16, enabled=narrow):
            rows = inner.generate(**inputs, generation_config=ways)
    finally:
        inner.generation_config = own_ways
        model.train(was_training)
    said: list[list[int]] = rows[:, inputs["input_ids"].shape[1] :].tolist()
    ends = [next((place + 1 for place, token in enumerate(row) if token in eos_token_ids), None) for row in said]
    return [row[:end] for row, end in zip(said, ends, strict=True)]
