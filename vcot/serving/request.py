"""What `/v1/chat/completions` may be asked, and the refusal of everything else, in OpenAI's words.

A field that would change the reply in a way that this server does not know is refused, never ignored. Images come as
data: URLs; nothing is fetched. Their sizes are judged before anything is decoded.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vcot.storage import images
from vcot.storage.images import ImageError
from vcot.tokens import Message

_TYPES = ("text", "image_url")

MOST_CHOICES = 16
MOST_TOP_LOGPROBS = 20
MOST_STOPS = 4
MOST_MESSAGES = 1000
MOST_PARTS = 4096
"""Texts and images of all messages."""
MOST_VALUES = 1 << 18
"""Braces, brackets and commas in a body. Each may become a value, and each value an error of its own."""

ONLY = {
    "top_p": (1,), "top_k": (-1, 0), "min_p": (0,), "frequency_penalty": (0,), "presence_penalty": (0,),
    "repetition_penalty": (1,), "skip_special_tokens": (False,),
}  # fmt: skip
"""Replies are drawn from the whole distribution of the model, and tags that are control tokens are part of them."""


class Refused(Exception):
    """A request that is not answered: the HTTP status, and OpenAI's error object."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers: dict[str, str] = {}

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Part(BaseModel):
    """null stands for a field that is left out: clients send a reply back with all that it had."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, said: Any) -> Any:
        return {name: value for name, value in said.items() if value is not None} if isinstance(said, dict) else said


class TextPart(_Part):
    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"  # the model's own budget of pixels decides


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: ImageUrl


class Said(_Part):
    """One of the messages."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
        BeforeValidator(lambda said: [{"type": "text", "text": said}] if isinstance(said, str) else said),
    ]
    name: str | None = None


class StreamOptions(_Part):
    include_usage: bool = False


class TextFormat(_Part):
    type: Literal["text"]


class ChatRequest(_Part):
    """The body."""

    model: str
    messages: list[Said] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    temperature: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    stop: str | list[str] = ()  # type: ignore[assignment]
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_TOP_LOGPROBS)
    response_format: TextFormat | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None

    # Of these one value alone can be done, the one that changes nothing (ONLY).
    top_p: float = 1
    top_k: int = -1
    min_p: float = 0
    frequency_penalty: float = 0
    presence_penalty: float = 0
    repetition_penalty: float = 1
    skip_special_tokens: bool = False

    @property
    def images(self) -> int:
        return sum(isinstance(part, ImagePart) for said in self.messages for part in said.content)

    @property
    def characters(self) -> int:
        return sum(len(part.text) for said in self.messages for part in said.content if isinstance(part, TextPart))

    @property
    def reply_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def read_request(body: bytes) -> ChatRequest:
    """Parse the body of a request.

    Raises:
        Refused: 400, with place and value: the body is not JSON, or holds a field that is not supported. 413: too many
            values, messages or parts; they are counted before they are parsed or validated.
    """
    if sum(map(body.count, (b"{", b"[", b","))) > MOST_VALUES:
        raise Refused(413, f"the body holds more than {MOST_VALUES:,} values", code="request_too_large")
    try:
        said = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}", code="invalid_json") from None
    _check_counts(said)
    try:
        asked = ChatRequest.model_validate(said)
    except ValidationError as error:
        raise _fault(error) from None
    for name, values in ONLY.items():
        if (given := getattr(asked, name)) not in values:
            only = json.dumps(values[0])
            raise Refused(
                400, f"{name} {json.dumps(given)}: only {only} can be done here", param=name, code="unsupported_value"
            )
    for number, message in enumerate(asked.messages):
        param = f"messages.{number}"
        if message.role == "system" and number:
            raise Refused(400, "a system message stands first or not at all", param=param)
        if message.role != "user" and any(isinstance(part, ImagePart) for part in message.content):
            raise Refused(400, f"images belong to the user, not to the {message.role}", param=param)
        try:
            "".join(part.text for part in message.content if isinstance(part, TextPart)).encode()
        except UnicodeEncodeError:
            raise Refused(400, "a text holds half a character (a lone surrogate)", param=param) from None
    if asked.messages[-1].role != "user":
        raise Refused(
            400, "the last message must be the user's; a reply that is begun is not continued", param="messages"
        )
    if asked.top_logprobs and not asked.logprobs:
        raise Refused(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if len(asked.stops) > MOST_STOPS or not all(asked.stops):
        raise Refused(400, f"stop takes up to {MOST_STOPS} texts, none of them empty", param="stop")
    return asked


def _check_counts(body: Any) -> None:
    """Raise Refused if there are too many messages or parts; validation would report an error for each of them."""
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list):
        return
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = sum(len(content) for content in contents if isinstance(content, list))
    for count, most, kind in ((len(messages), MOST_MESSAGES, "messages"), (parts, MOST_PARTS, "texts and images")):
        if count > most:
            why = f"{count:,} {kind}; at most {most:,} are allowed"
            raise Refused(413, why, param="messages", code="request_too_large")


def _fault(error: ValidationError) -> Refused:
    """The first of the faults."""
    fault: Any = error.errors(include_url=False)[0]
    # Of an image's part the place names its type once as a choice among parts and once as a field.
    place = [part for before, part in pairwise(("", *fault["loc"])) if not (isinstance(before, int) and part in _TYPES)]
    param = ".".join(str(part) for part in place if part not in ("str", "list[str]")) or None
    if fault["type"] == "extra_forbidden":
        return Refused(400, f"{param}: no such field here; leave it out", param=param, code="unknown_parameter")
    if fault["type"] == "missing":
        return Refused(400, f"{param} is missing", param=param, code="missing_required_parameter")
    shown = repr(fault["input"])
    what = f"{param or 'the body'} {shown}" if len(shown) <= 80 else param or "the body"
    said = fault["msg"][0].lower() + fault["msg"][1:]
    return Refused(400, f"{what}: {said}", param=param, code="invalid_value")


def messages_of(
    asked: ChatRequest, *, max_pixels: int = images.MAX_PIXELS, check: Callable[[], None] = lambda: None
) -> list[Message]:
    """Return the messages with their images decoded, upright RGB.

    Args:
        max_pixels: limit for all images together; they are counted by their headers before the first is decoded.
        check: called before each image is decoded; what it raises ends the work.

    Raises:
        Refused: an image is not an image or not a data: URL (400), or is too large (413).
    """
    found: list[Message] = []
    data: list[tuple[str, bytes]] = []
    for number, said in enumerate(asked.messages):
        parts: list[Any] = []
        for place, part in enumerate(said.content):
            if isinstance(part, TextPart):
                parts.append(part.text)
                continue
            param = f"messages.{number}.content.{place}.image_url.url"
            data.append((param, _bytes_of(part.image_url.url, param)))
            parts.append(len(data) - 1)  # the place of what it will be
        found.append(Message(said.role, tuple(parts)))
    left = max_pixels
    for param, each in data:
        width, height = _read(images.probe, each, param, left)
        left -= width * height
    decoded = []
    for param, each in data:
        check()
        decoded.append(_read(images.decode, each, param, max_pixels).pixels)
    return [
        Message(role, tuple(decoded[part] if isinstance(part, int) else part for part in parts))
        for role, parts in found
    ]


def _bytes_of(url: str, param: str) -> bytes:
    head, comma, encoded = url.partition(",")
    head = head.strip().lower()
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        raise Refused(
            400, f"images are sent as data:image/png;base64,... or so; this server fetches nothing: {url[:40]!r}",
            param=param, code="invalid_image_url",
        )  # fmt: skip
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)  # encoders break lines after 76 characters
    except ValueError as error:
        raise Refused(400, f"no base64: {error}", param=param, code="invalid_base64_image") from None


def _read(reader: Any, data: bytes, param: str, max_pixels: int) -> Any:
    try:
        return reader(data, "the image", max_pixels=max_pixels)
    except ImageError as error:
        large = error.reason == "too-large"
        code = "image_too_large" if large else "invalid_image"
        raise Refused(413 if large else 400, str(error), param=param, code=code) from None
