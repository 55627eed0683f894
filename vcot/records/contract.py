"""Contract: what the ids of examples silently assume, written down. vcot.tokens makes it of a base's processor and
holds it against others."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vcot.grounding import FrameSpec
from vcot.records.base import Record

Mode = Literal["multimodal", "text"]


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

    @property
    def frame_spec(self) -> FrameSpec:
        return FrameSpec.from_dict(self.frame)

    @property
    def factor(self) -> int:
        """Pixels; the side of what one visual token sees, and what sides of a resized image are multiples of."""
        return self.patch_size * self.merge_size
