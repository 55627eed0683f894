"""Score: one reply held against its Sample."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcot.records.base import Record


class Score(Record):
    """Numbers of one reply; sums and intervals are made from these in `vcot.evaluation`.

    Boxes are paired one to one, and where things of several names are the evidence, under one name (vcot.answers).
    `ious` has one entry per true box: the IoU of its partner among the first boxes of the reply, as many as are true;
    0 for a miss. For one true box that is the first box, as acc@0.5 is measured for referring expressions.
    """

    version: Literal[2] = 2
    sample: str = Field(description="id of the Sample")
    image: str | None = Field(None, description="sha256 of the Sample's image; null: asked by text alone")
    answer: Literal["right", "wrong", "absent"]
    true_boxes: int | None = Field(description="None where the evidence was not annotated", ge=0)
    predicted_boxes: int = Field(ge=0)
    matched: int = Field(description="pairs at IoU >= 0.5 among all boxes of the reply", ge=0)
    misnamed: int = Field(0, description="pairs more, if labels were not looked at", ge=0)
    ious: tuple[float, ...] = ()
    well_formed: bool = Field(description="no fault in any tag or box")
    faults: tuple[str, ...] = ()
    text: str
