"""A glance at a row finds what reading it whole would have found."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_all
from hypothesis import settings as tuned
from hypothesis import strategies as some

from tests.sources.given import Given
from tests.sources.test_sources_survey import row, scene
from vcot.records import Image, Sample
from vcot.sources import DATASETS, read, repeats, rows_of_shard
from vcot.sources.base import ConversionContext
from vcot.sources.known import Known
from vcot.sources.parts import Part
from vcot.sources.pictures import Pictures
from vcot.sources.survey import survey
from vcot.storage import Store
from vcot.storage.images import MAX_PIXELS

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data")) / "viscot"

ROWS = some.lists(
    some.tuples(
        some.sampled_from(["0", "0-copy", "1", "2"]),  # which picture; 0-copy nearly is 0
        some.sampled_from([{}, {"split": "train"}, {"split": "val"}]),
        some.sampled_from(["Why?", "why", "Where is it?"]),
        some.sampled_from(
            [{}, {}, {}, {"bboxs": [[9, 2, 1, 4]]}, {"bboxs": []}, {"answer": ""}, {"width": 7}, {"split": "dev"}]
        ),
        some.sampled_from(["a thing", "yes"]),
    ),
    min_size=1,
    max_size=16,
)


@tuned(max_examples=60, deadline=None)
@for_all(ROWS, some.sampled_from([0, 24]), some.sampled_from(["exact", "keep"]), some.booleans())
def test_the_survey_finds_at_a_glance_what_it_finds_when_it_reads_all_rows_whole(
    drawn: list[Any], near: int, duplicates: Any, few: bool
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        given = Given(Path(scratch))
        for name, seed, quality in (("0", 0, 90), ("0-copy", 0, 30), ("1", 1, 90), ("2", 2, 90)):
            given.picture(f"vsr/{name}.jpg", data=scene(seed, quality))
        rows = [row(f"{name}.jpg", asked, answer=answer) | split | fault for name, split, asked, fault, answer in drawn]
        limit = ("0.01",) if few else ()
        desk = given.desk(
            "viscot",
            given.rows(rows),
            near_duplicates=near,
            duplicates=duplicates,
            validation_share=0.5,
            max_box_area=limit,
        )
        source = DATASETS["viscot"]
        at_a_glance = survey([Part(source, desk)])
        whole = survey([Part(replace(source, glance=None), desk)])
        for found in (at_a_glance, whole):  # a picture of refused rows is compared, too
            found["counts"]["near_duplicates"].pop("pictures_compared", None)
        assert at_a_glance == whole


def at_known_pictures(given: Given, pictures: dict[str, tuple[int, int]]) -> Pictures:
    """Pictures of these sizes that are in the index and nowhere else."""
    known = Known(given.folder / "known.sqlite")
    for number, (path, (width, height)) in enumerate(pictures.items()):
        known.put(Image(uri=f"{given.images}/{path}", width=width, height=height, sha256=f"{number:064x}"), 1, "")
    return Pictures(Store(), str(given.images), str(given.folder / "made"), index=known)


@pytest.mark.skipif(not DATA.is_dir(), reason=f"VisCoT's rows are not in {DATA}")
@pytest.mark.parametrize("form", ["benchmark/vsr.json", "benchmark/gqa.json", "metadata/dude_cot_train.jsonl"])
def test_a_glance_at_real_rows(given: Given, form: str) -> None:
    told = DATA / (f"detection/{Path(form).stem}.jsonl" if form.startswith("benchmark") else form)
    sizes = {}
    for said in map(json.loads, told.open()):
        path = said["img_path"].removeprefix("cot/") if "img_path" in said else f"dude/{said['image']}"
        if said["width"] * said["height"] <= MAX_PIXELS:
            sizes[path] = said["width"], said["height"]
    source = DATASETS["viscot"]
    desk: ConversionContext = replace(given.desk("viscot", str(DATA / form)), pictures=at_known_pictures(given, sizes))
    kept = 0
    assert source.glance is not None
    for found, result in read(rows_of_shard(desk), desk):
        if isinstance(result, Sample):
            kept += 1
            assert source.glance(found, desk) == (
                result.image,
                repeats.Question(repeats.question(result), result.answers),
            )
    assert kept > 300
