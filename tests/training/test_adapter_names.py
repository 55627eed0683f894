"""Adapters are saved under the names under which vLLM applies them. Under others it loads them, applies none, and says
nothing (vllm-project/vllm #48019, #39369).

vLLM cannot run here, so its rule stands below as it was read: `parse_fine_tuned_lora_name` in vllm/lora/utils.py and
`hf_to_vllm_mapper` in vllm/model_executor/models/{qwen2_vl,qwen2_5_vl,qwen3_vl,interns1}.py (2026).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.fakes.families import *  # noqa: F403  (fixtures)
from vcot.models.loading import attach_lora, load_base
from vcot.training.publish import save_adapter

QWEN2 = {
    "model.language_model.": "language_model.model.", "model.visual.": "visual.", "lm_head.": "language_model.lm_head.",
    "model.": "language_model.model.",
}  # fmt: skip
PREFIXES = {
    "qwen2_vl": QWEN2,
    "qwen2_5_vl": QWEN2,
    "qwen3_vl": {
        "model.visual.": "visual.", "lm_head.": "language_model.lm_head.",
        "model.language_model.": "language_model.model.",
    },
    "internvl": {
        "lm_head.": "language_model.lm_head.", "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.", "model.multi_modal_projector.": "multi_modal_projector.",
    },
}  # fmt: skip

LAYER = re.compile(
    r"language_model\.model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    r"|visual\.(blocks\.\d+\.(attn\.(qkv|proj)|mlp\.\w+)|(merger|deepstack_merger_list\.\d+)\.(mlp\.[02]|linear_fc[12]))"
    r"|vision_tower\.encoder\.layer\.\d+\..+|multi_modal_projector\.linear_[12]"
)
"""Modules of vLLM's classes that take an adapter. q, k and v, and gate and up, are one module each there, whose parts
it looks for by these names."""


def in_vllm(name: str, prefixes: dict[str, str]) -> str:
    """The module to which vLLM gives a tensor of an adapter."""
    assert name.startswith("base_model.model."), name
    name = name.replace("base_model.model.", "")
    for old, new in prefixes.items():
        if name.startswith(old):
            name = name.replace(old, new, 1)
    module, matrix, weight = name.rsplit(".", 2)
    assert matrix in ("lora_A", "lora_B"), name
    assert weight == "weight", name
    return module


def applied(names: Iterable[str], model_type: str) -> set[str]:
    return {module for name in names if LAYER.fullmatch(module := in_vllm(name, PREFIXES[model_type]))}


@pytest.mark.parametrize("model_type", PREFIXES)
def test_vllm_applies_every_layer_of_an_adapter(
    family_base: Callable[[str], Path], model_type: str, tmp_path: Path
) -> None:
    model: Any = attach_lora(load_base(family_base(model_type)), r=2, alpha=2, dropout=0.0, targets="all")
    save_adapter(model, tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as stored:
        names = list(stored.keys())
    found = applied(names, model_type)
    assert len(found) == len(names) / 2
    assert sum(name.startswith("language_model.model.layers.") for name in found) == 3 * 7
    if model_type in ("qwen3_vl", "internvl"):  # the fault that this is about: names of the text model's own class
        other = [name.replace("model.language_model.layers", "model.layers") for name in names]
        assert not any("language_model" in name for name in applied(other, model_type))
