"""Images as they are sent: upright, cut out, made small, packed as JPEG. Each is packed once."""

from __future__ import annotations

import asyncio
import base64
import io
from collections import OrderedDict

import PIL.Image
from PIL.Image import Resampling

from vcot.distill.request import QUALITY, ShownImage
from vcot.records.sample import kept_bytes
from vcot.storage import Store, images

KEPT = 64
"""Packed images that are kept for the next request about them; of 1,024 pixels, some 20 MB."""


class ImagePacker:
    """Image → data URL. For one event loop; the packing is done in its threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._packed: OrderedDict[ShownImage, asyncio.Future[str]] = OrderedDict()

    async def url(self, shown: ShownImage) -> str:
        """The image as a data URL. Raises ImageError: it is missing, changed or broken."""
        packed = self._packed.get(shown)
        if packed is None:
            packed = self._packed[shown] = asyncio.ensure_future(asyncio.to_thread(data_url, self._store, shown))
            if len(self._packed) > KEPT:
                self._packed.popitem(last=False)
        else:
            self._packed.move_to_end(shown)
        return await asyncio.shield(packed)


def data_url(store: Store, shown: ShownImage) -> str:
    """The image, or its part, as a JPEG of `size_of` pixels, in a data URL. Raises ImageError."""
    data = kept_bytes(store, shown.image)
    if _can_go_as_it_is(data, shown):
        return _url(data)
    pixels = images.decode(data, shown.image.kept.uri).pixels
    if shown.crop is not None:
        pixels = pixels.crop(_of_the_kept(shown))
    pixels = pixels.resize(_fitted(pixels.size, shown), Resampling.LANCZOS)
    packed = io.BytesIO()
    pixels.save(packed, "JPEG", quality=QUALITY)
    return _url(packed.getvalue())


def _url(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _can_go_as_it_is(data: bytes, shown: ShownImage) -> bool:
    """A JPEG of the right size need not be made again; but one with EXIF may say more than it shows, or lie on its
    side."""
    wanted = size_of(shown)
    if shown.crop is not None or wanted != (shown.image.kept.width, shown.image.kept.height):
        return False
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return (image.format, image.mode, image.size) == ("JPEG", "RGB", wanted) and "exif" not in image.info
    except (OSError, ValueError):
        return False  # decoding says what is wrong with it


def size_of(shown: ShownImage) -> tuple[int, int]:
    """Width and height of the image as it is sent, in pixels, without opening it."""
    width, height = shown.image.kept.width, shown.image.kept.height
    if shown.crop is not None:
        left, top, right, bottom = _of_the_kept(shown)
        width, height = right - left, bottom - top
    return _fitted((width, height), shown)


def _fitted(size: tuple[int, int], shown: ShownImage) -> tuple[int, int]:
    """Enlarged to the least shorter side where that is wanted, then made as small as it has to be."""
    scale = min(max(1.0, shown.least / min(size)), shown.side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _of_the_kept(shown: ShownImage) -> tuple[int, int, int, int]:
    """The crop in whole pixels of the image as it is kept, which may be smaller than the original; never empty."""
    image, box = shown.image, shown.crop
    assert box is not None
    across, down = image.kept.width / image.width, image.kept.height / image.height
    left, right = _edges(box.x1 * across, box.x2 * across, image.kept.width)
    top, bottom = _edges(box.y1 * down, box.y2 * down, image.kept.height)
    return left, top, right, bottom


def _edges(low: float, high: float, size: int) -> tuple[int, int]:
    first = min(int(low), size - 1)
    return first, min(max(round(high), first + 1), size)
