"""Images that should not help: a model that answers as well with them does not look.

A *blank* image is uniform grey of the same size. A *shuffled* one belongs to another sample; it shows how much of a
result is prior knowledge of where such things usually lie. Questions by text alone have no such ablation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image

from vcot.errors import InputError
from vcot.evaluation.config import Condition
from vcot.records import Sample
from vcot.records.sample import read_image as kept_image
from vcot.storage import Store, images


def partners(samples: Sequence[Sample], seed: int) -> list[int]:
    """For each sample, the index of one with another image; its own, where it has none.

    Images are permuted in one cycle (Sattolo 1986), so none keeps its place, and samples that share an image share
    the other one too. Images are told apart by their digest, because datasets hold the same one under two names.

    Raises:
        InputError: all samples that have an image are about the same.
    """
    first: dict[str, int] = {}
    for index, sample in enumerate(samples):
        if sample.image is not None:
            first.setdefault(sample.image.sha256, index)
    if len(first) == 1:
        raise InputError("to shuffle images, samples of at least two are needed; leave out the condition shuffled")
    digests = sorted(first)
    other = digests.copy()
    generator = random.Random(seed)
    for place in range(len(other) - 1, 0, -1):
        swap = generator.randrange(place)
        other[place], other[swap] = other[swap], other[place]
    shown = dict(zip(digests, other, strict=True))
    return [
        index if (own := sample.image) is None else first[shown[own.sha256]] for index, sample in enumerate(samples)
    ]


def image_of(store: Store, sample: Sample) -> Image.Image:
    """The sample's own image as it is kept: upright RGB. Raises images.ImageError: it is missing, changed or broken."""
    return kept_image(store, sample.shown).pixels


def shown(condition: Condition, own: Image.Image, other: Image.Image | None = None) -> Image.Image:
    """What the model is given under a condition, always at the size of the sample's own image.

    The size is a hint as well (a tall box in a tall image), and the frame of a text may depend on it.
    """
    if condition == "real":
        return own
    if condition == "blank":
        return images.blank(*own.size)
    assert other is not None
    return other if other.size == own.size else other.resize(own.size, Image.Resampling.BICUBIC)
