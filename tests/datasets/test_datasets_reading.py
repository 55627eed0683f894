"""What all sources share: shards, order, the wrong file, and images that are held out."""

from __future__ import annotations

import json
import time
from itertools import chain
from typing import Any

import pytest

from tests.datasets.given import Given, informed
from tests.datasets.test_datasets_viscot import chat, metadata
from vcot.datasets import DATASETS, read, rows_of_shard
from vcot.datasets.base import split_of
from vcot.datasets.reading import in_order
from vcot.errors import InputError
from vcot.records import Folder, Rejection, Sample
from vcot.records.shards import CONVERT
from vcot.storage import Store

DETECTION = {
    "img_path": "cot/docvqa/xjpn0081_4.png", "expression": "What is the name of the Dealer ?",
    "bbox": [74, 398, 404, 1118], "height": 2200, "width": 1695, "question_id": 0, "split": "val",
}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "row", "said"),
    [
        ("samples", chat("[0, 0, 1, 1]", None), "VisCoT's chat rows; --source viscot reads it"),
        ("samples", metadata([[1, 2, 3, 4]]), "VisCoT's metadata; --source viscot reads it"),
        ("viscot", {"messages": []}, "OpenAI chat messages; --source samples reads it"),
        ("viscot", {"image": "a", "question": "?", "answers": ["x"]}, "Samples; --source samples reads it"),
    ],
)
def test_rows_of_another_source_name_the_right_one(given: Given, source: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        given.outcomes(source, given.rows([row]))


@pytest.mark.parametrize("source", ["viscot", "samples"])
def test_a_coco_file_is_recognised_without_reading_it_whole(given: Given, source: str) -> None:
    path = given.folder / "instances.json"
    path.write_text(json.dumps({"info": {}, "images": [], "annotations": []}))
    with pytest.raises(InputError, match="--source coco"):
        given.outcomes(source, str(path))


def test_each_row_is_in_one_shard_and_a_limit_counts_rows_of_the_whole(given: Given) -> None:
    desk = given.desk("viscot", given.rows([metadata([[1, 2, 3, 4]], question=f"{n}?") for n in range(10)]))

    def ids(**which: Any) -> list[str]:
        return [row.id for row in rows_of_shard(desk, **which)]

    everything = ids()
    dealt = [ids(index=index, shards=3) for index in range(3)]
    assert [len(shard) for shard in dealt] == [4, 3, 3]
    assert sorted(chain(*dealt)) == sorted(everything)
    assert sorted(chain(*(ids(index=index, shards=3, limit=5) for index in range(3)))) == sorted(everything[:5])


def test_results_come_in_order_and_nobody_runs_far_ahead() -> None:
    taken = []

    def items() -> Any:
        for n in range(100):
            taken.append(n)
            yield n

    def slow_when_even(n: int) -> int:
        time.sleep(0.002 * (n % 2 == 0))
        return n

    results = in_order(slow_when_even, items(), 4)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert len(taken) <= 10 + 4 * 4
    assert list(results) == list(range(10, 100))


def test_an_error_that_is_no_rows_fault_ends_the_reading() -> None:
    def fails(n: int) -> int:
        if n == 5:
            raise OSError("no room left")
        return n

    results = in_order(fails, range(100), 3)
    with pytest.raises(OSError, match="no room"):
        list(results)


def test_rows_in_are_samples_and_rejections_out(given: Given) -> None:
    given.image("vsr/a.jpg", 640, 480)
    rows = [metadata([[1, 2, 30, 40]]), "{", metadata([[30, 2, 1, 40]]), 7, metadata([[1, 2, 30, 40]], image="no.jpg")]
    results = given.outcomes("viscot", given.rows(rows), readers=3)
    assert [r.reason.value if isinstance(r, Rejection) else "kept" for r in results] == [
        "kept", "not-json", "box-inverted", "wrong-shape", "image-missing",
    ]  # fmt: skip


def test_half_a_character_in_a_row_does_not_break_its_rejection(given: Given) -> None:
    refused = given.outcome("viscot", '{"question": "\\ud800", "answer": "\\ud800", "image": "\\ud800", "bboxs": 7}')
    assert isinstance(refused, Rejection)
    assert refused.line()


# ------------------------------------------------------------------------------------------------------- splits


def test_the_side_of_an_image_is_a_fair_draw_by_seed() -> None:
    digests = [f"{n:064x}" for n in range(4000)]
    sides = [split_of(d, 0, 0.1) for d in digests]
    assert 320 <= sides.count("validation") <= 480
    assert sides == [split_of(d, 0, 0.1) for d in digests]
    assert sides != [split_of(d, 1, 0.1) for d in digests]
    assert {split_of(d, 0, 0.0) for d in digests} == {"train"}


def test_shards_do_not_start_before_it_is_known_what_is_held_out(given: Given) -> None:
    folder = Folder(Store(), str(given.folder / "run"), CONVERT)
    with pytest.raises(InputError, match="--part prepare comes before --part shards"):
        informed(DATASETS["scenes"], given.desk("scenes"), folder, look=False)


def test_rows_that_share_an_id_stay_two_rows_in_every_shard(given: Given) -> None:
    given.image("a.png", 20, 20)

    def row(question: str, **more: Any) -> dict[str, Any]:
        return {"image": "a.png", "question": question, "answers": ["x"]} | more

    uris = [
        given.rows([row("1", id="cell"), row("2", id=7), row("3"), row("4", id="\ud800")], "mine.jsonl"),
        given.rows([row("5", id="cell"), row("6", id="mine.jsonl:3"), "no JSON"], "yours.jsonl"),
    ]
    source, folder = DATASETS["samples"], Folder(Store(), str(given.folder / "run"), CONVERT)
    informed(source, given.desk("samples", *uris), folder, look=True)
    ids = {}
    for shard in range(2):
        desk = informed(source, given.desk("samples", *uris), folder, look=False)
        for _, result in read(rows_of_shard(desk, shard, 2), desk):
            ids[result.question if isinstance(result, Sample) else result.reason.value] = result.id
    assert ids == {
        "1": "mine.jsonl:1:cell", "2": "7", "3": "mine.jsonl:3", "wrong-shape": "mine.jsonl:4",
        "5": "yours.jsonl:1:cell", "6": "yours.jsonl:2:mine.jsonl:3", "not-json": "yours.jsonl:3",
    }  # fmt: skip
