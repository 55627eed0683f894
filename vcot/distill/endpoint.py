"""One OpenAI-compatible endpoint: asked as fast as it allows; what it says becomes a Completion, and what goes wrong
becomes Unanswered, in words that say what to do.

The client speaks HTTP and knows keys and Azure. It tries nothing twice: each try is paid for by itself, and
client.TeacherClient alone decides about it. Several servers belong behind a gateway.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import aiohttp
import httpx2
import openai
from aiolimiter import AsyncLimiter
from pydantic_core import to_json

from vcot.distill.crops import ImagePacker
from vcot.distill.request import ERROR, Part, Request
from vcot.errors import SettingsError, TemporaryError, VcotError
from vcot.records import Completion
from vcot.redaction import learn, redacted

LONGEST_TEXT = 250_000  # characters of a reply that are kept, thinking included; a longer one is cut off, and says so
LONGEST_BODY = 4_000_000  # bytes of an answer that are parsed: LONGEST_TEXT has no more, however it is escaped
LONGEST_NAME = 200  # characters
CONNECT = 10.0  # seconds until a connection must stand
LONGEST_PAUSE = 120.0  # seconds that a Retry-After is sat out
BURST = 2.0  # seconds' worth of a minute's allowance that may be sent in one breath
MAX_REDIRECTS = 5  # of one request
GROWTH = 4  # more requests at once, after as many answers as there are requests at once

# Codes of a refused request (400, 422) that concern the content of the row.
_CONTENT_CODES = ("content_filter", "content_policy_violation", "image_content_policy_violation")
_DECODED = ("", "identity", "gzip", "deflate")  # content encodings that the client asks for
# A gateway gave up; what stands behind it may have answered, and be paid for it.
_PERHAPS_ANSWERED = (408, 502, 504, 524)
_BEFORE_SENDING = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_JSON: Any = {"headers": {"Content-Type": "application/json"}}
_TIMEOUT = httpx2.Timeout(None, connect=CONNECT)  # the endpoint itself times a whole try


_FAILURES = (TimeoutError, openai.APIError, httpx2.TransportError, aiohttp.ClientError)


@dataclass(eq=False)
class Unanswered(Exception):
    """A try that gave no reply."""

    trouble: VcotError  # what to tell if it is not made again
    again: bool = False  # the same request may pass if it is sent once more
    sent: bool = True  # the request left this process
    billed: bool = False  # the endpoint may have answered all the same, and be paid for it
    whole: bool = False  # it concerns all requests (the account, the model, the way there), and not perhaps this one


class SendAgain(Unanswered):
    """The same request is to be sent again at once: without a field of the body that the endpoint does not take (a
    schema, logprobs), or to where it is redirected."""


class Flags(NamedTuple):
    """Where an endpoint's settings are given, for messages."""

    address: str = "OPENAI_BASE_URL"
    model: str = "--model "  # before its name
    at_once: str = "--concurrency"  # "" where none says it
    key: str = "OPENAI_API_KEY"


def address_and_name(subject: str, flag: str = "--subject") -> tuple[str, str]:
    """Of `https://host:8000/v1#served-name`, as `flag` gives it. Raises SettingsError: a part of it is missing."""
    address, _, name = subject.partition("#")
    try:
        host = urlsplit(address).hostname
    except ValueError:
        host = None
    if not address.startswith(("http://", "https://")) or not host:
        raise SettingsError(f"{flag} {subject}: an endpoint is written https://host:8000/v1#served-name")
    if not name:
        raise SettingsError(f"{flag} {subject}: which of its models? Write {address}#served-name")
    return address, name


class Endpoint:
    """Args: requests at once, at most; seconds that one try may take; the address, where it is not that of the
    client's own variables, and the flags that give it. For one event loop.

    OPENAI_BASE_URL and OPENAI_API_KEY are the client's own variables, and so are Azure's (AZURE_OPENAI_ENDPOINT,
    AZURE_OPENAI_API_KEY or AZURE_OPENAI_AD_TOKEN, OPENAI_API_VERSION). An address that is given may ask for no key.
    Nothing is opened, and no key is needed, before the first request: a run that finds all its replies stored asks
    nobody.
    """

    def __init__(self, *, at_once: int, timeout: float, address: str | None = None, flags: Flags | None = None) -> None:
        base, azure = address or os.environ.get("OPENAI_BASE_URL"), os.environ.get("AZURE_OPENAI_ENDPOINT")
        self._flags, self._given = flags or Flags(), address is not None
        self._is_azure = bool(azure and not base)
        self.address = azure if azure and not base else base or "https://api.openai.com/v1"
        self.rate = Rate(at_once)
        self._timeout = timeout
        self._understood = False  # whether it ever answered with a chat completion
        self.refused_options: set[str] = set()  # of a schema the words of the prompt must do
        self._moved: dict[str, str] = {}  # path → where a permanent redirect leads

    @cached_property
    def client(self) -> openai.AsyncOpenAI:
        """Raises SettingsError: no key, or an address that is none."""
        name = "AZURE_OPENAI_API_KEY" if self._is_azure else self._flags.key
        if not self._is_azure and not self.address.startswith(("http://", "https://")):
            raise SettingsError(f"{self._flags.address}={self.address}: it should begin with http:// or https://")
        if key := os.environ.get(name):
            _check_key(name, key)
        elif self._given and urlsplit(self.address).hostname != "api.openai.com":
            key = "none"  # the client wants one; servers of one's own mostly do not look at it
        elif not self._is_azure:
            raise SettingsError(f"{name} is not set; give the key of {self.address} (any word where it asks for none)")
        # aiohttp takes a third less CPU for a request than the client's default. Each redirect is a request of its own.
        http = openai.DefaultAioHttpClient(timeout=_TIMEOUT, follow_redirects=False)
        given: Any = {"max_retries": 0, "timeout": _TIMEOUT, "http_client": http}
        try:
            if self._is_azure:
                return openai.AsyncAzureOpenAI(**given)
            return openai.AsyncOpenAI(api_key=key, base_url=self.address, **given)
        except (openai.OpenAIError, httpx2.InvalidURL, ValueError) as error:
            own = (self._flags.address, "it is no address: ")
            name, why = ("AZURE_OPENAI_ENDPOINT", "") if self._is_azure else own
            raise SettingsError(f"{name}={self.address}: {why}{error}") from error

    async def ask(self, body: Mapping[str, Any], model: str, redirects: list[str]) -> Completion | None:
        """The reply to one request, a chat completion's; at most one request is sent, without `refused_options`.

        `redirects`: the addresses to which this request was redirected; the next is added to it.

        None: the endpoint refuses this request for its content, and is not paid. Raises Unanswered (not reached, too
        slow, refused), SendAgain and, before anything is sent, SettingsError.
        """
        client, begun = self.client, time.monotonic()
        asked = {name: said for name, said in body.items() if name not in self.refused_options}
        try:
            async with asyncio.timeout(self._timeout):
                url = self._url(model, redirects)
                answer = await client.post(url, content=to_json(asked), cast_to=httpx2.Response, options=_JSON)
        except _FAILURES as error:
            if (failure := await self._failure(error, asked, model, redirects)) is None:
                return None
            raise failure from error
        completion = read_completion(answer.content, model, time.monotonic() - begun, answer.charset_encoding)
        if completion is None:
            if why := _unreadable(answer):  # each further try is paid for, and gives the same
                raise Unanswered(SettingsError(f"{self.address} answers with {why}"), billed=True, whole=True)
            raise Unanswered(self._strange(answer.content), again=True, billed=True)
        if completion.finish_reason == ERROR:
            what = f"{self.address} answers with an error instead of a reply ({completion.text})"
            raise Unanswered(TemporaryError(what), again=True, billed=True)
        self._understood = True
        self.rate.answered(answer.headers)
        return completion

    async def stream(self, body: Mapping[str, Any], model: str) -> AsyncGenerator[Delta, None]:
        """The same reply while it is written; who stops early (`aclose`) closes the request. One that names options
        which the endpoint refuses is sent again without them.

        Raises Unanswered, also in the middle (nothing comes for longer than the timeout, or the connection breaks), and
        for its content as well, and SettingsError.
        """
        client, redirects = self.client, list[str]()
        wanted = {**body, "stream": True, "stream_options": {"include_usage": True}}
        while True:
            asked = {name: said for name, said in wanted.items() if name not in self.refused_options}
            try:
                async with asyncio.timeout(self._timeout):
                    chunks = await client.post(
                        self._url(model, redirects), content=to_json(asked), cast_to=object, options=_JSON, stream=True,
                        stream_cls=openai.AsyncStream[object],
                    )  # fmt: skip
                try:
                    coming = aiter(chunks)
                    while True:
                        async with asyncio.timeout(self._timeout):
                            chunk = await anext(coming, None)
                        if chunk is None:
                            return
                        yield delta_of(chunk)
                finally:
                    await chunks.close()
            except _FAILURES as error:
                failure = await self._failure(error, asked, model, redirects)
                if not isinstance(failure, SendAgain):
                    refused = SettingsError(f"{self.address} refuses this request for its content")
                    raise failure or Unanswered(refused) from error

    def _path(self, model: str) -> str:
        return f"/deployments/{quote(model, safe='')}/chat/completions" if self._is_azure else "/chat/completions"

    def _url(self, model: str, redirects: Sequence[str]) -> str:
        path = self._path(model)
        return redirects[-1] if redirects else self._moved.get(path, path)

    def _redirect(self, response: httpx2.Response, model: str, redirects: list[str]) -> Unanswered:
        """Follow a redirect within the host, as a request of its own."""
        try:
            to = self.redirected_to(response, (301, 302, 307, 308))
        except SettingsError as error:
            return Unanswered(error, whole=True)
        if len(redirects) == MAX_REDIRECTS:
            what = f"{self.address} redirects {MAX_REDIRECTS + 1} times, at last to {_shown(to)}"
            return Unanswered(SettingsError(f"{what}: is {self._flags.address} right?"), whole=True)
        if response.status_code in (301, 308) and not redirects:
            self._moved[self._path(model)] = to
        redirects.append(to)
        return SendAgain(SettingsError(f"{self.address} redirects to {_shown(to)}"))

    def redirected_to(self, response: httpx2.Response, followed: Collection[int]) -> str:
        """Return the address of a redirect with one of these statuses that stays on the host.

        Raises SettingsError for any other: prompts, images and the key go to the host that the user names, and nowhere
        else.
        """
        url, status = response.request.url, response.status_code
        if "location" not in response.headers:
            raise SettingsError(f"{self.address} answers with a redirect ({status}) that names no address")
        to = url.join(response.headers["location"])
        is_same = (to.scheme, to.host, to.port) == (url.scheme, url.host, url.port)
        if status in followed and (is_same or (url.scheme, to.scheme, to.host) == ("http", "https", url.host)):
            return str(to)
        address = _shown(str(to))
        raise SettingsError(
            f"{self.address} redirects to {address} ({status}); nothing is sent there. If that is the right endpoint, "
            f"set {self._flags.address}={address.removesuffix('/chat/completions')}"
        )

    async def _failure(
        self, error: Exception, asked: Mapping[str, Any], model: str, redirects: list[str]
    ) -> Unanswered | None:
        """What went wrong with a request; None: the endpoint refuses it for its content."""
        if isinstance(error, openai.APIStatusError):
            if 300 <= error.status_code < 400:
                return self._redirect(error.response, model, redirects)
            if named := _options_named(error, asked):
                self.refused_options |= named
                return SendAgain(SettingsError(_words_of(error)))
            if refuses_content(error.status_code, error.code):
                return None
            served = await self._served() if error.status_code == 404 else ""
            return self._explain(error, model, served)
        if isinstance(error, TimeoutError):
            return self._unreachable(f"no answer in time, {self._timeout:g} s", sent=True)
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        sent = not any(isinstance(cause, _BEFORE_SENDING) for cause in causes)
        return self._unreachable(str(causes[-1]) or type(causes[-1]).__name__, sent=sent)

    async def close(self) -> None:
        if "client" in vars(self):
            await self.client.close()

    async def models(self) -> list[dict[str, Any]] | None:
        """What /models lists; None: it lists nothing that can be read. Raises Unanswered, and SettingsError."""
        try:
            async with asyncio.timeout(CONNECT):
                answer = await self.client.get("/models", cast_to=httpx2.Response)
            listed = as_dict(json.loads(answer.content)).get("data")
        except _FAILURES as error:
            if isinstance(error, openai.APIStatusError):
                if 300 <= error.status_code < 400:  # the key goes nowhere else
                    return None
                raise self._explain(error, "") from error
            failure = await self._failure(error, {}, "", [])
            assert failure is not None
            raise failure from error
        except (ValueError, RecursionError):
            return None
        return [as_dict(one) for one in listed] if isinstance(listed, list) else None

    async def _served(self) -> str:
        """The models that it says it has, as words for a message; empty where it does not say."""
        try:
            listed = await self.models()
        except Unanswered:
            return ""
        if listed is None:
            return ""
        names = [_plain(name)[:LONGEST_NAME] for one in listed if isinstance(name := one.get("id"), str)]
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        return f"; it serves {', '.join(names[:10])}{more}" if names else "; it says that it serves no model"

    def _explain(self, error: openai.APIStatusError, model: str, served: str = "") -> Unanswered:
        """What a refusal means, and whether the same request may pass later."""
        status, said, headers = error.status_code, _words_of(error), error.response.headers
        wait = retry_after(headers)
        match status:
            case 401 | 403:
                key = "AZURE_OPENAI_API_KEY" if self._is_azure else self._flags.key
                if key not in os.environ and self._given:
                    return Unanswered(SettingsError(f"{self.address} asks for a key: set {key} ({said})"), whole=True)
                return Unanswered(SettingsError(f"{self.address} refuses the key in {key} ({said})"), whole=True)
            case 404:
                what = f"{self.address} knows no model {self._flags.model}{model}, or has no /chat/completions"
                return Unanswered(SettingsError(f"{what}{served}; most addresses end in /v1 ({said})"), whole=True)
            case _ if status == 402 or error.code == "insufficient_quota":
                what = f"{self.address}: the account of this key has no money left ({said})"
                return Unanswered(SettingsError(what), whole=True)
            case 413:
                smaller = "send smaller images" if self._given else "lower --image-side"
                what = f"{self.address} refuses a request as too large ({said}): {smaller}, or raise its limit"
                return Unanswered(SettingsError(what))
            case 408 | 409 | 425 | 429:
                self.rate.refused(headers)
                until = f"; Retry-After: {headers['retry-after']}" if "retry-after" in headers else ""
                what = f"{self.address} turns requests away for now ({said}{until})"
                what += f": wait, or lower {self._flags.at_once}" if self._flags.at_once else ": wait"
            case _ if status >= 500:
                self.rate.pause(wait or 0.0)
                what = f"{self.address} fails for now ({said})"
            case _:
                return Unanswered(SettingsError(f"{self.address} refuses the request itself ({said})"))
        # A pause longer than we sit out is left to whoever starts this again.
        too_long = (wait or 0.0) > LONGEST_PAUSE
        billed, whole = status in _PERHAPS_ANSWERED, too_long or status == 429
        return Unanswered(TemporaryError(what), again=not too_long, billed=billed, whole=whole)

    def _unreachable(self, why: str, *, sent: bool) -> Unanswered:
        what = f"{self.address} cannot be reached ({why}): is {self._flags.address} right, and is the server up?"
        return Unanswered(TemporaryError(what), again=True, sent=sent, billed=sent, whole=not sent)

    def _strange(self, data: bytes) -> VcotError:
        begins = redacted(data[:4000].decode(errors="replace"))[:80]
        said = f"{self.address} answered with something that is not a chat completion: {begins!r}"
        if self._understood:
            return TemporaryError(said)
        what = f"{self._flags.address} should name an OpenAI-compatible endpoint, mostly ending in /v1"
        return SettingsError(f"{said}; {what}")


async def body_of(request: Request, images: ImagePacker) -> dict[str, Any]:
    """A request as the JSON of a chat completion's, images as data URLs. Raises ImageError: one cannot be had."""

    async def content(parts: Iterable[Part]) -> list[dict[str, Any]]:
        return [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": await images.url(part)}}
            for part in parts
        ]

    messages: list[dict[str, Any]] = []
    if request.prompt.text:
        messages.append({"role": "system", "content": request.prompt.text})
    for turn in request.turns:
        # Several servers take a reply as a plain text alone.
        said = "".join(map(str, turn.parts)) if turn.role == "assistant" else await content(turn.parts)
        messages.append({"role": turn.role, "content": said})
    messages.append({"role": "user", "content": await content(request.parts)})
    body: dict[str, Any] = {
        "model": request.model, "max_completion_tokens": request.reply_tokens, "messages": messages, **request.options
    }  # fmt: skip
    if request.schema is not None:
        named = {"name": request.purpose, "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    return body | ({} if request.temperature is None else {"temperature": request.temperature})


_NEEDED = {"model", "messages", "max_completion_tokens", "temperature"}
_SCHEMA = ("response_format", "json_schema", "structured output", "guided")


def _options_named(error: openai.APIStatusError, asked: Iterable[str]) -> set[str]:
    """Of the fields that were sent, those that an endpoint refuses, and that it can be asked without."""
    said = f"{error.message} {error.body}".casefold()
    status = error.status_code

    def named(field: str) -> bool:
        if field == "response_format":
            return status in (400, 415, 422, 501) and any(name in said for name in _SCHEMA)
        # 403: of a model that keeps its logprobs to itself.
        return status in (400, 403, 422, 501) and re.search(rf"\b{re.escape(field)}\b", said) is not None

    return {field for field in {*asked} - _NEEDED if named(field)}


def refuses_content(status: Any, code: Any) -> bool:
    """Return True if a refusal is about the content of the row."""
    return status in (400, 422) and code in _CONTENT_CODES


def _shown(address: str) -> str:
    """Return an address for a message, without its query, which may be signed."""
    return redacted(address.partition("?")[0])


def _words_of(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    message = body.get("message") or (inner.get("message") if isinstance(inner, dict) else None)
    message = message or body.get("detail") or error.message  # the middle one: as FastAPI's own refusals have it
    # Redacted before it is cut: half a key would not be recognised.
    return f"{error.status_code}: {redacted(' '.join(str(message).split()))[:200]}"


def _check_key(name: str, key: str) -> None:
    if not key.isascii() or not key.isprintable() or key != key.strip():
        what = f"{name} of {len(key)} characters holds one that no key has"
        raise SettingsError(f"{what} (a line break at its end, perhaps)")
    learn(key)


# --- what the bytes of an answer say


def read_completion(data: bytes, model: str, seconds: float, charset: str | None = None) -> Completion | None:
    """What the bytes of an answer say, whatever a server leaves out; None if they are no chat completion. `charset`:
    as declared, for JSON that is not in Unicode.

    What is longer than LONGEST_BODY is a reply that was cut off, and not parsed: the event loop, and every other
    request with it, would wait. Nor is it asked for again, which would cost as much and bring as much.
    """
    if len(data) > LONGEST_BODY:
        begins = _plain(data[:4000].decode(errors="replace"))[:80]
        return Completion(text=begins, model=model, finish_reason="length", seconds=round(seconds, 3))
    try:
        answer = json.loads(data.decode(charset) if charset and not _is_unicode(data) else data)
    except (ValueError, LookupError, RecursionError):
        return None
    return completion_of(answer, model, seconds)


def _is_unicode(data: bytes) -> bool:
    try:
        data.decode(json.detect_encoding(data))
    except UnicodeDecodeError:
        return False
    return True


def _unreadable(answer: httpx2.Response) -> str | None:
    """Return why no answer of this endpoint can be read; None if the next one may be readable."""
    data, kind = answer.content.lstrip(), answer.headers.get("content-type", "")
    if (encoding := answer.headers.get("content-encoding", "").strip().casefold()) not in _DECODED:
        return f"a compressed body (Content-Encoding: {encoding[:40]}) that was not requested: turn that off there"
    if kind.casefold().startswith("text/event-stream") or data.startswith((b"data:", b"event:")):
        return "an event stream although stream is not set: turn streaming off at the server"
    if data.startswith(b"{") and not _is_unicode(data):
        return f"JSON that is not UTF-8 (Content-Type: {_plain(kind)[:80]}): have it declare its charset, or send UTF-8"
    return None


def completion_of(answer: Any, model: str, seconds: float) -> Completion | None:
    """The same, of the JSON itself. Its tokens are those that the endpoint counted; 0: it did not."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        return None
    choice = as_dict(choices[0] if choices else None)
    message, usage = as_dict(choice.get("message")), as_dict(answer.get("usage"))
    finish = "refusal" if message.get("refusal") else choice.get("finish_reason")
    named, text = answer.get("model"), _text(message.get("content"))
    if len(text) > LONGEST_TEXT:
        text, finish = text[:LONGEST_TEXT], "length"
    if error := _error_in(choice):
        text, finish = error, ERROR
    return Completion(
        text=text,
        model=_plain(named)[:LONGEST_NAME] if isinstance(named, str) and named else model,
        finish_reason=_plain(finish)[:LONGEST_NAME] if isinstance(finish, str) else "",
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_output_tokens(usage),
        tokens_cached=_count(as_dict(usage.get("prompt_tokens_details")).get("cached_tokens")),
        seconds=round(seconds, 3),
        logprobs=_logprobs(choice),
        other_fields=tuple(name for name in OTHER_FIELDS if message.get(name)),
    )


def _error_in(choice: dict[str, Any]) -> str:
    """Return the error that a gateway reports in a reply of HTTP status 200; "" where there is none."""
    error = choice.get("error")
    if not error and choice.get("finish_reason") != ERROR:
        return ""
    words = as_dict(error).get("message") or as_dict(error).get("code") or "finish_reason: error"
    return _plain(" ".join(str(words).split()))[:LONGEST_NAME]


OTHER_FIELDS = ("reasoning_content", "reasoning", "tool_calls", "function_call", "refusal")
"""Fields of a message in which servers put what a model wrote, other than `content`."""


def _logprobs(choice: dict[str, Any]) -> tuple[float, ...] | None:
    """Of each generated token; None where the endpoint gives none, or one that is none."""
    tokens = as_dict(choice.get("logprobs")).get("content")
    if not isinstance(tokens, list) or not tokens:
        return None
    found = [as_dict(token).get("logprob") for token in tokens]
    if not all(isinstance(one, int | float) and math.isfinite(one) and one < 0.001 for one in found):
        return None
    return tuple(round(min(0.0, float(one)), 5) for one in found)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Delta:
    """What a chunk adds to a reply. tokens_out: of all of it, as the endpoint counts them at the end; 0: not said."""

    text: str
    logprobs: tuple[float, ...] | None
    finish_reason: str
    tokens_out: int


def delta_of(chunk: Any) -> Delta:
    """Whatever a server leaves out, or makes of it."""
    choices = as_dict(chunk).get("choices")
    choice = as_dict(choices[0] if isinstance(choices, list) and choices else None)
    finish = choice.get("finish_reason")
    return Delta(
        text=_text(as_dict(choice.get("delta")).get("content")),
        logprobs=_logprobs(choice),
        finish_reason=_plain(finish)[:LONGEST_NAME] if isinstance(finish, str) else "",
        tokens_out=_output_tokens(as_dict(as_dict(chunk).get("usage"))),
    )


def refused(model: str) -> Completion:
    """Of a request that an endpoint refuses for its content: a reply without text."""
    return Completion(text="", model=model, finish_reason="content_filter", cost=0.0)


_TEXT_PARTS = ("text", "output_text")


def _text(content: Any) -> str:
    """The text of a message: a string, or a list of parts, of which those of text count and reasoning does not."""
    if isinstance(content, list):
        parts = [part for part in map(as_dict, content) if part.get("type", "text") in _TEXT_PARTS]
        content = "".join(text for part in parts if isinstance(text := part.get("text"), str))
    return _plain(content) if isinstance(content, str) else ""


def _plain(text: str) -> str:
    """Without lone surrogates, which JSON may hold and UTF-8 may not, and without our keys, which an endpoint may echo:
    here, because whoever reads on may cut the text in the middle of one."""
    return redacted(text.encode("utf-8", "replace").decode())


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    """0 where it is no count; costs.py says what can be believed."""
    return value if type(value) is int and value > 0 else 0


def _output_tokens(usage: dict[str, Any]) -> int:
    """Return the tokens that are paid for as output, thinking included.

    Most endpoints count thinking inside `completion_tokens`. Some count it outside, which the total shows, or that more
    tokens were spent on thinking than on all of the completion.
    """
    prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    thinking = _count(as_dict(usage.get("completion_tokens_details")).get("reasoning_tokens"))
    if thinking > completion:
        completion += thinking
    return max(completion, _count(usage.get("total_tokens")) - prompt) if prompt else completion


class Rate:
    """How fast the endpoint may be asked.

    What is allowed a minute is learned from the headers of its answers (x-ratelimit-limit-requests, -tokens); how many
    requests at once, from its refusals: 429 makes it three quarters, and answers make it grow again. Retry-After stops
    everybody.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once, self.under_way = at_once, 0
        self._allowed = float(at_once)
        self._cut_at = -1.0
        self._limits: dict[str, AsyncLimiter] = {}
        self._paused_until = 0.0  # of time.monotonic
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[None]:
        """Holds one of the places for requests under way; who came first is served first. `tokens`: of the request and
        its reply, at most; they count against what is allowed a minute."""
        async with self._turn:
            while self.under_way >= max(1, int(self._allowed)):
                self._changed.clear()
                await self._changed.wait()
            self.under_way += 1
        try:
            for kind, limit in list(self._limits.items()):
                await limit.acquire(1 if kind == "requests" else min(tokens, limit.max_rate))
            while (left := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(left)
            yield
        finally:
            self.under_way -= 1
            self._changed.set()

    def answered(self, headers: Mapping[str, str]) -> None:
        self._allowed = min(float(self.at_once), self._allowed + GROWTH / self._allowed)
        self._learn(headers)

    def refused(self, headers: Mapping[str, str]) -> None:
        """429: fewer at once; those that were under way together count as one refusal."""
        now = time.monotonic()
        if now - self._cut_at > 1:
            self._allowed, self._cut_at = max(1.0, self._allowed * 3 / 4), now
        self._learn(headers)
        self.pause(retry_after(headers) or 0.0)

    def pause(self, seconds: float) -> None:
        self._paused_until = max(self._paused_until, time.monotonic() + min(seconds, LONGEST_PAUSE))

    def _learn(self, headers: Mapping[str, str]) -> None:
        for kind in ("requests", "tokens"):
            a_minute = headers.get(f"x-ratelimit-limit-{kind}", "")
            if a_minute.isdecimal() and 0 < int(a_minute) < 10**9:
                rate = int(a_minute) * BURST / 60
                size, seconds = (rate, BURST) if rate >= 1 else (1.0, 60 / int(a_minute))
                known = self._limits.get(kind)
                if known is None or (known.max_rate, known.time_period) != (size, seconds):
                    self._limits[kind] = AsyncLimiter(size, seconds)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; of Retry-After-Ms, or of Retry-After in seconds or as a date."""
    written = headers.get("retry-after", "")
    if (milliseconds := _number(headers.get("retry-after-ms", ""))) is not None:
        return milliseconds / 1000
    if (seconds := _number(written)) is not None:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(written).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _number(written: str) -> float | None:
    return float(written) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", written) else None
