"""Encoder: a Sample becomes token ids, for learning and for generating, with one beginning for both.

    head · image · question · tail  |  reasoning · answer · end

Left of the bar is exactly what `prompts` hands to the model when it generates; right of it is what is learned,
the end token and its line break included. The pieces come from the chat template, cut once at place holders,
and are tokenised apart. So no token can lie across the bar, and what people wrote (a question that holds
"<|im_end|>") cannot become a control token: those are looked for in the template's own pieces alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

from PIL import Image

from vcot.errors import InputError
from vcot.grounding import Frame, FrameSpec, Trace, smart_resize
from vcot.grounding.tags import render_reply
from vcot.records import Contract
from vcot.records.example import IGNORED, Example
from vcot.records.sample import Reason, Rejection, Sample
from vcot.storage.images import DecodedImage
from vcot.tokens.contract import check_contract

STAGE = "tokenize"

# Private-use characters: no template writes them, none changes them.
_QUESTION, _REPLY = "\ue000question\ue001", "\ue000reply\ue001"


@dataclass(frozen=True)
class _Fitted:
    """ids and labels of an example, and the (width, height) at which its image is seen; None: it has none."""

    ids: list[int]
    labels: list[int]
    seen: tuple[int, int] | None


@dataclass(frozen=True)
class _Around:
    """Ids of the template's own pieces: before the question, between question and reply, after the reply."""

    head: list[int]
    tail: list[int]
    end: list[int]


class Encoder:
    """Ids by one contract.

    Raises (in the constructor) InputError where the processor does not fit the contract, its template cannot
    be cut, or its tokenizer would make control tokens of plain text.
    """

    def __init__(self, processor: Any, contract: Contract) -> None:
        check_contract(contract, processor)
        self.processor = processor
        self.contract = contract
        self._tokenizer = processor.tokenizer
        self._around = {False: self._cut(with_image=False)}
        if contract.mode == "multimodal":
            self._around[True] = self._cut(with_image=True)
        self._check_control_tokens()

    # --- learning ----------------------------------------------------------------------------------

    def example(
        self, sample: Sample, alternative: int, image: DecodedImage | None = None, data: bytes | None = None
    ) -> Example | Rejection:
        """What is learned from one reasoning of a sample, its evidence first and the answer last.

        Args:
            alternative: which of `sample.reasoning`.
            image, data: the sample's image and its bytes as stored; neither in text mode, nor where it has none.

        Returns:
            An Example of at most `max_length` tokens. Where it would be longer, its image is made smaller
            and becomes part of it; where even the smallest image does not make it fit, a Rejection. Text
            is never cut.
        """
        size = _size(sample)
        if self.contract.mode == "text" or size is None:
            image = data = None
        elif image is None or data is None:
            raise ValueError(f"{sample.id}: a multimodal example needs its image")
        elif (image.width, image.height) != size:
            return _refuse(
                sample,
                Reason.IMAGE_SIZE_DIFFERS,
                f"the image is {image.width}x{image.height} pixels, the sample says {size[0]}x{size[1]}",
            )
        fitted = self._fit(sample, sample.reasoning[alternative], size)
        if isinstance(fitted, Rejection):
            return fitted
        grid, shrunk = None, False
        if image is not None and size is not None and fitted.seen is not None:
            shrunk = fitted.seen != self._seen(size)
            grid = self._grid(fitted.seen if shrunk else size, fitted.seen)
            data = _png(image.pixels.resize(fitted.seen, Image.Resampling.BICUBIC)) if shrunk else data
        return Example(
            id=f"{sample.id}#{alternative}",
            sample=sample.id,
            alternative=alternative,
            split="train" if sample.origin.split == "train" else "validation",
            ids=tuple(fitted.ids),
            labels=tuple(fitted.labels),
            image=data,
            image_grid=grid,
            shrunk=shrunk,
        )

    def _fit(self, sample: Sample, trace: Trace, size: tuple[int, int] | None) -> _Fitted | Rejection:
        """The example with the largest image that fits, or why there is none."""
        limit, area = self.contract.max_length, self.contract.factor**2
        if size is None:
            only = self._ids(sample, trace, None)
            return only if len(only.ids) <= limit else _refuse(sample, Reason.TOO_LONG, self._too_long(only, only))
        try:
            seen = self._seen(size)
        except ValueError as error:  # far longer than wide
            return _refuse(sample, Reason.IMAGE_UNSUPPORTED, str(error))
        full = last = self._ids(sample, trace, seen)
        while (over := len(last.ids) - limit) > 0:
            room = max(self._visual_tokens(seen) - over, 1)
            budget = (room + 1) * area - 1  # not room · area: a root that is rounded down would lose a row
            smaller = smart_resize(
                *size,
                min_pixels=self.contract.min_pixels,
                max_pixels=max(budget, self.contract.min_pixels),
                factor=self.contract.factor,
            )
            if self._visual_tokens(smaller) >= self._visual_tokens(seen) or self._seen(smaller) != smaller:
                return _refuse(sample, Reason.TOO_LONG, self._too_long(full, last))
            seen = smaller
            last = self._ids(sample, trace, seen)
        return last

    def _ids(self, sample: Sample, trace: Trace, seen: tuple[int, int] | None) -> _Fitted:
        visual = self._visual_tokens(seen)
        prompt = self._prompt_ids(sample, visual, self.contract.instruction)
        reply = self._plain(render_reply(trace, sample.answers[0], self._frame(sample, seen)))
        reply += self._around[visual > 0].end
        return _Fitted(prompt + reply, [IGNORED] * len(prompt) + reply, seen)

    def _too_long(self, full: _Fitted, smallest: _Fitted) -> str:
        limit = self.contract.max_length
        if not self._visual_tokens(full.seen):
            return f"{len(full.ids)} tokens, --max-length allows {limit}"
        return (
            f"{len(full.ids)} tokens ({self._visual_tokens(full.seen)} of them for the image), --max-length allows "
            f"{limit}; with the smallest image that --min-pixels {self.contract.min_pixels} allows "
            f"({self._visual_tokens(smallest.seen)} tokens) it is still {len(smallest.ids)}"
        )

    # --- generating --------------------------------------------------------------------------------

    def prompts(
        self,
        samples: Sequence[Sample],
        images: Sequence[Image.Image | None],
        instructions: Sequence[str | None] | None = None,
    ) -> dict[str, Any]:
        """A batch to generate from, padded on the left.

        Args:
            samples: B questions.
            images: upright RGB, one per question: its own, or a blank or another one; the grid is the given
                image's. None for a question by text alone. Not looked at in text mode.
            instructions: one per question, in the place of the contract's.

        Returns:
            input_ids, attention_mask, mm_token_type_ids: int64 [B, T]; pixel_values: float32 [patches of all
            images, channels · frames · patch²]; image_grid_thw: int64 [images, 3]. Without the last two in text
            mode, and where no question has an image.
        """
        import torch

        batch: dict[str, Any] = {}
        visual = [0] * len(samples)
        given = [place for place, image in enumerate(images) if image is not None]
        if self.contract.mode == "multimodal" and given:
            batch = self.pixels([image for image in images if image is not None])
            for place, grid in zip(given, batch["image_grid_thw"], strict=True):
                visual[place] = int(grid.prod()) // self.contract.merge_size**2
        below = [self.contract.instruction] * len(samples) if instructions is None else instructions
        prompts = [self._prompt_ids(*each) for each in zip(samples, visual, below, strict=True)]
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids = torch.tensor([[self.pad_token_id] * p + prompt for p, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * p + [1] * (longest - p) for p in padding])
        kinds = (ids == self.processor.image_token_id).long()
        return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds, **batch}

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """pixel_values and image_grid_thw of upright RGB images, as the model takes them."""
        return dict(self.processor.image_processor(images=list(images), return_tensors="pt"))

    def prompt_ids(self, sample: Sample, image: tuple[int, int] | None = None) -> list[int]:
        """The ids that an example of this sample begins with, and that `prompts` pads.

        `image`: (width, height) of the image that is shown; default: the sample's own.
        """
        size = image or _size(sample)
        return self._prompt_ids(sample, self._visual_tokens(size and self._seen(size)), self.contract.instruction)

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text, up to the first end token; other control tokens stay visible."""
        ends = {*self.eos_token_ids, self.pad_token_id}
        kept = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        return str(self._tokenizer.decode(list(ids[:kept]), skip_special_tokens=False))

    def frame(self, sample: Sample) -> Frame:
        """The frame in which a text about this sample writes its boxes (with the image not shrunk)."""
        size = _size(sample)
        return self._frame(sample, size and self._seen(size))

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Where a generated answer ends: the token that ends a turn, and the one that ends a text."""
        special = set(self._tokenizer.all_special_ids)
        turn = [token for around in self._around.values() for token in around.end if token in special]
        return tuple(dict.fromkeys((*turn, int(self._tokenizer.eos_token_id), self.pad_token_id)))

    @property
    def pad_token_id(self) -> int:
        return int(self._tokenizer.pad_token_id)

    # --- pieces ------------------------------------------------------------------------------------

    def _prompt_ids(self, sample: Sample, visual_tokens: int, instruction: str | None) -> list[int]:
        question = self._plain(prompt_text(sample, instruction))
        around = self._around[visual_tokens > 0]
        if not visual_tokens:
            return around.head + question + around.tail
        at = around.head.index(self.processor.image_token_id)
        image = [self.processor.image_token_id] * visual_tokens
        return around.head[:at] + image + around.head[at + 1 :] + question + around.tail

    def _cut(self, *, with_image: bool) -> _Around:
        return _Around(*map(self._control, cut_template(self.processor, with_image=with_image)))

    def _plain(self, text: str) -> list[int]:
        """Ids of what people wrote: nothing in it is a control token."""
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [int(token) for token in ids]

    def _control(self, text: str) -> list[int]:
        """Ids of the template's own text."""
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        return [int(token) for token in ids]

    def _seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after resizing. Raises ValueError for a side ratio above 200."""
        low, high = self.contract.min_pixels, self.contract.max_pixels
        return smart_resize(*size, min_pixels=low, max_pixels=high, factor=self.contract.factor)

    def _visual_tokens(self, seen: tuple[int, int] | None) -> int:
        if self.contract.mode == "text" or seen is None:
            return 0
        return seen[0] * seen[1] // self.contract.factor**2

    def _grid(self, size: tuple[int, int], seen: tuple[int, int]) -> tuple[int, int, int]:
        """(1, rows, columns) in patches of an image of this size, held against the processor's own count."""
        rows, columns = seen[1] // self.contract.patch_size, seen[0] // self.contract.patch_size
        counted = self.processor.image_processor.get_number_of_image_patches(size[1], size[0], {})
        if counted != rows * columns:
            raise InputError(
                f"the base's processor cuts an image of {size[0]}x{size[1]} pixels into {counted} patches, "
                f"{rows}x{columns} were expected; this version of its family is not supported"
            )
        return 1, rows, columns

    def _frame(self, sample: Sample, seen: tuple[int, int] | None) -> Frame:
        """The declared frame on this sample; pixels of the resized input are those of the image as seen."""
        if sample.image is None or seen is None:
            return sample.frame(self.contract.frame_spec)
        return frame_as_seen(self.contract.frame_spec, (sample.image.width, sample.image.height), seen)

    def _check_control_tokens(self) -> None:
        control = {*self._tokenizer.all_special_ids, self.processor.image_token_id, self.processor.video_token_id}
        texts = [str(text) for text in self._tokenizer.convert_ids_to_tokens(sorted(control))]
        found = control & set(self._plain(" ".join(texts)))
        if found:
            raise InputError(
                "the base's tokenizer makes control tokens of plain text: "
                f"{', '.join(self._tokenizer.convert_ids_to_tokens(sorted(found)))}; "
                "they need to be marked as special in its tokenizer.json"
            )


def prompt_text(sample: Sample, instruction: str | None = None) -> str:
    """What the user says: question, context, choices, instruction, each on its own line where there is one.

    Which way does the lever go?
    Context: Gears that touch turn in opposite directions.
    A. up
    B. down
    Answer with the letter.
    """
    lines = [sample.question.strip()]
    if sample.context and sample.context.strip():
        lines.append(f"Context: {sample.context.strip()}")
    lines += [f"{chr(ord('A') + i)}. {choice.strip()}" for i, choice in enumerate(sample.choices or ())]
    if instruction and instruction.strip():
        lines.append(instruction.strip())
    return "\n".join(lines)


def frame_as_seen(spec: FrameSpec, original: tuple[int, int], seen: tuple[int, int]) -> Frame:
    """The frame of an image of this original (width, height) that a model sees at another one.

    Only `resized_pixels` depends on the second: its numbers are pixels of what is seen, also where that is
    smaller than the budget would allow.
    """
    frame = spec.on(*original)
    if spec.name != "resized_pixels":
        return frame
    return replace(frame, x_axis=replace(frame.x_axis, span=seen[0]), y_axis=replace(frame.y_axis, span=seen[1]))


def _size(sample: Sample) -> tuple[int, int] | None:
    """(width, height) of the image as it is stored; None without one."""
    return None if sample.image is None else (sample.image.kept.width, sample.image.kept.height)


def _refuse(sample: Sample, reason: Reason, detail: str) -> Rejection:
    return Rejection(id=sample.id, stage=STAGE, reason=reason, detail=detail)


def _png(image: Image.Image) -> bytes:
    """Without loss and without a time, so that the same image gives the same bytes."""
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def cut_template(processor: Any, *, with_image: bool) -> tuple[str, str, str]:
    """What the template itself writes before the question, between question and reply, and after the reply.

    The conversation has one of each, and the template's own system prompt. With an image, what stands before the
    question holds one image token, as its place.

    Raises InputError where the template does not write what a model is trained on as a continuation of what it
    generates from, or does not say the question and the reply as they are.
    """
    content: list[dict[str, str]] = [{"type": "image"}] if with_image else []
    question = {"role": "user", "content": [*content, {"type": "text", "text": _QUESTION}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": _REPLY}]}
    prompt: str = processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
    whole: str = processor.apply_chat_template([question, reply], tokenize=False)
    if prompt.count(_QUESTION) != 1 or whole.count(_REPLY) != 1:
        raise InputError("the base's chat template does not write question and reply once, as they are")
    if not whole.startswith(prompt + _REPLY):
        raise InputError(
            f"the base's chat template begins a reply with {prompt[-40:]!r} when it asks for one and with "
            f"{whole[: whole.index(_REPLY)][-40:]!r} when it shows one; these must be the same"
        )
    head, tail = prompt.split(_QUESTION)
    images = prompt.count(processor.image_token)
    if images != with_image or (with_image and processor.image_token not in head):
        raise InputError(
            f"the base's chat template writes {images} image tokens before the question; "
            f"{int(with_image)} {'is' if with_image else 'are'} needed"
        )
    end = whole.split(_REPLY)[1]
    if not end.strip():
        raise InputError("the base's chat template does not end a reply, so a model could not learn to stop")
    return head, tail, end
