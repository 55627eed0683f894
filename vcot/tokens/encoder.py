"""Encoder: a Sample becomes token ids, for learning and for generating, with one beginning for both.

    head · image · question · tail  |  reasoning · answer · end

Left of the bar is exactly what `prompts` hands to the model when it generates; right of it is what is learned,
the end token and its line break included. The pieces come from the chat template, cut once at place holders,
and are tokenised apart. So no token can lie across the bar, and what people wrote (a question that holds
"<|im_end|>") cannot become a control token: those are looked for in the template's own pieces alone.

The contract writes down what ids silently assume: they say nothing about the tokenizer, boxes in a text nothing about
their frame, a grid nothing about the pixels. Tokenize states all of it, train and evaluate hold it against their base.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vcot.errors import InputError
from vcot.grounding import FrameName, FrameSpec, Trace, smart_resize
from vcot.grounding.tags import render_reply
from vcot.records import Contract, Mode
from vcot.records.example import IGNORED, Example
from vcot.records.sample import Reason, Rejection, Sample
from vcot.storage.images import DecodedImage

STAGE = "tokenize"

# Private-use characters: no template writes them, none changes them.
_QUESTION, _REPLY = "\ue000question\ue001", "\ue000reply\ue001"

_rendered = lru_cache(maxsize=1024)(render_reply)
"""A reply is rendered when its text is tokenised ahead, and found here when its ids are wanted."""

Size = tuple[int, int]
"""(width, height) in pixels."""


class _Fitted(NamedTuple):
    """Ids of prompt and reply, and the size at which the image is handed to the processor; None: it has none."""

    prompt: list[int]
    reply: list[int]
    shown: Size | None

    @property
    def tokens(self) -> int:
        return len(self.prompt) + len(self.reply)


class _Template(NamedTuple):
    """Ids of the chat template's own pieces: before the question, between question and reply, after the reply."""

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
        # Without what transformers wraps around it, which takes as long as a question does; its own, to be left as set.
        self._plain_tokenizer = deepcopy(processor.tokenizer.backend_tokenizer)
        self._plain_tokenizer.encode_special_tokens = True
        self._plain_tokenizer.no_padding()
        self._plain_tokenizer.no_truncation()
        self._ahead: dict[str, list[int]] = {}
        self._templates = {False: self._cut_template(with_image=False)}
        if contract.mode == "multimodal":
            self._templates[True] = self._cut_template(with_image=True)
        special = sorted({*self._tokenizer.all_special_ids, processor.image_token_id, processor.video_token_id})
        said = set(self._plain(" ".join(map(str, self._tokenizer.convert_ids_to_tokens(special)))))
        if found := [token for token in special if token in said]:
            raise InputError(
                "the base's tokenizer makes control tokens of plain text: "
                f"{', '.join(self._tokenizer.convert_ids_to_tokens(found))}; "
                "they need to be marked as special in its tokenizer.json"
            )

    # --- learning ----------------------------------------------------------------------------------

    def tokenize_ahead(self, samples: Iterable[Sample]) -> None:
        """Tokenises the texts of these samples in one call, for the calls of `example` that come next.

        It changes no id: a text that is not among them (the image was made smaller) is tokenised when it is wanted.
        A call for each text takes up to twice as long, because the tokenizer's tables leave the processor's cache.
        """
        texts: list[str] = []
        spec, instruction = self.contract.frame_spec, self.contract.instruction
        for sample in samples:
            texts.append(prompt_text(sample, instruction))
            frame = sample.frame(spec)
            texts += [_rendered(trace, sample.answers[0], frame) for trace in sample.reasoning]
        encoded = self._plain_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        self._ahead = {text: one.ids for text, one in zip(texts, encoded, strict=True)}

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
        size = None if sample.image is None else (sample.image.kept.width, sample.image.kept.height)
        if self.contract.mode == "text" or size is None:
            image = data = None
        elif image is None or data is None:
            raise ValueError(f"{sample.id}: a multimodal example needs its image")
        elif (image.width, image.height) != size:
            there = f"the image is {image.width}x{image.height} pixels"
            return refuse(sample, Reason.IMAGE_SIZE_DIFFERS, f"{there}, the sample says {size[0]}x{size[1]}")
        fitted = self._fit(sample, sample.reasoning[alternative], size)
        if isinstance(fitted, Rejection):
            return fitted
        prompt, reply, shown = fitted
        grid = None
        if image is not None and shown is not None:
            grid = self._grid(shown)
            if shown != size:
                buffer = BytesIO()  # PNG: without loss and without a time, so the same image gives the same bytes
                image.pixels.resize(shown, Image.Resampling.BICUBIC).save(buffer, "PNG")
                data = buffer.getvalue()
        return Example(
            id=f"{sample.id}#{alternative}",
            sample=sample.id,
            alternative=alternative,
            split="train" if sample.origin.split == "train" else "validation",
            ids=(*prompt, *reply),
            labels=(*[IGNORED] * len(prompt), *reply),
            image=data,
            image_grid=grid,
            shrunk=grid is not None and shown != size,
        )

    def _fit(self, sample: Sample, trace: Trace, size: Size | None) -> _Fitted | Rejection:
        """The example with its image as it is or, where it is too long so, with the largest image that fits."""
        limit, least, factor = self.contract.max_length, self.contract.min_pixels, self.contract.factor
        try:
            visual = all_visual = self._visual_tokens(size)
        except ValueError as error:  # far longer than wide
            return refuse(sample, Reason.IMAGE_UNSUPPORTED, str(error))
        fitted = full = self._ids(sample, trace, size)
        while (over := fitted.tokens - limit) > 0:
            if not visual or size is None:
                return refuse(sample, Reason.TOO_LONG, f"{full.tokens} tokens, --max-length allows {limit}")
            budget = (max(visual - over, 1) + 1) * factor**2 - 1  # a token more: a root rounded down would lose a row
            smaller = smart_resize(*size, min_pixels=least, max_pixels=max(budget, least), factor=factor)
            fewer = smaller[0] * smaller[1] // factor**2
            if fewer >= visual or self._resized(smaller) != smaller:
                return refuse(
                    sample, Reason.TOO_LONG,
                    f"{full.tokens} tokens ({all_visual} of them for the image), --max-length allows {limit}; with the "
                    f"smallest image that --min-pixels {least} allows ({visual} tokens) it is still {fitted.tokens}",
                )  # fmt: skip
            fitted, visual = self._ids(sample, trace, smaller), fewer
        return fitted

    def _ids(self, sample: Sample, trace: Trace, shown: Size | None) -> _Fitted:
        visual = self._visual_tokens(shown)
        spec, image = self.contract.frame_spec, sample.image
        frame = sample.frame(spec) if image is None else spec.on(image.width, image.height, kept=shown)
        reply = self._plain(_rendered(trace, sample.answers[0], frame)) + self._templates[visual > 0].end
        return _Fitted(self._prompt(sample, visual, self.contract.instruction), reply, shown)

    def _grid(self, shown: Size) -> tuple[int, int, int]:
        """(1, rows, columns) in patches of an image of this size, held against the processor's own count."""
        columns, rows = (side // self.contract.patch_size for side in self._resized(shown))
        counted = self.processor.image_processor.get_number_of_image_patches(shown[1], shown[0], {})
        if counted != rows * columns:
            raise InputError(
                f"the base's processor cuts an image of {shown[0]}x{shown[1]} pixels into {counted} patches, "
                f"{rows}x{columns} were expected; this version of its family is not supported"
            )
        return 1, rows, columns

    def _resized(self, size: Size) -> Size:
        """What the processor makes of an image. Raises ValueError for a side ratio above 200."""
        low, high = self.contract.min_pixels, self.contract.max_pixels
        return smart_resize(*size, min_pixels=low, max_pixels=high, factor=self.contract.factor)

    def _visual_tokens(self, size: Size | None) -> int:
        """Of an image of this size. Raises ValueError for a side ratio above 200, in text mode too."""
        if size is None:
            return 0
        width, height = self._resized(size)
        return 0 if self.contract.mode == "text" else width * height // self.contract.factor**2

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
        prompts = [self._prompt(*each) for each in zip(samples, visual, below, strict=True)]
        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids = torch.tensor([[self.pad_token_id] * p + prompt for p, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * p + [1] * (longest - p) for p in padding])
        kinds = (ids == self.processor.image_token_id).long()
        return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds, **batch}

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """pixel_values and image_grid_thw of upright RGB images, as the model takes them."""
        return dict(self.processor.image_processor(images=list(images), return_tensors="pt"))

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text, up to the first end token; other control tokens stay visible."""
        ends = {*self.eos_token_ids, self.pad_token_id}
        kept = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        return str(self._tokenizer.decode(list(ids[:kept]), skip_special_tokens=False))

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Where a generated answer ends: the token that ends a turn, and the one that ends a text."""
        special = set(self._tokenizer.all_special_ids)
        turn = [token for template in self._templates.values() for token in template.end if token in special]
        return tuple(dict.fromkeys((*turn, int(self._tokenizer.eos_token_id), self.pad_token_id)))

    @property
    def pad_token_id(self) -> int:
        return int(self._tokenizer.pad_token_id)

    # --- pieces ------------------------------------------------------------------------------------

    def _prompt(self, sample: Sample, visual_tokens: int, instruction: str | None) -> list[int]:
        question = self._plain(prompt_text(sample, instruction))
        template = self._templates[visual_tokens > 0]
        if not visual_tokens:
            return template.head + question + template.tail
        at = template.head.index(self.processor.image_token_id)
        image = [self.processor.image_token_id] * visual_tokens
        return template.head[:at] + image + template.head[at + 1 :] + question + template.tail

    def _plain(self, text: str) -> list[int]:
        """Ids of what people wrote: nothing in it is a control token."""
        if (known := self._ahead.get(text)) is not None:
            return known
        ids: list[int] = self._plain_tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def _control(self, text: str) -> list[int]:
        """Ids of the template's own text."""
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        return [int(token) for token in ids]

    def _cut_template(self, *, with_image: bool) -> _Template:
        """The template on a conversation with its own system prompt, one question and one reply, which are cut out.

        With an image, what stands before the question holds one image token, as its place.

        Raises InputError where the template does not write what a model is trained on as a continuation of what it
        generates from, or does not say the question and the reply as they are.
        """
        content: list[dict[str, str]] = [{"type": "image"}] if with_image else []
        question = {"role": "user", "content": [*content, {"type": "text", "text": _QUESTION}]}
        reply = {"role": "assistant", "content": [{"type": "text", "text": _REPLY}]}
        prompt: str = self.processor.apply_chat_template([question], tokenize=False, add_generation_prompt=True)
        whole: str = self.processor.apply_chat_template([question, reply], tokenize=False)
        if prompt.count(_QUESTION) != 1 or whole.count(_REPLY) != 1:
            raise InputError("the base's chat template does not write question and reply once, as they are")
        before, end = whole.split(_REPLY)
        if before != prompt:
            raise InputError(
                f"the base's chat template begins a reply with {prompt[-40:]!r} when it asks for one and with "
                f"{before[-40:]!r} when it shows one; these must be the same"
            )
        head, tail = prompt.split(_QUESTION)
        images = prompt.count(self.processor.image_token)
        if images != with_image or (with_image and self.processor.image_token not in head):
            raise InputError(
                f"the base's chat template writes {images} image tokens before the question; "
                f"{int(with_image)} {'is' if with_image else 'are'} needed"
            )
        if not end.strip():
            raise InputError("the base's chat template does not end a reply, so a model could not learn to stop")
        return _Template(*map(self._control, (head, tail, end)))


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


def refuse(sample: Sample, reason: Reason, detail: str) -> Rejection:
    return Rejection(id=sample.id, stage=STAGE, reason=reason, detail=detail)


# --- processor and contract --------------------------------------------------------------------------------

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
