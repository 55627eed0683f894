"""An OpenAI-compatible endpoint that streams scripted replies at a given rate, over real HTTP.

    with scripted_endpoint(lambda ask: Said("The <ref>disc</ref>…", rate=50)) as endpoint:
        endpoint.address            http://127.0.0.1:port/v1
        endpoint.asked              what it was sent, in order of arrival
        endpoint.asked[0].left      whether the client went away before the end
        endpoint.down = True        until it is set back, every request is refused with 503

`python -m tests.fakes.streaming [tokens a second]` runs one by itself and prints its address.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from PIL import Image

TOKEN = re.compile(r"<\|?/?\w+\|?>|\s*\w+|\s|.", re.S)


@dataclass
class Said:
    """A reply. rate: tokens a second; 0: all at once. wait: seconds before the first. cut_after: tokens after which the
    connection breaks."""

    text: str
    rate: float = 200.0
    wait: float = 0.0
    logprob: float | None = None
    cut_after: int | None = None


@dataclass
class Asked:
    body: dict[str, Any]
    sent: list[tuple[str, float]] = field(default_factory=list)  # each token, and when (time.time)
    ended: bool = False
    left: bool = False
    left_at: float = 0.0

    @property
    def words(self) -> str:
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else "\n".join(part["text"] for part in content if "text" in part)

    @property
    def images(self) -> list[Image.Image]:
        urls = [
            part["image_url"]["url"]
            for message in self.body["messages"]
            if not isinstance(message["content"], str)
            for part in message["content"]
            if part["type"] == "image_url"
        ]
        return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]

    def closed_at(self, tag: str = "</box>") -> float:
        """When the first such tag was sent."""
        return next(when for token, when in self.sent if token == tag)


class Endpoint:
    def __init__(self, script: Callable[[Asked], Said], vcot: dict[str, Any] | None) -> None:
        self.script, self.vcot = script, vcot
        self.asked: list[Asked] = []
        self.address, self.down = "", False

    async def models(self, _: web.Request) -> web.Response:
        if self.down:
            raise web.HTTPServiceUnavailable
        model = {"id": "small", "object": "model", "created": 0} | ({"vcot": self.vcot} if self.vcot else {})
        return web.json_response({"object": "list", "data": [model]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        if self.down:
            return web.json_response({"error": {"message": "down at /srv/models/secret", "code": 503}}, status=503)
        ask = Asked(await request.json())
        self.asked.append(ask)
        said = self.script(ask)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        tokens = TOKEN.findall(said.text)
        try:
            await asyncio.sleep(said.wait)
            begun = time.monotonic()
            for number, token in enumerate(tokens):
                if number == said.cut_after:
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                if said.rate and (left := begun + number / said.rate - time.monotonic()) > 0:
                    await asyncio.sleep(left)
                logprobs = None if said.logprob is None else {"content": [{"token": token, "logprob": said.logprob}]}
                choice = {"index": 0, "delta": {"content": token}, "logprobs": logprobs, "finish_reason": None}
                ask.sent.append((token, time.time()))
                await self._send(response, {"choices": [choice]})
            await self._send(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            if "stream_options" in ask.body:
                await self._send(response, {"choices": [], "usage": {"completion_tokens": len(tokens)}})
            await response.write(b"data: [DONE]\n\n")
            ask.ended = True
        except (ConnectionResetError, asyncio.CancelledError):
            ask.left, ask.left_at = True, time.time()
            raise
        return response

    @staticmethod
    async def _send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "small", **chunk}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


@contextmanager
def scripted_endpoint(
    script: Callable[[Asked], Said], *, vcot: dict[str, Any] | None = None, port: int = 0
) -> Iterator[Endpoint]:
    endpoint, ready, loop = Endpoint(script, vcot), threading.Event(), asyncio.new_event_loop()
    app = web.Application(client_max_size=1 << 28)
    app.add_routes([web.get("/v1/models", endpoint.models), web.post("/v1/chat/completions", endpoint.complete)])
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        endpoint.address = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield endpoint
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


DISCS = (
    "The <ref>red disc</ref><box>[100, 150, 400, 600]</box> is left of the <ref>blue ring</ref>"
    "<box>[560, 300, 900, 820]</box>, and nothing lies between them.\nAnswer: left"
)

if __name__ == "__main__":
    rate = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    with scripted_endpoint(lambda _: Said(DISCS, rate)) as endpoint:
        print(endpoint.address, flush=True)
        threading.Event().wait()
