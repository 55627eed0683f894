"""The loss inside the forward pass: a sum over learned tokens, bounded in memory, and the same in shards."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing
from torch.distributed.tensor import DTensor

from tests.models.packing import packed, padded, row
from vcot.errors import SettingsError
from vcot.models.loading import attach_lora, load_base
from vcot.models.loss import head_loss
from vcot.records.example import IGNORED

torch.set_num_threads(1)

ROWS = [row(0, 60, (1, 8, 6)), row(1, 33), row(2, 50, (1, 6, 10))]


def test_it_is_the_librarys_mean_times_the_learned_tokens(toy_base: Path) -> None:
    model = load_base(toy_base, dtype="float32")
    batch = padded(ROWS)
    plainly = model(**batch)
    learned = int((batch["labels"][:, 1:] != IGNORED).sum())
    ours = model(**batch, want="loss")
    assert (ours.dtype, ours.shape) == (torch.float32, ())
    assert ours.item() == pytest.approx(plainly.loss.item() * learned, rel=1e-5)
    assert plainly.logits.shape[:2] == batch["labels"].shape
    assert "input_ids" in inspect.signature(model.forward).parameters  # generating asks for it


def test_nothing_learned_is_zero_with_a_gradient_for_every_weight(toy_base: Path) -> None:
    model = load_base(toy_base, dtype="float32")
    batch = padded(ROWS)
    loss = model(**batch | {"labels": torch.full_like(batch["labels"], IGNORED)}, want="loss")
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_logits_in_chunks_are_logits_at_once() -> None:
    dice = torch.Generator().manual_seed(0)
    head, sizes = torch.nn.Linear(16, 50, bias=False), []
    head.register_forward_hook(lambda _module, _given, logits: sizes.append(logits.numel()))
    states = torch.randn(23, 16, generator=dice, requires_grad=True)
    targets = torch.randint(0, 50, (23,), generator=dice)
    found = []
    for chunk in (1 << 20, 200):
        sizes.clear()
        loss = head_loss(head, states, targets, chunk=chunk)
        found.append((loss, *torch.autograd.grad(loss, (states, head.weight))))
        assert max(sizes) == min(chunk, 23 * 50)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_wanted_thing_that_is_unknown_is_refused(toy_base: Path) -> None:
    with pytest.raises(TypeError, match="want is"):
        load_base(toy_base, dtype="float32")(**padded(ROWS), want="logits")


# --- two ranks ---------------------------------------------------------------------------------------------


def batches(number: int) -> list[dict[str, Any]]:
    """A rank's two batches; the second rank's first one is without an image."""
    return [packed(ROWS[:2]) if number == 0 else padded([ROWS[1], row(5, 21)]), padded(ROWS)]


WAYS = ("full", "gradient checkpointing", "adapters", "bfloat16")


def rank(number: int, base: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    for way in WAYS:
        losses, gradients = training(base, way, batches(number), shards=2)
        save_file({"losses": torch.tensor(losses)} | gradients, folder / f"{way}-{number}.safetensors")
    distributed.destroy_process_group()


def training(
    base: Path, way: str, given: list[dict[str, Any]], shards: int = 1
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loss of each batch, and the gradients of all of them."""
    narrow = way == "bfloat16"
    model = load_base(base, dtype="bfloat16" if narrow else "float32", weights="float32", shards=shards)
    assert all(isinstance(parameter, DTensor) == (shards > 1) for parameter in model.parameters())
    if way == "adapters":
        torch.manual_seed(0)
        model = attach_lora(model, r=4, alpha=8, dropout=0.0)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                assert not isinstance(parameter, DTensor)
                torch.nn.init.normal_(parameter, std=0.02)
    if way == "gradient checkpointing":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    losses = []
    for batch in given:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            loss = model(**batch, want="loss")
        loss.backward()
        losses.append(loss.item())
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}


def test_a_base_in_shards_learns_as_one_that_is_whole(toy_base: Path, tmp_path: Path) -> None:
    """One rank has no image in its first batch, and the other one waits for nothing."""
    multiprocessing.spawn(rank, (toy_base, tmp_path), nprocs=2)
    for way in WAYS:
        ours = [load_file(tmp_path / f"{way}-{number}.safetensors") for number in range(2)]
        losses, gradients = training(toy_base, way, batches(0) + batches(1))
        loss_close, close = (2e-2, 0.1) if way == "bfloat16" else (1e-5, 1e-5)
        assert torch.cat([one.pop("losses") for one in ours]).tolist() == pytest.approx(losses, rel=loss_close)
        assert ours[0].keys() == gradients.keys()
        for name, gradient in gradients.items():
            if way == "adapters":  # each rank has its own; of sharded weights both have the mean
                found = ours[0][name] + ours[1][name]
            else:
                assert torch.equal(ours[0][name], ours[1][name])
                found = 2 * ours[0][name]
            assert (found - gradient).norm() <= close * gradient.norm() + 1e-6, (way, name)


def test_shards_of_four_bits_are_refused(toy_base: Path) -> None:
    with pytest.raises(SettingsError, match="4 bits"):
        load_base(toy_base, quantization="nf4", shards=2)
