"""The formula of model FLOPs is what torch counts, on a model that can be run here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.rows import encoder_of, examples, visual
from benchmarks.trainings import Batch
from tests.training.toy import BASE, loss_sum
from vcot.models.loading import attach_lora, load_base
from vcot.models.shapes import Shapes
from vcot.training.config import TrainingConfig
from vcot.training.data import Collator, SFTDataset
from vcot.training.flops import step_flops
from vcot.training.setup import model_to_train


def _forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward(_gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Two products for each of the two forward; that kernels compute scores again is not the model's work."""
    return 2 * int(sdpa_flop_count(query, key, value))


ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
"""What torch leaves out: attention on a CPU. As if it computed what is masked, too."""


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: Any) -> Path:
    """The rehearsal base with three of its four vision layers looking at windows of 2 x 2 tokens."""
    folder = tmp_path_factory.mktemp("base") / "base"
    shutil.copytree(BASE, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"] |= {"fullatt_block_indexes": [1], "window_size": 56}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_formula_is_what_torch_counts(windowed: Path, tmp_path: Path) -> None:
    rows = visual(3, tokens=40, words=15)
    encoder = encoder_of(windowed, rows)
    made = examples(rows, encoder, tmp_path / "rows.parquet")
    dataset = SFTDataset(made, encoder, cache_bytes=0)
    model = attach_lora(load_base(windowed, dtype="float32"), r=8, alpha=8, dropout=0.0)
    # One row at a time, so that nothing is padded.
    batches = [Collator(encoder.pad_token_id)([dataset[row]]) for row in range(len(made))]
    tokens = {row.id: row.tokens for row in made.rows}
    for batch in batches:
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            loss_sum(model, batch).backward()
        about = Batch.of(batch, tokens)
        formula = step_flops(
            Shapes.read(windowed), TrainingConfig(tune="lora", lora_r=8), lengths=about.lengths, learned=about.learned,
            grids=about.grids, causal=False,
        )  # fmt: skip
        assert formula.total == pytest.approx(counter.get_total_flops(), rel=0.02)
        assert min(formula.language, formula.adapters, formula.attention, formula.head, formula.vision) > 0


def test_the_formula_holds_where_all_weights_are_trained_and_where_activations_are_made_twice(tmp_path: Path) -> None:
    rows = visual(2, tokens=40, words=15)
    encoder = encoder_of(BASE, rows)
    made = examples(rows, encoder, tmp_path / "rows.parquet")
    batch = Collator(encoder.pad_token_id)([SFTDataset(made, encoder, cache_bytes=0)[0]])
    about = Batch.of(batch, {row.id: row.tokens for row in made.rows})
    config = TrainingConfig(tune="full", dtype="float32", optim="adamw_torch_fused")
    for again in (False, True):
        model, _ = model_to_train(config, BASE, "base")
        model.train()
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
            loss_sum(model, batch).backward()
        formula = step_flops(
            Shapes.read(BASE), config, lengths=about.lengths, learned=about.learned, grids=about.grids, causal=False
        )
        computed = formula.total + formula.again * again
        # Of what is made twice the library leaves out what nobody needs again, of which the formula knows the largest.
        assert computed == pytest.approx(counter.get_total_flops(), rel=0.05 if again else 0.03)


def test_a_frozen_vision_tower_runs_once_where_activations_are_computed_twice(tmp_path: Path) -> None:
    rows = visual(1, tokens=40, words=15)
    encoder = encoder_of(BASE, rows)
    made = examples(rows, encoder, tmp_path / "rows.parquet")
    batch = Collator(encoder.pad_token_id)([SFTDataset(made, encoder, cache_bytes=0)[0]])
    seen, all_of_it = [], []
    for twice in (False, True):
        model = attach_lora(load_base(BASE, dtype="float32"), r=8, alpha=8, dropout=0.0).train()
        if twice:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with FlopCounterMode(display=False) as counter:
            loss_sum(model, batch).backward()
        seen.append([sum(ops.values()) for name, ops in counter.flop_counts.items() if name.endswith(".visual")])
        all_of_it.append(counter.get_total_flops())
    assert seen[0] == seen[1] != []
    assert all_of_it[1] > 1.2 * all_of_it[0]  # the language model's
