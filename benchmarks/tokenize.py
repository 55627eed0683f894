"""How fast the stage tokenize is beside the bare tokenizer and the bare image processor: `make bench-tokenize`.

    python -m benchmarks.tokenize --rows 60000 --images 600 --rounds 5 --processes 2

Text mode: `jobs.tokenize --mode text` reads Samples, renders prompts and replies, tokenises them, audits the mask and
writes Parquet. Beside it the base's Rust tokenizer alone: `encode_batch` of the same prompts and replies, lying ready
in memory, on as many threads as the stage has processes. Tokens are those of prompts and replies on both sides, without
the chat template's own.

Images: `jobs.tokenize` reads each image, holds it against its digest and size, decodes it, computes its grid and stores
its bytes. Beside it the base's image processor alone, which makes of the same files, decoded by Pillow, what a model
takes; in as many processes.

Questions and answers are VisCoT's beside the checkout (shared/data/viscot, or TEST_DATA_DIR), else made up; reasonings
are sentences of this project's docs with two boxes each. Images are JPEGs of 1000x750 pixels, one a row.

Stage and bare run in turns; a round is one of each. A process of the stage takes seconds to import its libraries,
however many rows there are: the stage runs on one row a shard, too, and what that takes is told apart and taken off.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image as Pillow

from tests.fakes.markers import stage_marker
from vcot.grounding import Box, Mention, Trace
from vcot.records import Folder, Image, Origin, Sample
from vcot.records.metadata import DistillShardMetadata
from vcot.records.shards import DISTILL, JsonLines, ShardWriter
from vcot.storage import Store

ROOT = Path(__file__).parents[1]
VISCOT = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data")) / "viscot" / "metadata"
WIDTH, HEIGHT = 1000, 750
SHARDS_A_PROCESS = 2
BUDGET = {"min_pixels": 4 * 784, "max_pixels": 1280 * 784}
"""Of the stage's defaults."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000, help="of the comparison with the tokenizer")
    parser.add_argument("--images", type=int, default=600, help="of the comparison with the image processor")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--base", type=Path, default=ROOT / "examples" / "rehearsal", help="whose tokenizer and processor"
    )
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, load of the last minute {os.getloadavg()[0]:.1f}, {options.processes} processes")
    with tempfile.TemporaryDirectory(prefix="bench-tokenize-") as folder:
        for kind, number, bare in (("text", options.rows, bare_tokenizer), ("images", options.images, bare_processor)):
            if number:
                compare(Path(folder) / kind, kind, number, bare, options)


class Cost(NamedTuple):
    """Seconds of the clock, and of CPU of all processes."""

    wall: float
    cpu: float

    def less(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.cpu - other.cpu)


def compare(folder: Path, kind: str, number: int, bare: Callable[..., int], options: Any) -> None:
    folder.mkdir()
    shards = SHARDS_A_PROCESS * options.processes
    made = list(samples(folder, number, images=kind == "images"))
    distilled(folder / "large", made, shards)
    distilled(folder / "small", made[:shards], shards)
    mode = "text" if kind == "text" else "multimodal"
    what = "tokens" if kind == "text" else "images"
    spent: dict[str, list[Cost]] = {"start": [], "stage": [], "bare": []}
    amount = 0
    for turn in range(options.rounds):
        start = staged(folder / "small", f"{turn}", mode, options)
        whole = staged(folder / "large", f"{turn}", mode, options)
        alone, amount = bare(made, options)
        for name, cost in (("start", start), ("stage", whole.less(start)), ("bare", alone)):
            spent[name].append(cost)
    print(f"\n{kind}: {number:,} rows, {amount:,} {what}; {options.rounds} rounds, the middle one (least to most)")
    for clock in Cost._fields:
        seconds = {name: [getattr(cost, clock) for cost in costs] for name, costs in spent.items()}
        for name in ("stage", "bare"):
            print(f"  {name:5} {clock:4}  {spread([amount / s for s in seconds[name]], ',.0f')} {what} a second")
        ratios = [b / s for b, s in zip(seconds["bare"], seconds["stage"], strict=True)]
        print(f"  stage / bare by {clock}: {spread(ratios, '.0%')}")
    print(f"  to begin: {spread([c.wall for c in spent['start']], '.1f')} s, taken off the stage's seconds")


def spread(values: Sequence[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


# ----------------------------------------------------------------------------------------------------- both sides


def staged(run: Path, turn: str, mode: str, options: Any) -> Cost:
    """`jobs.tokenize` as users start it, under a fresh name."""
    command = [
        sys.executable, "-m", "jobs.tokenize", "--run-uri", str(run / turn), "--input-uri", str(run / "distill"),
        "--base-uri", str(options.base), "--mode", mode, "--processes", str(options.processes), "--part", "shards",
    ]  # fmt: skip
    clean = {n: v for n, v in os.environ.items() if not n.startswith("VCOT_") and n != "PYTHONDONTWRITEBYTECODE"}
    return cost(lambda: subprocess.run(command, cwd=ROOT, env=clean, check=True, stderr=subprocess.DEVNULL))


def cost(work: Callable[[], Any]) -> Cost:
    """Of `work`, whose processes have been waited for when it returns."""
    begun, before = time.monotonic(), cpu()
    work()
    return Cost(time.monotonic() - begun, cpu() - before)


def cpu() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def bare_tokenizer(made: Sequence[Sample], options: Any) -> tuple[Cost, int]:
    """Cost and tokens of `encode_batch` on prompts and replies, in as many threads of one process."""
    return apart(options.processes, _encode, made, options)


def _encode(made: Sequence[Sample], options: Any) -> tuple[Cost, int]:
    from tokenizers import Tokenizer

    from vcot.grounding import FrameSpec
    from vcot.grounding.tags import render_reply
    from vcot.tokens.encoder import prompt_text

    spec = FrameSpec("thousandths")
    replies = [render_reply(one.reasoning[0], one.answers[0], one.shown.frame(spec)) for one in made]
    texts = [*map(prompt_text, made), *replies]
    tokenizer = Tokenizer.from_file(str(options.base / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # as the stage: nothing that people wrote is a control token
    found: list[Any] = []
    spent = cost(lambda: found.extend(tokenizer.encode_batch(texts, add_special_tokens=False)))
    return spent, sum(len(one.ids) for one in found)


def bare_processor(made: Sequence[Sample], options: Any) -> tuple[Cost, int]:
    """Cost of the image processor on the files, dealt to as many processes of one thread; and how many they are."""
    context = multiprocessing.get_context("fork")  # nothing here has threads, and each loads its libraries
    parts = [[one.shown.uri for one in made[n :: options.processes]] for n in range(options.processes)]
    ready, go = context.Barrier(options.processes + 1), time.monotonic
    results = context.SimpleQueue()
    workers = [context.Process(target=_process, args=(part, options.base, ready, results)) for part in parts]
    for worker in workers:
        worker.start()
    ready.wait()
    begun = go()
    costs = [results.get() for _ in workers]
    wall = go() - begun
    for worker in workers:
        worker.join()
    return Cost(wall, sum(costs)), len(made)


def _process(paths: Sequence[str], base: Path, ready: Any, results: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from vcot.tokens import load_processor

    torch.set_num_threads(1)
    processor = load_processor(base, **BUDGET).image_processor

    def work() -> None:
        for path in paths:
            processor(images=[Pillow.open(path).convert("RGB")], return_tensors="pt")

    processor(images=[Pillow.new("RGB", (WIDTH, HEIGHT))], return_tensors="pt")
    ready.wait()
    results.put(cost(work).cpu)


def apart(threads: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own with so many threads: what reads the variables does so when it is loaded."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def child() -> None:
        os.environ |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
        results.put(work(*arguments))

    process = context.Process(target=child)
    process.start()
    found = results.get()
    process.join()
    return found


# ----------------------------------------------------------------------------------------------------- what goes in


def samples(folder: Path, number: int, *, images: bool) -> Iterator[Sample]:
    """Questions that people wrote, each with a reasoning of some sentences and two boxes. The images are drawn, or only
    named."""
    dice = random.Random(1)
    asked, said = questions(dice), sentences()
    for n in range(number):
        question, answer = asked[n % len(asked)]
        digest = "0" * 64
        if images:
            data = photograph(folder / f"{n}.jpg", dice)
            digest = hashlib.sha256(data).hexdigest()
        mentions = [Mention(dice.choice(said).split()[0].lower(), (box(dice),)) for _ in range(2)]
        first, second, third = dice.choices(said, k=3)
        yield Sample(
            id=f"row-{n}", question=question, answers=(answer,), evidence=(mentions[0],),
            image=Image(uri=str(folder / f"{n}.jpg"), width=WIDTH, height=HEIGHT, sha256=digest),
            reasoning=(Trace((f"{first} See the ", mentions[0], f": {second} The ", mentions[1], f". {third}")),),
            origin=Origin(dataset="bench", split="train", row=str(n), licence="MIT"),
        )  # fmt: skip


def questions(dice: random.Random) -> list[tuple[str, str]]:
    if VISCOT.is_dir():
        rows = [json.loads(line) for file in sorted(VISCOT.glob("*.jsonl")) for line in file.open()]
        found = [(row["question"], row["answer"]) for row in rows if row["question"].strip() and row["answer"].strip()]
    else:
        words = sorted({word for sentence in sentences() for word in sentence.split() if word.isalpha()})
        found = [
            (f"What is the {' '.join(dice.choices(words, k=dice.randint(5, 12)))}?", " ".join(dice.choices(words, k=2)))
            for _ in range(20_000)
        ]
    dice.shuffle(found)
    return found


def sentences() -> list[str]:
    """Of this project's documentation, of 60 to 160 characters."""
    text = " ".join(path.read_text() for path in sorted(ROOT.glob("docs/*.md")))
    return [one for one in re.split(r"(?<=[.:;])\s+", text) if 60 <= len(one) <= 160 and one.isascii()]


def box(dice: random.Random) -> Box:
    x, y = dice.randrange(WIDTH - 300), dice.randrange(HEIGHT - 300)
    return Box(x, y, x + dice.randint(20, 300), y + dice.randint(20, 300))


def photograph(path: Path, dice: random.Random) -> bytes:
    """Soft blots with some noise: about as many bytes as a photograph of this size has."""
    rough = Pillow.frombytes("RGB", (20, 15), dice.randbytes(900)).resize((WIDTH, HEIGHT), Pillow.Resampling.BICUBIC)
    noise = Pillow.effect_noise((WIDTH, HEIGHT), 20)
    Pillow.blend(rough, Pillow.merge("RGB", (noise, noise, noise)), 0.3).save(path, "JPEG", quality=90)
    return path.read_bytes()


def distilled(run: Path, made: Sequence[Sample], shards: int) -> None:
    """<run>/distill, as the stage before would leave it."""
    folder = Folder(Store(), str(run), DISTILL)

    def work(writer: ShardWriter) -> DistillShardMetadata:
        for row in made[writer.index :: shards]:
            writer.keep(row)
        return DistillShardMetadata()

    markers = tuple(folder.make_shard(number, work, JsonLines) for number in range(shards))
    folder.finish(stage_marker("distill", shards=markers))


if __name__ == "__main__":
    main()
