"""What a teacher is shown and told of an image: objects, the words for them, crops, and the pixels as they are sent.

Objects are annotated ones, numbered, under names that give nothing away. What a teacher is told in general stands in
vcot/distill/prompts.
"""

from __future__ import annotations

import asyncio
import base64
import io
import random
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
from PIL.Image import Resampling

from vcot.distill.conclusion import gives_away
from vcot.distill.request import QUALITY, ShownImage, ShownPixels
from vcot.grounding import Box, Frame, overlap, place
from vcot.records import Image, Sample
from vcot.records.sample import kept_bytes
from vcot.storage import Store, images

NEUTRAL = "region"  # the name of an object whose own label is missing, or would tell the answer

NOTHING_THERE = """\
None of it: somebody checked that what the question asks for is not in the image. So use no brackets; say what \
was looked for and that it is not there."""


@dataclass(frozen=True)
class Object:
    """`number` counts annotated objects from 1 in the order of the evidence; 0: nobody annotated it."""

    number: int
    label: str
    box: Box


def objects_of(sample: Sample) -> tuple[Object, ...]:
    """The objects of the evidence, a number for each box; none where nothing is annotated."""
    found = [(spoken(m.label, sample), box) for m in sample.evidence or () for box in m.boxes]
    return tuple(Object(n, label, box) for n, (label, box) in enumerate(found, 1))


def spoken(label: str, sample: Sample) -> str:
    """The label as a sentence can hold it: on one line, without an article, and never the answer.

    A label that is an accepted answer, or holds one and is not the question's own word for the thing ("red
    disc" where the answer is "red"), would let a model name the answer before it looked. It becomes "region".
    """
    words = re.sub(r"^(?:the|an?) (?=\S)", "", " ".join(label.split()), flags=re.IGNORECASE)
    return NEUTRAL if not words or gives_away(words, sample) else words


# --- the words beside the image


def question_lines(sample: Sample) -> list[str]:
    """The question as somebody sees it who does not know its answer, with what was said before."""
    lines = [f"Images: {len(sample.images)}; all boxes are on the first."] if len(sample.images) > 1 else []
    lines += [f"Earlier, the {turn.role} said: {' '.join(turn.said.text.split())}" for turn in sample.turns]
    lines += [f"Question: {sample.question}", *([f"Context: {sample.context}"] if sample.context else [])]
    if sample.choices:
        lines.append("Choices: " + "; ".join(f"{chr(ord('A') + n)}. {one}" for n, one in enumerate(sample.choices)))
    return lines


def object_lines(sample: Sample, objects: Sequence[Object]) -> list[str]:
    nothing = NOTHING_THERE if sample.evidence == () else "None is known."
    return ["Objects:", *([object_line(one, sample.shown) for one in objects] or [nothing])]


def object_line(one: Object, image: Image) -> str:
    """`[1] red disc, top left, across 10-24 %, down 3-18 %`"""
    across, down = extent(one.box, image)
    return f"[{one.number}] {one.label}, {place(one.box, image.width, image.height)}, across {across}, down {down}"


def extent(box: Box, image: Image) -> tuple[str, str]:
    """From where to where it goes, across and down: `10-24 %`, in whole per cent of the image."""

    def percent(low: float, high: float, whole: int) -> str:
        return f"{round(100 * low / whole)}-{round(100 * high / whole)} %"

    return percent(box.x1, box.x2, image.width), percent(box.y1, box.y2, image.height)


def frame_line(frame: Frame) -> str:
    """In which numbers boxes are written."""
    return (
        f"Boxes are [x1, y1, x2, y2] in {frame.name.replace('_', ' ')} of the image (left, top, right, bottom); the "
        f"numbers run over {frame.range}, x to the right, y down."
    )


# --- crops
#
# Sides are padded, so that a thing is seen with what is around it, and small crops are enlarged; the same object always
# gives the same crop. Pixels are those of the upright original.

PAD, LEAST_PAD = 0.15, 16.0  # added on each side: this share of the box's side, at least so many pixels
SHORT_SIDE = 336  # pixels that the short side of a crop has at least, as it is sent
MOST_CROPS = 8  # in one request; where there is more to show, one around everything takes their place

_TRIES, _OVERLAP = 32, 0.1  # to find a negative crop, and how much of another thing it may show


def padded(box: Box, image: Image) -> Box:
    """What is cut out to show this box."""
    across, down = max(PAD * box.width, LEAST_PAD), max(PAD * box.height, LEAST_PAD)
    return Box(
        max(0.0, box.x1 - across), max(0.0, box.y1 - down),
        min(float(image.width), box.x2 + across), min(float(image.height), box.y2 + down),
    )  # fmt: skip


def evidence_crops(boxes: Sequence[Box], image: Image, side: int) -> list[ShownImage]:
    """The crops that show all these boxes; the whole image where there is none (nothing there is seen by looking
    everywhere)."""
    boxes = list(dict.fromkeys(boxes))
    if not boxes:
        return [ShownImage(image, side)]
    if len(boxes) > MOST_CROPS:
        left, top, right, bottom = zip(*(box.as_list() for box in boxes), strict=True)
        boxes = [Box(min(left), min(top), max(right), max(bottom))]
    return [ShownImage(image, side, padded(box, image), SHORT_SIDE) for box in boxes]


def negative_crop(box: Box, others: Sequence[Box], image: Image, seed: str) -> Box | None:
    """A place of the same size that shows none of these boxes, chosen by the seed; None where no such place is found.
    It may show another thing of the same name that nobody has marked, so the rate at which negative crops are accepted
    is an upper limit of how often nonsense is."""
    draw = random.Random(seed)
    taken = [padded(one, image) for one in (box, *others)]

    for _ in range(_TRIES):
        left, top = draw.uniform(0, image.width - box.width), draw.uniform(0, image.height - box.height)
        spot = Box(left, top, left + box.width, top + box.height)
        seen = padded(spot, image)
        if all(overlap(seen, one) <= _OVERLAP * min(seen.area, one.area) for one in taken):
            return spot
    return None


# --- images as they are sent: upright, cut out, made small, packed as JPEG; those in memory without any loss

KEPT = 64  # packed images that are kept for the next request about them; of 1,024 pixels a side, some 20 MB


class ImagePacker:
    """Image → data URL, each packed once. kept: how many, at most. For one event loop; the packing is done in its
    threads."""

    def __init__(self, store: Store, kept: int = KEPT) -> None:
        self._store, self._kept = store, kept
        self._packed: OrderedDict[ShownImage | tuple[str, tuple[int, int]], asyncio.Future[str]] = OrderedDict()

    async def url(self, shown: ShownImage | ShownPixels) -> str:
        """The image as a data URL. Raises ImageError: it is missing, changed or broken."""
        # By digest, as a key that is the image itself would keep its pixels.
        key = shown if isinstance(shown, ShownImage) else (shown.sha256, shown.size)
        if key not in self._packed:
            self._packed[key] = asyncio.ensure_future(asyncio.to_thread(data_url, self._store, shown))
            if len(self._packed) > self._kept:
                self._packed.popitem(last=False)
        self._packed.move_to_end(key)
        return await asyncio.shield(self._packed[key])


def data_url(store: Store, shown: ShownImage | ShownPixels) -> str:
    """The image, or its part, as a JPEG of `size_of` pixels, in a data URL; one in memory as a PNG. Raises
    ImageError."""
    if isinstance(shown, ShownPixels):
        return _png_url(shown)
    data = kept_bytes(store, shown.image)
    if not _can_go_as_it_is(data, shown):
        pixels = images.decode(data, shown.image.kept.uri).pixels
        if shown.crop is not None:
            pixels = pixels.crop(_kept_pixels(shown.image, shown.crop))
        pixels = pixels.resize(_fitted(pixels.size, shown), Resampling.LANCZOS)
        packed = io.BytesIO()
        pixels.save(packed, "JPEG", quality=QUALITY)
        data = packed.getvalue()
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _png_url(shown: ShownPixels) -> str:
    """Bicubic, as the models' own processors resize."""
    pixels = shown.pixels
    if pixels.size != shown.size:
        pixels = pixels.resize(shown.size, Resampling.BICUBIC)
    packed = io.BytesIO()
    pixels.save(packed, "PNG", compress_level=1)  # a higher level takes several times as long and saves a tenth
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def size_of(shown: ShownImage | ShownPixels) -> tuple[int, int]:
    """Width and height of the image as it is sent, in pixels, without opening it."""
    if isinstance(shown, ShownPixels):
        return shown.size
    width, height = shown.image.kept.width, shown.image.kept.height
    if shown.crop is not None:
        left, top, right, bottom = _kept_pixels(shown.image, shown.crop)
        width, height = right - left, bottom - top
    return _fitted((width, height), shown)


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


def _fitted(size: tuple[int, int], shown: ShownImage) -> tuple[int, int]:
    """Enlarged to the least shorter side where that is wanted, then made as small as it has to be."""
    scale = min(max(1.0, shown.least / min(size)), shown.side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _kept_pixels(image: Image, box: Box) -> tuple[int, int, int, int]:
    """The crop in whole pixels of the image as it is kept, which may be smaller than the original; never empty."""

    def edges(low: float, high: float, size: int) -> tuple[int, int]:
        first = min(int(low), size - 1)
        return first, min(max(round(high), first + 1), size)

    across, down = image.kept.width / image.width, image.kept.height / image.height
    left, right = edges(box.x1 * across, box.x2 * across, image.kept.width)
    top, bottom = edges(box.y1 * down, box.y2 * down, image.kept.height)
    return left, top, right, bottom
