"""The records on disk as JSON Schema: ``python -m tools.schemas`` writes schemas/*.json (a test holds them equal)."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from pydantic import TypeAdapter

import vcot.records
from vcot.records.base import Record
from vcot.records.shards import STAGES

FOLDER = Path(__file__).parents[1] / "schemas"
REPORTS = ("Conversion", "Distillation")  # report.json of convert and distill


def schemas() -> dict[str, str]:
    """File name → its text, for each record that has a version, and for the reports."""
    for module in pkgutil.iter_modules(vcot.records.__path__):
        importlib.import_module(f"vcot.records.{module.name}")
    plain = {
        re.sub("(?<=[a-z])(?=[A-Z])", "_", record.__name__).lower() + ".json": _text(record)
        for record in _below(Record)
        if record.__module__.startswith("vcot.records.")
        and ("version" in record.model_fields or record.__name__ in REPORTS)
        and not any(record.__pydantic_generic_metadata__.values())
    }
    # Markers hold what their stage says of itself, so that each stage has a form of its own.
    return plain | {
        "shard_marker.json": _text(*(kind.shard_marker for kind in STAGES)),
        "stage_marker.json": _text(*(kind.stage_marker for kind in STAGES)),
    }


def _below(kind: type[Record]) -> Iterator[type[Record]]:
    for record in kind.__subclasses__():
        yield record
        yield from _below(record)


def _text(*records: type[Record]) -> str:
    union: Any = Union[records]  # noqa: UP007
    schema = TypeAdapter[Any](union).json_schema(mode="serialization")
    named = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
    return json.dumps(named, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    wanted = schemas()
    for path in FOLDER.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
