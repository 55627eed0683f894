"""Convert reads images inside an archive: the same Samples as from the folder that it would be unpacked to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.convert import in_parts, made, rejections, samples, stage
from tests.fakes.rows import Given, metadata
from tests.storage.tars import in_chunks, tar
from vcot.errors import InputError
from vcot.records import Sample
from vcot.records.sample import read_image
from vcot.storage import Store, join
from vcot.uris import pieces

store = Store()
pytestmark = pytest.mark.usefixtures("clean")
AS_READ = {"source": "viscot", "num_shards": 3, "readers": 2}


def convert(run_uri: str, **settings: Any) -> list[Sample]:
    stage(run_uri, **AS_READ | settings)
    return samples(run_uri) if settings.get("part", "all") == "all" else []


@pytest.fixture
def rows(tmp_path: Path) -> Given:
    """30 rows about 15 images, the last row about one that is nowhere."""
    given = Given(tmp_path / "data")
    found = []
    for n in range(30):
        given.image(f"vsr/{n // 2}.png", 90 + n // 2, 70)
        found.append(metadata([[1, 2, 30, 40]], image=f"{n // 2}.png", width=90 + n // 2, height=70, question=f"{n}?"))
    found[-1]["image"] = "nowhere.png"
    given.rows(found)
    return given


def archive_of(folder: Path, top: str = "cot_image_data", links: dict[str, str] | None = None) -> bytes:
    files = {f"{top}/{p.relative_to(folder)}": p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return tar(files, links=links)


def without_uri(sample: Sample) -> dict[str, Any]:
    told = sample.model_dump(mode="json")
    for image in told["images"]:
        del image["uri"]
    return told


@pytest.mark.parametrize(("top", "size"), [("cot_image_data", 5000), (".", 700)])
def test_the_same_samples_as_from_a_folder(minio_place: str, rows: Given, tmp_path: Path, top: str, size: int) -> None:
    in_chunks(store, join(minio_place, "tar"), archive_of(rows.images, top), size)
    source = rows.folder / "rows.jsonl"
    from_folder = convert(str(tmp_path / "folder"), input_uri=source, images_uri=rows.images)
    inside = convert(join(minio_place, "run"), input_uri=source, images_uri=join(minio_place, "tar"))
    assert [without_uri(sample) for sample in inside] == [without_uri(sample) for sample in from_folder]
    assert len(inside) == 29
    for sample in inside:
        assert pieces(sample.image.uri), "a later stage needs no more than this"
        assert read_image(store, sample.image).width == sample.image.width
    (refused,) = rejections(join(minio_place, "run"))
    assert refused.reason.value == "image-missing"
    looked_for = ["vsr/nowhere.png"] if top == "." else [f"{top}/vsr/nowhere.png", "vsr/nowhere.png"]
    missing = "; ".join(f"'{path}' is not in {minio_place}/tar" for path in looked_for)
    assert refused.detail == f"vsr/nowhere.png: {missing}"
    in_parts(join(minio_place, "parts"), **AS_READ, input_uri=source, images_uri=join(minio_place, "tar"))
    assert made(join(minio_place, "parts")) == made(join(minio_place, "run"))
    if size < 1000:
        assert any(len(pieces(sample.image.uri)) > 1 for sample in inside)


@pytest.mark.parametrize(
    ("kind", "there", "said"),
    [
        ("folder", "cot", "bare file"), ("folder", "", "cot"), ("one file", "", "cot_image_data"),
        ("chunks", "cot", "cot_image_data"),
    ],
)  # fmt: skip
def test_images_are_found_with_and_without_a_folder_on_top(
    tmp_path: Path, rows: Given, kind: str, there: str, said: str
) -> None:
    """Rows write `cot/vsr/0.png`, the archive has `cot_image_data/vsr/0.png`, and people have either, or neither."""
    place = str(tmp_path)
    if kind == "folder":
        for path in rows.images.rglob("*.png"):
            store.upload(path, join(place, "images", there, str(path.relative_to(rows.images))))
    elif kind == "one file":
        store.write(join(place, "images"), archive_of(rows.images, there or "."))
    else:
        in_chunks(store, join(place, "images"), archive_of(rows.images, there or "."), 5000)
    found = [json.loads(line) for line in (rows.folder / "rows.jsonl").open()]
    for row in found if said != "bare file" else ():
        row["image"] = f"{said}/vsr/{row['image']}".lstrip("/")
    source = rows.rows(found, "said.jsonl")
    run_uri = join(place, "run")
    inside = convert(run_uri, input_uri=source, images_uri=join(place, "images"), near_duplicates=0)
    assert len(inside) == 29
    (refused,) = rejections(run_uri)
    assert refused.reason.value == "image-missing"
    looked_for = join(there, "vsr/nowhere.png")
    assert (join(place, "images", looked_for) if kind == "folder" else f"'{looked_for}'") in refused.detail


def test_an_image_lies_where_its_row_says_before_it_lies_elsewhere(tmp_path: Path) -> None:
    """Somebody's own images of cots."""
    given_cots = Given(tmp_path / "cots")
    given_cots.image("a.png", 50, 50)
    given_cots.image("cot/a.png", 60, 50)
    said = [{"image": path, "question": f"{path}?", "answers": ["x"]} for path in ("a.png", "cot/a.png")]
    source = given_cots.rows(said, "samples.jsonl")
    kept = convert(str(tmp_path / "run"), source="samples", input_uri=source, images_uri=given_cots.images)
    assert [sample.image.width for sample in kept] == [50, 60]


def test_several_runs_share_an_index(moto_place: str, rows: Given) -> None:
    in_chunks(store, join(moto_place, "tar"), archive_of(rows.images), 5000)
    same = {"input_uri": rows.folder / "rows.jsonl", "images_uri": join(moto_place, "tar")}
    with pytest.raises(InputError, match=r"archive\.json is missing: --part prepare comes before --part shards"):
        convert(join(moto_place, "early"), part="shards", **same)
    same["archive_index_uri"] = join(moto_place, "indices")
    convert(join(moto_place, "first"), **same)
    before = {entry.uri: entry.state for entry in store.list(join(moto_place, "indices"))}
    convert(join(moto_place, "second"), **same)
    assert {entry.uri: entry.state for entry in store.list(join(moto_place, "indices"))} == before
    assert not list(store.list(join(moto_place, "first", "convert", "archive")))
    told = json.loads(store.read(join(moto_place, "second", "convert", "archive.json")))
    assert told["uri"] in before
    assert len(told["chunks"]) == len(list(store.list(join(moto_place, "tar"))))


def test_a_row_about_a_link_has_what_it_leads_to_or_a_reason(tmp_path: Path, rows: Given) -> None:
    links = {f"cot_image_data/vsr/{name}.png": f"{to}.png" for name, to in (("a", "1"), ("b", "c"), ("c", "b"))}
    (tmp_path / "x.tar").write_bytes(archive_of(rows.images, links=links))
    found = [metadata([[1, 2, 30, 40]], image=f"{name}.png", width=91, height=70) for name in "ab"]
    read = {"input_uri": rows.rows(found, "few.jsonl"), "images_uri": tmp_path / "x.tar", "max_rejected_share": 0.5}
    (kept,) = convert(str(tmp_path / "run"), **read)
    assert kept.image.uri.endswith("#cot_image_data/vsr/1.png")
    (refused,) = rejections(str(tmp_path / "run"))
    assert refused.reason.value == "image-unsupported"
    assert "that leads from link to link" in refused.detail


def test_convert_takes_another_archive_after_a_failed_attempt(tmp_path: Path, rows: Given) -> None:
    """The first attempt indexed its archive, and found no row in its input."""
    settings = {"num_shards": 1, "max_rejected_share": 0.1}
    for name, top in (("wrong", "cot_image_data/dude"), ("right", "cot_image_data")):
        (tmp_path / f"{name}.tar").write_bytes(archive_of(rows.images, top))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="there is not one row in it"):
        convert(
            str(tmp_path / "run"), input_uri=tmp_path / "empty.jsonl", images_uri=tmp_path / "wrong.tar", **settings
        )
    kept = convert(
        str(tmp_path / "run"), input_uri=rows.folder / "rows.jsonl", images_uri=tmp_path / "right.tar", **settings
    )
    assert len(kept) == 29
