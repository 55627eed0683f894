"""Shards that arrive while they are read: what is planned from footers, what lies on the disk, what goes wrong."""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from vcot.errors import InputError, TemporaryError
from vcot.records.cache import Fetching, ShardCache
from vcot.records.example import INDEX, Example, Examples, ExampleSink, Row
from vcot.records.shards import File
from vcot.storage import Store
from vcot.storage.local import file_digest


def example(number: int) -> Example:
    buffer = io.BytesIO()
    noise = random.Random(number).randbytes(64 * 64 * 3)
    Image.frombytes("RGB", (64, 64), noise).save(buffer, "PNG")
    ids = tuple(range(5 + number % 7))
    split: Any = "train" if number % 4 else "validation"
    return Example(f"s{number}#0", f"s{number}", 0, split, ids, ids, (buffer.getvalue(),), ((1, 4, 4),))


class CountingStore(Store):
    """Counts what it reads of each object in parts, and takes its time for whole ones; looks at the disk
    when one has arrived, in the process that downloads."""

    def __init__(self, seconds: float = 0.0, limit: int = 1 << 30) -> None:
        super().__init__()
        self.read, self.seconds, self.limit = 0, seconds, limit

    def read_range(self, uri: str, start: int, length: int, of: Any = None) -> bytes:
        self.read += length
        return super().read_range(uri, start, length, of)

    def download(self, uri: str, path: Path, arrived: Callable[[int], None] | None = None) -> None:
        time.sleep(self.seconds)
        super().download(uri, path, arrived)
        if on_disk(path.parents[1]) > self.limit:
            raise InputError("more lies on the disk than was allowed")


def stored(place: Path, shards: int = 6, rows: int = 40) -> list[File]:
    files = []
    for number in range(shards):
        path = place / f"shards/{number:05d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        sink = ExampleSink(path)
        for row in range(number * rows, (number + 1) * rows):
            sink.write(example(row))
        sink.close()
        files.append(File(name=f"shards/{path.name}", sha256=file_digest(path), size=path.stat().st_size))
    return files


def two_of(files: list[File]) -> int:
    return sum(sorted(file.size for file in files)[-2:])


def on_disk(folder: Path) -> int:
    """Bytes of shards in a cache's folder, those that arrive too."""
    return sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def test_rows_are_known_from_footers_alone(tmp_path: Path) -> None:
    files = stored(tmp_path / "stage", shards=3, rows=300)
    store = CountingStore()
    cache = ShardCache(store, str(tmp_path / "stage"), files, tmp_path / "cache", two_of(files))
    rows = Examples(cache).rows
    assert rows[301] == Row("s301#0", "s301", 0, "train", 5, 16, shard=1)
    assert rows == Examples([tmp_path / "stage" / file.name for file in files]).rows
    assert on_disk(tmp_path / "cache") == 0
    assert store.read < 0.06 * sum(file.size for file in files)
    read, _ = store.read, Examples(cache)
    assert store.read == read  # the second rank of a pod reads none


def test_a_file_without_an_index_is_planned_from_its_columns(tmp_path: Path) -> None:
    files = stored(tmp_path / "stage", shards=1)
    path = tmp_path / "stage" / files[0].name
    table = pq.read_table(path)
    wanted = Examples([path]).rows
    assert INDEX.encode() in (pq.read_metadata(path).metadata or {})
    kept = {key: value for key, value in table.schema.metadata.items() if key != INDEX.encode()}
    pq.write_table(table.replace_schema_metadata(kept), path, row_group_size=16)
    assert INDEX.encode() not in (pq.read_metadata(path).metadata or {})
    old = [File(name=files[0].name, sha256=file_digest(path), size=path.stat().st_size)]
    store = CountingStore()
    assert Examples(ShardCache(store, str(tmp_path / "stage"), old, tmp_path / "cache", old[0].size)).rows == wanted
    assert store.read < 0.5 * old[0].size


def _read_all(examples: Examples, order: list[int], answers: Any) -> None:
    try:
        answers.put([examples[row].id for row in order])
    except InputError as error:
        answers.put([str(error)])


def test_processes_read_more_than_fits_and_the_disk_holds_no_more_than_was_allowed(tmp_path: Path) -> None:
    files = stored(tmp_path / "stage")
    limit = two_of(files)
    cache = ShardCache(CountingStore(0.02, limit), str(tmp_path / "stage"), files, tmp_path / "cache", limit)
    examples = Examples(cache)
    orders = [list(range(240)), list(range(240))[::-1], random.Random(1).sample(range(240), 240)[:40]]
    answers: Any = multiprocessing.get_context("fork").Queue()
    with Fetching(cache, [{number} for number in range(6)]):
        readers = [multiprocessing.get_context("fork").Process(target=_read_all, args=(examples, order, answers))
                   for order in orders]  # fmt: skip
        for reader in readers:
            reader.start()
        found = [answers.get(timeout=120) for _ in readers]
        for reader in readers:
            reader.join()
    wanted = [[f"s{row}#0" for row in order] for order in orders]
    assert sorted(found) == sorted(wanted)
    assert not list((tmp_path / "cache").glob("*.wanted"))


def test_what_is_needed_soonest_comes_and_what_is_needed_last_goes(tmp_path: Path) -> None:
    files = stored(tmp_path / "stage", shards=4, rows=8)
    cache = ShardCache(Store(), str(tmp_path / "stage"), files, tmp_path / "cache", two_of(files))
    steps = [[0, 5], [1], [2, 3], []]

    def here() -> set[int]:
        return {int(path.name[:5]) for path in (tmp_path / "cache").glob("*.parquet")}

    assert cache.turn(steps, 0)
    assert cache.turn(steps, 0)
    assert here() == {0, 1}
    assert not cache.turn(steps, 0)  # both are needed before 2 is
    assert cache.turn(steps, 1)
    assert here() == {1, 2}  # 0 is not needed before step 5
    assert cache.turn(steps, 2)
    assert here() == {0, 2}
    waiting = tmp_path / "cache/00003-1.wanted"
    waiting.touch()  # no step reads it, and somebody waits for it
    assert cache.turn(steps, 2)
    assert here() == {2, 3}
    assert cache.turn(steps, 4)
    assert here() == {0, 3}  # who waits has not opened it yet
    waiting.unlink()
    assert not cache.turn(steps, 4)


def test_a_cache_without_room_for_one_file_is_refused(tmp_path: Path) -> None:
    files = stored(tmp_path / "stage", shards=1)
    with pytest.raises(ValueError, match="no room for the largest file"):
        ShardCache(Store(), str(tmp_path / "stage"), files, tmp_path / "cache", files[0].size - 1)


def test_a_damaged_file_fails_those_who_wait_for_it(tmp_path: Path) -> None:
    files = stored(tmp_path / "stage", shards=2)
    cache = ShardCache(Store(), str(tmp_path / "stage"), files, tmp_path / "cache", two_of(files))
    examples = Examples(cache)
    path = tmp_path / "stage" / files[1].name
    path.write_bytes(path.read_bytes()[:1000].ljust(files[1].size, b"\0"))
    with Fetching(cache, [{0}, {1}]):
        assert examples[0].id == "s0#0"
        with pytest.raises(InputError, match=r"00001\.parquet is not what its marker says"):
            examples[40]
        assert examples[1].id == "s1#0"


def test_a_file_that_is_cut_is_named_before_anything_is_planned(tmp_path: Path) -> None:
    files = stored(tmp_path / "stage", shards=2)
    path = tmp_path / "stage" / files[1].name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"00001\.parquet is not what its marker says"):
        Examples(ShardCache(Store(), str(tmp_path / "stage"), files, tmp_path / "cache", two_of(files)))


def test_nobody_waits_for_a_process_that_is_gone(tmp_path: Path) -> None:
    files = stored(tmp_path / "stage", shards=2)
    cache = ShardCache(CountingStore(60), str(tmp_path / "stage"), files, tmp_path / "cache", two_of(files))
    examples = Examples(cache)
    with Fetching(cache, [{0}]) as fetching:
        threading.Timer(1, lambda: os.kill(fetching.process, 9)).start()
        with pytest.raises(TemporaryError, match=r"the process that downloads examples ended \(-9\)"):
            examples[0]
