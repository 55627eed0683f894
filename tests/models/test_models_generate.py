"""Greedy replies that do not depend on who else is in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toy import drawn
from vcot.models.generation import generate
from vcot.models.loading import load_base
from vcot.storage.images import decode


@pytest.fixture(scope="module")
def model(toy_base: Path) -> Any:
    torch.set_num_threads(1)
    return load_base(toy_base, dtype="float32")


def prompts(encoder: Any, numbers: list[int]) -> dict[str, Any]:
    made = [drawn(number) for number in numbers]
    batch: dict[str, Any] = encoder.prompts(
        [sample for sample, _ in made], [[decode(data, sample.id).pixels] for sample, data in made]
    )
    return batch


def say(model: Any, encoder: Any, batch: dict[str, Any], **changes: Any) -> list[list[int]]:
    usual = {"max_new_tokens": 12, "eos_token_ids": encoder.eos_token_ids, "pad_token_id": encoder.pad_token_id}
    return generate(model, batch, **(usual | changes))


def test_a_reply_is_the_most_likely_token_again_and_again(model: Any, toy_encoder: Any) -> None:
    """Held against a loop that computes everything anew for each token, without a cache."""
    batch = prompts(toy_encoder, [1])
    (reply,) = say(model, toy_encoder, batch)
    ids, kinds = batch["input_ids"], batch["mm_token_type_ids"]
    expected: list[int] = []
    with torch.no_grad():
        while len(expected) < 12 and not set(expected) & set(toy_encoder.eos_token_ids):
            logits = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds,
                pixel_values=batch["pixel_values"], image_grid_thw=batch["image_grid_thw"],
            ).logits  # fmt: skip
            expected.append(int(logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[expected[-1]]])], dim=1)
            kinds = torch.cat([kinds, torch.zeros(1, 1, dtype=torch.long)], dim=1)
    assert reply == expected


def test_the_bases_own_way_of_sampling_is_not_used(model: Any, toy_encoder: Any) -> None:
    batch = prompts(toy_encoder, [1])
    plain = say(model, toy_encoder, batch)
    own = model.generation_config
    model.generation_config = type(own)(
        **{**own.to_dict(), "do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "max_length": 3}
    )
    try:
        assert say(model, toy_encoder, batch) == plain
        assert model.generation_config.repetition_penalty == 9.0
    finally:
        model.generation_config = own
