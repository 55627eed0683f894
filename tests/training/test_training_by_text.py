"""Examples by text alone beside those with an image: batches, the loss, a step, and what the model then says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.toy import drawn, examples, tune, weights, write_examples
from vcot.grounding import Trace
from vcot.records import Sample
from vcot.records.example import Example, Examples
from vcot.storage.images import decode


@pytest.fixture(scope="module")
def torch() -> Any:
    import torch

    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="module")
def model(torch: Any, toy_base: Path) -> Any:
    from vcot.models.loading import attach_lora, load_base

    made = attach_lora(load_base(toy_base, dtype="float32"), r=4, alpha=8, dropout=0.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return made


def by_text(number: int, split: Any = "train") -> Sample:
    said: dict[str, Any] = {
        "id": f"text-{number}", "image": None, "evidence": None, "question": f"What is {number} and {number}?",
        "answers": (str(2 * number),), "reasoning": (Trace((f"{number} and {number} is {2 * number}.",)),),
    }  # fmt: skip
    illustrated, _ = drawn(number, split)
    return Sample(**(dict(illustrated) | said))


def told(encoder: Any, count: int, first: int = 0, split: Any = "train") -> list[Example]:
    made = [encoder.example(by_text(number, split), 0) for number in range(first, first + count)]
    assert all(isinstance(one, Example) for one in made)
    return made


def batches(encoder: Any, made: list[Example], path: Path) -> Any:
    """rows → a batch of them"""
    from vcot.training.data import Collator
    from vcot.training.data import SFTDataset

    dataset = SFTDataset(Examples([write_examples(path, made)]), encoder, cache_bytes=0)
    return lambda rows: Collator(encoder.pad_token_id)([dataset[row] for row in rows])


def test_a_mixed_batch_has_the_patches_of_its_images_and_teaches_what_its_rows_teach_alone(
    torch: Any, model: Any, toy_encoder: Any, tmp_path: Path
) -> None:
    from vcot.training.trainer import loss_sum

    batch_of = batches(toy_encoder, [*examples(toy_encoder, 2, alternatives=1), *told(toy_encoder, 2)], tmp_path / "a")
    mixed = batch_of([2, 0, 3, 1])
    assert mixed["image_grid_thw"].shape == (2, 3)
    assert len(mixed["pixel_values"]) == int(mixed["image_grid_thw"].prod(1).sum())
    assert "pixel_values" not in batch_of([2, 3])
    with torch.no_grad():
        together = loss_sum(model, mixed).item()
        alone = [loss_sum(model, batch_of([row])).item() for row in range(4)]
    assert together == pytest.approx(sum(alone), rel=1e-4)


@pytest.mark.parametrize(("way", "checkpointing"), [("qlora", "on"), ("full", "off")])
def test_a_training_learns_from_both_and_from_batches_of_text_alone(
    torch: Any, toy_base: Path, toy_encoder: Any, tmp_path: Path, way: str, checkpointing: str
) -> None:
    made = [*told(toy_encoder, 4), *examples(toy_encoder, 1, alternatives=1)]
    made += told(toy_encoder, 1, first=20, split="validation")
    rows = Examples([write_examples(tmp_path / "a.parquet", made)])
    ways = {
        "tune": way, "num_train_epochs": 2.0, "group_by_length": False, "gradient_checkpointing": checkpointing,
        "learning_rate": 1e-4 if way == "full" else 1e-3, "eval_steps": 3, "save_steps": 100,
        "gradient_accumulation_steps": 1,
    }  # fmt: skip
    result = tune(toy_base, toy_encoder, rows, tmp_path, **ways)
    assert all(torch.isfinite(value).all() for value in weights(result).values())
    losses = [line["eval_loss"] for line in result.history if "eval_loss" in line]
    assert losses[-1] < losses[0]


def test_a_reply_does_not_depend_on_who_else_is_in_the_batch(model: Any, toy_encoder: Any) -> None:
    from vcot.models.loading import generate

    illustrated = [drawn(number) for number in range(2)]
    asked: list[Any] = [(by_text(1), None), *((s, decode(d, s.id).pixels) for s, d in illustrated), (by_text(2), None)]
    ways = {"max_new_tokens": 10, "eos_token_ids": toy_encoder.eos_token_ids, "pad_token_id": toy_encoder.pad_token_id}

    def say(some: list[Any]) -> list[list[int]]:
        samples, images = zip(*some, strict=True)
        return generate(model, toy_encoder.prompts(samples, images), **ways)

    assert say(asked) == [reply for one in asked for reply in say([one])]
    assert say([asked[0], asked[3]]) == [say(asked)[0], say(asked)[3]]
