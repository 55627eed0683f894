"""What is loaded is what was asked for: 4 bits where they belong, every weight filled, nothing but safetensors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tests.training.toy import examples, loss_sum, write_examples
from vcot.errors import InputError
from vcot.models.device import compute_dtype
from vcot.models.loading import attach_lora, load_adapter, load_base, lora_targets
from vcot.models.merge import merge_adapter
from vcot.records.example import Examples
from vcot.training.data import Collator, SFTDataset

torch.set_num_threads(1)


@pytest.fixture
def batch(toy_encoder: Any, tmp_path: Path) -> dict[str, Any]:
    made = Examples([write_examples(tmp_path / "batch.parquet", examples(toy_encoder, 3))])
    dataset = SFTDataset(made, toy_encoder, cache_bytes=0)
    return Collator(toy_encoder.pad_token_id)([dataset[row] for row in range(len(dataset))])


def test_nf4_takes_the_language_models_linear_layers_and_nothing_else(toy_base: Path) -> None:
    model = load_base(toy_base, quantization="nf4", dtype="float32")
    narrow = {name for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert narrow == {name for name in linear if name.startswith("model.language_model.")}
    assert len(narrow) == 7 * model.config.text_config.num_hidden_layers
    one = model.model.language_model.layers[0].mlp.up_proj.weight.quant_state
    assert (one.quant_type, one.nested) == ("nf4", True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_adapter_has_a_gradient_after_an_evaluation_in_the_middle_of_training(
    toy_base: Path, batch: dict[str, Any], dtype: Any
) -> None:
    """On processors with AVX512-BF16 the library would have repacked the 4-bit weights in the evaluation."""
    model = attach_lora(load_base(toy_base, quantization="nf4", dtype=dtype), r=4, alpha=8, dropout=0.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first, which would leave the A matrices without a gradient
                parameter.normal_(std=0.02)
    context = torch.autocast("cpu", torch.bfloat16, enabled=compute_dtype(dtype) == torch.bfloat16)

    def step() -> dict[str, Any]:
        model.train()
        model.zero_grad()
        with context:
            loss_sum(model, batch).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    before = step()
    model.eval()
    with torch.no_grad(), context:
        loss_sum(model, batch)
    after = step()
    assert len(after) == 2 * 7 * model.config.text_config.num_hidden_layers
    for name, gradient in after.items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, before[name]), name


def test_the_patch_embedding_is_the_convolution(toy_base: Path) -> None:
    embedding = load_base(toy_base, dtype="float32").model.visual.patch_embed
    patches = torch.randn(10, embedding.proj.weight[0].numel(), generator=torch.Generator().manual_seed(0))
    plainly = type(embedding).forward(embedding, patches)
    assert torch.allclose(embedding(patches), plainly, atol=3e-6)


def test_an_adapter_comes_back_as_it_was(toy_base: Path, batch: dict[str, Any], tmp_path: Path) -> None:
    model = attach_lora(load_base(toy_base, dtype="float32"), r=4, alpha=8, dropout=0.5, base_uri="s3://b/base")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
        expected = loss_sum(model.eval(), batch)
        model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
        again = load_adapter(load_base(toy_base, dtype="float32"), tmp_path / "adapter")
        assert torch.equal(loss_sum(again, batch), expected)


def test_published_7b_gets_196_adapters_and_none_in_its_image_part() -> None:
    """Qwen/Qwen2.5-VL-7B-Instruct's config.json, instantiated without memory."""
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6, "rope_parameters": {
                "rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
        },
        tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
        assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == 8.29
        assert len(lora_targets(model)) == 196
        adapted = attach_lora(model, r=64, alpha=128, dropout=0.05)
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 196
    assert sum(p.numel() for p in trained.values()) == 161_480_704
    assert not [name for name in trained if "visual" in name]


def test_a_pattern_that_finds_no_layer_or_one_of_another_part_is_refused(toy_base: Path) -> None:
    model = load_base(toy_base, dtype="float32")
    model.model.language_model.visual = torch.nn.ModuleDict({"up_proj": torch.nn.Linear(2, 2)})
    with pytest.raises(
        InputError, match=r"on the language part finds .* another part: .*language_model\.visual\.up_proj"
    ):
        lora_targets(model)
    model.model.language_model = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="no layers in its language part"):
        lora_targets(model)


def test_a_base_with_a_hole_in_its_weights_is_refused(toy_base: Path, tmp_path: Path) -> None:
    """The library would fill it with random numbers and say so in a log."""
    folder = shutil.copytree(toy_base, tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("mlp.up_proj.weight"))]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"do not belong together.*missing.*up_proj"):
        load_base(folder, dtype="float32")


def test_a_base_that_is_truncated_or_a_pickle_or_no_model_is_refused(toy_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_base, tmp_path / "base")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot be loaded from safetensors"):
        load_base(folder, dtype="float32")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded from safetensors"):
        load_base(folder, dtype="float32")
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "evil.Config"}}))
    (folder / "evil.py").write_text("raise SystemExit('code of a model folder was run')")
    with pytest.raises(InputError, match="no model is described"):
        load_base(folder, dtype="float32")


def test_an_adapter_that_is_missing_or_of_another_base_is_refused(toy_base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an adapter"):
        load_adapter(load_base(toy_base, dtype="float32"), tmp_path)
    model = attach_lora(load_base(toy_base, dtype="float32"), r=4, alpha=8, dropout=0.0)
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    smaller = {name: value for name, value in weights.items() if ".layers.0." not in name}
    save_file(smaller, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="made for another base; 14 of its layers"):
        load_adapter(load_base(toy_base, dtype="float32"), tmp_path / "adapter")


def adapter(base: Path, folder: Path) -> Path:
    model = attach_lora(load_base(base, dtype="float32"), r=4, alpha=8, dropout=0.0, base_uri="s3://b/base")
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def _cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _not_finite(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 1] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _config(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "adapter_config.json").write_text(text)


BAD_ADAPTERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (_cut, "is not a complete safetensors file"),
    "header": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 500), "complete safetensors"),
    "NaN": (_not_finite, "1 of [0-9]+ weights have values that are not finite"),
    "another kind": (_config('{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4}'), "kind 'PREFIX_TUNING'"),
    "no kind": (_config("{}"), "an adapter of the kind None"),
    "unknown kind": (_config('{"peft_type": "LORA2"}'), "of the kind 'LORA2'"),
    "list": (_config("[]"), "is not the configuration of an adapter"), "cut config": (_config("{"), "configuration"),
    "another field": (_config('{"peft_type": "LORA", "r": "many", "target_modules": 7}'), "adapter"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD_ADAPTERS)
def test_a_bad_adapter_is_an_input_error_in_one_line(toy_base: Path, tmp_path: Path, fault: str) -> None:
    spoil, says = BAD_ADAPTERS[fault]
    spoil(folder := adapter(toy_base, tmp_path / "adapter"))
    uses: tuple[Callable[[], object], ...] = (
        lambda: load_adapter(load_base(toy_base, dtype="float32"), folder),
        lambda: merge_adapter(toy_base, folder, tmp_path / "out"),
    )
    for use in uses:
        with pytest.raises(InputError, match=says) as caught:
            use()
        assert "\n" not in str(caught.value)
