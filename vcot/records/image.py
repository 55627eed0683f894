"""The image of a Sample, as every stage after convert sees it: the stored copy where there is one.

Its boxes are in pixels of the upright original: `Image.frame` gives the frame that knows both sizes.
"""

from __future__ import annotations

from vcot.records.sample import Image
from vcot.storage import Store, images
from vcot.storage.images import DecodedImage


def kept_bytes(store: Store, image: Image) -> bytes:
    """Raises ImageError: they are missing, or not those that the Sample was made of."""
    return images.fetch(store, image.kept.uri, sha256=image.kept.sha256)


def read_image(store: Store, image: Image) -> DecodedImage:
    """Raises ImageError: it is missing, changed or broken."""
    return images.decode(kept_bytes(store, image), image.kept.uri)
