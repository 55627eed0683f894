"""Replies a second of an evaluation that asks an endpoint, beside the bare openai client at the same concurrency:
`python -m benchmarks.endpoint`. The endpoint is a process of its own that answers after `--wait` seconds.

    ours    EndpointModel: images packed, requests made, replies kept in a folder, a budget settled
    bare    the openai client under an asyncio semaphore, the same requests; images are packed by the same function, as
            often (each once), and nothing is kept

They take turns in rounds, after a warm-up that does not count. One line of JSON, of medians over the rounds: replies a
second (`per_second`, `bare_per_second`), CPU milliseconds for each, ours over bare in a round (`of_bare`, with the
smallest and the largest), ours over concurrency / wait (`of_ideal`).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import sys
import tempfile
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import openai
from aiohttp import web
from PIL import Image as Pillow

from benchmarks.distill import measured, served, spread
from vcot.distill.crops import ImagePacker
from vcot.distill.endpoint import body_of
from vcot.distill.request import Request
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


def bare(model: EndpointModel, asked: list[Prompt], decoding: Decoding, at_once: int) -> int:
    """The client alone; how many replies there were."""
    requests = [model._request(prompt, decoding) for prompt in asked]

    async def all_of_them() -> int:
        slots, images = asyncio.Semaphore(at_once), ImagePacker(Store())
        async with openai.AsyncOpenAI(base_url=model.address, api_key="x") as client:

            async def one(request: Request) -> None:
                async with slots:
                    body = await body_of(request, images)
                    # The client would take these two in `extra_body`.
                    del body["repetition_penalty"], body["skip_special_tokens"]
                    await client.chat.completions.create(**body)

            await asyncio.gather(*map(one, requests))
        return len(requests)

    return asyncio.run(all_of_them())


def ours(model: EndpointModel, asked: list[Prompt], decoding: Decoding) -> int:
    said = model.ask("subject", asked, decoding)
    assert all(one.logprobs for (one,) in said)
    return len(said)


def endpoint_ratio(
    *, at_once: int, wait: float, seconds: float, rounds: int, size: int = 448, prompts_an_image: int = 4
) -> dict[str, Any]:
    """One line of the table above. `seconds`: that each of the two should take in a round."""
    os.environ["NO_PROXY"], decoding = "127.0.0.1", Decoding(max_new_tokens=64)
    number = round(at_once / wait * seconds)
    asked = prompts(number, size, prompts_an_image)
    found: list[dict[str, tuple[float, float]]] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-endpoint-") as scratch,
        served("benchmarks.endpoint", "--serve", "--wait", str(wait)) as address,
    ):
        for turn in range(rounds + 1):
            # Its own cache each time: nothing was asked before.
            with EndpointModel(Store(), address, "m", FORM, cache_uri=f"{scratch}/{turn}", at_once=at_once) as model:
                some = asked if turn else asked[: 2 * at_once]
                both = {
                    "ours": partial(ours, model, some, decoding),
                    "bare": partial(bare, model, some, decoding, at_once),
                }
                found.append({name: measured(both[name]) for name in (both if turn % 2 else reversed(both))})
    del found[0]
    per_second, cpu = ({name: median(one[name][n] for one in found) for name in both} for n in (0, 1))
    return {
        "concurrency": at_once, "wait": wait, "requests": number, "rounds": rounds,
        "load": round(os.getloadavg()[0], 1),
        "per_second": round(per_second["ours"], 1), "bare_per_second": round(per_second["bare"], 1),
        "cpu_ms": round(cpu["ours"], 2), "bare_cpu_ms": round(cpu["bare"], 2),
        "of_bare": spread([one["ours"][0] / one["bare"][0] for one in found]),
        "of_ideal": round(per_second["ours"] * wait / at_once, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, default=50)
    parser.add_argument("--wait", type=float, default=0.5, help="seconds until the endpoint answers")
    parser.add_argument("--seconds", type=float, default=6, help="that each of the two should take in a round")
    parser.add_argument("--rounds", type=int, default=5, help="that count, after a warm-up that does not")
    parser.add_argument("--serve", action="store_true", help="be the endpoint")
    given = parser.parse_args()
    if given.serve:
        serve(given.wait)
    else:
        ratio = endpoint_ratio(at_once=given.concurrency, wait=given.wait, seconds=given.seconds, rounds=given.rounds)
        print(json.dumps(ratio))


if __name__ == "__main__":
    main()
