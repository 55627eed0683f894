"""Examples for a page: chosen by a hash of their ids, and drawn with their boxes.

A shard puts its own aside in ``<stage>/report/00003.json``, and the finish takes the best of all. Chosen by a hash are
neither the first rows, nor others in another number of shards. The same rows give the same bytes, so it does not matter
who wrote them last.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from markupsafe import Markup
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from pydantic import Field, TypeAdapter

from vcot.errors import InputError
from vcot.grounding import Box, Mention
from vcot.records import Folder, Image
from vcot.records.base import PublicText, Record, TraceField
from vcot.records.shards import ShardMarker
from vcot.redaction import redacted
from vcot.storage import NotFound, Store, images, join, read_json
from vcot.storage.images import ImageError

Edges = tuple[float, float, float, float]

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


# --- which rows are shown ----------------------------------------------------------------------------------


class ShownBox(Record):
    """A box, or what was meant to be one: pixels of the original, perhaps outside or inverted."""

    label: str = ""
    edges: Edges
    proposed: bool = Field(False, description="by a teacher, or refused; else people drew it")


class ShownExample(Record):
    """A row as a page shows it. Texts are shortened."""

    id: str
    dataset: str
    group: str = Field(description="kept, or refused:<reason>, or part:<reason> of a row that was kept")
    split: str = ""
    part: str = Field("", description="what of the row was refused, where the rest of it was kept")
    detail: PublicText = ""
    said: tuple[PublicText, ...] = Field((), description="what the teacher said")
    written: PublicText = Field("", description="of a row that convert refused: what it says, as JSON")
    flags: tuple[str, ...] = ()
    question: PublicText = ""
    context: PublicText = ""
    choices: tuple[PublicText, ...] = ()
    answers: tuple[PublicText, ...] = ()
    metadata: tuple[PublicText, ...] = ()
    reasoning: tuple[TraceField, ...] = ()
    annotated: bool = True
    image: Image | None = None
    boxes: tuple[ShownBox, ...] = ()

    @property
    def reason(self) -> str:
        return self.group.partition(":")[2]


class ExampleSampler:
    """Of each group of each dataset the `most` rows whose ids have the smallest hashes.

    Of more than `datasets` datasets those with the smallest hashes are shown: rows may say anything of theirs.
    """

    def __init__(self, most: int, datasets: int = 64) -> None:
        self._most, self._datasets = most, datasets
        self._held: dict[str, dict[str, list[ShownExample]]] = {}

    def wants(self, dataset: str, group: str, row: str) -> bool:
        """Whether a row would be among those that are shown; to be asked before an example is made of it."""
        groups = self._held.get(dataset)
        if groups is None:
            return len(self._held) < self._datasets or _rank(dataset) < max(map(_rank, self._held))
        held = [one.id for one in groups.get(group, ())]
        return row not in held and (len(held) < self._most or _rank(row) < _rank(held[-1]))

    def add(self, example: ShownExample) -> None:
        if not self.wants(example.dataset, example.group, example.id):
            return
        if example.dataset not in self._held and len(self._held) == self._datasets:
            del self._held[max(self._held, key=_rank)]
        groups = self._held.setdefault(example.dataset, {})
        groups[example.group] = _best([*groups.get(example.group, ()), example], self._most)

    def by_dataset(self) -> dict[str, dict[str, list[ShownExample]]]:
        """Dataset → group → examples, by their hashes."""
        return {dataset: dict(sorted(groups.items())) for dataset, groups in sorted(self._held.items())}

    def of_group(self, group: str, most: int) -> list[ShownExample]:
        """Of all datasets together."""
        return _best([one for groups in self._held.values() for one in groups.get(group, ())], most)

    def put_aside(self, folder: Folder, shard: int) -> None:
        found = (one for groups in self.by_dataset().values() for some in groups.values() for one in some)
        examples = [one.model_dump(mode="json") for one in found]
        folder.store.write(_uri(folder, shard), redacted(json.dumps(examples, ensure_ascii=False)).encode())


_EXAMPLES = TypeAdapter(list[ShownExample])


def sampled(folder: Folder, markers: Iterable[ShardMarker], most: int) -> ExampleSampler:
    """The best of what all shards put aside. Raises InputError: one of them put nothing aside."""
    sampler, advice = ExampleSampler(most), f"delete {folder.uri} and run the stage again"
    for marker in markers:
        uri = _uri(folder, marker.shard)
        try:
            examples = read_json(folder.store, uri, _EXAMPLES.validate_python, advice)
        except NotFound:
            raise InputError(f"{uri} is missing; {advice}") from None
        for example in examples:
            sampler.add(example)
    return sampler


def _rank(name: str) -> tuple[int, str]:
    return crc32(name.encode(errors="surrogatepass")), name


def _best(examples: Iterable[ShownExample], most: int) -> list[ShownExample]:
    return sorted(examples, key=lambda one: _rank(one.id))[:most]


def _uri(folder: Folder, shard: int) -> str:
    return join(folder.uri, "report", f"{shard:05d}.json")


# --- how they are drawn ------------------------------------------------------------------------------------


def data_uri(image: Pillow.Image, *, quality: int = 80) -> str:
    """The image as a JPEG inside the page."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def overlay(
    image: Pillow.Image, boxes_by_colour: Mapping[str, Sequence[Box]],
    labels: Mapping[str, Sequence[str]] | None = None, *, original: tuple[int, int] | None = None,
    longest_side: int = 480,
) -> Pillow.Image:  # fmt: skip
    """A copy of the image with boxes drawn on it, later colours above earlier ones.

    labels: texts beside the boxes, one per box of that colour; "" for none. original: (width, height) of the image in
    whose pixels the boxes are; default: the image's own. longest_side: of the result, in pixels.
    """
    width, height = original or image.size
    scale = longest_side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = image.convert("RGB").resize(size, Pillow.Resampling.LANCZOS)
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


class Cards:
    """Draws examples until the page is full. `max_pixels`: what is larger is not decoded."""

    def __init__(self, store: Store, *, max_pixels: int = images.MAX_PIXELS, room: int = ROOM) -> None:
        self._store, self._max_pixels, self._room = store, max_pixels, room

    def card(self, row: ShownExample, side: int = LARGE) -> Card:
        proposed = {box.edges for box in row.boxes if box.proposed}
        reasoning = tuple(Markup().join(_part(part, proposed) for part in trace.parts) for trace in row.reasoning)
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

    def _load(self, uri: str, sha256: str | None) -> Pillow.Image:
        data = images.fetch(self._store, uri, sha256=sha256)
        return images.decode(data, uri, max_pixels=self._max_pixels, budget=_LOOKED_AT).pixels

    def _fitted(self, image: Pillow.Image) -> str | None:
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
    image: Pillow.Image, boxes_by_colour: Mapping[str, Sequence[Box]], size: tuple[int, int]
) -> Pillow.Image | None:
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
    seen = image.resize(_CLOSE_BY, Pillow.Resampling.BICUBIC, box=(left, top, left + wide, top + high))
    x_scale, y_scale = seen.width / wide, seen.height / high
    edges = ((x1 - left) * x_scale, (y1 - top) * y_scale, (x2 - left) * x_scale, (y2 - top) * y_scale)
    ImageDraw.Draw(seen).rectangle(edges, outline=first[1])
    return seen


def inside(edges: Edges, size: tuple[int, int], least: float) -> Box:
    """A box where these edges are, or nearest to it: ends in order, cut at the border, `least` pixels a side."""
    ends = []
    for axis in (0, 1):
        long = float(size[axis])
        shortest = min(least, long)
        low, high = (min(max(each, 0.0), long) for each in sorted((edges[axis], edges[axis + 2])))
        if high - low < shortest:
            low = min(max((low + high - shortest) / 2, 0.0), long - shortest)
            high = low + shortest
        ends.append((low, high))
    (x1, x2), (y1, y2) = ends
    return Box(x1, y1, x2, y2)
