"""What is asked about one row, and what is made of the replies: at most one of them is asked for again.

    talk = Talk(asker, sample, manner, counts)
    seen = await talk.ask("look", [picture, "red cup"], Looked)       → Looked, or Refused is raised

A reply that is of no use is sent for once more, with a word on what was wrong. All that was said is kept for the
rejection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import BaseModel

from vcot.grounding import Frame, FrameSpec
from vcot.records import Completion, Image, Reason, Rejection, Sample
from vcot.teacher import structured
from vcot.teacher.pictures import size_of
from vcot.teacher.request import Asker, Picture, Prompt, Request, RowFailed
from vcot.teacher.row import refuse
from vcot.teacher.shapes import schema_of
from vcot.teacher.structured import Fault

T = TypeVar("T")
S = TypeVar("S", bound=BaseModel)

NOT_FOR_REPAIR = (Reason.TEACHER_FAILED, Reason.TEACHER_REFUSED, Reason.TEACHER_WRONG_ANSWER)
"""A teacher that cannot, would not, or thinks otherwise, is not talked round."""

JUDGING = ("look", "reanswer", "verdict")
"""Purposes for which the judge is asked, where there is one."""


class Refused(Exception):
    """The row, or a part of it, cannot be used.

    Args:
        negative: the row as the teacher would have it, where its wrong answers are asked for.
    """

    def __init__(self, fault: Fault, negative: Sample | None = None) -> None:
        super().__init__(fault.why)
        self.fault, self.negative = fault, negative


@dataclass(frozen=True)
class Manner:
    """How the teacher is asked; all of it shapes the requests.

    Args:
        prompts: by purpose.
        judge: model for the purposes in JUDGING; None: the same one.
        temperature: None leaves it to the endpoint (some models accept no other).
        reply_tokens: most tokens of one reply.
        image_side: longest side, in pixels, of a picture that is sent.
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

    def frame_of(self, image: Image) -> Frame:
        """The numbers of a box on this image, seen as it is sent."""
        return self.frame.on(image.width, image.height, kept=size_of(Picture(image, self.image_side)))

    def request(
        self, purpose: str, parts: Sequence[str | Picture], shape: type[BaseModel], alternative: int = 0
    ) -> Request:
        return Request(
            purpose=purpose,
            prompt=self.prompts[purpose],
            parts=tuple(parts),
            model=self.judge if self.judge and purpose in JUDGING else self.model,
            schema=schema_of(shape) if self.structured else None,
            temperature=self.temperature,
            reply_tokens=self.reply_tokens,
            alternative=alternative,
        )


class Talk:
    """Args: who answers, about which row, how it is asked, what is counted, and how often it was refused before."""

    def __init__(self, asker: Asker, sample: Sample, manner: Manner, counts: Counter[str], *, again: int = 0) -> None:
        self.sample, self.manner, self.counts, self.again = sample, manner, counts, again
        self.said: list[str] = []
        self.models: tuple[str, ...] = ()  # that wrote, each once; not those that only judged
        self.parts: list[Rejection] = []
        self._asker = asker

    def about(self, sample: Sample) -> Talk:
        """The same talk about another question on the image; what is said there is part of this one."""
        other = Talk(self._asker, sample, self.manner, self.counts, again=self.again)
        other.said = self.said
        return other

    def anew(self) -> Talk:
        """The same talk begun again, with other replies."""
        other = Talk(self._asker, self.sample, self.manner, self.counts, again=self.again + 1)
        other.said = self.said
        return other

    async def ask(self, purpose: str, parts: Sequence[str | Picture], shape: type[S], *, alternative: int = 0) -> S:
        """The reply as this shape. Raises Refused."""
        return await self.hear(purpose, parts, shape, lambda c: structured.read(c, shape), alternative=alternative)

    async def hear(
        self,
        purpose: str,
        parts: Sequence[str | Picture],
        shape: type[BaseModel],
        read: Callable[[Completion], T | Fault],
        *,
        alternative: int = 0,
    ) -> T:
        """What `read` makes of the reply. Raises Refused where it makes nothing of it, and nothing of a second one."""
        request = replace(self.manner.request(purpose, parts, shape, alternative), again=self.again)
        found = await self._once(request, read)
        for _ in range(self.manner.repairs):
            if not isinstance(found, Fault) or found.reason in NOT_FOR_REPAIR:
                break
            self.counts["repairs"] += 1
            found = await self._once(replace(request, parts=(*request.parts, _stricter(found))), read)
        if isinstance(found, Fault):
            raise Refused(found)
        return found

    async def _once(self, request: Request, read: Callable[[Completion], T | Fault]) -> T | Fault:
        try:
            completion = await self._asker.ask(request, source=self.sample.origin.dataset, row=self.sample.id)
        except RowFailed as error:
            return Fault(Reason.TEACHER_FAILED, str(error))
        self.said.append(completion.text)
        if request.purpose not in JUDGING:
            self.models = tuple(dict.fromkeys([*self.models, completion.model]))
        return read(completion)

    def drop(self, part: str, fault: Fault) -> None:
        """A part is refused, and the row goes on without it."""
        self.parts.append(self.refusal(Refused(fault), part))

    def refusal(self, refused: Refused, part: str = "") -> Rejection:
        fault = refused.fault
        return refuse(self.sample, fault.reason, fault.why).model_copy(
            update={"part": part, "said": tuple(self.said), "negative": refused.negative}
        )


def _stricter(fault: Fault) -> str:
    return (
        f"Your last reply to this was thrown away: {fault.why}. "
        "This is the last attempt: keep to the rules exactly, or the row is lost."
    )
