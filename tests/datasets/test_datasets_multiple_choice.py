"""ScienceQA and A-OKVQA: rows in the shapes of the hub's Parquet and of the authors' JSON, written by this test."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.rows import (
    AOKVQA,
    AOKVQA_DIRECT,
    AOKVQA_RATIONALES,
    AOKVQA_TYPES,
    SCIENCEQA_TYPES,
    Given,
    informed,
    png,
    scienceqa_row,
    write_parquet,
)
from vcot.datasets import read, rows_of_shard
from vcot.records import Folder, Rejection, Sample
from vcot.records.shards import CONVERT
from vcot.storage import Store


def outcome(given: Given, said: dict[str, Any], split: str = "train", **options: Any) -> Sample | Rejection:
    uri = write_parquet(given.folder / f"{split}-00000-of-00001.parquet", [said], SCIENCEQA_TYPES)
    (found,) = given.outcomes("scienceqa", uri, **options)
    return found


def test_scienceqa_row_with_its_image_choices_lecture_and_solution(given: Given) -> None:
    sample = outcome(given, scienceqa_row(hint="The map shows four states."), "validation")
    assert isinstance(sample, Sample)
    assert sample.id == "validation-00000-of-00001.parquet:1"
    assert (sample.image.width, sample.image.height) == (100, 80)
    assert sample.image.uri.endswith(f"/made/{sample.image.sha256}")
    assert sample.question == "Which of these states is farthest north?"
    assert sample.choices == ("West Virginia", "Louisiana", "Arizona", "Oklahoma")
    assert sample.answers == ("West Virginia",)
    assert sample.context == "The map shows four states.\n\nMaps have four cardinal directions, or main directions."
    (trace,) = sample.reasoning
    assert trace.text.startswith("To find the answer")
    assert (trace.boxes, sample.evidence) == ((), None)
    assert (sample.origin.dataset, sample.origin.split) == ("scienceqa", "validation")
    assert "BY-SA" in sample.origin.licence
    bare = outcome(given, scienceqa_row(lecture="", solution=" "))
    assert isinstance(bare, Sample)
    assert (bare.context, bare.reasoning) == (None, ())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"image": None}, "no-image"),
        ({"image": {"bytes": b"", "path": None}}, "no-image"),
        ({"question": ""}, "no-question"),
        ({"answer": 4}, "no-answer"),
        ({"answer": None}, "no-answer"),
        ({"choices": ["one"]}, "wrong-shape"),
        ({"choices": ["one", ""]}, "wrong-shape"),
    ],
)
def test_refused_rows_of_scienceqa(given: Given, changed: dict[str, Any], reason: str) -> None:
    refused = outcome(given, scienceqa_row(**changed))
    assert isinstance(refused, Rejection)
    assert refused.reason == reason
    if changed == {"answer": 4}:
        assert refused.detail == "answer is the number of a choice, 0 to 3; got 4"


# ------------------------------------------------------------------------------------------------ by text alone


@pytest.mark.parametrize("nothing", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_rows_of_text_alone_are_kept_where_that_is_wanted(given: Given, nothing: Any) -> None:
    sample = outcome(given, scienceqa_row(image=nothing), without_image="keep")
    assert isinstance(sample, Sample)
    assert sample.image is None
    assert (sample.evidence, len(sample.reasoning), sample.answers) == (None, 1, ("West Virginia",))
    illustrated = outcome(given, scienceqa_row(), without_image="keep")
    assert isinstance(illustrated, Sample)
    assert illustrated.image is not None


def test_an_image_that_cannot_be_read_is_not_taken_for_none(given: Given) -> None:
    refused = outcome(given, scienceqa_row(image={"bytes": b"no image", "path": None}), without_image="keep")
    assert isinstance(refused, Rejection)
    assert refused.reason == "image-not-an-image"


def test_what_a_test_file_asks_is_not_learned_from_a_train_file_nor_asked_twice(given: Given) -> None:
    """Case, punctuation, blanks and the order of the choices do not make another question of it."""

    def by_text(question: str, **changed: Any) -> dict[str, Any]:
        return scienceqa_row(image=None, question=question) | changed

    choices = scienceqa_row()["choices"]
    train = [
        by_text("What is one?"), by_text("What is two?"), by_text("what is two", choices=choices[::-1]),
        by_text("What is two?", choices=["1", "2"]), scienceqa_row(), by_text("what is ONE"),
    ]  # fmt: skip
    test = [by_text("what is  TWO"), scienceqa_row(1, question="What is one?")]
    names = {"train-00000-of-00001.parquet": train, "test-00000-of-00001.parquet": test}
    uris = [write_parquet(given.folder / name, rows, SCIENCEQA_TYPES) for name, rows in names.items()]
    folder = Folder(Store(), str(given.folder / "run"), CONVERT)
    context = informed(given.context("scienceqa", *uris, without_image="keep"), folder, look=True)
    found = [result for _, result in read(rows_of_shard(context), context)]
    assert [r.origin.split if isinstance(r, Sample) else r.reason.value for r in found] == [
        "train", "held-out", "held-out", "train", "train", "duplicate", "test", "test",
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------- A-OKVQA


def from_hub(given: Given, split: str = "train", **changed: Any) -> Sample | Rejection:
    said = AOKVQA | {"image": {"bytes": png(640, 569), "path": None}, "direct_answers": str(AOKVQA_DIRECT)} | changed
    uri = write_parquet(given.folder / f"{split}-00000-of-00002-ab.parquet", [said], AOKVQA_TYPES)
    (found,) = given.outcomes("aokvqa", uri)
    return found


def from_json(given: Given, **changed: Any) -> Sample | Rejection:
    said = AOKVQA | {"split": "train", "image_id": 299207, "direct_answers": AOKVQA_DIRECT} | changed
    return given.outcome("aokvqa", said)


@pytest.mark.parametrize(("said", "split"), [("train", "train"), ("val", "validation"), ("test", "test")])
def test_both_forms_of_aokvqa_say_the_same(given: Given, said: str, split: str) -> None:
    given.image(f"{said}2017/000000299207.jpg", 640, 569)
    for sample in (from_json(given, split=said), from_hub(given, split)):
        assert isinstance(sample, Sample)
        assert sample.answers == ("cigarette", "cigar", "smoke")
        assert sample.choices == ("toothpick", "food", "popsicle stick", "cigarette")
        assert [trace.text for trace in sample.reasoning] == AOKVQA_RATIONALES
        assert sample.evidence is None
        assert (sample.image.width, sample.image.height) == (640, 569)
        assert (sample.origin.dataset, sample.origin.split) == ("aokvqa", split)


def test_a_direct_answer_that_is_a_wrong_choice_is_not_accepted(given: Given) -> None:
    sample = from_hub(given, direct_answers=str(["food", "Cigarette", "a toothpick", "smoke"]))
    assert isinstance(sample, Sample)
    assert sample.answers == ("cigarette", "Cigarette", "smoke")


@pytest.mark.parametrize(
    ("make", "changed", "reason"),
    [
        (from_hub, {"correct_choice_idx": None, "direct_answers": None, "rationales": []}, "no-answer"),  # test files
        (from_hub, {"direct_answers": "cigarette, smoke"}, "wrong-shape"),
        (from_hub, {"direct_answers": "[" * 5000}, "wrong-shape"),
        (from_hub, {"image": None}, "no-image"),
        (from_json, {"image_id": 7}, "image-missing"),
        (from_json, {"image_id": "7"}, "wrong-shape"),
        (from_json, {"split": "dev"}, "wrong-shape"),
    ],
)
def test_refused_rows_of_aokvqa(given: Given, make: Any, changed: dict[str, Any], reason: str) -> None:
    refused = make(given, **changed)
    assert isinstance(refused, Rejection)
    assert refused.reason == reason
