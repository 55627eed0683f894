"""Encoder: a Sample becomes token ids, for learning and for generating, with one beginning for both.

    head · images · question · tail  |  reasoning · answer · end

Left of the bar is exactly what `prompts` hands to the model when it generates; right of it is what is learned,
the end token and its line break included. The pieces come from the chat template, cut once at place holders,
and are tokenised apart. So no token can lie across the bar, and what people wrote (a question that holds
"<|im_end|>") cannot become a control token: those are looked for in the template's own pieces alone.

With the role `rationale` (tokenize --roles) the reasoning is a turn of its own, with an end of its own. What stands
between it and the answer is put there by whoever generates, and is not learned:

    head · images · question · tail  |  reasoning · end  |  between  |  answer · end

Earlier turns stand left of the bar, each with its own images before its text. Replies among them that a Sample says
are `learned` are learned too, with their ends.

The contract writes down what ids silently assume: they say nothing about the tokenizer, boxes in a text nothing about
their frame, a grid nothing about the pixels. Tokenize states all of it, train and evaluate hold it against their base.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError
from PIL import Image

from vcot.errors import InputError
from vcot.grounding import Frame, FrameName, FrameSpec, Trace, smart_resize
from vcot.grounding.tags import SPELLINGS, answer_line, render, render_reply
from vcot.grounding.ways import LearnedWay, asked
from vcot.models.families import family_in, family_of_processor
from vcot.records import Contract, Mode
from vcot.records.example import ALONE, IGNORED, Example
from vcot.records.metadata import Role
from vcot.records.sample import NO_IMAGE_SIZE, Reason, Rejection, Sample
from vcot.storage.images import DecodedImage

STAGE = "tokenize"

# Private-use characters: no template writes them, none changes them.
_REPLY = "\ue000reply\ue001"

_rendered = lru_cache(maxsize=1024)(render_reply)
"""A reply is rendered when its text is tokenised ahead, and found here when its ids are wanted."""

_NAMES: dict[LearnedWay, str] = {"direct": "direct", "reason": "{}/reason", "ground": "{}"}
"""Of a sample's examples, by the number of their alternative."""

Size = tuple[int, int]
"""(width, height) in pixels."""


Shape = tuple[int, ...]
"""Of a conversation: how many images each turn of the user shows, the question's last; there is a reply between two."""


class _Fitted(NamedTuple):
    """Ids and labels of an example, and the size at which each image is handed to the processor."""

    ids: list[int]
    labels: list[int]
    shown: list[Size]

    @property
    def tokens(self) -> int:
        return len(self.ids)


class Measured(NamedTuple):
    """Of an example: its tokens, those of them that are learned, and the grids of its images, in patches."""

    tokens: int
    learned: int
    grids: tuple[tuple[int, int, int], ...]

    @property
    def patches(self) -> int:
        return sum(math.prod(grid) for grid in self.grids)


class Message(NamedTuple):
    """What somebody says in a conversation: texts and images (upright RGB), in the order in which they are shown."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Image.Image, ...]


class _Template(NamedTuple):
    """Ids of the chat template's own pieces.

    before: each turn's text, with one image token for each image that the turn shows. tail: between question and
    reply. rationale: between the last question and a rationale that has a turn of its own; as tail, where none has.
    end: after a reply; where another turn follows a reply, what is before that turn's text begins behind it.
    """

    before: list[list[int]]
    tail: list[int]
    rationale: list[int]
    end: list[int]


class Encoder:
    """Ids by one contract.

    between: what stands between the end of a rationale that is a turn of its own and the answer: a line break and the
    assistant's header; empty where the contract has no such role.

    Raises (in the constructor) InputError where the processor does not fit the contract, its template cannot
    be cut or does not name the role that a rationale's name takes the place of, or its tokenizer would make control
    tokens of plain text.
    """

    def __init__(self, processor: Any, contract: Contract) -> None:
        check_contract(contract, processor)
        self.processor = processor
        self.family = family_of_processor(processor)
        self.contract = contract
        self._tokenizer = processor.tokenizer
        # Without what transformers wraps around it, which takes as long as a question does; its own, to be left as set.
        self._plain_tokenizer = deepcopy(processor.tokenizer.backend_tokenizer)
        self._plain_tokenizer.encode_special_tokens = True
        self._plain_tokenizer.no_padding()
        self._plain_tokenizer.no_truncation()
        self._frame_on = lru_cache(maxsize=1024)(contract.frame_spec.on)
        self._ahead: dict[str, list[int]] = {}
        self._templates: dict[Shape, _Template] = {}
        template = self._template((0,))
        # The tail begins with the end of the user's turn, as a rationale's turn has it.
        self.between: tuple[int, ...] = tuple(template.tail[1:]) if contract.roles else ()
        if contract.mode == "multimodal":
            self._template((1,))
        special = sorted({*self._tokenizer.all_special_ids, processor.image_token_id, processor.video_token_id})
        names = [str(name) for name in self._tokenizer.convert_ids_to_tokens(special)]
        pointing = {tag for spelling in SPELLINGS.values() for tag in (*spelling.ref, *spelling.box)}
        self._pointing = {name: token for name, token in zip(names, special, strict=True) if name in pointing}
        said = set(self._plain(" ".join(names)))
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
        for sample in samples:
            frame = self._frame(sample, _kept_sizes(sample))
            for way in self.contract.ways:
                texts.append(prompt_text(sample, asked(way, self.contract.instruction)))
                for trace in reasoning_by(sample, way):
                    texts += self._turns(_rendered(trace, sample.answers[0], frame), way)
        encoded = self._plain_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        self._ahead = {text: one.ids for text, one in zip(texts, encoded, strict=True)}

    def example(
        self, sample: Sample, alternative: int, images: Sequence[DecodedImage] = (), data: Sequence[bytes] = (),
        way: LearnedWay = "ground",
    ) -> Example | Rejection:  # fmt: skip
        """What is learned from one reasoning of a sample, its evidence first and the answer last.

        Args:
            alternative: which of `reasoning_by(sample, way)`; ALONE: none, the example is the question alone.
            images, data: the sample's images and their bytes as stored; none in text mode, nor where it has none.
            way: of answering. Replies of earlier turns are the same in every way.

        Returns:
            An Example of at most `max_length` tokens. Where it would be longer, its images are made smaller
            and become part of it; where even the smallest do not make it fit, a Rejection. Text is never cut.
        """
        sizes = _kept_sizes(sample)
        if self.contract.mode == "text":
            images, data = (), ()
        elif not len(images) == len(data) == len(sizes):
            raise ValueError(f"{sample.id}: a multimodal example needs its image, and all of them where it has several")
        for image, size in zip(images, sizes, strict=False):
            if (image.width, image.height) != size:
                there = f"the image is {image.width}x{image.height} pixels"
                return refuse(sample, Reason.IMAGE_SIZE_DIFFERS, f"{there}, the sample says {size[0]}x{size[1]}")
        fitted = self._fitted(sample, alternative, way, sizes)
        if isinstance(fitted, Rejection):
            return fitted
        kept, grids, shrunk = [], [], False
        for image, own, size, shown in zip(images, data, sizes, fitted.shown, strict=False):
            grids.append(self._grid(shown))
            if shown != size:
                # PNG: no loss and no time, and compressed in the one way that does not depend on the processor (see
                # the scenes), so the same image gives the same bytes.
                shrunk, buffer = True, BytesIO()
                smaller = image.pixels.resize(shown, Image.Resampling.BICUBIC)
                smaller.save(buffer, "PNG", compress_type=zlib.Z_RLE)
                own = buffer.getvalue()
            kept.append(own)
        return Example(
            id=f"{sample.id}#{_NAMES[way].format('question' if alternative == ALONE else alternative)}",
            sample=sample.id,
            alternative=alternative,
            split="train" if sample.origin.split == "train" else "validation",
            ids=tuple(fitted.ids),
            labels=tuple(fitted.labels),
            images=tuple(kept),
            image_grids=tuple(grids),
            shrunk=shrunk,
            way=way,
        )

    def measured(self, sample: Sample, alternative: int, way: LearnedWay = "ground") -> Measured | Rejection:
        """What `example` would make, from the sizes of its images alone: none is read."""
        fitted = self._fitted(sample, alternative, way, _kept_sizes(sample))
        if isinstance(fitted, Rejection):
            return fitted
        visible = fitted.shown if self.contract.mode == "multimodal" else []
        grids = tuple(self._grid(size) for size in visible)
        return Measured(fitted.tokens, fitted.tokens - fitted.labels.count(IGNORED), grids)

    def _fitted(
        self, sample: Sample, alternative: int, way: LearnedWay, sizes: Sequence[Size]
    ) -> _Fitted | Rejection:  # fmt: skip
        trace = None if alternative == ALONE else reasoning_by(sample, way)[alternative]
        if way == "reason" and trace is not None and not trace.text.strip():
            return refuse(sample, Reason.NO_REASONING, "its reasoning is boxes alone, without words")
        return self._fit(sample, trace, way, sizes)

    def _fit(self, sample: Sample, trace: Trace | None, way: LearnedWay, sizes: Sequence[Size]) -> _Fitted | Rejection:
        """The example with its images as they are or, where it is too long so, with the largest that fit: each with
        the same share of its visual tokens."""
        limit, least, factor = self.contract.max_length, self.contract.min_pixels, self.contract.factor
        shown = list(sizes)
        try:
            visual = list(map(self._visual_tokens, shown))
        except ValueError as error:  # far longer than wide
            return refuse(sample, Reason.IMAGE_UNSUPPORTED, str(error))
        all_visual = sum(visual)
        fitted = full = self._ids(sample, trace, way, shown, visual)
        while (over := fitted.tokens - limit) > 0:
            if not (total := sum(visual)):
                return refuse(sample, Reason.TOO_LONG, f"{full.tokens} tokens, --max-length allows {limit}")
            for place, size in enumerate(sizes):
                share = max(visual[place] * (total - over) // total, 1)
                budget = (share + 1) * factor**2 - 1  # a token more: a root rounded down would lose a row
                smaller = smart_resize(*size, min_pixels=least, max_pixels=max(budget, least), factor=factor)
                fewer = smaller[0] * smaller[1] // factor**2
                if fewer < visual[place] and self._resized(smaller) == smaller:
                    shown[place], visual[place] = smaller, fewer
            if sum(visual) == total:
                of = "image" if len(sizes) == 1 else f"{len(sizes)} images"
                return refuse(
                    sample, Reason.TOO_LONG,
                    f"{full.tokens} tokens ({all_visual} of them for the {of}), --max-length allows {limit}; with the "
                    f"smallest {of} that --min-pixels {least} allows ({total} tokens) it is still {fitted.tokens}",
                )  # fmt: skip
            fitted = self._ids(sample, trace, way, shown, visual)
        return fitted

    def _ids(
        self, sample: Sample, trace: Trace | None, way: LearnedWay, shown: Sequence[Size], visual: Sequence[int]
    ) -> _Fitted:
        """shown: sizes of its images. visual: how many tokens each of them takes, none in text mode."""
        template = self._template(_shape(sample, any(visual)))
        below = asked(way, self.contract.instruction)
        ids, labels = self._prompt(sample, template, visual, below, shown, rationale=self.has_rationale(way))
        if trace is None:
            return _Fitted(ids, [IGNORED] * len(ids), list(shown))
        *rationale, answer = self._turns(_rendered(trace, sample.answers[0], self._frame(sample, shown)), way)
        for text in rationale:
            said = self._plain(text) + template.end[:1]
            ids += (*said, *self.between)
            labels += (*said, *[IGNORED] * len(self.between))
        said = self._plain(answer) + template.end
        return _Fitted(ids + said, labels + said, list(shown))

    def has_rationale(self, way: str) -> bool:
        """Whether a reply in this way has a rationale that is a turn of its own."""
        return bool(self.contract.roles) and way != "direct"

    def _turns(self, reply: str, way: LearnedWay) -> list[str]:
        """A whole reply as the text of each of its turns."""
        if not self.has_rationale(way):
            return [reply]
        rationale, _, answer = reply.rpartition("\n")  # an answer has one line
        return [rationale, answer]

    def _frame(self, sample: Sample, shown: Sequence[Size], spec: FrameSpec | None = None) -> Frame:
        """In which texts about a sample write boxes; all of them are on the first of the images that are shown. spec:
        in the place of the contract's."""
        image, frame_on = sample.image, self._frame_on if spec is None else spec.on
        if image is None:
            return frame_on(*NO_IMAGE_SIZE)
        return frame_on(image.width, image.height, kept=shown[0] if shown else _kept_sizes(sample)[0])

    def _grid(self, shown: Size) -> tuple[int, int, int]:
        """(1, rows, columns) in patches of an image of this size, held against the processor's own count."""
        columns, rows = (side // self.contract.patch_size for side in self._resized(shown))
        counted = self.family.patches(self.processor, shown)
        if counted != rows * columns:
            raise InputError(
                f"the base's processor cuts an image of {shown[0]}x{shown[1]} pixels into {counted} patches, "
                f"{rows}x{columns} were expected; this version of its family is not supported"
            )
        return 1, rows, columns

    def _resized(self, size: Size) -> Size:
        """What the processor makes of an image. Raises ValueError for a side ratio above 200."""
        low, high = self.contract.min_pixels, self.contract.max_pixels
        return self.family.resized(size, min_pixels=low, max_pixels=high, factor=self.contract.factor)

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
        images: Sequence[Sequence[Image.Image]],
        instructions: Sequence[str | None] | None = None,
        prefixes: Sequence[str] | None = None,
        pointing: tuple[FrameSpec, str] | None = None,
        rationales: Sequence[bool] | None = None,
    ) -> dict[str, Any]:
        """A batch to generate from, padded on the left.

        Args:
            samples: B questions. Replies of earlier turns are given, whether or not they are learned.
            images: upright RGB, those of each question: its own, or blank or other ones in their place; the grids
                are the given images'. None of a question by text alone. Not looked at in text mode.
            instructions: one per question, in the place of the contract's.
            prefixes: one per question, how the reply begins: as `said` reads it.
            pointing: frame and dialect in which earlier turns write boxes, in the place of the contract's and vcot.
            rationales: one per question, whether the reply begins with a rationale that is a turn of its own; in the
                place of the contract's roles.

        Returns:
            input_ids, attention_mask, mm_token_type_ids: int64 [B, T]; pixel_values: float32, as the family takes
            them (Qwen: [patches of all images, channels · frames · patch²]); image_grid_thw: int64 [images, 3].
            Without the last two in text mode, and where no question has an image.
        """
        batch: dict[str, Any] = {}
        visual: list[list[int]] = [[] for _ in samples]
        given = [place for place, several in enumerate(images) for _ in several]
        if self.contract.mode == "multimodal" and given:
            batch = self.pixels([image for several in images for image in several])
            for place, grid in zip(given, batch["image_grid_thw"], strict=True):
                visual[place].append(int(grid.prod()) // self.contract.merge_size**2)
        below = [self.contract.instruction] * len(samples) if instructions is None else instructions
        begin = [bool(self.contract.roles)] * len(samples) if rationales is None else rationales
        prompts = [
            self._prompt(
                sample,
                self._template(_shape(sample, any(tokens))),
                tokens,
                instruction,
                [i.size for i in several],
                pointing,
                rationale=rationale,
            )[0]
            for sample, several, tokens, instruction, rationale in zip(
                samples, images, visual, below, begin, strict=True
            )
        ]
        if prefixes is not None:
            begun = zip(prompts, prefixes, begin, strict=True)
            prompts = [prompt + self.said(prefix, rationale=rationale) for prompt, prefix, rationale in begun]
        return self._padded(prompts) | batch

    def conversation(self, messages: Sequence[Message], *, rationale: bool = False) -> dict[str, Any]:
        """A batch of one: the conversation up to where the assistant's next reply begins. What a Sample can say gets
        the ids that `prompts` gives it; beyond that, there may be a system message, texts between images, and several
        messages of one side after another.

        rationale: as one of `rationales` of `prompts`.

        Raises InputError: the chat template does not write such a conversation, or not each text once and as it is.
        """
        turns: list[dict[str, Any]] = []
        texts: list[str] = []
        images: list[Image.Image] = []
        for message in messages:
            content: list[dict[str, str]] = []
            # An empty text behind the last, so that what follows the last mark is what stands before a reply.
            for part in (*message.parts, "") if message is messages[-1] else message.parts:
                if not isinstance(part, str):
                    images.append(part)
                    content.append({"type": "image"})
                elif content and content[-1]["type"] == "text":
                    texts[-1] += part
                else:
                    content.append({"type": "text", "text": f"\ue000text {len(texts)}\ue001"})
                    texts.append(part)
            turns.append({"role": message.role, "content": content})
        try:
            whole = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"the model's chat template refuses this conversation: {error}") from None
        marks = [f"\ue000text {number}\ue001" for number in range(len(texts))]
        places = [whole.find(mark) for mark in marks]
        *pieces, tail = map(self._control, _split(whole, marks))
        template = self._template((0,))
        batch = self.pixels(images) if images else {}
        counts = [int(grid.prod()) // self.contract.merge_size**2 for grid in batch.get("image_grid_thw", ())]
        token = self.processor.image_token_id
        there = sum(piece.count(token) for piece in pieces)
        if -1 in places or places != sorted(places) or tail != template.tail or there != len(counts):
            raise InputError(
                "the model's chat template does not write these messages one after another, each text once and as it is"
            )
        ids, visual = list[int](), iter(counts)
        spoken = [turn["role"] for turn in turns for part in turn["content"] if part["type"] == "text"]
        for piece, text, role in zip(pieces, texts, spoken, strict=True):
            ids += [it for each in piece for it in [each] * (next(visual) if each == token else 1)]
            ids += self._one_turn(text) if role == "assistant" else self._plain(text)
        return self._padded([ids + (template.rationale if rationale else template.tail)]) | batch

    def joined(self, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """One batch of the prompts of several, in their order."""
        import torch

        prompts = [
            ids[mask.bool()].tolist()
            for batch in batches
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        seen = [batch for batch in batches if "pixel_values" in batch]
        images = ("pixel_values", "image_grid_thw") if seen else ()
        return self._padded(prompts) | {name: torch.cat([batch[name] for batch in seen]) for name in images}

    def _padded(self, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
        import torch

        longest = max(map(len, prompts))
        padding = [longest - len(prompt) for prompt in prompts]
        ids = torch.tensor([[self.pad_token_id] * p + [*prompt] for p, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * p + [1] * (longest - p) for p in padding])
        kinds = (ids == self.processor.image_token_id).long()
        return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        """pixel_values and image_grid_thw of upright RGB images, as the family makes them."""
        return self.family.pixels(self.processor, images)

    def said(self, text: str, *, ended: bool = False, rationale: bool = True) -> list[int]:
        """Ids of (a part of) what a model said, as `decode` gave it; `ended`: with the token that ends a turn.

        Control tokens by which it points are such again; an image it cannot say, nor a turn's end: these are letters.

        rationale: where it is a turn of its own by the contract, the text begins within it, and it ends before the line
        break in front of the last line "Answer:"; a text without that is a rationale that has not ended, or an answer
        alone. False: the text is one turn.
        """
        ids: list[int] = []
        if rationale and self.between and (answer := answer_line(text)):
            ids = [*self._one_turn(text[: answer - 1]), self.eos_token_ids[0], *self.between]
            text = text[answer:]
        ids += self._one_turn(text)
        return [*ids, self.eos_token_ids[0]] if ended else ids

    def _one_turn(self, text: str) -> list[int]:
        pieces = re.split(f"({'|'.join(map(re.escape, self._pointing))})", text) if self._pointing else [text]
        ids: list[int] = []
        for piece in filter(None, pieces):
            ids += [self._pointing[piece]] if piece in self._pointing else self._plain(piece)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids as text, up to the first end token; other control tokens stay visible. Where the answer follows
        a rationale that is a turn of its own, a line break stands between them, and the first end is that of the
        answer."""
        eos = self.eos_token_ids
        kept = next((i for i, token in enumerate(ids) if token in eos), len(ids))
        text = self.text_of(ids[:kept])
        answer = kept + 1 + len(self.between)
        if not self.between or tuple(ids[kept:answer]) != (eos[0], *self.between):
            return text
        end = next((i for i in range(answer, len(ids)) if ids[i] in eos), len(ids))
        return f"{text}\n{self.text_of(ids[answer:end])}"

    def text_of(self, ids: Sequence[int]) -> str:
        """Of these tokens, whatever they are, control tokens among them."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

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

    def _prompt(
        self, sample: Sample, template: _Template, visual: Sequence[int], instruction: str | None,
        shown: Sequence[Size], pointing: tuple[FrameSpec, str] | None = None, *, rationale: bool,
    ) -> tuple[list[int], list[int]]:  # fmt: skip
        """Ids up to where the reply begins, and their labels: IGNORED but for earlier replies that are learned.

        visual: visual tokens of each image; empty: none is shown, even where the sample has some. shown: their sizes.
        rationale: the reply begins with one that is a turn of its own.
        """
        if visual and len(visual) != len(sample.images):
            raise ValueError(f"{sample.id}: {len(visual)} images are shown, it has {len(sample.images)}")
        counts, image_token = iter(visual), self.processor.image_token_id
        ids: list[int] = []
        learned: list[slice] = []
        for number, before in enumerate(template.before):
            if image_token in before:
                before = [it for token in before for it in [token] * (next(counts) if token == image_token else 1)]
            ids += before
            if number == len(template.before) - 1:
                break
            asked, replied = sample.turns[2 * number : 2 * number + 2]
            spec, dialect = pointing or (None, "vcot")
            frame = self._frame(sample, shown, spec)
            ids += self._plain(render(asked.said, frame, dialect)) + template.tail
            first = len(ids)
            reply = render(replied.said, frame, dialect)
            ids += (self._plain(reply) if pointing is None else self._one_turn(reply)) + template.end
            if replied.learned:
                learned.append(slice(first, len(ids)))
        ids += self._plain(prompt_text(sample, instruction))
        ids += template.rationale if rationale else template.tail
        labels = [IGNORED] * len(ids)
        for run in learned:
            labels[run] = ids[run]
        return ids, labels

    def _plain(self, text: str) -> list[int]:
        """Ids of what people wrote: nothing in it is a control token."""
        if (known := self._ahead.get(text)) is not None:
            return known
        ids: list[int] = self._plain_tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def _control(self, text: str) -> list[int]:
        """Ids of the template's own text."""
        text = self.family.spelled_out(text)
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
        return [int(token) for token in ids]

    def _template(self, shape: Shape) -> _Template:
        if shape not in self._templates:
            self._templates[shape] = self._cut_template(shape)
        return self._templates[shape]

    def _cut_template(self, shape: Shape) -> _Template:
        """The template on a conversation with its own system prompt and so many turns, whose texts are cut out.

        Raises InputError where the template does not write what a model is trained on as a continuation of what it
        generates from, or does not say questions and replies as they are, each in the same way.
        """

        def asked(number: int) -> str:
            return f"\ue000question {number}\ue001"

        turns: list[dict[str, Any]] = []
        for number, images in enumerate(shape):
            content: list[dict[str, str]] = [{"type": "image"}] * images
            turns.append({"role": "user", "content": [*content, {"type": "text", "text": asked(number)}]})
            turns.append({"role": "assistant", "content": [{"type": "text", "text": _REPLY}]})
        prompt: str = self.processor.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
        whole: str = self.processor.apply_chat_template(turns, tokenize=False)
        if any(prompt.count(asked(n)) != 1 for n in range(len(shape))) or whole.count(_REPLY) != len(shape):
            raise InputError("the base's chat template does not write question and reply once, as they are")
        before, _, end = whole.rpartition(_REPLY)
        if before != prompt:
            raise InputError(
                f"the base's chat template begins a reply with {prompt[-40:]!r} when it asks for one and with "
                f"{before[-40:]!r} when it shows one; these must be the same"
            )
        if not end.strip():
            raise InputError("the base's chat template does not end a reply, so a model could not learn to stop")
        *pieces, tail = _split(prompt, [asked(n) for n in range(len(shape))])
        heads = pieces[:1]
        for piece in pieces[1:]:
            between = f"{tail}{_REPLY}{end}"
            if not piece.startswith(between):
                raise InputError(
                    f"the base's chat template writes {piece[:80]!r} round an earlier reply and {between!r} round the "
                    "last; these must be the same"
                )
            heads.append(piece.removeprefix(between))
        for head, wanted in zip(heads, shape, strict=True):
            if (images := head.count(self.processor.image_token)) != wanted:
                raise InputError(
                    f"the base's chat template writes {images} image tokens before the question; "
                    f"{wanted} {'is' if wanted else 'are'} needed"
                )
        own = self._rationales_tail(tail, end) if self.contract.roles else tail
        texts = [self._control(head) for head in heads]
        return _Template(texts, self._control(tail), self._control(own), self._control(end))

    def _rationales_tail(self, tail: str, end: str) -> str:
        """What stands between the question and a rationale that is a turn of its own, by what stands between question
        and reply.

        Raises InputError where that does not name the assistant, or a turn of the user ends in another way.
        """
        first = self._control(end)[:1]
        ends_alike = first == self._control(tail)[:1] and {*first} <= {*self._tokenizer.all_special_ids}
        if tail.count("assistant") != 1 or not ends_alike:
            raise InputError(
                f"--roles rationale: the base's chat template writes {tail!r} between question and reply and {end!r} "
                'behind it; it should name the role "assistant" there, once, and end all turns alike, as ChatML does'
            )
        return tail.replace("assistant", "rationale")


def _kept_sizes(sample: Sample) -> list[Size]:
    """Of its images as they are kept."""
    return [(image.kept.width, image.kept.height) for image in sample.images]


def _shape(sample: Sample, visible: bool) -> Shape:
    """Of a sample's conversation, with its images or without."""
    asked = [turn.images for turn in sample.turns if turn.role == "user"]
    return (*asked, sample.images_asked) if visible else (0,) * (len(asked) + 1)


def _split(text: str, marks: Sequence[str]) -> list[str]:
    """What stands before each mark, and behind the last."""
    pieces = []
    for mark in marks:
        piece, _, text = text.partition(mark)
        pieces.append(piece)
    return [*pieces, text]


def reasoning_by(sample: Sample, way: LearnedWay) -> tuple[Trace, ...]:
    """What answers to a sample in this way begin with, one for each example: nothing, words, or words with boxes."""
    if way == "direct":
        return (Trace(()),)
    return tuple(Trace((trace.text,)) for trace in sample.reasoning) if way == "reason" else sample.reasoning


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
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json", "contract.json", "merges.txt",
    "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "video_preprocessor_config.json", "vocab.json",
)  # fmt: skip


def is_processor_file(name: str) -> bool:
    """For `fetch_folder` and `folder_digest`: everything but the weights."""
    return name in PROCESSOR_FILES


def load_processor(folder: Path, *, min_pixels: int, max_pixels: int) -> Any:
    """The processor of a base model, with this budget of pixels for one image.

    Args:
        folder: a local folder that holds PROCESSOR_FILES (weights are not looked at).
        min_pixels, max_pixels: area of the image after resizing; factor² pixels (28² or 32²) are one visual token.

    Raises:
        InputError: the folder holds no base of a known family, or not the processor of its family.
    """
    return family_in(folder).load_processor(folder, min_pixels=min_pixels, max_pixels=max_pixels)


def native_frame(folder: Path) -> FrameName:
    """The numbers in which a base writes boxes by itself: as the contract.json in its folder says (train writes one
    beside each model), else as its family was trained.

    Raises InputError where contract.json does not name a frame, or no family is known.
    """
    try:
        stated = (folder / "contract.json").read_bytes()
    except FileNotFoundError:
        return family_in(folder).frame
    try:
        return FrameSpec.from_dict(json.loads(stated)["contract"]["frame"]).name
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}/contract.json does not say how the base writes boxes ({error!r}); say it with --frame"
        ) from None


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
        **family_of_processor(processor).sizes(processor),
        "tokenizer_sha256": hashlib.sha256(tokenizer.encode()).hexdigest(),
        "template_sha256": hashlib.sha256(str(template).encode()).hexdigest(),
        "image_mean": tuple(float(v) for v in images.image_mean),
        "image_std": tuple(float(v) for v in images.image_std),
    }


def contract_of(
    processor: Any, *, mode: Mode, frame: FrameName, max_length: int, instruction: str | None = None,
    ways: tuple[LearnedWay, ...] = ("ground",), roles: tuple[Role, ...] = (),
) -> Contract:  # fmt: skip
    """The contract of examples made with this processor and its budget of pixels.

    Raises InputError for a frame that the family cannot have.
    """
    found = properties(processor)
    family = family_of_processor(processor)
    if frame == "resized_pixels" and family.fixed_size:
        raise InputError(
            f"--frame={frame}: {family.name} squeezes every image to one size, which says nothing of the image's own "
            f"sides; choose --frame {family.frame}"
        )
    spec = FrameSpec(frame, found["min_pixels"], found["max_pixels"], found["patch_size"] * found["merge_size"])
    return Contract(
        mode=mode, frame=spec.to_dict(), instruction=instruction or None, ways=ways, roles=roles,
        max_length=max_length, **found,
    )  # fmt: skip


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
