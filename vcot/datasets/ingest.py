"""Images in the form that training streams: upright, within the model's budget of pixels, JPEG, each stored once.

A copy has its original's digest in its name, and the recipe's. So it is made once, however many rows, shards, pods or
runs want it, and a stage that is started again finds those it has made. The same bytes and the same Pillow give the
same copy: there is no time in it, nobody's place or camera, and nothing is tried twice to see what is smaller.

JPEG of quality 95, all three colours at full resolution. Of the images of a megapixel in docs/log.md a photograph
keeps 51 dB in a fifth of PNG's bytes, and coloured writing on a page 41 dB; with colours at half resolution, as is
usual, the writing would keep 25. WebP of quality 90 is smaller, but keeps less and takes 30 times as long to write.

Nothing is encoded twice: what is a JPEG, upright and small enough, keeps its own pixels (decoded once to see that they
are whole) and loses its metadata alone. Encoded again it would lose a little and grow to nearly three times its size.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image as Pillow

from vcot.records import Image
from vcot.records.sample import Stored
from vcot.storage import Store, images, join
from vcot.storage.images import ImageError

QUALITY = 95


class Ingest:
    """Makes copies below a folder; share it between threads.

    Args:
        budget: what is larger is shrunk to at most so many pixels, its shape kept. Nothing is enlarged.
        max_pixels: what is larger is refused before it is decoded; and so many at most are decoded at once, by all
            threads together.
    """

    def __init__(self, store: Store, folder_uri: str, budget: int, *, max_pixels: int = images.MAX_PIXELS) -> None:
        self.budget = budget
        self._store, self._folder_uri, self._max_pixels = store, folder_uri, max_pixels
        self._room = Room(max_pixels)

    def take(self, uri: str, data: bytes, size: tuple[int, int]) -> Image:
        """The record of the image in these bytes, with its copy in storage.

        Args:
            size: width and height of the upright original, from its header.

        Raises:
            ImageError: it cannot be used.
        """
        digest = hashlib.sha256(data).hexdigest()
        there = join(self._folder_uri, digest[:2], f"{digest}.{self.budget}-q{QUALITY}.jpg")
        if (copy := self._made_before(there)) is None:
            with self._room.taken(size[0] * size[1]):
                image = images.decode(data, uri, max_pixels=self._max_pixels, budget=self.budget, sha256=digest)
                as_it_is = bare(data) if image.format == "JPEG" and image.as_stored else None
                copy = as_it_is or packed(image.pixels)
            self._store.write(there, copy)
        width, height = images.within(*size, self.budget)
        stored = Stored(uri=there, width=width, height=height, sha256=hashlib.sha256(copy).hexdigest())
        return Image(uri=uri, width=size[0], height=size[1], sha256=digest, stored=stored)

    def _made_before(self, uri: str) -> bytes | None:
        """The copy, if it is there and whole. Storage shows nothing half-written, but people copy folders."""
        if self._store.stat(uri) is None:
            return None
        try:
            copy = images.fetch(self._store, uri)
        except ImageError:
            return None
        return copy if copy.startswith(b"\xff\xd8") and copy.endswith(_END) else None


class Room:
    """For so many pixels at a time: 128 readers of scanned pages would need more memory than a node has."""

    def __init__(self, pixels: int) -> None:
        self._most, self._used, self._changed = pixels, 0, threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits until they fit in. What is larger than all the room comes in alone."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + pixels <= self._most)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


def bare(jpeg: bytes) -> bytes | None:
    """A JPEG without what cameras and programs write beside the image (APP1 to APP15, comments).

    APP0 and APP14 stay: decoders read from them which colours the numbers are. None where the file is not built as
    the book says (ISO/IEC 10918-1, B.1), which decoders put up with: something behind its end, or between segments.
    """
    if not jpeg.endswith(_END):
        return None
    kept, at = [jpeg[:2]], 2
    while jpeg[at : at + 2] != _SCAN:
        length = int.from_bytes(jpeg[at + 2 : at + 4])
        if length < 2 or at + 2 + length > len(jpeg) or jpeg[at] != 0xFF or jpeg[at + 1] not in _SEGMENTS:
            return None
        if jpeg[at + 1] not in _BESIDE:
            kept.append(jpeg[at : at + 2 + length])
        at += 2 + length
    return b"".join((*kept, jpeg[at:]))


_END, _SCAN = b"\xff\xd9", b"\xff\xda"
_SEGMENTS = {*range(0xC0, 0xD0), *range(0xDB, 0xFF)}  # all markers that say how long their segment is
_BESIDE = {0xFE, *range(0xE1, 0xF0)} - {0xEE}


def packed(pixels: Pillow.Image) -> bytes:
    """As a JPEG. Through a file: Pillow lets other threads work while it writes into one, and not into memory."""
    with tempfile.TemporaryFile() as file:
        pixels.save(file, "JPEG", quality=QUALITY, subsampling=0)
        file.seek(0)
        return file.read()
