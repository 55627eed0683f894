"""The report of convert: its numbers against rows that the test counts for itself, and what its page may not do."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.convert import ConvertSettings, run
from tests.distill.made import sample
from tests.fakes.rows import Given
from vcot.errors import InputError
from vcot.grounding import smart_resize
from vcot.records import Folder, Reason, Sample
from vcot.records.metadata import ConvertShardMetadata
from vcot.records.reports import Conversion
from vcot.records.shards import CONVERT, JsonLines, ShardWriter
from vcot.reports.conversion import LEAST_PIXELS, MEANING
from vcot.reports.examples import ShownBox, ShownExample
from vcot.reports.statistics import AREAS, sample_statistics
from vcot.storage import Store

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return Given(tmp_path)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("VCOT_")]:
        monkeypatch.delenv(name)


def row(bboxs: Any, **changed: Any) -> dict[str, Any]:
    """As VisCoT publishes it."""
    return {
        "question": "What is there?", "answer": "cake", "image": "a.png", "width": 90, "height": 100,
        "bboxs": bboxs, "dataset": "vsr", "split": "train",
    } | changed  # fmt: skip


def convert(run_uri: Path, given: Given, rows: list[dict[str, Any]], **settings: Any) -> tuple[Conversion, str]:
    """The report and its page; a run that keeps too little has them, too."""
    flags = {"source": "viscot", "near_duplicates": 0, "num_shards": 2, "max_rejected_share": 1}
    flags |= {"input_uri": given.rows(rows), "images_uri": given.images} | settings
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    loaded, _ = ConvertSettings.load(["--run-uri", str(run_uri), *[word for word in words if word != "True"]])
    try:
        run(loaded)
    finally:
        told = Conversion.model_validate_json((run_uri / "convert/report.json").read_text())
        page = (run_uri / "convert/report.html").read_text()
    return told, page


def many_rows(given: Given) -> list[dict[str, Any]]:
    """Two datasets with images of two sizes; every third row of dude has a box far outside."""
    dice, rows = random.Random(5), []
    for name, width, height in (("vsr", 320, 240), ("dude", 170, 220)):
        for n in range(60):
            image = f"{n // 2}.png"
            x, y = dice.uniform(0, width - 40), dice.uniform(0, height - 40)
            box = [x, y, x + dice.uniform(2, 39), y + dice.uniform(2, 39)]
            if name == "dude" and n % 3 == 0:
                box[2] = width + 70
            question = "What?" + "?" * dice.randrange(2000)
            given.image(f"{name}/{image}", width + n // 2, height)
            rows.append(row([box], dataset=name, image=image, width=width + n // 2, height=height, question=question))
    return rows


# ------------------------------------------------------------------------------------------------------------- numbers


def test_the_numbers_are_those_of_the_shards_and_of_the_rejections(given: Given, tmp_path: Path) -> None:
    told, _ = convert(
        tmp_path / "run", given, many_rows(given), validation_share=0.3, ingest=True, ingest_pixels=40_000
    )
    files = sorted((tmp_path / "run/convert/shards").glob("*"))
    kept = [Sample.model_validate_json(line) for f in files for line in gzip.decompress(f.read_bytes()).splitlines()]
    refused = [json.loads(line) for f in (tmp_path / "run/convert/rejections").glob("*") for line in f.open()]
    assert len(kept) + len(refused) == told.row_counts.rows == 120
    assert len(refused) == 20
    for name, rows in told.datasets.items():
        here = [sample for sample in kept if sample.origin.dataset == name]
        assert rows.kept == Counter(sample.origin.split for sample in here)
    assert told.datasets["dude"].rejected == Counter(one["reason"] for one in refused) == {"box-outside": 20}

    questions = [len(sample.question) for sample in kept]
    assert (told.question_length.min, told.question_length.max) == (min(questions), max(questions))
    assert told.question_length.median == median_low(questions)
    assert [bar.n for bar in told.question_length.bars] == [
        sum(bar.low <= length < (bar.below or 10**9) for length in questions) for bar in told.question_length.bars
    ]
    assert told.by_dataset["vsr"].answer_length.median == 4
    areas = sorted(b.area / (s.image.width * s.image.height) for s in kept for b in s.true_boxes or ())
    assert told.box_area.n == len(areas)
    assert told.box_area.median == max(share for share in AREAS if share <= median_low(areas))
    assert told.boxes_per_row == {"1": 100}
    assert told.reasonings == {"0": 100}

    images = {sample.image.sha256: sample for sample in kept}
    assert told.images == {
        split: sum(s.origin.split == split for s in images.values()) for split in ("train", "validation", "test")
    }
    assert told.pixels.median == median_low([s.image.width * s.image.height for s in images.values()])
    assert told.pixels_kept.max == max(s.image.kept.width * s.image.kept.height for s in images.values()) <= 40_000
    sizes = [(s.image.kept.width, s.image.kept.height) for s in images.values()]
    resized = [smart_resize(*size, min_pixels=LEAST_PIXELS, max_pixels=40_000) for size in sizes]
    assert told.visual_tokens.median == median_low([across * down // 784 for across, down in resized])


def test_rows_without_an_image_and_rows_without_evidence_are_told_apart_from_rows_about_nothing(tmp_path: Path) -> None:
    one = sample()
    assert one.image is not None
    rows = [
        one, one.model_copy(update={"evidence": None}), one.model_copy(update={"evidence": ()}),
        one.model_copy(update={"images": (), "evidence": None, "question": "one \U0001f600 \0 two"}),
    ]  # fmt: skip
    folder = Folder(Store(), str(tmp_path / "run"), CONVERT)

    def keep_all(writer: ShardWriter) -> ConvertShardMetadata:
        for row in rows:
            writer.keep(row)
        return ConvertShardMetadata()

    markers = [folder.make_shard(n, keep_all, JsonLines) for n in range(2)]
    with sample_statistics(folder.store, folder.uri, markers, tmp_path) as found:
        assert found.image_sizes() == {"train": {(320, 240): 1}}
        assert found.counts("split", "image is null") == {"made": {"train": 2}}
        assert found.counts("len(areas)", "areas is not null") == {"made": {1: 2, 0: 2}}
        assert found.counts("question_length", "image is null") == {"made": {len(rows[-1].question): 2}}
        assert found.box_areas() == {"made": {0.03: 2}}
    Path(folder.uri, markers[1].files[0].name).write_bytes(b"")
    with pytest.raises(InputError, match="truncated"), sample_statistics(folder.store, folder.uri, markers, tmp_path):
        pass


def test_every_reason_of_convert_has_words() -> None:
    of_others = {reason for reason in Reason if reason.value.startswith("teacher-")} | {Reason.TOO_LONG}
    assert set(MEANING) == set(Reason) - of_others


def test_a_near_copy_is_shown_beside_its_original_with_the_bits_that_differ(given: Given, tmp_path: Path) -> None:
    dice = np.random.default_rng(3)
    scene = Image.fromarray(dice.integers(0, 255, (6, 8, 3), np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)
    (given.images / "vsr").mkdir()
    scene.save(given.images / "vsr/one.png")
    scene.resize((140, 105)).save(given.images / "vsr/two.png")
    Image.fromarray(dice.integers(0, 255, (6, 8, 3), np.uint8)).resize((160, 120)).save(given.images / "vsr/three.png")
    sizes = {"one": (160, 120), "two": (140, 105), "three": (160, 120)}
    rows = [
        row([[1, 2, 30, 40]], image=f"{name}.png", width=w, height=h, question=name) for name, (w, h) in sizes.items()
    ]
    told, page = convert(tmp_path / "run", given, rows, near_duplicates=24)
    assert told.near_duplicates is not None
    assert (told.near_duplicates.images_compared, told.near_duplicates.groups) == (3, 1)
    (pair,) = told.near_duplicates.pairs
    assert {Path(pair.one).stem, Path(pair.other).stem} == {"one", "two"}
    assert f"{pair.bits} of 144 bits differ" in page
    assert page.count("data:image/jpeg") >= 3 + 2


# ------------------------------------------------------------------------------------------------------- what is shown


def test_a_box_that_was_refused_is_put_aside_where_the_row_wanted_it(given: Given, tmp_path: Path) -> None:
    given.image("vsr/a.png", 100, 100)
    refused = row([[60, 20, 300, 40]], width=100)
    with pytest.raises(InputError, match="not one row was kept"):
        convert(tmp_path / "run", given, [refused])
    (one,) = json.loads((tmp_path / "run/convert/report/00000.json").read_text())
    seen = ShownExample.model_validate(one)
    assert seen.boxes == (ShownBox(label="leaves the image", edges=(60, 20, 300, 40), proposed=True),)
    assert json.loads(seen.written) == refused
    assert (tmp_path / "run/convert/report.html").read_text().count("data:image/jpeg") == 1


def test_what_rows_say_is_text_on_the_page(given: Given, tmp_path: Path) -> None:
    given.image("vsr/a.png", 90, 100)
    rows = [
        row([[1, 2, 30, 40]], question=f"What? {HOSTILE}", answer=HOSTILE),
        row([[1, 2, 3]], question=f"Where? {HOSTILE}"),
        row([[1, 2, 3]], question="Half \ud800 a character", dataset=f"{HOSTILE}\ud800"),
        row([[1, 2, 3]], question="Nested", more=[[[[[[[[HOSTILE]]]]]]], HOSTILE * 99, 10**90]),
    ]
    told, page = convert(tmp_path / "run", given, rows)
    assert (told.row_counts.rows, told.row_counts.kept) == (4, 1)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "49" not in re.findall(r"What\?[^<]*", page)[0]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "http" not in page
    assert len(page) < 200_000


def test_a_page_of_many_datasets_and_large_images_stays_small(given: Given, tmp_path: Path) -> None:
    """Noise is what a JPEG is largest of."""
    dice, rows = np.random.default_rng(0), []
    for n in range(40):
        name = f"set{n}/a.png"
        (given.images / name).parent.mkdir(parents=True)
        Image.fromarray(dice.integers(0, 255, (300, 400, 3), np.uint8)).save(given.images / name, compress_level=1)
        common = {"dataset": f"set{n}", "width": 400, "height": 300}
        rows += [row([[1, 2, 30 + i, 40]], question=f"{i}?", **common) for i in range(6)]
    told, page = convert(tmp_path / "run", given, rows)
    assert told.row_counts.kept == 240
    assert 500_000 < len(page) < 5_000_000
    assert page.count('<div class="card">') == 160
    assert "no room for more images on this page" in page
