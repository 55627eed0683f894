"""How the types of `vcot.grounding` stand in a record, on disk and in the JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, GetPydanticSchema, WithJsonSchema
from pydantic_core import core_schema

from vcot.grounding import Mention, Trace
from vcot.redaction import redacted
from vcot.uris import redact_credentials

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


def _plain(kind: type[Mention] | type[Trace]) -> GetPydanticSchema:
    """A field that holds a `kind` and stands on disk in the kind's own JSON form."""

    def read(value: Any) -> Mention | Trace:
        return value if isinstance(value, kind) else kind.from_json(value)

    schema = core_schema.no_info_plain_validator_function(
        read, serialization=core_schema.plain_serializer_function_ser_schema(kind.to_json)
    )
    return GetPydanticSchema(lambda _source, _handler: schema)


MentionField = Annotated[Mention, _plain(Mention), WithJsonSchema(_MENTION_SCHEMA)]
TraceField = Annotated[
    Trace, _plain(Trace), WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "string"}, _MENTION_SCHEMA]}})
]

PublicText = Annotated[str, AfterValidator(redact_credentials)]
"""Text that quotes a row or a reply in a report: credentials in its URIs are replaced."""


class Record(BaseModel):
    """A line of JSON that one stage writes and another reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    def line(self) -> bytes:
        """The record as one line of JSON, newline included, without secrets that this process knows; the same record
        gives the same bytes."""
        return redacted(self.model_dump_json()).encode() + b"\n"
