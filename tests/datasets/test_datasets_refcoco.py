"""RefCOCO: real rows of RefCOCOg's validation (one here, the whole file where it lies beside the checkout)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.given import Given
from vcot.records import Sample

DATA = Path(os.environ.get("TEST_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))
FILE = DATA / "refcoco" / "refcocog_umd_val.jsonl"
ROW = {
    "img_path": "COCO_train2014_000000533220.jpg", "expression": "a bush of plant behind middle woman",
    "bbox": [285.04, 23.29, 424.78000000000003, 146.4], "dataset_name": "jxu124/refcocog", "height": 427, "width": 640,
    "image_id": 533220, "sent_id": 61, "split": "validation",
}  # fmt: skip


@pytest.fixture
def garden(given: Given) -> Given:
    given.image("COCO_train2014_000000533220.jpg", 640, 427)
    return given


def test_an_expression_becomes_a_question_that_is_answered_by_pointing(garden: Given) -> None:
    sample = garden.sample("refcoco", ROW, phrasings="one")
    assert sample.question == "Where is what this describes: a bush of plant behind middle woman?"
    assert sample.answers == ("top",)
    assert sample.evidence is not None
    (mention,) = sample.evidence
    assert mention.label == "a bush of plant behind middle woman"
    assert mention.boxes[0].as_list() == ROW["bbox"]
    assert (sample.origin.dataset, sample.origin.split) == ("refcocog", "validation")
    assert sample.reasoning == ()


def test_wordings_differ_between_rows_and_not_between_runs(garden: Given) -> None:
    rows = garden.rows([ROW | {"sent_id": n} for n in range(30)])
    asked = [sample.question for sample in garden.outcomes("refcoco", rows) if isinstance(sample, Sample)]
    again = [sample.question for sample in garden.outcomes("refcoco", rows, readers=4) if isinstance(sample, Sample)]
    assert asked == again
    assert len(set(asked)) == 3


def test_a_label_does_not_say_the_answer(garden: Given) -> None:
    said = ROW | {"expression": "the bush at the top"}
    sample = garden.sample("refcoco", said)
    assert sample.evidence is not None
    assert sample.evidence[0].label == "region"


@pytest.mark.parametrize(
    ("said", "split"), [("train", "train"), ("val", "validation"), ("testA", "test"), ("testB", "test")]
)
def test_splits_of_all_three_datasets(garden: Given, said: str, split: str) -> None:
    assert garden.sample("refcoco", ROW | {"split": said}).origin.split == split


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"expression": " "}, "no-question"),
        ({"bbox": None}, "box-malformed"),
        ({"bbox": [285.04, 23.29, 724.78, 146.4]}, "box-outside"),
        ({"bbox": [424.78, 23.29, 285.04, 146.4]}, "box-inverted"),
        ({"width": 427, "height": 640}, "image-size-differs"),
        ({"img_path": "COCO_train2014_000000000001.jpg"}, "image-missing"),
        ({"split": "dev"}, "wrong-shape"),
    ],
)
def test_rows_that_are_refused(garden: Given, changed: dict[str, Any], reason: str) -> None:
    assert garden.reason("refcoco", ROW | changed) == reason
