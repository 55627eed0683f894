"""What a reply must hold, per purpose: read by pydantic, and sent to the endpoint as a JSON schema.

Numbers of boxes are in the frame that the teacher was told; `checks.placed` makes a Box of them. A reply may leave out
what has a default here; the schema asks for everything, because strict endpoints accept no optional field.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator


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


def _numbers(box: Any) -> Any:
    """A box that came as a string: "[31, 83, 188, 292]", "(31,83),(188,292)"."""
    if isinstance(box, str) and re.fullmatch(r"[\s\d.,;()\[\]+-]*", box):
        return re.findall(r"[+-]?\d+(?:\.\d+)?", box)
    return box


Numbers = Annotated[list[float], BeforeValidator(_numbers)]


class Proposed(Shape):
    """An object that nobody annotated, under the number by which the sentences speak of it."""

    number: int
    label: str
    box: Numbers


class Sentence(Shape):
    """`objects`: the numbers in brackets of its text that stand for objects."""  # it is sent with each request

    text: str
    objects: list[int] = []


def _sentences(said: Any) -> Any:
    """Plain text, or a list of it, from those that keep to no schema."""
    if isinstance(said, str):
        said = [said]
    return [{"text": one} if isinstance(one, str) else one for one in said] if isinstance(said, list) else said


Sentences = Annotated[list[Sentence], BeforeValidator(_sentences)]


class Reasoned(Shape):
    objects: list[Proposed] = []
    sentences: Sentences
    answer: str

    @model_validator(mode="before")
    @classmethod
    def _as_version_1(cls, said: Any) -> Any:
        """Version 1 of the prompt asks for all sentences as one text, under another name."""
        if isinstance(said, dict) and "sentences" not in said and "reasoning" in said:
            return said | {"sentences": said["reasoning"]}
        return said


class Anchor(Shape):
    """Words of a sentence, and the listed object or the box that they name."""

    sentence: int
    words: str
    object: int | None = None
    box: Numbers | None = None


class Anchored(Shape):
    anchors: list[Anchor]


class Places(Shape):
    label: str
    boxes: list[Numbers]


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
    box: Numbers
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
    rationale: Sentences


class Synthesised(Shape):
    relations: list[Relation] = []
    pairs: list[Pair]
