"""Replies a second of an evaluation that asks an endpoint, beside the bare openai client at the same concurrency:
`python -m benchmarks.endpoint`. The endpoint is a process of its own that answers after `--wait` seconds. One line of
JSON:

    per_second         of EndpointModel: images packed, requests made, replies kept in a folder, a budget settled
    bare_per_second    of the openai client alone, with the same messages, ready packed
    of_bare            the one over the other
    of_ideal           the first, over concurrency / wait
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
import openai
from aiohttp import web
from PIL import Image as Pillow

from benchmarks.distill import served
from vcot.distill.crops import ImagePacker
from vcot.distill.endpoint import body_of
from vcot.evaluation.endpoint import EndpointModel, declared_form
from vcot.evaluation.ways import Prompt
from vcot.models.decoding import Decoding
from vcot.records import Image, Origin, Sample
from vcot.storage import Store

REPLY = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{
        "index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "I see it. Answer: up"},
        "logprobs": {"content": [{"token": "t", "logprob": -0.25, "bytes": [116], "top_logprobs": []}] * 40},
    }],
    "usage": {"prompt_tokens": 400, "completion_tokens": 40, "total_tokens": 440},
}  # fmt: skip


def serve(wait: float) -> None:
    """Answers everything with REPLY; it says where it listens, and ends with its standard input."""
    body = json.dumps(REPLY).encode()

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(wait)
        return web.Response(body=body, content_type="application/json")

    async def run() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(run())


def prompts(number: int, size: int, prompts_an_image: int) -> list[Prompt]:
    """About images of `size` pixels a side, as hard to pack as foliage."""
    made = []
    for n in range(number):
        if n % prompts_an_image == 0:
            rough = np.random.default_rng(n).normal(128, 40, (size // 4, size // 4, 3)).clip(0, 255).astype(np.uint8)
            pixels = Pillow.fromarray(rough).resize((size, size), Pillow.Resampling.BICUBIC)
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        sample = Sample(
            id=str(n), images=(Image(uri="x.png", width=size, height=size, sha256=digest),), question=f"Where is {n}?",
            answers=("up",), origin=Origin(dataset="made", split="test", row=str(n), licence="CC0-1.0"),
        )  # fmt: skip
        made.append(Prompt(sample, (pixels,), "Point at it.", FORM.frame))
    return made


FORM = declared_form(family="qwen2.5-vl", min_pixels=56 * 56, max_pixels=448 * 448)


def bare(model: EndpointModel, asked: list[Prompt], decoding: Decoding, at_once: int) -> float:
    """Replies a second of the client alone, with an asyncio semaphore."""

    async def bodies() -> list[dict[str, Any]]:
        images, without = ImagePacker(Store()), ("repetition_penalty", "skip_special_tokens")
        made = [await body_of(model._request(prompt, decoding), images) for prompt in asked]
        return [{name: said for name, said in body.items() if name not in without} for body in made]

    ready = asyncio.run(bodies())

    async def all_of_them() -> None:
        slots = asyncio.Semaphore(at_once)
        async with openai.AsyncOpenAI(base_url=model.address, api_key="x") as client:

            async def one(body: dict[str, Any]) -> None:
                async with slots:
                    await client.chat.completions.create(**body)

            await asyncio.gather(*map(one, ready))

    begun = time.monotonic()
    asyncio.run(all_of_them())
    return len(ready) / (time.monotonic() - begun)


def endpoint_ratio(
    *, at_once: int = 50, wait: float = 0.5, seconds: float = 10, size: int = 448, prompts_an_image: int = 4
) -> dict[str, float]:
    """One line of the table above. `seconds`: that each of the two should take."""

    os.environ["NO_PROXY"], decoding = "127.0.0.1", Decoding(max_new_tokens=64)
    number = round(at_once / wait * seconds)
    asked = prompts(number, size, prompts_an_image)
    with (
        tempfile.TemporaryDirectory(prefix="bench-endpoint-") as scratch,
        served("benchmarks.endpoint", "--serve", "--wait", str(wait)) as address,
        EndpointModel(Store(), address, "m", FORM, cache_uri=scratch, at_once=at_once) as model,
    ):
        alone = bare(model, asked, decoding, at_once)
        begun = time.monotonic()
        said = model.ask("subject", asked, decoding)
        ours = number / (time.monotonic() - begun)
        assert all(one.logprobs for (one,) in said)
    return {
        "concurrency": at_once, "wait": wait, "requests": number,
        "per_second": round(ours, 1), "bare_per_second": round(alone, 1),
        "of_bare": round(ours / alone, 3), "of_ideal": round(ours * wait / at_once, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--wait", type=float, default=0.5, help="seconds until the endpoint answers")
    parser.add_argument("--seconds", type=float, default=10, help="that each measurement should take")
    parser.add_argument("--serve", action="store_true", help="be the endpoint")
    given = parser.parse_args()
    if given.serve:
        serve(given.wait)
    else:
        print(json.dumps(endpoint_ratio(at_once=given.concurrency, wait=given.wait, seconds=given.seconds)))


if __name__ == "__main__":
    main()
