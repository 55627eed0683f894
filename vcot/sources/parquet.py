"""Parquet files of rows, as the Hugging Face hub publishes datasets, row by row in constant memory.

A column of pictures holds `{"bytes": …, "path": …}`; vcot/sources/inside.py makes pictures of them. The name of such a
file says the split of its rows (`train-00000-of-00001-1028f2….parquet`), which therefore counts as their `split` where
no column of that name is there.

pyarrow is imported when a file is opened, not before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from vcot.errors import InputError
from vcot.storage import name as last_part

SUFFIX = ".parquet"
AT_ONCE = 16
"""Rows in memory; with their pictures, some megabytes."""
_BUFFER = 1 << 20
_SPLIT = re.compile(r"(?P<split>[a-z]+)-\d+-of-\d+\b.*")


def entries(stream: BinaryIO, uri: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers from 1: what the columns hold that the file has of these.

    Raises:
        InputError: it is no whole Parquet, or it has none of the columns.
    """
    number = 0
    named = {} if (split := split_of(uri)) is None else {"split": split}
    with _read(stream, uri) as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        if not there:
            raise InputError(
                f"{uri} has the columns {', '.join(file.schema_arrow.names)[:200]}; none of {', '.join(columns)}"
            )
        for batch in file.iter_batches(AT_ONCE, columns=there):
            for row in batch.to_pylist():
                number += 1
                yield number, named | row


def split_of(uri: str) -> str | None:
    """What the name of the file says: `train` of `…/train-00000-of-00002.parquet`."""
    found = _SPLIT.fullmatch(last_part(uri))
    return found["split"] if found else None


@contextmanager
def _read(stream: BinaryIO, uri: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Columns are read in pieces of the buffer. Otherwise whole groups of rows are fetched ahead, and with
        # pictures in them the whole file may come to be in memory.
        yield pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
    except (pa.ArrowException, OSError, EOFError) as error:
        if getattr(error, "errno", None) is not None:  # of the disk, not of pyarrow
            raise
        raise InputError(f"{uri} is not whole Parquet: {error}") from None
