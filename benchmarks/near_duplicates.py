"""Which perceptual hash finds copies of photographs and nothing else, and what finding them costs.

    python -m benchmarks.near_duplicates --photographs ../shared/data/bccd/images

Prints, for several hashes and distances, the share of copies that is found and the share of pairs of different
photographs, and of different filled-in forms, that is taken for copies; then the seconds that groups of 100,000
fingerprints take: of random bits, and of cut-outs of the photographs, which are as alike as images of one kind are.

    python -m benchmarks.near_duplicates --part alike --counts 100,1000,100000

needs no photographs: groups of so many fingerprints that nearly are the same, as of the frames of a video.
"""

from __future__ import annotations

import argparse
import io
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from benchmarks.convert import apart as alone
from vcot.datasets import near_duplicates
from vcot.storage import images

HASHES: dict[str, tuple[Callable[[Image.Image], Any], tuple[int, ...]]] = {
    "phash 8": (lambda p: imagehash.phash(p, 8), (4, 8, 12)),
    "phash 12": (lambda p: imagehash.phash(p, 12), (8, 16, 24, 32)),
    "phash 16": (lambda p: imagehash.phash(p, 16), (16, 32, 48)),
    "dhash 8": (lambda p: imagehash.dhash(p, 8), (4, 8, 12)),
    "dhash 16": (lambda p: imagehash.dhash(p, 16), (16, 32, 48)),
    "whash 8": (lambda p: imagehash.whash(p, 8), (4, 8, 12)),
    "average 16": (lambda p: imagehash.average_hash(p, 16), (16, 32, 48)),
}


def saved(image: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def cut(p: Image.Image, left: float, top: float, right: float, bottom: float) -> bytes:
    w, h = p.size
    return saved(p.crop((round(w * left), round(h * top), round(w * (1 - right)), round(h * (1 - bottom)))))


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "half": lambda p: saved(p.resize((p.width // 2, p.height // 2))),
    "quarter": lambda p: saved(p.resize((p.width // 4, p.height // 4))),
    "double": lambda p: saved(p.resize((p.width * 2, p.height * 2))),
    "stretched 10 %": lambda p: saved(p.resize((p.width * 11 // 10, p.height))),
    "JPEG 30": lambda p: saved(p, quality=30),
    "PNG": lambda p: saved(p, "PNG"),
    "grey": lambda p: saved(p.convert("L")),
    "brighter 20 %": lambda p: saved(ImageEnhance.Brightness(p).enhance(1.2)),
    "darker 20 %": lambda p: saved(ImageEnhance.Brightness(p).enhance(0.8)),
    "half, JPEG 50, darker": lambda p: saved(
        ImageEnhance.Brightness(p.resize((p.width // 2, p.height // 2))).enhance(0.9), quality=50
    ),
    "cut 1 % all around": lambda p: cut(p, 0.01, 0.01, 0.01, 0.01),
    "cut 2 % all around": lambda p: cut(p, 0.02, 0.02, 0.02, 0.02),
    "cut 5 % on the left": lambda p: cut(p, 0.05, 0, 0, 0),
    "cut 5 % all around": lambda p: cut(p, 0.05, 0.05, 0.05, 0.05),
}


def form(number: int) -> Image.Image:
    """One printed form, filled in by another hand: nearly the same to the eye from afar, and not the same image."""
    dice = random.Random(number)
    page = Image.new("RGB", (850, 1100), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(18)
    for line in range(24):
        y = 60 + 42 * line
        pen.text((60, y), f"Item {line}:", "black", font)
        pen.text((250, y), "".join(dice.choices("abcdefghij 0123456789", k=dice.randint(4, 30))), "black", font)
        pen.line((240, y + 24, 800, y + 24), "grey")
    return page


def text_page(number: int) -> Image.Image:
    """A page of running text, of which there are many."""
    dice = random.Random(number)
    page = Image.new("RGB", (850, 1100), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(16)
    y = dice.randint(40, 120)
    while y < 1040:
        line = " ".join("".join(dice.choices("abcdefghijklmnop", k=dice.randint(2, 9))) for _ in range(12))
        pen.text((60, y), line[: dice.choice((90, 90, 90, 40))], "black", font)
        y += dice.choice((22, 22, 22, 50))
    return page


def apart(prints: np.ndarray) -> np.ndarray:
    """Distances of all pairs of rows of bits."""
    left, right = np.triu_indices(len(prints), 1)
    return np.concatenate(
        [(prints[left[i : i + 4000]] != prints[right[i : i + 4000]]).sum(1) for i in range(0, len(left), 4000)]
    )


def rates(folder: Path, drawn: int) -> None:
    files = sorted(folder.glob("*.jpg"))
    photographs = [Image.open(file).convert("RGB") for file in files]
    seen = [images.small(file.read_bytes(), file.name, 64) for file in files]
    others = {"forms": [form(n) for n in range(drawn)], "pages": [text_page(n) for n in range(drawn)]}
    copies = {name: [images.small(copy(p), name, 64) for p in photographs] for name, copy in COPIES.items()}
    drawn_seen = {name: [images.small(saved(p, "PNG"), name, 64) for p in pages] for name, pages in others.items()}
    print(f"{len(files)} photographs, {len(files) * (len(files) - 1) // 2:,} pairs; {drawn} forms, {drawn} pages")
    for name, (hash_, distances) in HASHES.items():

        def bits(images: list[Image.Image], hash_: Callable[[Image.Image], Any] = hash_) -> np.ndarray:
            return np.array([hash_(p).hash.ravel() for p in images])

        begun = time.process_time()
        true = bits(seen)
        cost = (time.process_time() - begun) / len(seen) * 1e3
        false = {"photographs": apart(true)} | {kind: apart(bits(pages)) for kind, pages in drawn_seen.items()}
        found = {copy: (bits(copied) != true).sum(1) for copy, copied in copies.items()}
        closest = ", ".join(f"{kind} {np.sort(d)[:3]}" for kind, d in false.items())
        print(f"\n{name}: {true.shape[1]} bits, {cost:.2f} ms an image; nearest others: {closest}")
        for distance in distances:
            wrong = ", ".join(f"{kind} {(d <= distance).mean():.1e}" for kind, d in false.items())
            right = ", ".join(f"{copy} {(d <= distance).mean():.3f}" for copy, d in found.items())
            print(f"  at most {distance}: taken for copies: {wrong}; found: {right}")


def seconds(folder: Path, count: int) -> None:
    dice = np.random.default_rng(0)
    prints = dice.integers(0, 256, (count, near_duplicates.BYTES), dtype=np.uint8)
    _timed(f"{count:,} random fingerprints", prints)
    greys = [Image.open(file).convert("L").resize((160, 120)) for file in sorted(folder.glob("*.jpg"))]
    found = np.empty((count, near_duplicates.BYTES), np.uint8)
    begun = time.process_time()
    for n in range(count):
        grey = greys[n % len(greys)]
        x, y = dice.integers(0, 80), dice.integers(0, 60)
        print_ = near_duplicates.fingerprint(grey.crop((x, y, x + 80, y + 60)))
        found[n] = np.frombuffer(print_ or bytes(near_duplicates.BYTES), np.uint8)
    print(f"fingerprints of {count:,} cut-outs: {(time.process_time() - begun) / count * 1e3:.2f} ms each")
    _timed(f"{count:,} fingerprints of cut-outs", found)


def alike_ones(count: int) -> None:
    """Of scans of one form, or frames of a still camera (each up to 8 bits from one fingerprint), and of a moving one
    (each about 6 bits from the one before)."""
    dice = np.random.default_rng(0)
    one = dice.random(near_duplicates.BITS) < 0.5
    prints = np.empty((count, near_duplicates.BYTES), np.uint8)
    for row in prints:
        row[:] = np.packbits(one ^ (dice.permutation(near_duplicates.BITS) < dice.integers(0, 9)))
    _timed(f"{count:,} fingerprints of one form", prints)
    for row in prints:
        one = one ^ (dice.random(near_duplicates.BITS) < 6 / near_duplicates.BITS)
        row[:] = np.packbits(one)
    _timed(f"{count:,} fingerprints of a video", prints)


def _timed(what: str, prints: np.ndarray) -> None:
    before, begun = peak(), time.process_time()
    groups = near_duplicates.groups(prints)
    largest = np.bincount(groups).max()
    print(
        f"{what}: {time.process_time() - begun:.1f} s of CPU, {len(np.unique(groups)):,} groups, largest {largest:,}, "
        f"peak {peak()} MiB ({before} MiB before)",
        flush=True,
    )


def peak() -> int:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, help="folder of JPEGs")
    parser.add_argument("--count", type=int, default=100_000, help="fingerprints to group")
    parser.add_argument("--drawn", type=int, default=60, help="forms and pages")
    parser.add_argument("--counts", default="100,300,1000,2000,100000", help="part alike: fingerprints to group")
    parser.add_argument("--part", choices=("rates", "seconds", "alike"), help="default: the first two")
    given = parser.parse_args()
    if given.part == "alike":
        for count in map(int, given.counts.split(",")):
            alone(alike_ones, count)
        return
    if given.photographs is None:
        parser.error("--photographs is missing: a folder of JPEGs")
    if given.part != "seconds":
        rates(given.photographs, given.drawn)
    if given.part != "rates":
        seconds(given.photographs, given.count)


if __name__ == "__main__":
    main()
