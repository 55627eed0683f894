"""A folder of images and rows for tests of sources."""

from __future__ import annotations

import json
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from vcot.datasets import DATASETS, ConversionContext, read, row_index, rows_of_shard
from vcot.datasets.base import ConversionOptions, Dataset, PreparedFacts
from vcot.datasets.images import DatasetImages
from vcot.datasets.inputs import find
from vcot.datasets.mixture import Part
from vcot.datasets.quality import QualityOptions
from vcot.datasets.workers import Workers
from vcot.records import Folder, Rejection, Sample
from vcot.storage import Store

ALONE = Workers(1, Path(), lambda: None)
"""No process beside this one."""


@cache
def _black(width: int, height: int) -> bytes:
    return zlib.compress(bytes((1 + (width + 7) // 8) * height), 1)


def png(width: int, height: int, comment: str = "") -> bytes:
    """A black image of any size in pixels, one bit each: small, and made faster than Pillow would.

    comment: makes it another file than others of its size.
    """
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    said = [(b"tEXt", b"Comment\0" + comment.encode())] if comment else []
    chunks = ((b"IHDR", header), *said, (b"IDAT", _black(width, height)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def informed(
    source: Dataset, desk: ConversionContext, folder: Folder, *, look: bool, readers: int = 1
) -> ConversionContext:
    """The desk of a run of one source that knows what all shards must."""
    (part,) = row_index.informed([Part(source, desk)], folder, look=look, workers=ALONE, readers=readers)
    return part.desk


class Given:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.images.mkdir(parents=True, exist_ok=True)

    def image(self, path: str, width: int = 100, height: int = 80, data: bytes | None = None) -> str:
        target = self.images / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png(width, height) if data is None else data)
        return path

    def rows(self, rows: list[Any], name: str = "rows.jsonl") -> str:
        target = self.folder / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        target.write_text(f"[{','.join(lines)}]" if name.endswith(".json") else "".join(f"{line}\n" for line in lines))
        return str(target)

    def desk(self, source: str, *uris: str, **options: Any) -> ConversionContext:
        """options: of the dataset, of every dataset, or fields of PreparedFacts."""

        def of(kind: Any, names: Any) -> Any:
            return kind(**{name: options.pop(name) for name in list(options) if name in names})

        store, dataset = Store(), DATASETS[source]
        context: ConversionContext = ConversionContext(
            dataset, store, find(store, uris), DatasetImages(store, str(self.images), str(self.folder / "made")),
            self.folder,
            of(dataset.options, dataset.options.model_fields),
            of(ConversionOptions, ConversionOptions.model_fields), of(QualityOptions, QualityOptions.model_fields),
            of(PreparedFacts, PreparedFacts.__dataclass_fields__),
        )  # fmt: skip
        assert not options, options
        return context

    def outcomes(self, source: str, *uris: str, readers: int = 1, **options: Any) -> list[Sample | Rejection]:
        """Of the rows of these files."""
        desk = self.desk(source, *uris, **options)
        return [result for _, result in read(rows_of_shard(desk), desk, readers=readers)]

    def outcome(self, source: str, row: Any, **options: Any) -> Sample | Rejection:
        """Of one row."""
        (result,) = self.outcomes(source, self.rows([row]), **options)
        return result

    def sample(self, source: str, row: Any, **options: Any) -> Sample:
        result = self.outcome(source, row, **options)
        assert isinstance(result, Sample), result
        return result

    def reason(self, source: str, row: Any, **options: Any) -> str:
        result = self.outcome(source, row, **options)
        assert isinstance(result, Rejection), result
        return result.reason.value
