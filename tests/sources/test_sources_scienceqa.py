"""ScienceQA: rows in the shape of derek-thomas/ScienceQA, written by this test; the first is one of the dataset's."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from tests.sources.given import Given, png
from tests.sources.parquet import PICTURE, write
from vcot.records import Rejection, Sample

TYPES = {
    "image": PICTURE, "question": pa.string(), "choices": pa.list_(pa.string()), "answer": pa.int8(),
    "hint": pa.string(), "task": pa.string(), "grade": pa.string(), "subject": pa.string(), "topic": pa.string(),
    "category": pa.string(), "skill": pa.string(), "lecture": pa.string(), "solution": pa.string(),
}  # fmt: skip


def row(n: int = 0, **changed: Any) -> dict[str, Any]:
    return {
        "image": {"bytes": png(100 + n, 80), "path": "image.png"},
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona", "Oklahoma"],
        "answer": 0,
        "hint": "",
        "task": "closed choice", "grade": "grade2", "subject": "social science", "topic": "geography",
        "category": "Geography", "skill": "Read a map: cardinal directions",
        "lecture": "Maps have four cardinal directions, or main directions.",
        "solution": "To find the answer, look at the compass rose. Look at which way the north arrow is pointing. "
        "West Virginia is farthest north.",
    } | changed  # fmt: skip


def outcome(given: Given, said: dict[str, Any], split: str = "train", **options: Any) -> Sample | Rejection:
    (found,) = given.outcomes("scienceqa", write(given.folder / f"{split}-00000-of-00001.parquet", [said], TYPES))
    return found


def test_a_row_with_its_picture_choices_lecture_and_solution(given: Given) -> None:
    sample = outcome(given, row())
    assert isinstance(sample, Sample)
    assert sample.id == "train-00000-of-00001.parquet:1"
    assert (sample.image.width, sample.image.height) == (100, 80)
    assert sample.image.uri.endswith(f"/made/{sample.image.sha256}")
    assert sample.question == "Which of these states is farthest north?"
    assert sample.choices == ("West Virginia", "Louisiana", "Arizona", "Oklahoma")
    assert sample.answers == ("West Virginia",)
    assert sample.context == "Maps have four cardinal directions, or main directions."
    (trace,) = sample.reasoning
    assert trace.text.startswith("To find the answer")
    assert trace.boxes == ()
    assert sample.evidence is None
    assert (sample.origin.dataset, sample.origin.split) == ("scienceqa", "train")
    assert "BY-SA" in sample.origin.licence


def test_the_hint_comes_before_the_lecture(given: Given) -> None:
    sample = outcome(given, row(hint="The map shows four states."))
    assert isinstance(sample, Sample)
    assert sample.context == "The map shows four states.\n\nMaps have four cardinal directions, or main directions."


def test_without_hint_lecture_and_solution_there_is_neither_context_nor_reasoning(given: Given) -> None:
    sample = outcome(given, row(lecture="", solution=" "))
    assert isinstance(sample, Sample)
    assert (sample.context, sample.reasoning) == (None, ())


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_files_are_the_splits(given: Given, split: str) -> None:
    sample = outcome(given, row(), split)
    assert isinstance(sample, Sample)
    assert sample.origin.split == split


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image": None}, "no-image"),
        ({"image": {"bytes": None, "path": None}}, "no-image"),
        ({"image": {"bytes": b"", "path": None}}, "no-image"),
        ({"question": ""}, "no-question"),
        ({"answer": 4}, "no-answer"),
        ({"answer": -1}, "no-answer"),
        ({"answer": None}, "no-answer"),
        ({"choices": ["one"]}, "wrong-shape"),
        ({"choices": None}, "wrong-shape"),
        ({"choices": ["one", ""]}, "wrong-shape"),
    ],
)
def test_rows_that_are_refused(given: Given, changed: dict[str, Any], reason: str) -> None:
    refused = outcome(given, row(**changed))
    assert isinstance(refused, Rejection)
    assert refused.reason == reason


def test_a_refused_row_says_what_would_be_right(given: Given) -> None:
    refused = outcome(given, row(answer=4))
    assert isinstance(refused, Rejection)
    assert refused.detail == "answer is the number of a choice, 0 to 3; got 4"
