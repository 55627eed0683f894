"""Shares by weight, and the rows that are drawn for them."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as some

from tests.datasets.given import ALONE, Given
from vcot.datasets import DATASETS
from vcot.datasets.mixture import Part, shares
from vcot.datasets.row_index import informed
from vcot.records import Folder
from vcot.records.shards import CONVERT
from vcot.storage import Store

WEIGHT = some.fractions(min_value=Fraction(1, 1000), max_value=1000)


@for_all(some.dictionaries(some.text(), some.tuples(some.integers(1, 10**7), WEIGHT), min_size=1))
def test_the_largest_mix_in_these_proportions_repeats_no_row(parts: dict[str, tuple[int, Fraction]]) -> None:
    found = shares({name: rows for name, (rows, _) in parts.items()}, {name: w for name, (_, w) in parts.items()})
    assert max(found.values()) == 1.0  # one part is there as a whole, and rounding takes no row of it
    assert min(found.values()) > 0
    first = next(iter(parts))
    for name, (rows, weight) in parts.items():
        there, there_first = found[name] * rows, found[first] * parts[first][0]
        assert there / there_first == pytest.approx(float(weight / parts[first][1]))


def of(given: Given, name: str, rows: int, weight: str | None, seed: int = 0) -> Part:
    uri = given.rows([{"image": "a.png", "question": f"{n}?", "answers": ["x"]} for n in range(rows)], f"{name}.jsonl")
    desk = given.desk("samples", uri, near_duplicates=0, duplicates="keep", seed=seed)
    part = Part(DATASETS["samples"], desk, weight=None if weight is None else Fraction(weight))
    return part.knowing(part=name)


def drawn(given: Given, parts: list[Part], name: str, shards: int = 1) -> tuple[dict[str, set[str]], dict[str, int]]:
    """Part → ids of its rows that are drawn, and how many are not."""
    folder = Folder(Store(), str(given.folder / name), CONVERT)
    known = informed(parts, folder, look=True, workers=ALONE, readers=1)
    assert informed(parts, folder, look=False, workers=ALONE, readers=1) == known
    ids: dict[str, set[str]] = {}
    left: dict[str, int] = {}
    for part in known:
        out: list[int] = []
        found = [row.id for n in range(shards) for row in part.rows(n, shards, lambda out=out: out.append(1))]  # type: ignore[misc]
        ids[part.name], left[part.name] = set(found), len(out)
        assert len(found) == len(ids[part.name])
    return ids, left


def test_twenty_thousand_rows_come_in_the_wanted_proportions_and_none_is_lost(given: Given) -> None:
    rows = {"a": 12_000, "b": 5_000, "c": 3_000}
    weights = {"a": "3", "b": "2.5", "c": "0.5"}
    parts = [of(given, name, n, weights[name]) for name, n in rows.items()]
    ids, left = drawn(given, parts, "run")
    assert {name: len(ids[name]) + left[name] for name in rows} == rows
    expected = {"a": 6_000, "b": 5_000, "c": 1_000}
    assert len(ids["b"]) == 5_000  # what is wanted most for its size is there as a whole
    for name, wanted in expected.items():
        share = wanted / rows[name]
        assert abs(len(ids[name]) - wanted) <= 4 * math.sqrt(rows[name] * share * (1 - share))
    numbers = sorted(int(name.rpartition(":")[2]) for name in ids["a"])
    assert abs(sum(numbers) / len(numbers) - 6_000) < 4 * 12_000 / math.sqrt(12 * 6_000)  # not the first ones
    assert drawn(given, parts, "shards", shards=7) == (ids, left)
    other, _ = drawn(given, [of(given, name, n, weights[name], seed=1) for name, n in rows.items()], "seed")
    assert 2_500 < len(ids["a"] & other["a"]) < 3_500  # another seed, another half


def test_without_weights_all_rows_come(given: Given) -> None:
    ids, left = drawn(given, [of(given, "a", 30, None), of(given, "b", 10, None)], "run")
    assert ({name: len(found) for name, found in ids.items()}, left) == ({"a": 30, "b": 10}, {"a": 0, "b": 0})
