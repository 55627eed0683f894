"""Copies of images: upright, within the budget, stored once, the same bytes each time."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.datasets.given import Given
from tests.s3 import moto_place, moto_server, no_aws  # noqa: F401 (fixtures)
from vcot.datasets import ingest
from vcot.datasets.images import DatasetImages
from vcot.records import Image
from vcot.records.sample import read_image
from vcot.storage import Store, join
from vcot.storage.images import ImageError

BUDGET = 30_000


def photograph(width: int, height: int, form: str = "JPEG", orientation: int = 1, **options: Any) -> bytes:
    """Smooth colours, with the position of an orange square telling which way is up."""
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    image = Pillow.fromarray(np.stack([across, down, 200 - across], axis=-1).astype(np.uint8))
    image.paste((255, 140, 0), (width // 10, height // 5, width // 10 + 40, height // 5 + 40))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif, **options)
    return buffer.getvalue()


def images_of(given: Given, budget: int | None = BUDGET, made: str = "made", **limits: Any) -> DatasetImages:
    return DatasetImages(Store(), str(given.images), str(given.folder / made), budget=budget, **limits)


def copies(given: Given, made: str = "made") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (given.folder / made).rglob("*.jpg")}


def of(image: Image) -> Pillow.Image:
    assert image.stored is not None
    data = Path(image.stored.uri).read_bytes()
    assert hashlib.sha256(data).hexdigest() == image.stored.sha256
    opened = Pillow.open(io.BytesIO(data))
    assert opened.format == "JPEG"
    assert opened.size == (image.stored.width, image.stored.height)
    return opened


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_copy_is_upright_small_and_without_metadata(given: Given, orientation: int) -> None:
    data = photograph(400, 300, orientation=orientation, comment=b"my garden")
    given.image("a.jpg", data=data)
    image = images_of(given).find("a.jpg")
    assert (image.width, image.height) == ((300, 400) if orientation > 4 else (400, 300))
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert image.uri == str(given.images / "a.jpg")
    copy = of(image)
    assert copy.size == ((150, 200) if orientation > 4 else (200, 150))
    assert not copy.getexif()
    assert copy.info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    plain = images_of(given, budget=None, made="plain").find("a.jpg")
    whole = read_image(Store(), plain).pixels.resize(copy.size, Pillow.Resampling.BICUBIC)
    assert np.abs(np.asarray(copy, int) - np.asarray(whole, int)).mean() < 2


def test_nothing_is_enlarged_and_what_is_small_becomes_a_jpeg_too(given: Given) -> None:
    given.image("a.png", data=photograph(60, 45, "PNG"))
    image = images_of(given).find("a.png")
    assert of(image).size == (60, 45) == (image.width, image.height)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 2, "restart_marker_blocks": 4}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_is_right_already_keeps_its_pixels_and_loses_what_stands_beside_them(
    given: Given, mode: str, options: dict[str, Any]
) -> None:
    plain, told = io.BytesIO(), io.BytesIO()
    image = Pillow.open(io.BytesIO(photograph(200, 150))).convert(mode)
    exif = Pillow.Exif()
    exif[0x010F] = "a camera"
    image.save(plain, "JPEG", quality=80, **options)
    image.save(told, "JPEG", quality=80, exif=exif, comment=b"my garden", icc_profile=b"p" * 70_000, **options)
    given.image("a.jpg", data=told.getvalue())
    stored = images_of(given).find("a.jpg").stored
    assert stored is not None
    assert Path(stored.uri).read_bytes() == plain.getvalue()


@pytest.mark.parametrize("how", ["turned", "something behind", "something between", "cmyk", "a second image"])
def test_a_jpeg_that_is_not_right_is_encoded(given: Given, how: str) -> None:
    data, buffer = photograph(200, 150), io.BytesIO()
    match how:
        case "turned":
            data = photograph(150, 200, orientation=6)
        case "something behind":
            data += b"\0\0notes"
        case "something between":
            data = data[:2] + b"\xff\xff" + data[2:]
        case "cmyk":
            Pillow.open(io.BytesIO(data)).convert("CMYK").save(buffer, "JPEG")
            data = buffer.getvalue()
        case "a second image":
            first = Pillow.open(io.BytesIO(data))
            first.save(buffer, "MPO", save_all=True, append_images=[first.resize((20, 15))])
            data = buffer.getvalue()
    given.image("a.jpg", data=data)
    copy = of(images_of(given).find("a.jpg"))
    assert (copy.size, copy.mode) == ((200, 150), "RGB")
    assert copy.layer[1][1:3] == (1, 1)  # ours: colours at full resolution
    assert all(b"a camera" not in copy for copy in copies(given).values())


@pytest.mark.parametrize(
    "data", [b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe1\0\0\xff\xd9", b"\xff\xd8\xff\xe1\xff\xff\xff\xd9"]
)
def test_segments_that_do_not_add_up_are_not_taken_apart(data: bytes) -> None:
    assert ingest.bare(data) is None


@pytest.mark.parametrize(
    ("form", "mode"),
    [("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("GIF", "P"), ("JPEG", "CMYK"), ("JPEG", "L"), ("WEBP", "RGB")],
)
def test_every_kind_of_image_becomes_a_copy(given: Given, form: str, mode: str) -> None:
    image = Pillow.open(io.BytesIO(photograph(400, 300)))
    made = Pillow.fromarray(np.full((300, 400), 40_000, np.uint16)) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    made.save(buffer, form)
    given.image("a", data=buffer.getvalue())
    copy = of(images_of(given).find("a"))
    assert (copy.mode, copy.size) == ("RGB", (200, 150))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "not-an-image"),
        (photograph(400, 300)[:-3000], "truncated"),
        (photograph(400, 300, "PNG")[:-40], "truncated"),
        (photograph(1500, 20), "too-large"),
        (photograph(800, 800), "too-large"),
    ],
)
def test_what_cannot_be_used_has_its_reason_and_no_copy(given: Given, data: bytes, expected: str) -> None:
    given.image("a.jpg", data=data)
    images = images_of(given, max_side=1000, max_pixels=600_000)
    for path, why in (("a.jpg", expected), ("b.jpg", "missing")):
        with pytest.raises(ImageError) as refused:
            images.find(path)
        assert refused.value.reason == why
    assert copies(given) == {}


def test_one_image_is_stored_once_under_however_many_names(given: Given) -> None:
    for name in ("a.jpg", "b.jpg", "c/d.jpg"):
        given.image(name, data=photograph(400, 300))
    given.image("other.jpg", data=photograph(401, 300))
    images = images_of(given)
    found = [images.find(name) for name in ("a.jpg", "b.jpg", "c/d.jpg", "other.jpg")]
    assert found[0].stored == found[1].stored == found[2].stored != found[3].stored
    assert len(copies(given)) == 2


def test_the_same_image_gives_the_same_bytes_in_every_run_and_thread(given: Given) -> None:
    names = [given.image(f"{n}.jpg", data=photograph(400 + n, 300, orientation=n % 8 + 1)) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(images_of(given).find, names))
    alone = images_of(given, made="again")
    for name in reversed(names):
        alone.find(name)
    assert copies(given) == copies(given, "again")
    assert len(copies(given)) == 16


def test_a_copy_that_is_there_is_not_made_again(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    given.image("a.jpg", data=photograph(400, 300, orientation=6))
    first = images_of(given).find("a.jpg")
    monkeypatch.setattr(ingest, "packed", lambda _: pytest.fail("it was encoded again"))
    assert images_of(given).find("a.jpg") == first


def test_another_budget_is_another_copy(given: Given) -> None:
    given.image("a.jpg", data=photograph(400, 300))
    one, two = (images_of(given, budget=budget).find("a.jpg") for budget in (BUDGET, 4 * BUDGET))
    assert one.stored != two.stored
    assert of(one).size == (200, 150)
    assert of(two).size == (400, 300)


@pytest.mark.parametrize("left", [0, 1, 500])
def test_a_copy_that_was_cut_short_is_made_again(given: Given, left: int) -> None:
    given.image("a.jpg", data=photograph(400, 300))
    first = images_of(given).find("a.jpg")
    assert first.stored is not None
    whole = Path(first.stored.uri).read_bytes()
    Path(first.stored.uri).write_bytes(whole[:left])
    assert images_of(given).find("a.jpg") == first
    assert Path(first.stored.uri).read_bytes() == whole


def test_what_a_source_made_itself_is_copied_only_where_it_is_too_large(given: Given) -> None:
    images = images_of(given)
    small = images.keep("small.png", photograph(60, 45, "PNG"))
    large = images.keep("large.png", photograph(400, 300, "PNG"))
    assert small.stored is None
    assert of(large).size == (200, 150)
    assert read_image(Store(), small).pixels.size == (60, 45)
    assert Path(large.uri).read_bytes() == photograph(400, 300, "PNG")


def test_who_looks_in_place_makes_no_copies(given: Given) -> None:
    given.image("a.jpg", data=photograph(400, 300))
    images = images_of(given)
    seen, taken = images.in_place().find("a.jpg"), images.find("a.jpg")
    assert seen.stored is None
    assert taken.stored is not None
    assert seen == taken.model_copy(update={"stored": None})


def test_a_changed_copy_is_noticed_by_who_reads_it(given: Given) -> None:
    given.image("a.jpg", data=photograph(400, 300))
    image = images_of(given).find("a.jpg")
    assert image.stored is not None
    Path(image.stored.uri).write_bytes(photograph(200, 150))
    with pytest.raises(ImageError) as refused:
        read_image(Store(), image)
    assert refused.value.reason == "changed"
    assert image.stored.uri in str(refused.value)


def test_images_of_a_bucket_are_copied_into_a_bucket(moto_place: str) -> None:  # noqa: F811
    store, data = Store(), photograph(400, 300, orientation=6)
    store.write(join(moto_place, "images", "a.jpg"), data)
    images = DatasetImages(store, join(moto_place, "images"), join(moto_place, "made"), budget=BUDGET)
    image = images.find("a.jpg")
    assert image.stored is not None
    assert image.stored.uri.startswith(f"{moto_place}/made/copies/{image.sha256[:2]}/{image.sha256}")
    assert read_image(store, image).pixels.size == (150, 200)


def test_no_more_pixels_are_decoded_at_once_than_there_is_room_for() -> None:
    room, lock, inside, most, alone = ingest.Room(100), threading.Lock(), list[int](), list[int](), list[bool]()

    def work(pixels: int) -> None:
        with room.taken(pixels):
            with lock:
                inside.append(pixels)
                most.append(sum(inside))
                alone.append(pixels <= 100 or inside == [pixels])
            time.sleep(0.002)
            with lock:
                inside.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [30, 40, 50, 250, 10, 60] * 10))
    assert all(alone)
    assert max(n for n in most if n != 250) <= 100
    assert max(most) == 250


def test_room_is_given_back_by_who_fails() -> None:
    room = ingest.Room(10)
    for _ in range(3):
        with pytest.raises(ImageError), room.taken(10):
            raise ImageError("a.jpg", "broken", "as an example")
