"""Segments end to end are as segments alone: the vision tower's windows, the language model's rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from tests.models.packing import packed, padded, row, windowed_base
from vcot.models import attention as module
from vcot.models.attention import NAME, attention, segment_attention
from vcot.models.loading import attach_lora, load_base

torch.set_num_threads(1)

ROWS = [row(0, 60, (1, 8, 6)), row(1, 33), row(2, 90, (1, 14, 10)), row(3, 2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_base(windowed_base(tmp_path_factory.mktemp("windowed") / "base"), dtype="float32")


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("lengths", [[5, 1, 9, 3], [4, 4, 4], [0, 7, 0, 2]])
def test_segments_together_are_segments_alone(causal: bool, key_heads: int, lengths: list[int]) -> None:
    dice = torch.Generator().manual_seed(0)
    query = torch.randn(sum(lengths), 4, 8, generator=dice, requires_grad=True)
    key, value = (torch.randn(sum(lengths), key_heads, 8, generator=dice, requires_grad=True) for _ in range(2))
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    together = segment_attention(query, key, value, bounds, max(lengths), causal=causal)

    def alone(*parts: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.transpose(0, 1) for part in parts)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        return out.transpose(0, 1)

    apart = torch.cat([alone(*some) for some in zip(*(x.split(lengths) for x in (query, key, value)), strict=True)])
    assert torch.allclose(together, apart, atol=1e-6)
    weights = torch.randn(apart.shape, generator=dice)
    for one, other in zip(
        torch.autograd.grad((together * weights).sum(), (query, key, value)),
        torch.autograd.grad((apart * weights).sum(), (query, key, value)),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_vision_layer_is_one_call_and_sees_what_the_librarys_loop_over_windows_sees(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = packed(ROWS)
    calls: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(len(named["cu_seq_lens_q"]) - 1)
        return attention(*arguments, **named)

    with torch.no_grad():
        monkeypatch.setitem(AttentionInterface._global_mapping, NAME, counted)
        ours = model.model.visual(batch["pixel_values"], batch["image_grid_thw"]).pooler_output
        monkeypatch.undo()
        model.set_attn_implementation({"vision_config": "sdpa"})
        theirs = model.model.visual(batch["pixel_values"], batch["image_grid_thw"]).pooler_output
        model.set_attn_implementation({"vision_config": NAME})
    assert len(calls) == model.config.vision_config.depth == 4
    assert calls[1] == calls[3] == 2  # images
    assert calls[0] == calls[2] == 4 + 12  # windows of 4 x 4 patches: 2 x 2 of the first image, 4 x 3 of the second
    assert (ours - theirs).abs().max() <= 1e-5


def logits(model: Any, batch: dict[str, Any]) -> Any:
    given = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        return model(**given, use_cache=False).logits


def test_a_packed_row_does_not_see_its_neighbours(model: Any) -> None:
    together = logits(model, packed(ROWS))[0].split([len(one["ids"]) for one in ROWS])
    for one, seen in zip(ROWS, together, strict=True):
        alone = logits(model, padded([one]))[0]
        assert (seen - alone).abs().max() <= 1e-5 * alone.abs().max()
    changed = logits(model, packed([row(7, 60, (1, 8, 6)), *ROWS[1:]]))[0]
    assert (changed[60:] - torch.cat(together)[60:]).abs().max() <= 1e-5
    leaking = packed(ROWS)
    del leaking["row_bounds"], leaking["longest_row"]
    assert (logits(model, leaking)[0, 60:] - torch.cat(together)[60:]).abs().max() > 0.1


def test_four_rows_of_positions_make_no_mask_of_all_tokens_squared(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would find the packed rows by the text's own positions, the first of four."""
    masks: list[Any] = []

    def noted(*arguments: Any, **named: Any) -> Any:
        masks.append(arguments[4] if len(arguments) > 4 else named["attention_mask"])
        return attention(*arguments, **named)

    monkeypatch.setitem(AttentionInterface._global_mapping, NAME, noted)
    batch = packed(ROWS)
    three = logits(model, batch)
    text = torch.cat([torch.arange(len(one["ids"])) for one in ROWS])[None, None]
    four = logits(model, batch | {"position_ids": torch.cat([text, batch["position_ids"]])})
    assert torch.equal(three, four)
    assert masks
    assert all(mask is None for mask in masks)


@pytest.mark.parametrize("way", ["full", "adapters", "adapters and gradient checkpointing"])
def test_loss_and_gradients_of_packed_rows_are_those_of_the_rows_alone(tmp_path: Path, way: str) -> None:
    model = load_base(windowed_base(tmp_path / "base"), dtype="float32")
    if way != "full":
        model = attach_lora(model, r=4, alpha=8, dropout=0.0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    if "checkpointing" in way:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()

    def gradients(batches: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        total = 0.0
        for batch in batches:
            loss = model(**batch, want="loss")
            loss.backward()
            total += loss.item()
        return total, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    together, one = gradients([packed(ROWS)])
    apart, other = gradients([padded([each]) for each in ROWS])
    right, third = gradients([padded(ROWS)])
    assert together == pytest.approx(apart, rel=1e-5) == pytest.approx(right, rel=1e-5)
    for name, gradient in other.items():
        scale = gradient.abs().max()
        assert scale > 0 or "lora" not in name
        assert (one[name] - gradient).abs().max() <= 1e-5 * scale + 1e-6, name
        assert (third[name] - gradient).abs().max() <= 1e-5 * scale + 1e-6, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("causal", [True, False])
def test_the_kernel_computes_what_padding_computes(causal: bool) -> None:
    lengths = [64, 3, 130, 17]
    query, key, value = (
        torch.randn(sum(lengths), heads, 80, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (8, 2, 2)
    )
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device="cuda")
    kernel = segment_attention(query, key, value, bounds, max(lengths), causal=causal)
    plain = module._padded_attention(
        query.float(), key.float(), value.float(), bounds, max(lengths), causal=causal, scale=None
    )
    assert (kernel - plain).abs().max() < 0.03
    for one, other in zip(
        torch.autograd.grad(kernel.float().square().sum(), (query, key, value)),
        torch.autograd.grad(plain.square().sum(), (query, key, value)),
        strict=True,
    ):
        assert (one - other).abs().max() < 0.05 * other.abs().max()
