"""What each stage says of itself in its completion markers: of a shard, for its own report; of the whole, for the
stages after it (vcot/records/shards.py writes and reads the markers)."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vcot.grounding import FrameSpec
from vcot.grounding.ways import LearnedWay
from vcot.records.base import Record
from vcot.storage.names import RelativeName

Counts = dict[str, dict[str, int]]
"""Dataset of the rows → name → rows."""


class NoMetadata(Record):
    """Of a stage that has nothing to say there."""


# --- convert -----------------------------------------------------------------------------------------------


class PartCounts(Record):
    """Rows of one part of a mix."""

    kept: int = 0
    train: int = Field(0, description="of kept: in the train split")
    not_drawn: int = Field(0, description="left out for the part's weight")
    rejected: dict[str, int] = Field({}, description="reason → rows")


class ConvertShardMetadata(Record):
    refused: Counts = Field({}, description="dataset → reason → rows")
    mix: dict[str, PartCounts] = Field({}, description="part of the mix → its rows; of a source alone: under no name")


class ConvertMetadata(Record):
    sources: tuple[str | None, ...] = Field((), description="what kind of dataset each part was")


# --- distill -----------------------------------------------------------------------------------------------


class Taught(Record):
    """Rows that were kept, and why."""

    taught: int = Field(0, description="rows that got reasoning")
    traces: int = Field(0, description="that they got, those of new questions too")
    had_reasoning: int = Field(0, description="rows that passed because somebody wrote reasoning before")
    without: int = Field(0, description="rows that passed without reasoning, because the teacher is none")
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


class DistillShardMetadata(Record):
    rows: Taught = Taught()
    funnel: dict[str, Passage] = Field({}, description="source → rows")
    refused: Counts = Field({}, description="source → reason → rows")
    parts: Counts = Field(
        {}, description="source → reason → parts (an alternative, an object, a new question) of rows that were kept"
    )
    flags: Counts = Field(
        {},
        description="source → flag → rows that were kept and are worth a look; answer-first: the first sentence of the "
        "reasoning states the answer",
    )
    trust: Checks = Checks()
    bill: dict[str, dict[str, Line]] = Field({}, description="source → purpose of the request")
    spent: dict[str, float] = Field({}, description="sums of all bills, and what else was counted")


class FrameFit(Record):
    """How well boxes that a teacher wrote in a pilot fit annotated ones."""

    declared: str = Field(description="the declared frame")
    declared_iou: float = Field(description="mean IoU with the annotated boxes, read as declared")
    best: str = Field(description="the frame, and order of numbers, that fits best")
    best_iou: float = Field(description="mean IoU in that one")
    rows: int = Field(description="rows of which boxes came back")
    boxes: int = Field(description="boxes that were compared")
    rows_requested: int = Field(description="rows whose boxes were requested")
    usd: float = Field(0, description="cost of the pilot in US dollars; not part of any source's costs")


class DistillMetadata(Record):
    teacher: str = Field(description="template/1, none, or the model's name")
    strategy: str | None = Field(None, description="how a model was asked")
    prompts: dict[str, int] = Field({}, description="purpose → version")
    frame_fit: FrameFit | None = Field(
        None, exclude_if=lambda fit: fit is None, description="left out where too few rows have annotated boxes"
    )


# --- tokenize ----------------------------------------------------------------------------------------------

Mode = Literal["multimodal", "text"]

Role = Literal["rationale"]
"""What has a turn of its own in the conversation, beside the user's and the assistant's."""


class Contract(Record):
    """What examples promise, and a base must fit.

    `frame` is the dict of a FrameSpec; `resized_pixels` carries the budget and the factor with it, and they
    must be those of the contract: its numbers mean nothing under another budget.
    """

    version: Literal[1] = 1
    mode: Mode
    frame: dict[str, Any] = Field(description="FrameSpec.to_dict(): the numbers in which texts write boxes")
    min_pixels: int = Field(gt=0, description="area of an image after resizing, at least")
    max_pixels: int = Field(gt=0, description="area of an image after resizing, at most")
    instruction: str | None = Field(None, description="stands below every question that is answered with boxes")
    ways: tuple[LearnedWay, ...] = Field(
        ("ground",), min_length=1, exclude_if=lambda ways: ways == ("ground",),
        description="in which questions are answered; left out where it is ground alone",
    )  # fmt: skip
    roles: tuple[Role, ...] = Field(
        (), exclude_if=lambda roles: not roles,
        description="rationale: it is a turn of its own, between question and answer; left out where nothing is",
    )  # fmt: skip
    max_length: int = Field(gt=0, description="tokens of an example, prompt and visual tokens included")
    template_sha256: str
    tokenizer_sha256: str
    patch_size: int = Field(gt=0, description="pixels; the side of a patch")
    merge_size: int = Field(gt=0, description="patches; merge_size² of them are one visual token")
    temporal_patch_size: int = Field(gt=0)
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    @model_validator(mode="after")
    def _frame_and_budget_agree(self) -> Self:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        spec = self.frame_spec
        bound = (spec.min_pixels, spec.max_pixels, spec.factor)
        if spec.name == "resized_pixels" and bound != (self.min_pixels, self.max_pixels, self.factor):
            raise ValueError(
                f"the frame resized_pixels was declared for min_pixels, max_pixels, factor = {bound}, "
                f"the images are made with {(self.min_pixels, self.max_pixels, self.factor)}"
            )
        return self

    @property
    def frame_spec(self) -> FrameSpec:
        return FrameSpec.from_dict(self.frame)

    @property
    def factor(self) -> int:
        """Pixels; the side of what one visual token sees, and what sides of a resized image are multiples of."""
        return self.patch_size * self.merge_size


class ShownRow(Record):
    """An example that the audit page may show."""

    row: int = Field(description="its number in the shard")
    rank: int = Field(description="hash of its id; the smallest are shown")
    kind: Literal["shrunk", "by-text", "train", "validation"]
    way: LearnedWay = "ground"
    size: tuple[int, int] | None = Field(description="width and height of the original; null: no image")
    kept: tuple[int, int] | None = Field(description="of the copy that is read")


class TokenizeShardMetadata(Record):
    splits: dict[str, int] = Field({}, description="split → examples")
    ways: dict[str, int] = Field({}, description="way of answering → examples")
    lengths: dict[int, int] = Field({}, description="tokens → examples")
    visual: dict[int, int] = Field({}, description="visual tokens → examples with an image")
    lost_alternatives: dict[str, int] = Field({}, description="reason → reasonings of rows that others kept")
    by_text: int = Field(0, description="examples of samples without an image")
    alone: int = Field(0, description="questions of samples without reasoning, to be learned from by rewards")
    learned: int = Field(0, description="tokens")
    shrunk: int = 0
    test_rows: int = 0
    shown: tuple[ShownRow, ...] = ()


class TokenizeMetadata(Record):
    contract: Contract
    base_uri: str
    base_sha256: str


# --- train -------------------------------------------------------------------------------------------------


class Losses(Record):
    steps: int
    first_loss: float | None
    last_loss: float | None
    best_eval_loss: float | None
    best_step: int | None


class TrainMetadata(Record):
    contract: Contract
    base_uri: str
    base_sha256: str
    tune: Literal["full", "lora", "qlora"]
    model: RelativeName = Field(description="folder of the adapter or model, below the stage's")
    files: dict[RelativeName, str] = Field(description="in that folder: name → sha256")
    losses: Losses
    trainable_parameters: int
    train_samples: int
    validation_samples: int
    ranks: int
    batches_per_step: int | None = Field(None, description="over all ranks")
    real_tokens: float | None = Field(None, description="share of the computed tokens that are no padding")
    last_step: int
    kept_step: int


# --- evaluate ----------------------------------------------------------------------------------------------


class EvaluateShardMetadata(Record):
    by_text: int = Field(0, description="questions without an image")
    seconds: float = Field(0.0, description="of generation")
    asked: int = Field(0, description="questions to which the replies were not taken from the cache")


class EvaluateMetadata(Record):
    subject: str = Field("", description="what was evaluated; empty in those that only ever name the base")
    base: str | None = Field(None, description="what it was tuned from, where it was")
    base_sha256: str | None = None
