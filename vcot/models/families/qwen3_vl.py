"""Qwen3-VL: larger patches, thousandths again, and features of several layers of the vision tower, each with a merger
of its own, that are added to the first layers of the language model (deepstack)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from vcot.models.families.base import Part
from vcot.models.families.qwen2_vl import LANGUAGE, Qwen2VL


class Qwen3VL(Qwen2VL):
    name = "qwen3-vl"
    model_type = "qwen3_vl"
    processor_class = "Qwen3VLProcessor"
    patch_size = 16
    merger = r"(^|\.)visual\.(merger|deepstack_merger_list)\."
    adapted: ClassVar[Mapping[Part, str]] = {
        "language": LANGUAGE,
        "merger": r".*visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12]",
        "vision": r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
    }
    counting_class = "Qwen3VLModel"
