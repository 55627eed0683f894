"""The images of benchmark files, so that nobody trains on what will be measured with.

Read are the forms in which benchmarks come: VisCoT's chat rows and detection rows, RefCOCO's expressions, metadata
rows and our own Samples. An image is known by its digest (and what is nearly the same image counts as it) where it
can be read below the benchmark's images; where not, by its path: the set's folder and the file, or the number of a
COCO file, which is the same image as COCO_train2014_000000533220.jpg, 000000533220.jpg and in every dataset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from vcot.datasets.images import without_top
from vcot.datasets.inputs import Input, rows_of
from vcot.datasets.viscot import image_path
from vcot.errors import InputError
from vcot.storage import Store

_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.jpg")


def paths(store: Store, file: Input) -> Iterator[str]:
    """The path of each row's image, below the folder with the images of all sets.

    Raises:
        InputError: a row names no image.
    """
    for row in rows_of(store, file):
        named = _named(row.value)
        if named is None:
            said = row.fault.detail if row.fault else f"it has the fields {', '.join(row.value)[:120]}"
            raise InputError(f"--exclude-benchmarks {file.uri}: {row.id} names no image: {said}")
        path, dataset = named[0].partition("###")[0], named[1]
        yield image_path(path, dataset) if dataset or without_top(path) != path else path


def _named(row: Mapping[str, Any]) -> tuple[str, str] | None:
    said, dataset = row.get("img_path", row.get("image")), row.get("dataset")
    said = said[0] if isinstance(said, list) and said else said
    said = said.get("uri", said.get("file_name")) if isinstance(said, dict) else said
    if not isinstance(said, str) or not said:
        return None
    return said, dataset if isinstance(dataset, str) else ""


def keys(path: str) -> set[str]:
    """What a path or URI may be recognised by: its last parts with at least one folder, and the number of COCO."""
    parts = [part for part in path.split("/") if part]
    found = {"/".join(parts[start:]) for start in range(max(0, len(parts) - 4), len(parts) - 1)}
    if coco := _COCO.fullmatch(parts[-1] if parts else ""):
        found.add(f"coco:{int(coco[1])}")
    return found
