"""Images with boxes drawn on them: what is true in one colour, what a model said in another.

overlay(image, {TRUE: boxes}, {TRUE: labels}, original=(1695, 2200))   → the image with boxes drawn
data_uri(image)                                                       → what <img src="…"> takes
Gallery(store).card(example)                                          → an example as a page shows it
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from vcot.grounding import Box, Mention
from vcot.reports.sampling import Edges, ShownExample
from vcot.storage import Store, images
from vcot.storage.images import ImageError

TRUE = "#1a9850"
"""Colour of what is true, or of what is learned."""
PREDICTED = "#d9480f"
"""Colour of what a model said, or of what was refused."""

ROOM = 4_000_000
"""Characters that all images of a page may take, so that it opens anywhere."""
LARGE, SMALL = 340, 230
"""Pixels of an image's longer side on a page of few or many."""

_LOOKED_AT = 4_000_000
"""Pixels of an image that are decoded; from close by a line of a scanned page can still be read."""
_CLOSE_BY = (252, 84)
_SMALL_SHARE = 0.05
"""Share of its image below which a box is shown from close by, too."""
_LEAST = 3
"""Pixels of the image on the page that a box takes at least."""
_LABEL = 32


def data_uri(image: Image.Image, *, quality: int = 80) -> str:
    """The image as a JPEG inside the page."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def overlay(
    image: Image.Image,
    boxes_by_colour: Mapping[str, Sequence[Box]],
    labels: Mapping[str, Sequence[str]] | None = None,
    *,
    original: tuple[int, int] | None = None,
    longest_side: int = 480,
) -> Image.Image:
    """A copy of the image with boxes drawn on it, later colours above earlier ones.

    Args:
        image: at any size.
        labels: texts beside the boxes, one per box of that colour; "" for none.
        original: (width, height) of the image in whose pixels the boxes are; default: the image's own.
        longest_side: pixels of the result's longer side, so that small images can be seen and large ones do not
            fill the page.
    """
    width, height = original or image.size
    scale = longest_side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resample = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    canvas = image.convert("RGB").resize(size, resample)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(11, longest_side // 34))
    tags = []
    for colour, boxes in boxes_by_colour.items():
        texts = (labels or {}).get(colour, ())
        for place, box in enumerate(boxes):
            x1, x2 = (x * canvas.width / width for x in (box.x1, box.x2))
            y1, y2 = (y * canvas.height / height for y in (box.y1, box.y2))
            draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="white", width=5)
            draw.rectangle((x1, y1, x2, y2), outline=colour, width=3)
            if place < len(texts) and texts[place]:
                tags.append((x1, y1, texts[place], colour))
    for x, y, text, colour in tags:  # after all boxes, so that no box crosses a label out
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        wide, high = right - left + 6, bottom - top + 4
        x = min(max(0.0, x), max(0.0, canvas.width - wide))  # moved into the image where it would stand outside
        y = y - high if y >= high else y
        draw.rectangle((x, y, x + wide, y + high), fill=colour)
        draw.text((x + 3 - left, y + 2 - top), text, fill="white", font=font)
    return canvas


@dataclass(frozen=True)
class Card:
    """image: a data URI, or None, and `note` says why. close_by: its first box, where that is small.
    reasoning: HTML, labels in the colours of their boxes."""

    row: ShownExample
    image: str | None = None
    close_by: str | None = None
    note: str = ""
    reasoning: tuple[Markup, ...] = ()


class Gallery:
    """Draws examples until the page is full. `max_pixels`: what is larger is not decoded."""

    def __init__(self, store: Store, *, max_pixels: int = images.MAX_PIXELS, room: int = ROOM) -> None:
        self._store, self._max_pixels, self._room = store, max_pixels, room

    def card(self, row: ShownExample, side: int = LARGE) -> Card:
        proposed = {box.edges for box in row.boxes if box.proposed}
        reasoning = tuple(
            Markup().join(_part(part, proposed) for part in trace.parts) for trace in row.reasoning
        )  # fmt: skip
        if row.image is None:
            note = "its image cannot be shown" if row.written else "asked by text alone"
            return Card(row, note=note, reasoning=reasoning)
        try:
            pixels = self._load(row.image.kept.uri, row.image.kept.sha256)
        except ImageError as error:
            return Card(row, note=str(error), reasoning=reasoning)
        size = row.image.width, row.image.height
        boxes: dict[str, list[Box]] = {TRUE: [], PREDICTED: []}
        labels: dict[str, list[str]] = {TRUE: [], PREDICTED: []}
        for shown in row.boxes:
            colour = PREDICTED if shown.proposed else TRUE
            boxes[colour].append(inside(shown.edges, size, _LEAST * max(size) / side))
            labels[colour].append(shown.label if len(shown.label) <= _LABEL else f"{shown.label[:_LABEL]}…")
        image = self._fitted(overlay(pixels, boxes, labels, original=size, longest_side=side))
        if image is None:
            return Card(row, note="no room for more images on this page", reasoning=reasoning)
        near = _close_by(pixels, boxes, size)
        return Card(row, image, self._fitted(near) if near else None, reasoning=reasoning)

    def plain(self, uri: str) -> str | None:
        """The image alone; None where it cannot be shown."""
        try:
            return self._fitted(overlay(self._load(uri, None), {}, longest_side=SMALL))
        except ImageError:
            return None

    def _load(self, uri: str, sha256: str | None) -> Image.Image:
        data = images.fetch(self._store, uri, sha256=sha256)
        return images.decode(data, uri, max_pixels=self._max_pixels, budget=_LOOKED_AT).pixels

    def _fitted(self, image: Image.Image) -> str | None:
        uri = data_uri(image, quality=75)
        if len(uri) > self._room:
            return None
        self._room -= len(uri)
        return uri


def _part(part: str | Mention, proposed: set[Edges]) -> Markup:
    if isinstance(part, str):
        return Markup.escape(part)
    kind = "proposed" if any(tuple(box.as_list()) in proposed for box in part.boxes) else "true"
    return Markup('<span class="{}">{}</span>').format(kind, part.label)


def _close_by(
    image: Image.Image, boxes_by_colour: Mapping[str, Sequence[Box]], size: tuple[int, int]
) -> Image.Image | None:
    """The first box with what is round it, three times as wide as high; None where it is large enough as it is."""
    first = next(((box, colour) for colour, boxes in boxes_by_colour.items() for box in boxes), None)
    if first is None or first[0].area > _SMALL_SHARE * size[0] * size[1]:
        return None
    across, down = image.width / size[0], image.height / size[1]
    x1, x2, y1, y2 = (first[0].x1 * across, first[0].x2 * across, first[0].y1 * down, first[0].y2 * down)
    high = min(max(2 * (y2 - y1), 1.3 * (x2 - x1) / 3, 24.0), float(image.height))
    wide = min(3 * high, float(image.width))
    left = min(max((x1 + x2 - wide) / 2, 0), image.width - wide)
    top = min(max((y1 + y2 - high) / 2, 0), image.height - high)
    seen = image.resize(_CLOSE_BY, Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
    x_scale, y_scale = seen.width / wide, seen.height / high
    edges = ((x1 - left) * x_scale, (y1 - top) * y_scale, (x2 - left) * x_scale, (y2 - top) * y_scale)
    ImageDraw.Draw(seen).rectangle(edges, outline=first[1])
    return seen


def inside(edges: Edges, size: tuple[int, int], least: float) -> Box:
    """A box where these edges are, or nearest to it: ends in order, cut at the border, `least` pixels a side."""
    x1, x2 = _span(edges[0], edges[2], float(size[0]), least)
    y1, y2 = _span(edges[1], edges[3], float(size[1]), least)
    return Box(x1, y1, x2, y2)


def _span(a: float, b: float, size: float, least: float) -> tuple[float, float]:
    least = min(least, size)
    low, high = (min(max(each, 0.0), size) for each in sorted((a, b)))
    if high - low < least:
        low = min(max((low + high - least) / 2, 0.0), size - least)
        high = low + least
    return low, high
