"""Pictures: upright, whole, RGB, or refused with a reason."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from vcot.errors import InputError
from vcot.storage import Store, images, join
from vcot.storage.images import ImageError, Picture, blank, decode, load, probe


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
    picture = decode(data, "x")
    assert (picture.width, picture.height) == picture.pixels.size == probe(data, "x") == (64, 48)
    assert picture.pixels.mode == "RGB"
    assert picture.sha256 == hashlib.sha256(data).hexdigest()
    assert picture.format == form
    if form in ("PNG", "BMP", "TIFF", "PPM"):
        assert picture.pixels.tobytes() == noise().tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_rotated_picture_stands_upright_and_its_size_too(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(), form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    picture = decode(data, "x")
    assert picture.pixels.size == upright.size == probe(data, "x")
    assert picture.pixels.size == ((48, 64) if orientation > 4 else (64, 48))
    assert picture.pixels.tobytes() == upright.tobytes()
    assert "exif" not in picture.pixels.info
    again = decode(encode(picture.pixels, "PNG"), "x")
    assert again.pixels.tobytes() == upright.tobytes()


def test_exif_that_cannot_be_read_turns_nothing() -> None:
    data = encode(noise(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow says so too
        assert decode(data, "x").pixels.size == probe(data, "x") == (64, 48)


@pytest.mark.parametrize("form", images.FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow also says what is wrong
def test_a_file_cut_anywhere_is_refused_or_shows_the_whole_picture(form: str) -> None:
    data = encode(noise(24, 18), form)
    whole = decode(data, "x").pixels.tobytes()
    for length in [*range(min(len(data), 200)), *range(200, len(data), 7), len(data) - 1]:
        with contextlib.suppress(ImageError):
            assert decode(data[:length], "x").pixels.tobytes() == whole, length  # only what ends a file was cut
    assert reason(data[: len(data) * 3 // 4]) == "truncated"


def test_a_truncated_file_is_refused_even_where_a_library_allowed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encode(noise(), "JPEG")
    assert reason(data[: len(data) // 2]) == "truncated"


@given(form=st.sampled_from(images.FORMATS), seed=st.integers(0, 2**32))
@example(form="GIF", seed=2017)  # a frame of a gigapixel in a small GIF
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_a_picture_or_a_reason_and_nothing_else(form: str, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(encode(noise(24, 18), form))
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(min(len(data), chance.choice([64, 1 << 20])))] = chance.randrange(256)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (decode, probe):
            with contextlib.suppress(ImageError):
                read(bytes(data), "x", max_pixels=1_000_000)


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (100_000, 1001), (12_000, 9_000)])
def test_too_many_pixels_are_refused_from_the_header(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def must_not(*_: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", must_not)
    data = _png(*size)
    for read in (decode, probe):
        with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels") as caught:
            read(data, "x")
        assert caught.value.reason == "too-large"
    assert not recwarn.list


def test_the_limit_can_be_set_and_is_inclusive() -> None:
    data = encode(noise(10, 10), "PNG")
    assert decode(data, "x", max_pixels=100).width == 10
    assert reason(data, max_pixels=99) == "too-large"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not-an-image"),
        (b"G", "not-an-image"),
        (b"<!DOCTYPE html><html>404", "not-an-image"),
        (b"\0" * 100, "not-an-image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "unsupported-format"),
        (b"\0\0\1\0" + b"\0" * 30, "unsupported-format"),  # ICO
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported-format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "broken"),
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, why: str) -> None:
    assert reason(data) == why


@pytest.mark.parametrize(
    ("mode", "form"),
    [("1", "PNG"), ("L", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("L", "WEBP")],
)
def test_every_colour_mode_becomes_rgb(mode: str, form: str) -> None:
    data = encode(noise(mode=mode) if mode != "P" else noise().quantize(16), form)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert decode(data, "x").pixels.tobytes() == expected.tobytes()


def _clear(form: str) -> bytes:
    """Left half red, right half transparent (with green hidden below, where the format can)."""
    image = Image.new("RGBA", (20, 10), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 10, 10))
    if form == "RGBA":
        return encode(image, "PNG")
    if form == "WEBP":
        return encode(image, "WEBP", lossless=True, exact=True)
    if form == "LA":
        return encode(image.convert("LA"), "PNG")
    if form == "P":
        return encode(image, "GIF")
    flat = image.convert("RGB")
    return encode(flat, "PNG", transparency=(0, 255, 0))


@pytest.mark.parametrize("form", ["RGBA", "WEBP", "LA", "P", "tRNS"])
def test_what_is_transparent_becomes_white(form: str) -> None:
    pixels = decode(_clear(form), "x").pixels
    left, right = pixels.getpixel((2, 5)), pixels.getpixel((18, 5))
    assert right == (255, 255, 255)
    assert left == ((76, 76, 76) if form == "LA" else (255, 0, 0))


def test_half_transparent_is_mixed_with_white() -> None:
    assert decode(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 51)), "PNG"), "x").pixels.getpixel((0, 0)) == (204,) * 3


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_become_the_high_eight(form: str) -> None:
    values = np.array([[0, 255, 256, 0x1234], [0x8000, 0xFEFF, 0xFF00, 0xFFFF]], dtype=np.uint16)
    data = encode(Image.fromarray(values), form)
    pixels = np.asarray(decode(data, "x").pixels)
    assert (pixels == (values >> 8)[..., None]).all()


def test_floating_point_pixels_are_refused() -> None:
    assert reason(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "unsupported-format"


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "TIFF"):
        data = encode(frames[0], form, save_all=True, append_images=frames[1:])
        red, green, blue = decode(data, "x").pixels.getpixel((4, 4))  # type: ignore[misc]
        assert red > 200 > 50 > max(green, blue), form


def test_a_camera_s_two_pictures_in_one_jpeg_are_the_first() -> None:
    data = encode(noise(), "MPO", save_all=True, append_images=[noise(8, 8)])
    assert decode(data, "x").pixels.size == (64, 48)


# --- from storage ---


def _load(place: str, data: bytes | None, **more: Any) -> Picture:
    store, uri = Store(), join(place, "row ### 3", "scene 1.png")
    if data is not None:
        store.write(uri, data)
    return load(store, uri, **more)


def test_a_picture_is_loaded_from_storage(any_place: str) -> None:
    data = encode(noise(), "PNG")
    digest = hashlib.sha256(data).hexdigest()
    assert _load(any_place, data, sha256=digest).pixels.tobytes() == noise().tobytes()
    with pytest.raises(ImageError, match=r"scene 1\.png: sha256 is .{12}…, recorded was 000000000000…") as caught:
        _load(any_place, data, sha256="0" * 64)
    assert caught.value.reason == "changed"


def test_a_missing_picture_has_that_reason(any_place: str) -> None:
    with pytest.raises(ImageError, match=r"row ### 3/scene 1\.png: no such") as caught:
        _load(any_place, None)
    assert caught.value.reason == "missing"
    assert isinstance(caught.value, InputError)


def test_a_huge_file_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1 << 20)
    with pytest.raises(ImageError, match="more than 1 MiB") as caught:
        _load(str(tmp_path), b"x" * ((1 << 20) + 1))
    assert caught.value.reason == "too-large"


def test_blank_is_uniform_grey() -> None:
    assert blank(30, 20).size == (30, 20)
    assert blank(30, 20).getcolors() == [(600, (128, 128, 128))]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    yield
    ImageFile.LOAD_TRUNCATED_IMAGES = before
