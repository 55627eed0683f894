"""What is asked about one row, and how its replies are read: as shapes, mended where what they mean is beyond doubt.

    dialogue = Dialogue(client, sample, config, counts)
    seen = await dialogue.ask(Looked, [image, "red cup"])       → Looked, or Refused is raised

A reply that is of no use is asked for once more, with a word on what was wrong. All that was said is kept for the
rejection.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from json_repair import repair_json
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from vcot.distill import Fault, Refused, refuse
from vcot.distill.crops import evidence_crops, size_of
from vcot.distill.request import Client, Request, RowFailed, ShownImage, choose_prompts
from vcot.grounding import Box, Frame, FrameSpec
from vcot.records import Completion, Image, Reason, Rejection, Sample
from vcot.settings import CommaSeparated, Options, setting
from vcot.storage import Store

T = TypeVar("T")
S = TypeVar("S", bound="Shape")
Parts = list[str | ShownImage]

NOT_FOR_REPAIR = (Reason.TEACHER_FAILED, Reason.TEACHER_REFUSED, Reason.TEACHER_WRONG_ANSWER)
"""A teacher that cannot, would not, or thinks otherwise, is not talked round."""

CHECKS = ("look", "reanswer", "verdict")  # purposes for which --judge-model is asked, where there is one


class PromptOptions(Options):
    """How a model is asked; all of it shapes the requests."""

    model: str | None = setting(None, "openai: the model, by the endpoint's name for it", min_length=1)
    judge_model: str | None = setting(
        None, "openai: another model for the checks (look, reanswer, verdict); default: --model", min_length=1
    )
    alternatives: int = setting(
        1, "different traces for each row (rationalise: one for each text)", unit="traces", ge=1, le=16
    )
    temperature: float | None = setting(None, "openai: sampling temperature; default: the endpoint's own", ge=0, le=2)
    reply_tokens: int = setting(1024, "openai: most tokens of one reply, its thinking included", unit="tokens", ge=16)
    image_side: int = setting(1024, "openai: longest side of the image that is sent", unit="pixels", ge=28, le=8192)
    repairs: int = setting(
        1, "openai: how often a reply that is of no use is asked for again, with a word on why", unit="requests", ge=0,
        le=1,
    )  # fmt: skip
    ask_again: int = setting(
        0, "openai: how often a row that is refused for what was said of it is asked about anew; with the kept replies "
        "of an earlier run, only the rows that it refused are asked about, and the others stay as they are",
        unit="times", ge=0, le=8,
    )  # fmt: skip
    structured: bool = setting(True, "openai: demand replies of a JSON schema; else their shape is told in words only")
    prompts: CommaSeparated = setting(
        (), "openai: other words for a purpose, comma-separated: look=1 for that version, look=s3://b/my.v2.md for "
        "a file of yours; default: the newest version of each",
    )  # fmt: skip
    frame: Literal["thousandths", "resized_pixels", "pixels", "padded_square", "fractions"] = setting(
        "thousandths", "openai: the numbers in which this model writes boxes; never guessed from how large they are"
    )
    min_pixels: int | None = setting(
        None, "openai: with --frame resized_pixels, the least pixels of the model's processor", unit="pixels", ge=1
    )
    max_pixels: int | None = setting(None, "openai: and the most", unit="pixels", ge=1)

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.frame == "resized_pixels" and (self.min_pixels is None or self.max_pixels is None):
            yield "--frame=resized_pixels needs --min-pixels and --max-pixels, the limits of the processor"


class PromptConfig:
    """The options, with the prompts that they choose. Raises SettingsError: there is no such prompt."""

    def __init__(self, options: PromptOptions, store: Store | None = None) -> None:
        self.options, self.model = options, options.model or ""
        self.prompts = choose_prompts(options.prompts, store)
        self.frame = FrameSpec(options.frame, options.min_pixels, options.max_pixels)

    def whole(self, image: Image) -> ShownImage:
        return ShownImage(image, self.options.image_side)

    def all_of(self, sample: Sample) -> list[ShownImage]:
        """Every image of a row, the first one first: on it all boxes are."""
        return [self.whole(sample.shown), *map(self.whole, sample.images[1:])]

    def crop(self, box: Box, image: Image) -> ShownImage:
        return evidence_crops([box], image, self.options.image_side)[0]

    def frame_of(self, image: Image) -> Frame:
        """The numbers of a box on this image, seen as it is sent."""
        return self.frame.on(image.width, image.height, kept=size_of(self.whole(image)))

    def request(self, shape: type[Shape], parts: Sequence[str | ShownImage], alternative: int = 0) -> Request:
        judge = self.options.judge_model
        return Request(
            purpose=shape.purpose, prompt=self.prompts[shape.purpose], parts=tuple(parts),
            model=judge if judge and shape.purpose in CHECKS else self.model,
            schema=schema_of(shape) if self.options.structured else None, temperature=self.options.temperature,
            reply_tokens=self.options.reply_tokens, alternative=alternative,
        )  # fmt: skip


@dataclass
class Dialogue:
    client: Client
    sample: Sample
    config: PromptConfig
    counts: Counter[str]
    again: int = 0  # how often the row was refused before
    said: list[str] = field(default_factory=list)
    models: tuple[str, ...] = ()  # that wrote, each once; not those that only judged
    parts: list[Rejection] = field(default_factory=list)

    def about(self, sample: Sample, *, again: int = 0) -> Dialogue:
        """The same dialogue about another question on the image, or begun `again`; all that is said belongs to both."""
        return Dialogue(self.client, sample, self.config, self.counts, self.again + again, self.said)

    async def ask(self, shape: type[S], parts: Sequence[str | ShownImage]) -> S:
        """The reply as this shape. Raises Refused."""
        return await self.read(self.config.request(shape, parts), lambda completion: parse_reply(completion, shape))

    async def read(self, request: Request, read: Callable[[Completion], T]) -> T:
        """What `read` makes of the reply, or of a second one where it raises Refused. Raises Refused."""
        request = replace(request, again=self.again)
        try:
            return await self._once(request, read)
        except Refused as refused:
            if refused.is_final or refused.fault.reason in NOT_FOR_REPAIR or not self.config.options.repairs:
                raise
            stricter = (
                f"Your last reply to this was thrown away: {refused.fault.why}. "
                "This is the last attempt: keep to the rules exactly, or the row is lost."
            )
        self.counts["repairs"] += 1
        return await self._once(replace(request, parts=(*request.parts, stricter)), read)

    async def _once(self, request: Request, read: Callable[[Completion], T]) -> T:
        try:
            completion = await self.client.ask(request, source=self.sample.origin.dataset, row=self.sample.id)
        except RowFailed as error:
            raise Refused(Reason.TEACHER_FAILED, str(error)) from error
        self.said.append(completion.text)
        if request.purpose not in CHECKS:
            self.models = tuple(dict.fromkeys([*self.models, completion.model]))
        return read(completion)

    def drop(self, part: str, fault: Fault) -> None:
        """A part is refused, and the row goes on without it."""
        self.parts.append(self.rejection(Refused(*fault), part))

    def rejection(self, refused: Refused, part: str = "") -> Rejection:
        said = {"part": part, "said": tuple(self.said), "negative": refused.negative}
        return refuse(self.sample, *refused.fault).model_copy(update=said)


# --- the text of a reply

LONGEST = 30_000  # characters of a reply that is looked at
REFUSED = ("content_filter", "refusal")  # finish reasons of a Completion that say: would not

MENDED, DEEPEST = 12_000, 20
"""Characters, and objects and lists inside each other, up to which a text is mended: beyond, mending takes quadratic
time, and no shape is as deep."""

_QUOTE = re.compile(r'(?<!\\)"')
# Some chat templates open the thinking in the prompt, so that only its end stands in the reply.
_THINKING = re.compile(r"\A.*?</think>", re.DOTALL | re.IGNORECASE)


def text_of(completion: Completion) -> str:
    """What was said, without the thinking before it. Raises Refused."""
    if completion.finish_reason in REFUSED:
        raise Refused(Reason.TEACHER_REFUSED, f"it was refused ({completion.finish_reason})")
    text = _THINKING.sub("", completion.text).strip()
    if completion.finish_reason == "length":
        if not text or text.casefold().startswith("<think>"):  # the same words again would be cut off as well
            why = f"it was cut off while it was thinking ({completion.tokens_out:,} tokens): raise --reply-tokens"
            raise Refused(Reason.TEACHER_CUT_OFF, why, is_final=True)
        raise Refused(Reason.TEACHER_CUT_OFF, "it was cut off because it was too long")
    if not text:
        raise Refused(Reason.TEACHER_EMPTY, "it was empty")
    if len(text) > LONGEST:
        raise Refused(Reason.TEACHER_NOT_JSON, f"it had {len(text):,} characters; no more than {LONGEST:,} are read")
    return text


def parse_reply(completion: Completion, shape: type[S]) -> S:
    """The reply as this shape: thinking aloud, a fence or prose around the one JSON object go, and what json_repair can
    close or quote is closed and quoted. Raises Refused, and nothing else, whatever the text."""
    text = text_of(completion)
    value = json_in(text)
    if value is None:
        raise Refused(Reason.TEACHER_NOT_JSON, f"it was not the JSON object that was asked for, but {text[:80]!r}")
    try:
        return shape.model_validate(_writable(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        why = f"{where}: {first['msg'][:120]}; got {repr(first['input'])[:80]}"
        raise Refused(Reason.TEACHER_WRONG_SHAPE, f"its JSON has another shape: {why}") from None


def json_in(text: str) -> dict[str, Any] | None:
    """The JSON object in a text, mended where it has to be; None where there is none."""
    start = text.find("{")
    if start < 0 or len(text) > LONGEST:
        return None
    for written in (text, text[start : text.rfind("}") + 1]):
        try:
            value = json.loads(written)
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    rest = text[start:]
    depth = max(accumulate((char in "{[") - (char in "]}") for char in rest))
    # A text that ends inside a string is torn: closing it would make half a sentence a whole one.
    torn = not rest.rstrip("` \n").endswith("}") and len(_QUOTE.findall(rest)) % 2 == 1
    if len(rest) > MENDED or depth > DEEPEST or torn:
        return None
    try:
        value = repair_json(rest, return_objects=True)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value else None


def _writable(value: Any) -> Any:
    """With a "?" for each half of a character, which JSON may hold and no file can."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_writable(key): _writable(inside) for key, inside in value.items()}
    return [_writable(inside) for inside in value] if isinstance(value, list) else value


# --- what a reply must hold
#
# Shapes are read by pydantic, and sent to the endpoint as a JSON schema: their names, docstrings and fields are part of
# the keys under which replies are kept; so is what they are asked for, the name of a prompt and of a line of the costs.
# Numbers of boxes are in the frame that the teacher was told. A reply may leave
# out what has a default; the schema asks for everything, because strict endpoints accept no optional field.


def _strict(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = False
    schema["required"] = list(schema.get("properties", {}))
    for one in schema.get("properties", {}).values():
        one.pop("default", None)


class Shape(BaseModel):
    purpose: ClassVar[str]
    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra=_strict)

    def __init_subclass__(cls, purpose: str = "", **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.purpose = purpose


@cache
def schema_of(shape: type[Shape]) -> dict[str, Any]:
    """The JSON schema that is sent; not to be changed."""
    return shape.model_json_schema()


def _numbers(box: Any) -> Any:
    """A box that came as a string: "[31, 83, 188, 292]", "(31,83),(188,292)"."""
    if isinstance(box, str) and re.fullmatch(r"[\s\d.,;()\[\]+-]*", box):
        return re.findall(r"[+-]?\d+(?:\.\d+)?", box)
    return box


Numbers = Annotated[list[float], BeforeValidator(_numbers)]
