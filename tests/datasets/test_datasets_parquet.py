"""Rows and images out of Parquet, with memory flat, and what is wrong with a file told by name."""

from __future__ import annotations

import os
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from tests.datasets.given import Given, png
from tests.datasets.parquet import IMAGE, write
from tests.datasets.test_datasets_scienceqa import TYPES, row
from tests.s3 import moto_place, moto_server, no_aws  # noqa: F401 (fixtures)
from vcot.datasets.inputs import found_in, parquet_rows
from vcot.errors import InputError
from vcot.storage import Changed, Store


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001-1028f23e353fbe3e.parquet", "train"),
        ("validation-00001-of-00002.parquet", "validation"),
        ("0000.parquet", None),
        ("training.parquet", None),
    ],
)
def test_the_name_of_a_file_says_its_split(tmp_path: Path, name: str, split: str | None) -> None:
    (row,) = read(write(tmp_path / name, [{"n": 1}], {"n": pa.int64()}))
    assert row.get("split") == split


def read(uri: str, columns: tuple[str, ...] = ("n",)) -> list[dict[str, object]]:
    with Store().open_read(uri) as file:
        return [value for _, value in parquet_rows(file, uri, columns)]


def test_only_the_named_columns_are_read_over_all_groups(tmp_path: Path) -> None:
    rows = [{"n": n, "other": "x"} for n in range(95)]
    uri = write(tmp_path / "test-00000-of-00001.parquet", rows, {"n": pa.int64(), "other": pa.string()}, group=10)
    assert read(uri, ("n", "absent")) == [{"split": "test", "n": n} for n in range(95)]


def test_a_column_that_says_the_split_is_believed_before_the_name(tmp_path: Path) -> None:
    types = {"n": pa.int64(), "split": pa.string()}
    uri = write(tmp_path / "test-00000-of-00001.parquet", [{"n": 1, "split": "train"}], types)
    assert read(uri, ("n", "split")) == [{"n": 1, "split": "train"}]


@pytest.mark.parametrize("kept", [0, 3, 40, 300])
def test_a_file_that_was_cut_off(tmp_path: Path, kept: int) -> None:
    path = Path(write(tmp_path / "a.parquet", [{"n": n} for n in range(1000)], {"n": pa.int64()}))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"a\.parquet is not whole Parquet"):
        read(str(path))


def test_a_file_whose_data_were_overwritten(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.parquet", [{"n": n} for n in range(1000)], {"n": pa.int64()}))
    whole = bytearray(path.read_bytes())
    whole[4:40] = bytes(36)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"a\.parquet is not whole Parquet"):
        read(str(path))


def test_a_file_without_the_columns_is_told_what_it_has(tmp_path: Path) -> None:
    uri = write(tmp_path / "a.parquet", [{"n": 1}], {"n": pa.int64()})
    with pytest.raises(InputError, match=r"has the columns n; none of question, image"):
        read(uri, ("question", "image"))


def test_a_file_that_changes_while_it_is_read(given: Given) -> None:
    uri = write(given.folder / "a.parquet", [row(n) for n in range(40)], TYPES)
    desk = given.desk("scienceqa", uri)
    write(given.folder / "a.parquet", [row(n + 1) for n in range(40)], TYPES)
    os.utime(uri, ns=(1, 1))  # a disk's clock may stand still for some milliseconds
    with pytest.raises(Changed, match="has changed since this stage began"):
        list(found_in(desk.store, desk.inputs[0], ("question",)))


def test_a_source_of_json_says_what_it_reads_instead(given: Given) -> None:
    uri = write(given.folder / "a.parquet", [{"question": "?"}], {"question": pa.string()})
    with pytest.raises(InputError, match=r"is Parquet; this source reads \.json"):
        given.outcomes("viscot", uri)


def test_a_folder_of_parquet_is_read_file_by_file(given: Given) -> None:
    for n, split in enumerate(("train", "test", "validation")):
        write(given.folder / f"data/{split}-00000-of-00001.parquet", [row(n)], TYPES)
    found = given.outcomes("scienceqa", str(given.folder / "data"))
    assert [sample.origin.split for sample in found if hasattr(sample, "origin")] == ["test", "train", "validation"]


def test_from_object_storage_too(moto_place: str, tmp_path: Path) -> None:  # noqa: F811 (fixture)
    local = Path(write(tmp_path / "a.parquet", [{"n": n} for n in range(95)], {"n": pa.int64()}, group=10))
    uri = f"{moto_place}/a.parquet"
    Store().upload(local, uri)
    assert read(uri) == read(str(local))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Images of 100 kB, groups of 100 rows as the hub writes them: ten times the rows, the same peak."""
    dice = random.Random(1)

    def peak(groups: int) -> int:
        rows = [{"image": {"bytes": dice.randbytes(100_000), "path": None}} for _ in range(100 * groups)]
        uri = write(tmp_path / f"{groups}.parquet", rows, {"image": IMAGE})
        del rows
        before = pa.total_allocated_bytes()
        pool = pa.default_memory_pool()
        tracemalloc.start()
        most = 0
        with Store().open_read(uri) as file:
            for _ in parquet_rows(file, uri, ("image",)):
                most = max(most, pool.bytes_allocated() - before)
        _, python = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most + python

    small, large = peak(1), peak(10)
    assert large < 1.25 * small, (small, large)
    assert large < 40e6


def test_an_image_that_no_image_is_and_one_that_is_not_there(given: Given) -> None:
    rows = [row(0), row(1, image={"bytes": b"<html>", "path": "1.png"}), row(2, image=None)]
    uri = write(given.folder / "train-00000-of-00001.parquet", rows, TYPES)
    good, broken, none = given.outcomes("scienceqa", uri)
    assert not hasattr(good, "reason")
    assert [getattr(refused, "reason", None) for refused in (broken, none)] == ["image-not-an-image", "no-image"]


def test_one_image_of_several_rows_is_stored_once(given: Given) -> None:
    same = {"bytes": png(50, 40), "path": "image.png"}
    uri = write(given.folder / "train-00000-of-00001.parquet", [row(n, image=same) for n in range(3)], TYPES)
    samples = given.outcomes("scienceqa", uri)
    assert {sample.image.uri for sample in samples if hasattr(sample, "image")} == {
        str(path) for path in (given.folder / "made").iterdir()
    }
    assert len(list((given.folder / "made").iterdir())) == 1
