"""Qwen2.5-VL: gated layers in the vision tower, and boxes in pixels of the image as the model sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vcot.models.families.base import Part
from vcot.models.families.qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    name = "qwen2.5-vl"
    model_type = "qwen2_5_vl"
    processor_class = "Qwen2_5_VLProcessor"
    frame = "resized_pixels"
    adapted: ClassVar[Mapping[Part, str]] = {
        **Qwen2VL.adapted,
        "vision": r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate_proj|up_proj|down_proj))",
    }
    counting_class = "Qwen2_5_VLModel"
