"""DatasetImages: each looked at once, upright, and refused by name."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.datasets.given import Given, png
from vcot.datasets.images import DatasetImages
from vcot.errors import SettingsError
from vcot.records import Rejection
from vcot.storage import Store
from vcot.storage.images import ImageError


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    """Noise, so that the file has a middle to be cut in."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def reason(images: DatasetImages, path: str) -> str:
    with pytest.raises(ImageError) as refused:
        images.find(path)
    return refused.value.reason


def images_of(given: Given, **limits: Any) -> DatasetImages:
    return DatasetImages(Store(), str(given.images), str(given.folder / "made"), **limits)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not-an-image"),
        (b"<!doctype html><title>404</title>", "not-an-image"),
        (jpeg(300, 200)[:-2000], "truncated"),
        (jpeg(300, 200)[:60], "truncated"),
        (png(300, 200)[:-40], "truncated"),
        (png(30_000, 20), "too-large"),
        (png(12_000, 9_000), "too-large"),
    ],
)
def test_images_that_cannot_be_used(given: Given, data: bytes, expected: str) -> None:
    given.image("a.jpg", data=data)
    assert reason(images_of(given), "a.jpg") == expected


def test_an_image_that_is_not_there(given: Given) -> None:
    images = images_of(given)
    for path in (
        "b.jpg",
        "no/such/folder.jpg",
        "../secret.jpg",
        "a\0b.jpg",
        "\ud800.jpg",
        "x" * 300,
        ".",
    ):
        assert reason(images, path) == "missing"


@pytest.mark.parametrize("uri", ["https://host/a.png", "gs://b/a.jpg", "s3://", "file://a.png"])
def test_an_image_at_a_uri_nobody_speaks_is_unsupported_and_not_missing(given: Given, uri: str) -> None:
    row = {"image": uri, "question": "?", "answers": ["2"]}
    refused = given.outcome("samples", row)
    assert isinstance(refused, Rejection)
    assert refused.reason.value == "image-unsupported"
    assert refused.detail.startswith(f"{uri}: ")
    assert "s3://bucket/key" in refused.detail or "file:///data" in refused.detail


@pytest.mark.parametrize(("orientation", "size"), [(1, (60, 40)), (3, (60, 40)), (6, (40, 60)), (8, (40, 60))])
def test_the_size_is_that_of_the_upright_image(given: Given, orientation: int, size: tuple[int, int]) -> None:
    given.image("a.jpg", data=jpeg(60, 40, orientation))
    image = images_of(given).find("a.jpg")
    assert (image.width, image.height) == size


def test_a_jpeg_with_something_behind_its_end_is_whole(given: Given) -> None:
    given.image("a.jpg", data=jpeg(60, 40) + b"\0\0camera notes")
    assert images_of(given).find("a.jpg").width == 60


def test_an_image_is_read_once_however_many_ask(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    given.image("a.jpg", 60, 40)
    reads = []
    plain = Store.open_read

    def counted(self: Store, uri: str) -> Any:
        reads.append(uri)
        return plain(self, uri)

    monkeypatch.setattr(Store, "open_read", counted)
    images = images_of(given)
    threads = [threading.Thread(target=images.find, args=("a.jpg",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert reason(images, "b.jpg") == reason(images, "b.jpg") == "missing"
    assert len(reads) == 2


def test_only_so_many_are_remembered(given: Given) -> None:
    images = images_of(given, remember=2)
    for name in ("a.png", "b.png", "c.png"):
        given.image(name, 10, 10)
        images.find(name)
    Path(given.images / "a.png").unlink()
    Path(given.images / "c.png").unlink()
    assert images.find("c.png").width == 10
    assert reason(images, "a.png") == "missing"


def test_a_path_needs_a_folder_and_a_uri_does_not(given: Given) -> None:
    given.image("a.png", 10, 10)
    nowhere = DatasetImages(Store(), None, str(given.folder))
    with pytest.raises(SettingsError, match=r"--images-uri is missing.*'a.png'"):
        nowhere.find("a.png")
    assert nowhere.find((given.images / "a.png").as_uri()).width == 10
