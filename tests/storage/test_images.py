"""Images: upright, whole, RGB, or refused with a reason."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import random
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import AvifImagePlugin, Image, ImageFile, ImageOps, features

from vcot.storage import Store, images, join
from vcot.storage.images import ImageError, decode, fetch, probe, within


def noise(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """Incompressible, so that every byte of the file counts."""
    values = np.random.default_rng(7).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode in ("CMYK", "YCbCr"):
        return Image.frombytes(mode, (width, height), values[..., : len(mode) if mode == "CMYK" else 3].tobytes())
    return Image.fromarray(values[..., :3]).convert(mode)


def encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def reason(data: bytes, **limits: int) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, "scene.png", **limits)
    assert str(caught.value).startswith("scene.png: ")
    assert "\n" not in str(caught.value)
    assert caught.value.reason in images.REASONS
    return caught.value.reason


@pytest.mark.parametrize("form", images.FORMATS)
def test_every_format_is_read_with_its_size_and_digest(form: str) -> None:
    data = encode(noise(), form)
    image = decode(data, "x")
    assert (image.width, image.height) == image.pixels.size == probe(data, "x") == (64, 48)
    assert image.pixels.mode == "RGB"
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert image.format == form
    if form in ("PNG", "BMP", "TIFF", "PPM"):
        assert image.pixels.tobytes() == noise().tobytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_rotated_image_stands_upright_whole_and_shrunk(form: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(scene(160, 120), form, exif=exif)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        image, small = decode(data, "x"), decode(data, "x", budget=1200)
        assert image.pixels.size == upright.size == probe(data, "x")
        assert image.pixels.size == ((120, 160) if orientation > 4 else (160, 120))
        assert image.pixels.tobytes() == upright.tobytes()
        assert decode(encode(image.pixels, "PNG"), "x").pixels.tobytes() == upright.tobytes()  # no EXIF is left
        assert (small.width, small.height) == upright.size
        assert small.pixels.size == ((30, 40) if orientation > 4 else (40, 30))
        expected = upright.resize(small.pixels.size, Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(small.pixels, int) - np.asarray(expected, int)).mean() < 3


@pytest.mark.parametrize("form", images.FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow also says what is wrong
def test_a_file_cut_anywhere_is_refused_or_shows_the_whole_image(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise(24, 18), form)
    whole = decode(data, "x").pixels.tobytes()
    for length in [*range(0, min(len(data), 200), 3), *range(200, len(data), 29), len(data) - 1]:
        with contextlib.suppress(ImageError):
            assert decode(data[:length], "x").pixels.tobytes() == whole, length  # only what ends a file was cut
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some library may have left it
    assert reason(data[: len(data) * 3 // 4]) == "truncated"


@pytest.mark.parametrize(
    "directory",
    [b"\0\1\1\x12\0\3\0\0\0\1\0\x09\0\0" + bytes(4), b"\0\1\1\x12\0\2\0\0\0\x026\0\0\0" + bytes(4), b"\xff\xff garbage",
     b"", b"\0\1\1\x12\0\3"],
    ids=["9", "text", "garbage", "empty", "cut in its tag"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow also says what is wrong
def test_an_orientation_that_makes_no_sense_turns_nothing(directory: bytes) -> None:
    data = encode(noise(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08" + directory)
    assert decode(data, "x").pixels.size == probe(data, "x") == (64, 48)


@given(form=st.sampled_from(images.FORMATS), seed=st.integers(0, 2**32))
@example(form="GIF", seed=2017)  # a frame of a gigapixel in a small GIF
@settings(max_examples=80, deadline=None)
def test_damaged_bytes_give_an_image_or_a_reason_and_nothing_else(form: str, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(encode(noise(24, 18), form))
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(min(len(data), chance.choice([64, 1 << 20])))] = chance.randrange(256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (decode, probe):
            with contextlib.suppress(ImageError):
                read(bytes(data), "x", max_pixels=1_000_000)


@pytest.mark.parametrize("form", images.FORMATS)
def test_an_image_of_too_many_pixels_is_refused_from_its_header(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise(20, 10), form)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    for read in (decode, probe):
        with pytest.raises(ImageError, match="20 x 10 pixels; at most 199 are decoded") as caught:
            read(data, "x", max_pixels=199)
        assert caught.value.reason == "too-large"
    assert reason(b"P6 16000 16001 255 ") == "too-large"


def _branded(*brands: bytes) -> bytes:
    """A real file of boxes that says of itself to be another one; no encoder of HEIC is free to be had."""
    data = encode(noise(), "AVIF")
    room = int.from_bytes(data[:4]) // 4 - 4
    return data[:8] + brands[0] + bytes(4) + b"".join((brands * room)[:room]) + data[16 + 4 * room :]


@pytest.mark.parametrize(
    ("data", "why", "said"),
    [
        (b"", "not-an-image", "the file is empty"), (b"G", "not-an-image", "no image format"),
        (b"<!DOCTYPE html><html>404", "not-an-image", "it looks like a web page"),
        (b"\0" * 100, "not-an-image", "no image format"), (b"\0\0\0\x18ftyp", "unsupported-format", "a video"),
        (b"\0\0\1\0" + b"\0" * 30, "unsupported-format", "ICO; supported are JPEG, PNG, .*AVIF$"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported-format", "EPS"), (b"\x89PNG\r\n\x1a\n" + bytes(40), "broken", ""),
        (encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "unsupported-format", "more than 16 bits"),
        (_branded(b"heic", b"mif1"), "unsupported-format", "HEIC; supported"),
        (_branded(b"mif1"), "unsupported-format", "HEIF"),
        (_branded(b"isom", b"mp42"), "unsupported-format", "a video"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_by_name(data: bytes, why: str, said: str) -> None:
    with pytest.raises(ImageError, match=f"^scene.png: .*{said}"):
        decode(data, "scene.png")
    assert reason(data) == why


def test_avif_is_refused_by_name_where_pillow_cannot_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decode(_branded(b"mif1", b"avif"), "x").format == "AVIF"
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(ImageError, match=r"^x: AVIF; supported are JPEG, [^A]*$"):
        decode(encode(noise(), "AVIF"), "x")


@pytest.mark.parametrize(
    ("mode", "form"),
    [("1", "PNG"), ("L", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("L", "WEBP")],
)
def test_every_colour_mode_becomes_rgb(mode: str, form: str) -> None:
    data = encode(noise(mode=mode) if mode != "P" else noise().quantize(16), form)
    assert decode(data, "x").pixels.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_what_is_transparent_becomes_white() -> None:
    """Left half red, right half transparent, with green hidden below where the format can."""
    image = Image.new("RGBA", (20, 10), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 10, 10))
    palette = image.convert("RGB").quantize(2)
    green = palette.getpixel((18, 5))
    for data, left in (
        (encode(image, "PNG"), (255, 0, 0)), (encode(image.convert("LA"), "PNG"), (76, 76, 76)),
        (encode(image, "WEBP", lossless=True, exact=True), (255, 0, 0)), (encode(image, "GIF"), (255, 0, 0)),
        (encode(palette, "PNG", transparency=green), (255, 0, 0)),
        (encode(image.convert("RGB"), "PNG", transparency=(0, 255, 0)), (255, 0, 0)),
    ):  # fmt: skip
        pixels = decode(data, "x").pixels
        assert (pixels.getpixel((2, 5)), pixels.getpixel((18, 5))) == (left, (255, 255, 255))


def test_sixteen_bits_become_the_high_eight() -> None:
    values = np.array([[0, 255, 256, 0x1234], [0x8000, 0xFEFF, 0xFF00, 0xFFFF]], dtype=np.uint16)
    for form, order in (("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")):
        pixels = np.asarray(decode(encode(Image.fromarray(values.astype(order)), form), "x").pixels)
        assert (pixels == (values >> 8)[..., None]).all()
    row = struct.pack(">HHHHHH", 0x1234, 0x8000, 0xFFFF, 0, 0x00FF, 0xFE01)  # of three channels
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    assert np.asarray(decode(data, "x").pixels).tolist() == [[[0x12, 0x80, 0xFF], [0, 0, 0xFE]]]


def png_of_16_bits(values: np.ndarray[Any, Any]) -> bytes:
    """A PNG of 16-bit samples, height x width x channels; Pillow writes only grey ones."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_twelve_bits_in_sixteen_are_refused_not_black(channels: int) -> None:
    """A camera or a scanner of 12 bits: the high byte of each sample is 15 at most."""
    values = np.random.default_rng(1).integers(0, 4096, (8, 8, channels), dtype=np.uint16)
    if channels in (2, 4):
        values[..., -1] = 0xFFFF
    data = png_of_16_bits(values)
    for read in (decode, lambda data, name: images.small(data, name, 8)):
        with pytest.raises(ImageError, match=r"x: .*12 bits or fewer of 16.*scale them to 8 or 16 bits") as refused:
            read(data, "x")
        assert refused.value.reason == "unsupported-format"
    values[0, 0, 0] = 4096
    assert np.asarray(decode(png_of_16_bits(values), "x").pixels).any()
    values[..., :] = 0  # black, or ink on a transparent ground
    assert channels == 3 or decode(png_of_16_bits(values), "x").pixels.size == (8, 8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_black_image_of_16_bits_is_decoded(channels: int) -> None:
    values = np.zeros((8, 8, channels), dtype=np.uint16)
    if channels in (2, 4):
        values[..., -1] = 0xFFFF
    assert not np.asarray(decode(png_of_16_bits(values), "x").pixels).any()


def test_twelve_bits_that_a_tiff_declares_are_scaled() -> None:
    samples = [0, 4095, 2048, 100, 5, 6, 7, 16]
    data = int("".join(f"{sample:012b}" for sample in samples), 2).to_bytes(12)
    tags = [(256, 4), (257, 2), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    file = struct.pack("<4sI", b"II*\0", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    pixels = np.asarray(decode(file, "x").pixels)
    assert pixels[..., 0].tolist() == [[0, 255, 128, 6], [0, 0, 0, 1]]


def test_of_several_images_in_a_file_the_first_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "TIFF", "PNG", "AVIF", "MPO"):
        data = encode(frames[0], form, save_all=True, append_images=frames[1:])
        red, green, blue = decode(data, "x").pixels.getpixel((4, 4))  # type: ignore[misc]
        assert red > 200 > 50 > max(green, blue), form


# --- shrunk to a budget ---


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 3_000_000))
def test_a_size_within_a_budget_keeps_its_shape_and_never_grows(width: int, height: int, budget: int) -> None:
    small = within(width, height, budget)
    assert small == (width, height) if width * height <= budget else small[0] * small[1] <= budget
    assert 1 <= small[0] <= width
    assert 1 <= small[1] <= height
    if min(small) > 1:  # each side is the true one, rounded down
        scale = math.sqrt(min(1, budget / (width * height)))
        assert width * scale - 1 < small[0] <= width * scale + 1e-6
        assert height * scale - 1 < small[1] <= height * scale + 1e-6


def scene(width: int = 640, height: int = 480) -> Image.Image:
    """Smooth, with a dark corner, so that every turn of it is another image."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 120, height))
    return Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("size", [(1601, 1203), (803, 2411), (999, 777)])
def test_a_jpeg_that_is_decoded_small_has_everything_where_it_was(size: tuple[int, int]) -> None:
    """The decoder rounds its sizes up, so its last column may be half outside the image."""
    data = encode(scene(*size), "JPEG", quality=95)
    small = decode(data, "x", budget=9_000).pixels
    expected = scene(*size).resize(small.size, Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(small, int) - np.asarray(expected, int)).max() <= 4


# --- from storage ---


def test_bytes_are_held_against_their_digest(any_place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, uri, data = Store(), join(any_place, "row ### 3", "scene 1.png"), encode(noise(), "PNG")

    def why(**more: Any) -> tuple[str, str]:
        with pytest.raises(ImageError) as caught:
            fetch(store, uri, **more)
        return caught.value.reason, str(caught.value)

    assert why()[0] == "missing"
    store.write(uri, data)
    assert fetch(store, uri, sha256=hashlib.sha256(data).hexdigest()) == data
    reason, said = why(sha256="0" * 64)
    assert reason == "changed"
    assert f"{uri}: sha256 is " in said
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    assert why()[0] == "too-large"
