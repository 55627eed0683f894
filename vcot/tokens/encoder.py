"""Encoder: a Sample becomes token ids, for learning and for generating, with one beginning for both.

An example is  head · picture · question · tail | reasoning and answer · end.  The left part is exactly what
`prompts` gives to the model when it generates; right of the bar is what is learned. Both come from the chat
template, cut once at a place holder; the pieces are tokenised apart. A token can therefore never lie across
the bar, and text that people or datasets wrote (a question that holds "<|im_end|>") cannot become a control
token, because control tokens are looked for in the template's own pieces alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from vcot.grounding import Frame
from vcot.records.example import Example
from vcot.records.sample import Rejection, Sample
from vcot.tokens.contract import Contract


class Encoder:
    """Ids by one contract.

    Raises (in the constructor) InputError where the processor does not fit the contract, or its template cannot
    be cut.
    """

    def __init__(self, processor: Any, contract: Contract) -> None:
        contract.check(processor)
        self.processor = processor
        self.contract = contract

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Where a generated answer ends: <|im_end|>, <|endoftext|>."""
        raise NotImplementedError

    @property
    def pad_token_id(self) -> int:
        raise NotImplementedError

    def example(self, sample: Sample, alternative: int, image: bytes | None) -> Example | Rejection:
        """The example of one reasoning; `image` is the picture's bytes as stored, None in text mode."""
        raise NotImplementedError

    def prompts(self, samples: Sequence[Sample], pictures: Sequence[Image.Image | None]) -> dict[str, Any]:
        """A batch to generate from, padded on the left.

        Args:
            samples: B questions.
            pictures: upright RGB, one per question: its own, or a blank or another one; the grid is the
                given picture's. Not looked at in text mode.

        Returns:
            input_ids, attention_mask, mm_token_type_ids: int64 [B, T]; pixel_values: float32 [patches of all
            pictures, channels · frames · patch²]; image_grid_thw: int64 [B, 3]. Without the last two in text mode.
        """
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text, up to the first end token."""
        raise NotImplementedError

    def frame(self, sample: Sample) -> Frame:
        """The frame in which a text about this sample writes its boxes."""
        raise NotImplementedError


def prompt_text(sample: Sample, instruction: str | None = None) -> str:
    """What the user says: question, context, choices, instruction; one line each where there is one."""
    raise NotImplementedError
