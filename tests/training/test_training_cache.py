"""Training from storage through a cache of two of six shards: the order, the losses, a stop, and when it begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.training.toy import Died, examples, tune, weights, write_examples
from vcot.records.cache import ShardCache
from vcot.records.example import Examples, Row
from vcot.records.shards import File
from vcot.storage import Store
from vcot.storage.local import file_digest
from vcot.training.batches import Plan

SHARDS = 6


class SlowStore(Store):
    """A shard takes its time."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def download(self, uri: str, path: Path, arrived: Callable[[int], None] | None = None) -> None:
        time.sleep(self.seconds)
        super().download(uri, path, arrived)


@pytest.fixture(scope="module")
def stage(toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[File]]:
    folder = tmp_path_factory.mktemp("stage")
    made = examples(toy_encoder, 24, 4)
    files = []
    for number in range(SHARDS):
        path = write_examples(folder / f"{number}.parquet", made[number::SHARDS])
        files.append(File(name=path.name, sha256=file_digest(path), size=path.stat().st_size))
    return folder, files


def two(files: list[File]) -> int:
    return sum(sorted(file.size for file in files)[-2:])


def cached(stage: tuple[Path, list[File]], folder: Path, limit: int, seconds: float = 0.0) -> Examples:
    uri, files = stage
    return Examples(ShardCache(SlowStore(seconds), str(uri), files, folder, limit))


# --- the order --------------------------------------------------------------------------------------------


def rows() -> list[Row]:
    return [
        Row(f"{n}#{a}", str(n), a, "train" if n % 9 else "validation", 50 + n * 37 % 200, 0, shard=shard)
        for shard in range(10)
        for n in range(shard * 100, (shard + 1) * 100)
        for a in range(2)
    ]


def planned(**changes: Any) -> Plan:
    given: dict[str, Any] = {"batch_tokens": 1000, "packed": False, "batches_per_step": 2, "epochs": 2, "seed": 7}
    return Plan.of(rows(), **given | changes)


def test_shards_that_are_shuffled_together_follow_one_after_another() -> None:
    made = rows()
    plan = planned(shards=[100] * 10, shuffle_bytes=399)
    epoch = len(plan.steps) // 2
    drawn = [made[row].sample for step in plan.steps[:epoch] for batch in step for row in batch]
    assert sorted(drawn) == sorted({row.sample for row in made if row.split == "train"})
    needs = plan.shards(made)
    assert max(map(len, needs)) <= 6  # two windows, where they meet
    runs = [[step for step in range(epoch) if shard in needs[step]] for shard in range(10)]
    assert all(max(run) - min(run) < 0.4 * epoch for run in runs)
    again = [[step for step in range(epoch, 2 * epoch) if shard in needs[step]] for shard in range(10)]
    assert [min(run) for run in runs] != [min(run) - epoch for run in again]  # another order in the next epoch


def test_where_all_are_shuffled_together_it_does_not_matter_how_they_are_stored() -> None:
    assert planned(shards=[100] * 10, shuffle_bytes=1000) == planned()
    assert planned(shards=[100] * 10, shuffle_bytes=999) != planned()


def test_an_evaluation_reads_shards_one_after_another() -> None:
    made = rows()
    found = planned(shards=[100] * 10, shuffle_bytes=399).evaluation()
    windows = [{made[row].shard // 3 for row in batch} for batch in found]
    assert all(len(window) == 1 for window in windows)
    assert [*map(min, windows)] == sorted(map(min, windows))
    assert len({row for batch in found for row in batch}) == len({r.sample for r in made if r.split == "validation"})


# --- the training ------------------------------------------------------------------------------------------


def test_with_a_third_of_the_shards_and_after_a_stop_it_learns_the_same(
    toy_base: Path, toy_encoder: Any, stage: tuple[Path, list[File]], tmp_path: Path
) -> None:
    limit = two(stage[1])
    shape = {"shuffle_gib": limit / 2**30, "num_train_epochs": 2.0}
    all_there = cached(stage, tmp_path / "all", limit=1 << 30)
    calm = tune(toy_base, toy_encoder, all_there, tmp_path / "calm", **shape)
    little = cached(stage, tmp_path / "little", limit=limit)
    with pytest.raises(Died):
        tune(toy_base, toy_encoder, little, tmp_path / "b", die_at=2, **shape)
    went_on = cached(stage, tmp_path / "afresh", limit=limit)
    found = tune(toy_base, toy_encoder, went_on, tmp_path / "b", **shape)
    assert found.history == calm.history
    assert all((value == weights(found)[name]).all() for name, value in weights(calm).items())
    assert len(list((tmp_path / "all").glob("*.parquet"))) == SHARDS
    assert len(list((tmp_path / "afresh").glob("*.parquet"))) <= 3


def test_the_first_step_is_done_while_later_shards_are_in_storage(
    toy_base: Path, toy_encoder: Any, stage: tuple[Path, list[File]], tmp_path: Path
) -> None:
    slow = cached(stage, tmp_path / "slow", limit=1 << 30, seconds=2.0)
    shape = {"shuffle_gib": max(file.size for file in stage[1]) / 2**30, "save_steps": 1, "eval_steps": 1000}
    with pytest.raises(Died):
        tune(toy_base, toy_encoder, slow, tmp_path / "b", die_at=1, gradient_accumulation_steps=1, **shape)
    assert 1 <= len(list((tmp_path / "slow").glob("*.parquet"))) < SHARDS
