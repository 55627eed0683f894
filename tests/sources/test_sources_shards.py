"""Any number of shards together makes what one process makes, of whole rows and of broken ones."""

from __future__ import annotations

import json
import random

from hypothesis import HealthCheck, settings
from hypothesis import given as generated
from hypothesis import strategies as st

from tests.sources.broken import broken
from tests.sources.given import Given
from tests.sources.test_sources_llava_cot import ASKED, talk
from tests.sources.test_sources_viscot import metadata
from vcot.sources import SOURCES, read, rows_of_shard
from vcot.sources.parts import Part


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@generated(
    shards=st.integers(1, 60), limit=st.none() | st.integers(1, 60), seed=st.integers(0, 9),
    source=st.sampled_from(["viscot", "llava-cot"]),
)  # fmt: skip
def test_any_number_of_shards(given: Given, shards: int, limit: int | None, seed: int, source: str) -> None:
    given.picture("vsr/a.jpg", 640, 480)
    given.picture("chartqa/1.png", 200, 100)
    said = ("gpt", "<think>so</think>21")
    row = metadata([[1, 2, 30, 40]]) if source == "viscot" else talk(ASKED, said, ("human", "And?"), said)
    dice = random.Random(seed)
    files = []
    for name in ("one.jsonl", "two.jsonl"):
        lines = [json.dumps(row).encode() + b"\n"]
        lines += [broken(dice, row).replace(b"\n", b" ") + b"\n" for _ in range(20)]
        (given.folder / name).write_bytes(b"".join(lines))
        files.append(str(given.folder / name))
    desk = given.desk(source, *files)

    def lines_of(index: int, shards: int) -> list[bytes]:
        rows = rows_of_shard(SOURCES[source], desk, index, shards, limit)
        return [result.line() for _, result in read(SOURCES[source], rows, desk)]

    whole = lines_of(0, 1)
    dealt = [lines_of(index, shards) for index in range(shards)]
    assert [dealt[number % shards][number // shards] for number in range(len(whole))] == whole
    assert sum(map(len, dealt)) == len(whole)
    part, blocks = Part(SOURCES[source], desk, limit), {}
    for index in range(shards):
        blocks |= {place: row.id for place, row in part.numbered(index, shards, lambda place: place % 3 > 0)}
    assert blocks == {place: row.id for place, row in enumerate(part.rows()) if place % 3 > 0}
