"""Score: one reply held against its Sample."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcot.records.base import Record


class Score(Record):
    """Numbers of one reply; sums and intervals are made from these in `vcot.evaluation`.

    `ious` has one entry per true box: the IoU of the predicted box paired with it one to one, 0 for a miss.
    """

    version: Literal[1] = 1
    sample: str = Field(description="id of the Sample")
    answer: Literal["right", "wrong", "absent"]
    true_boxes: int | None = Field(description="None where the evidence was not annotated", ge=0)
    predicted_boxes: int = Field(ge=0)
    matched: int = Field(description="pairs at IoU >= 0.5, one to one", ge=0)
    ious: tuple[float, ...] = ()
    well_formed: bool = Field(description="no fault in any tag or box")
    faults: tuple[str, ...] = ()
    text: str
