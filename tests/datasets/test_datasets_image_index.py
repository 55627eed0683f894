"""What is known of images goes from run to run, and counts as long as the storage says that nothing has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import ConvertSettings, run
from tests.datasets.given import Given, png
from tests.jobs.test_convert import convert, flags, made, viscot_rows
from tests.s3 import moto_place, moto_server, no_aws  # noqa: F401 (fixtures)
from vcot.datasets.image_index import ImageIndex
from vcot.errors import InputError
from vcot.records import Folder, Image
from vcot.records.sample import Stored
from vcot.records.shards import CONVERT
from vcot.storage import Entry, Store


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path / "data")


def spoilt(path: Path) -> None:
    """Other bytes, of which the file system does not tell: whoever opens this image now refuses it."""
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_second_run_opens_no_image_that_has_not_changed(given: Given, tmp_path: Path) -> None:
    settings = viscot_rows(given)
    convert(tmp_path / "first", **settings)
    for path in given.images.rglob("*.png"):
        spoilt(path)
    convert(tmp_path / "second", **settings, known_images=tmp_path / "first/convert/images.json")
    assert made(tmp_path / "second") == made(tmp_path / "first")
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


def test_processes_of_shards_know_what_prepare_knew_and_leave_what_they_saw(given: Given, tmp_path: Path) -> None:
    settings = viscot_rows(given, bad=0) | {"num_shards": 3}

    def do(run_uri: Path, part: str, **more: Any) -> None:
        run(ConvertSettings.load(flags(run_uri=run_uri, **settings, part=part, **more))[0])

    for run_uri, more in (
        (tmp_path / "a", {}),
        (tmp_path / "b", {"known_images": tmp_path / "a/convert/images.json"}),
    ):
        do(run_uri, "prepare", **more)
        for shard in range(3):
            do(run_uri, "shards", shard=shard, **more)
        do(run_uri, "finish", **more)
        for path in given.images.rglob("*.png"):
            spoilt(path)
    assert made(tmp_path / "a") == made(tmp_path / "b")


def test_in_a_bucket_too(given: Given, moto_place: str, tmp_path: Path) -> None:  # noqa: F811
    store, uri = Store(), f"{moto_place}/images"
    store.write(f"{uri}/a.png", png(20, 10))
    (entry,) = store.list(uri)
    first = ImageIndex(tmp_path / "1.sqlite")
    first.put(Image(uri=entry.uri, width=20, height=10, sha256="0" * 64), entry.size, entry.state)
    first.leave(store, f"{moto_place}/images.json")
    second, third = ImageIndex(tmp_path / "2.sqlite"), ImageIndex(tmp_path / "3.sqlite")
    second.take(store, f"{moto_place}/images.json", listed=store.list(uri))
    assert second.get(entry.uri) == first.get(entry.uri) is not None
    store.write(f"{uri}/a.png", png(20, 11))
    third.take(store, f"{moto_place}/images.json", listed=store.list(uri))
    assert third.get(entry.uri) is None


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


def test_what_nobody_has_added_to_is_not_written_again(tmp_path: Path) -> None:
    folder = Folder(Store(), str(tmp_path / "run"), CONVERT)
    left = Path(folder.uri) / "images.json"
    first = ImageIndex(tmp_path / "1.sqlite")
    first.put(Image(uri="a.png", width=20, height=10, sha256="0" * 64), 7, "now")
    first.end(folder, "prepare", None)
    before = left.stat().st_mtime_ns
    second = ImageIndex(tmp_path / "2.sqlite")
    second.begin(folder, "finish", None, [])
    first.end(folder, "all", None)
    second.end(folder, "finish", None)
    assert left.stat().st_mtime_ns == before
    second.put(Image(uri="b.png", width=20, height=10, sha256="1" * 64), 7, "now")
    second.end(folder, "finish", None)
    third = ImageIndex(tmp_path / "3.sqlite")
    third.begin(folder, "finish", None, [])
    assert [third.get(uri) for uri in ("a.png", "b.png")] == [second.get(uri) for uri in ("a.png", "b.png")]
    assert third.get("b.png") is not None
