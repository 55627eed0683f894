"""What distill reports: `report.json`, from which its page is made, so that no number exists twice."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcot.records.metadata import DistillMetadata, DistillShardMetadata, Line
from vcot.records.shards import RowCounts


class Cost(Line):
    """Of a source."""

    rows_kept: int
    usd_a_row_kept: float | None = Field(description="usd and usd_lost; null where a price is missing, or no row kept")


class Distillation(DistillMetadata, DistillShardMetadata):
    """`report.json` of distill."""

    stage: Literal["distill"] = "distill"
    row_counts: RowCounts
    shards: int
    costs: dict[str, Cost] = Field({}, description="source → the sum of its bill")
