"""The page's server, and what its tests show to it."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from PIL import Image, ImageDraw

from tests.fakes.streaming import Endpoint
from vcot.demo.examples import Example
from vcot.demo.model import StreamedModel
from vcot.demo.server import Limits, Page
from vcot.grounding import Frame, FrameSpec

SIZE = (640, 480)
FRAME: Frame = FrameSpec("thousandths").on(*SIZE)

CONTRACT: dict[str, Any] = {
    "version": 1, "mode": "multimodal", "frame": {"name": "thousandths"}, "min_pixels": 3136, "max_pixels": 100352,
    "instruction": "Point at what you name.", "max_length": 512, "template_sha256": "0" * 64,
    "tokenizer_sha256": "0" * 64, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
CARD = {
    "base": "/srv/secret/models/Qwen2.5-VL-7B", "method": "lora", "numbers": {"answers right": 0.78},
    "code": "0.1.0", "digest": "3f9a2c",
}  # fmt: skip
TOLD = {"contract": CONTRACT, "card": CARD}


def png(size: tuple[int, int] = SIZE) -> bytes:
    """A red disc and a blue ring, where tests.fakes.streaming.DISCS says."""
    image = Image.new("RGB", size, "#e9e4da")
    draw, (width, height) = ImageDraw.Draw(image), size
    draw.ellipse((0.10 * width, 0.15 * height, 0.40 * width, 0.60 * height), fill="#c33")
    draw.ellipse((0.56 * width, 0.30 * height, 0.90 * width, 0.82 * height), outline="#36c", width=max(1, width // 20))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """In a thread, because Playwright has the loop of this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


@dataclass
class Running:
    url: str
    page: Page


@contextmanager
def running_page(endpoint: Endpoint, *, port: int = 0, **options: Any) -> Iterator[Running]:
    """In a thread. options: of Page, but limits as `bytes`, `pixels`, `at_once`."""
    limits = Limits(options.pop("bytes", 1 << 20), options.pop("pixels", 4_000_000), options.pop("at_once", 4))
    form = options.pop("form", None)
    examples = options.pop("examples", (Example("Discs", "Where is the disc?", "image/png", png()),))
    ready, loop, found = threading.Event(), asyncio.new_event_loop(), list[Any]()

    async def start() -> None:
        model = StreamedModel(
            endpoint.address, "small", form, max_new_tokens=64, temperature=0.7, timeout=5.0, at_once=limits.at_once
        )
        page = Page(model, limits, examples=examples, **options)
        runner = page.runner()
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        found.extend([Running(f"http://127.0.0.1:{runner.addresses[0][1]}", page), runner, model])
        ready.set()

    async def end() -> None:
        await found[1].cleanup()
        await found[2].close()

    def serve() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
