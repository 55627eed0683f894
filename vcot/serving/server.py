"""The HTTP: `/v1/models`, `/v1/chat/completions`, `/health`, and errors in OpenAI's form."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from aiohttp import web

from vcot import logging
from vcot.errors import InputError, SettingsError
from vcot.grounding.ways import DIRECT
from vcot.serving.engine import Engine, Job, Piece, Place
from vcot.serving.model import ServedModel
from vcot.serving.reply import DONE, ReplyWriter, event
from vcot.serving.request import ChatRequest, Refused, TextPart, messages_of, read_request
from vcot.stage import Stop

GRACE = 20.0
"""Seconds for replies that are under way when the server is stopped; less than a pod is given (30)."""
HEAD_TIME = 30.0
"""Seconds in which the head of the first or next request must arrive on a connection; then it is closed."""
CHARACTERS_PER_TOKEN = 16
"""A text with more characters per token of the context is refused before it is tokenized. Real text has three to
five."""
UPLOAD_TIME = 30.0
"""Seconds that a request may take to arrive; it has a place in the queue meanwhile."""

QUEUE_LENGTH = "X-Queue-Length"
"""Header of a reply: requests that were waiting or computed when this one came."""


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that holds the address, so that a model is not loaded for a port that is taken.

    Raises SettingsError: it is taken, not this machine's, or not for this user.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((host, port))
        except OSError as error:
            raise SettingsError(f"--host {host} --port {port}: {error.strerror or error}; choose another") from None
        yield held


def serve(
    model: ServedModel, held: socket.socket, stop: Stop, *, queue: int, max_new_tokens: int, max_upload_bytes: int
) -> None:  # fmt: skip
    """Answers until a stop is asked for; then replies that are under way are finished, within GRACE seconds."""
    with Engine(model, queue) as engine:
        server = _Server(engine, max_new_tokens, max_upload_bytes)
        asyncio.run(server.run(held, stop))


class _Server:
    def __init__(self, engine: Engine, max_new_tokens: int, max_upload_bytes: int) -> None:
        self.engine, self.model = engine, engine.model
        self.max_new_tokens, self.max_upload_bytes = max_new_tokens, max_upload_bytes
        # One request at a time is read: its images, decoded, may take as much memory as the model.
        self.reader = ThreadPoolExecutor(1, "reader")

    async def run(self, held: socket.socket, stop: Stop) -> None:
        app = web.Application(client_max_size=self.max_upload_bytes, middlewares=[_errors])
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{name:.+}", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=GRACE / 2,
            keepalive_timeout=HEAD_TIME,
        )
        # aiohttp waits so long twice: for the handler, and once more after it has told it.
        await runner.setup()
        try:
            await web.SockSite(runner, held).start()
            host, port = held.getsockname()[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            logging.get().info("serving", model=self.model.name, address=f"{address}/v1", queue=self.engine.queue)
            while not stop.requested:
                await asyncio.sleep(0.1)
            logging.get().info("stopping", running=self.engine.running, waiting=self.engine.waiting)
            self.engine.close()
        finally:
            await runner.cleanup()
            self.reader.shutdown()

    # --- what is told of the server and its model

    async def health(self, _: web.Request) -> web.Response:
        engine = self.engine
        queue = {"waiting": engine.waiting, "running": engine.running, "limit": engine.queue}
        state = engine.state
        payload = {"status": state, "model": self.model.name, "queue": queue}
        return web.json_response(payload, status=200 if state == "ok" else 503)

    async def models(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name")
        if name is None:
            return web.json_response({"object": "list", "data": [self.model.described]})
        self._check_name(name)
        return web.json_response(self.model.described)

    def _check_name(self, name: str) -> None:
        if name != self.model.name:
            raise Refused(
                404, f"there is no model {name!r}; this server has {self.model.name!r}", param="model",
                code="model_not_found",
            )  # fmt: skip

    # --- replies

    async def chat(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            # Which also keeps out forms of other pages in this machine's browser.
            raise Refused(415, f"Content-Type: {request.content_type}; it should be application/json")
        if (request.content_length or 0) > self.max_upload_bytes:
            raise web.HTTPRequestEntityTooLarge(self.max_upload_bytes, request.content_length or 0)
        begun = time.monotonic()
        with self.engine.place() as place:
            try:
                async with asyncio.timeout(UPLOAD_TIME):
                    body = await request.read()
            except TimeoutError:
                raise Refused(408, f"the request did not arrive within {UPLOAD_TIME:g} seconds") from None
            loop = asyncio.get_running_loop()
            told: asyncio.Queue[list[Piece] | Refused] = asyncio.Queue()

            def deliver(said: list[Piece] | Refused) -> None:
                with suppress(RuntimeError):  # the loop is over: so is whoever asked
                    loop.call_soon_threadsafe(told.put_nowait, said)

            with self.engine.reading():
                asked, job = await loop.run_in_executor(self.reader, self._read, body, deliver, place)
            place.submit(job)
            writer = ReplyWriter(self.model.name, self.model.card["digest"], asked.n)
            pieces = _until_the_end(told, job)
            headers = {QUEUE_LENGTH: str(place.before)}
            how = "left"
            try:
                if asked.stream:
                    response = await self._stream(request, asked, job, writer, pieces, headers)
                else:
                    said = [piece async for several in pieces for piece in several]
                    response = web.json_response(writer.whole(job, said), headers=headers)
                how = "answered"
            finally:
                logging.get().info(
                    how, tokens_in=job.prompt_tokens, tokens_out=job.reply_tokens, choices=asked.n,
                    seconds=round(time.monotonic() - begun, 3), before=place.before,
                )  # fmt: skip
            return response

    async def _stream(
        self, request: web.Request, asked: ChatRequest, job: Job, writer: ReplyWriter,
        pieces: AsyncIterator[list[Piece]], headers: dict[str, str],
    ) -> web.StreamResponse:  # fmt: skip
        response = web.StreamResponse(headers=headers | {"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        response.content_type, response.charset = "text/event-stream", "utf-8"
        await response.prepare(request)
        await response.write(writer.opening())
        try:
            async for several in pieces:
                if chunk := writer.chunk(job, several):
                    await response.write(chunk)
        except Refused as error:
            await response.write(event(error.body))
        else:
            if asked.stream_options.include_usage:
                await response.write(writer.usage_chunk(job))
            await response.write(DONE)
        await response.write_eof()
        return response

    # --- in the reader's thread

    def _read(self, body: bytes, deliver: Callable[[Any], None], place: Place) -> tuple[ChatRequest, Job]:
        place.check_present()
        asked = read_request(body)
        place.check_present()
        self._check_name(asked.model)
        encoder, contract, context = self.model.encoder, self.model.encoder.contract, self.model.context
        if asked.images and contract.mode == "text":
            raise Refused(400, f"{self.model.name} was made without images and is shown none", param="messages")
        # Before they are decoded: each is enlarged to as many pixels as the model sees at least.
        least = asked.images * max(1, contract.min_pixels // contract.factor**2)
        if least > context:
            raise Refused(
                400, f"{asked.images} images are {least} tokens at least, more than the {context} that "
                f"{self.model.name} was made for", param="messages", code="context_length_exceeded",
            )  # fmt: skip
        if asked.characters > CHARACTERS_PER_TOKEN * context:
            why = f"{asked.characters:,} characters are more than the {context} tokens {self.model.name} was made for"
            raise Refused(400, why, param="messages", code="context_length_exceeded")
        messages = messages_of(asked, check=place.check_present)
        place.check_present()
        rationale = bool(contract.roles) and not _asks_for_the_answer_alone(asked)
        try:
            batch = encoder.conversation(messages, rationale=rationale)
        except (InputError, ValueError) as error:  # a template that knows no system message; an image of 1 x 4000
            raise Refused(400, str(error), param="messages", code="invalid_value") from None
        length = batch["input_ids"].shape[1]
        wanted = asked.reply_tokens or min(self.max_new_tokens, max(context - length, 1))
        if wanted > self.max_new_tokens:
            raise Refused(
                400, f"{wanted} tokens of reply; this server allows {self.max_new_tokens} (--max-new-tokens)",
                param="max_completion_tokens" if asked.max_completion_tokens else "max_tokens", code="invalid_value",
            )  # fmt: skip
        if length + wanted > context:
            raise Refused(
                400, f"{length} tokens of prompt, those of images among them, and {wanted} of reply are more than the "
                f"{context} that {self.model.name} was made for", param="messages", code="context_length_exceeded",
            )  # fmt: skip
        seed = secrets.randbits(63) if asked.seed is None else asked.seed % 2**64
        return asked, Job(
            batch, length, wanted, asked.temperature, asked.n if asked.temperature else 1, seed, deliver,
            rationale=rationale, stops=asked.stops, top=asked.top_logprobs if asked.logprobs else None,
        )  # fmt: skip


def _asks_for_the_answer_alone(asked: ChatRequest) -> bool:
    """As models whose rationale is a turn of its own are trained and evaluated: by this line below the question."""
    texts = [part.text for part in asked.messages[-1].content if isinstance(part, TextPart)]
    return bool(texts) and texts[-1].rstrip().rpartition("\n")[2] == DIRECT


async def _until_the_end(told: asyncio.Queue[list[Piece] | Refused], job: Job) -> AsyncIterator[list[Piece]]:
    """What the engine says of a job. Raises Refused: it was turned away, or the model failed."""
    left = job.samples
    while left:
        said = await told.get()
        if isinstance(said, Refused):
            raise said
        left -= sum(piece.finish is not None for piece in said)
        yield said


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:  # fmt: skip
    """Every error as OpenAI's object; of what was not foreseen no more than that it happened."""
    try:
        return await handler(request)
    except Refused as error:
        refused = error
    except web.HTTPRequestEntityTooLarge as error:
        refused = Refused(413, f"{error.text}; see --max-upload-bytes", code="request_too_large")
    except web.HTTPException as error:
        what = f"{request.method} {request.path}: {error.reason}"
        refused = Refused(error.status, f"{what}; there are /v1/models, /v1/chat/completions and /health")
    except ConnectionError:
        raise
    except Exception:
        logging.get().exception("a request failed", path=request.path)
        refused = Refused(500, "this request failed; the server's log says more")
    return web.json_response(refused.body, status=refused.status, headers=refused.headers)
