"""Which rows stand in which batch, and what a batch looks like."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.toy import examples, write_examples
from vcot.errors import InputError, SettingsError
from vcot.records.example import ALONE, IGNORED, Examples, Row
from vcot.training.batches import Plan, RankBatches
from vcot.training.data import Collator, SFTDataset, loaders


@pytest.fixture(scope="module")
def dataset(toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("dataset")
    paths = [write_examples(folder / "a.parquet", examples(toy_encoder, 5, 2))]
    return SFTDataset(Examples(paths), toy_encoder, cache_bytes=1 << 30)


# --- the plan -------------------------------------------------------------------------------------------


def rows(samples: int, alternatives: int = 3) -> list[Row]:
    return [
        Row(f"{s}#{a}", str(s), a, "train" if s % 5 else "validation", 50 + (s * 37) % 200, 4 * (s % 7))
        for s in range(samples)
        for a in range(alternatives)
    ]


def planned(made: list[Row], **changes: Any) -> Plan:
    given = {"batch_tokens": 1000, "packed": False, "batches_per_step": 2, "epochs": 1, "seed": 7} | changes
    return Plan.of(made, **given)


def flat(plan: Plan) -> list[int]:
    return [row for step in plan.steps for batch in step for row in batch]


def test_questions_alone_are_left_out() -> None:
    made = rows(50)
    alone = [Row(f"{s}#question", f"{s} more", ALONE, "train" if s % 5 else "validation", 2000) for s in range(50)]
    assert planned(made + alone) == planned(made)


@pytest.mark.parametrize("packed", [False, True])
def test_an_epoch_sees_each_sample_once_with_one_of_its_alternatives(packed: bool) -> None:
    made = rows(100)
    plan = planned(made, packed=packed)
    seen = [made[row] for row in flat(plan)]
    assert Counter(row.sample for row in seen) == Counter(str(s) for s in range(100) if s % 5)
    assert {row.alternative for row in seen} == {0, 1, 2}
    for step in plan.steps:
        for batch in step:
            lengths = [made[row].tokens for row in batch]
            assert (sum(lengths) if packed else max(lengths) * len(lengths)) <= 1000
    assert plan.real == sum(row.tokens for row in seen)


def test_an_epoch_sees_each_sample_in_each_of_its_ways() -> None:
    made = rows(20)
    made += [replace(row, id=f"{row.sample}#direct", way="direct") for row in made if not row.alternative]
    plan = planned(made)
    seen = Counter((row.sample, row.way) for row in (made[number] for number in flat(plan)))
    assert seen == Counter((str(s), way) for s in range(20) if s % 5 for way in ("ground", "direct"))
    held_out = {made[row].id for batch in plan.evaluation() for row in batch}
    assert held_out == {f"{s}#{name}" for s in range(0, 20, 5) for name in ("0", "direct")}
    assert plan.samples == {"train": 16, "validation": 4}


def test_a_plan_is_a_function_of_seed_and_epoch_alone() -> None:
    made = rows(40)
    one, two = planned(made, epochs=2), planned(made, epochs=2)
    assert one == two
    half = len(planned(made).steps)
    assert one.steps[:half] == planned(made).steps  # the second epoch changes nothing of the first,
    assert set(one.steps[:half]) != set(one.steps[half:])  # and is another
    assert planned(made).steps != planned(made, seed=8).steps


def test_epochs_may_be_fractions_and_steps_may_be_told() -> None:
    made = rows(100)
    whole = planned(made, epochs=3)
    assert whole.epochs[-1] == 3.0
    assert whole.epoch(0) == 0.0
    per_epoch = len(planned(made).steps)
    some = planned(made, epochs=1.5)
    assert (
        some.steps
        == planned(made, epochs=2).steps[: per_epoch + -(-(len(planned(made, epochs=2).steps) - per_epoch) // 2)]
    )
    assert planned(made, max_steps=per_epoch + 1).steps == whole.steps[: per_epoch + 1]
    assert planned([], max_steps=3).steps == ()


def test_rows_of_like_length_lie_side_by_side() -> None:
    plan = planned(rows(400))
    assert plan.real / plan.slots > 0.95


def test_packed_batches_are_full_and_have_as_many_image_patches() -> None:
    dice = random.Random(3)
    made = []
    for number in range(3000):
        patches = dice.choice([0, 0, 1600, 3200])
        made.append(Row(str(number), str(number), 0, "train", dice.randrange(50, 900) + patches // 4, patches))
    plan = planned(made, packed=True, batch_tokens=8192)
    batches = [batch for step in plan.steps for batch in step]
    assert plan.real / (8192 * len(batches)) > 0.97
    patches_of = [sum(made[row].patches for row in batch) for batch in batches]
    mean = sum(patches_of) / len(batches)
    assert sum(abs(each - mean) < 0.25 * mean for each in patches_of) > 0.9 * len(batches)


def test_a_row_longer_than_a_batch_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--batch-tokens=100 is less .* has: 249 tokens; give 249 or more"):
        planned(rows(100), batch_tokens=100)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_share_each_step_and_a_step_is_the_same_for_any_number_of_them(ranks: int) -> None:
    plan = planned(rows(100), batches_per_step=4)
    shares = [list(RankBatches(plan, rank=rank, ranks=ranks)) for rank in range(ranks)]
    (length,) = {len(share) for share in shares}
    per_step = -(-4 // ranks)
    assert length == len(plan.steps) * per_step == len(RankBatches(plan, rank=0, ranks=ranks))
    for number, step in enumerate(plan.steps):
        mine = [batch for share in shares for batch in share[number * per_step : (number + 1) * per_step]]
        assert sorted(row for batch in mine for row in batch) == sorted(row for batch in step for row in batch)
    late = RankBatches(plan, rank=ranks - 1, ranks=ranks, start=2)
    assert list(late) == shares[-1][2 * per_step :]


def test_what_is_held_out_is_always_the_first_alternative_of_each_sample() -> None:
    made = rows(40)
    batches = planned(made, batch_tokens=600).evaluation()
    assert sorted(made[row].id for batch in batches for row in batch) == sorted(f"{s}#0" for s in range(0, 40, 5))
    lengths = [made[row].tokens for batch in batches for row in batch]
    assert lengths == sorted(lengths)
    flat_rows = [row for batch in batches for row in batch]
    shares = [planned(made, batch_tokens=600).evaluation(rank, 2) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])
    assert sorted(row for share in shares for batch in share for row in batch) == sorted(flat_rows)


# --- a batch --------------------------------------------------------------------------------------------


def test_a_batch_is_padded_on_the_right_and_learns_nothing_there(dataset: Any, toy_encoder: Any) -> None:
    chosen = [dataset[row] for row in range(len(dataset))]
    assert len({len(item["ids"]) for item in chosen}) > 1
    batch = Collator(toy_encoder.pad_token_id)(chosen)
    longest = max(len(item["ids"]) for item in chosen)
    assert batch["input_ids"].shape == batch["labels"].shape == (14, longest)
    assert batch["position_ids"].shape == (3, 14, longest)
    for row, item in enumerate(chosen):
        length = len(item["ids"])
        assert batch["input_ids"][row, :length].equal(item["ids"])
        assert set(batch["labels"][row, length:].tolist()) <= {IGNORED}
        assert batch["position_ids"][:, row, :length].equal(item["positions"])
    assert batch["names"] == [row.id for row in dataset.examples.rows]
    assert batch["tokens"] == sum(len(item["ids"]) for item in chosen)
    assert batch["pixel_values"].shape[0] == int(batch["image_grid_thw"].prod(-1).sum())


def test_a_packed_batch_is_its_rows_end_to_end(dataset: Any, toy_encoder: Any) -> None:
    chosen = [dict(dataset[row]) for row in (3, 0, 8)]
    chosen[1]["labels"] = chosen[1]["ids"]  # all of it is learned
    batch = Collator(toy_encoder.pad_token_id, packed=True)(chosen)
    bounds = batch["row_bounds"].tolist()
    assert batch["longest_row"] == max(len(item["ids"]) for item in chosen)
    for item, start, end in zip(chosen, bounds[:-1], bounds[1:], strict=True):
        assert batch["input_ids"][0, start:end].equal(item["ids"])
        assert batch["position_ids"][:, 0, start:end].equal(item["positions"])
        assert batch["labels"][0, start] == IGNORED  # or it would be predicted from the row before
        assert batch["labels"][0, start + 1 : end].equal(item["labels"][1:])
    assert end == batch["input_ids"].shape[1] == batch["tokens"]


def test_a_batch_of_nothing_teaches_nothing(toy_encoder: Any) -> None:
    for packed in (False, True):
        batch = Collator(toy_encoder.pad_token_id, packed=packed)([])
        assert (batch["names"], batch["tokens"]) == ([], 0)
        assert batch["labels"].tolist() == [[IGNORED]]


def test_an_image_is_cut_once_for_all_its_questions_while_there_is_room(dataset: Any, toy_encoder: Any) -> None:
    assert dataset[0]["pixels"] is dataset[1]["pixels"]  # two alternatives of one sample
    assert dataset[0] is dataset[0]
    poor = SFTDataset(dataset.examples, toy_encoder, cache_bytes=0)
    assert poor[0] is not poor[0]
    assert poor[0]["pixels"].equal(dataset[0]["pixels"])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_caches_of_all_workers_of_both_splits_are_within_the_limit(
    dataset: Any, toy_encoder: Any, workers: int
) -> None:
    plan = planned(dataset.examples.rows)
    both = loaders(
        dataset.examples, toy_encoder, RankBatches(plan), plan.evaluation(), samples=plan.samples, packed=False,
        workers=workers, cache_bytes=1000,
    )  # fmt: skip
    found = [max(loader.num_workers, 1) * loader.dataset.free_bytes for loader in both]
    assert 990 <= sum(found) <= 1000
    assert min(found) > 200  # 2 samples of 7


def test_an_image_whose_grid_is_not_the_one_written_down_is_refused(tmp_path: Path, toy_encoder: Any) -> None:
    good = examples(toy_encoder, 1)[0]
    ((_, rows, columns),) = good.image_grids
    turned = replace(good, image_grids=((1, columns * 2, rows // 2),))
    path = write_examples(tmp_path / "a.parquet", [turned])
    with pytest.raises(InputError, match=r"train-0#0.*grid.*run tokenize again"):
        SFTDataset(Examples([path]), toy_encoder, cache_bytes=0)[0]
    short = replace(good, ids=good.ids[40:], labels=good.labels[40:])
    path = write_examples(tmp_path / "b.parquet", [short])
    with pytest.raises(InputError, match=r"train-0#0.*stand for the images"):
        SFTDataset(Examples([path]), toy_encoder, cache_bytes=0)[0]
