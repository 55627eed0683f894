"""How the types of `vcot.grounding` stand in a record, on disk and in the JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, GetPydanticSchema, WithJsonSchema
from pydantic_core import core_schema

from vcot.grounding import Box, Mention, Trace

_BOX_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {"type": "number"},
    "minItems": 4,
    "maxItems": 4,
    "description": "x1, y1, x2, y2: float pixels of the original upright image, x right, y down, x1<x2, y1<y2",
}
_MENTION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "boxes": {"type": "array", "items": _BOX_SCHEMA}},
    "required": ["label", "boxes"],
    "additionalProperties": False,
}


def _mention_from(value: Any) -> Mention:
    if isinstance(value, Mention):
        return value
    if not (isinstance(value, dict) and set(value) == {"label", "boxes"} and isinstance(value["label"], str)):
        raise ValueError('a mention is {"label": "…", "boxes": [[x1, y1, x2, y2], …]}')
    return Mention(value["label"], tuple(Box(*map(float, box)) for box in value["boxes"]))


def _mention_to(mention: Mention) -> dict[str, Any]:
    return {"label": mention.label, "boxes": [box.as_list() for box in mention.boxes]}


def _trace_from(value: Any) -> Trace:
    if isinstance(value, Trace):
        return value
    if not isinstance(value, list | tuple):
        raise ValueError("a trace is a list of strings and mentions")
    return Trace(tuple(part if isinstance(part, str) else _mention_from(part) for part in value))


def _trace_to(trace: Trace) -> list[Any]:
    return [part if isinstance(part, str) else _mention_to(part) for part in trace.parts]


def _plain(read: Any, write: Any) -> GetPydanticSchema:
    return GetPydanticSchema(
        lambda _source, _handler: core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(write)
        )
    )


MentionField = Annotated[Mention, _plain(_mention_from, _mention_to), WithJsonSchema(_MENTION_SCHEMA)]
TraceField = Annotated[
    Trace,
    _plain(_trace_from, _trace_to),
    WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "string"}, _MENTION_SCHEMA]}}),
]


class Record(BaseModel):
    """A line of JSON that one stage writes and another reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    def line(self) -> bytes:
        """The record as one line of JSON, newline included; the same record gives the same bytes."""
        return self.model_dump_json().encode() + b"\n"
