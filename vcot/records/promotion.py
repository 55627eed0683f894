"""Promotion: a model that passed its gate, and the evaluation that says so."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcot.records.base import Record


class Promotion(Record):
    """``pointers/<name>/0000000001.json``: written once; the highest number names the model that counts now."""

    version: Literal[1] = 1
    train_uri: str = Field(description="finished train stage with the model")
    train_sha256: str = Field(description="of that stage's mark, which names the model's files and their digests")
    base_uri: str
    base_sha256: str
    evaluation_uri: str = Field(description="finished evaluate stage; its report.json, replies and page lie there")
    evaluation_sha256: str = Field(description="of that stage's mark")
    report_sha256: str = Field(description="of its report.json")
    samples_uri: str = Field(description="finished stage with the Samples that were asked about")
    samples_sha256: str = Field(description="of that stage's mark")
    gates: tuple[str, ...] = Field(description="what was passed, in words with numbers")
    code: str
    promoted: str = Field(description="when, UTC, ISO 8601")
