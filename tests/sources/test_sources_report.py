"""What convert reports: its numbers against rows that the test counts for itself, and its page."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path
from statistics import median_low
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.convert import ConvertSettings, run
from tests.sources.given import Given
from tests.sources.test_sources_viscot import metadata
from vcot.errors import InputError
from vcot.grounding import smart_resize
from vcot.records import Reason, Sample
from vcot.records.conversion import Conversion
from vcot.records.page import PREDICTED
from vcot.records.spread import distribution, percentile
from vcot.sources.gallery import Gallery, fault, within
from vcot.sources.report import LEAST, visual_tokens
from vcot.sources.specimens import Place, Specimen, best
from vcot.sources.tally import SHARES
from vcot.sources.words import MEANING
from vcot.storage import Store

DATA = Path(os.environ.get("TEST_DATA_DIR", Path(__file__).parents[3] / "shared" / "data")) / "viscot"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"VisCoT's rows are not in {DATA}")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("VCOT_")]:
        monkeypatch.delenv(name)


def convert(run_uri: Path, **settings: Any) -> tuple[Conversion, str]:
    """The report and its page; a run that keeps too little has them, too."""
    given = {"source": "viscot", "near_duplicates": 0, "num_shards": 2, "max_rejected_share": 1} | settings
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    flags = [word for word in flags if word != "True"]
    loaded, _ = ConvertSettings.load(["--run-uri", str(run_uri), *flags])
    try:
        run(loaded)
    finally:
        folder = run_uri / "convert"
        told = Conversion.model_validate_json((folder / "report.json").read_text())
        page = (folder / "report.html").read_text()
    return told, page


def real_rows(given: Given, each: int = 60) -> dict[str, Any]:
    """Published rows of two sets, every third of DUDE's with a box far outside; pictures of their size are black."""
    rows = []
    for name in ("vsr", "dude"):
        with (DATA / "metadata" / f"{name}_cot_train.jsonl").open() as lines:
            rows += [json.loads(line) for line in islice(lines, each)]
    for row in rows[each::3]:
        row["bboxs"][0][2] = row["width"] + 70
    for row in rows:
        path = f"{row['dataset']}/{row['image']}"
        if not (given.images / path).exists():
            given.picture(path, row["width"], row["height"])
    return {"input_uri": given.rows(rows), "images_uri": given.images}


def samples_of(run_uri: Path) -> list[Sample]:
    files = sorted((run_uri / "convert/shards").glob("*"))
    return [Sample.model_validate_json(line) for file in files for line in gzip.open(file)]


# ------------------------------------------------------------------------------------------------------------- numbers


@needs_data
def test_the_numbers_are_those_of_the_shards_and_of_the_rejections(given: Given, tmp_path: Path) -> None:
    told, _ = convert(tmp_path / "run", **real_rows(given), validation_share=0.3, ingest=True, ingest_pixels=40_000)
    kept = samples_of(tmp_path / "run")
    refused = [json.loads(line) for f in (tmp_path / "run/convert/rejections").glob("*") for line in f.open()]
    assert len(kept) + len(refused) == told.tally.rows == 120
    assert len(refused) > 10
    for name, rows in told.datasets.items():
        here = [sample for sample in kept if sample.origin.dataset == name]
        assert rows.kept == Counter(sample.origin.split for sample in here)
    assert sum((Counter(rows.rejected) for rows in told.datasets.values()), Counter()) == Counter(
        one["reason"] for one in refused
    )

    questions = [len(sample.question) for sample in kept]
    assert (told.question_length.min, told.question_length.max) == (min(questions), max(questions))
    assert told.question_length.median == median_low(questions)
    assert [bar.n for bar in told.question_length.bars] == [
        sum(bar.low <= length < (bar.below or 10**9) for length in questions) for bar in told.question_length.bars
    ]
    assert told.answer_length.median == median_low([len(sample.answers[0]) for sample in kept])
    areas = sorted(b.area / (s.image.width * s.image.height) for s in kept for b in s.true_boxes or ())
    assert told.box_area.n == len(areas)
    assert told.box_area.median == max(share for share in SHARES if share <= median_low(areas))
    assert told.boxes_per_row == {
        str(n): often for n, often in sorted(Counter(len(s.true_boxes or ()) for s in kept).items())
    }

    pictures = {sample.image.sha256: sample for sample in kept}
    assert told.pictures == {
        split: sum(s.origin.split == split for s in pictures.values()) for split in ("train", "validation", "test")
    }
    assert told.pixels.median == median_low([s.image.width * s.image.height for s in pictures.values()])
    assert told.pixels_kept.max == max(s.image.kept.width * s.image.kept.height for s in pictures.values()) <= 40_000
    resized = [
        smart_resize(s.image.kept.width, s.image.kept.height, min_pixels=LEAST, max_pixels=40_000)
        for s in pictures.values()
    ]
    assert told.visual_tokens.median == median_low([across * down // 784 for across, down in resized])


@needs_data
def test_any_number_of_shards_gives_the_same_report_and_the_same_page(given: Given, tmp_path: Path) -> None:
    rows = real_rows(given)
    (one, page), *others = [convert(tmp_path / str(n), **rows, num_shards=n) for n in (1, 3, 7)]
    for other, its_page in others:
        assert other.model_copy(update={"shards": 1}) == one
        assert its_page.replace(str(tmp_path), "") == page.replace(str(tmp_path), "")


def test_lengths_are_exact_below_a_thousand_and_have_three_digits_above(given: Given, tmp_path: Path) -> None:
    given.picture("vsr/a.png", 90, 100)
    rows = [
        metadata([[1, 2, 30, 40]], image="a.png", width=90, height=100, question="x" * length)
        for length in (7, 999, 12_345)
    ]
    told, _ = convert(tmp_path / "run", input_uri=given.rows(rows), images_uri=given.images)
    assert (told.question_length.min, told.question_length.median, told.question_length.max) == (7, 999, 12_300)


def test_visual_tokens_follow_the_processor_and_what_it_refuses_is_counted() -> None:
    sizes = {(56, 56): 1, (28, 28): 2, (280, 560): 3, (10_000, 10_000): 4, (9, 2000): 5}
    tokens, beyond = visual_tokens(sizes, 1280 * 784)
    assert tokens == {4: 3, 200: 3, 35 * 35: 4}  # 4: what is smaller is enlarged
    assert beyond == 5


def test_a_distribution_loses_nothing_below_its_first_edge_nor_above_its_last() -> None:
    counts = {0.5: 3, 1: 1, 10: 2, 99: 4}
    found = distribution(counts, (1, 5, 20))
    assert [(bar.low, bar.below, bar.n) for bar in found.bars] == [(1, 5, 4), (5, 20, 2), (20, None, 4)]
    assert (found.n, found.min, found.median, found.p90, found.max) == (10, 0.5, 10, 99, 99)
    assert percentile({}, 0.5) == 0
    assert distribution({}, (1, 5)).n == 0


def test_every_reason_of_convert_has_words() -> None:
    of_others = {reason for reason in Reason if reason.value.startswith("teacher-")} | {Reason.TOO_LONG}
    assert set(MEANING) == set(Reason) - of_others


# --------------------------------------------------------------------------------------------------------- near-copies


def test_a_near_copy_is_shown_beside_its_original_with_the_bits_that_differ(given: Given, tmp_path: Path) -> None:
    dice = np.random.default_rng(3)
    scene = Image.fromarray(dice.integers(0, 255, (6, 8, 3), np.uint8)).resize((160, 120), Image.Resampling.BICUBIC)
    (given.images / "vsr").mkdir()
    scene.save(given.images / "vsr/one.png")
    scene.resize((140, 105)).save(given.images / "vsr/two.png")
    Image.fromarray(dice.integers(0, 255, (6, 8, 3), np.uint8)).resize((160, 120)).save(given.images / "vsr/three.png")
    sizes = {"one": (160, 120), "two": (140, 105), "three": (160, 120)}
    rows = [
        metadata([[1, 2, 30, 40]], image=f"{name}.png", width=w, height=h, question=name)
        for name, (w, h) in sizes.items()
    ]
    told, page = convert(
        tmp_path / "run", input_uri=given.rows(rows), images_uri=given.images, near_duplicates=24
    )  # fmt: skip
    assert told.near_duplicates is not None
    assert (told.near_duplicates.pictures_compared, told.near_duplicates.groups) == (3, 1)
    (pair,) = told.near_duplicates.pairs
    assert {Path(pair.one).stem, Path(pair.other).stem} == {"one", "two"}
    assert 0 <= pair.bits <= 24
    assert f"{pair.bits} of 144 bits differ" in page
    assert page.count("data:image/jpeg") >= 3 + 2


# ------------------------------------------------------------------------------------------------------- what is shown


def specimens(name: str, rows: int, **values: Any) -> list[Specimen]:
    return [
        Specimen(rank=random.Random(n).randrange(1 << 32), row=f"{name}:{n}", dataset=name, **values)
        for n in range(rows)
    ]


def test_the_best_of_all_are_the_best_of_the_best_of_each_shard() -> None:
    rows = specimens("a", 50, split="train") + specimens("b", 50, reason="box-empty")
    shards = [best(rows[n::7], 3) for n in range(7)]
    offered = [one for shard in shards for kinds in shard.values() for alike in kinds.values() for one in alike]
    assert best(offered, 3) == best(rows, 3)
    assert [len(alike) for kinds in best(rows, 3).values() for alike in kinds.values()] == [3, 3]


def test_rows_that_call_their_datasets_anything_do_not_fill_the_page() -> None:
    rows = [one for n in range(500) for one in specimens(f"set {n}", 1, split="train")]
    assert len(best(rows)) == 64


def test_shown_are_rows_from_all_over_and_of_every_reason_first(given: Given, tmp_path: Path) -> None:
    given.picture("vsr/a.png", 90, 100)
    boxes = {"box-inverted": [30, 2, 1, 40], "box-outside": [1, 2, 300, 40], "box-empty": [1, 2, 1, 40]}
    common = {"image": "a.png", "width": 90, "height": 100}
    rows = [metadata([[1, 2, 30, 40]], question=f"What is {n}?", **common) for n in range(200)]
    rows += [metadata([boxes["box-outside"]], question=f"Where is {n}?", **common) for n in range(90)]
    rows += [metadata([boxes[name]], question=f"What is {name}?", **common) for name in ("box-inverted", "box-empty")]
    told, page = convert(tmp_path / "run", input_uri=given.rows(rows), images_uri=given.images)
    shown = [int(number) for number in re.findall(r">\s*rows\.jsonl:(\d+)", page)]
    assert len(shown) == len(set(shown)) == 8 + 8
    assert told.datasets["vsr"].rejected == {"box-empty": 1, "box-inverted": 1, "box-outside": 90}
    kept = [number for number in shown if number <= 200]
    assert len(kept) == 8
    assert max(kept) > 100
    assert page.count('class="chip refused">box-empty') == page.count('class="chip refused">box-inverted') == 1
    assert page.count('class="chip refused">box-outside') == 6
    for mark in ("leaves the image of 90x100 pixels by 210 px", "is inverted", "is empty"):
        assert mark in page


def test_a_box_that_was_refused_is_drawn_at_the_border_that_it_crosses(given: Given, tmp_path: Path) -> None:
    given.picture("vsr/a.png", 100, 100)
    row = metadata([[60, 20, 300, 40]], image="a.png", width=100, height=100)
    with pytest.raises(InputError, match="not one row was kept"):
        convert(tmp_path / "run", input_uri=given.rows([row]), images_uri=given.images)
    (one,) = json.loads((tmp_path / "run/convert/report/00000.json").read_text())
    seen = Specimen.model_validate(one)
    assert seen.places == (Place(label="", edges=(60, 20, 300, 40)),)
    assert json.loads(seen.written) == row
    assert fault(seen.places[0].edges, (100, 100)) == "leaves the picture"
    assert within(seen.places[0].edges, (100, 100), 3).as_list() == [60, 20, 100, 40]
    drawn: list[Image.Image] = []
    gallery = Gallery(Store(), max_pixels=10**6)
    gallery._uri = lambda picture: drawn.append(picture) or "data:"  # type: ignore[method-assign, func-returns-value]
    told = Conversion.model_validate_json((tmp_path / "run/convert/report.json").read_text())
    gallery.shelves(best([seen]), told)
    edge = drawn[0].getpixel((int(0.6 * drawn[0].width), int(0.3 * drawn[0].height)))
    assert edge == tuple(int(PREDICTED[i : i + 2], 16) for i in (1, 3, 5))


def test_pictures_inside_an_archive_are_drawn_where_they_are(given: Given, tmp_path: Path) -> None:
    given.picture("vsr/a.png", 90, 100)
    common = {"image": "a.png", "width": 90, "height": 100}
    rows = [
        metadata([[1, 2, 60, 70]], question="What?", **common),
        metadata([[1, 2, 300, 70]], question="Where?", **common),
    ]
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(given.images / "vsr", "cot_image_data/vsr")
    (given.images / "vsr/a.png").unlink()
    told, page = convert(tmp_path / "run", input_uri=given.rows(rows), images_uri=tmp_path / "images.tar")
    assert told.tally.kept == 1
    assert page.count("data:image/jpeg") == 2


@pytest.mark.parametrize(
    ("edges", "drawn"),
    [
        ((30, 40, 10, 20), [10, 20, 30, 40]),
        ((10, 10, 10, 50), [8, 10, 12, 50]),
        ((500, 500, 600, 600), [96, 76, 100, 80]),
        ((-50, -50, -10, -10), [0, 0, 4, 4]),
        ((-1e300, 0, 1e300, 80), [0, 0, 100, 80]),
    ],
)
def test_any_edges_give_a_box_that_can_be_seen(edges: tuple[float, float, float, float], drawn: list[float]) -> None:
    assert within(edges, (100, 80), 4).as_list() == drawn


# ------------------------------------------------------------------------------------------------------------ the page


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


def test_what_rows_say_is_text_on_the_page(given: Given, tmp_path: Path) -> None:
    given.picture("vsr/a.png", 90, 100)
    common = {"image": "a.png", "width": 90, "height": 100, "answer": HOSTILE}
    rows = [
        metadata([[1, 2, 30, 40]], question=f"What? {HOSTILE}", **common),
        metadata([[1, 2, 3]], question=f"Where? {HOSTILE}", **common),
        metadata([[1, 2, 3]], question="Half \ud800 a character", **common | {"dataset": f"{HOSTILE}\ud800"}),
        metadata([[1, 2, 3]], question="Nested", **common | {"more": [[[[[[[[HOSTILE]]]]]]], HOSTILE * 99, 10**90]}),
    ]
    told, page = convert(tmp_path / "run", input_uri=given.rows(rows), images_uri=given.images)
    assert told.tally.rows == 4
    assert told.tally.kept == 1
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "49" not in re.findall(r"What\?[^<]*", page)[0]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert len(page) < 200_000


def test_a_page_of_many_datasets_and_large_pictures_stays_small(given: Given, tmp_path: Path) -> None:
    """Noise is what a JPEG is largest of."""
    dice = np.random.default_rng(0)
    rows = []
    for n in range(40):
        name = f"set{n}/a.png"
        (given.images / name).parent.mkdir(parents=True)
        Image.fromarray(dice.integers(0, 255, (300, 400, 3), np.uint8)).save(given.images / name, compress_level=1)
        rows += [
            metadata([[1, 2, 30 + i, 40]], dataset=f"set{n}", image="a.png", width=400, height=300, question=f"{i}?")
            for i in range(6)
        ]
    told, page = convert(tmp_path / "run", input_uri=given.rows(rows), images_uri=given.images)
    assert told.tally.kept == 240
    assert 500_000 < len(page) < 5_000_000
    assert page.count('<div class="card">') == 160
    assert "no room for more pictures on this page" in page


def test_a_page_without_room_for_pictures_says_so(given: Given) -> None:
    given.picture("vsr/a.png", 90, 100)
    sample = given.sample("viscot", metadata([[1, 2, 30, 40]], image="a.png", width=90, height=100))
    row = Specimen(rank=1, row="r:1", dataset="vsr", split="train", image=sample.image)
    told = Conversion.model_construct(datasets={"vsr": None})
    chosen = {"vsr": {"": [row]}}
    (shelf,) = Gallery(Store(), max_pixels=10**6, room=10).shelves(chosen, _with_vsr(told))
    assert (shelf.kept[0].picture, shelf.kept[0].note) == (None, "no room for more pictures on this page")
    (given.images / "vsr/a.png").unlink()
    (shelf,) = Gallery(Store(), max_pixels=10**6).shelves(chosen, _with_vsr(told))
    assert "a.png" in shelf.kept[0].note


def _with_vsr(told: Conversion) -> Conversion:
    from vcot.records.conversion import Rows

    return told.model_copy(update={"datasets": {"vsr": Rows(kept={"train": 1}, rejected={})}})


def test_a_run_that_keeps_nothing_has_a_page_that_says_why(given: Given, tmp_path: Path) -> None:
    given.picture("vsr/a.png", 90, 100)
    rows = [metadata([[30, 2, 1, 40]], image="a.png", width=90, height=100, question=f"{n}?") for n in range(3)]
    with pytest.raises(InputError, match="not one row was kept"):
        convert(tmp_path / "run", input_uri=given.rows(rows), images_uri=given.images)
    page = (tmp_path / "run/convert/report.html").read_text()
    assert "Not one row was kept." in page
    assert "a box ends before it begins" in page
    assert "No row was kept." in page
    assert page.count('class="chip refused"') == 3


def test_a_run_that_refuses_nothing_has_a_page_that_says_so(given: Given, tmp_path: Path) -> None:
    given.picture("vsr/a.png", 90, 100)
    rows = [metadata([[1, 2, 30, 40]], image="a.png", width=90, height=100, question=f"{n}?") for n in range(3)]
    told, page = convert(tmp_path / "run", input_uri=given.rows(rows), images_uri=given.images)
    assert told.tally.rejected == {}
    assert "Every row was kept: 3 of 3." in page
    assert "No row was refused." in page
    assert "<script" not in page
    assert "http" not in page
