"""What a run reads: one source, or several (mix.py), each with its own files, pictures, options and rows.

In a run of several, ids begin with the name of their part, `coco/instances.json:7:count:cup`, and so do the ids that
rows give themselves: files of the same name, or the same file in two parts, stay apart.

Which rows of a part with a weight are in the run is drawn for each row by the seed and its id alone, so that every
process draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from vcot.errors import SettingsError
from vcot.sources.base import ConversionContext, Dataset, uniform
from vcot.sources.reading import rows_in_blocks, rows_of_shard
from vcot.sources.row import Row

BLOCK = 256


@dataclass(frozen=True)
class Part:
    """
    limit: so many rows from the first on count. weight: of its rows in the result, beside those of the other parts;
    None where all rows are wanted. share: of its rows, how many are drawn.
    """

    source: Dataset
    desk: ConversionContext
    limit: int | None = None
    weight: Fraction | None = None
    share: float = 1.0

    @property
    def name(self) -> str:
        """What its ids begin with; empty where it is the only one."""
        return self.desk.part

    def file(self, stem: str, suffix: str) -> str:
        """`archive.json` of the only part, or one of each: `archive.coco.json`."""
        return f"{stem}.{self.name}{suffix}" if self.name else f"{stem}{suffix}"

    def rows(self, index: int = 0, shards: int = 1, left_out: Callable[[], None] = lambda: None) -> Iterator[Row]:
        """The drawn ones of one shard; `left_out` is called for every other."""
        for row in self.all_rows(index, shards):
            if self._drawn(row):
                yield row
            else:
                left_out()

    def numbered(
        self, index: int, shards: int, wanted: Callable[[int], bool] = lambda _: True
    ) -> Iterator[tuple[int, Row]]:
        """The drawn ones of one share of all rows, dealt in blocks; each with its place among all, drawn or not."""
        for place, found in rows_in_blocks(self.desk, index, shards, self.limit, BLOCK, wanted):
            if self._drawn(row := self._named(found)):
                yield place, row

    def _drawn(self, row: Row) -> bool:
        return self.share >= 1 or uniform(self.desk.options.seed, row.id) < self.share

    def all_rows(self, index: int = 0, shards: int = 1) -> Iterator[Row]:
        return map(self._named, rows_of_shard(self.desk, index, shards, self.limit))

    def _named(self, row: Row) -> Row:
        return Row(self.desk.called(row.id), row.value, row.fault) if self.name else row

    @contextmanager
    def named(self) -> Iterator[None]:
        """Of settings that turn out not to fit the rows, it is said in which part."""
        try:
            yield
        except SettingsError as error:
            raise SettingsError(f"part {self.name}: {error}" if self.name else str(error)) from None

    def knowing(self, **facts: Any) -> Part:
        """The same, with a context that has these fields."""
        return replace(self, desk=replace(self.desk, **facts))


def shares(rows: Mapping[str, int], weights: Mapping[str, Fraction]) -> dict[str, float]:
    """Part → how much of it is in the largest mix with these proportions in which no row is twice.

    rows: how many each has, kept or not: what becomes of a row is not known before it is read.
    """
    most = min(rows[name] / weight for name, weight in weights.items())
    return {name: float(most * weight / rows[name]) for name, weight in weights.items()}
