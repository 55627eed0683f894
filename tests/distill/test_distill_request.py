"""The key of a request, and the image that is sent with it."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as Pillow

from tests.distill.made import sample
from vcot.distill.crops import data_url, size_of
from vcot.distill.request import Prompt, Request, ShownImage
from vcot.grounding import Box
from vcot.records.sample import Stored
from vcot.storage import Store

ROW = sample()
ASKED = Request("reason", Prompt("p", 1, "Rules."), (ShownImage(ROW.image, 512), "Why?"), "m")


def test_a_key_does_not_depend_on_the_order_of_names_nor_on_the_step_that_asks() -> None:
    one, other = ({"a": 1, "b": {"c": "ü", "d": 2}}, {"b": {"d": 2, "c": "ü"}, "a": 1})
    assert replace(ASKED, schema=one).key() == replace(ASKED, schema=other, purpose="caption").key()
    assert len(ASKED.key()) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": Prompt("p", 2, "Rules.")}, {"prompt": Prompt("p", 1, "Rule.")}, {"parts": ("Why?",)},
        {"parts": (ShownImage(ROW.image, 256), "Why?")},
        {"parts": (ShownImage(ROW.image, 512, Box(1, 2, 3, 4)), "Why?")},
        {"parts": ("Why?", ShownImage(ROW.image, 512))}, {"model": "n"}, {"schema": {}}, {"temperature": 0.0},
        {"reply_tokens": 8}, {"alternative": 1},
    ],
    ids=str,
)  # fmt: skip
def test_all_that_shapes_a_reply_is_in_its_key(change: dict[str, object]) -> None:
    assert replace(ASKED, **change).key() != ASKED.key()  # type: ignore[arg-type]


def sent(shown: ShownImage) -> Pillow.Image:
    return Pillow.open(io.BytesIO(base64.b64decode(data_url(Store(), shown).partition(",")[2])))


def test_a_crop_is_in_pixels_of_the_original_whatever_is_stored(tmp_path: Path) -> None:
    """Left half red, right half blue; the stored copy is half as large."""
    path = tmp_path / "half.png"
    pixels = Pillow.new("RGB", (160, 120), "blue")
    pixels.paste("red", (0, 0, 80, 120))
    pixels.save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    image = ROW.image.model_copy(update={"stored": Stored(uri=str(path), width=160, height=120, sha256=digest)})
    right = ShownImage(image, 1024, Box(160, 0, 320, 240))
    assert sent(right).size == size_of(right) == (80, 120)
    red, _, blue = sent(right).getpixel((2, 60))  # type: ignore[misc]
    assert (red < 40, blue > 200) == (True, True)
    for shown in (
        ShownImage(image, 64),
        ShownImage(image, 28, Box(0, 0, 0.5, 200)),
        ShownImage(image, 50, Box(1, 2, 300, 9)),
    ):
        assert sent(shown).size == size_of(shown)
    assert ShownImage(image, 64).image.kept.sha256 == digest
    assert (
        replace(ASKED, parts=(right,)).key() != replace(ASKED, parts=(ShownImage(ROW.image, 1024, right.crop),)).key()
    )


@pytest.mark.parametrize("exif", [False, True])
def test_a_jpeg_that_fits_is_sent_as_it_is_unless_it_says_more_than_it_shows(tmp_path: Path, exif: bool) -> None:
    about = Pillow.Exif()
    about[271] = "maker of the camera"
    path = tmp_path / "photo.jpg"
    Pillow.new("RGB", (320, 240), "red").save(path, "JPEG", **({"exif": about} if exif else {}))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    image = ROW.image.model_copy(update={"uri": str(path), "sha256": digest})

    def bytes_of(side: int) -> bytes:
        return base64.b64decode(data_url(Store(), ShownImage(image, side)).partition(",")[2])

    assert (bytes_of(320) == path.read_bytes()) == (not exif)
    assert b"maker" not in bytes_of(320)
    assert Pillow.open(io.BytesIO(bytes_of(100))).size == (100, 75)
