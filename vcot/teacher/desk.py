"""The one Asker: a reply is looked up, else asked for, and kept the moment it arrives.

    request → kept reply
            → budget → endpoint → kept, then given

Whatever ends the process, nothing that was stored is paid for twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vcot.errors import BudgetSpent
from vcot.records import Completion
from vcot.teacher.endpoint import Endpoint
from vcot.teacher.pictures import Pictures
from vcot.teacher.replies import Replies
from vcot.teacher.request import Request


@dataclass
class Ledger:
    """What was used since the start. Tokens are those of every reply used, kept ones too; paid, of new ones."""

    requests: int = 0
    kept_replies_used: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_paid: int = 0


class Closing(Exception):
    """The work is being stopped: no new request."""


class Desk:
    """Args: where replies are kept, how pictures are packed, how many requests are under way at once; and the most
    that this process may ask for (None: no limit)."""

    def __init__(
        self,
        endpoint: Endpoint,
        replies: Replies,
        pictures: Pictures,
        *,
        concurrency: int = 8,
        max_requests: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.kept_in = replies.uri
        self._endpoint, self._replies, self._pictures = endpoint, replies, pictures
        self._slots = asyncio.Semaphore(concurrency)
        self._max_requests, self._max_tokens = max_requests, max_tokens
        self._ledger = Ledger()
        self._closing = False

    async def ask(self, request: Request, *, source: str) -> Completion:
        """See request.Asker. Raises Closing too, once `stop_asking` was called."""
        key = request.key()
        async with self._slots:
            if self._closing:
                raise Closing
            completion = await asyncio.to_thread(self._replies.get, key)
            if completion is not None:
                self._ledger.kept_replies_used += 1
            else:
                completion = await self._pay_for(key, request)
        self._ledger.tokens_in += completion.tokens_in
        self._ledger.tokens_out += completion.tokens_out
        return completion

    def stop_asking(self) -> None:
        self._closing = True

    def counts(self) -> Mapping[str, int]:
        return asdict(self._ledger)

    async def close(self) -> None:
        await self._endpoint.close()

    async def _pay_for(self, key: str, request: Request) -> Completion:
        body = await self._body(request)
        self._spend()
        completion = await self._endpoint.ask(body)
        self._ledger.tokens_paid += completion.tokens_in + completion.tokens_out
        return await asyncio.to_thread(self._replies.keep, key, completion)

    def _spend(self) -> None:
        """Counts one request. Raises BudgetSpent instead of going over the limit."""
        if self._max_requests is not None and self._ledger.requests >= self._max_requests:
            spent = f"--max-requests {self._max_requests}"
        elif self._max_tokens is not None and self._ledger.tokens_paid >= self._max_tokens:
            spent = f"--max-tokens {self._max_tokens}"
        else:
            self._ledger.requests += 1
            return
        raise BudgetSpent(
            f"{spent} is spent; the replies are kept in {self.kept_in}, so that a higher limit goes on from here"
        )

    async def _body(self, request: Request) -> dict[str, Any]:
        """Keyword arguments of `chat.completions.create`. Raises ImageError."""
        content: list[dict[str, Any]] = []
        for part in request.parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                content.append({"type": "image_url", "image_url": {"url": await self._pictures.url(part)}})
        body: dict[str, Any] = {
            "model": request.model,
            "max_completion_tokens": request.reply_tokens,
            "messages": [{"role": "system", "content": request.prompt.text}, {"role": "user", "content": content}],
        }
        if request.schema is not None:
            named = {"name": request.purpose, "strict": True, "schema": request.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body | ({} if request.temperature is None else {"temperature": request.temperature})
