"""The base model's own processor, and what of it shapes an example."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vcot.errors import InputError

#: What `load_processor` needs of a base model's folder; none of it is large.
PROCESSOR_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)


def is_processor_file(name: str) -> bool:
    """For `fetch_folder` and `folder_digest`: everything but the weights."""
    return name in PROCESSOR_FILES


def load_processor(folder: Path, *, min_pixels: int, max_pixels: int) -> Any:
    """The Qwen2.5-VL processor of a base model, with this budget of pixels for one picture.

    Args:
        folder: a local folder that holds PROCESSOR_FILES (weights are not looked at).
        min_pixels, max_pixels: area of the picture after resizing; 28 · 28 pixels are one visual token.

    Returns:
        A `Qwen2_5_VLProcessor`, its tokenizer padding on the left.

    Raises:
        InputError: the folder holds no such processor, or one of another family.
    """
    from transformers import AutoProcessor, Qwen2_5_VLProcessor

    size = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    try:
        processor = AutoProcessor.from_pretrained(
            str(folder), size=size, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}: no processor can be loaded from this base: {said}") from None
    if not isinstance(processor, Qwen2_5_VLProcessor):
        raise InputError(
            f"{folder}: the base's processor is a {type(processor).__name__}; a Qwen2_5_VLProcessor is needed"
        )
    processor.tokenizer.padding_side = "left"
    return processor


def tokenizer_digest(processor: Any) -> str:
    """sha256 over what the tokenizer does: vocabulary, merges, splitting, normalising, special tokens.

    Padding and truncation are states of a tokenizer in use, not parts of it, and are left out; so are file
    names and library versions, so that the same tokenizer saved again has the same digest.
    """
    backend = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for state in ("padding", "truncation", "version"):
        backend.pop(state, None)
    special = {"eos": processor.tokenizer.eos_token, "pad": processor.tokenizer.pad_token}
    return _sha256({"backend": backend, "special": special})


def template_digest(processor: Any) -> str:
    """sha256 of the chat template's text."""
    return hashlib.sha256(template(processor).encode()).hexdigest()


def template(processor: Any) -> str:
    """The chat template's text. Raises InputError where the base has none."""
    found = processor.chat_template or processor.tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if not found:
        raise InputError("the base's processor has no chat template; chat_template.jinja is missing beside it")
    return str(found)


def image_facts(processor: Any) -> dict[str, Any]:
    """What the image processor makes of a picture, beside the budget of pixels."""
    images = processor.image_processor
    return {
        "patch_size": int(images.patch_size),
        "merge_size": int(images.merge_size),
        "temporal_patch_size": int(images.temporal_patch_size),
        "image_mean": tuple(float(v) for v in images.image_mean),
        "image_std": tuple(float(v) for v in images.image_std),
    }


def pixel_budget(processor: Any) -> tuple[int, int]:
    """(min_pixels, max_pixels) of a loaded processor."""
    size = processor.image_processor.size
    return int(size["shortest_edge"]), int(size["longest_edge"])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
