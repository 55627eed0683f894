"""What distill reports: `report.json`, from which its page is made, so that no number exists twice."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcot.records.base import Record
from vcot.records.shards import RowCounts

Counts = dict[str, dict[str, int]]
"""Source (dataset of the rows) → name → rows."""


class Taught(Record):
    """Rows that were kept, and why."""

    taught: int = Field(0, description="rows that got reasoning")
    traces: int = Field(0, description="that they got, those of new questions too")
    had_reasoning: int = Field(0, description="rows that passed because somebody wrote reasoning before")
    test_passed: int = Field(0, description="rows that passed because they are of the test split")


class Passage(Record):
    """How many rows of a source came how far: each number is a part of the one before it."""

    rows: int = Field(0, description="that came in")
    passed: int = Field(0, description="of rows: had reasoning, or are of the test split; nobody was asked about them")
    asked: int = Field(0, description="of rows, less those that passed, and those that were refused before")
    parsed: int = Field(0, description="of asked: the reply could be read")
    boxes_accepted: int = Field(0, description="of parsed: no box was refused")
    answer_agreed: int = Field(0, description="of boxes_accepted: the answer is the row's and follows from its places")
    kept: int = Field(0, description="of answer_agreed: written to the shards")


class Checks(Record):
    """How often the checks that ask were made."""

    looks: int = Field(0, description="cut-outs of proposed boxes that were looked at")
    looks_refused: int = Field(0, description="of looks: the thing was not seen there")
    decoys: int = Field(0, description="looks at a cut-out that does not show the thing")
    decoys_accepted: int = Field(0, description="of decoys: it was seen all the same; the share is the decoy rate")
    second_proposals: int = 0
    detections: int = 0
    reanswers: int = Field(0, description="answers that were asked for once more, from the cut-outs alone")
    repairs: int = Field(0, description="replies of no use that were asked for once more")


class Line(Record):
    """What was asked and paid."""

    requests: int = Field(0, description="new ones that were answered")
    kept_replies_used: int = Field(0, description="replies that were in storage and cost nothing")
    tries_again: int = 0
    unpriced: int = Field(0, description="replies whose price nobody knows; US dollars leave them out")
    tokens_in: int = Field(0, description="of all replies, kept ones too")
    tokens_cached: int = Field(0, description="of tokens_in: at the price for what the endpoint has seen before")
    tokens_out: int = Field(0, description="of all replies, kept ones too")
    tokens_paid: int = Field(0, description="in and out, of new replies")
    usd: float = Field(0, description="what all replies did cost when they were paid for, kept ones too")
    usd_paid: float = Field(0, description="of new replies")
    usd_lost: float = Field(0, description="tries that failed and may be charged all the same")


class Cost(Line):
    """Of a source."""

    rows_kept: int
    usd_a_row_kept: float | None = Field(description="usd and usd_lost; null where a price is missing, or no row kept")


class Distillation(Record):
    """`report.json` of distill."""

    stage: Literal["distill"] = "distill"
    row_counts: RowCounts
    shards: int
    teacher: str = Field(description="template/1, or the model's name")
    strategy: str | None = Field(None, description="how a model was asked")
    prompts: dict[str, int] = Field(default_factory=dict, description="purpose → version")
    rows: Taught = Taught()
    funnel: dict[str, Passage] = Field(default_factory=dict, description="source → rows")
    refused: Counts = Field(default_factory=dict, description="source → reason → rows")
    parts: Counts = Field(
        default_factory=dict,
        description="source → reason → parts (an alternative, an object, a new question) of rows that were kept",
    )
    flags: Counts = Field(
        default_factory=dict,
        description="source → flag → rows that were kept and are worth a look; answer-first: the first sentence of the "
        "reasoning states the answer",
    )
    trust: Checks = Checks()
    bill: dict[str, dict[str, Line]] = Field(default_factory=dict, description="source → purpose of the request")
    costs: dict[str, Cost] = Field(default_factory=dict, description="source → the sum of its bill")
    spent: dict[str, float] = Field(default_factory=dict, description="sums of all bills, and what else was counted")
