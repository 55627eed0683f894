"""Which rows stand in which batch, and what a batch looks like."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.toy import examples, write_examples
from vcot.errors import InputError
from vcot.records.example import IGNORED, Examples, Row
from vcot.training.data import Collator, EpochSampler, SFTDataset, validation_batches


@pytest.fixture(scope="module")
def dataset(toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("dataset")
    paths = [write_examples(folder / "a.parquet", examples(toy_encoder, 5, 2))]
    return SFTDataset(Examples(paths), toy_encoder, cache_bytes=1 << 30)


def rows(samples: int, alternatives: int = 3) -> list[Row]:
    return [
        Row(f"{s}#{a}", str(s), a, "train" if s % 5 else "validation", 50 + (s * 37) % 200)
        for s in range(samples)
        for a in range(alternatives)
    ]


def epochs(made: list[Row], epoch: int = 0, **changes: Any) -> list[list[int]]:
    sampler = EpochSampler(made, **({"batch_size": 4, "seed": 7, "group_by_length": False} | changes))
    sampler.epoch = epoch
    found = list(sampler)
    assert len(found) == len(sampler)
    return found


@pytest.mark.parametrize("group_by_length", [False, True])
def test_an_epoch_sees_each_sample_once_with_one_of_its_alternatives(group_by_length: bool) -> None:
    made = rows(100)
    seen = [made[row] for batch in epochs(made, group_by_length=group_by_length) for row in batch]
    assert Counter(row.sample for row in seen) == Counter(str(s) for s in range(100) if s % 5)
    assert {row.alternative for row in seen} == {0, 1, 2}


def test_an_epoch_is_a_function_of_seed_and_number_alone() -> None:
    made = rows(40)
    assert epochs(made, 3) == epochs(made, 3)
    assert epochs(made, 3) != epochs(made, 4)
    assert epochs(made, 3) != epochs(made, 3, seed=8)


def test_group_by_length_leave_less_padding() -> None:
    made = rows(400)

    def padding(batches: list[list[int]]) -> int:
        return sum(max(made[r].tokens for r in batch) - made[row].tokens for batch in batches for row in batch)

    assert padding(epochs(made, group_by_length=True)) < padding(epochs(made, group_by_length=False)) / 4


def test_what_is_held_out_is_always_the_first_alternative_of_each_sample() -> None:
    made = rows(40)
    batches = validation_batches(made, 3)
    assert sorted(made[row].id for batch in batches for row in batch) == sorted(f"{s}#0" for s in range(0, 40, 5))
    lengths = [made[row].tokens for batch in batches for row in batch]
    assert lengths == sorted(lengths)


def test_a_batch_is_padded_on_the_right_and_learns_nothing_there(dataset: Any, toy_encoder: Any) -> None:
    chosen = [dataset[row] for row in range(len(dataset))]
    assert len({len(item["ids"]) for item in chosen}) > 1
    batch = Collator(toy_encoder.pad_token_id)(chosen)
    longest = max(len(item["ids"]) for item in chosen)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (14, longest)
    assert batch["position_ids"].shape == (3, 14, longest)
    for row, item in enumerate(chosen):
        length = len(item["ids"])
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (longest - length)
        assert set(batch["labels"][row, length:].tolist()) <= {IGNORED}
        assert batch["position_ids"][:, row, :length].equal(item["positions"])
    assert batch["names"] == [row.id for row in dataset.examples.rows]
    assert batch["pixel_values"].shape[0] == int(batch["image_grid_thw"].prod(-1).sum())


def test_an_image_is_cut_once_for_all_its_questions_while_there_is_room(dataset: Any, toy_encoder: Any) -> None:
    assert dataset[0]["pixels"] is dataset[1]["pixels"]  # two alternatives of one sample
    assert dataset[0] is dataset[0]
    poor = SFTDataset(dataset.examples, toy_encoder, cache_bytes=0)
    assert poor[0] is not poor[0]
    assert poor[0]["pixels"].equal(dataset[0]["pixels"])


def test_an_image_whose_grid_is_not_the_one_written_down_is_refused(tmp_path: Path, toy_encoder: Any) -> None:
    good = examples(toy_encoder, 1)[0]
    ((_, rows, columns),) = good.image_grids
    turned = replace(good, image_grids=((1, columns * 2, rows // 2),))
    path = write_examples(tmp_path / "a.parquet", [turned])
    with pytest.raises(InputError, match=r"train-0#0.*grid.*run tokenize again"):
        SFTDataset(Examples([path]), toy_encoder, cache_bytes=0)[0]
    short = replace(good, ids=good.ids[40:], labels=good.labels[40:])
    path = write_examples(tmp_path / "b.parquet", [short])
    with pytest.raises(InputError, match=r"train-0#0.*stand for images"):
        SFTDataset(Examples([path]), toy_encoder, cache_bytes=0)[0]
