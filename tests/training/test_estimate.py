"""What a training is planned to take is what it takes: parameters, memory, and what is decided by them."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.fakes.families import *  # noqa: F403  (fixture: family_base)
from tests.fakes.families import KNOWN
from vcot.errors import InputError
from vcot.models import loss
from vcot.models.attention import use_varlen_attention
from vcot.models.families import family_of
from vcot.models.loading import attach_lora
from vcot.models.shapes import Shapes
from vcot.training import calibration
from vcot.training.config import TrainingConfig
from vcot.training.estimate import HEAD_CHUNK, BatchShape, Load, Memory, _Activations, checkpoints, divides, fits
from vcot.training.flops import GPUS

SEVEN_B = {
    "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "rms_norm_eps": 1e-6,
    "vision_config": {
        "depth": 32, "hidden_act": "silu", "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "in_chans": 3, "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
        "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
"""Qwen/Qwen2.5-VL-7B-Instruct, config.json as published: the language model's numbers stand at the top."""


def counted(config: Any) -> dict[str, int]:
    """Part → parameters of the library's own class."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    family, found = family_of(config), dict.fromkeys(("language", "merger", "vision"), 0)
    for name, parameter in model.named_parameters():
        found[family.part(name)] += parameter.numel()
    return found


@pytest.mark.parametrize("model_type", KNOWN)
def test_parameters_are_those_of_the_library_s_classes(model_type: str, family_base: Callable[[str], Path]) -> None:
    folder = family_base(model_type)
    shapes = Shapes.read(folder)
    parts = counted(AutoConfig.from_pretrained(folder))
    assert {part: shapes.parameters(part) for part in ("language", "merger", "vision")} == parts
    model = AutoModelForImageTextToText.from_pretrained(folder)
    adapted = attach_lora(model, r=3, alpha=3, dropout=0.0, targets="all")
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert shapes.adapter_parameters(3, "all") == trained


def test_the_7b_as_published_has_8_3_billion_parameters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SEVEN_B))
    shapes = Shapes.read(tmp_path)
    assert shapes.parameters() == 8_292_166_656
    assert shapes.parameters() == sum(counted(AutoConfig.from_pretrained(tmp_path)).values())
    assert shapes.adapter_parameters(64, "language") == 161_480_704  # "161.5 M trainable"


def test_a_config_that_is_not_whole_or_of_another_family_is_refused() -> None:
    with pytest.raises(InputError, match=r"here: its config.json does not say 'vision_config'"):
        Shapes.of({"model_type": "qwen2_5_vl"}, "here")
    with pytest.raises(InputError, match=r"'llava'; supported are"):
        Shapes.of({"model_type": "llava"})


def test_the_plan_loads_no_torch() -> None:
    code = "import sys, vcot.training.estimate, vcot.training.flops, vcot.pipeline.estimate_options; "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)


def test_the_head_is_planned_in_the_pieces_in_which_it_is_computed() -> None:
    assert loss.CHUNK == HEAD_CHUNK


# --- memory --------------------------------------------------------------------------------------------------

BATCH = BatchShape(rows=4, text=120, learned=60, grid=(12, 12))


@pytest.fixture
def allocated(toy_base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainingConfig], float]:
    """The most bytes that tensors of a training have at once, by torch's own account, as of a GPU."""
    found: list[float] = []
    train = calibration._Unsaved.train

    def watched(self: Any, *arguments: Any, **named: Any) -> Any:
        tensors = (*self.model.parameters(), *self.model.buffers())
        sizes = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as watching:
            done = train(self, *arguments, **named)
        assert watching.profiler is not None
        events = watching.profiler.kineto_results.events()
        now, peak = 0, 0
        for _, size in sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]"):
            now += size
            peak = max(peak, now)
        found.append(sum(sizes.values()) + peak)
        return done

    monkeypatch.setattr(calibration._Unsaved, "train", watched)

    def measured(config: TrainingConfig) -> float:
        gc.collect()  # else what another test left behind is given back while this one is watched
        calibration.calibrate(config, toy_base, BATCH, steps=3)
        return found.pop()

    return measured


@pytest.mark.parametrize(
    "changes",
    [
        {"tune": "lora", "dtype": "float32", "gradient_checkpointing": "off"},
        {"tune": "qlora", "dtype": "bfloat16", "gradient_checkpointing": "on"},
        {"tune": "full", "dtype": "bfloat16", "gradient_checkpointing": "off", "optim": "adamw_torch_fused"},
        {"tune": "lora", "dtype": "bfloat16", "targets": "language+merger", "gradient_accumulation_steps": 2},
    ],
    ids=lambda changes: f"{changes['tune']}-{changes['dtype']}",
)
def test_planned_memory_is_what_a_training_allocates(
    changes: dict[str, Any], toy_base: Path, allocated: Callable[[TrainingConfig], float]
) -> None:
    config = TrainingConfig(**{"gradient_accumulation_steps": 1, **changes})
    planned = Memory.of(
        Shapes.read(toy_base), config, BATCH.load, dtype=changes["dtype"], where="cpu",
        checkpointing=config.gradient_checkpointing == "on",
    )  # fmt: skip
    assert planned.peak - planned.process == pytest.approx(allocated(config), rel=0.07)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Tensors of a GPU that is not there, without their numbers: forward passes choose its kernels."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.nn.Module, "_apply", lambda self, *_, **__: self)  # all is where it should be
    with FakeTensorMode() as mode:
        yield mode


@pytest.mark.parametrize("dropout", [0.05, 0.0])
def test_what_a_gpu_keeps_of_the_language_model_is_planned(
    dropout: float, toy_base: Path, fake_cuda: FakeTensorMode
) -> None:
    config, tokens = AutoConfig.from_pretrained(toy_base), 1024
    hidden = config.text_config.hidden_size
    with torch.device("cuda"):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
        use_varlen_attention(model, torch.bfloat16)
        adapted = attach_lora(model, r=16, alpha=32, dropout=dropout).train()
    ours = {one.untyped_storage()._cdata for one in (*adapted.parameters(), *adapted.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        if (storage := tensor.untyped_storage())._cdata not in ours:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cuda", torch.bfloat16):
        held = model.model.language_model(
            inputs_embeds=torch.empty(1, tokens, hidden, device="cuda", dtype=torch.bfloat16), use_cache=False,
            position_ids=torch.arange(tokens, device="cuda").expand(3, 1, tokens), attention_mask=None,
            row_bounds=torch.empty(9, dtype=torch.int32, device="cuda"), longest_row=tokens // 8,
        )  # fmt: skip
    assert held.last_hidden_state.is_cuda
    planned = _Activations(
        Shapes.read(toy_base), TrainingConfig(tune="lora", lora_r=16, lora_dropout=dropout, packing="on"), "bfloat16",
        "cuda",
    ).kept(Load(tokens, 0, 0), checkpointing=False)  # fmt: skip
    assert planned == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.02)


# --- what is decided by it -------------------------------------------------------------------------------------


def test_a_7b_in_4_bits_has_the_size_that_others_measured() -> None:
    shapes = Shapes.of(SEVEN_B)
    memory = Memory.of(shapes, TrainingConfig(lora_r=8), Load(1400, 5120, 100), dtype="bfloat16", checkpointing=True)
    assert memory.weights / 1e9 == pytest.approx(
        7, rel=0.05
    )  # 3.4 of layers in NF4, 2.2 embeddings and head, 1.35 vision
    lora = TrainingConfig(tune="lora", lora_r=8)
    memory = Memory.of(shapes, lora, Load(1400, 5120, 100), dtype="bfloat16", checkpointing=True)
    # ms-swift reports 20 to 22 GiB as nvidia-smi counts, for batches of one such row.
    assert 16 < memory.peak / 2**30 < 22


def test_a_gpu_that_cannot_keep_activations_makes_them_twice_and_one_that_can_does_not() -> None:
    shapes, config = Shapes.of(SEVEN_B), TrainingConfig()
    h200, l40s = GPUS["h200-141gb"].bytes, GPUS["l40s-48gb"].bytes
    assert not checkpoints(shapes, config, dtype="bfloat16", memory=h200)
    assert checkpoints(shapes, config, dtype="bfloat16", memory=l40s)
    assert not checkpoints(shapes, config, dtype="bfloat16", memory=None)
    on = TrainingConfig(gradient_checkpointing="on")
    assert checkpoints(shapes, on, dtype="bfloat16", memory=h200)
    load = Load(8192, 4 * 8192, 8192)
    assert fits(Memory.of(shapes, config, load, dtype="bfloat16", checkpointing=True), l40s)


def test_full_weights_of_a_7b_are_divided_among_gpus_and_adapters_are_not() -> None:
    shapes, memory = Shapes.of(SEVEN_B), GPUS["h100-80gb"].bytes
    full = TrainingConfig(tune="full", optim="adamw_torch_fused")
    assert divides(shapes, full, ranks=8, memory=memory)
    assert not divides(shapes, full, ranks=1, memory=memory)
    assert not divides(shapes, TrainingConfig(tune="lora"), ranks=8, memory=memory)
    whole, part = (
        Memory.of(shapes, full, Load(1, 0, 1), dtype="bfloat16", ranks=8, sharded=sharded) for sharded in (False, True)
    )
    assert part.peak < whole.peak / 4
