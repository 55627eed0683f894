"""What a base is made of, from its config.json alone: no weights are read, and no torch is loaded.

    shapes = Shapes.of(json.loads((folder / "config.json").read_text()))
    shapes.parameters("vision")        how many numbers the vision tower has
    shapes.text.linears                (in, out) of each linear layer of one layer of the language model

A test holds the count of parameters equal to that of the library's own classes, for every family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcot.errors import InputError
from vcot.models.families import FAMILIES, Part, family_of

Linear = tuple[int, int]
"""(numbers in, numbers out)"""


@dataclass(frozen=True)
class Tower:
    """Layers of one kind, one after another: the language model or the vision tower.

    Attributes:
        hidden, inner: numbers of a token between layers, and within its MLP. heads · size: of all queries together;
        key_heads · size: of all keys. gated: the MLP has a gate beside its first layer. rms: norms keep no mean
        (RMSNorm, in float32), else they are LayerNorms. fused: one linear layer makes queries, keys and values.
        others: parameters of a layer that are not in its linear layers' matrices: biases, norms, scales.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    size: int
    gated: bool
    rms: bool
    fused: bool
    others: int

    @property
    def wide(self) -> int:
        """Numbers of a token's queries."""
        return self.heads * self.size

    @property
    def narrow(self) -> int:
        """Numbers of a token's keys; of its values as many."""
        return self.key_heads * self.size

    @property
    def into_attention(self) -> tuple[Linear, ...]:
        if self.fused:
            return ((self.hidden, self.wide + 2 * self.narrow),)
        return (self.hidden, self.wide), (self.hidden, self.narrow), (self.hidden, self.narrow)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Of one layer: queries, keys, values; out of attention; (gate and) up; down."""
        out_of, up, down = (self.wide, self.hidden), (self.hidden, self.inner), (self.inner, self.hidden)
        return (*self.into_attention, out_of, *([up] * (2 if self.gated else 1)), down)

    @property
    def matrices(self) -> int:
        """Parameters of one layer's matrices."""
        return sum(a * b for a, b in self.linears)

    @property
    def parameters(self) -> int:
        return self.layers * (self.matrices + self.others)


@dataclass(frozen=True)
class Shapes:
    """
    Attributes:
        vocabulary: rows of the embeddings and of the head. tied: these two are one matrix.
        language_rest, vision_rest: parameters outside the layers and, of the language model, outside embeddings and
            head. mergers: the linear layers between vision tower and language model. merger_rest: its biases and norms.
        patch: numbers of a patch as the model is given it. merge: patches a side of one visual token.
        patch_size: pixels a side. window: patches a side of a window, of vision layers that do not see the whole
            image; whole_layers: how many do.
        stored_bytes: of one number as config.json says that the files have them.
    """

    family: str
    text: Tower
    vision: Tower
    vocabulary: int
    tied: bool
    language_rest: int
    vision_rest: int
    mergers: tuple[Linear, ...]
    merger_rest: int
    patch: int
    merge: int
    patch_size: int
    window: int
    whole_layers: int
    fixed_side: int | None
    stored_bytes: int

    @classmethod
    def of(cls, config: Mapping[str, Any], where: object = "this base") -> Shapes:
        """Of what a config.json holds. Raises InputError: a model of another family, or a number is missing."""
        family = family_of(config, where)
        try:
            return _OF[family.model_type](config)
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(f"{where}: its config.json does not say {error}; is it whole?") from None

    @classmethod
    def read(cls, folder: Path) -> Shapes:
        """Of a base's folder. Raises InputError: there is no model of a known family."""
        try:
            config = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: no model is described there: {error}") from None
        return cls.of(config if isinstance(config, dict) else {}, folder)

    @property
    def embeddings(self) -> int:
        """Parameters of one matrix of the vocabulary."""
        return self.vocabulary * self.text.hidden

    def parameters(self, part: Part | None = None) -> int:
        """Of the whole model, or of one part as `Family.part` divides it (embeddings and head are the language's)."""
        found: dict[Part, int] = {
            "language": self.text.parameters + self.language_rest + self.embeddings * (1 if self.tied else 2),
            "merger": sum(a * b for a, b in self.mergers) + self.merger_rest,
            "vision": self.vision.parameters + self.vision_rest,
        }
        return sum(found.values()) if part is None else found[part]

    def adapter_parameters(self, r: int, targets: str) -> int:
        """Of LoRA adapters of rank r on the linear layers of these parts (`--targets`)."""
        return sum(r * (a + b) * times for a, b, times in self.adapted(targets))

    def adapted(self, targets: str) -> list[tuple[int, int, int]]:
        """(in, out, how many of them) of the linear layers with an adapter."""
        found = [(a, b, self.text.layers) for a, b in self.text.linears]
        if targets in ("language+merger", "all"):
            found += [(a, b, 1) for a, b in self.mergers]
        if targets == "all":
            found += [(a, b, self.vision.layers) for a, b in self.vision.linears]
        return found


def _text(text: Mapping[str, Any], *, biases: bool, head_norms: bool) -> Tower:
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    size = text.get("head_dim") or hidden // heads
    key_heads = text.get("num_key_value_heads") or heads
    others = 2 * hidden + (heads + 2 * key_heads) * size * biases + 2 * size * head_norms
    return Tower(
        layers=text["num_hidden_layers"], hidden=hidden, inner=text["intermediate_size"], heads=heads,
        key_heads=key_heads, size=size, gated=True, rms=True, fused=False, others=others,
    )  # fmt: skip


def _vision(
    layers: int, hidden: int, inner: int, heads: int, *, gated: bool, rms: bool, fused: bool = True, scales: int = 0
) -> Tower:  # fmt: skip
    norms = 2 * hidden * (1 if rms else 2)
    biases = 3 * hidden + hidden + (2 if gated else 1) * inner + hidden
    return Tower(layers, hidden, inner, heads, heads, hidden // heads, gated, rms, fused, norms + biases + scales)


def _text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Older files of the Qwens have the language model's numbers at the top."""
    return config.get("text_config") or config


def _shared(config: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    said = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "bfloat16")
    tied = config.get("tie_word_embeddings")
    return {
        "family": config["model_type"],
        "vocabulary": text["vocab_size"],
        "tied": bool(text.get("tie_word_embeddings", False) if tied is None else tied),
        "language_rest": text["hidden_size"],
        "stored_bytes": 4 if said.endswith("float32") else 2,
    }


def _qwen2_vl(config: Mapping[str, Any]) -> Shapes:
    text, vision = _text_of(config), config["vision_config"]
    hidden, patch_size, merge = vision["embed_dim"], vision["patch_size"], vision["spatial_merge_size"]
    patch = vision.get("in_channels", vision.get("in_chans", 3)) * vision["temporal_patch_size"] * patch_size**2
    merged, out = hidden * merge**2, vision["hidden_size"]
    tower = _vision(
        vision["depth"], hidden, int(hidden * vision.get("mlp_ratio", 4)), vision["num_heads"], gated=False, rms=False
    )
    return Shapes(
        text=_text(text, biases=True, head_norms=False), vision=tower, **_shared(config, text),
        vision_rest=patch * hidden, mergers=((merged, merged), (merged, out)), merger_rest=merged + out + 2 * hidden,
        patch=patch, merge=merge, patch_size=patch_size, window=0, whole_layers=tower.layers, fixed_side=None,
    )  # fmt: skip


def _qwen2_5_vl(config: Mapping[str, Any]) -> Shapes:
    text, vision = _text_of(config), config["vision_config"]
    hidden, patch_size, merge = vision["hidden_size"], vision["patch_size"], vision["spatial_merge_size"]
    patch = vision.get("in_channels", vision.get("in_chans", 3)) * vision["temporal_patch_size"] * patch_size**2
    merged, out = hidden * merge**2, vision["out_hidden_size"]
    tower = _vision(vision["depth"], hidden, vision["intermediate_size"], vision["num_heads"], gated=True, rms=True)
    return Shapes(
        text=_text(text, biases=True, head_norms=False), vision=tower, **_shared(config, text),
        vision_rest=patch * hidden, mergers=((merged, merged), (merged, out)), merger_rest=merged + out + hidden,
        patch=patch, merge=merge, patch_size=patch_size, window=vision["window_size"] // patch_size,
        whole_layers=len(vision["fullatt_block_indexes"]), fixed_side=None,
    )  # fmt: skip


def _qwen3_vl(config: Mapping[str, Any]) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    hidden, patch_size, merge = vision["hidden_size"], vision["patch_size"], vision["spatial_merge_size"]
    patch = vision["in_channels"] * vision["temporal_patch_size"] * patch_size**2
    merged, out = hidden * merge**2, vision["out_hidden_size"]
    tower = _vision(vision["depth"], hidden, vision["intermediate_size"], vision["num_heads"], gated=False, rms=False)
    deep = len(vision["deepstack_visual_indexes"])  # each with a merger of its own, whose norm is over what is merged
    return Shapes(
        text=_text(text, biases=bool(text.get("attention_bias")), head_norms=True), vision=tower,
        **_shared(config, text),
        vision_rest=(patch + 1) * hidden + vision["num_position_embeddings"] * hidden,
        mergers=((merged, merged), (merged, out)) * (1 + deep),
        merger_rest=(merged + out) * (1 + deep) + 2 * hidden + 2 * merged * deep,
        patch=patch, merge=merge, patch_size=patch_size, window=0, whole_layers=tower.layers, fixed_side=None,
    )  # fmt: skip


def _internvl(config: Mapping[str, Any]) -> Shapes:
    text, vision = config["text_config"], config["vision_config"]
    hidden, side = vision["hidden_size"], vision["image_size"][0]
    patch_size, merge = vision["patch_size"][0], int(1 / config["downsample_ratio"])
    patch, merged, out = vision.get("num_channels", 3) * patch_size**2, hidden * merge**2, text["hidden_size"]
    rms = vision.get("norm_type") == "rms_norm"
    tower = _vision(
        vision["num_hidden_layers"], hidden, vision["intermediate_size"], vision["num_attention_heads"], gated=False,
        rms=rms, fused=False, scales=2 * hidden - (0 if vision.get("attention_bias") else 3 * hidden),
    )  # fmt: skip
    places = ((side // patch_size) ** 2 + 1) * hidden if vision.get("use_absolute_position_embeddings", True) else 0
    last = 0 if vision.get("use_mean_pooling", True) else 2 * hidden
    kind = text.get("model_type", "qwen2")
    return Shapes(
        text=_text(text, biases=kind == "qwen2", head_norms=kind == "qwen3"), vision=tower, **_shared(config, text),
        vision_rest=(patch + 1) * hidden + hidden + places + last,
        mergers=((merged, out), (out, out)), merger_rest=2 * out + 2 * merged, patch=patch, merge=merge,
        patch_size=patch_size, window=0, whole_layers=tower.layers, fixed_side=side,
    )  # fmt: skip


_OF = {"qwen2_vl": _qwen2_vl, "qwen2_5_vl": _qwen2_5_vl, "qwen3_vl": _qwen3_vl, "internvl": _internvl}
assert _OF.keys() == FAMILIES.keys()
