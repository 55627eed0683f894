"""InternVL (the classes of transformers): each image as one square tile, a constant number of visual tokens, and tokens
that count on through an image as through text.

The published processor cuts large images into up to twelve tiles and a thumbnail. Here an image is one tile, so
that a box and the tokens that see it stay in one place; small things in large images are seen less well for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vcot.errors import InputError
from vcot.models.families.base import Family, Part, Size
from vcot.models.families.qwen2_vl import LANGUAGE

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class InternVL(Family):
    name = "internvl"
    model_type = "internvl"
    processor_class = "InternVLProcessor"
    frame = "thousandths"
    patch_size = 14
    fixed_size = True
    inputs = ("input_ids", "attention_mask", "position_ids", "pixel_values")
    merger = r"(^|\.)multi_modal_projector\."
    vision = r"(^|\.)vision_tower\."
    adapted: ClassVar[Mapping[Part, str]] = {
        "language": LANGUAGE,
        "merger": r".*multi_modal_projector\.linear_[12]",
        "vision": r".*vision_tower\..*\.(attention\.(q_proj|k_proj|v_proj|projection_layer)|mlp\.fc[12])",
    }
    unquantised = ("lm_head", "model.vision_tower", "model.multi_modal_projector")
    layers = (
        "model.language_model.embed_tokens",
        "model.language_model.layers.*",
        "model.vision_tower.encoder.layer.*",
    )

    def model_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        found = super().model_inputs(batch)
        if "position_ids" in found:
            found["position_ids"] = found["position_ids"][0]  # [3, B, T], all alike: [B, T] is what it takes
        return found

    def smallest_image(self, model: Any) -> dict[str, Tensor]:
        import torch

        vision = model.config.vision_config
        return {"pixel_values": torch.zeros(1, vision.num_channels, *vision.image_size)}

    def load_processor(self, folder: Path, *, min_pixels: int, max_pixels: int) -> Any:
        processor = super().load_processor(folder, min_pixels=min_pixels, max_pixels=max_pixels)
        images = processor.image_processor
        images.crop_to_patches, images.max_patches = False, 1
        processor.video_token_id = processor.tokenizer.convert_tokens_to_ids(processor.video_token)
        width, height = images.size["width"], images.size["height"]
        factor = self.patch_size * self.merge_size
        if width != height or (width // factor) ** 2 != processor.image_seq_length:
            raise InputError(
                f"{folder}: the processor makes {processor.image_seq_length} visual tokens of a tile of "
                f"{width}x{height} pixels; {factor}x{factor} pixels a token of a square are supported"
            )
        if not min_pixels <= width * height <= max_pixels:
            raise InputError(
                f"{folder}: this base sees every image at {width}x{height} = {width * height} pixels, which is not in "
                f"--min-pixels={min_pixels} to --max-pixels={max_pixels}"
            )
        return processor

    def sizes(self, processor: Any) -> dict[str, int]:
        area = int(processor.image_processor.size["width"] * processor.image_processor.size["height"])
        return {
            "min_pixels": area, "max_pixels": area, "patch_size": self.patch_size, "merge_size": self.merge_size,
            "temporal_patch_size": 1,
        }  # fmt: skip

    def resized(self, size: Size, *, min_pixels: int, max_pixels: int, factor: int) -> Size:
        if max(size) > 200 * min(size):
            raise ValueError(f"an image of {size[0]}x{size[1]} is squeezed to a square; at most 200 to 1 is possible")
        side = math.isqrt(max_pixels)
        return side, side

    def patches(self, processor: Any, size: Size) -> int:
        tiles = processor.image_processor.get_number_of_image_patches(size[1], size[0], {})
        return int(tiles * processor.image_seq_length * self.merge_size**2)

    def pixels(self, processor: Any, images: Sequence[Image.Image]) -> dict[str, Any]:
        """pixel_values: float32 [images, channels, side, side]."""
        import torch

        values = processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        side = values.shape[-1] // self.patch_size
        return {"pixel_values": values, "image_grid_thw": torch.tensor([[1, side, side]] * len(images))}

    def spelled_out(self, template_text: str) -> str:
        return template_text.replace("<IMG_CONTEXT>", "<img><IMG_CONTEXT></img>")

    def _positions(self, ids: Tensor, kinds: Tensor, grids: Tensor, merge_size: int) -> Tensor:
        import torch

        return torch.arange(len(ids)).repeat(3, 1)
