"""Which pictures are nearly the same: a fingerprint of each, and groups of those whose fingerprints differ little.

The fingerprint is ImageHash's perceptual hash: which of the 12 x 12 lowest frequencies of the grey picture are above
their median. It hardly changes when a picture is scaled, stretched, saved again, brightened or cut by a percent or
two. Hash, size and distance were chosen by measurement (docs/log.md, "Near-duplicates").

Candidates are found by sampling bits (Indyk and Motwani 1998): two fingerprints are compared if they agree in all 16
of one of 96 fixed choices of bits. At the default distance of 24 of 144 bits that finds 99.5 % of the pairs, at 20
all but one in ten thousand, and of copies of one picture most are closer than 12.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 12
BITS = SIDE * SIDE
BYTES = BITS // 8
DISTANCE = 24
"""Bits in which fingerprints of one picture may differ. Different photographs that were measured differ in 46."""
FARTHEST = 32
"""What is farther would be found too seldom."""
SEEN = 4 * SIDE
"""Pixels a side that the hash looks at; a larger picture may be decoded at a fraction of its size."""

_FLAT = 1.0
_CHOICES, _CHOSEN = 96, 16

Prints = NDArray[np.uint8]


def fingerprint(grey: Image.Image) -> bytes | None:
    """144 bits of a grey picture. None: it shows nothing (a deviation below one grey level), so its bits are noise."""
    import imagehash

    looked_at = grey.resize((SEEN, SEEN), Image.Resampling.LANCZOS)
    if float(np.asarray(looked_at, dtype=np.float64).std()) < _FLAT:
        return None
    return np.packbits(imagehash.phash(looked_at, hash_size=SIDE).hash).tobytes()


def groups(prints: Prints, distance: int = DISTANCE) -> NDArray[np.int32]:
    """Fingerprints [N, 18] → the number of each one's group [N]: whoever is near a member is a member."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not len(prints):
        return np.zeros(0, np.int32)
    different, back = np.unique(prints, axis=0, return_inverse=True)
    found = [np.zeros((0, 2), np.int64), *near(different, distance)]
    left, right = np.unique(np.concatenate(found), axis=0).T
    size = len(different)
    graph = coo_matrix((np.ones(len(left), np.bool_), (left, right)), shape=(size, size))
    labels: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return labels[back.ravel()]


def farthest(prints: Prints) -> tuple[int, int, int]:
    """Which two of these fingerprints [N, 18] differ most, and in how many bits."""
    bits = np.bitwise_count(prints[:, None] ^ prints[None]).sum(axis=2, dtype=np.int64)
    one, other = divmod(int(bits.argmax()), len(prints))
    return one, other, int(bits[one, other])


def near(prints: Prints, distance: int) -> Iterator[NDArray[np.int64]]:
    """Pairs of rows [K, 2] that differ in at most `distance` bits; one pair may come several times."""
    words = np.zeros((len(prints), -(-BYTES // 8) * 8), np.uint8)
    words[:, :BYTES] = prints
    words = words.view(np.uint64)
    dice = np.random.default_rng(0)
    for _ in range(_CHOICES):
        key = _key(prints, dice.choice(BITS, _CHOSEN, replace=False))
        order = np.argsort(key, kind="stable")
        for left, right in _with_equal(key[order]):
            a, b = order[left], order[right]
            close = np.bitwise_count(words[a] ^ words[b]).sum(axis=1, dtype=np.int64) <= distance
            if close.any():
                yield np.sort(np.stack((a[close], b[close]), axis=1), axis=1)


def _key(prints: Prints, bits: NDArray[np.int64]) -> NDArray[np.uint16]:
    key = np.zeros(len(prints), np.uint16)
    for bit in bits:
        key = (key << 1) | ((prints[:, bit // 8] >> (7 - bit % 8)) & 1)
    return key


def _with_equal(sorted_key: NDArray[Any]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Positions of all pairs with an equal key: first neighbours, then those two apart, … as far as a run reaches."""
    left = np.arange(len(sorted_key) - 1)
    apart = 1
    while len(left):
        left = left[left + apart < len(sorted_key)]
        left = left[sorted_key[left] == sorted_key[left + apart]]
        if len(left):
            yield left, left + apart
        apart += 1
