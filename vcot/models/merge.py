"""An adapter merged into the weights of its base, one tensor after the other: no model is loaded, and no more than one
file of the base and one of the result are in memory.

    merge_adapter(base, adapter, out)     config.json, generation_config.json, model*.safetensors, in bfloat16

Each tensor keeps the name that it has in the base's files, and config.json is the base's own: a server that takes the
base takes the result. Names of transformers' classes are others (model.language_model.layers.… for model.layers.… of
Qwen2.5-VL's published files), and are looked up in the library's own table.

The adapter may have been learned on a base in 4 bits; what it is merged into is the base as it is published.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from vcot.errors import InputError, unreadable
from vcot.models.families import family_of
from vcot.models.loading import INDEX, adapter_settings, adapter_weights, weight_map

SHARD_BYTES = 1 << 30
"""Of one file of weights, at most, unless one tensor is larger. While it is written it is in memory twice."""

GENERATION = "generation_config.json"
PREFIX = "base_model.model."
"""PEFT writes it before the name of a module."""
LORA_A, LORA_B, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


@dataclass(frozen=True)
class Merged:
    """layers: that were changed. size: bytes of all tensors. rounded: what rounding to bfloat16 takes from the change,
    or adds to it, as a share of it (Frobenius norms, over all layers)."""

    layers: int
    size: int
    rounded: float


def merge_adapter(base: Path, adapter: Path, out: Path, *, shard_bytes: int = SHARD_BYTES) -> Merged:
    """Writes W + ΔW for each layer that the adapter has, and all else as it is, into the folder `out`.

    The change is computed in float32 and rounded once: alpha / r (rank-stabilised: alpha / √r) times B A; with DoRA the
    rows of the sum get the lengths that were learned.

    Raises:
        InputError: the base is quantised, or its files are no base; the adapter has something that is not merged here
            (modules that were trained whole, biases, embeddings), or a layer that the base does not have.
    """
    changes = _changes(adapter)
    settings = _adapter_settings(adapter)
    weights = weights_of(base)
    modules = modules_by_weight(base, weights)
    if missing := sorted(changes.keys() - modules.values()):
        raise InputError(
            f"{adapter}: it has {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}, and the files of "
            f"the base {base} have no weight of that name (an output head that is tied to the embeddings has none)"
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "config.json", _config(base))
    write_generation_config(base, out)
    error, change, size = 0.0, 0.0, 0
    index: dict[str, str] = {}
    shards = list(_shards(_sizes(base, weights), shard_bytes))
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if shards[1:] else "model.safetensors"
        tensors: dict[str, Tensor] = {}
        for source, own in groupby(names, key=weights.__getitem__):
            with safe_open(base / source, "pt") as stored:  # mapped into memory, so one at a time
                for name in own:
                    weight = stored.get_tensor(name)
                    if (found := changes.get(modules.get(name, ""))) is not None:
                        exact = _merged(weight.float(), found, settings, modules[name])
                        change += float((exact - weight.float()).square().sum())
                        weight = exact.bfloat16()
                        error += float((exact - weight.float()).square().sum())
                    tensors[name] = weight.bfloat16() if weight.is_floating_point() else weight
                    size += tensors[name].nbytes
        save_file(tensors, out / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    if shards[1:]:
        _write_json(out / INDEX, {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))})
    return Merged(len(changes), size, math.sqrt(error / change) if change else 0.0)


# --- the base's files --------------------------------------------------------------------------------------


def weights_of(base: Path) -> dict[str, str]:
    """Tensor of a base → the file that has it, in the order of the files. Raises InputError: there are none."""
    if (files := weight_map(base)) is not None:
        return dict(sorted(files.items(), key=lambda item: (item[1], item[0])))
    try:
        with safe_open(base / "model.safetensors", "pt") as stored:
            return dict.fromkeys(sorted(stored.keys()), "model.safetensors")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise unreadable(f"{base}: its weights in safetensors cannot be read", error) from None


def modules_by_weight(base: Path, weights: Mapping[str, str]) -> dict[str, str]:
    """Tensor of the base's files → the module of transformers' class whose `weight` it becomes, for those that become
    one; without any weight being read.

    Raises InputError: config.json describes no model of a known family.
    """
    try:
        config = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{base}: no model is described there: {' '.join(str(error).split())[:300]}") from None
    family_of(config, base)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    table = get_model_conversion_mapping(model)
    renamings = [each for each in table if isinstance(each, WeightRenaming)]
    converters = [each for each in table if isinstance(each, WeightConverter)]
    expected = model.state_dict()
    found: dict[str, str] = {}
    for name in weights:
        own, converted = rename_source_key(name, renamings, converters, model.base_model_prefix, expected)
        # What is put together from several tensors, or cut into them, has no ΔW of its own.
        if converted is None and own in expected and own.endswith(".weight"):
            found[name] = own.removesuffix(".weight")
    return found


def _config(base: Path) -> dict[str, Any]:
    """The base's own, as its publisher wrote it: what transformers 5 would write, older servers do not read."""
    config: dict[str, Any] = json.loads((base / "config.json").read_bytes())
    if "quantization_config" in config:
        kind = config["quantization_config"].get("quant_method", "quantised")
        raise InputError(
            f"{base}: its weights are quantised ({kind}), and an adapter is merged into the base as it was before "
            "that; give that one"
        )
    for part in (config, *(each for each in config.values() if isinstance(each, dict))):
        part |= {name: "bfloat16" for name in ("dtype", "torch_dtype") if name in part}
    return config if {"dtype", "torch_dtype"} & config.keys() else config | {"torch_dtype": "bfloat16"}


def write_generation_config(base: Path, out: Path) -> None:
    """The base's tokens, and greedy: servers take what stands there for their defaults, and a penalty for repetition
    (1.05 in Qwen2.5-VL's) punishes digits that were used before, and so bends coordinates."""
    if (base / GENERATION).is_file():
        found = json.loads((base / GENERATION).read_bytes())
        tokens = {name: value for name, value in found.items() if name.endswith("_token_id")}
        _write_json(out / GENERATION, tokens | {"do_sample": False})


def _sizes(base: Path, weights: Mapping[str, str]) -> dict[str, int]:
    """Bytes that each tensor may take, at most, as it will be written."""
    found: dict[str, int] = {}
    for file, names in groupby(weights, key=weights.__getitem__):
        with safe_open(base / file, "pt") as stored:
            for name in names:
                about = stored.get_slice(name)
                width = 2 if about.get_dtype() in ("F64", "F32", "F16", "BF16") else 8
                found[name] = math.prod(map(int, about.get_shape())) * width
    return found


def _shards(sizes: Mapping[str, int], most: int) -> Iterator[Sequence[str]]:
    names: list[str] = []
    size = 0
    for name, own in sizes.items():
        if names and size + own > most:
            yield names
            names, size = [], 0
        names.append(name)
        size += own
    yield names


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


# --- the adapter -------------------------------------------------------------------------------------------


def _adapter_settings(adapter: Path) -> peft.LoraConfig:
    settings = adapter_settings(adapter)
    for name in ("alpha_pattern", "fan_in_fan_out", "use_qalora", "use_bdlora", "layer_replication"):
        if getattr(settings, name, None):
            raise InputError(f"{adapter}: adapter_config.json has {name}, which is not merged here")
    return settings


def _changes(adapter: Path) -> dict[str, dict[str, Tensor]]:
    """Module → its tensors by what they are. They are small beside the base's."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter_weights(adapter).items():
        kind = next((kind for kind in (LORA_A, LORA_B, MAGNITUDE) if name.endswith(f".{kind}")), None)
        if kind is None or not name.startswith(PREFIX):
            raise InputError(
                f"{adapter}: {name} is not merged here, only low-rank updates of linear layers ({LORA_A}, {LORA_B}, "
                f"and DoRA's {MAGNITUDE}); modules that were trained whole, biases and embeddings are not"
            )
        found.setdefault(name.removeprefix(PREFIX).removesuffix(f".{kind}"), {})[kind] = tensor.float()
    for module, tensors in found.items():
        if not {LORA_A, LORA_B} <= tensors.keys():
            raise InputError(f"{adapter}: of {module} it has only {', '.join(tensors)}; the file is damaged")
    return found


def _merged(weight: Tensor, change: Mapping[str, Tensor], settings: peft.LoraConfig, module: str) -> Tensor:
    """float32 [out, in], as PEFT computes it."""
    down, up = change[LORA_A], change[LORA_B]
    if (up.shape[0], down.shape[1]) != tuple(weight.shape):
        raise InputError(
            f"{module}: the adapter changes a weight of {up.shape[0]}x{down.shape[1]}, the base has one of "
            f"{'x'.join(map(str, weight.shape))}; it was made for another base"
        )
    rank = down.shape[0]
    scale = settings.lora_alpha / (math.sqrt(rank) if settings.use_rslora else rank)
    summed: Tensor = weight + scale * (up @ down)
    if (lengths := change.get(MAGNITUDE)) is None:
        return summed
    factors: Tensor = lengths / summed.norm(dim=1)
    return summed * factors[:, None]
