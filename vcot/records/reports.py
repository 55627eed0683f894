"""``report.json`` of convert and of distill, from which their pages are made, so that no number exists twice."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcot.records.base import Record
from vcot.records.metadata import DistillMetadata, DistillShardMetadata, Line
from vcot.records.shards import RowCounts

Number = int | float


class Spread(Record):
    """Of values that were counted. Half of them are no larger than the median, nine of ten no larger than p90."""

    n: int = Field(description="how many values")
    min: Number
    median: Number
    p90: Number
    max: Number


class Bar(Record):
    """How many values lie in low ≤ value < below; the last bar holds all above, too (below: null)."""

    low: Number
    below: Number | None
    n: int


class Distribution(Spread):
    bars: tuple[Bar, ...] = Field(description="one beside the other, from the first to the last that is not empty")


class Rows(Record):
    """Of one dataset. All of `kept` and all of `rejected` are what came in."""

    kept: dict[str, int] = Field(description="split → rows")
    rejected: dict[str, int] = Field(description="reason → rows")

    @property
    def kept_rows(self) -> int:
        return sum(self.kept.values())

    @property
    def rejected_rows(self) -> int:
        return sum(self.rejected.values())

    @property
    def rows(self) -> int:
        return self.kept_rows + self.rejected_rows


class Measures(Record):
    """Of the kept rows of one dataset, as in the distributions of the whole."""

    boxes_per_row: Spread = Field(description="of rows whose evidence somebody annotated")
    box_area: Spread
    question_length: Spread
    answer_length: Spread


class Pair(Record):
    """The two images of a group of near-duplicates that differ most."""

    bits: int = Field(description="of 144, in which their perceptual hashes differ")
    images: int = Field(description="in their group")
    one: str = Field(description="URI")
    other: str = Field(description="URI")


class NearDuplicates(Record):
    """Images that nearly are the same form groups; all of a group are on one side of the split."""

    images_compared: int
    groups: int
    images_in_groups: int
    largest_group: int
    pairs: tuple[Pair, ...] = Field((), description="of some groups: those that differ most, and some by chance")


class Benchmark(Record):
    """A file of --exclude-benchmarks."""

    rows: int
    images: int
    images_found: int = Field(description="by their content, or by their path")
    images_shared: int = Field(description="that rows of the input would have learned from, or from nearly the same")
    rows_with_a_shared_image: int = Field(description="of the benchmark")
    rows_refused: int = Field(description="of the input, as held-out")


class Portion(Record):
    """One part of a mix. All of `kept`, `rejected` and `not_drawn` are its rows."""

    name: str = Field(description="what the ids of its rows begin with")
    source: str
    rows: int = Field(description="that the part has, of which its --limit leaves the first")
    not_drawn: int = Field(description="left out for its weight; neither kept nor rejected")
    kept: int
    rejected: dict[str, int] = Field(description="reason → rows")
    wanted: float | None = Field(description="share of all drawn rows that its weight asks for; null without weights")
    drawn: float = Field(description="share of all drawn rows that it has")
    learned: float = Field(description="its share of the kept rows of the train split")

    @property
    def rejected_rows(self) -> int:
        return sum(self.rejected.values())


class Conversion(Record):
    """`report.json` of convert. Images count once, however many rows use them; all else is counted by rows."""

    stage: Literal["convert"] = "convert"
    source: str
    row_counts: RowCounts
    shards: int
    datasets: dict[str, Rows]
    licences: dict[str, int] = Field(description="licence → rows kept")
    reasonings: dict[str, int] = Field(description="alternatives of reasoning that a row has → rows kept")
    boxes_per_row: dict[str, int] = Field(
        description='boxes of the evidence → rows kept; "not annotated" where nobody said where it is, "0" where it '
        'was annotated that there is none, "by text alone" where there is no image'
    )
    box_area: Distribution = Field(description="share of the image, 0..1, down to one of 1, 1.5, 2, 3, 5, 7 · 10ⁿ")
    question_length: Distribution = Field(description="characters; from 1,000 on rounded down to three digits")
    answer_length: Distribution = Field(description="characters of the answer that is learned; rounded likewise")
    by_dataset: dict[str, Measures]
    images: dict[str, int] = Field(description="split → images of which rows were kept")
    without_image: dict[str, int] = Field({}, description="split → rows kept that ask by text alone")
    pixels: Distribution = Field(description="of an image: width x height of the upright original")
    budget: int = Field(description="pixels that an image may have when a model sees it (--ingest-pixels)")
    ingested: bool = Field(description="images were copied, shrunk to the budget")
    pixels_kept: Distribution = Field(description="of what later stages read: the copy, where one was made")
    visual_tokens: Distribution = Field(
        description="of an image, an estimate: tokens of 28 x 28 pixels, after a processor of the Qwen2-VL family "
        "has resized what later stages read to at least 4 of them and at most the budget"
    )
    beyond_processor: int = Field(description="images more than 200 times as long as wide, which it refuses")
    near_duplicates: NearDuplicates | None = Field(description="null where nobody looked for them")
    benchmarks: dict[str, Benchmark] = Field(description="file → what it has in common with the input")
    mix: tuple[Portion, ...] = Field((), description="parts in the order of --mix; none where it was one source")


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
