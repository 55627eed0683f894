"""Example: what training learns from, in Parquet that `datasets` opens as it is.

    id · sample · alternative · split       which reasoning of which Sample
    ids [T] · labels [T]                    −100 where nothing is learned
    image · image_grid                      stored bytes and (frames, rows, columns) in patches; null in text mode
    shrunk                                  the image was made smaller so that the example fits

pyarrow is imported when a file is opened, not before.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vcot.errors import InputError

IGNORED = -100
"""The label of a token that is not learned (the index that torch's cross entropy leaves out)."""

GROUP_ROWS = 256
GROUP_BYTES = 4 << 20
"""A row group ends at either: at about forty images, or at text that took its writer as long as the group's own costs.
It is the unit of memory in writing, and of one read in random access."""
GROUPS_IN_MEMORY = 4


@dataclass(frozen=True)
class Example:
    """One tokenised answer to one question.

    ids, labels: [T], of one length. image: the bytes as stored (to be made upright by EXIF) or, where `shrunk`,
    a PNG of exactly the resized size. image_grid: what the processor makes of it, (1, rows, columns) in patches.
    Both are None in an example without an image. Raises ValueError where these disagree.
    """

    id: str
    sample: str
    alternative: int
    split: Literal["train", "validation"]
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    image: bytes | None = None
    image_grid: tuple[int, int, int] | None = None
    shrunk: bool = False

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.labels) or not self.ids:
            raise ValueError(f"{self.id}: {len(self.ids)} ids and {len(self.labels)} labels; one of each per token")
        if (self.image is None) != (self.image_grid is None):
            raise ValueError(f"{self.id}: an image and its grid come together or not at all")

    @property
    def learned(self) -> int:
        """How many tokens are trained on."""
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of an example without its ids and its image."""

    id: str
    sample: str
    alternative: int
    split: str
    tokens: int


class ExampleSink:
    """Writes Examples to one Parquet file (a `Sink` of vcot.records.shards).

    The same examples give the same bytes: Parquet holds no time, and row groups end at fixed bounds.
    """

    suffix = ".parquet"

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        # Dictionaries of token ids take longer to write than all the rest, and zstd packs as well without.
        # Images are packed already.
        packed = dict.fromkeys(("id", "sample", "split", "ids.list.element", "labels.list.element"), "zstd")
        self._writer = pq.ParquetWriter(
            path, _schema(), compression=packed, use_dictionary=False, write_statistics=False
        )
        self._pending: list[Example] = []
        self._bytes = 0

    def write(self, record: Example) -> None:
        self._pending.append(record)
        self._bytes += len(record.image or b"") + 8 * len(record.ids)
        if len(self._pending) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._pending:
            rows = [vars(e) | {"image": e.image and {"bytes": e.image, "path": None}} for e in self._pending]
            self._writer.write_table(pa.Table.from_pylist(rows, schema=_schema()))
        self._pending, self._bytes = [], 0


class Examples:
    """Examples of several Parquet files, by number: `len`, `[i]`, iteration.

    `rows` says which is which without an image being read. A read fetches one row group; the last few stay in
    memory. It can be sent to the workers of a data loader: files are opened where they are read.

    Raises InputError where a file is not Parquet with the columns of an Example.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = [Path(path) for path in paths]
        self._open: dict[int, Any] = {}
        self._cache: dict[int, Any] = {}  # row groups, as Arrow has them
        self.rows: list[Row] = []
        self._starts: list[int] = []  # of row groups, over all files
        self._groups: list[tuple[int, int]] = []  # file, row group in it
        for number, path in enumerate(self._paths):
            file = self._file(number)
            if missing := {field.name for field in _schema()} - set(file.schema_arrow.names):
                raise InputError(f"{path}: not a file of examples; it has no column {', '.join(sorted(missing))}")
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group, columns=["id", "sample", "alternative", "split", "ids"])
                self._starts.append(len(self.rows))
                self._groups.append((number, group))
                lengths = table["ids"].combine_chunks().value_lengths().to_pylist()
                columns = (table[name].to_pylist() for name in ("id", "sample", "alternative", "split"))
                self.rows += [Row(*values) for values in zip(*columns, lengths, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        group = bisect_right(self._starts, index) - 1
        (row,) = self._group(group).slice(index - self._starts[group], 1).to_pylist()
        image = row["image"] and row["image"]["bytes"]
        tokens = {name: row[name] and tuple(row[name]) for name in ("ids", "labels", "image_grid")}
        return Example(**row | tokens | {"image": image})

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}, "_cache": {}}

    def _file(self, number: int) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if number not in self._open:
            path = self._paths[number]
            try:
                self._open[number] = pq.ParquetFile(path, memory_map=True)
            except (pa.ArrowInvalid, OSError) as error:
                raise InputError(f"{path}: not a Parquet file: {error}") from None
        return self._open[number]

    def _group(self, group: int) -> Any:
        number, within = self._groups[group]
        table = self._cache.pop(group, None) or self._file(number).read_row_group(within)
        self._cache[group] = table  # the last one that was used is the last
        if len(self._cache) > GROUPS_IN_MEMORY:
            del self._cache[next(iter(self._cache))]
        return table


def _schema() -> Any:
    """The columns, and beside them what `datasets` calls features, so that it opens images as images."""
    import pyarrow as pa

    def value(kind: str) -> dict[str, Any]:
        return {"_type": "Value", "dtype": kind}

    text, number = (pa.string(), value("string")), (pa.int32(), value("int32"))
    tokens = (pa.list_(pa.int32()), {"_type": "List", "feature": value("int32")})
    image = (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"})
    columns = {
        "id": text, "sample": text, "alternative": number, "split": text, "ids": tokens, "labels": tokens,
        "image": image, "image_grid": tokens, "shrunk": (pa.bool_(), value("bool")),
    }  # fmt: skip
    features = {"info": {"features": {name: feature for name, (_, feature) in columns.items()}}}
    fields = [(name, kind) for name, (kind, _) in columns.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps(features)})
