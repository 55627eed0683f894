"""Any number of shards together makes what one process makes, of whole rows and of broken ones."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as generated
from hypothesis import strategies as st

from tests.datasets.broken import broken
from tests.datasets.given import Given, informed
from tests.datasets.test_datasets_llava_cot import ASKED, talk
from tests.datasets.test_datasets_viscot import metadata
from vcot.datasets import DATASETS, read, rows_of_shard
from vcot.datasets.mixture import Part
from vcot.datasets.row import Row
from vcot.errors import InputError
from vcot.records import Folder
from vcot.records.shards import CONVERT
from vcot.storage import Store


def is_json(line: bytes) -> bool:
    """Of an array, which is UTF-8; of a single line json.loads would take other encodings, too."""
    try:
        json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return False
    return True


@pytest.mark.parametrize("source", ["viscot", "llava-cot"])
def test_a_shard_of_a_json_array_decodes_its_own_rows_alone(given: Given, source: str) -> None:
    """Who looked at all of it has left where they are."""
    given.image("vsr/a.jpg", 640, 480)
    given.image("chartqa/1.png", 200, 100)
    said = ("gpt", f"<think>{'so ' * 300}</think>21")
    row = metadata([[1, 2, 30, 40]]) if source == "viscot" else talk(ASKED, said, ("human", "And?"), said)
    uri = given.rows([row] * 8_000, "rows.json")
    folder = Folder(Store(), str(given.folder / "run"), CONVERT)
    desk = given.desk(source, uri, near_duplicates=0, duplicates="keep", splits="by-content")
    informed(DATASETS[source], desk, folder, look=True)

    def pass_over(index: int, shards: int, scratch: str) -> tuple[list[Row], float]:
        """Of a process that begins: its rows, and the seconds of CPU that they take."""
        (given.folder / scratch).mkdir()
        knowing = informed(DATASETS[source], replace(desk, scratch=given.folder / scratch), folder, look=False)
        begun = time.process_time()
        found = list(rows_of_shard(knowing, index, shards))
        return found, time.process_time() - begun

    whole = list(rows_of_shard(replace(desk, scratch=given.images), 0, 1))
    begun = time.process_time()
    assert sum(1 for _ in rows_of_shard(replace(desk, scratch=given.images / "vsr"), 0, 1)) > 7_999
    all_of_it = time.process_time() - begun
    dealt = [pass_over(index, 200, f"scratch-{index}") for index in (0, 7, 199)]
    assert [rows for rows, _ in dealt] == [whole[index::200] for index in (0, 7, 199)]
    assert min(seconds for _, seconds in dealt) < all_of_it / 3


def test_places_that_were_damaged_are_an_error_and_without_any_the_rows_are_the_same(given: Given) -> None:
    given.image("vsr/a.jpg", 640, 480)
    desk = given.desk("viscot", given.rows([metadata([[1, 2, 30, 40]])] * 9, "rows.json"))
    folder = Folder(Store(), str(given.folder / "run"), CONVERT)
    informed(DATASETS["viscot"], desk, folder, look=True)
    (left,) = (given.folder / "run/convert/offsets").iterdir()
    left.write_bytes(left.read_bytes()[:-1] + b"!")
    (given.folder / "new").mkdir()
    elsewhere = replace(desk, scratch=given.folder / "new")
    with pytest.raises(InputError, match=f"{left} is damaged"):
        informed(DATASETS["viscot"], elsewhere, folder, look=False)
    left.unlink()
    knowing = informed(DATASETS["viscot"], elsewhere, folder, look=False)
    found = [row.id for row in rows_of_shard(knowing, 1, 3)]
    assert found == ["rows.json:2", "rows.json:5", "rows.json:8"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@generated(
    shards=st.integers(1, 60), limit=st.none() | st.integers(1, 60), seed=st.integers(0, 9),
    source=st.sampled_from(["viscot", "llava-cot"]), array=st.booleans(),
)  # fmt: skip
def test_any_number_of_shards(
    given: Given, shards: int, limit: int | None, seed: int, source: str, array: bool
) -> None:
    given.image("vsr/a.jpg", 640, 480)
    given.image("chartqa/1.png", 200, 100)
    said = ("gpt", "<think>so</think>21")
    row = metadata([[1, 2, 30, 40]]) if source == "viscot" else talk(ASKED, said, ("human", "And?"), said)
    dice = random.Random(seed)
    files = []
    for name in ("one.json", "two.json") if array else ("one.jsonl", "two.jsonl"):
        lines = [json.dumps(row).encode()]
        lines += [broken(dice, row).replace(b"\n", b" ") for _ in range(20)]
        lines = [line for line in lines if is_json(line)] if array else lines
        (given.folder / name).write_bytes(b"[" + b", ".join(lines) + b"]" if array else b"\n".join((*lines, b"")))
        files.append(str(given.folder / name))
    desk = given.desk(source, *files)

    def lines_of(index: int, shards: int) -> list[bytes]:
        rows = rows_of_shard(desk, index, shards, limit)
        return [result.line() for _, result in read(rows, desk)]

    whole = lines_of(0, 1)
    dealt = [lines_of(index, shards) for index in range(shards)]
    assert [dealt[number % shards][number // shards] for number in range(len(whole))] == whole
    assert sum(map(len, dealt)) == len(whole)
    part, blocks = Part(DATASETS[source], desk, limit), {}
    for index in range(shards):
        blocks |= {place: row.id for place, row in part.numbered(index, shards, lambda place: place % 3 > 0)}
    assert blocks == {place: row.id for place, row in enumerate(part.rows()) if place % 3 > 0}
