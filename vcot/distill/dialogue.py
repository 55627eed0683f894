"""What is asked about one row, and how its replies are read: as shapes, mended where what they mean is beyond doubt.

    dialogue = Dialogue(asker, sample, config, counts)
    seen = await dialogue.ask("look", [image, "red cup"], Looked)       → Looked, or Refused is raised

A reply that is of no use is asked for once more, with a word on what was wrong. All that was said is kept for the
rejection.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from json_repair import repair_json
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from vcot.distill.images import size_of
from vcot.distill.request import Asker, Prompt, Request, RowFailed, ShownImage
from vcot.distill.row import refuse
from vcot.grounding import Frame, FrameSpec
from vcot.records import Completion, Image, Reason, Rejection, Sample

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)
Parts = list[str | ShownImage]

NOT_FOR_REPAIR = (Reason.TEACHER_FAILED, Reason.TEACHER_REFUSED, Reason.TEACHER_WRONG_ANSWER)
"""A teacher that cannot, would not, or thinks otherwise, is not talked round."""

JUDGING = ("look", "reanswer", "verdict")
"""Purposes for which the judge is asked, where there is one."""


class Fault(NamedTuple):
    """Why a reply is of no use: for the counts, and in words that the teacher can be told."""

    reason: Reason
    why: str


class Refused(Exception):
    """The row, or a part of it, cannot be used. `negative`: the row as the teacher would have it, where its wrong
    answers are asked for."""

    def __init__(self, reason: Reason, why: str, negative: Sample | None = None) -> None:
        super().__init__(why)
        self.fault, self.negative = Fault(reason, why), negative


@dataclass(frozen=True)
class PromptConfig:
    """How the teacher is asked; all of it shapes the requests.

    Args:
        prompts: by purpose.
        judge: model for the purposes in JUDGING; None: the same one.
        temperature: None leaves it to the endpoint (some models accept no other).
        reply_tokens: most tokens of one reply.
        image_side: longest side, in pixels, of an image that is sent.
        repairs: how often a reply that cannot be used is asked for again: 0 or 1.
        ask_again: how often a row that was refused for what was said is asked about anew.
        structured: whether the shape of a reply is demanded from the endpoint as a JSON schema.
        frame: the numbers in which the teacher writes boxes.
    """

    model: str
    prompts: Mapping[str, Prompt]
    judge: str | None = None
    temperature: float | None = None
    reply_tokens: int = 1024
    image_side: int = 1024
    repairs: int = 1
    ask_again: int = 0
    structured: bool = True
    frame: FrameSpec = field(default_factory=lambda: FrameSpec("thousandths"))

    def whole(self, image: Image) -> ShownImage:
        return ShownImage(image, self.image_side)

    def frame_of(self, image: Image) -> Frame:
        """The numbers of a box on this image, seen as it is sent."""
        return self.frame.on(image.width, image.height, kept=size_of(self.whole(image)))

    def request(
        self,
        purpose: str,
        parts: Sequence[str | ShownImage],
        shape: type[BaseModel],
        alternative: int = 0,
        again: int = 0,
    ) -> Request:
        return Request(
            purpose=purpose, prompt=self.prompts[purpose], parts=tuple(parts),
            model=self.judge if self.judge and purpose in JUDGING else self.model,
            schema=schema_of(shape) if self.structured else None, temperature=self.temperature,
            reply_tokens=self.reply_tokens, alternative=alternative, again=again,
        )  # fmt: skip


class Dialogue:
    """Args: who answers, about which row, how it is asked, what is counted, and how often it was refused before."""

    def __init__(
        self, asker: Asker, sample: Sample, config: PromptConfig, counts: Counter[str], *, again: int = 0
    ) -> None:
        self.sample, self.config, self.counts, self.again = sample, config, counts, again
        self.said: list[str] = []
        self.models: tuple[str, ...] = ()  # that wrote, each once; not those that only judged
        self.parts: list[Rejection] = []
        self._asker = asker

    def about(self, sample: Sample, *, again: int = 0) -> Dialogue:
        """The same dialogue about another question on the image, or begun `again`; all that is said belongs to both."""
        other = Dialogue(self._asker, sample, self.config, self.counts, again=self.again + again)
        other.said = self.said
        return other

    async def ask(self, purpose: str, parts: Sequence[str | ShownImage], shape: type[S]) -> S:
        """The reply as this shape. Raises Refused."""
        return await self.hear(purpose, parts, shape, lambda completion: parse_reply(completion, shape))

    async def hear(
        self, purpose: str, parts: Sequence[str | ShownImage], shape: type[BaseModel],
        read: Callable[[Completion], T], *, alternative: int = 0,
    ) -> T:  # fmt: skip
        """What `read` makes of the reply, or of a second one where it raises Refused. Raises Refused."""
        request = self.config.request(purpose, parts, shape, alternative, self.again)
        try:
            return await self._once(request, read)
        except Refused as refused:
            if refused.fault.reason in NOT_FOR_REPAIR or not self.config.repairs:
                raise
            stricter = (
                f"Your last reply to this was thrown away: {refused.fault.why}. "
                "This is the last attempt: keep to the rules exactly, or the row is lost."
            )
        self.counts["repairs"] += 1
        return await self._once(replace(request, parts=(*request.parts, stricter)), read)

    async def _once(self, request: Request, read: Callable[[Completion], T]) -> T:
        try:
            completion = await self._asker.ask(request, source=self.sample.origin.dataset, row=self.sample.id)
        except RowFailed as error:
            raise Refused(Reason.TEACHER_FAILED, str(error)) from error
        self.said.append(completion.text)
        if request.purpose not in JUDGING:
            self.models = tuple(dict.fromkeys([*self.models, completion.model]))
        return read(completion)

    def drop(self, part: str, fault: Fault) -> None:
        """A part is refused, and the row goes on without it."""
        self.parts.append(self.refusal(Refused(*fault), part))

    def refusal(self, refused: Refused, part: str = "") -> Rejection:
        return refuse(self.sample, *refused.fault).model_copy(
            update={"part": part, "said": tuple(self.said), "negative": refused.negative}
        )


# ------------------------------------------------------------------------------------------ the text of a reply

LONGEST = 30_000
"""Characters of a reply that is looked at."""

REFUSED = ("content_filter", "refusal")
"""Finish reasons of a Completion that say: would not."""

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
    if not text:
        raise Refused(Reason.TEACHER_EMPTY, "it was empty")
    if completion.finish_reason == "length":
        raise Refused(Reason.TEACHER_CUT_OFF, "it was cut off because it was too long")
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


# ------------------------------------------------------------------------------------------ what a reply must hold
#
# Read by pydantic, and sent to the endpoint as a JSON schema: names, docstrings and fields are part of the keys under
# which replies are kept. Numbers of boxes are in the frame that the teacher was told. A reply may leave out what has a
# default here; the schema asks for everything, because strict endpoints accept no optional field.


def _strict(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = False
    schema["required"] = list(schema.get("properties", {}))
    for one in schema.get("properties", {}).values():
        one.pop("default", None)


class Shape(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra=_strict)


@cache
def schema_of(shape: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema that is sent; not to be changed."""
    return shape.model_json_schema()


def _numbers(box: Any) -> Any:
    """A box that came as a string: "[31, 83, 188, 292]", "(31,83),(188,292)"."""
    if isinstance(box, str) and re.fullmatch(r"[\s\d.,;()\[\]+-]*", box):
        return re.findall(r"[+-]?\d+(?:\.\d+)?", box)
    return box


Numbers = Annotated[list[float], BeforeValidator(_numbers)]


class Proposed(Shape):
    """An object that nobody annotated, under the number by which the sentences speak of it."""

    number: int
    label: str
    box: Numbers


class Sentence(Shape):
    """`objects`: the numbers in brackets of its text that stand for objects."""

    text: str
    objects: list[int] = []


def _sentences(said: Any) -> Any:
    """Plain text, or a list of it, from those that keep to no schema."""
    if isinstance(said, str):
        said = [said]
    return [{"text": one} if isinstance(one, str) else one for one in said] if isinstance(said, list) else said


Sentences = Annotated[list[Sentence], BeforeValidator(_sentences)]


class Reasoned(Shape):
    objects: list[Proposed] = []
    sentences: Sentences
    answer: str

    @model_validator(mode="before")
    @classmethod
    def _as_version_1(cls, said: Any) -> Any:
        """Version 1 of the prompt asks for all sentences as one text, under another name."""
        if isinstance(said, dict) and "sentences" not in said and "reasoning" in said:
            return said | {"sentences": said["reasoning"]}
        return said


class Anchor(Shape):
    """Words of a sentence, and the listed object or the box that they name."""

    sentence: int
    words: str
    object: int | None = None
    box: Numbers | None = None


class Anchored(Shape):
    anchors: list[Anchor]


class Places(Shape):
    label: str
    boxes: list[Numbers]


class Located(Shape):
    objects: list[Places]


class Looked(Shape):
    present: bool


class Answered(Shape):
    answer: str


class Captioned(Shape):
    caption: str


class Seen(Shape):
    label: str
    box: Numbers
    score: float = 0.0


class Found(Shape):
    objects: list[Seen]


class Branched(Shape):
    visible: bool
    caption: str = ""


class Claim(Shape):
    text: str
    supported: bool
    reason: str = ""


class Judged(Shape):
    label_supported: bool
    claims: list[Claim]
    verdict: Literal["keep", "modify", "reject"]


class Relation(Shape):
    subject: int
    predicate: str
    object: int


class Pair(Shape):
    question: str
    choices: list[str] = []
    answer: str
    evidence: list[int]
    rationale: Sentences


class Synthesised(Shape):
    relations: list[Relation] = []
    pairs: list[Pair]
