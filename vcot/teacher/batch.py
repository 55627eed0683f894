"""A batch at an OpenAI endpoint: a file of requests goes up, and a day later at most their replies come down.

All calls of the client that concern batches are here; which requests, and what becomes of replies, batches.py knows.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx2
import openai
from openai.types import Batch

from vcot.errors import SettingsError, TemporaryError
from vcot.redaction import redacted
from vcot.teacher.endpoint import Endpoint

MOST_LINES, MOST_BYTES = 50_000, 200_000_000
"""Of one file, as the provider allows."""

URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
NAME = "vcot"
"""Under which a batch says whose it is, in its metadata."""

_LOOKED_THROUGH = 1000
"""Batches of this account among which one of ours is looked for."""

T = TypeVar("T")


class Gone(Exception):
    """The endpoint does not know a batch, or a file of one, any more; or never did."""


class BatchEndpoint:
    """Args: the endpoint; its first one where several share the work. For its event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        # Of httpx: it says beforehand how long a file is, and aiohttp does not.
        http = openai.DefaultAsyncHttpxClient()
        self._client = endpoint.client.with_options(max_retries=5, timeout=600, http_client=http)
        self._once = self._client.with_options(max_retries=0)

    async def submit(self, path: Path, name: str) -> str:
        """A file of requests becomes a batch; its id. Not tried again: `find` tells whether it was made."""
        file = await self._said(lambda: self._client.files.create(file=path, purpose="batch"))
        made = await self._said(
            lambda: self._once.batches.create(
                completion_window="24h", endpoint=URL, input_file_id=file.id, metadata={NAME: name}
            )
        )
        return made.id

    async def find(self, name: str) -> str | None:
        """The id of the batch that was submitted under this name, if it was."""

        async def look() -> str | None:
            seen = 0
            async for batch in self._client.batches.list(limit=100):
                seen += 1
                if (batch.metadata or {}).get(NAME) == name:
                    return batch.id
                if seen == _LOOKED_THROUGH:
                    break
            return None

        return await self._said(look)

    async def state(self, batch: str) -> Batch:
        """Raises Gone."""

        async def look() -> Batch:
            try:
                return await self._client.batches.retrieve(batch)
            except openai.NotFoundError as error:
                raise Gone(error.message) from error

        return await self._said(look)

    async def lines(self, file: str) -> AsyncIterator[dict[str, Any]]:
        """The lines of a file of replies or errors, as they come; what is no JSON object is passed over.

        Raises Gone.
        """
        try:
            async with self._client.files.with_streaming_response.content(file) as answer:
                async for line in answer.iter_lines():
                    try:
                        said = json.loads(line)
                    except (ValueError, RecursionError):
                        continue
                    if isinstance(said, dict):
                        yield said
        except openai.NotFoundError as error:
            raise Gone(error.message) from error
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            raise self._explain(error) from error

    async def close(self) -> None:
        await self._client.close()

    async def _said(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await call()
        except openai.OpenAIError as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, openai.APIStatusError) and _stays(error):
            return SettingsError(f"{self.address} takes no batch ({error.message}); run without --batch")
        return TemporaryError(f"{self.address}: {error}; what is submitted goes on there: run the same command again")


def why_failed(batch: Batch) -> str:
    """What an endpoint has against a batch that it refuses as a whole."""
    errors = (batch.errors.data if batch.errors else None) or []
    # Redacted before it is cut: half a key would not be known again.
    return redacted("; ".join(error.message or "" for error in errors[:3]))[:500] or "no reason given"


def _stays(error: openai.APIStatusError) -> bool:
    """Whether the same call will be refused again."""
    passes = error.status_code in (408, 409, 425, 429) or error.status_code >= 500
    return not passes or error.code == "insufficient_quota"
