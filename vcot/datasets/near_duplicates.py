"""Which images are nearly the same: a fingerprint of each, and groups of those whose fingerprints differ little.

The fingerprint is ImageHash's perceptual hash: which of the 12 x 12 lowest frequencies of the grey image are above
their median. It hardly changes when an image is scaled, stretched, saved again, brightened or cut by a percent or
two. Hash, size and distance were chosen by measurement (docs/log.md, "Near-duplicates").

Candidates are found by sampling bits (Indyk and Motwani 1998): two fingerprints are compared if they agree in all 16
of one of 96 fixed choices of bits. At the default distance of 24 of 144 bits that finds 99.5 % of the pairs, at 20
all but one in ten thousand, and of copies of one image most are closer than 12.
"""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 12
BITS = SIDE * SIDE
BYTES = BITS // 8
DISTANCE = 24
"""Bits in which fingerprints of one image may differ. Different photographs that were measured differ in 46."""
SEEN = 4 * SIDE
"""Pixels a side that the hash looks at; a larger image may be decoded at a fraction of its size."""

_FLAT = 1.0
_CHOICES, _CHOSEN = 96, 16
_GROUPS, _MEMBERS, _PAIRS = 1000, 64, 4
"""For the report: so many groups are looked at, so many images of each; shown are so many that are far apart, and so
many by chance.
"""

Prints = NDArray[np.uint8]


def fingerprint(grey: Image.Image) -> bytes | None:
    """144 bits of a grey image. None: it shows nothing (a deviation below one grey level), so its bits are noise."""
    import imagehash

    looked_at = grey.resize((SEEN, SEEN), Image.Resampling.LANCZOS)
    if float(np.asarray(looked_at, dtype=np.float64).std()) < _FLAT:
        return None
    return np.packbits(imagehash.phash(looked_at, hash_size=SIDE).hash).tobytes()


def groups(prints: Prints, distance: int = DISTANCE) -> NDArray[np.int32]:
    """Fingerprints [N, 18] → the number of each one's group [N]: whoever is near a member is a member.

    No pair is kept, and two that are known to be in one group are not compared: N that are all alike take about N
    comparisons. Memory: about 300 bytes a fingerprint, however many are near_duplicates.
    """
    different, back = np.unique(prints, axis=0, return_inverse=True)
    words = np.zeros((len(different), -(-BYTES // 8) * 8), np.uint8)
    words[:, :BYTES] = different
    groups_ = np.arange(len(different), dtype=np.int32)
    dice = np.random.default_rng(0)
    for _ in range(_CHOICES):
        key = _key(different, dice.choice(BITS, _CHOSEN, replace=False))
        groups_ = _joined(groups_, key, words.view(np.uint64), distance)
    return groups_[back.ravel()]


class Found(NamedTuple):
    """members: (place of a fingerprint, number of its group), of those that are near another. largest: how many are in
    one group. pairs: (bits that differ, size of the group, places of the two) of some groups.
    """

    members: list[tuple[int, int]]
    groups: int
    largest: int
    pairs: list[tuple[int, int, int, int]]


def search(prints: bytes | bytearray, distance: int) -> Found:
    """The groups of several, and of some of them the two that differ most: where they do most of all, and by chance."""
    many = np.frombuffer(prints, np.uint8).reshape(-1, BYTES)
    labels = groups(many, distance)
    sizes = np.bincount(labels, minlength=1)
    places = np.flatnonzero(sizes[labels] > 1)
    own = labels[places]
    _, firsts = np.unique(own, return_index=True)
    pairs = []
    for group in own[np.sort(firsts)[:_GROUPS]]:
        members = np.flatnonzero(labels == group)
        few = many[members[:_MEMBERS]]
        bits = np.bitwise_count(few[:, None] ^ few[None]).sum(axis=2, dtype=np.int64)
        one, other = divmod(int(bits.argmax()), len(few))
        pairs.append((int(bits[one, other]), len(members), int(members[one]), int(members[other])))
    pairs.sort(key=itemgetter(0), reverse=True)
    chosen = pairs[:_PAIRS] + sorted(pairs[_PAIRS:], key=itemgetter(2))[:_PAIRS]
    together = list(zip(places.tolist(), own.tolist(), strict=True))
    return Found(together, len(firsts), int(sizes[own].max(initial=0)), chosen)


def _key(prints: Prints, bits: NDArray[np.int64]) -> NDArray[np.uint16]:
    key = np.zeros(len(prints), np.uint16)
    for bit in bits:
        key = (key << 1) | ((prints[:, bit // 8] >> (7 - bit % 8)) & 1)
    return key


def _joined(
    groups_: NDArray[np.int32], key: NDArray[np.uint16], words: NDArray[np.uint64], distance: int
) -> NDArray[np.int32]:
    """The groups [N] after all with an equal key [N] have been compared, where they are in two groups.

    In each round the first of every run of equal keys meets the others of its run, and leaves. A run that is one group
    has nothing more to tell. Members of small groups come first, so that a large group beside a few others is met by
    these, and does not meet them one by one.
    """
    left = np.lexsort((np.bincount(groups_)[groups_], key)).astype(np.int32)
    while len(left):
        starts = np.flatnonzero(np.diff(key[left], prepend=~key[left[0]]))
        lengths = np.diff(starts, append=len(left))
        first = np.repeat(left[starts], lengths)
        apart = groups_[first] != groups_[left]
        one, other = first[apart], left[apart]
        near = np.bitwise_count(words[one] ^ words[other]).sum(axis=1, dtype=np.uint8) <= distance
        if near.any():
            groups_ = _merged(groups_, groups_[one[near]], groups_[other[near]])
        stays = np.repeat(np.logical_or.reduceat(apart, starts), lengths)
        stays[starts] = False
        left = left[stays]
    return groups_


def _merged(groups_: NDArray[np.int32], one: NDArray[np.int32], other: NDArray[np.int32]) -> NDArray[np.int32]:
    """The groups [N] after groups `one` [K] and `other` [K] have become one, and what hangs together through them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    numbers, ends = np.unique(np.stack((one, other)), return_inverse=True)
    size = len(numbers)
    links = coo_matrix((np.ones(len(one), np.bool_), tuple(ends.reshape(2, -1))), shape=(size, size))
    renamed = np.arange(len(groups_), dtype=np.int32)
    renamed[numbers] = numbers[connected_components(links, directed=False)[1]]
    return renamed[groups_]
