"""Example: what training learns from, in Parquet that `datasets` opens as it is.

    id · sample · alternative · split       which reasoning of which Sample; −1: its question alone, to be learned from
                                            by rewards
    way                                     in which it is answered (vcot.grounding.ways)
    ids [T] · labels [T]                    −100 where nothing is learned
    images · image_grids                    stored bytes, and (frames, rows, columns) in patches, of each image in the
                                            order of their places in ids; empty in text mode
    shrunk                                  images were made smaller so that the example fits

The footer has besides, under the key `vcot.rows`, all columns of a Row in a few bytes each: a training is planned from
the footers alone, while the files are still in storage. Files of earlier versions, without it, without `way` (ground),
or with one `image` and its `image_grid` or null, are read.

pyarrow is imported when a file is opened, not before.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from vcot.errors import InputError
from vcot.grounding.ways import LearnedWay
from vcot.records.cache import ShardCache

IGNORED = -100
"""The label of a token that is not learned (the index that torch's cross entropy leaves out)."""

ALONE = -1
"""The alternative of a question without a reply."""

GROUP_ROWS = 256
GROUP_BYTES = 4 << 20
"""A row group ends at either: at about forty images, or at text that took its writer as long as the group's own costs.
It is the unit of memory in writing, and of one read in random access."""
GROUPS_IN_MEMORY = 4

INDEX = "vcot.rows"
"""Key in the footer: columns of Rows as an Arrow stream, in base64, as Parquet's values are text."""

_SINGLE, _SEVERAL = {"image", "image_grid"}, {"images", "image_grids"}
"""Columns of files that had room for one image, and what took their place."""


@dataclass(frozen=True)
class Example:
    """One tokenised answer to one question, or a question alone.

    ids, labels: [T], of one length. images: the bytes of each as stored (to be made upright by EXIF) or, where it was
    shrunk, a PNG of exactly the resized size. image_grids: what the processor makes of each, (1, rows, columns) in
    patches. Both are empty in an example without an image. Raises ValueError where these disagree.
    """

    id: str
    sample: str
    alternative: int
    split: Literal["train", "validation"]
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    images: tuple[bytes, ...] = ()
    image_grids: tuple[tuple[int, int, int], ...] = ()
    shrunk: bool = False
    way: LearnedWay = "ground"

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.labels) or not self.ids:
            raise ValueError(f"{self.id}: {len(self.ids)} ids and {len(self.labels)} labels; one of each per token")
        if len(self.images) != len(self.image_grids):
            raise ValueError(
                f"{self.id}: {len(self.images)} images and {len(self.image_grids)} grids; an image and its grid come "
                "together or not at all"
            )

    @property
    def alone(self) -> bool:
        """A question without a reply."""
        return self.alternative == ALONE

    @property
    def learned(self) -> int:
        """How many tokens are trained on."""
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of an example without its ids and its images. patches: of all its images. shard: number of its
    file."""

    id: str
    sample: str
    alternative: int
    split: str
    tokens: int
    patches: int = 0
    way: str = "ground"
    shard: int = 0


class ExampleSink:
    """Writes Examples to one Parquet file (a `Sink` of vcot.records.shards).

    The same examples give the same bytes: Parquet holds no time, and row groups end at fixed bounds.
    """

    suffix = ".parquet"

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        # Dictionaries of token ids take longer to write than all the rest, and zstd packs as well without.
        # Images are packed already.
        packed = dict.fromkeys(("id", "sample", "split", "way", "ids.list.element", "labels.list.element"), "zstd")
        self._writer = pq.ParquetWriter(
            path, _schema(), compression=packed, use_dictionary=False, write_statistics=False
        )
        self._pending: list[Example] = []
        self._bytes = 0
        self._rows: list[tuple[Any, ...]] = []

    def write(self, record: Example) -> None:
        self._pending.append(record)
        patches = sum(map(math.prod, record.image_grids))
        self._rows.append(
            (record.id, record.sample, record.alternative, record.split, len(record.ids), patches, record.way)
        )
        self._bytes += sum(map(len, record.images)) + 8 * len(record.ids)
        if len(self._pending) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        import pyarrow as pa

        self._flush()
        columns = list(zip(*self._rows, strict=True)) or [()] * len(_index_schema())
        index = _packed_index(pa.table(columns, schema=_index_schema()))
        self._writer.add_key_value_metadata({INDEX: base64.b64encode(index).decode()})
        self._writer.close()

    def _flush(self) -> None:
        import numpy as np
        import pyarrow as pa

        if self._pending:
            schema = self._writer.schema
            columns = {name: [getattr(one, name) for one in self._pending] for name in schema.names}
            columns["images"] = [[{"bytes": data, "path": None} for data in some] for some in columns["images"]]
            for name in ("ids", "labels"):  # one C array: Arrow asks each number of a list what it is
                ends = list(itertools.accumulate(map(len, columns[name]), initial=0))
                numbers = np.fromiter(itertools.chain.from_iterable(columns[name]), np.int32, count=ends[-1])
                columns[name] = pa.ListArray.from_arrays(ends, numbers)
            self._writer.write_table(pa.table(columns, schema=schema))
        self._pending, self._bytes = [], 0


class Examples:
    """Examples of several Parquet files, by number: `len`, `[i]`, iteration.

    `rows` says which is which without an image being read; `sizes` has the bytes of each file in storage. A read
    fetches one row group; the last few stay in memory. It can be sent to the workers of a data loader: files are
    opened where they are read, and for no longer.

    Args:
        source: files on this disk, or a cache of files in storage, which arrive when they are read.

    Raises InputError where a file is not Parquet with the columns of an Example.
    """

    def __init__(self, source: Iterable[Path] | ShardCache) -> None:
        self.cache = source if isinstance(source, ShardCache) else None
        self._paths = [] if isinstance(source, ShardCache) else list(source)
        self._groups: dict[tuple[int, int], Any] = {}  # (file, first row) → table
        self.sizes: list[int] = self.cache.sizes if self.cache else []
        self.rows: list[Row] = []
        self._starts: list[int] = []  # of files
        indices = self.cache.indices(read_index) if self.cache else map(_index_of, self._paths)
        for number, index in enumerate(indices):
            self._starts.append(len(self.rows))
            columns = _unpacked_index(index).to_pydict().values()
            self.rows += itertools.starmap(partial(Row, shard=number), zip(*columns, strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        number = self.rows[index].shard
        row = self._read(number, index - self._starts[number])
        grids = _several(row.pop("image_grid", None) or row.get("image_grids"))
        images = [row.pop("image")] if row.get("image") else row.get("images") or ()
        row.pop("image", None)
        tokens = {name: tuple(row[name]) for name in ("ids", "labels")}
        return Example(**row | tokens | {"images": tuple(one["bytes"] for one in images), "image_grids": grids})

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_groups": {}}

    def _read(self, number: int, row: int) -> dict[str, Any]:
        for key, table in self._groups.items():
            if key[0] == number and key[1] <= row < key[1] + len(table):
                break
        else:
            open_file = self.cache.open if self.cache else lambda number, opener: opener(self._paths[number])
            with open_file(number, _parquet) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                ends = list(itertools.accumulate(sizes))
                group = bisect_right(ends, row)
                key, table = (number, ends[group] - sizes[group]), file.read_row_group(group)
        self._groups[key] = self._groups.pop(key, table)  # the last one that was used is the last
        if len(self._groups) > GROUPS_IN_MEMORY:
            del self._groups[next(iter(self._groups))]
        found: dict[str, Any] = table.slice(row - key[1], 1).to_pylist()[0]
        return found


# --- the index in the footer -------------------------------------------------------------------------


def read_index(source: BinaryIO, name: str) -> bytes:
    """The columns of a file's Rows, packed, from its footer; of an older file, from its columns.

    Reads only these ranges of `source`, which may lie in storage. Raises InputError: not a file of examples.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{name}: not a Parquet file: {error}") from None
    names = set(file.schema_arrow.names)
    grids = "image_grid" if names >= _SINGLE else "image_grids"
    if missing := {field.name for field in _schema()} - {"way"} - (names | _SEVERAL if names >= _SINGLE else names):
        raise InputError(f"{name}: not a file of examples; it has no column {', '.join(sorted(missing))}")
    if written := (file.metadata.metadata or {}).get(INDEX.encode()):
        packed = base64.b64decode(written)
        if (told := _unpacked_index(packed).num_rows) != file.metadata.num_rows:
            raise InputError(f"{name}: its footer tells of {told} examples, and it has {file.metadata.num_rows}")
        return packed
    rows = []
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["id", "sample", "alternative", "split", "ids", grids])
        lengths = table["ids"].combine_chunks().value_lengths().to_pylist()
        patches = [sum(map(math.prod, _several(value))) for value in table[grids].to_pylist()]
        columns = [table[name].to_pylist() for name in ("id", "sample", "alternative", "split")]
        rows += [
            dict(zip(_index_schema().names, (*row, "ground"), strict=True))
            for row in zip(*columns, lengths, patches, strict=True)
        ]
    return _packed_index(pa.Table.from_pylist(rows, schema=_index_schema()))


def _index_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return read_index(file, str(path))
    except OSError as error:
        raise InputError(f"{path}: not a Parquet file: {error}") from None


def _index_schema() -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.int32()
    return pa.schema({"id": text, "sample": text, "alternative": number, "split": text, "tokens": number,
                      "patches": number, "way": text})  # fmt: skip


def _packed_index(table: Any) -> bytes:
    import pyarrow as pa

    buffer = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(buffer, table.schema, options=options) as writer:
        writer.write_table(table)
    packed: bytes = buffer.getvalue().to_pybytes()
    return packed


def _unpacked_index(packed: bytes) -> Any:
    import pyarrow as pa

    return pa.ipc.open_stream(packed).read_all()


def _parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, memory_map=True)


def _several(grids: Sequence[Any] | None) -> tuple[tuple[int, int, int], ...]:
    """The grids of an example's images, as files of either kind have them: several, one, or null."""
    if not grids:
        return ()
    return tuple(map(tuple, [grids] if isinstance(grids[0], int) else grids))


def _schema() -> Any:
    """The columns, and beside them what `datasets` calls features, so that it opens images as images."""
    import pyarrow as pa

    def value(kind: str) -> dict[str, Any]:
        return {"_type": "Value", "dtype": kind}

    text, number = (pa.string(), value("string")), (pa.int32(), value("int32"))
    tokens = (pa.list_(pa.int32()), {"_type": "List", "feature": value("int32")})
    image = (pa.struct([("bytes", pa.binary()), ("path", pa.string())]), {"_type": "Image"})
    images, grids = ((pa.list_(kind), {"_type": "List", "feature": of}) for kind, of in (image, tokens))
    columns = {
        "id": text, "sample": text, "alternative": number, "split": text, "ids": tokens, "labels": tokens,
        "images": images, "image_grids": grids, "shrunk": (pa.bool_(), value("bool")), "way": text,
    }  # fmt: skip
    features = {"info": {"features": {name: feature for name, (_, feature) in columns.items()}}}
    fields = [(name, kind) for name, (kind, _) in columns.items()]
    return pa.schema(fields, metadata={"huggingface": json.dumps(features)})
