"""A-OKVQA: rows in the shapes of HuggingFaceM4/A-OKVQA and of the authors' JSON, written by this test; the first row
is the dataset's first."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from tests.datasets.given import Given, png
from tests.datasets.parquet import IMAGE, write
from vcot.records import Rejection, Sample

DIRECT = ["cigarette"] * 8 + ["cigar", "smoke"]
RATIONALES = [
    "He's smoking while riding.",
    "The motorcyclist has a lit cigarette in his mouth while he rides on the street.",
    "The man is smoking.",
]
ROW: dict[str, Any] = {
    "question_id": "22jbM6gDxdaMaunuzgrsBB", "question": "What is in the motorcyclist's mouth?",
    "choices": ["toothpick", "food", "popsicle stick", "cigarette"], "correct_choice_idx": 3,
    "difficult_direct_answer": False, "rationales": RATIONALES,
}  # fmt: skip
TYPES = {
    "image": IMAGE, "question_id": pa.string(), "question": pa.string(), "choices": pa.list_(pa.string()),
    "correct_choice_idx": pa.int8(), "direct_answers": pa.string(), "difficult_direct_answer": pa.bool_(),
    "rationales": pa.list_(pa.string()),
}  # fmt: skip


def from_hub(given: Given, split: str = "train", **changed: Any) -> Sample | Rejection:
    said = ROW | {"image": {"bytes": png(640, 569), "path": None}, "direct_answers": str(DIRECT)} | changed
    (found,) = given.outcomes("aokvqa", write(given.folder / f"{split}-00000-of-00002-ab.parquet", [said], TYPES))
    return found


def from_json(given: Given, **changed: Any) -> Sample | Rejection:
    said = ROW | {"split": "train", "image_id": 299207, "direct_answers": DIRECT} | changed
    return given.outcome("aokvqa", said)


def test_the_three_rationales_are_alternatives_and_all_answers_are_accepted(given: Given) -> None:
    sample = from_hub(given)
    assert isinstance(sample, Sample)
    assert sample.answers == ("cigarette", "cigar", "smoke")
    assert sample.choices == ("toothpick", "food", "popsicle stick", "cigarette")
    assert [trace.text for trace in sample.reasoning] == RATIONALES
    assert sample.evidence is None
    assert (sample.image.width, sample.image.height) == (640, 569)
    assert (sample.origin.dataset, sample.origin.split) == ("aokvqa", "train")


def test_the_authors_json_with_cocos_images_says_the_same(given: Given) -> None:
    given.image("train2017/000000299207.jpg", 640, 569)
    sample, hub = from_json(given), from_hub(given)
    assert isinstance(sample, Sample)
    assert isinstance(hub, Sample)
    assert sample.image.uri.endswith("/images/train2017/000000299207.jpg")
    for field in ("question", "choices", "answers", "reasoning", "evidence"):
        assert getattr(sample, field) == getattr(hub, field)


@pytest.mark.parametrize(("said", "split"), [("train", "train"), ("val", "validation"), ("test", "test")])
def test_splits_of_both_forms(given: Given, said: str, split: str) -> None:
    given.image(f"{said}2017/000000299207.jpg")
    for sample in (from_json(given, split=said), from_hub(given, split=split)):
        assert isinstance(sample, Sample)
        assert sample.origin.split == split


def test_a_direct_answer_that_is_a_wrong_choice_is_not_accepted(given: Given) -> None:
    sample = from_hub(given, direct_answers=str(["food", "Cigarette", "a toothpick", "smoke"]))
    assert isinstance(sample, Sample)
    assert sample.answers == ("cigarette", "Cigarette", "smoke")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"correct_choice_idx": None, "direct_answers": None, "rationales": []}, "no-answer"),  # the test files
        ({"correct_choice_idx": 4}, "no-answer"),
        ({"direct_answers": "cigarette, smoke"}, "wrong-shape"),
        ({"direct_answers": "[" * 5000}, "wrong-shape"),
        ({"image": None}, "no-image"),
        ({"question": None}, "no-question"),
        ({"choices": []}, "wrong-shape"),
    ],
)
def test_rows_that_are_refused(given: Given, changed: dict[str, Any], reason: str) -> None:
    refused = from_hub(given, **changed)
    assert isinstance(refused, Rejection)
    assert refused.reason == reason


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"image_id": 7}, "image-missing"), ({"image_id": "7"}, "wrong-shape"), ({"split": "dev"}, "wrong-shape")],
)
def test_images_that_coco_has_not(given: Given, changed: dict[str, Any], reason: str) -> None:
    refused = from_json(given, **changed)
    assert isinstance(refused, Rejection)
    assert refused.reason == reason
