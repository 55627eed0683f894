"""Which rows a page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.markers import shard_marker
from vcot.errors import InputError
from vcot.records import Folder
from vcot.records.shards import CONVERT, DISTILL, File, ShardMarker
from vcot.reports.sampling import ExampleSampler, ShownExample, sampled
from vcot.storage import Store

NONE = File(name="x", sha256="0" * 64, size=0)


def examples(dataset: str, rows: int, group: str) -> list[ShownExample]:
    return [ShownExample(id=f"{dataset}:{n}", dataset=dataset, group=group) for n in range(rows)]


def markers(number: int) -> list[ShardMarker]:
    return [shard_marker("convert", n) for n in range(number)]


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_the_same_rows_are_shown_whatever_the_shards(tmp_path: Path, shards: int) -> None:
    rows = examples("a", 50, "kept") + examples("b", 50, "refused:box-empty")
    alone = ExampleSampler(3)
    for row in rows:
        alone.add(row)
    folder = Folder(Store(), str(tmp_path), CONVERT)
    for shard in range(shards):
        sampler = ExampleSampler(3)
        for row in rows[::-1][shard::shards]:
            sampler.add(row)
        sampler.put_aside(folder, shard)
    found = sampled(folder, markers(shards), 3)
    assert found.by_dataset() == alone.by_dataset()
    kept = found.by_dataset()["a"]["kept"]
    assert len(kept) == 3
    assert kept != rows[:3]


def test_a_row_is_shown_once_in_its_group_and_the_best_of_a_group_are_the_best_of_all_datasets() -> None:
    sampler = ExampleSampler(5)
    for row in examples("a", 9, "refused:x") * 2 + examples("b", 9, "refused:x"):
        sampler.add(row)
    assert len({row.id for row in sampler.by_dataset()["a"]["refused:x"]}) == 5
    best = sampler.of_group("refused:x", 3)
    assert len(best) == 3
    assert {row.id for row in best} <= {r.id for groups in sampler.by_dataset().values() for r in groups["refused:x"]}


def test_rows_that_call_their_datasets_anything_do_not_fill_the_page() -> None:
    sampler = ExampleSampler(8)
    for n in range(500):
        sampler.add(examples(f"set {n}", 1, "kept")[0])
    assert len(sampler.by_dataset()) == 64


def test_a_shard_that_put_nothing_aside_is_named(tmp_path: Path) -> None:
    folder = Folder(Store(), str(tmp_path / "run"), DISTILL)
    with pytest.raises(InputError, match=r"report/00000\.json is missing; delete .*distill and run the stage again"):
        sampled(folder, markers(1), 3)
