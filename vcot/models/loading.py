"""A base model from a folder (of one of the families, weights from safetensors alone, in 4 bits where asked), and its
adapters: low-rank updates (LoRA) on linear layers of the parts of it that are named.

    model = load_base(folder, quantization="nf4")        weights from safetensors, never code or pickles
    model = attach_lora(model, r=64, alpha=128, …)       to learn
    model = load_adapter(model, folder)                  to use what was learned

What the libraries do not do by themselves, each with its reason below: a 4-bit layer that survives an evaluation,
attention that is not slow in bfloat16, and a refusal where weights are missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.distributed import DistributedConfig
from transformers.utils import logging as transformers_logging

from vcot.errors import InputError, SettingsError, unreadable
from vcot.models.attention import use_varlen_attention
from vcot.models.device import DtypeName, compute_dtype, device
from vcot.models.families import Part, family_of
from vcot.models.loss import add_loss
from vcot.storage.names import name_in

INDEX = "model.safetensors.index.json"


def load_base(
    folder: Path,
    *,
    quantization: Literal["none", "nf4"] = "none",
    dtype: DtypeName = "auto",
    weights: Literal["same", "float32"] = "same",
    shards: int = 1,
) -> Any:
    """The base model in a local folder, on this machine's device, in evaluation mode.

    Its attention takes rows packed end to end (`vcot.models.attention`), and its forward pass gives the loss
    (`vcot.models.loss`).

    Args:
        quantization: nf4: the language model's linear layers in 4 bits with double quantization; the vision tower
            and the head keep `dtype`.
        dtype: what to compute with.
        weights: of the weights that are not quantised; "float32" where all of them are to be trained, because
            bfloat16 has no room for small steps.
        shards: ranks that hold one part of each weight each (FSDP2); all of the process group, which must be there.
            Adapters that are attached later are whole on each rank. FSDP2 gives each rank its part of the
            gradients' mean over the ranks; those of adapters are for the caller to add.

    Returns:
        A model of one of the families (vcot.models.families), such as `Qwen2_5_VLForConditionalGeneration`.

    Raises:
        InputError: the folder holds no such model, its weights are not safetensors, truncated, or do not fill
            the model that its config describes.
        SettingsError: 4 bits in shards.
    """
    if shards > 1 and quantization == "nf4":
        raise SettingsError(
            f"{shards} shards of a base in 4 bits: quantised weights cannot be sharded; leave the base whole on each "
            "rank (1 shard), or shard it without --quantization nf4"
        )
    where, numbers = device(), compute_dtype(dtype)
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: no model is described there: {_short(error)}") from None
    family = family_of(config, folder)
    weight_map(folder)
    options: dict[str, Any] = {"dtype": torch.float32 if weights == "float32" else numbers}
    if shards > 1:
        # Weights travel in the dtype of the computation; what is kept, and the gradients' sum, are float32.
        narrower = weights == "float32" and numbers == torch.bfloat16
        options["distributed_config"] = DistributedConfig(
            fsdp_size=shards, fsdp_plan=dict.fromkeys(family.layers, "free_full_weight"), fsdp_mixed_precision=narrower
        )
    else:
        options["device_map"] = {"": where}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=numbers,
            llm_int8_skip_modules=list(family.unquantised),
        )
    transformers_logging.disable_progress_bar()
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            str(folder), config=config, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, **options,
        )  # fmt: skip
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise unreadable(f"{folder}: the base model cannot be loaded from safetensors", error) from None
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        # A weight that is not in the files would be random numbers, and only a line in a log.
        if found := sorted(str(name) for name in report.get(what) or ()):
            shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
            raise InputError(f"{folder}: weights and config.json do not belong together ({what[:-5]}: {shown})")
    prepare_model(model, numbers)
    model.eval()
    return model


def prepare_model(model: Any, dtype: torch.dtype) -> None:
    """Makes of a model of transformers what `load_base` promises, in place. dtype: what it will compute in."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On CPUs with AVX512-BF16, bitsandbytes repacks a 4-bit weight in place at the first forward
            # in evaluation mode. The next training step then fails, or loses gradients in silence.
            module.support_avx512bf16_for_cpu = False
    family_of(model.config).prepare(model)
    use_varlen_attention(model, dtype)
    add_loss(model)
    # It would have the patches' embeddings ask for gradients where activations are computed twice, and so send a frozen
    # vision tower's work backward. Only checkpoints of torch's older, re-entrant kind need it.
    model.enable_input_require_grads = lambda: None


def weight_map(folder: Path) -> dict[str, str] | None:
    """Return tensor → file of a base whose weights are in several files; None if it has no index.

    Raises:
        InputError: The index is damaged or names a file outside the folder, which libraries would read.
    """
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        files = json.loads(path.read_bytes())["weight_map"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: the index of the weights cannot be read: {error}") from None
    return {str(tensor): name_in(str(path), str(file)) for tensor, file in files}


def whole_model(model: Any) -> Any:
    """The model with its head, whether or not an adapter sits on it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def context_length(model: Any) -> int:
    """Tokens that its positions were made for, a prompt and its reply together."""
    return int(whole_model(model).config.get_text_config().max_position_embeddings)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


# --- adapters ----------------------------------------------------------------------------------------------

Targets = Literal["language", "language+merger", "all"]
"""The parts of a model that get adapters; all: language model, merger and vision tower."""

_PARTS: Mapping[Targets, tuple[Part, ...]] = {
    "language": ("language",),
    "language+merger": ("language", "merger"),
    "all": ("language", "merger", "vision"),
}

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def lora_targets(model: Any, targets: Targets = "language") -> list[str]:
    """Names of the modules that get an adapter: linear layers of these parts.

    Raises:
        InputError: a part has none, or the family's pattern for one part finds a layer of another.
    """
    family, found = family_of(model.config), []
    for part in _PARTS[targets]:
        pattern = family.adapted[part]
        names = [name for name, module in model.named_modules() if re.fullmatch(pattern, name)]
        if not names:
            raise InputError(f"this base has no layers in its {part} part to put an adapter on (names like {pattern})")
        if stray := [name for name in names if family.part(name) != part]:
            raise InputError(f"the pattern for adapters on the {part} part finds a layer of another part: {stray[0]}")
        found += names
    return found


def attach_lora(
    model: Any, *, r: int, alpha: float, dropout: float, base_uri: str | None = None, targets: Targets = "language",
    use_rslora: bool = False, use_dora: bool = False,
) -> Any:  # fmt: skip
    """The model with new adapters that can be trained (float32), everything else frozen.

    Args:
        r: rank. alpha: adapters are scaled by alpha / r, or by alpha / √r with `use_rslora`.
        dropout: share of an adapter's inputs that are zeroed in training.
        base_uri: how adapter_config.json names the base; a path on this machine would mean nothing elsewhere.
        use_dora: learn the length of each row of a weight apart from its direction (arXiv 2402.09353).

    Returns:
        A `PeftModel`. The first matrices are drawn from torch's global generator, the second are zero.

    Raises:
        InputError: the base has no such layers.
    """
    lora_targets(model, targets)
    family = family_of(model.config)
    config = peft.LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", task_type="CAUSAL_LM",
        target_modules="|".join(family.adapted[part] for part in _PARTS[targets]),
        use_rslora=use_rslora, use_dora=use_dora,
    )  # fmt: skip
    adapted = peft.get_peft_model(model, config)
    if base_uri is not None:
        adapted.peft_config["default"].base_model_name_or_path = base_uri
    return adapted


def adapter_settings(folder: Path) -> peft.LoraConfig:
    """Read adapter_config.json of a local folder. Raises InputError: it is damaged, or of another kind than LoRA."""
    path = folder / ADAPTER_FILES[1]
    try:
        stated = json.loads(path.read_bytes())
        kind = stated.get("peft_type")
        if kind != "LORA":
            raise InputError(f"{path}: an adapter of the kind {kind!r:.60}; only LORA is read")
        settings = peft.PeftConfig.from_pretrained(str(folder))
        if not settings.r >= 1 or not math.isfinite(settings.lora_alpha):
            raise ValueError(f"r={settings.r!r} and lora_alpha={settings.lora_alpha!r} should be numbers above 0")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(f"{path} is not the configuration of an adapter", error) from None
    assert isinstance(settings, peft.LoraConfig)
    return settings


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read the weights of an adapter in a local folder.

    Raises:
        InputError: there are none, the file is damaged, or weights are not finite.
    """
    if missing := [name for name in ADAPTER_FILES if not (folder / name).is_file()]:
        raise InputError(f"{folder}: not an adapter; {', '.join(missing)} is not there")
    path = folder / ADAPTER_FILES[0]
    try:
        weights = load_file(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise unreadable(f"{path} is not a complete safetensors file", error) from None
    if bad := [name for name, weight in weights.items() if not bool(weight.isfinite().all())]:
        raise InputError(
            f"{path}: {len(bad)} of {len(weights)} weights have values that are not finite (NaN or infinity), such as "
            f"{bad[0]}; the training that wrote them diverged. Use an earlier checkpoint"
        )
    return weights


def load_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """The base with the adapters of a local folder, for use: frozen, in evaluation mode; or `trainable`, in float32.

    Raises:
        InputError: the folder holds no adapter in safetensors, or one that does not fit this base.
    """
    there = set(adapter_weights(folder))
    adapter_settings(folder)
    try:
        adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise unreadable(f"{folder}: the adapter does not fit this base", error) from None
    # peft only warns where an adapter has no weights for a layer, and leaves that layer as the base has it.
    wanted = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))  # DoRA's lengths included
    if odd := sorted(wanted ^ there):
        raise InputError(
            f"{folder}: the adapter was made for another base; {len(odd)} of its layers do not match, such as {odd[0]}"
        )
    adapted.eval()
    return adapted
