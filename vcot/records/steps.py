"""What the steps of two-level distillation hand to each other: a line per row in `distill/<step>/<key>/shards`.

A step's `<key>` is made of its prompts, model and parameters and of the key of the step before it, so that another
prompt makes that step and the later ones again, beside the earlier results. Objects are numbered from 1, annotated ones
first, and keep their numbers through all steps.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcot.records.base import BoxField, Record, TraceField
from vcot.records.sample import Reason


class StepRecord(Record):
    version: Literal[1] = 1
    id: str = Field(min_length=1, description="of the Sample")


class Caption(StepRecord):
    """captions: the whole image in words."""

    image: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    caption: str


class SeenObject(Record):
    number: int = Field(ge=1)
    label: str
    box: BoxField
    score: float
    source: Literal["gold", "teacher"]


class LeftOut(Record):
    """A proposal that did not stand the checks."""

    label: str
    written: str = Field(description="its box as the teacher wrote it, in its frame")
    reason: Reason
    detail: str


class Objects(StepRecord):
    """objects: what matters in the image, and where it is."""

    objects: tuple[SeenObject, ...]
    left_out: tuple[LeftOut, ...] = ()


class CutOut(Record):
    """x in the image = crop_box.x1 + x in the cut-out / scale."""

    number: int = Field(ge=1)
    crop_box: BoxField
    scale: float = Field(ge=1)
    size: tuple[int, int] = Field(description="width and height in pixels, before a request makes it smaller")


class Crops(StepRecord):
    """crops: what is cut out to look at each object."""

    crops: tuple[CutOut, ...]


class Branch(Record):
    number: int = Field(ge=1)
    visible: bool
    caption: str


class Branches(StepRecord):
    """branches: each cut-out in words, by somebody who does not know the caption of the whole."""

    branches: tuple[Branch, ...]


class ClaimRecord(Record):
    text: str
    supported: bool
    reason: str


class Verdict(Record):
    number: int = Field(ge=1)
    verdict: Literal["keep", "modify", "reject"]
    claims: tuple[ClaimRecord, ...]
    caption: str | None = Field(description="of what is supported; null where the object is rejected")


class Verdicts(StepRecord):
    """verdicts: what of the words about each object its cut-out supports."""

    verdicts: tuple[Verdict, ...]
    decoys: int = Field(0, ge=0, description="objects that were judged at a cut-out of another place too")
    decoys_accepted: int = Field(0, ge=0)


class RelationRecord(Record):
    subject: int
    predicate: str
    object: int


class PairRecord(Record):
    """A question, its answer, and the reasoning as it was written, with objects by number."""

    question: str
    choices: tuple[str, ...]
    answer: str
    evidence: tuple[int, ...]
    rationale: str


class Synthesis(StepRecord):
    """synthesis: everything that stood, linked; the row's own question first, then new ones."""

    caption: str
    objects: tuple[SeenObject, ...]
    captions: dict[int, str] = Field(description="number of an object → its caption")
    relations: tuple[RelationRecord, ...]
    pairs: tuple[PairRecord, ...]
    answered_by: tuple[str, ...] = Field((), description="the models that answered, as their endpoint names them")


class JudgedPair(Record):
    number: int = Field(ge=0, description="0: the row's own question")
    pair: PairRecord
    accepted: bool
    gates: dict[str, bool] = Field(description="as far as they were asked, in order")
    reason: Reason | None
    detail: str
    reasoning: TraceField | None


class Gates(StepRecord):
    """gates: which pairs may be learned from, and which gate stopped the others."""

    accepted: bool
    pairs: tuple[JudgedPair, ...]
    answered_by: tuple[str, ...] = Field((), description="the models that wrote the pairs")
