"""The convert job: settings, ends, and the same bytes whoever makes which part."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import DATASETS, ConvertSettings
from tests.fakes.convert import convert, flags, in_parts, made, rejections, samples, viscot_rows
from tests.fakes.rows import AOKVQA, AOKVQA_DIRECT, ONE_AND_TWO, Given, instances, messages, metadata, png
from vcot.errors import InputError, SettingsError, VcotError
from vcot.settings import owners_of
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("clean")


def test_rows_in_are_kept_and_rejected_in_counts_report_and_files(given: Given, tmp_path: Path) -> None:
    told = convert(tmp_path / "run", **viscot_rows(given), num_shards=3, validation_share=0.3)
    assert told["row_counts"] == {"rows": 40, "kept": 38, "written": 38, "rejected": {"box-inverted": 2}}
    assert told["datasets"]["vsr"]["rejected"] == {"box-inverted": 2}
    assert sum(told["datasets"]["vsr"]["kept"].values()) == told["box_area"]["n"] == 38
    assert told["boxes_per_row"] == {"1": 38}
    kept = samples(tmp_path / "run")
    assert len({s.id for s in kept}) == 38
    assert {s.origin.split for s in kept} == {"train", "validation"}
    assert {r.id for r in rejections(tmp_path / "run")} == {"rows.jsonl:39", "rows.jsonl:40"}
    assert "box-inverted" in (tmp_path / "run/convert/report.html").read_text()


@pytest.mark.parametrize("form", ["lines", "array", "gzipped array"])
def test_the_same_input_gives_the_same_bytes_whoever_makes_which_part(given: Given, tmp_path: Path, form: str) -> None:
    settings = viscot_rows(given) | {"num_shards": 3}
    if form != "lines":
        lines = Path(settings["input_uri"]).read_text().splitlines()
        settings["input_uri"] = given.rows(lines, "rows.json")
    if form == "gzipped array":
        data = Path(settings["input_uri"]).read_bytes()
        settings["input_uri"] = Path(f"{settings['input_uri']}.gz")
        settings["input_uri"].write_bytes(gzip.compress(data))
    convert(tmp_path / "one", **settings, readers=1)
    convert(tmp_path / "many", **settings, readers=5)
    in_parts(tmp_path / "parts", **settings)
    assert made(tmp_path / "one") == made(tmp_path / "many") == made(tmp_path / "parts")
    assert len(made(tmp_path / "parts")) == 6


def test_drawn_scenes_need_no_input(tmp_path: Path) -> None:
    told = convert(tmp_path / "run", source="scenes", limit=6, num_shards=2, stored_images_uri=tmp_path / "images")
    assert told["row_counts"]["kept"] == len(list((tmp_path / "images").glob("*.png"))) == 6
    assert all("/images/" in sample.image.uri for sample in samples(tmp_path / "run"))


def test_a_finished_stage_has_nothing_left_to_do_and_belongs_to_its_settings_and_input(
    given: Given, tmp_path: Path
) -> None:
    settings = viscot_rows(given)
    convert(tmp_path / "run", **settings)
    before = made(tmp_path / "run")
    for image in given.images.rglob("*.png"):
        image.unlink()
    convert(tmp_path / "run", **settings)  # does not even look at the images
    assert made(tmp_path / "run") == before
    assert "seed was 0 and is now 1" in fails(tmp_path, SettingsError, settings | {"seed": 1})
    viscot_rows(given, bad=1)
    assert "has changed since" in fails(tmp_path, InputError, settings)


def test_everything_may_lie_in_a_bucket(given: Given, moto_place: str) -> None:
    settings = viscot_rows(given, count=9, bad=1)
    for path in given.folder.rglob("*.*"):
        Store().upload(path, f"{moto_place}/data/{path.relative_to(given.folder)}")
    settings |= {"input_uri": f"{moto_place}/data", "images_uri": f"{moto_place}/data/images"}
    told = convert(f"{moto_place}/run", **settings, max_rejected_share=0.2)
    assert told["row_counts"]["rejected"] == {"box-inverted": 1}
    uris = {sample.image.uri for sample in samples(f"{moto_place}/run")}
    assert uris == {f"{moto_place}/data/images/vsr/{n}.png" for n in range(3)}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("viscot", ["--input-uri", "--images-uri", "--category-names", "--frame"]),
        ("coco", ["--input-uri", "--category-names:", "--category-names:", "--frame"]),
        ("samples", ["--input-uri", "--frame=resized_pixels", "--category-names"]),
    ],
)
def test_every_fault_of_the_settings_is_named_at_once(source: str, said: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        ConvertSettings.load(flags(run_uri="r", source=source, frame="resized_pixels", category_names="WBC,RBC=x,=y"))
    assert [line.split()[0] for line in str(refused.value).splitlines()] == said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "vizcot"}, f"{', '.join(map(repr, list(DATASETS)[:-1]))} or {list(DATASETS)[-1]!r}"),
        ({"questions": "where,why"}, "'where', 'count', 'point' or 'presence'"),
        ({"categories": "WBC"}, "--source scenes does not look at it, --source coco does; leave it out"),
        ({"source": "refcoco", "input_uri": "x"}, "is missing: the folder with COCO's images of train2014"),
        ({"ingest_pixels": 1_000_000}, "--ingest-pixels (or VCOT_CONVERT_INGEST_PIXELS) is for copies: give --ingest"),
    ],
)
def test_wrong_values_are_shown_with_what_would_be_right(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        ConvertSettings.load(flags(**{"run_uri": "r", "source": "scenes"} | settings))
    assert said in str(refused.value)


def fails(tmp_path: Path, kind: type[VcotError], settings: dict[str, Any]) -> str:
    with pytest.raises(kind) as refused:
        convert(tmp_path / "run", **settings)
    return str(refused.value)


def test_inputs_that_are_missing_empty_or_wrong(given: Given, tmp_path: Path) -> None:
    given.image("a.png")
    detection = [{"img_path": "a", "expression": "?", "bbox": [1, 2, 3, 4]}]
    settings = {"source": "viscot", "images_uri": given.images}
    for number, (uri, said) in enumerate((
        (tmp_path / "no.json", "no such file"),
        (given.rows([], "empty.jsonl"), "not one row"),
        (given.rows(["PK", "no"], "x.jsonl"), "not-json"),
        (given.rows(detection, "detection.jsonl"), "is a detection file"),
    )):  # fmt: skip
        assert said in fails(tmp_path / str(number), InputError, settings | {"input_uri": uri})
    nothing = viscot_rows(given) | {"images_uri": tmp_path / "nothing"}
    assert "nothing: there is nothing in that folder" in fails(tmp_path, InputError, nothing)
    by_path = AOKVQA | {"split": "train", "image_id": 7, "direct_answers": AOKVQA_DIRECT}
    said = fails(tmp_path / "a", SettingsError, {"source": "aokvqa", "input_uri": given.rows([by_path], "a.jsonl")})
    assert "--images-uri is missing" in said


def test_the_help_has_a_part_for_each_source_and_every_setting_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        ConvertSettings.load(["--help"])
    found = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.MULTILINE)
    sections = dict(zip(found[1::2], found[2::2], strict=True))
    assert list(sections)[2 : 2 + len(DATASETS)] == [f"--source {source}" for source in DATASETS]
    for name, sources in owners_of(DATASETS).items():
        assert f"  --{name.replace('_', '-')} " in sections[f"--source {sources[0]}"]
    assert all("VALUE" not in text for text in sections.values())
    named = re.findall(r"^  (--[a-z-]+)", "".join(sections.values()), flags=re.MULTILINE)
    assert sorted(named) == sorted(f"--{name.replace('_', '-')}" for name in (*ConvertSettings.model_fields, "check"))
    for source in DATASETS:  # the example of each is in order
        (line,) = re.findall(r"python -m jobs\.convert (.*)", sections[f"--source {source}"])
        assert ConvertSettings.load(line.split())[0].source == source


SIGNED = "https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Credential=AKIDEXAMPLE&X-Amz-Signature=0f3c5e9a77"
NAMED = "https://reader:pa55/w0rd+hunter2@images.example/a.jpg"


@pytest.mark.parametrize(
    "image",
    [SIGNED, NAMED, "s3://reader:pa55/w0rd+hunter2@bucket/a.jpg", {"url": NAMED}, {"uri": SIGNED, "path": NAMED},
     {"uri": "a.png", "sha256": SIGNED}, "a.jpg?X-Amz-Signature=0f3c5e9a77",
     [f"https://reader:hunter2{'x' * 300}@images.example"]],
)  # fmt: skip
def test_credentials_in_image_names_leave_no_trace(given: Given, tmp_path: Path, image: Any) -> None:
    given.image("a.png")
    rows = [{"image": image, "question": "?", "answers": ["2"]}, {"image": "a.png", "question": "?", "answers": ["2"]}]
    chats = [messages("2", image=image) | {"metadata": {"source": SIGNED}}] if isinstance(image, str) else []
    convert(
        tmp_path / "run", source="samples", frame="pixels", input_uri=given.rows([*rows, *chats]),
        images_uri=given.images, max_rejected_share=1, num_shards=1,
    )  # fmt: skip
    assert len(rejections(tmp_path / "run")) == 1 + len(chats)
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    for secret in (b"hunter2", b"0f3c5e9a77", b"AKIDEXAMPLE"):
        assert secret not in written


@pytest.mark.parametrize("fault", ["no images", "no rows", "another form", "no frame", "no category"])
def test_convert_that_failed_at_once_freezes_no_settings(given: Given, tmp_path: Path, fault: str) -> None:
    given.image("a.png")
    good = {"source": "samples", "input_uri": given.rows([messages("2")]), "images_uri": given.images}
    good["frame"] = "pixels"
    (given.folder / "empty").mkdir()
    coco = {"source": "coco", "input_uri": instances(given, ONE_AND_TWO), "images_uri": given.images}
    bad: dict[str, Any] = {
        "no images": good | {"images_uri": given.folder / "empty"},
        "no rows": good | {"input_uri": given.rows([], "empty.jsonl")},
        "another form": good | {"source": "coco"},
        "no frame": {name: value for name, value in good.items() if name != "frame"},
        "no category": coco | {"categories": "WBX"},
    }[fault]
    bad.pop("frame", None) if bad["source"] == "coco" else None
    with pytest.raises(VcotError):
        convert(tmp_path / "run", **bad)
    assert convert(tmp_path / "run", **(coco if fault == "no category" else good))["row_counts"]["kept"]
    with pytest.raises(SettingsError, match="seed was 0 and is now 1"):  # from here on they are
        convert(tmp_path / "run", **(coco if fault == "no category" else good), seed=1)


def test_coco_pictures_are_read_next_to_their_file(given: Given, tmp_path: Path) -> None:
    """As Roboflow exports: train/_annotations.coco.json with its pictures in train/; names repeat in valid/."""
    export = tmp_path / "export"
    for number, part in enumerate(("train", "valid")):
        (export / part).mkdir(parents=True)
        (export / part / "a.png").write_bytes(png(300, 300 + number))
        images = [{"id": 1, "file_name": "a.png", "width": 300, "height": 300 + number}]
        file = Path(instances(given, ONE_AND_TWO, images))
        file.rename(export / part / "_annotations.coco.json")
    one = export / "train" / "_annotations.coco.json"
    assert set(convert(tmp_path / "one", source="coco", input_uri=one)["row_counts"]["rejected"]) == set()
    assert {sample.image.uri for sample in samples(tmp_path / "one")} == {str(export / "train" / "a.png")}
    assert set(convert(tmp_path / "both", source="coco", input_uri=export)["row_counts"]["rejected"]) == set()
    assert {sample.image.uri for sample in samples(tmp_path / "both")} == {
        str(export / part / "a.png") for part in ("train", "valid")
    }


def test_split_test_puts_all_rows_into_the_test_split(given: Given, tmp_path: Path) -> None:
    coco = {"source": "coco", "input_uri": instances(given, ONE_AND_TWO), "images_uri": given.images}
    convert(tmp_path / "coco", **coco, split="test")
    assert {sample.origin.split for sample in samples(tmp_path / "coco")} == {"test"}
    rows = [metadata([[1, 2, 30, 40]], image="a.png", width=300, height=300, split=split) for split in ("train", "val")]
    rows[1]["question"] = "What is here?"
    viscot = {"source": "viscot", "input_uri": given.rows(rows), "images_uri": given.images}
    given.image("vsr/a.png", 300, 300)
    convert(tmp_path / "viscot", **viscot, split="test")
    assert [sample.origin.split for sample in samples(tmp_path / "viscot")] == ["test", "test"]
    with pytest.raises(SettingsError, match="--split=test puts all rows into one split; leave --splits out"):
        ConvertSettings.load(flags(run_uri="r", source="scenes", split="test", splits="by-content"))
