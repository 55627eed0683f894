"""One OpenAI-compatible endpoint, asked once: what it says becomes a Completion, and what goes wrong becomes
Unanswered, in words that say what to do, or Again: this may pass.

The client speaks HTTP and knows keys and Azure; it tries nothing twice, because each try is paid for by itself and
the desk alone decides about it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any
from urllib.parse import quote

import aiohttp
import httpx2
import openai

from vcot.errors import SettingsError, TemporaryError, VcotError
from vcot.records import Completion
from vcot.redaction import redacted
from vcot.teacher.answers import read_completion
from vcot.teacher.body import without_schema
from vcot.teacher.rates import LONGEST_PAUSE, Rate, retry_after

_ROW_CODES = (
    "content_filter", "content_policy_violation", "invalid_image", "invalid_image_format", "invalid_image_url",
    "image_parse_error", "invalid_base64_image", "image_too_large", "image_too_small", "image_content_policy_violation",
    "unsupported_image_media_type", "context_length_exceeded", "string_above_max_length",
)  # fmt: skip
"""Codes of a refused request (400, 413, 422) that speak of this one row; any other speaks of our settings."""

_PERHAPS_ANSWERED = (408, 502, 504, 524)
"""A gateway gave up; what stands behind it may have answered, and be paid for it."""

_BEFORE_SENDING = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)

_JSON: Any = {"headers": {"Content-Type": "application/json"}}
CONNECT = 10.0
"""Seconds."""


class Unanswered(Exception):
    """A try that gave no reply.

    Args:
        trouble: what to tell if it is not made again.
        sent: whether the request left this process.
        billed: whether the endpoint may have answered all the same, and be paid for it.
        whole: whether it concerns all requests (the account, the model, the way there), and not perhaps this one.
    """

    at = ""  # address of the endpoint, once it is known

    def __init__(self, trouble: VcotError, *, sent: bool = True, billed: bool = False, whole: bool = False) -> None:
        super().__init__(str(trouble))
        self.trouble, self.sent, self.billed, self.whole = trouble, sent, billed, whole


class Again(Unanswered):
    """One that may be made again.

    Args:
        after: seconds after which the endpoint asked to be asked again.
    """

    def __init__(self, trouble: VcotError, *, after: float | None = None, **more: bool) -> None:
        super().__init__(trouble, **more)
        self.after = after


class SchemaRefused(Unanswered):
    """It knows no schemas, and will be asked without any from now on."""


class Endpoint:
    """Args: its address, how the client for it is made, how fast it may be asked, its share of the work, how many
    seconds one try may take, and the variable that holds its key.

    Nothing is opened, and no key is needed, before the first question: a run that finds all its replies kept
    asks nobody.
    """

    def __init__(
        self,
        address: str,
        client: Callable[[], openai.AsyncOpenAI],
        rate: Rate,
        *,
        weight: float,
        timeout: float,
        key: str = "OPENAI_API_KEY",
    ) -> None:
        self.address, self.rate, self.weight, self.asked = address, rate, weight, 0.0
        self._make_client, self._timeout, self._key = client, timeout, key
        self._understood = False  # whether it ever answered with a chat completion
        self._takes_schemas = True  # until it says otherwise; then the words of the prompt must do

    @cached_property
    def client(self) -> openai.AsyncOpenAI:
        """Raises SettingsError: no key, or an address that is none."""
        return self._make_client()

    async def ask(self, body: bytes, model: str) -> Completion | None:
        """The reply to one request, the JSON of a chat completion's; at most one request is sent.

        None: it refuses this one for its content, and is not paid.

        Raises:
            Again: it cannot be reached, is too slow, refuses for now, or says something strange.
            SchemaRefused: it is to be asked again at once.
            Unanswered: key, model or parameters are refused; or this is no such endpoint.
            SettingsError: no key, or an address that is none; nothing was sent.
        """
        client, begun, demanded = self.client, time.monotonic(), self._takes_schemas
        try:
            async with asyncio.timeout(self._timeout):
                answer = await _post(client, body if demanded else without_schema(body), model)
        except TimeoutError as error:
            raise self._unreachable(f"no answer in time, {self._timeout:g} s", sent=True) from error
        except openai.APIStatusError as error:
            if demanded and _knows_no_schemas(error):
                self._takes_schemas = False
                raise SchemaRefused(SettingsError(_words_of(error))) from error
            if refuses_the_row(error.status_code, error.code):
                return None
            raise self._explain(error, model) from error
        except (openai.APIConnectionError, aiohttp.ClientError) as error:
            causes = _causes(error)
            never_sent = any(isinstance(cause, _BEFORE_SENDING) for cause in causes)
            why = str(causes[-1]) or type(causes[-1]).__name__
            raise self._unreachable(why, sent=not never_sent) from error
        completion = read_completion(answer.content, model, time.monotonic() - begun)
        if completion is None:
            raise Again(self._strange(answer.content), billed=True)
        self._understood = True
        self.rate.answered(answer.headers)
        return completion

    async def close(self) -> None:
        if "client" in vars(self):
            await self.client.close()

    def _explain(self, error: openai.APIStatusError, model: str) -> Unanswered:
        """What a refusal means: one that stays, or Again."""
        said, headers = _words_of(error), error.response.headers
        match error.status_code:
            case 401 | 403:
                return Unanswered(SettingsError(f"{self.address} refuses the key in {self._key} ({said})"), whole=True)
            case 404:
                return Unanswered(
                    SettingsError(
                        f"{self.address} knows no model --model {model}, or has no /chat/completions; "
                        f"most addresses end in /v1 ({said})"
                    ),
                    whole=True,
                )
            case status if status == 402 or error.code == "insufficient_quota":
                return Unanswered(
                    SettingsError(f"{self.address}: the account of this key has no money left ({said})"), whole=True
                )
            case 408 | 409 | 429:
                self.rate.refused(headers)
                wait = headers.get("retry-after")
                trouble = TemporaryError(
                    f"{self.address} turns requests away for now ({said}{f'; Retry-After: {wait}' if wait else ''}): "
                    "wait, or lower --concurrency"
                )
            case status if status >= 500:
                if (seconds := retry_after(headers)) is not None:
                    self.rate.pause(seconds)
                trouble = TemporaryError(f"{self.address} fails for now ({said})")
            case _:
                return Unanswered(SettingsError(f"{self.address} refuses the request itself ({said})"))
        after = retry_after(headers)
        whole = error.status_code == 429 or (after or 0) > LONGEST_PAUSE
        return Again(trouble, billed=error.status_code in _PERHAPS_ANSWERED, whole=whole, after=after)

    def _unreachable(self, why: str, *, sent: bool) -> Again:
        trouble = TemporaryError(
            f"{self.address} cannot be reached ({why}): is OPENAI_BASE_URL right, and is the server up?"
        )
        return Again(trouble, sent=sent, billed=sent, whole=not sent)

    def _strange(self, data: bytes) -> VcotError:
        begins = redacted(data[:4000].decode(errors="replace"))[:80]
        said = f"{self.address} answered with something that is not a chat completion: {begins!r}"
        if self._understood:
            return TemporaryError(said)
        return SettingsError(f"{said}; OPENAI_BASE_URL should name an OpenAI-compatible endpoint, mostly ending in /v1")


def _knows_no_schemas(error: openai.APIStatusError) -> bool:
    """Whether it is the demanded shape of the reply that an endpoint refuses."""
    said = _words_of(error).casefold()
    return error.status_code in (400, 415, 422, 501) and any(
        name in said for name in ("response_format", "json_schema", "structured output", "guided")
    )


def refuses_the_row(status: Any, code: Any) -> bool:
    """Whether a refusal is about what was asked, and not about how we ask."""
    return status == 413 or (status in (400, 422) and code in _ROW_CODES)


async def _post(client: openai.AsyncOpenAI, body: bytes, model: str) -> httpx2.Response:
    azure = isinstance(client, openai.AsyncAzureOpenAI)
    path = f"/deployments/{quote(model, safe='')}/chat/completions" if azure else "/chat/completions"
    return await client.post(path, content=body, cast_to=httpx2.Response, options=_JSON)


def _causes(error: BaseException) -> list[BaseException]:
    """The error, what it came from, and so on."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    return chain


def _words_of(error: openai.APIStatusError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    message = body.get("message") or (inner.get("message") if isinstance(inner, dict) else None) or error.message
    # Redacted before it is cut: half a key would not be known again.
    return f"{error.status_code}: {redacted(' '.join(str(message).split()))[:200]}"
