"""The model that the GPU benchmark trains is of the published one's size."""

from __future__ import annotations

import torch
from transformers import AutoModelForImageTextToText

from benchmarks.gpu import shape


def test_its_shape_has_as_many_parameters_as_qwen2_5_vl_7b() -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(shape(toy=False), dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == 8_292_166_656
