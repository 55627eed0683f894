"""How many images a second `convert --ingest` takes, against Pillow's own decode, resize and encode of the same.

    python -m benchmarks.ingest --images examples/blood-cells/images --rounds 5

Pillow reads from memory and writes into memory, one thread, every pixel. Ingesting reads files, checks, hashes, and
writes each copy so that it survives a power cut. Both shrink to the same size with the same filter and encode with the
same quality. Three sizes: the photographs as they are, which keep their pixels and are only decoded; mosaics of them
of two megapixels, for which no step can be left out; and of twelve, as cameras make them, of which the decoder leaves
out what the smaller size has no room for. Seconds of a core (user and system time) are what "per core" means; seconds
of the clock show how it scales.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from vcot.datasets.images import DatasetImages
from vcot.datasets.ingest import QUALITY
from vcot.storage import Store
from vcot.storage.images import within

BUDGET = 1280 * 28 * 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("examples/blood-cells/images"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mosaics", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ingest-") as scratch:
        photographs = sorted(options.images.resolve().glob("*.jpg"))
        tell("photographs as they are", photographs, Path(scratch), options.rounds)
        for wide, high, count in ((1600, 1200, 3 * options.mosaics), (4000, 3000, options.mosaics)):
            made = list(mosaics(photographs, Path(scratch), wide, high, count))
            tell("mosaics", made, Path(scratch), options.rounds)


def mosaics(photographs: Sequence[Path], scratch: Path, wide: int, high: int, count: int) -> Iterator[Path]:
    dice = random.Random(0)
    for number in range(count):
        canvas = Image.new("RGB", (wide, high))
        for x in range(0, wide, 640):
            for y in range(0, high, 480):
                canvas.paste(Image.open(dice.choice(photographs)), (x, y))
        path = scratch / f"{wide}-{number}.jpg"
        canvas.save(path, "JPEG", quality=92)
        yield path


def tell(what: str, paths: Sequence[Path], scratch: Path, rounds: int) -> None:
    cores = len(os.sched_getaffinity(0))
    files = [path.read_bytes() for path in paths]
    with Image.open(paths[0]) as first:
        print(f"{what}: {len(paths)}, {first.width} x {first.height}, kept as {within(*first.size, BUDGET)}")
    pillow = Figures("Pillow, 1 thread")
    ours = {threads: Figures(f"--ingest, {threads} thread{'s' * (threads > 1)}") for threads in (1, cores)}
    plain = {threads: Figures(f"Pillow, {threads} threads") for threads in {cores} - {1}}
    for _ in range(rounds):  # in turns, because the machine's other work comes and goes
        pillow.take(lambda: run(by_pillow, files, 1), len(files))
        for threads, figures in plain.items():
            figures.take(lambda threads=threads: run(by_pillow, files, threads), len(files))  # type: ignore[misc]
        for threads, figures in ours.items():
            made = scratch / "made"
            shutil.rmtree(made, ignore_errors=True)
            images = DatasetImages(Store(), None, str(made), budget=BUDGET)
            figures.take(
                lambda threads=threads, images=images: run(images.find, map(str, paths), threads),  # type: ignore[misc]
                len(files),
            )
    for figures in (pillow, *plain.values(), *ours.values()):
        print(f"  {figures.name:20} {figures.per_core:8.1f} a second of a core   {figures.per_second:8.1f} a second"
              f"   {figures.per_core / pillow.per_core:5.2f} of Pillow's per core"
              f"   {figures.per_second / pillow.per_second:5.2f} of one thread's by the clock")  # fmt: skip


class Figures:
    """Rates of several rounds; the median counts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._per_core: list[float] = []
        self._per_second: list[float] = []

    def take(self, work: Callable[[], object], count: int) -> None:
        clock, core = time.perf_counter(), time.process_time()
        work()
        self._per_second.append(count / (time.perf_counter() - clock))
        self._per_core.append(count / (time.process_time() - core))

    @property
    def per_core(self) -> float:
        return statistics.median(self._per_core)

    @property
    def per_second(self) -> float:
        return statistics.median(self._per_second)


def run(work: Callable[..., object], items: object, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, items):  # type: ignore[call-overload]
            pass


def by_pillow(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data))
    image.load()
    size = within(*image.size, BUDGET)
    shrunk = image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)
    target = io.BytesIO()
    shrunk.save(target, "JPEG", quality=QUALITY, subsampling=0)
    return target.getvalue()


if __name__ == "__main__":
    main()
