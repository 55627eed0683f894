"""Adapters: low-rank updates (LoRA) on the seven projections of the language model, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
from torch import nn

from vcot.errors import InputError

TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""The usual list of seven suffixes would also find the picture part's gate, up and down projections."""

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def lora_targets(model: nn.Module) -> list[str]:
    """Names of the modules that get an adapter.

    Raises:
        InputError: there are none, or one of them belongs to the picture part.
    """
    found = [
        name for name, module in model.named_modules() if re.fullmatch(TARGETS, name) and hasattr(module, "weight")
    ]
    if not found:
        raise InputError(
            f"this base has none of the layers that an adapter is put on (names like {TARGETS}); "
            "the families Qwen2.5-VL and Qwen2-VL have them"
        )
    if seeing := [name for name in found if "visual" in name or "vision" in name]:
        raise InputError(f"the pattern for adapters finds layers of the picture part, which stays frozen: {seeing[0]}")
    return found


def attach_lora(model: Any, *, r: int, alpha: float, dropout: float, base_uri: str | None = None) -> Any:
    """The model with new adapters that can be trained (float32), everything else frozen.

    Args:
        r: rank. alpha: adapters are scaled by alpha / r.
        dropout: share of an adapter's inputs that are zeroed in training.
        base_uri: how adapter_config.json names the base; a path on this machine would mean nothing elsewhere.

    Returns:
        A `PeftModel`. The first matrices are drawn from torch's global generator, the second are zero.

    Raises:
        InputError: the base has no such layers.
    """
    lora_targets(model)
    config = peft.LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(model, config)
    if base_uri is not None:
        adapted.peft_config["default"].base_model_name_or_path = base_uri
    return adapted


def load_adapter(model: Any, folder: Path) -> Any:
    """The base with the adapters of a local folder, for use: frozen, in evaluation mode.

    Raises:
        InputError: the folder holds no adapter in safetensors, or one that does not fit this base.
    """
    missing = [name for name in ADAPTER_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: not an adapter; {', '.join(missing)} is not there")
    try:
        adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=False, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{folder}: the adapter does not fit this base: {' '.join(str(error).split())[:300]}"
        ) from None
    _refuse_unfilled(adapted, folder)
    adapted.eval()
    return adapted


def _refuse_unfilled(adapted: Any, folder: Path) -> None:
    """peft only warns where an adapter has no weights for a layer, and leaves that layer as the base has it."""
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_FILES[0], framework="pt") as stored:
        there = set(stored.keys())
    wanted = {name.replace(".default.", ".") for name, _ in adapted.named_parameters() if ".lora_" in name}
    if wanted != there:
        odd = sorted(wanted ^ there)
        raise InputError(
            f"{folder}: the adapter was made for another base; {len(odd)} of its layers do not match, such as {odd[0]}"
        )
