"""A base of each family, from its published configuration with few and narrow layers; the tokenizer is the rehearsal
base's. Random weights: they learn a handful of examples by heart, and see nothing.

from tests.fakes.families import *  # fixture: family_base; in a conftest.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__ = ["family_base"]

REHEARSAL = Path(__file__).parents[2] / "examples" / "rehearsal"
KNOWN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")

# What every family's language model has here; head_dim 32 as 4 + 6 + 6 pairs of rotary numbers (time, row, column).
TEXT = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "initializer_range": 0.04,
    "bos_token_id": None,
}  # fmt: skip
SECTIONS = {"rope_type": "default", "mrope_section": [4, 6, 6]}

INTERNVL_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}<IMG_CONTEXT>
{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def qwen2_vl(ids: dict[str, int], vocabulary: int) -> Any:
    """Qwen/Qwen2-VL-2B-Instruct: depth 32, embed_dim 1280, 28 layers of 1536."""
    from transformers import Qwen2VLConfig

    return Qwen2VLConfig(
        text_config=TEXT | {"vocab_size": vocabulary, "rope_parameters": SECTIONS | {"rope_theta": 1000000.0}},
        vision_config={
            "depth": 2, "embed_dim": 64, "hidden_size": 128, "hidden_act": "quick_gelu", "mlp_ratio": 4, "num_heads": 2,
            "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        tie_word_embeddings=True, **ids,
    )  # fmt: skip


def qwen2_5_vl(ids: dict[str, int], vocabulary: int) -> Any:
    """Qwen/Qwen2.5-VL-3B-Instruct: depth 32, hidden_size 1280, full attention in every eighth block."""
    from transformers import Qwen2_5_VLConfig

    return Qwen2_5_VLConfig(
        text_config=TEXT | {"vocab_size": vocabulary, "rope_parameters": SECTIONS | {"rope_theta": 1000000.0}},
        vision_config={
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128,
            "hidden_act": "silu", "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
        tie_word_embeddings=True, **ids,
    )  # fmt: skip


def qwen3_vl(ids: dict[str, int], vocabulary: int) -> Any:
    """Qwen/Qwen3-VL-2B-Instruct: depth 24, hidden_size 1024, deepstack from blocks 5, 11 and 17, 48 x 48 places."""
    from transformers import Qwen3VLConfig

    rope = SECTIONS | {"rope_theta": 5000000.0, "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config=TEXT | {"vocab_size": vocabulary, "head_dim": 32, "rope_parameters": rope},
        vision_config={
            "depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 128,
            "hidden_act": "gelu_pytorch_tanh", "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "num_position_embeddings": 2304, "deepstack_visual_indexes": [0, 1],
        },
        tie_word_embeddings=True, **ids,
    )  # fmt: skip


def internvl(ids: dict[str, int], vocabulary: int) -> Any:
    """OpenGVLab/InternVL3-1B-hf: InternViT-300M (24 layers of 1024) and Qwen2.5-0.5B; 448 x 448 in 256 tokens."""
    from transformers import InternVLConfig

    return InternVLConfig(
        text_config=TEXT | {"model_type": "qwen2", "vocab_size": vocabulary, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1000000.0}},
        vision_config={
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "attention_bias": True,
            "intermediate_size": 128, "hidden_act": "gelu", "norm_type": "layer_norm", "image_size": [448, 448],
            "patch_size": [14, 14], "use_absolute_position_embeddings": True, "layer_scale_init_value": 0.1,
        },
        image_token_id=ids["image_token_id"], image_seq_length=256, downsample_ratio=0.5, projector_hidden_act="gelu",
        vision_feature_layer=-1, vision_feature_select_strategy="default", tie_word_embeddings=True,
    )  # fmt: skip


def make_base(model_type: str, folder: Path) -> Path:
    """Writes model, processor and tokenizer of this family, as its publisher lays them out."""
    import torch
    import transformers
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(REHEARSAL)
    template = (REHEARSAL / "chat_template.jinja").read_text()
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    if model_type == "internvl":
        own = {
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }  # fmt: skip
        template, names = INTERNVL_TEMPLATE, {"image_token_id": "<IMG_CONTEXT>"}
        tokenizer = AutoTokenizer.from_pretrained(REHEARSAL, extra_special_tokens=own)
        tokenizer.add_special_tokens({"extra_special_tokens": list(own.values())}, replace_extra_special_tokens=False)
        images = transformers.GotOcr2ImageProcessor(size={"height": 448, "width": 448}, crop_to_patches=True)
        processor: Any = transformers.InternVLProcessor(
            images, tokenizer, transformers.InternVLVideoProcessor(), image_seq_length=256, chat_template=template
        )
    elif model_type == "qwen3_vl":
        import trl

        template = (Path(trl.__file__).parent / "chat_templates" / "qwen3_vl.jinja").read_text()
        images = transformers.Qwen2VLImageProcessor(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        processor = transformers.Qwen3VLProcessor(
            images, tokenizer, transformers.Qwen3VLVideoProcessor(), chat_template=template
        )
    else:
        kind = {"qwen2_vl": transformers.Qwen2VLProcessor, "qwen2_5_vl": transformers.Qwen2_5_VLProcessor}[model_type]
        processor = kind(
            transformers.Qwen2VLImageProcessor(),
            tokenizer,
            transformers.Qwen2VLVideoProcessor(),
            chat_template=template,
        )
    processor.save_pretrained(folder)
    makers: dict[str, Callable[[dict[str, int], int], Any]] = {
        "qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "internvl": internvl,
    }  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = makers[model_type](ids, len(tokenizer))
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == model_type
    return folder


@pytest.fixture(scope="session")
def family_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """model_type → its base; each is made once."""
    made: dict[str, Path] = {}

    def base(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = make_base(model_type, tmp_path_factory.mktemp(model_type))
        return made[model_type]

    return base
