"""Images of rows: found once, refused with a reason, copied for training, and known to later runs."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.fakes.convert import convert, in_parts, made, stage, viscot_rows
from tests.fakes.rows import Given, png
from tests.s3 import moto_place, moto_server, no_aws  # noqa: F401 (fixtures)
from vcot.datasets import ingest
from vcot.datasets.image_index import ImageIndex
from vcot.datasets.images import DatasetImages
from vcot.errors import InputError, SettingsError
from vcot.records import Image, Rejection
from vcot.records.sample import Stored, read_image
from vcot.storage import Entry, Store
from vcot.storage.images import ImageError


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    """Noise, so that the file has a middle to be cut in."""
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Pillow.effect_noise((width, height), 60).convert("RGB").save(buffer, "JPEG", exif=exif)
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
@pytest.mark.parametrize("budget", [None, 30_000])
def test_what_cannot_be_used_has_its_reason_and_no_copy(
    given: Given, data: bytes, expected: str, budget: int | None
) -> None:
    given.image("a.jpg", data=data)
    images = copying(given, budget)
    assert reason(images, "a.jpg") == expected
    assert copies(given) == {}


def test_an_image_that_is_not_there(given: Given) -> None:
    os.mkfifo(given.images / "fifo.jpg")
    (given.images / "round.jpg").symlink_to("round.jpg")
    names = ("b.jpg", "no/such/folder.jpg", "../secret.jpg", "a\0b.jpg", "\ud800.jpg", "x" * 300, ".")
    for path in (*names, "fifo.jpg", "round.jpg"):
        assert reason(images_of(given), path) == "missing"


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


# -------------------------------------------------------------------------------------------- copies (--ingest)

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


def copying(given: Given, budget: int | None = BUDGET, made: str = "made", **limits: Any) -> DatasetImages:
    return DatasetImages(Store(), str(given.images), str(given.folder / made), budget=budget, **limits)


def copies(given: Given, made: str = "made") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (given.folder / made).rglob("*.jpg")}


def copy_of(image: Image) -> Pillow.Image:
    assert image.stored is not None
    data = Path(image.stored.uri).read_bytes()
    assert hashlib.sha256(data).hexdigest() == image.stored.sha256
    opened = Pillow.open(io.BytesIO(data))
    assert opened.format == "JPEG"
    assert opened.size == (image.stored.width, image.stored.height)
    return opened


@pytest.mark.parametrize("orientation", [1, 4, 6])
def test_a_copy_is_upright_small_and_without_metadata(given: Given, orientation: int) -> None:
    data = photograph(400, 300, orientation=orientation, comment=b"my garden")
    given.image("a.jpg", data=data)
    image = copying(given).find("a.jpg")
    assert (image.width, image.height) == ((300, 400) if orientation > 4 else (400, 300))
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert image.uri == str(given.images / "a.jpg")
    copy = copy_of(image)
    assert copy.size == ((150, 200) if orientation > 4 else (200, 150))
    assert not copy.getexif()
    assert copy.info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    plain = copying(given, budget=None, made="plain").find("a.jpg")
    whole = read_image(Store(), plain).pixels.resize(copy.size, Pillow.Resampling.BICUBIC)
    assert np.abs(np.asarray(copy, int) - np.asarray(whole, int)).mean() < 2


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
    stored = copying(given).find("a.jpg").stored
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
    copy = copy_of(copying(given).find("a.jpg"))
    assert (copy.size, copy.mode) == ((200, 150), "RGB")
    assert copy.layer[1][1:3] == (1, 1)  # ours: colours at full resolution
    assert all(b"a camera" not in copy for copy in copies(given).values())


def test_one_image_is_stored_once_under_however_many_names(given: Given) -> None:
    for name in ("a.jpg", "b.jpg", "c/d.jpg"):
        given.image(name, data=photograph(400, 300))
    given.image("other.jpg", data=photograph(401, 300))
    images = copying(given)
    found = [images.find(name) for name in ("a.jpg", "b.jpg", "c/d.jpg", "other.jpg")]
    assert found[0].stored == found[1].stored == found[2].stored != found[3].stored
    assert len(copies(given)) == 2


def test_the_same_image_gives_the_same_bytes_in_every_run_and_thread(given: Given) -> None:
    names = [given.image(f"{n}.jpg", data=photograph(400 + n, 300, orientation=n % 8 + 1)) for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(copying(given).find, names))
    alone = copying(given, made="again")
    for name in reversed(names):
        alone.find(name)
    assert copies(given) == copies(given, "again")
    assert len(copies(given)) == 16


@pytest.mark.parametrize("left", [0, 500, None])
def test_a_copy_that_was_cut_short_is_made_again_and_no_other(
    given: Given, left: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given.image("a.jpg", data=photograph(400, 300))
    first = copying(given).find("a.jpg")
    assert first.stored is not None
    whole = Path(first.stored.uri).read_bytes()
    Path(first.stored.uri).write_bytes(whole[:left])
    if left is None:
        monkeypatch.setattr(ingest, "packed", lambda _: pytest.fail("it was encoded again"))
    assert copying(given).find("a.jpg") == first
    assert Path(first.stored.uri).read_bytes() == whole


def test_what_a_source_made_itself_is_copied_only_where_it_is_too_large(given: Given) -> None:
    images = copying(given)
    small = images.keep("small.png", photograph(60, 45, "PNG"))
    large = images.keep("large.png", photograph(400, 300, "PNG"))
    assert small.stored is None
    assert copy_of(large).size == (200, 150)
    assert read_image(Store(), small).pixels.size == (60, 45)
    assert Path(large.uri).read_bytes() == photograph(400, 300, "PNG")


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


# ------------------------------------------------------------------------------------- the index that a run leaves


def spoilt(path: Path) -> None:
    """Other bytes, of which the file system does not tell: whoever opens this image now refuses it."""
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_second_run_opens_no_image_that_has_not_changed_in_one_process_or_in_several(
    given: Given, tmp_path: Path
) -> None:
    settings = viscot_rows(given) | {"num_shards": 3}
    in_parts(tmp_path / "first", **settings)
    for path in given.images.rglob("*.png"):
        spoilt(path)
    for name, run in (("second", stage), ("parts", in_parts)):
        run(tmp_path / name, **settings, known_images=tmp_path / "first/convert/images.json")
        assert made(tmp_path / name) == made(tmp_path / "first")
    with pytest.raises(InputError, match="40 image-not-an-image"):  # without it they are opened
        convert(tmp_path / "third", **settings)


def test_an_image_that_has_changed_is_opened_again(given: Given, tmp_path: Path) -> None:
    settings = viscot_rows(given, bad=0)
    convert(tmp_path / "first", **settings)
    (given.images / "vsr/3.png").write_bytes(png(90, 70))  # rows 9, 10 and 11, whose size it has no more
    (given.images / "vsr/4.png").unlink()
    told = convert(
        tmp_path / "second", **settings, known_images=tmp_path / "first/convert/images.json",
        max_rejected_share=0.5,
    )  # fmt: skip
    assert told["row_counts"]["rejected"] == {"image-missing": 3, "image-size-differs": 3}


def test_a_copy_stays_in_its_run_and_is_not_forgotten_there(tmp_path: Path) -> None:
    known, store = ImageIndex(tmp_path / "1.sqlite"), Store()
    plain = Image(uri="a.png", width=20, height=10, sha256="0" * 64)
    copied = plain.model_copy(update={"stored": Stored(uri="c.jpg", width=2, height=1, sha256="1" * 64)})
    known.put(copied, 7, "now")
    known.put(plain, 7, "now")
    assert known.get("a.png") == copied
    known.leave(store, str(tmp_path / "images.json"))
    later = ImageIndex(tmp_path / "2.sqlite")
    later.take(store, str(tmp_path / "images.json"), listed=[Entry("a.png", 7, "now"), Entry("a.png", 7, "now")])
    assert later.get("a.png") == plain


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "is the images.json that convert leaves"),
        ("{", "is not the images.json that convert leaves"),
        ('{"form": 9, "file": "x", "sha256": ""}', "is of form 9, and this vcot reads form 1"),
        ('{"form": 1, "file": "x", "sha256": "00"}', "x is damaged; its sha256 should be 00"),
    ],
)
def test_what_is_no_index_is_refused_in_one_line(tmp_path: Path, data: str | None, said: str) -> None:
    (tmp_path / "x").write_text("something else")
    if data is not None:
        (tmp_path / "images.json").write_text(data)
    with pytest.raises(InputError, match=said):
        ImageIndex(tmp_path / "1.sqlite").take(Store(), str(tmp_path / "images.json"), listed=[])
