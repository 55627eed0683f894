"""How fast the stage tokenize is beside the bare tokenizer and the bare image processor: `make bench-tokenize`.

    python -m benchmarks.tokenize --rows 60000 --images 600 --rounds 5 --processes 2

Text mode: the stage reads Samples, renders prompts and replies, tokenises them, audits the mask and writes Parquet.
Beside it the base's Rust tokenizer alone: `encode_batch` of the same prompts and replies, lying ready in memory. Tokens
are those of prompts and replies on both sides, without the chat template's own.

Images: the stage reads each image, holds it against its digest and size, decodes it, computes its grid and stores its
bytes. Beside it the base's image processor alone, which makes of the same files, decoded by Pillow, what a model takes.

Both sides run in as many processes of one thread, a shard each; what a process takes to import and to load is not
counted. They run in turns, a round is one of each. Seconds of CPU count; those of the clock belong to whoever else is
on the machine, too.

Questions and answers are VisCoT's beside the checkout (shared/data/viscot, or TEST_DATA_DIR), else made up; reasonings
are sentences of this project's docs with two boxes each. Images are JPEGs of 1000x750 pixels, one a row. The base of
the rehearsal knows few words; `--base` takes the folder of another one.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import statistics
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
        for kind, number in (("text", options.rows), ("images", options.images)):
            if number:
                compare(Path(folder) / kind, kind, number, options)


def compare(folder: Path, kind: str, number: int, options: Any) -> None:
    folder.mkdir()
    made = list(samples(folder, number, images=kind == "images"))
    distilled(folder, made, options.processes)
    what = {"text": "tokens", "images": "images"}[kind]
    spent: dict[str, list[Cost]] = {"stage": [], "bare": []}
    for turn in range(options.rounds):
        spent["stage"].append(together(options.processes, stage_work, folder, kind, turn, options))
        spent["bare"].append(together(options.processes, BARE[kind], made, options))
    amount = spent["bare"][0].amount
    print(f"\n{kind}: {number:,} rows, {amount:,} {what}; {options.rounds} rounds, the middle one (least to most)")
    for clock in ("wall", "cpu"):
        seconds = {name: [getattr(cost, clock) for cost in costs] for name, costs in spent.items()}
        for name, of_name in seconds.items():
            print(f"  {name:5} by {clock:4}  {spread([amount / s for s in of_name], ',.0f')} {what} a second")
        ratios = [b / s for b, s in zip(seconds["bare"], seconds["stage"], strict=True)]
        print(f"  stage / bare by {clock}: {spread(ratios, '.0%')}")


def spread(values: Sequence[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


class Cost(NamedTuple):
    """Seconds of the clock until the last process is done, seconds of CPU of all, and how much was made."""

    wall: float
    cpu: float
    amount: int


def together(processes: int, prepare: Callable[..., Callable[[], int]], *arguments: Any) -> Cost:
    """What work costs in so many processes of one thread each, all of which begin when the last has loaded what it
    needs. `prepare(number of the process, …)` gives the work; that says how much it made."""
    context = multiprocessing.get_context("fork")  # nothing here has threads
    ready, results = context.Barrier(processes + 1), context.SimpleQueue()

    def child(number: int) -> None:
        os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        work = prepare(number, *arguments)
        ready.wait()
        before = time.process_time()
        amount = work()
        results.put((time.process_time() - before, amount))

    gc.freeze()  # the rows that the benchmark holds are no work of either side's garbage collector
    children = [context.Process(target=child, args=(number,)) for number in range(processes)]
    for one in children:
        one.start()
    ready.wait()
    begun = time.monotonic()
    found = [results.get() for _ in children]
    wall = time.monotonic() - begun
    for one in children:
        one.join()
    return Cost(wall, sum(cpu for cpu, _ in found), sum(amount for _, amount in found))


# ----------------------------------------------------------------------------------------------------- both sides


def stage_work(number: int, folder: Path, kind: str, turn: int, options: Any) -> Callable[[], int]:
    """One shard, as a process of `jobs.tokenize` makes it, from the distilled file to the marker; counted in rows."""
    from jobs.tokenize import PRELOAD
    from vcot.records.example import ExampleSink
    from vcot.records.shards import TOKENIZE, read_marker
    from vcot.tokens import Encoder, contract_of, load_processor
    from vcot.tokens.rows import Tokenizing

    for name in PRELOAD:
        importlib.import_module(name)
    source_uri = str(folder / "distill")
    source, _ = read_marker(Store(), source_uri, DISTILL)
    files = [shard.files for shard in source.shards]
    processor = load_processor(options.base, **BUDGET)
    mode: Any = "text" if kind == "text" else "multimodal"
    encoder = Encoder(processor, contract_of(processor, mode=mode, frame="thousandths", max_length=2048))
    out = Folder(Store(), str(folder / f"{turn}"), TOKENIZE)
    tokenizing = Tokenizing(Store(), source_uri, files, out.uri, options.base, encoder)
    return lambda: out.make_shard(number, tokenizing.shard, ExampleSink).row_counts.kept


def bare_tokenizer(number: int, made: Sequence[Sample], options: Any) -> Callable[[], int]:
    """`encode_batch` of prompts and replies; counted in tokens."""
    from tokenizers import Tokenizer

    from vcot.grounding import FrameSpec
    from vcot.grounding.tags import render_reply
    from vcot.tokens.encoder import prompt_text

    mine, spec = made[number :: options.processes], FrameSpec("thousandths")
    replies = [render_reply(one.reasoning[0], one.answers[0], one.shown.frame(spec)) for one in mine]
    texts = [*map(prompt_text, mine), *replies]
    tokenizer = Tokenizer.from_file(str(options.base / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # as the stage: nothing that people wrote is a control token
    return lambda: sum(len(one.ids) for one in tokenizer.encode_batch(texts, add_special_tokens=False))


def bare_processor(number: int, made: Sequence[Sample], options: Any) -> Callable[[], int]:
    """The image processor on the files, decoded by Pillow; counted in images."""
    import torch

    from vcot.tokens import load_processor

    torch.set_num_threads(1)
    processor = load_processor(options.base, **BUDGET).image_processor
    processor(images=[Pillow.new("RGB", (WIDTH, HEIGHT))], return_tensors="pt")  # what it imports late
    paths = [one.shown.uri for one in made[number :: options.processes]]

    def work() -> int:
        for path in paths:
            processor(images=[Pillow.open(path).convert("RGB")], return_tensors="pt")
        return len(paths)

    return work


BARE: dict[str, Callable[..., Callable[[], int]]] = {"text": bare_tokenizer, "images": bare_processor}


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
