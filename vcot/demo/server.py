"""The page's own server: files without a build step, and one request that streams.

    GET  /             the page; /page.js, /page.css, /icon.svg; /examples/<n>
    GET  /about        the model, its card, what may be asked, and limits
    POST /ask          multipart: image, question, ways, samples, blank → server-sent events; gone when the client is

Every event is JSON with `on`, and `reply`, its number, where it is of one: `image`, `reply` (what will be asked), then
`waiting`, those of `model.reply`, `failed`; `vote` of several samples; `end`.

It believes nobody: an image is bounded in bytes and in pixels before it is decoded, names that are not its own are not
answered to (a page elsewhere could have its name point here), nor requests that another page sends. What goes wrong is
said in words of its own; the log has the rest.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.parser import BytesHeaderParser
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from vcot import logging
from vcot.demo.examples import Example
from vcot.demo.model import WAYS, Asked, StreamedModel, vote
from vcot.demo.queue import Queue
from vcot.distill.endpoint import Unanswered
from vcot.errors import VcotError
from vcot.evaluation.config import Way
from vcot.storage import Store, images, join
from vcot.storage.images import DecodedImage, ImageError, Reason

MOST_REPLIES = 12  # to one question
MOST_WAITING = 100  # replies in the queue
MOST_ASKED = 40  # questions at a time, with their files in memory
MOST_HELD = 300_000_000  # pixels of their images, decoded; 0.9 GB
LONGEST_QUESTION = 4_000  # characters
UPLOAD_TIME = 120.0  # seconds
HEAD_TIME = 30.0  # seconds in which the head of the first or next request must arrive on a connection
RETRY_AFTER = 5  # seconds, for clients that were answered with 503
DECODED_AT_ONCE = 2  # images; each may take 350 MB meanwhile

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}

STATIC = {
    "/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
    "/reply.js": ("reply.js", "text/javascript"), "/share.js": ("share.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"), "/icon.svg": ("icon.svg", "image/svg+xml"),
}  # fmt: skip

REFUSED_IMAGE: Mapping[Reason, str] = {
    "not-an-image": "This file is no image.",
    "unsupported-format": "This kind of image cannot be read; JPEG, PNG, WebP, GIF and BMP can.",
    "truncated": "This image ends too early; it may not have been copied whole.",
    "broken": "This image is damaged.",
    "too-large": "This image has too many pixels.",
}


@dataclass(frozen=True)
class Limits:
    """bytes, pixels: of an image. at_once: replies that are written at a time."""

    bytes: int
    pixels: int
    at_once: int


class Refused(Exception):
    """What the page says instead of an answer, with the status of the response."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def _busy() -> Refused:
    return Refused(503, "Too many are asking. Try again in a moment.")


class Page:
    """names: hosts that it answers to, beside localhost and addresses by number. keep_uri: where images and replies go;
    None: nowhere. examples: called once, when the page starts."""

    def __init__(
        self, model: StreamedModel, limits: Limits, *, examples: Sequence[Example] = (), names: Sequence[str] = (),
        keep_uri: str | None = None, store: Store | None = None,
    ) -> None:  # fmt: skip
        self.model, self.limits, self.examples = model, limits, examples
        self.queue = Queue(limits.at_once)
        self._longest_body = limits.bytes + (1 << 16)
        self._names = {"localhost", *(name.lower() for name in names)}
        self._keep_uri, self._store = keep_uri, store or Store()
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)
        self._connecting = asyncio.Lock()
        self._not_ready = ""
        self._asked = self._held = 0  # questions under way, and the pixels of their images
        self._keeping: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        app = web.Application(
            middlewares=[self._guard], handler_args={"max_field_size": 16384}, client_max_size=self._longest_body
        )
        for path in STATIC:
            app.router.add_get(path, self._static)
        app.router.add_get(r"/examples/{number:\d{1,3}}", self._example)
        app.router.add_get("/about", self._about)
        app.router.add_get("/health", self._health)
        app.router.add_post("/ask", self._ask)
        app.on_response_prepare.append(_with_headers)
        app.on_cleanup.append(self._kept)
        return app

    def runner(self) -> web.AppRunner:
        """Return what serves the page. A client that closes the page ends its request to the model."""
        return web.AppRunner(
            self.app(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0, keepalive_timeout=HEAD_TIME
        )

    # --- who is answered

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self._judge(request)
            return await handler(request)
        except Refused as refused:
            headers = {"Retry-After": str(RETRY_AFTER)} if refused.status == 503 else None
            return web.json_response({"message": refused.message}, status=refused.status, headers=headers)
        except web.HTTPException as error:
            return web.json_response({"message": error.reason}, status=error.status)
        except ConnectionResetError:
            raise
        except Exception:
            logging.get().error("a request failed", path=request.path)
            traceback.print_exc()
            return web.json_response({"message": "Something went wrong here; the server's log says what."}, status=500)

    def _judge(self, request: web.Request) -> None:
        """Raises Refused: another host's name, or another page's request."""
        host = _host(f"//{request.host}")
        if request.path != "/health" and not (host in self._names or _is_address(host)):
            raise Refused(403, "This server does not answer to that name.")
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != request.host.lower()
        if request.method != "GET" and (foreign or site not in ("none", "same-origin")):
            raise Refused(403, "This server answers to its own page alone.")

    # --- what it shows

    async def _static(self, request: web.Request) -> web.Response:
        name, kind = STATIC[request.path]
        text = files("vcot.demo").joinpath("static", name).read_text("utf-8")
        return web.Response(text=text, content_type=kind)

    async def _example(self, request: web.Request) -> web.Response:
        number = int(request.match_info["number"])
        if number >= len(self.examples):
            raise web.HTTPNotFound
        example = self.examples[number]
        return web.Response(body=example.data, content_type=example.kind)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _about(self, _: web.Request) -> web.Response:
        """Also how it is heard that the model's server is back."""
        ready = await self._is_ready()
        learned = self.model.learned
        ways = [
            {"name": w, "about": WAYS[w], "learned": learned is None or w in (*learned, "look-again")} for w in WAYS
        ]
        return web.json_response(
            {
                "model": self.model.name, "ready": ready, "ways": ways, "most_replies": MOST_REPLIES,
                "bytes": self.limits.bytes, "pixels": self.limits.pixels, "question": LONGEST_QUESTION,
                "keeps": self._keep_uri is not None, "card": _card(self.model),
                "examples": [{"title": e.title, "question": e.question} for e in self.examples],
            }
        )  # fmt: skip

    async def _is_ready(self) -> bool:
        async with self._connecting:
            if not self.model.connected:
                try:
                    await self.model.connect()
                except (Unanswered, VcotError) as error:
                    why = str(error.trouble if isinstance(error, Unanswered) else error)
                    if why != self._not_ready:  # once, however often the page asks
                        logging.get().warning("the model cannot be asked yet", why=why)
                    self._not_ready = why
            return self.model.connected

    # --- what it is asked

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        if self._asked >= MOST_ASKED:
            raise _busy()
        self._asked += 1
        try:
            return await self._answer(request)
        finally:
            self._asked -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        data, fields = await self._read(request)
        question, ways = fields.get("question", "").strip(), fields.get("ways", "ground").split(",")
        number = fields.get("samples", "1")
        samples = int(number) if number in map(str, range(1, MOST_REPLIES + 1)) else 0
        if not question:
            raise Refused(400, "What do you want to know? The question is empty.")
        asked_ways: list[Way] = [way for way in WAYS if way in ways]
        if not samples or len(asked_ways) != len({*ways}) or samples * len(asked_ways) > MOST_REPLIES:
            raise Refused(400, f"At most {MOST_REPLIES} replies can be asked for, in ways that the page knows.")
        if not await self._is_ready():
            raise Refused(503, "The model is not there yet, or its server is down. Try again in a moment.")
        if self.queue.waiting + samples * len(asked_ways) > MOST_WAITING:
            raise _busy()
        replies = [(way, None if samples == 1 else draw) for way in asked_ways for draw in range(samples)]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        response.enable_chunked_encoding()
        async with self._decoded(data) as image:
            asked = Asked(question, image, blank=fields.get("blank") == "yes")
            await response.prepare(request)
            done = await self._stream(response, asked, replies)
        if self._keep_uri is not None:  # nobody waits for it, and who leaves does not end it
            keeping = asyncio.create_task(asyncio.to_thread(self._keep, self._keep_uri, data, asked, replies, done))
            self._keeping.add(keeping)
            keeping.add_done_callback(self._keeping.discard)
        return response

    @asynccontextmanager
    async def _decoded(self, data: bytes) -> AsyncIterator[DecodedImage]:
        """The image, counted among what is held from before it is decoded. Raises Refused."""
        most, held = self.limits.pixels, 0
        try:
            try:
                width, height = images.probe(data, "upload", max_pixels=most)
                if max(width, height) > 200 * min(width, height):
                    raise Refused(400, "This image is too long and thin: one side is more than 200 times the other.")
                if self._held and self._held + width * height > MOST_HELD:
                    raise _busy()
                self._held += (held := width * height)
                async with self._decoding:
                    image = await asyncio.to_thread(
                        images.decode, data, "upload", max_pixels=most, budget=self.model.budget
                    )
            except ImageError as error:
                raise Refused(400, REFUSED_IMAGE.get(error.reason, REFUSED_IMAGE["broken"])) from None
            yield image
        finally:
            self._held -= held

    async def _read(self, request: web.Request) -> tuple[bytes, dict[str, str]]:
        """The image and the other fields. Raises Refused: too large, or not what the page sends."""
        too_large = Refused(413, f"This file is too large: at most {self.limits.bytes / (1 << 20):g} MiB are taken.")
        if request.content_type != "multipart/form-data":
            raise Refused(415, "A question is sent as a form with an image.")
        if (request.content_length or 0) > self._longest_body:
            raise too_large
        try:
            async with asyncio.timeout(UPLOAD_TIME):
                body = await request.read()
            form = _form(body, request.headers["Content-Type"])
        except web.HTTPRequestEntityTooLarge:
            raise too_large from None
        except (ValueError, TimeoutError) as error:
            raise Refused(400, "The upload did not arrive whole.") from error
        if not form.keys() <= {*_FIELDS}:
            raise Refused(400, "A question is sent as a form with an image.")
        data = form.pop("image", b"")
        if len(data) > self.limits.bytes:
            raise too_large
        if any(len(value) > 4 * LONGEST_QUESTION for value in form.values()):
            raise Refused(413, "The question is too long.")
        fields = {name: value.decode("utf-8", "replace") for name, value in form.items()}
        if len(fields.get("question", "")) > LONGEST_QUESTION:
            raise Refused(413, f"The question is too long: at most {LONGEST_QUESTION:,} characters are taken.")
        if not data:
            raise Refused(400, "There is no image.")
        return data, fields

    async def _stream(
        self, response: web.StreamResponse, asked: Asked, replies: Sequence[tuple[Way, int | None]]
    ) -> list[dict[str, Any] | None]:
        """Writes all events; returns the last of each reply, None of one that failed."""
        coming: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        image = asked.image
        coming.put_nowait({"on": "image", "width": image.width, "height": image.height})
        for number, (way, draw) in enumerate(replies):
            coming.put_nowait({"on": "reply", "reply": number, "way": way, "draw": draw, "blank": asked.blank})

        async def all_replies() -> list[dict[str, Any] | None]:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._reply(number, asked, way, draw, coming.put_nowait))
                    for number, (way, draw) in enumerate(replies)
                ]
            done = [task.result() for task in tasks]
            for way in dict.fromkeys(way for way, draw in replies if draw is not None):
                numbers = [n for n, (of, _) in enumerate(replies) if of == way and done[n] is not None]
                if numbers:
                    coming.put_nowait(
                        {"on": "vote", "way": way, **_of_replies(vote([done[n] or {} for n in numbers]), numbers)}
                    )
            coming.put_nowait({"on": "end"})
            return done

        work = asyncio.create_task(all_replies())
        work.add_done_callback(lambda _: coming.put_nowait(None))
        try:
            event = await coming.get()
            while event is not None:
                lines = [_line(event)]
                while not coming.empty() and (event := coming.get_nowait()) is not None:
                    lines.append(_line(event))
                await response.write(b"".join(lines))
                event = None if event is None else await coming.get()
            return await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _reply(
        self, number: int, asked: Asked, way: Way, draw: int | None, tell: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any] | None:
        last = None
        try:
            async with self.queue.place(lambda before: tell({"on": "waiting", "reply": number, "before": before})):
                async with aclosing(self.model.reply(asked, way, draw)) as events:
                    async for event in events:
                        last = event | {"reply": number}
                        tell(last)
                return last
        except (Unanswered, VcotError) as error:
            why = error.trouble if isinstance(error, Unanswered) else error
            logging.get().warning("a reply failed", why=str(why))
            message = "The model's server gave no answer. It may be down or busy: ask again in a moment."
        except Exception:
            logging.get().error("a reply failed")
            traceback.print_exc()
            message = "Something went wrong here; the server's log says what."
        tell({"on": "failed", "reply": number, "message": message})
        return None

    async def _kept(self, _: web.Application) -> None:
        await asyncio.gather(*self._keeping)

    def _keep(
        self, uri: str, data: bytes, asked: Asked, replies: Sequence[tuple[Way, int | None]],
        done: Sequence[dict[str, Any] | None],
    ) -> None:  # fmt: skip
        """<keep>/images/<sha256> and <keep>/replies/<when>-<digest>.json."""
        sha256, when = hashlib.sha256(data).hexdigest(), datetime.now(UTC)
        said = [{"way": way, "draw": draw, "reply": one} for (way, draw), one in zip(replies, done, strict=True)]
        line = {
            "asked": when.isoformat(timespec="seconds"), "model": self.model.name, "image": sha256,
            "width": asked.image.width, "height": asked.image.height, "blank": asked.blank,
            "question": asked.question, "replies": said,
        }  # fmt: skip
        text = json.dumps(line, ensure_ascii=False).encode("utf-8", "replace")
        name = f"{when:%Y%m%dT%H%M%S%f}-{hashlib.sha256(text).hexdigest()[:8]}.json"
        try:
            self._store.write_once(join(uri, "images", sha256), data)
            self._store.write(join(uri, "replies", name), text)
        except VcotError as error:
            logging.get().error("a reply was not kept", why=str(error))


_FIELDS = ("image", "question", "ways", "samples", "blank")


def _form(body: bytes, content_type: str) -> dict[str, bytes]:
    """Parse a multipart form of at most as many parts as there are fields.

    aiohttp's reader takes 0.4 ms for each part and 1 ms for each thousand lines before the first, without a limit.

    Raises:
        ValueError: the body is not such a form, a field is repeated, or the end is missing.
    """
    header = Message()
    header["Content-Type"] = content_type
    delimiter = f"\r\n--{header.get_boundary('')}".encode("ascii")
    before, *parts = (b"\r\n" + body).split(delimiter, len(_FIELDS) + 1)
    if before or not parts or not parts[-1].startswith(b"--"):
        raise ValueError("no complete form, or too many parts")
    form = dict[str, bytes]()
    for part in parts[:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        if len(head) > 4096:
            raise ValueError("the head of a part is too long")
        name = str(BytesHeaderParser().parsebytes(head.lstrip()).get_param("name", header="content-disposition"))
        if name in form:
            raise ValueError(f"field {name} is repeated")
        form[name] = value
    return form


async def _with_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.popall("Server", None)


def _line(event: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def _host(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    """By number: no name, so nobody can have it point elsewhere."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _of_replies(said: dict[str, Any], numbers: Sequence[int]) -> dict[str, Any]:
    """A vote among these, by their numbers among all."""
    groups = [{**group, "replies": [numbers[n] for n in group["replies"]]} for group in said["groups"]]
    return {**said, "groups": groups, "chosen": {method: numbers[n] for method, n in said["chosen"].items()}}


def _card(model: StreamedModel) -> dict[str, Any]:
    """What is told of the model: what its server says, without places, and how it writes boxes."""
    told = {name: value for name, value in model.card.items() if value not in (None, "", {}, [])}
    card = {str(name).replace("_", " "): _without_places(value) for name, value in told.items()}
    if model.form is not None:
        form = model.form
        shown = "as it is" if form.min_pixels is None else f"{form.min_pixels:,} to {form.max_pixels:,} pixels"
        card |= {"boxes are written in": form.frame.name.replace("_", " "), "an image is seen at": shown}
    return card


def _without_places(value: Any) -> Any:
    """Of a URI or a path the last part."""
    if isinstance(value, dict):
        return {str(name): _without_places(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_places(one) for one in value]
    if isinstance(value, str) and ("://" in value or value.startswith(("/", "~", "."))):
        return value.split("#")[0].rstrip("/").rpartition("/")[2]
    return value
