"""What is asked of all Samples of a stage at once: DuckDB over the finished shards, on the scratch disk.

Each shard is fetched, held against its digest, and read once; of a row only a few numbers stay, in a table that may
be larger than memory.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from vcot.records.reports import Bar, Distribution, Spread
from vcot.records.shards import ShardMarker, fetch_file
from vcot.storage import Store

N = TypeVar("N", int, float)

AREAS = (*(float(f"{digits}e{power}") for power in range(-7, 0) for digits in ("1", "1.5", "2", "3", "5", "7")), 1.0)
"""Shares of an image to which the area of a box is rounded down; the smallest stands for all below, too."""

_COLUMNS = """{
    images: 'STRUCT(width BIGINT, height BIGINT, sha256 VARCHAR)[]', question: 'VARCHAR', answers: 'VARCHAR[]',
    reasoning: 'JSON[]', evidence: 'STRUCT(boxes DOUBLE[][])[]',
    origin: 'STRUCT(dataset VARCHAR, split VARCHAR, licence VARCHAR)'
}"""
_SAMPLES = f"""
select origin.dataset, origin.split, origin.licence, length(question) as question_length,
    length(answers[1]) as answer_length, len(reasoning) as reasonings,
    if(len(images) = 0, null, hash(images[1].sha256)) as image,
    list_transform(images, lambda one: {{'sha': hash(one.sha256), 'width': one.width, 'height': one.height}}) as shown,
    list_transform(
        flatten(list_transform(evidence, lambda mention: mention.boxes)),
        lambda box: (box[3] - box[1]) * (box[4] - box[2]) / (images[1].width * images[1].height)
    ) as areas
from read_json(?, format = 'newline_delimited', columns = {_COLUMNS})
"""


class SampleStatistics:
    """Counts over all Samples of finished shards."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def counts(self, column: str, where: str = "true") -> dict[str, Counter[Any]]:
        """Dataset → value of an SQL expression → rows."""
        return self._grouped(f"select dataset, {column}, count(*) from samples where {where} group by all")

    def box_areas(self) -> dict[str, Counter[float]]:
        """Dataset → share of the image, one of AREAS → boxes."""
        rounded = f"list_max(list_filter({list(AREAS)}, lambda area: area <= greatest(box, {AREAS[0]})))"
        return self._grouped(
            f"select dataset, {rounded}, count(*) from (select dataset, unnest(areas) as box from samples) group by all"
        )

    def image_sizes(self) -> dict[str, Counter[tuple[int, int]]]:
        """Split → (width, height) of the upright original → images, each counted once however many rows use it."""
        images = "select distinct split, one from (select split, unnest(shown) as one from samples)"
        return self._grouped(f"select split, (one.width, one.height), count(*) from ({images}) group by all")

    def _grouped(self, query: str) -> dict[str, Counter[Any]]:
        found: defaultdict[str, Counter[Any]] = defaultdict(Counter)
        for group, value, rows in self._database.execute(query).fetchall():
            found[group][value] = rows
        return dict(found)


# A container's memory is less than DuckDB's default, which is a share of the whole computer's; more of it, or a second
# thread, made nothing faster. What does not fit goes to the scratch disk.
_DUCKDB: dict[str, Any] = {"memory_limit": "96MB", "threads": 1, "preserve_insertion_order": False}


@contextmanager
def sample_statistics(
    store: Store, stage_uri: str, markers: Sequence[ShardMarker], scratch: Path
) -> Iterator[SampleStatistics]:
    """Raises InputError: a shard is not what its marker says."""
    import duckdb

    with duckdb.connect(str(scratch / "samples.duckdb"), config=_DUCKDB) as database:
        into = "create or replace table samples as"
        for file in (file for marker in markers for file in marker.files):
            path = fetch_file(store, stage_uri, file, scratch)
            database.execute(f"{into} {_SAMPLES}", [str(path)])
            path.unlink()
            into = "insert into samples"
        yield SampleStatistics(database)


def summed(shards: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of several shards as one: numbers are added."""
    total: dict[str, Any] = {}
    for one in shards:
        for name, value in one.items():
            if isinstance(value, Mapping):
                total[name] = summed((total.get(name, {}), value))
            else:
                total[name] = total.get(name, 0) + value
    return total


def percentile(counts: Mapping[N, int], share: float) -> N:
    """The smallest value below or at which `share` of what was counted lies; 0 of nothing."""
    total, below = sum(counts.values()), 0
    for value in sorted(counts):
        below += counts[value]
        if below >= share * total:
            return value
    return 0


def spread(counts: Mapping[N, int]) -> Spread:
    return Spread(
        n=sum(counts.values()), min=min(counts, default=0), median=percentile(counts, 0.5),
        p90=percentile(counts, 0.9), max=max(counts, default=0),
    )  # fmt: skip


def distribution(counts: Mapping[N, int], edges: Sequence[float]) -> Distribution:
    """edges: where bars begin, rising; the first stands for all below it, too."""
    found = [0] * len(edges)
    for value, often in counts.items():
        found[max(0, bisect_right(edges, value) - 1)] += often
    filled = [place for place, often in enumerate(found) if often] or [0]
    bars = [
        Bar(low=edges[place], below=edges[place + 1] if place + 1 < len(edges) else None, n=found[place])
        for place in range(filled[0], filled[-1] + 1)
    ]
    return Distribution(**spread(counts).model_dump(), bars=tuple(bars))
