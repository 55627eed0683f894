"""One OpenAI-compatible endpoint, asked for chat completions: what it says becomes a Completion, and what goes
wrong becomes one of our errors, in words that say what to do.

Trying again is left to the client alone (429, 408, 409, 5xx, broken connections; growing pauses, Retry-After
honoured up to two minutes), so that there is one mechanism with one limit. OPENAI_BASE_URL and OPENAI_API_KEY
are the client's own variables.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import httpx2
import openai

from vcot.errors import SettingsError, TemporaryError, VcotError
from vcot.records import Completion

_ROW_CODES = (
    "content_filter", "content_policy_violation", "invalid_image", "invalid_image_format", "invalid_image_url",
    "image_parse_error", "invalid_base64_image", "image_too_large", "image_too_small", "image_content_policy_violation",
    "unsupported_image_media_type", "context_length_exceeded", "string_above_max_length",
)  # fmt: skip
"""Codes of a refused request (400, 413, 422) that speak of this one row; any other speaks of our settings."""


class Endpoint:
    """Args: how often a request is tried again, and how many seconds one try may take.

    Nothing is opened, and no key is needed, before the first question: a run that finds all its replies kept
    asks nobody.
    """

    def __init__(self, *, retries: int, timeout: float) -> None:
        self.address = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self._retries, self._timeout = retries, timeout
        self._understood = False  # whether it ever answered with a chat completion

    @cached_property
    def _client(self) -> openai.AsyncOpenAI:
        if not self.address.startswith(("http://", "https://")):
            raise SettingsError(f"OPENAI_BASE_URL={self.address}: it should begin with http:// or https://")
        key = os.environ.get("OPENAI_API_KEY", "")
        if not key:
            raise SettingsError(
                "OPENAI_API_KEY is not set; give the key of the teacher's endpoint (any word where it asks for none)"
            )
        if not key.isascii() or not key.isprintable() or key != key.strip():
            raise SettingsError(
                f"OPENAI_API_KEY of {len(key)} characters holds one that no key has (a line break at its end, perhaps)"
            )
        limits = httpx2.Timeout(self._timeout, connect=min(self._timeout, 10.0))
        try:
            return openai.AsyncOpenAI(max_retries=self._retries, timeout=limits)
        except (httpx2.InvalidURL, ValueError) as error:
            raise SettingsError(f"OPENAI_BASE_URL={self.address}: it is no address ({error})") from error

    async def ask(self, request: Mapping[str, Any]) -> Completion:
        """The reply to one request (keyword arguments of `chat.completions.create`).

        A request that the endpoint refuses for its content is a Completion with finish reason
        "content_filter" and no text.

        Raises:
            SettingsError: no key, or an address that is none; key, model or parameters are refused; or this is
                no such endpoint.
            TemporaryError: it cannot be reached, or refuses for now, after all tries.
        """
        begun = time.monotonic()
        try:
            raw = await self._client.chat.completions.with_raw_response.create(**request)
        except openai.APIStatusError as error:
            if error.status_code in (400, 413, 422) and (error.code in _ROW_CODES or error.status_code == 413):
                return Completion(text="", model=request["model"], finish_reason="content_filter")
            raise self._explain(error, request["model"]) from error
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from error
        completion = read_completion(raw.content, request["model"], time.monotonic() - begun)
        if completion is None:
            raise self._strange(raw.content)
        self._understood = True
        return completion

    async def close(self) -> None:
        if "_client" in vars(self):
            await self._client.close()

    def _explain(self, error: openai.APIStatusError, model: str) -> VcotError:
        said = _words_of(error)
        match error.status_code:
            case 401 | 403:
                return SettingsError(f"{self.address} refuses the key in OPENAI_API_KEY ({said})")
            case 404:
                return SettingsError(
                    f"{self.address} knows no model --model {model}, or has no /chat/completions; "
                    f"most addresses end in /v1 ({said})"
                )
            case 408 | 409 | 429:
                wait = error.response.headers.get("retry-after")
                return TemporaryError(
                    f"{self.address} turns requests away for now ({said}{f'; Retry-After: {wait}' if wait else ''}): "
                    "wait, or lower --concurrency"
                )
            case status if status >= 500:
                return TemporaryError(f"{self.address} fails for now, after {self._retries + 1} tries ({said})")
            case _:
                return SettingsError(f"{self.address} refuses the request itself ({said})")

    def _unreachable(self, error: openai.APIConnectionError) -> TemporaryError:
        why = "no answer in time" if isinstance(error, openai.APITimeoutError) else str(error.__cause__ or error)
        return TemporaryError(
            f"{self.address} cannot be reached, after {self._retries + 1} tries ({why or type(error).__name__}): "
            "is OPENAI_BASE_URL right, and is the server up?"
        )

    def _strange(self, data: bytes) -> VcotError:
        said = f"{self.address} answered with something that is not a chat completion: {data[:80]!r}"
        if self._understood:
            return TemporaryError(said)
        return SettingsError(f"{said}; OPENAI_BASE_URL should name an OpenAI-compatible endpoint, mostly ending in /v1")


def read_completion(data: bytes, model: str, seconds: float) -> Completion | None:
    """What the bytes of an answer say, whatever a server leaves out; None if they are no chat completion."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        return None
    choice = _dict(choices[0] if choices else None)
    message, usage = _dict(choice.get("message")), _dict(answer.get("usage"))
    finish = "refusal" if message.get("refusal") else choice.get("finish_reason")
    named = answer.get("model")
    return Completion(
        text=_text(message.get("content")),
        model=_plain(named) if isinstance(named, str) and named else model,
        finish_reason=_plain(finish) if isinstance(finish, str) else "",
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
        seconds=round(seconds, 3),
    )


def _text(content: Any) -> str:
    """The text of a message: a string, or a list of parts of which those with a text count."""
    if isinstance(content, list):
        content = "".join(t for part in content if isinstance(t := _dict(part).get("text"), str))
    return _plain(content) if isinstance(content, str) else ""


def _plain(text: str) -> str:
    """Without lone surrogates, which JSON may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode()


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _words_of(error: openai.APIStatusError) -> str:
    body = _dict(error.body)
    message = body.get("message") or _dict(body.get("error")).get("message") or error.message
    return f"{error.status_code}: {' '.join(str(message).split())[:200]}"
