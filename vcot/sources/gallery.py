"""Rows as the report's page shows them: the picture with its boxes, those too that were refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from PIL import Image as Pillow
from PIL import ImageDraw

from vcot.grounding import Box
from vcot.records.conversion import Conversion, Pair
from vcot.records.page import PREDICTED, TRUE, data_uri, overlay
from vcot.sources.quality import NEUTRAL
from vcot.sources.row import Edges
from vcot.sources.specimens import SHOWN, Chosen, Specimen
from vcot.storage import Store, images
from vcot.storage.images import ImageError

ROOM = 4_000_000
"""Characters that all pictures of a page may take, so that it opens anywhere."""

_SIDE, _SMALL_SIDE = 340, 230
"""Pixels of a picture's longer side, and that where there are many."""
_FEW, _MANY = 100, 160
"""Pictures on a page that are few, and how many there should be at most."""
_LEAST_ROWS = 2
"""Kept and refused rows of a dataset that are shown, even of very many datasets."""
_LOOKED_AT = 4_000_000
"""Pixels of a picture that are looked at; from close by a line of a scanned page can still be read."""
_SMALL = 0.05
"""Share of its picture below which a box is shown from close by, too."""
_CLOSE = (252, 84)
"""Pixels of a picture from close by."""
_LABEL = 32
_LEAST = 3
"""Pixels of the picture on the page that a box takes at least when it is drawn."""


@dataclass(frozen=True)
class Card:
    """picture: a data URI, or None, and `note` says why. close: its boxes from close by, where they are small."""

    row: Specimen
    picture: str | None
    close: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Shelf:
    """The rows of one dataset."""

    dataset: str
    kept: tuple[Card, ...]
    refused: tuple[Card, ...]


class Gallery:
    """Draws what the page shows. `max_pixels`: what is larger is not decoded."""

    def __init__(self, store: Store, *, max_pixels: int, room: int = ROOM) -> None:
        self._store, self._max_pixels, self._room = store, max_pixels, room
        self._side = _SIDE

    def shelves(self, chosen: Chosen, found: Conversion) -> list[Shelf]:
        """Every dataset with as many rows as there is room for, the largest first."""
        largest = sorted(chosen, key=lambda name: (-found.datasets[name].rows, name))
        rows = [(name, *_of_both(chosen[name], found.datasets[name].rejected)) for name in largest]

        def shown(most: int) -> int:
            return sum(len(kept[:most]) + len(refused[:most]) for _, kept, refused in rows)

        each = next((most for most in range(SHOWN, _LEAST_ROWS, -1) if shown(most) <= _MANY), _LEAST_ROWS)
        self._side = _SMALL_SIDE if shown(each) > _FEW else _SIDE
        return [
            Shelf(name, tuple(map(self._card, kept[:each])), tuple(map(self._card, refused[:each])))
            for name, kept, refused in rows
        ]

    def pair(self, pair: Pair) -> tuple[str | None, str | None]:
        """Both pictures of a pair, None for one that cannot be read."""
        return self._plain(pair.one), self._plain(pair.other)

    def _card(self, row: Specimen) -> Card:
        if row.image is None:
            note = "asked by text alone" if row.reason is None else "its picture cannot be shown"
            return Card(row, None, note=note)
        kept = row.image.kept
        try:
            pixels = self._load(kept.uri, kept.sha256)
        except ImageError as error:
            return Card(row, None, note=str(error))
        size = row.image.width, row.image.height
        drawn = list(_drawn(row, size, self._side))
        colour = PREDICTED if row.reason else TRUE
        boxes, labels = [box for box, _ in drawn], [label for _, label in drawn]
        whole = overlay(pixels, {colour: boxes}, {colour: labels}, original=size, longest_side=self._side)
        picture = self._uri(whole)
        if picture is None:
            return Card(row, None, note="no room for more pictures on this page")
        near = _close_by(pixels, boxes, size, colour)
        return Card(row, picture, None if near is None else self._uri(near))

    def _uri(self, picture: Pillow.Image) -> str | None:
        uri = data_uri(picture, quality=75)
        if len(uri) > self._room:
            return None
        self._room -= len(uri)
        return uri

    def _plain(self, uri: str) -> str | None:
        try:
            return self._uri(overlay(self._load(uri, None), {}, longest_side=_SMALL_SIDE))
        except ImageError:
            return None

    def _load(self, uri: str, sha256: str | None) -> Pillow.Image:
        data = images.fetch(self._store, uri, sha256=sha256)
        return images.decode(data, uri, max_pixels=self._max_pixels, budget=_LOOKED_AT).pixels


def _of_both(
    kinds: Mapping[str, Sequence[Specimen]], often: Mapping[str, int]
) -> tuple[Sequence[Specimen], Sequence[Specimen]]:
    """Rows that were kept; and refused ones, one of each reason, then a second of each, …, the most frequent first."""
    reasons = sorted((reason for reason in kinds if reason), key=lambda reason: (-often[reason], reason))
    rounds = zip_longest(*(kinds[reason] for reason in reasons))
    return kinds.get("", ()), [row for row in chain.from_iterable(rounds) if row is not None]


def _close_by(pixels: Pillow.Image, boxes: Sequence[Box], size: tuple[int, int], colour: str) -> Pillow.Image | None:
    """The first box with what is round it, three times as wide as high; None where it is large enough as it is."""
    if not boxes or boxes[0].area > _SMALL * size[0] * size[1]:
        return None
    across, down = pixels.width / size[0], pixels.height / size[1]
    box = Box(boxes[0].x1 * across, boxes[0].y1 * down, boxes[0].x2 * across, boxes[0].y2 * down)
    high = min(max(2 * (box.y2 - box.y1), 1.3 * (box.x2 - box.x1) / 3, 24.0), float(pixels.height))
    wide = min(3 * high, float(pixels.width))
    left = min(max((box.x1 + box.x2 - wide) / 2, 0), pixels.width - wide)
    top = min(max((box.y1 + box.y2 - high) / 2, 0), pixels.height - high)
    seen = pixels.resize(_CLOSE, Pillow.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
    x_scale, y_scale = seen.width / wide, seen.height / high
    edges = ((box.x1 - left) * x_scale, (box.y1 - top) * y_scale, (box.x2 - left) * x_scale, (box.y2 - top) * y_scale)
    ImageDraw.Draw(seen).rectangle(edges, outline=colour)
    return seen


# ------------------------------------------------------------------------------------------------------------- boxes


def _drawn(row: Specimen, size: tuple[int, int], side: int) -> Iterator[tuple[Box, str]]:
    """What can be drawn of a row's boxes, with labels; of one label the first box has it."""
    least = _LEAST * max(size) / side
    named: set[str] = set()
    for number, place in enumerate(row.places, 1):
        if row.reason is None:
            label = "" if place.label in (*named, NEUTRAL) else place.label
            named.add(place.label)
            label = label if len(label) <= _LABEL else f"{label[:_LABEL]}…"
        elif row.reason == "box-copies-disagree":
            label = f"copy {number}"
        else:
            label = fault(place.edges, size)
        yield within(place.edges, size, least), label


def fault(edges: Edges, size: tuple[int, int]) -> str:
    """What is wrong with a box that can be seen, in a word; "" of a sound one."""
    x1, y1, x2, y2 = edges
    if x2 < x1 or y2 < y1:
        return "inverted"
    if x1 == x2 or y1 == y2:
        return "empty"
    return "leaves the picture" if x1 < 0 or y1 < 0 or x2 > size[0] or y2 > size[1] else ""


def within(edges: Edges, size: tuple[int, int], least: float) -> Box:
    """A box where these edges are, or nearest to it: ends in order, cut at the border, `least` pixels a side."""
    x1, x2 = _span(edges[0], edges[2], size[0], least)
    y1, y2 = _span(edges[1], edges[3], size[1], least)
    return Box(x1, y1, x2, y2)


def _span(a: float, b: float, size: int, least: float) -> tuple[float, float]:
    least = min(least, float(size))
    low, high = (min(max(each, 0.0), float(size)) for each in sorted((a, b)))
    if high - low < least:
        low = min(max((low + high - least) / 2, 0.0), size - least)
        high = low + least
    return low, high
