"""Rollout: a reply that a model drew while it learned, and what it earned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from vcot.records.base import Record


class Rollout(Record):
    """One of several replies to the same question."""

    version: Literal[1] = 1
    step: int = Field(0, ge=0, description="optimiser steps before it was drawn")
    sample: str = Field("", description="id of the Sample that it answers")
    draw: int = Field(0, ge=0, description="0, 1, … of the replies to one question")
    text: str
    tokens: int = Field(0, ge=0, description="with the token that ends it")
    limit: int | None = Field(None, description="tokens that it might have had")
    ended: bool = Field(True, description="by itself, not cut off at the limit")
    measured: Mapping[str, float | None] = Field(
        default_factory=dict, description="0..1 by name: what a model had to be asked for, and rewards read"
    )
    rewards: Mapping[str, float | None] = Field(
        default_factory=dict, description="0..1 by name; null where its sample has nothing to judge by"
    )
    reward: float | None = Field(
        None, description="their weighed sum, null where nothing could be judged; of a GFlowNet log R, natural"
    )
    advantage: float = Field(
        0.0, description="how much better it is than the others of its group; of a GFlowNet by how many nats it is "
        "drawn too seldom, beside them",
    )  # fmt: skip
