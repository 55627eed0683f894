"""Requests a second of distill, and what each costs in CPU: `python -m benchmarks.distill`, or `make bench-distill`.

A scripted teacher in a process of its own answers after `--wait` seconds. For each concurrency, one line of JSON:

    per_second         of distill: rows in, requests made, replies kept in a folder, a budget reserved and settled
    of_ideal           that, over concurrency / wait
    bare_per_second    of the openai client alone, with the same words and images, ready packed
    of_bare            the one over the other
    cpu_ms             CPU milliseconds of this process for a request (all threads); bare_cpu_ms: of the client alone
    image_cpu_ms     for packing one image of `--size` pixels a side, which is done once for each

Rows share images, as those of VisCoT and GQA do (`--rows-a-image`).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import openai
from PIL import Image as Pillow

from tests.distill.made import TOP_LEFT, see, strategy
from vcot.distill.budget import Ledger, budget_of
from vcot.distill.client import TeacherClient
from vcot.distill.costs import read_prices
from vcot.distill.crops import ImagePacker, data_url
from vcot.distill.endpoint import Endpoint, body_of
from vcot.distill.request import ReplyCache, Request, ShownImage
from vcot.distill.runner import ModelTeacher
from vcot.records import Image, Origin, Sample
from vcot.storage import Store

ROOT = Path(__file__).parents[1]
STRATEGY = strategy(
    "answer-aware", model="gpt-4o", image_side=768, self_consistency=False, crop_check=False,
    answer_from_evidence=False, propose=False,
)  # fmt: skip


@contextmanager
def served(*command: str) -> Iterator[str]:
    """The address that a module prints when it listens, run with these arguments; it ends with its standard input."""
    with subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate("")


def spread(values: list[float]) -> str:
    return f"{median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def photographs(folder: Path, number: int, size: int) -> list[Image]:
    """Noise, which packs as badly as foliage."""
    made = []
    for n in range(number):
        path = folder / f"{n}.jpg"
        noise = Pillow.effect_noise((size, size * 3 // 4), 60)
        Pillow.merge("RGB", [noise, noise.transpose(Pillow.Transpose.ROTATE_180), noise]).save(path, quality=80)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        made.append(Image(uri=str(path), width=size, height=size * 3 // 4, sha256=digest))
    return made


def rows(images: list[Image], number: int, a_image: int, name: str) -> list[Sample]:
    return [
        Sample(
            id=f"{name}-{n}", images=(images[n // a_image % len(images)],), question=f"Where is disc {n} of {name}?",
            answers=("top left",), evidence=(see("red disc", TOP_LEFT),),
            origin=Origin(dataset="made", split="train", row=str(n), licence="CC0-1.0"),
        )
        for n in range(number)
    ]  # fmt: skip


def measured(work: Callable[[], int]) -> tuple[float, float]:
    """Requests a second, and CPU milliseconds for each; `work` says how many there were."""
    cpu, begun = time.process_time(), time.monotonic()
    number = work()
    return number / (time.monotonic() - begun), 1000 * (time.process_time() - cpu) / number


def bare(requests: list[Request], at_once: int) -> tuple[float, float]:
    """The client alone, with an asyncio semaphore."""

    async def bodies() -> list[dict[str, Any]]:
        images = ImagePacker(Store())
        return [await body_of(request, images) for request in requests]

    ready = asyncio.run(bodies())

    async def all_of_them() -> int:
        slots = asyncio.Semaphore(at_once)
        async with openai.AsyncOpenAI() as client:

            async def one(body: dict[str, Any]) -> None:
                async with slots:
                    await client.chat.completions.create(**body)

            await asyncio.gather(*map(one, ready))
        return len(ready)

    return measured(lambda: asyncio.run(all_of_them()))


def distill(samples: list[Sample], at_once: int, folder: Path) -> tuple[float, float]:
    store = Store()
    client = TeacherClient(
        Endpoint(at_once=at_once, timeout=60), ReplyCache(store, str(folder / "cache")), read_prices(store),
        Ledger(store, str(folder), budget_of(Decimal(1000), None, None)),
    )  # fmt: skip

    def work() -> int:
        with ModelTeacher(STRATEGY, client, ahead=4 * at_once) as model_teacher:
            done = list(model_teacher.teach(samples))
        assert client.report.totals()["requests"] == len(done), client.report.totals()
        return len(done)

    return measured(work)


def image_cost(image: Image, times: int = 20) -> float:
    """CPU milliseconds for packing one that has to be made smaller."""
    cpu = time.process_time()
    for _ in range(times):
        data_url(Store(), ShownImage(image, 768))
    return 1000 * (time.process_time() - cpu) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", default="5,10,20,50")
    parser.add_argument("--wait", type=float, default=0.2, help="seconds until the teacher answers")
    parser.add_argument("--seconds", type=float, default=15, help="that each measurement should take")
    parser.add_argument("--size", type=int, default=1024, help="pixels a side of the images")
    parser.add_argument("--rows-a-image", type=int, default=25)
    asked = parser.parse_args()
    os.environ |= {"OPENAI_API_KEY": "x", "NO_PROXY": "127.0.0.1"}
    with (
        tempfile.TemporaryDirectory(prefix="bench-distill-") as scratch,
        served("tests.fakes.teacher", str(asked.wait)) as address,
    ):
        os.environ["OPENAI_BASE_URL"] = address
        folder = Path(scratch)
        images = photographs(folder, 40, asked.size)
        print(json.dumps({"image_cpu_ms": round(image_cost(images[0]), 1)}), flush=True)
        for at_once in map(int, asked.concurrency.split(",")):
            ideal = at_once / asked.wait
            number = round(min(ideal, 250) * asked.seconds)
            samples = rows(images, number, asked.rows_an_image, f"at {at_once}")
            alone, alone_cpu = bare([STRATEGY.estimate(one)[0] for one in samples], at_once)
            ours, ours_cpu = distill(samples, at_once, folder / str(at_once))
            line = {
                "concurrency": at_once, "requests": number, "per_second": round(ours, 1),
                "of_ideal": round(ours / ideal, 3), "bare_per_second": round(alone, 1),
                "of_bare": round(ours / alone, 3), "cpu_ms": round(ours_cpu, 2), "bare_cpu_ms": round(alone_cpu, 2),
            }  # fmt: skip
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
