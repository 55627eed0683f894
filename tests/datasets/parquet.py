"""Parquet files as the Hugging Face hub publishes them, for tests of sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def write(path: Path, rows: list[dict[str, Any]], types: dict[str, Any], group: int = 100) -> str:
    """`types`: column → its type. `group`: rows of a row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=pa.schema([pa.field(name, kind) for name, kind in types.items()]))
    pq.write_table(table, path, row_group_size=group)
    return str(path)
