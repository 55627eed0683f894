"""The convert job: settings, ends, the same bytes twice, and killed at any line."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.convert import DATASETS, ConvertSettings, run
from tests.datasets.given import Given
from tests.datasets.test_datasets_viscot import metadata
from tests.s3 import moto_place, moto_server, no_aws  # noqa: F401 (fixtures)
from vcot.errors import InputError, Interrupted, SettingsError, VcotError
from vcot.records import read_samples
from vcot.records.shards import read_marker
from vcot.settings import owners_of
from vcot.stage import stop
from vcot.storage import Store

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("VCOT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path / "data")


def flags(**settings: Any) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def convert(run_uri: Path | str, **settings: Any) -> dict[str, Any]:
    """Runs the stage in this process; its report."""
    loaded, _ = ConvertSettings.load(flags(run_uri=run_uri, **settings))
    run(loaded)
    return report(run_uri)


def report(run_uri: Path | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Store().read(f"{run_uri}/convert/report.json"))
    return found


def viscot_rows(given: Given, count: int = 40, bad: int = 2) -> dict[str, Any]:
    """Rows over images of three each, the last `bad` of them inverted."""
    rows = []
    for n in range(count):
        height = 100 + n // 3
        given.image(f"vsr/{n // 3}.png", 90, height)
        box = [[1, 2, 30, 40]] if n < count - bad else [[30, 2, 1, 40]]
        rows.append(metadata(box, image=f"{n // 3}.png", width=90, height=height, question=f"What is {n}?"))
    return {"source": "viscot", "input_uri": given.rows(rows), "images_uri": given.images}


def made(run_uri: Path) -> dict[str, bytes]:
    """What must be the same in every run: shards and rejections, by name."""
    folder = run_uri / "convert"
    files = [*folder.glob("shards/*"), *folder.glob("rejections/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---------------------------------------------------------------------------------------------------- what is made


def test_rows_in_are_kept_and_rejected_in_tally_report_and_files(given: Given, tmp_path: Path) -> None:
    told = convert(tmp_path / "run", **viscot_rows(given), num_shards=3, validation_share=0.3)
    assert told["row_counts"] == {"rows": 40, "kept": 38, "written": 38, "rejected": {"box-inverted": 2}}
    assert told["datasets"]["vsr"]["rejected"] == {"box-inverted": 2}
    assert sum(told["datasets"]["vsr"]["kept"].values()) == 38
    assert told["boxes_per_row"] == {"1": 38}
    assert told["box_area"]["n"] == 38
    store = Store()
    marker, _ = read_marker(store, f"{tmp_path}/run/convert")
    samples = list(read_samples(store, f"{tmp_path}/run/convert", marker))
    assert len({s.id for s in samples}) == 38
    assert {s.origin.split for s in samples} == {"train", "validation"}
    refused = [json.loads(line) for f in (tmp_path / "run/convert/rejections").glob("*") for line in f.open()]
    assert {r["id"] for r in refused} == {"rows.jsonl:39", "rows.jsonl:40"}
    page = (tmp_path / "run/convert/report.html").read_text()
    assert "box-inverted" in page


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
    parts = tmp_path / "parts"
    for part in ({"part": "prepare"}, *({"part": "shards", "shard": n} for n in (2, 0, 1)), {"part": "finish"}):
        loaded, _ = ConvertSettings.load(flags(run_uri=parts, **settings, **part))
        run(loaded)
    assert made(tmp_path / "one") == made(tmp_path / "many") == made(parts)
    assert len(made(parts)) == 6


def test_drawn_scenes_need_no_input(tmp_path: Path) -> None:
    told = convert(tmp_path / "run", source="scenes", limit=6, num_shards=2, stored_images_uri=tmp_path / "images")
    assert told["row_counts"]["kept"] == 6
    assert len(list((tmp_path / "images").glob("*.png"))) == 6
    samples = b"".join(gzip.decompress(data) for name, data in made(tmp_path / "run").items() if "shards" in name)
    assert samples.count(b"/images/") == 6


def test_a_finished_stage_has_nothing_left_to_do(given: Given, tmp_path: Path) -> None:
    settings = viscot_rows(given)
    convert(tmp_path / "run", **settings)
    before = made(tmp_path / "run")
    for image in given.images.rglob("*.png"):
        image.unlink()
    convert(tmp_path / "run", **settings)  # does not even look at the images
    assert made(tmp_path / "run") == before


def test_a_stopped_stage_goes_on_where_it_was(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = viscot_rows(given) | {"num_shards": 4, "readers": 1, "near_duplicates": 0, "duplicates": "keep"}
    convert(tmp_path / "calm", **settings)
    seen = 0

    def asked_after_some_rows() -> bool:
        nonlocal seen
        seen += 1
        return seen > 65  # prepare looks at all 40 rows first

    monkeypatch.setattr(type(stop), "requested", property(lambda _: asked_after_some_rows()))
    with pytest.raises(Interrupted):
        convert(tmp_path / "stopped", **settings)
    monkeypatch.undo()
    done = list((tmp_path / "stopped/convert/_done").glob("0*.json"))
    assert 1 <= len(done) < 4
    convert(tmp_path / "stopped", **settings)
    assert made(tmp_path / "stopped") == made(tmp_path / "calm")


def test_killed_at_any_moment_the_same_command_gives_the_same_shards(tmp_path: Path) -> None:
    """A real process, SIGKILL, drawn scenes (the slowest source for its size)."""
    settings = {"source": "scenes", "limit": 60, "num_shards": 6, "stored_images_uri": tmp_path / "images"}
    begun = time.monotonic()
    process(tmp_path / "calm", settings).wait()
    took = time.monotonic() - begun
    dice = random.Random(3)
    for _ in range(3):
        victim = process(tmp_path / "stormy", settings)
        time.sleep(dice.uniform(0.3, 1.0) * took)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert process(tmp_path / "stormy", settings).wait() == 0
    calm, stormy = made(tmp_path / "calm"), made(tmp_path / "stormy")
    assert calm.keys() <= stormy.keys()
    marker, _ = read_marker(Store(), f"{tmp_path}/stormy/convert")
    named = {file.name for shard in marker.shards for file in (*shard.files, shard.rejections)}
    assert named == calm.keys()
    assert {name: stormy[name] for name in named} == calm


def process(run_uri: Path, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.convert", *flags(run_uri=run_uri, **settings)], cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------- how it ends


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
    ("source", "name", "value", "who"),
    [
        ("coco", "frame", "thousandths", "samples"),
        ("viscot", "min_pixels", "784", "samples"),
        ("scenes", "categories", "WBC", "coco"),
        ("samples", "questions", "where", "coco or --source scenes"),
        ("coco", "scenes", "200", "scenes"),
    ],
)
def test_a_setting_that_the_source_does_not_look_at_is_refused(source: str, name: str, value: str, who: str) -> None:
    places: dict[str, Any] = {} if source == "scenes" else {"input_uri": "x.json", "images_uri": "x"}
    ConvertSettings.load(flags(run_uri="r", source=source, **places))
    with pytest.raises(SettingsError) as refused:
        ConvertSettings.load(flags(run_uri="r", source=source, **places, **{name: value}))
    assert str(refused.value) == (
        f"--{name.replace('_', '-')} (or VCOT_CONVERT_{name.upper()}): --source {source} does not look at it, "
        f"--source {who} does; leave it out"
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("source", "vizcot", "'viscot', 'coco', 'refcoco', 'scienceqa', 'aokvqa', 'llava-cot', 'scenes' or 'samples'"),
        ("questions", "where,why", "'where', 'count', 'point' or 'presence'"),
        ("num_shards", "0", "greater than or equal to 1"),
        ("validation_share", "1", "less than 1"),
        ("frame", "thousands", "'thousandths'"),
    ],
)
def test_a_wrong_value_is_shown_with_what_would_be_right(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        ConvertSettings.load(flags(**{"run_uri": "r", "source": "scenes", name: value}))
    assert said in str(refused.value)


def fails(tmp_path: Path, kind: type[VcotError], settings: dict[str, Any]) -> str:
    with pytest.raises(kind) as refused:
        convert(tmp_path / "run", **settings)
    return str(refused.value)


def test_too_many_refused_rows_are_an_error_with_the_reasons(given: Given, tmp_path: Path) -> None:
    settings = viscot_rows(given, count=40, bad=4)
    said = fails(tmp_path, InputError, settings)
    assert "4 of 40 rows were refused (10.0%)" in said
    assert "4 box-inverted" in said
    assert convert(tmp_path / "run", **settings, max_rejected_share=0.1)["row_counts"]["kept"] == 36


def test_an_images_folder_without_anything_in_it_is_said_at_once(given: Given, tmp_path: Path) -> None:
    settings = viscot_rows(given) | {"images_uri": tmp_path / "nothing"}
    assert "nothing: there is nothing in that folder" in fails(tmp_path, InputError, settings)
    assert not (tmp_path / "run/convert/shards").exists()


def test_rows_about_what_is_no_regular_file_are_refused_and_the_others_kept(given: Given, tmp_path: Path) -> None:
    settings = viscot_rows(given, count=40, bad=0)
    for n in (1, 2):
        (given.images / f"vsr/{n}.png").unlink()
    os.mkfifo(given.images / "vsr/1.png")
    (given.images / "vsr/2.png").symlink_to("2.png")
    begun = process(tmp_path / "run", settings | {"max_rejected_share": 0.5})
    try:
        assert begun.wait(timeout=60) == 0
    finally:
        begun.kill()
    assert report(tmp_path / "run")["row_counts"]["rejected"] == {"image-missing": 6}
    refused = [json.loads(line) for f in (tmp_path / "run/convert/rejections").glob("*") for line in f.open()]
    fifo, link = (f"{given.images}/vsr/{n}.png: " for n in (1, 2))
    assert sum(r["detail"].startswith(f"{fifo}a FIFO, not a regular file") for r in refused) == 3
    assert sum(r["detail"].startswith(f"{link}too many levels of symbolic links") for r in refused) == 3


def test_a_detection_file_as_input(given: Given, tmp_path: Path) -> None:
    rows = given.rows([{"img_path": "a", "expression": "?", "bbox": [1, 2, 3, 4]}])
    settings = {"source": "viscot", "input_uri": rows, "images_uri": given.images}
    given.image("a.png")
    assert "is a detection file" in fails(tmp_path, InputError, settings)


def test_no_file_an_empty_file_and_a_wrong_one(given: Given, tmp_path: Path) -> None:
    given.image("a.png")
    settings = {"source": "viscot", "images_uri": given.images}
    assert "no such file" in fails(tmp_path, InputError, settings | {"input_uri": tmp_path / "no.json"})
    assert "not one row" in fails(tmp_path / "2", InputError, settings | {"input_uri": given.rows([], "empty.jsonl")})
    assert "not-json" in fails(
        tmp_path / "3", InputError, settings | {"input_uri": given.rows(["PK", "no"], "x.jsonl")}
    )


def test_one_prefix_belongs_to_one_choice_of_settings(given: Given, tmp_path: Path) -> None:
    settings = viscot_rows(given)
    convert(tmp_path / "run", **settings)
    said = fails(tmp_path, SettingsError, settings | {"seed": 1})
    assert "seed was 0 and is now 1" in said


def test_an_input_that_changed_between_two_starts(given: Given, tmp_path: Path) -> None:
    settings = viscot_rows(given)
    convert(tmp_path / "run", **settings)
    viscot_rows(given, bad=1)
    assert "has changed since" in fails(tmp_path, InputError, settings)


def test_held_out_images_are_looked_up_before_the_shards(given: Given, tmp_path: Path) -> None:
    settings = viscot_rows(given, count=39, bad=0)
    path = Path(settings["input_uri"])
    rows = [json.loads(line) for line in path.open()]
    path.write_text(
        "".join(json.dumps(row | {"split": "val" if n == 0 else "train"}) + "\n" for n, row in enumerate(rows))
    )
    told = convert(tmp_path / "run", **settings, max_rejected_share=0.1, validation_share=0)
    assert told["datasets"]["vsr"] == {"kept": {"test": 1, "train": 36}, "rejected": {"held-out": 2}}
    told = convert(tmp_path / "by-content", **settings, splits="by-content", validation_share=0)
    assert told["datasets"]["vsr"]["kept"] == {"train": 39}


def test_everything_may_lie_in_a_bucket(given: Given, moto_place: str) -> None:  # noqa: F811
    settings = viscot_rows(given, count=9, bad=1)
    store = Store()
    for path in given.folder.rglob("*.*"):
        store.upload(path, f"{moto_place}/data/{path.relative_to(given.folder)}")
    settings |= {"input_uri": f"{moto_place}/data", "images_uri": f"{moto_place}/data/images"}
    told = convert(f"{moto_place}/run", **settings, max_rejected_share=0.2)
    assert told["row_counts"]["rejected"] == {"box-inverted": 1}
    samples = list(read_samples(store, f"{moto_place}/run/convert", read_marker(store, f"{moto_place}/run/convert")[0]))
    assert {s.image.uri for s in samples} == {f"{moto_place}/data/images/vsr/{n}.png" for n in range(3)}


def test_settings_are_judged_in_under_two_seconds_because_no_library_is_loaded() -> None:
    command = ["-X", "importtime", "-m", "jobs.convert", "--run-uri", "r", "--source", "scenes", "--check"]
    before = os.times()
    answer = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    after = os.times()
    assert answer.returncode == 0, answer.stderr
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in answer.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "boto3", "numpy", "pyarrow"}
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 2  # of CPU: wall time belongs to whoever else is on this machine


# --- the help -----------------------------------------------------------------------------------------------


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Title → what the help says below it."""
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        ConvertSettings.load(["--help"])
    found = re.split(r"^(\S.*):$", capsys.readouterr().out, flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_the_help_has_a_part_for_each_source_with_its_settings(sections: dict[str, str]) -> None:
    titles = list(sections)
    assert titles[2:10] == [f"--source {source}" for source in DATASETS]
    for name, sources in owners_of(DATASETS).items():
        assert f"  --{name.replace('_', '-')} " in sections[f"--source {sources[0]}"]
    assert all("VALUE" not in text for text in sections.values())


@pytest.mark.parametrize("source", DATASETS)
def test_the_helps_example_of_a_source_is_in_order(source: str, sections: dict[str, str]) -> None:
    (line,) = re.findall(r"python -m jobs\.convert (.*)", sections[f"--source {source}"])
    settings, _ = ConvertSettings.load(line.split())
    assert settings.source == source


def test_every_setting_stands_once_in_the_help(sections: dict[str, str]) -> None:
    flags = re.findall(r"^  (--[a-z-]+)", "".join(sections.values()), flags=re.MULTILINE)
    assert sorted(flags) == sorted(f"--{name.replace('_', '-')}" for name in (*ConvertSettings.model_fields, "check"))
