"""The base's own processor, and the contract: what token ids silently assume, written down.

Ids say nothing about the tokenizer, boxes in a text nothing about their frame, a grid nothing about the
pixels. Tokenize states all of it, train and evaluate hold it against the base they load.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vcot.errors import InputError
from vcot.grounding import FrameSpec
from vcot.grounding.boxes import FrameName
from vcot.records.base import Record

Mode = Literal["multimodal", "text"]

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
    """The Qwen2.5-VL processor of a base model, with this budget of pixels for one image.

    Args:
        folder: a local folder that holds PROCESSOR_FILES (weights are not looked at).
        min_pixels, max_pixels: area of the image after resizing; 28 · 28 pixels are one visual token.

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


class Contract(Record):
    """What examples promise, and a base must fit.

    `frame` is the dict of a FrameSpec; `resized_pixels` carries the budget and the factor with it, and they
    must be those of the contract: its numbers mean nothing under another budget.
    """

    version: Literal[1] = 1
    mode: Mode
    frame: dict[str, Any] = Field(description="FrameSpec.to_dict(): the numbers in which texts write boxes")
    min_pixels: int = Field(gt=0, description="area of an image after resizing, at least")
    max_pixels: int = Field(gt=0, description="area of an image after resizing, at most")
    instruction: str | None = Field(None, description="stands below every question")
    max_length: int = Field(gt=0, description="tokens of an example, prompt and visual tokens included")
    template_sha256: str
    tokenizer_sha256: str
    patch_size: int = Field(gt=0, description="pixels; the side of a patch")
    merge_size: int = Field(gt=0, description="patches; merge_size² of them are one visual token")
    temporal_patch_size: int = Field(gt=0)
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    @model_validator(mode="after")
    def _frame_and_budget_agree(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        spec = self.frame_spec
        bound = (spec.min_pixels, spec.max_pixels, spec.factor)
        if spec.name == "resized_pixels" and bound != (self.min_pixels, self.max_pixels, self.factor):
            raise ValueError(
                f"the frame resized_pixels was declared for min_pixels, max_pixels, factor = {bound}, "
                f"the images are made with {(self.min_pixels, self.max_pixels, self.factor)}"
            )
        return self

    @classmethod
    def of(
        cls, processor: Any, *, mode: Mode, frame: FrameName, max_length: int, instruction: str | None = None
    ) -> Self:
        """The contract of examples made with this processor and its budget of pixels."""
        found = properties(processor)
        factor = found["patch_size"] * found["merge_size"]
        spec = FrameSpec(frame, found["min_pixels"], found["max_pixels"], factor)
        return cls(mode=mode, frame=spec.to_dict(), instruction=instruction or None, max_length=max_length, **found)

    @property
    def frame_spec(self) -> FrameSpec:
        return FrameSpec.from_dict(self.frame)

    @property
    def factor(self) -> int:
        """Pixels; the side of what one visual token sees, and what sides of a resized image are multiples of."""
        return self.patch_size * self.merge_size

    def check(self, processor: Any) -> None:
        """Raises InputError naming everything in which this processor differs, with both values."""

        def short(value: Any) -> str:
            return f"{value[:12]}…" if isinstance(value, str) else f"{value}"

        differences = [
            f"{name} is {short(value)} here, {short(getattr(self, name))} in the examples"
            for name, value in properties(processor).items()
            if getattr(self, name) != value
        ]
        if differences:
            raise InputError("the examples were not made for this base: " + "; ".join(differences))
