"""The base's own processor, and the contract: what token ids silently assume, written down.

Ids say nothing about the tokenizer, boxes in a text nothing about their frame, a grid nothing about the
pixels. Tokenize states all of it, train and evaluate hold it against the base they load.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vcot.errors import InputError
from vcot.grounding import FrameName, FrameSpec
from vcot.records import Contract, Mode

#: What `load_processor` needs of a base model's folder; none of it is large.
PROCESSOR_FILES = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json", "merges.txt",
    "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "video_preprocessor_config.json", "vocab.json",
)  # fmt: skip


def is_processor_file(name: str) -> bool:
    """For `fetch_folder` and `folder_digest`: everything but the weights."""
    return name in PROCESSOR_FILES


def load_processor(folder: Path, *, min_pixels: int, max_pixels: int) -> Any:
    """The Qwen2.5-VL processor of a base model, with this budget of pixels for one image.

    Args:
        folder: a local folder that holds PROCESSOR_FILES (weights are not looked at).
        min_pixels, max_pixels: area of the image after resizing; 28 · 28 pixels are one visual token.

    Raises:
        InputError: the folder holds no `Qwen2_5_VLProcessor`.
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


def properties(processor: Any) -> dict[str, Any]:
    """What token ids assume of a processor, under the names of a Contract's fields.

    tokenizer_sha256 is over what the tokenizer does: vocabulary, merges, splitting, normalising, special tokens.
    Padding and truncation are states of a tokenizer in use, not parts of it, and are left out; so are file names and
    library versions, so that the same tokenizer saved again has the same digest.

    Raises InputError where the base has no chat template.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise InputError("the base's processor has no chat template; chat_template.jinja is missing beside it")
    backend = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for state in ("padding", "truncation", "version"):
        backend.pop(state, None)
    special = {"eos": processor.tokenizer.eos_token, "pad": processor.tokenizer.pad_token}
    tokenizer = json.dumps({"backend": backend, "special": special}, sort_keys=True, ensure_ascii=False)
    images = processor.image_processor
    return {
        "tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "template_sha256": hashlib.sha256(str(template).encode()).hexdigest(),
        "min_pixels": int(images.size["shortest_edge"]),
        "max_pixels": int(images.size["longest_edge"]),
        "patch_size": int(images.patch_size),
        "merge_size": int(images.merge_size),
        "temporal_patch_size": int(images.temporal_patch_size),
        "image_mean": tuple(float(v) for v in images.image_mean),
        "image_std": tuple(float(v) for v in images.image_std),
    }


def contract_of(
    processor: Any, *, mode: Mode, frame: FrameName, max_length: int, instruction: str | None = None
) -> Contract:
    """The contract of examples made with this processor and its budget of pixels."""
    found = properties(processor)
    spec = FrameSpec(frame, found["min_pixels"], found["max_pixels"], found["patch_size"] * found["merge_size"])
    return Contract(mode=mode, frame=spec.to_dict(), instruction=instruction or None, max_length=max_length, **found)


def check_contract(contract: Contract, processor: Any) -> None:
    """Raises InputError naming everything in which this processor differs, with both values."""

    def short(value: Any) -> str:
        return f"{value[:12]}…" if isinstance(value, str) else f"{value}"

    differences = [
        f"{name} is {short(value)} here, {short(getattr(contract, name))} in the examples"
        for name, value in properties(processor).items()
        if getattr(contract, name) != value
    ]
    if differences:
        raise InputError("the examples were not made for this base: " + "; ".join(differences))
