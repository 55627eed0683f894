"""What a model family has to say. Torch and transformers are imported where they are needed, so that `--check` and the
data stages may read names and numbers without them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vcot.errors import InputError
from vcot.grounding import FrameName

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

Part = Literal["language", "merger", "vision"]
"""merger: the layers between the vision tower and the language model, called projector elsewhere."""

Size = tuple[int, int]
"""(width, height) in pixels."""

Grid = tuple[int, int, int]
"""(frames = 1, rows, columns) of an image, in patches; merge_size² patches are one visual token."""


class Family(ABC):
    """One family of models, without any weights; its objects hold nothing and may go to other processes.

    name: as --base-form calls it. model_type: of config.json. processor_class: of transformers. frame: the numbers in
    which its models were trained to write boxes. patch_size: pixels. fixed_size: it sees every image at one size,
    whatever its sides.

    merger, vision: patterns searched for in the name of a module or a parameter, merger first; all others belong to
    the language model. adapted: which modules of a part get an adapter; a pattern for the whole name, as PEFT takes it.
    unquantised: modules that stay as they are, by their full names: "visual" alone would skip nothing, and a list
    replaces the library's own, which spares lm_head. layers: modules that are gathered for their own turn alone where
    each rank holds a part of the weights (FSDP2); the rest (head, merger, norms) is whole from the first to the last.
    """

    name: ClassVar[str]
    model_type: ClassVar[str]
    processor_class: ClassVar[str]
    frame: ClassVar[FrameName]
    patch_size: ClassVar[int]
    merge_size: ClassVar[int] = 2
    fixed_size: ClassVar[bool] = False
    inputs: ClassVar[tuple[str, ...]]
    """Which entries of a batch its forward pass takes."""
    merger: ClassVar[str]
    vision: ClassVar[str]
    adapted: ClassVar[Mapping[Part, str]]
    unquantised: ClassVar[tuple[str, ...]]
    layers: ClassVar[tuple[str, ...]]

    def part(self, name: str) -> Part:
        """The part of the model that a module or a parameter of this name belongs to."""
        if re.search(self.merger, name):
            return "merger"
        return "vision" if re.search(self.vision, name) else "language"

    def prepare(self, model: Any) -> None:  # noqa: B027  # most families need none
        """Changes a loaded model to compute the same faster; its weights keep names and shapes."""

    @abstractmethod
    def smallest_image(self, model: Any) -> dict[str, Tensor]:
        """Of zeros, for `model.model.get_image_features`."""

    def model_inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Of a batch (`Encoder.prompts`, or the collator's), what the forward pass takes, as it takes it."""
        return {name: batch[name] for name in self.inputs if batch.get(name) is not None}

    # --- processor ---------------------------------------------------------------------------------

    def load_processor(self, folder: Path, *, min_pixels: int, max_pixels: int) -> Any:
        """The processor in a base's folder, with this budget of pixels for one image; it pads on the left.

        Raises InputError where there is none, or one of another class, or the budget cannot be kept.
        """
        from transformers import AutoProcessor

        options = self._processor_options(min_pixels, max_pixels)
        try:
            processor = AutoProcessor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, **options
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = " ".join(str(error).split())[:300]
            raise InputError(f"{folder}: no processor can be loaded from this base: {said}") from None
        if type(processor).__name__ != self.processor_class:
            raise InputError(
                f"{folder}: the base's processor is a {type(processor).__name__}; a {self.processor_class} is needed"
            )
        processor.tokenizer.padding_side = "left"
        return processor

    def _processor_options(self, min_pixels: int, max_pixels: int) -> dict[str, Any]:
        return {}

    @abstractmethod
    def sizes(self, processor: Any) -> dict[str, int]:
        """Of a processor: min_pixels, max_pixels, patch_size, merge_size, temporal_patch_size."""

    @abstractmethod
    def resized(self, size: Size, *, min_pixels: int, max_pixels: int, factor: int) -> Size:
        """The size at which the model sees an image. Raises ValueError for a side ratio above 200."""

    @abstractmethod
    def patches(self, processor: Any, size: Size) -> int:
        """Patches of an image of this size, as the processor itself counts them."""

    @abstractmethod
    def pixels(self, processor: Any, images: Sequence[Image.Image]) -> dict[str, Any]:
        """pixel_values, as the model takes them, and image_grid_thw: int64 [images, 3]."""

    def spelled_out(self, template_text: str) -> str:
        """A piece of the chat template as the model reads it: some processors put tokens around an image's own."""
        return template_text

    # --- positions ---------------------------------------------------------------------------------

    def positions(self, ids: Sequence[int], grids: Sequence[Grid], *, image_token_id: int, merge_size: int) -> Tensor:
        """int64 [3, T]: (time, row, column) of each token, as the family counts; text counts on in all three alike.

        Needs no model, so that a loader's worker can do it.

        Args:
            ids: [T] tokens, among them one run of `image_token_id` per image.
            grids: of the images, in order.

        Raises:
            ValueError: the grids do not give the runs of image tokens that stand in `ids`.
        """
        import torch

        given = torch.tensor(list(ids))
        kinds = (given == image_token_id).long()
        edges = torch.diff(kinds, prepend=kinds.new_zeros(1), append=kinds.new_zeros(1)).nonzero().flatten().tolist()
        runs = [end - start for start, end in zip(edges[::2], edges[1::2], strict=True)]
        wanted = [rows * columns // merge_size**2 for _, rows, columns in grids]
        if runs != wanted:
            raise ValueError(f"{runs} tokens stand for the images, their grids {[*map(tuple, grids)]} make {wanted}")
        if not runs:
            return torch.arange(len(given)).repeat(3, 1)
        return self._positions(given, kinds, torch.tensor([list(grid) for grid in grids]), merge_size)

    @abstractmethod
    def _positions(self, ids: Tensor, kinds: Tensor, grids: Tensor, merge_size: int) -> Tensor:
        """int64 [3, T] of ids [T]; kinds [T] is 1 where a token stands for an image; grids [images, 3]."""
