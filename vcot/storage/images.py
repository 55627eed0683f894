"""An image URI → pixels, upright, with its size and digest checked, or the reason why not.

An image that differs from what its annotator saw moves every box, quietly. So nothing is guessed here: a truncated
file is refused instead of filled with grey, the EXIF rotation is applied (and `probe` gives the size after it), 16
bits become the high 8, what is transparent becomes white, and of an animation (GIF, WebP, PNG) or of several pages the
first counts: a still preview is what an annotator saw. Colour profiles are not applied: the models were not trained on
colour-managed images either.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, features

from vcot.errors import InputError
from vcot.storage.local import NotFound
from vcot.storage.reread import confirmed
from vcot.storage.store import Store

MAX_PIXELS = 100_000_000  # 300 MB as RGB; a camera's 50 megapixels pass, a decompression bomb does not
MAX_BYTES = 256 << 20

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

Reason = Literal[
    "missing",  # nothing is stored there
    "changed",  # its sha256 is not the one that was recorded
    "not-an-image",  # no format has this beginning: a web page, an empty file
    "unsupported-format",  # an image, but not of FORMATS, of a depth that cannot become RGB, or at a URI nobody speaks
    "truncated",  # it ends too early
    "broken",  # it contradicts itself
    "too-large",  # more pixels or bytes than allowed; found before anything is decoded
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class ImageError(InputError):
    """An image that cannot be used. `reason` is one of REASONS, for row counts; the message is for people."""

    def __init__(self, name: str, reason: Reason, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.reason: Reason = reason


@dataclass(frozen=True)
class DecodedImage:
    """
    pixels: RGB, upright, without metadata. width, height: of the upright original; `pixels` has fewer where a budget
    asked for it. sha256: of the bytes that were decoded. format: as Pillow calls it. as_stored: nothing had to be done
    to the pixels: they stood upright, in colour or grey, and are all there.
    """

    pixels: Image.Image
    width: int
    height: int
    sha256: str
    format: str
    as_stored: bool


def fetch(store: Store, uri: str, *, sha256: str | None = None) -> bytes:
    """Return the bytes at a URI, at most as many as are ever decoded. Raises ImageError.

    sha256: the recorded digest.
    """

    def attempt() -> bytes:
        data = store.read_range(uri, 0, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ImageError(uri, "too-large", f"more than {MAX_BYTES >> 20} MiB")
        if sha256 is not None and (digest := hashlib.sha256(data).hexdigest()) != sha256:
            detail = f"sha256 is {digest[:12]}… ({len(data):,} bytes), recorded was {sha256[:12]}…"
            raise ImageError(uri, "changed", detail)
        return data

    try:
        return confirmed(uri, attempt)
    except NotFound as error:
        raise ImageError(uri, "missing", str(error).removeprefix(f"{uri}: ")) from error


def decode(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, budget: int | None = None, sha256: str | None = None
) -> DecodedImage:
    """The image in these bytes; with a `budget`, shrunk to at most so many pixels and never enlarged.

    A small budget makes large JPEGs fast, too: a look at a thumbnail costs a fraction of the whole image. `sha256`: the
    digest of these bytes, for whoever knows it already. Raises ImageError: it cannot be used; the reason is one of
    REASONS.
    """
    image = _open(data, name, max_pixels)
    form = image.format or "?"
    size = image.size  # Pillow gives that of a TIFF after the rotation, and of everything else before it
    target = image.size if budget is None else within(*image.size, budget)
    # Some libraries set this for the whole process, and a truncated image would then end in plain grey.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        # Lets the decoder of JPEG leave out frequencies that the smaller size has no room for; `part` of what it gives
        # is the image. Halves, quarters and eighths, never below one and a half times the target: the difference to an
        # image that is shrunk from all pixels is less than two good filters make (docs/log.md).
        drafted = (
            image.draft(None, (math.ceil(1.5 * target[0]), math.ceil(1.5 * target[1]))) if size != target else None
        )
        part = drafted[1] if drafted else None
        image.load()
        orientation = _orientation(image)
        if _is_png_of_16_bits(data) and image.mode in ("LA", "RGB", "RGBA"):
            _check_high_bytes(np.asarray(image), name)
        pixels = _rgb(image, name)
        if pixels.size != target:
            pixels = pixels.resize(target, Image.Resampling.BICUBIC, box=part)  # what the models' processors use
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(name, "too-large", str(error)) from error
    except _PILLOW_ERRORS as error:
        raise _unreadable(name, form, data, error) from error
    as_stored = image.mode in ("L", "RGB") and orientation not in _TURNS and size == target
    if orientation in _TURNS:
        pixels = pixels.transpose(_TURNS[orientation])
    pixels.info = {}  # EXIF among it: whoever saved the pixels with it would have them turned a second time
    width, height = size[::-1] if orientation in _SIDEWAYS else size
    return DecodedImage(pixels, width, height, sha256 or hashlib.sha256(data).hexdigest(), form, as_stored)


def within(width: int, height: int, budget: int) -> tuple[int, int]:
    """The largest size of this shape with at most `budget` pixels; never a larger one than it is.

    Shapes so long that a side would vanish keep one pixel of it.
    """
    if width * height <= budget:
        return width, height
    scale = math.sqrt(budget / (width * height))
    short = max(1, math.floor(min(width, height) * scale))
    long = max(1, min(math.floor(max(width, height) * scale), budget // short))
    return (long, short) if width >= height else (short, long)


def probe(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of the upright image, from its header. The rest may be broken or not there."""
    image = _open(data, name, max_pixels)
    width, height = image.size
    # A PNG may have its EXIF anywhere: Pillow decodes all pixels to find out, a search takes microseconds.
    turned = image.format != "PNG" or any(word in data for word in (b"eXIf", b"Raw profile type", b"adobe.xmp"))
    # Pillow gives the size of a TIFF after the rotation, and of everything else before it.
    sideways = image.format != "TIFF" and turned and _orientation(image) in _SIDEWAYS
    return (height, width) if sideways else (width, height)


def small(data: bytes, name: str, side: int, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The upright image in grey, for a look at the whole: made smaller, but not below `side` pixels a side.

    Several times faster than `decode`: a JPEG is decoded at a fraction of its size, and nothing is made RGB that
    need not be. Raises ImageError.
    """
    image = _open(data, name, max_pixels)
    if image.mode not in ("1", "L", "RGB", "YCbCr", "CMYK") or "transparency" in image.info or _is_png_of_16_bits(data):
        grey, orientation = decode(data, name, max_pixels=max_pixels).pixels.convert("L"), 1
    else:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            image.draft("L", (side, side))
            image.load()  # before the orientation is asked for: that would decode a PNG, too, and pass over its faults
            orientation = _orientation(image)
            grey = image.convert("L")
        except _PILLOW_ERRORS as error:
            raise _unreadable(name, image.format or "?", data, error) from error
    grey = grey.reduce(max(1, min(grey.size) // side))
    return grey.transpose(_TURNS[orientation]) if orientation in _TURNS else grey


def blank(width: int, height: int) -> Image.Image:
    """Uniform grey, where an image is needed that shows nothing: how well does a model guess without looking?"""
    return Image.new("RGB", (width, height), (128, 128, 128))


def with_noise(
    image: Image.Image, regions: Iterable[Sequence[float]], of: tuple[int, int], seed: int, *, around: bool = False
) -> Image.Image:
    """Uniform noise in the place of what lies in these regions (x1, y1, x2, y2 in pixels of an image of width × height
    `of`, which this one shows at its own size), or of all that lies around them."""
    across, down = image.width / of[0], image.height / of[1]
    hidden = np.zeros((image.height, image.width), dtype=bool)
    for x1, y1, x2, y2 in regions:
        top, left = int(y1 * down), int(x1 * across)  # at least a pixel, however thin the region is
        hidden[top : max(round(y2 * down), top + 1), left : max(round(x2 * across), left + 1)] = True
    pixels = np.array(image)
    noise = np.random.default_rng(seed).integers(0, 256, pixels.shape, dtype=np.uint8)
    return Image.fromarray(np.where((hidden != around)[..., None], noise, pixels))


# EXIF's eight orientations: what was done to the image, so what must be undone.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258

# Pillow's decoders raise all of these at bytes that are not what they say.
_PILLOW_ERRORS: tuple[type[Exception], ...] = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError)
_PILLOW_ERRORS += (ArithmeticError, RuntimeError, AttributeError, struct.error, zlib.error)


def _open(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """The header alone, judged by our limit.

    Not Image.open: it tries 40 formats, and has a limit of its own that is a warning below and an error above,
    set for the whole process.
    """
    Image.init()
    beginning = data[:16]
    if not beginning:
        raise ImageError(name, "not-an-image", "the file is empty")
    if beginning[4:8] == b"ftyp" and (kind := _in_boxes(data)) not in _readable_here():
        raise ImageError(name, "unsupported-format", f"{kind}; supported are {', '.join(_readable_here())}")
    for form in FORMATS:
        factory, accepts = Image.OPEN[form]
        if not _claims(accepts, beginning):
            continue
        try:
            image = factory(io.BytesIO(data), name)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(name, "too-large", str(error)) from error  # GIF and TIFF look at sizes inside, too
        except _PILLOW_ERRORS as error:
            raise _unreadable(name, form, data, error) from error
        width, height = image.size
        if width * height > max_pixels:
            raise ImageError(name, "too-large", f"{width} x {height} pixels; at most {max_pixels:,} are decoded")
        return image
    for form, (_, accepts) in Image.OPEN.items():
        if _claims(accepts, beginning):
            raise ImageError(name, "unsupported-format", f"{form}; supported are {', '.join(_readable_here())}")
    kind = " (it looks like a web page)" if data[:512].lstrip().lower().startswith((b"<!doctype", b"<html")) else ""
    raise ImageError(name, "not-an-image", f"no image format begins with {beginning!r}{kind}")


def _in_boxes(data: bytes) -> str:
    """What a file of boxes (ISO/IEC 14496-12) holds, by the brands that its first box lists: an image or a film."""
    end = min(int.from_bytes(data[:4]), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if any(brand.startswith((b"hei", b"hev")) for brand in brands):
        return "HEIC"
    return "HEIF" if brands & {b"mif1", b"mif2", b"msf1"} else f"a video, or what else calls itself {data[8:12]!r}"


def _readable_here() -> list[str]:
    """FORMATS, as far as this Pillow was built with their decoders."""
    return [form for form in FORMATS if form not in ("AVIF", "WEBP") or features.check(form.lower())]


def _claims(accepts: Callable[[bytes], bool | str] | None, beginning: bytes) -> bool:
    try:
        return accepts is not None and accepts(beginning) is True  # a text says: it would be mine, but cannot be read
    except (struct.error, IndexError):
        return False  # too short to tell


def _unreadable(name: str, form: str, data: bytes, error: Exception) -> ImageError:
    said = " ".join(str(error).split()) or type(error).__name__
    short = form == "WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little")
    if short or isinstance(error, EOFError | struct.error | IndexError) or "truncated" in said.lower():
        return ImageError(name, "truncated", f"the {form} ends too early after {len(data):,} bytes ({said})")
    return ImageError(name, "broken", f"not a sound {form} ({said})")


def _orientation(image: Image.Image) -> int:
    try:
        said = image.getexif().get(_ORIENTATION, 1)
        return said if isinstance(said, int) else 1
    except _PILLOW_ERRORS:
        return 1  # EXIF that cannot be read turns nothing; viewers do the same


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _high_byte(image, name)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image  # a conversion would copy it
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        # As alpha_composite would, to the bit, with two images in memory in place of five.
        white.paste(image, mask=image)
        return white
    return image.convert("RGB")


def _high_byte(image: Image.Image, name: str) -> Image.Image:
    """Return the high byte of each 16-bit value, as a viewer shows it; Pillow would clip at 255, which is white."""
    import numpy as np

    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError(name, "unsupported-format", f"{image.format} with more than 16 bits a value")
    bits = 16
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_BITS_PER_SAMPLE) == (12,):
        bits = 12
    else:
        _check_brightness(int(values.max()), name)
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _check_brightness(largest: int, name: str) -> None:
    """Raise ImageError if 16-bit values use at most 12 bits, as cameras and scanners of 12 bits write them.

    Their high byte is nearly black, and the file does not state their range.
    """
    if 0 < largest < 1 << 12:
        raise ImageError(
            name, "unsupported-format", "its values use 12 bits or fewer of 16, so it would be black; scale them to 8 "
            "or 16 bits"
        )  # fmt: skip


def _check_high_bytes(values: np.ndarray, name: str) -> None:
    """Check colors of which Pillow keeps only the high bytes; dark ink on a transparent ground is no fault."""
    has_alpha = values.shape[-1] in (2, 4)
    largest = int(values[..., : -1 if has_alpha else None].max())
    if largest and (not has_alpha or values[..., -1].min() == 0xFF):
        _check_brightness(largest << 8 | 0xFF, name)


def _is_png_of_16_bits(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:25] == b"\x10"
