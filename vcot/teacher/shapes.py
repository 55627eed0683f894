"""What a reply must hold, per purpose: read by pydantic, and sent to the endpoint as a JSON schema.

Numbers of boxes are in the frame that the teacher was told; `checks.placed` makes a Box of them. A reply may leave out
what has a default here; the schema asks for everything, because strict endpoints accept no optional field.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


def _strict(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = False
    schema["required"] = list(schema.get("properties", {}))
    for field in schema.get("properties", {}).values():
        field.pop("default", None)


class Shape(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, json_schema_extra=_strict)


@cache
def schema_of(shape: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema that is sent; not to be changed."""
    return shape.model_json_schema()


class Proposed(Shape):
    """An object that nobody annotated, under the number by which the sentences speak of it."""

    number: int
    label: str
    box: list[float]


class Reasoned(Shape):
    reasoning: str
    objects: list[Proposed] = []
    answer: str


class Anchor(Shape):
    """Words of a sentence, and the listed object or the box that they name."""

    sentence: int
    words: str
    object: int | None = None
    box: list[float] | None = None


class Anchored(Shape):
    anchors: list[Anchor]


class Places(Shape):
    label: str
    boxes: list[list[float]]


class Located(Shape):
    objects: list[Places]


class Looked(Shape):
    present: bool


class Answered(Shape):
    answer: str


class Captioned(Shape):
    caption: str


class Seen(Shape):
    label: str
    box: list[float]
    score: float = 0.0


class Found(Shape):
    objects: list[Seen]


class Branched(Shape):
    visible: bool
    caption: str = ""


class Claim(Shape):
    text: str
    supported: bool
    reason: str = ""


class Judged(Shape):
    label_supported: bool
    claims: list[Claim]
    verdict: Literal["keep", "modify", "reject"]


class Relation(Shape):
    subject: int
    predicate: str
    object: int


class Pair(Shape):
    question: str
    choices: list[str] = []
    answer: str
    evidence: list[int]
    rationale: str


class Synthesised(Shape):
    relations: list[Relation] = []
    pairs: list[Pair]
