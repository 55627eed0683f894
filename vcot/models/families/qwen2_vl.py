"""Qwen2-VL: images at their own resolution, in a grid of patches; later Qwens differ from it in little."""

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from vcot.grounding import FrameName, smart_resize
from vcot.models.families.base import Family, Part, Size

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

LANGUAGE = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""The usual list of seven suffixes would also find the vision tower's gate, up and down projections."""


class Qwen2VL(Family):
    name = "qwen2-vl"
    model_type = "qwen2_vl"
    processor_class = "Qwen2VLProcessor"
    frame: ClassVar[FrameName] = "thousandths"
    patch_size = 14
    inputs = ("input_ids", "attention_mask", "position_ids", "mm_token_type_ids", "pixel_values", "image_grid_thw")
    merger = r"(^|\.)visual\.merger\."
    vision = r"(^|\.)visual\."
    adapted: ClassVar[Mapping[Part, str]] = {
        "language": LANGUAGE,
        "merger": r".*visual\.merger\.mlp\.[02]",
        "vision": r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))",
    }
    unquantised = ("lm_head", "model.visual")
    layers = ("model.language_model.embed_tokens", "model.language_model.layers.*", "model.visual.blocks.*")
    counting_class = "Qwen2VLModel"
    """The library's class with `get_rope_index`."""

    def prepare(self, model: Any) -> None:
        embedding = model.model.visual.patch_embed
        embedding.forward = types.MethodType(_patch_embedding, embedding)

    def smallest_image(self, model: Any) -> dict[str, Tensor]:
        import torch

        visual = model.model.visual
        side = visual.spatial_merge_size
        patches = torch.zeros(side * side, visual.patch_embed.proj.weight.shape[1:].numel())
        return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, side, side]])}

    def _processor_options(self, min_pixels: int, max_pixels: int) -> dict[str, Any]:
        return {"size": {"shortest_edge": min_pixels, "longest_edge": max_pixels}}

    def sizes(self, processor: Any) -> dict[str, int]:
        images = processor.image_processor
        return {
            "min_pixels": int(images.size["shortest_edge"]),
            "max_pixels": int(images.size["longest_edge"]),
            "patch_size": int(images.patch_size),
            "merge_size": int(images.merge_size),
            "temporal_patch_size": int(images.temporal_patch_size),
        }

    def resized(self, size: Size, *, min_pixels: int, max_pixels: int, factor: int) -> Size:
        return smart_resize(*size, min_pixels=min_pixels, max_pixels=max_pixels, factor=factor)

    def patches(self, processor: Any, size: Size) -> int:
        return int(processor.image_processor.get_number_of_image_patches(size[1], size[0], {}))

    def pixels(self, processor: Any, images: Sequence[Image.Image]) -> dict[str, Any]:
        return dict(processor.image_processor(images=list(images), return_tensors="pt"))

    def _positions(self, ids: Tensor, kinds: Tensor, grids: Tensor, merge_size: int) -> Tensor:
        found, _ = _counter(self.model_type, self.counting_class, merge_size).get_rope_index(
            ids[None], kinds[None], image_grid_thw=grids
        )
        positions: Tensor = found[:, 0]
        return positions


@cache
def _counter(model_type: str, counting_class: str, merge_size: int) -> Any:
    """The library's model without layers and weights: `get_rope_index` looks at the configuration alone."""
    module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    model = object.__new__(getattr(module, counting_class))
    vision = types.SimpleNamespace(spatial_merge_size=merge_size, tokens_per_second=1)  # the latter: of videos
    model.config = types.SimpleNamespace(vision_config=vision)
    return model


def _patch_embedding(self: Any, patches: Tensor) -> Tensor:
    """[patches, channels · frames · side²] → [patches, hidden]: the convolution as the product that it is.

    Its kernel is as large as its stride, so nothing overlaps; as Conv3d it runs 10 to 100 times slower on
    several versions of cuDNN. The parameter stays 5-D, so checkpoints stay those of the family.
    """
    from torch.nn import functional

    weight: Tensor = self.proj.weight
    return functional.linear(patches.reshape(-1, weight[0].numel()).to(weight.dtype), weight.flatten(1), self.proj.bias)
