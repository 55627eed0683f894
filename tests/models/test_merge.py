"""Merged weights are those that PEFT itself would make, under the names of the base's own files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from vcot.errors import InputError
from vcot.models.loading import attach_lora, load_base
from vcot.models.merge import INDEX, merge_adapter
from vcot.training.publish import save_adapter

Bases = Callable[[str], Path]


def adapted(base: Path, **options: Any) -> Any:
    """A base with adapters whose every matrix is other than zero."""
    torch.manual_seed(1)
    model = attach_lora(load_base(base, dtype="float32"), r=4, alpha=6, dropout=0.0, **options)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        if "magnitude" in name:
            parameter.data *= torch.linspace(0.5, 1.5, len(parameter))
    return model


def adapter_of(model: Any, folder: Path) -> Path:
    folder.mkdir()
    save_adapter(model, folder)
    return folder


@pytest.fixture
def plain_adapter(toy_base: Path, tmp_path: Path) -> Path:
    return adapter_of(adapted(toy_base), tmp_path / "adapter")


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("qwen2_vl", {}), ("qwen2_5_vl", {"use_dora": True}), ("qwen3_vl", {"use_rslora": True}),
        ("internvl", {"use_dora": True, "use_rslora": True}),
    ],
)  # fmt: skip
def test_merged_weights_are_those_of_peft(
    family_base: Bases, model_type: str, options: dict[str, bool], tmp_path: Path
) -> None:
    """In the language model, the merger and the vision tower; names and shapes as the base's files have them."""
    base = family_base(model_type)
    model = adapted(base, targets="all", **options)
    adapter = adapter_of(model, tmp_path / "adapter")
    merged = merge_adapter(base, adapter, tmp_path / "merged")
    model.merge_and_unload().to(torch.bfloat16).save_pretrained(tmp_path / "by-peft")
    before, found, wanted = (
        load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged", tmp_path / "by-peft")
    )
    assert found.keys() == before.keys() == wanted.keys()
    assert {one.dtype for one in found.values()} == {torch.bfloat16}
    for name, one in found.items():
        # The product of B and A may be summed in another order.
        assert torch.allclose(one.float(), wanted[name].float(), rtol=1e-2, atol=1e-6), name
    changed = {name for name, one in found.items() if not torch.equal(one, before[name].bfloat16())}
    assert (
        len(changed)
        == merged.layers
        == len(load_file(adapter / "adapter_model.safetensors")) // (3 if "use_dora" in options else 2)
    )
    assert 0 < merged.rounded < 0.02


def test_files_of_a_large_base_become_files_with_an_index_that_plain_transformers_loads(
    toy_base: Path, plain_adapter: Path, tmp_path: Path
) -> None:
    base, out = tmp_path / "base", tmp_path / "merged"
    AutoModelForImageTextToText.from_pretrained(toy_base).save_pretrained(base, max_shard_size="3MB")
    merged = merge_adapter(base, plain_adapter, out, shard_bytes=1 << 20)
    index = json.loads((out / INDEX).read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > len(list(base.glob("*.safetensors"))) > 1
    assert {name: file for file in files for name in load_file(out / file)} == index["weight_map"]
    assert (
        index["metadata"]["total_size"]
        == merged.size
        == sum(one.nbytes for file in files for one in load_file(out / file).values())
    )
    merge_adapter(toy_base, plain_adapter, tmp_path / "whole")
    loaded, whole = (
        AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        for folder in (out, tmp_path / "whole")
    )
    for report in (loaded[1], whole[1]):
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded[0].dtype == torch.bfloat16
    for name, one in whole[0].state_dict().items():
        assert torch.equal(one, loaded[0].state_dict()[name]), name


def test_nothing_of_the_bases_generation_config_bends_coordinates(
    toy_base: Path, plain_adapter: Path, tmp_path: Path
) -> None:
    """Qwen2.5-VL's own has a penalty for repetition, and asks for sampling."""
    base = tmp_path / "base"
    shutil.copytree(toy_base, base)
    own = json.loads((base / "generation_config.json").read_text())
    published = own | {"repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(published))
    config = json.loads((base / "config.json").read_text())
    del config["dtype"]
    (base / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    merge_adapter(base, plain_adapter, tmp_path / "merged")
    kept = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert kept == {name: value for name, value in own.items() if name.endswith("_id")} | {"do_sample": False}
    assert json.loads((tmp_path / "merged" / "config.json").read_text()) == config | {"torch_dtype": "bfloat16"}


def test_what_cannot_be_merged_is_refused(
    family_base: Bases, toy_base: Path, plain_adapter: Path, tmp_path: Path
) -> None:
    file = plain_adapter / "adapter_model.safetensors"
    tensors, config = load_file(file), json.loads((plain_adapter / "adapter_config.json").read_text())

    def refused(base: Path, match: str) -> None:
        with pytest.raises(InputError, match=match):
            merge_adapter(base, plain_adapter, tmp_path / "merged")
        save_file(tensors, file)
        (plain_adapter / "adapter_config.json").write_text(json.dumps(config))

    whole = {"base_model.model.model.language_model.embed_tokens.weight": torch.zeros(2, 2)}
    save_file(tensors | whole, file)
    refused(toy_base, r"embed_tokens\.weight is not merged here, only low-rank updates .* trained whole")
    head = {f"base_model.model.lm_head.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}
    save_file(head, file)
    refused(family_base("qwen2_5_vl"), r"it has lm_head, and the files of the base .*tied to the embeddings")
    refused(family_base("qwen2_5_vl"), r"the base has one of .*; it was made for another base|it has model\.language")
    (plain_adapter / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {"q_proj": 3}}))
    refused(toy_base, "adapter_config.json has alpha_pattern, which is not merged here")
    quantised = tmp_path / "quantised"
    shutil.copytree(toy_base, quantised)
    own = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(own | {"quantization_config": {"quant_method": "awq"}}))
    refused(quantised, r"its weights are quantised \(awq\), and an adapter is merged into the base as it was before")
