"""Contract: what token ids silently assume, written down.

Ids say nothing about the tokenizer, boxes in a text nothing about their frame, a grid nothing about the
pixels. Tokenize states all of it, train and evaluate hold it against the base they load.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vcot.errors import InputError
from vcot.grounding import FrameSpec
from vcot.grounding.boxes import FrameName
from vcot.records.base import Record
from vcot.tokens.processor import image_facts, pixel_budget, template_digest, tokenizer_digest

Mode = Literal["multimodal", "text"]


class Contract(Record):
    """What examples promise, and a base must fit.

    `frame` is the dict of a FrameSpec; `resized_pixels` carries the budget and the factor with it, and they
    must be those of the contract: its numbers mean nothing under another budget.
    """

    version: Literal[1] = 1
    mode: Mode
    frame: dict[str, Any] = Field(description="FrameSpec.to_dict(): the numbers in which texts write boxes")
    min_pixels: int = Field(gt=0, description="area of a picture after resizing, at least")
    max_pixels: int = Field(gt=0, description="area of a picture after resizing, at most")
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
                f"the pictures are made with {(self.min_pixels, self.max_pixels, self.factor)}"
            )
        return self

    @classmethod
    def of(
        cls, processor: Any, *, mode: Mode, frame: FrameName, max_length: int, instruction: str | None = None
    ) -> Self:
        """The contract of examples made with this processor and its budget of pixels."""
        facts = image_facts(processor)
        low, high = pixel_budget(processor)
        factor = facts["patch_size"] * facts["merge_size"]
        return cls(
            mode=mode, frame=FrameSpec(frame, low, high, factor).to_dict(), min_pixels=low, max_pixels=high,
            instruction=instruction or None, max_length=max_length, template_sha256=template_digest(processor),
            tokenizer_sha256=tokenizer_digest(processor), **facts,
        )  # fmt: skip

    @property
    def frame_spec(self) -> FrameSpec:
        return FrameSpec.from_dict(self.frame)

    @property
    def factor(self) -> int:
        """Pixels; the side of what one visual token sees, and what sides of a resized picture are multiples of."""
        return self.patch_size * self.merge_size

    def check(self, processor: Any) -> None:
        """Raises InputError naming everything in which this processor differs, with both values."""
        differences = list(self._differences(processor))
        if differences:
            raise InputError("the examples were not made for this base: " + "; ".join(differences))

    def _differences(self, processor: Any) -> Iterator[str]:
        low, high = pixel_budget(processor)
        found = {
            "tokenizer_sha256": tokenizer_digest(processor),
            "template_sha256": template_digest(processor),
            "min_pixels": low,
            "max_pixels": high,
            **image_facts(processor),
        }
        for name, value in found.items():
            promised = getattr(self, name)
            if promised != value:
                yield f"{name} is {_short(value)} here, {_short(promised)} in the examples"


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) else f"{value}"
