"""Completion: what a teacher or a model said, and what it cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcot.records.base import Record


class Completion(Record):
    version: Literal[1] = 1
    text: str
    model: str
    finish_reason: str = Field(description="stop, length, content_filter, …")
    tokens_in: int = Field(
        0, ge=0, description="as counted by the endpoint, or the most it can be, where that is absurd"
    )
    tokens_cached: int = Field(0, ge=0, description="of tokens_in, those that the endpoint had seen just before")
    tokens_out: int = Field(0, ge=0, description="likewise")
    seconds: float = Field(0.0, ge=0)
    cost: float | None = Field(None, description="US dollars; None where no price is known")
