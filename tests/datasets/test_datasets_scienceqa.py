"""ScienceQA: rows in the shape of derek-thomas/ScienceQA, written by this test; the first is one of the dataset's."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given as for_all
from hypothesis import settings as tuned
from hypothesis import strategies as some

from tests.datasets.given import Given, informed, png
from tests.datasets.parquet import IMAGE, write
from vcot.datasets import DATASETS, read, rows_of_shard
from vcot.records import Folder, Rejection, Sample
from vcot.records.shards import CONVERT
from vcot.storage import Store

TYPES = {
    "image": IMAGE, "question": pa.string(), "choices": pa.list_(pa.string()), "answer": pa.int8(),
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
    uri = write(given.folder / f"{split}-00000-of-00001.parquet", [said], TYPES)
    (found,) = given.outcomes("scienceqa", uri, **options)
    return found


def test_a_row_with_its_image_choices_lecture_and_solution(given: Given) -> None:
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


# ------------------------------------------------------------------------------------------------ by text alone


@pytest.mark.parametrize("nothing", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_a_row_of_text_alone_is_kept_where_that_is_wanted(given: Given, nothing: Any) -> None:
    sample = outcome(given, row(image=nothing), without_image="keep")
    assert isinstance(sample, Sample)
    assert sample.image is None
    assert (sample.evidence, len(sample.reasoning), sample.answers) == (None, 1, ("West Virginia",))
    assert sample.origin.split == "train"
    illustrated = outcome(given, row(), without_image="keep")
    assert isinstance(illustrated, Sample)
    assert illustrated.image is not None


@pytest.mark.parametrize(
    ("changed", "reason"),
    [({"bytes": b"no image", "path": None}, "image-not-an-image"), ({"bytes": png(9, 9)[:40]}, "image-broken")],
)
def test_an_image_that_cannot_be_read_is_not_taken_for_none(given: Given, changed: Any, reason: str) -> None:
    refused = outcome(given, row(image=changed), without_image="keep")
    assert isinstance(refused, Rejection)
    assert refused.reason == reason


def sides(files: dict[str, list[dict[str, Any]]], shards: int = 1, **options: Any) -> list[str]:
    """Of each row of the files, its side, or why it was refused."""
    with TemporaryDirectory() as scratch:
        given = Given(Path(scratch))
        uris = [write(given.folder / name, rows, TYPES) for name, rows in files.items()]
        desk = given.desk("scienceqa", *uris, without_image="keep", **options)
        source, folder = DATASETS["scienceqa"], Folder(Store(), str(given.folder / "run"), CONVERT)
        informed(source, desk, folder, look=True)
        found: dict[str, str] = {}
        for shard in range(shards):
            knowing = informed(source, desk, folder, look=False)
            for one, result in read(rows_of_shard(desk, shard, shards), knowing):
                found[one.id] = result.origin.split if isinstance(result, Sample) else result.reason.value
        names = [f"{name}:{n}" for name, rows in files.items() for n in range(1, len(rows) + 1)]
        return [found[name] for name in names]


def by_text(question: str, **changed: Any) -> dict[str, Any]:
    return row(image=None, question=question) | changed


@tuned(max_examples=15)
@for_all(
    asked=some.lists(some.tuples(some.integers(0, 5), some.permutations(range(4)), some.sampled_from("aA?"))),
    seed=some.integers(0, 99),
    shards=some.integers(1, 3),
)
def test_the_same_question_is_on_one_side_however_it_is_written(asked: Any, seed: int, shards: int) -> None:
    """Case, punctuation and the order of the choices do not make another question of it."""
    choices = row()["choices"]
    rows = [
        by_text(
            {"a": f"what is {n}", "A": f"WHAT is  {n}", "?": f"What is {n}?"}[written],
            choices=[choices[place] for place in order], answer=order.index(0),
        )
        for n, order, written in asked
    ]  # fmt: skip
    rows.append(by_text("What else?"))
    found = sides(
        {"rows.parquet": rows}, shards, seed=seed, validation_share=0.5, splits="by-content", duplicates="keep"
    )
    of_question: dict[int, set[str]] = {}
    for (n, _, _), side in zip(asked, found, strict=False):
        of_question.setdefault(n, set()).add(side)
    assert all(len(side) == 1 for side in of_question.values())
    assert set(found) <= {"train", "validation"}


def test_what_a_test_file_asks_is_not_learned_from_a_train_file() -> None:
    train = [by_text("What is one?"), by_text("What is two?"), by_text("What is two?", choices=["1", "2"]), row()]
    test = [by_text("what is  TWO"), row(1, question="What is one?")]
    found = sides({"train-00000-of-00001.parquet": train, "test-00000-of-00001.parquet": test})
    assert found == ["train", "held-out", "train", "train", "test", "test"]


def test_a_question_of_text_alone_that_was_asked_before_is_a_duplicate(given: Given) -> None:
    uri = write(given.folder / "rows.parquet", [by_text("What is it?"), by_text("what is it"), row()], TYPES)
    desk = given.desk("scienceqa", uri, without_image="keep")
    source = DATASETS["scienceqa"]
    knowing = informed(source, desk, Folder(Store(), str(given.folder / "run"), CONVERT), look=True)
    found = [result for _, result in read(rows_of_shard(desk), knowing)]
    assert [isinstance(one, Sample) for one in found] == [True, False, True]
    assert isinstance(found[1], Rejection)
    assert found[1].detail == "rows.parquet:1 asks this too, without an image: 'what is it'"
