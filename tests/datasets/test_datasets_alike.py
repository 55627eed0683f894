"""Near-duplicates: copies of photographs are found, other photographs are not, and nothing is found in no time."""

from __future__ import annotations

import io
import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings as tuned
from hypothesis import strategies as some
from PIL import Image, ImageEnhance

from vcot.datasets import alike
from vcot.storage import images

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data")) / "bccd" / "images"


def saved(image: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bits(data: bytes) -> np.ndarray:
    found = alike.fingerprint(images.small(data, "a", alike.SEEN))
    assert found is not None
    return np.frombuffer(found, np.uint8)


def distance(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.bitwise_count(one ^ other).sum())


def cut(image: Image.Image, share: float) -> Image.Image:
    across, down = round(image.width * share), round(image.height * share)
    return image.crop((across, down, image.width - across, image.height - down))


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "half as large": lambda p: saved(p.resize((p.width // 2, p.height // 2))),
    "twice as large": lambda p: saved(p.resize((p.width * 2, p.height * 2))),
    "stretched by a tenth": lambda p: saved(p.resize((p.width * 11 // 10, p.height))),
    "saved badly": lambda p: saved(p, quality=30),
    "as PNG": lambda p: saved(p, "PNG"),
    "grey": lambda p: saved(p.convert("L")),
    "one percent cut at each side": lambda p: saved(cut(p, 0.01)),
    "two percent cut at each side": lambda p: saved(cut(p, 0.02)),
    "brighter": lambda p: saved(ImageEnhance.Brightness(p).enhance(1.2)),
    "darker": lambda p: saved(ImageEnhance.Brightness(p).enhance(0.8)),
}


@pytest.mark.skipif(not DATA.is_dir(), reason=f"there are no photographs in {DATA}")
def test_copies_of_photographs_are_near_and_other_photographs_are_far() -> None:
    files = random.Random(0).sample(sorted(DATA.glob("*.jpg")), 40)
    photographs = [Image.open(file).convert("RGB") for file in files]
    originals = [bits(file.read_bytes()) for file in files]
    for name, copy in COPIES.items():
        apart = [distance(bits(copy(p)), o) for p, o in zip(photographs, originals, strict=True)]
        assert max(apart) <= alike.DISTANCE, (name, apart)
    others = [distance(a, b) for n, a in enumerate(originals) for b in originals[:n]]
    assert min(others) > alike.FARTHEST, min(others)


def test_an_image_is_looked_at_upright() -> None:
    image = Image.effect_noise((200, 120), 80).resize((400, 240))
    turned = Image.Exif()
    turned[0x0112] = 6
    buffer = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", exif=turned)
    assert distance(bits(buffer.getvalue()), bits(saved(image))) <= 4


def test_an_image_that_shows_nothing_is_like_no_other() -> None:
    assert alike.fingerprint(Image.new("L", (64, 64), 200)) is None


def prints(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, alike.BYTES), dtype=np.uint8)


def flipped(print_: np.ndarray, count: int, dice: np.random.Generator) -> np.ndarray:
    unpacked = np.unpackbits(print_)
    unpacked[dice.choice(alike.BITS, count, replace=False)] ^= 1
    return np.packbits(unpacked)


@pytest.mark.parametrize(("apart", "found"), [(0, 1.0), (8, 1.0), (16, 1.0), (24, 0.97), (25, 0.0)])
def test_pairs_that_are_near_are_found(apart: int, found: float) -> None:
    dice = np.random.default_rng(1)
    many = prints(4000)
    many[2000:2300] = [flipped(many[n], apart, dice) for n in range(300)]
    groups = alike.groups(many, 24)
    share = (groups[:300] == groups[2000:2300]).mean()
    assert share >= found if found else share == 0
    assert len(np.unique(groups)) == 4000 - round(300 * share)  # and nothing else is


def noisy(count: int, flips: float, seed: int = 0) -> np.ndarray:
    """One fingerprint in which each bit is turned over by chance: a scanned form, the frames of a still camera."""
    dice = np.random.default_rng(seed)
    one = dice.random(alike.BITS) < 0.5
    return np.packbits(one ^ (dice.random((count, alike.BITS)) < flips / alike.BITS), axis=1)


def drifting(count: int, flips: float, seed: int = 0) -> np.ndarray:
    """Each a little unlike the one before it: the frames of a moving camera."""
    dice = np.random.default_rng(seed)
    turned = dice.random((count, alike.BITS)) < flips / alike.BITS
    return np.packbits(np.cumsum(turned, axis=0) & 1, axis=1)


def members(groups: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(groups == group).tolist()) for group in np.unique(groups)}


def compared_all(many: np.ndarray, at_most: int) -> set[frozenset[int]]:
    """The groups, by comparing all with all."""
    groups = np.arange(len(many))
    for one in range(len(many)):
        near = np.bitwise_count(many[one] ^ many).sum(axis=1) <= at_most
        groups[np.isin(groups, groups[near])] = one
    return members(groups)


@tuned(max_examples=100, deadline=None)
@for_all(
    some.lists(some.tuples(some.sampled_from([noisy, drifting]), some.integers(1, 40), some.floats(0, 8)), max_size=4),
    some.integers(0, 1 << 32),
    some.integers(8, 16),
)
def test_groups_are_those_that_comparing_all_with_all_gives(drawn: Any, seed: int, at_most: int) -> None:
    """At up to 16 bits, where one pair in ten millions is missed."""
    parts = [make(count, flips, seed + place) for place, (make, count, flips) in enumerate(drawn)]
    many = np.random.default_rng(seed).permutation(np.concatenate([prints(3, seed), *parts]))
    assert members(alike.groups(many, at_most)) == compared_all(many, at_most)


@pytest.mark.parametrize(
    "many",
    [
        noisy(30_000, 4),
        noisy(30_000, 16),
        drifting(30_000, 6),
        np.concatenate([noisy(10_000, 3, n) for n in (1, 2, 3)]),
    ],
    ids=["alike", "mostly-alike", "a-video", "three-still-videos"],
)
def test_thousands_of_alike_images_take_no_more_memory_than_others(many: np.ndarray) -> None:
    """Pairs of them are hundreds of millions. Bytes an image, so that no pair of each can be held."""
    tracemalloc.start()
    try:
        found = alike.groups(many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert np.bincount(found).max() >= 10_000
    assert peak / len(many) < 500
