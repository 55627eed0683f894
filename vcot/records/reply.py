"""What was said (Completion), how good it was (Score), and a model that passed its gates (Promotion)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, FiniteFloat

from vcot.grounding import Box
from vcot.records.base import MentionField, Record


def rounded(logprobs: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """To 5 decimals: what stands on disk."""
    return None if logprobs is None else tuple(round(value, 5) + 0.0 for value in logprobs)  # 0, never -0


class Completion(Record):
    """What a teacher or a model said, and what it cost."""

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
    other_fields: tuple[str, ...] = Field(
        (),
        exclude_if=lambda names: not names,
        description="fields of the endpoint's message, other than content, that hold text: reasoning_content, "
        "tool_calls, …; left out where none does",
    )
    logprobs: Annotated[tuple[FiniteFloat, ...] | None, AfterValidator(rounded)] = Field(
        None, exclude_if=lambda logprobs: logprobs is None,
        description="of each generated token, the natural logarithm of its probability under the model's own "
        "distribution (temperature 1), 5 decimals; left out where not known",
    )  # fmt: skip


class Score(Record):
    """Numbers of one reply; sums and intervals are made from these in `vcot.evaluation`.

    Boxes are paired one to one, and where things of several names are the evidence, under one name (vcot.answers).
    `ious` has one entry per true box: the IoU of its partner among the first boxes of the reply, as many as are true;
    0 for a miss. For one true box that is the first box, as acc@0.5 is measured for referring expressions.
    """

    version: Literal[2] = 2
    sample: str = Field(description="id of the Sample")
    image: str | None = Field(None, description="sha256 of the Sample's image; null: asked by text alone")
    answer: Literal["right", "wrong", "unreadable", "absent"] = Field(
        description="unreadable: an answer is stated, but it names several, or none of the kind that is asked for "
        "(an option, yes or no, a number); absent: none is stated"
    )
    true_boxes: int | None = Field(description="None where the evidence was not annotated", ge=0)
    predicted_boxes: int = Field(ge=0)
    matched: int = Field(description="pairs at IoU >= 0.5 among all boxes of the reply", ge=0)
    misnamed: int = Field(0, description="pairs more, if labels were not looked at", ge=0)
    ious: tuple[float, ...] = ()
    well_formed: bool = Field(description="no fault in any tag or box")
    faults: tuple[str, ...] = ()
    mentions: tuple[MentionField, ...] | None = Field(
        None, exclude_if=lambda mentions: mentions is None,
        description="boxes of the reply that can be read, with their names, in its order; left out by earlier versions",
    )  # fmt: skip
    text: str

    @property
    def boxes(self) -> tuple[Box, ...]:
        """All of `mentions`."""
        return tuple(box for mention in self.mentions or () for box in mention.boxes)


class Promotion(Record):
    """``pointers/<name>/0000000001.json``: written once; the highest number names the model that counts now."""

    version: Literal[1] = 1
    train_uri: str = Field(description="finished train stage with the model")
    train_sha256: str = Field(description="of that stage's marker, which names the model's files and their digests")
    base_uri: str
    base_sha256: str
    evaluation_uri: str = Field(description="finished evaluate stage; its report.json, replies and page lie there")
    evaluation_sha256: str = Field(description="of that stage's marker")
    report_sha256: str = Field(description="of its report.json")
    samples_uri: str = Field(description="finished stage with the Samples that were asked about")
    samples_sha256: str = Field(description="of that stage's marker")
    gates: tuple[str, ...] = Field(description="what was passed, in words with numbers")
    code: str
    promoted: str = Field(description="when, UTC, ISO 8601")
