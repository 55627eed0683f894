"""The model behind the page: an OpenAI-compatible endpoint, asked in the ways of an evaluation, and read as it streams.

    model = StreamedModel("http://127.0.0.1:8000/v1", "small", form=None)
    async for event in model.reply(asked, "ground", draw=None):     JSON for the page, in the order of the text
        …

Events of one reply: first `begun`; then, as often as they happen, `text`, `label` (a mention opens; they are numbered
from 0), `box` (of a mention, in pixels of the original image), `answer` (what follows is the answer), `look` (what is
shown enlarged in a second turn) and `pace`; at last `done`, with all of it as `grounding.parse` reads the whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from vcot.distill.crops import ImagePacker
from vcot.distill.endpoint import Endpoint, Unanswered, as_dict, body_of
from vcot.errors import InputError
from vcot.evaluation.config import Way
from vcot.evaluation.endpoint import FLAGS, EndpointForm
from vcot.evaluation.voting import METHODS, USUAL, Draw, Question, select
from vcot.evaluation.ways import Prompt, as_reply, both_turns, look_again, viscot_crop
from vcot.grounding import Frame, parse, read_reply
from vcot.grounding.stream import Answering, Boxed, Event, Opened, ReplyStream, Text
from vcot.models.decoding import Decoding
from vcot.records import Completion, Contract, Sample
from vcot.records import Image as ImageRecord
from vcot.records.sample import Origin, Stored
from vcot.storage import Store, images
from vcot.storage.images import DecodedImage

WAYS: Mapping[Way, str] = {
    "ground": "Reasons with boxes, then answers.",
    "reason": "Reasons in words, then answers.",
    "direct": "Gives the answer alone.",
    "look-again": "Points, and answers with what is in its box enlarged beside the image.",
}
"""In the order in which they are offered."""

MOST_PIXELS_SENT = 4_000_000
"""Of an image whose size nobody has declared. A photograph of 50 megapixels would be 100 MB as a PNG."""

KEPT = 16  # images as they are sent, for other replies about them


@dataclass(frozen=True)
class Asked:
    """A question about an image. blank: it is shown grey in its place."""

    question: str
    image: DecodedImage
    blank: bool = False


@dataclass
class _Said:
    """What was said so far, and how fast."""

    asked_at: float
    text: str = ""
    pieces: int = 0
    logprobs: list[float] | None = field(default_factory=list)
    finish_reason: str = ""
    counted: int = 0  # tokens, by the endpoint
    first_at: float | None = None
    last_at: float = 0.0

    @property
    def tokens(self) -> int:
        return self.counted or self.pieces

    def pace(self) -> dict[str, Any]:
        """first: seconds until the first token; rate: tokens a second from then on, None of too few to say."""
        if self.first_at is None:
            return {"tokens": 0, "first": None, "rate": None}
        writing = self.last_at - self.first_at
        rate = (self.tokens - 1) / writing if writing > 0.05 and self.tokens > 1 else None
        return {
            "tokens": self.tokens,
            "first": round(self.first_at - self.asked_at, 3),
            "rate": rate and round(rate, 1),
        }

    def completion(self, model: str) -> Completion:
        return Completion(
            text=self.text, model=model, finish_reason=self.finish_reason, tokens_out=self.tokens,
            seconds=round(self.last_at - self.asked_at, 3) if self.first_at else 0.0,
            logprobs=tuple(self.logprobs) if self.logprobs else None,
        )  # fmt: skip


class StreamedModel:
    """form, learned: how it writes boxes, and ways in which it was tuned, where its server does not tell that itself
    (`vcot` in /v1/models). The server is asked when it is first needed, and after it was gone.

    For one event loop. Methods that ask raise distill.endpoint.Unanswered.
    """

    def __init__(
        self, address: str, name: str, form: EndpointForm | None, *, learned: tuple[Way, ...] | None = None,
        max_new_tokens: int, temperature: float, timeout: float, at_once: int,
    ) -> None:  # fmt: skip
        self.name = name
        self.form, self.learned = self._declared = form, learned
        self.card: dict[str, Any] = {}
        self.connected = False
        self._endpoint = Endpoint(at_once=at_once, timeout=timeout, address=address, flags=FLAGS)
        self._packer = ImagePacker(Store(), KEPT)
        self._decoding = Decoding(max_new_tokens)
        self._drawn = Decoding(max_new_tokens, temperature)

    async def connect(self) -> None:
        """Learns what the server tells of the model.

        Raises InputError: it has no such model, or does not tell how it writes boxes, and nobody declared it.
        """
        listed = await self._endpoint.models() or []
        found = next((one for one in listed if one.get("id") == self.name), None)
        if listed and found is None:
            names = ", ".join(str(one.get("id")) for one in listed[:10])
            raise InputError(f"{self._endpoint.address} serves no model {self.name}; it serves {names}")
        told = as_dict((found or {}).get("vcot"))
        self.form, self.learned = self._declared
        if "contract" in told:
            try:
                contract = Contract.model_validate(told["contract"])
            except ValidationError as error:
                raise InputError(f"{self._endpoint.address}: the contract of {self.name} is none: {error}") from None
            self.form, self.learned = EndpointForm.tuned(contract), contract.ways
        if self.form is None:
            raise InputError(
                f"{self._endpoint.address} does not tell how {self.name} writes boxes: say it with --native-form, or "
                "with --subject-frame and --subject-dialect"
            )
        self.card, self.connected = as_dict(told.get("card")), True

    async def close(self) -> None:
        await self._endpoint.close()

    @property
    def budget(self) -> int | None:
        """Pixels that an image is shrunk to before it is sent, where nothing else says so."""
        assert self.form is not None
        declared = self.form.min_pixels is not None or self.form.frame.name == "pixels"
        return None if declared else MOST_PIXELS_SENT

    async def reply(self, asked: Asked, way: Way, draw: int | None) -> AsyncGenerator[dict[str, Any], None]:
        """draw: which of several at the temperature for them; None: the likeliest token each time."""
        assert self.form is not None
        sample, seen = _sample(asked), asked.image.pixels
        if asked.blank:
            seen = await asyncio.to_thread(images.blank, *seen.size)
        form, frame = self.form, sample.frame(self.form.frame)
        prompt = Prompt(sample, (seen,), form.own.below(sample, way), form.frame, dialect=form.own.dialect)
        said = _Said(time.monotonic())
        yield {"on": "begun"}
        async for event in self._turn(prompt, frame, draw, said, answering=way == "direct"):
            yield event
        completion = said.completion(self.name)
        again = None
        if way == "look-again":
            again = await asyncio.to_thread(look_again, prompt, completion.text, form.own, frame)
        if again is not None:
            box = parse(completion.text, frame).boxes[0]
            yield {"on": "look", "box": viscot_crop(box, frame.width, frame.height).as_list()}
            second = _Said(time.monotonic())
            async for event in self._turn(again, frame, draw, second, answering=True):
                yield event
            said.counted, said.last_at = said.tokens + second.tokens, second.last_at
            completion = both_turns(completion, second.completion(self.name))
        yield {"on": "done", **read(as_reply(completion.text, way), frame), **said.pace(), **_ended(completion)}

    async def _turn(
        self, prompt: Prompt, frame: Frame, draw: int | None, said: _Said, *, answering: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """answering: all of it is the answer."""
        assert self.form is not None
        request = self.form.request(prompt, self.name, self._decoding if draw is None else self._drawn)
        key = await asyncio.to_thread(request.key)  # in it digests of images are made, once
        if draw is not None:
            noise = hashlib.sha256(f"{draw} {key}".encode()).digest()
            request = replace(request, options={**request.options, "seed": int.from_bytes(noise[:4]) >> 1})
        stream = ReplyStream(frame)
        if answering:
            yield {"on": "answer"}
        chunks = self._endpoint.stream(await body_of(request, self._packer), self.name)
        try:
            async for delta in chunks:
                said.counted = delta.tokens_out or said.counted
                said.finish_reason = delta.finish_reason or said.finish_reason
                if not delta.text:
                    continue
                said.last_at = time.monotonic()
                said.first_at = said.first_at or said.last_at
                said.text, said.pieces = said.text + delta.text, said.pieces + 1
                if said.logprobs is not None and delta.logprobs is not None:
                    said.logprobs += delta.logprobs
                else:
                    said.logprobs = None
                for event in stream.feed(delta.text):
                    yield _told(event)
                yield {"on": "pace", **said.pace()}
        except Unanswered:
            self.connected = False
            raise
        finally:
            await chunks.aclose()
        for event in stream.finish()[0]:
            yield _told(event)


def _sample(asked: Asked) -> Sample:
    image, seen = asked.image, asked.image.pixels
    stored = Stored(uri="shown", width=seen.width, height=seen.height, sha256=image.sha256)
    record = ImageRecord(
        uri="upload", width=image.width, height=image.height, sha256=image.sha256,
        stored=None if seen.size == (image.width, image.height) else stored,
    )  # fmt: skip
    origin = Origin(dataset="page", split="test", row="asked", licence="unknown")
    return Sample(id="asked", images=(record,), question=asked.question, answers=("unknown",), origin=origin)


def _told(event: Event) -> dict[str, Any]:
    match event:
        case Text(text):
            return {"on": "text", "text": text}
        case Opened(label):
            return {"on": "label", "text": label}
        case Boxed(mention, box):
            return {"on": "box", "mention": mention, "box": box.as_list()}
        case Answering():
            return {"on": "answer"}


def read(text: str, frame: Frame) -> dict[str, Any]:
    """A whole reply in its pieces, each a list of texts and {"label", "boxes"}; and what could not be read of it."""
    reply = read_reply(text)
    parts = {
        name: parse(said, frame).trace.to_json()
        for name, said in (("reasoning", reply.reasoning), ("answer", reply.answer or ""), ("after", reply.after))
    }
    faults = [{"kind": fault.kind.value, "text": fault.text[:200]} for fault in parse(text, frame).faults]
    return {"text": text, "stated": reply.answer, **parts, "faults": faults}


def _ended(completion: Completion) -> dict[str, Any]:
    return {"finish": completion.finish_reason, "logprobs": completion.logprobs}


def vote(done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Which answer several replies come to, by each method that their log-probabilities allow.

    Args:
        done: the events with which they ended, in the order drawn.

    Returns:
        groups: replies that say the same, the largest first. chosen: method → a reply. missing: method → why not.
    """
    draws = [Draw(one["stated"], right=False, tokens=one["tokens"], logprobs=one["logprobs"]) for one in done]
    question = Question(draws)
    selection = select(question, measures=USUAL)
    groups = sorted(question.clusters, key=lambda group: (-len(group), group))
    return {
        "groups": [{"answer": draws[group[0]].answer, "replies": group} for group in groups],
        "chosen": {method: selection.chosen[method] for method in METHODS if method in selection.chosen},
        "missing": dict(selection.missing),
        "agreement": round(selection.agreement, 3),
    }
