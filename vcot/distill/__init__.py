"""Distillation: rows that lack reasoning get it, from code or from a model.

A teacher takes Samples and gives each of them reasoning (one Trace or more) or a rejection with its reason. Annotated
objects are put into the text by our code; what a model proposes beside them must stand the checks of verification.py.

    template.py                            a teacher that needs no model
    strategies/ · dialogue.py · prompts/   ways in which a model is asked: each makes Requests and reads replies, and
                                           knows no endpoint
    crops.py                               what it is shown and told: objects, crops, the words beside them
    reasoning.py · prose.py · conclusion.py   its sentences → a Trace; what they may not hold, what they must end in
    verification.py                        whether what it says is believed
    runner.py                              shards through a teacher, many rows at once; which rows came how far
    request.py · client.py · endpoint.py   requests and the cache of replies; each is paid for once
    costs.py · budget.py · batch.py        what tokens cost; the budget and what the rest would take; batches

What asks a model is slow to load, so nothing of it is imported here.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from vcot.grounding import Trace
from vcot.records import Reason, Rejection, Sample


def needs_teacher(sample: Sample) -> bool:
    """Not where somebody wrote reasoning already, and not in the test split, which is only answered, never learned."""
    return not sample.reasoning and sample.origin.split != "test"


def lacks_places(sample: Sample) -> bool:
    """Where nobody wrote reasoning that points at something; not where nothing is there to point at, or no image."""
    said = (*sample.reasoning, *(turn.said for turn in sample.turns if turn.learned))
    written = bool(sample.reasoning) and (sample.evidence == () or any(trace.mentions for trace in said))
    return not written and sample.origin.split != "test" and sample.image is not None


@dataclass(frozen=True)
class DistilledReasoning:
    """The reasoning for one Sample: one Trace, or several alternatives."""

    traces: tuple[Trace, ...]
    pairs: tuple[Sample, ...] = ()  # further questions about the same image
    models: tuple[str, ...] = field(default=(), compare=False)  # that wrote it, as their endpoint names them
    flags: tuple[str, ...] = field(default=(), compare=False)  # see vcot.reports.distillation.FLAGS
    parts: tuple[Rejection, ...] = field(default=(), compare=False)  # what was refused of the row


Outcome = DistilledReasoning | Rejection | None  # None: the row needs no teacher


class Fault(NamedTuple):
    """Why a reply is of no use: for the counts, and in words that the teacher can be told."""

    reason: Reason
    why: str


class Refused(Exception):
    """The row, or a part of it, cannot be used. `negative`: the row as the teacher would have it, where its wrong
    answers are asked for; `is_final`: a repair request would fail too."""

    def __init__(self, reason: Reason, why: str, negative: Sample | None = None, *, is_final: bool = False) -> None:
        super().__init__(why)
        self.fault, self.negative, self.is_final = Fault(reason, why), negative, is_final


def refuse(sample: Sample, reason: Reason, detail: str) -> Rejection:
    return Rejection(id=sample.id, stage="distill", reason=reason, detail=detail)


def with_reasoning(sample: Sample, reasoning: DistilledReasoning, teacher: str) -> list[Sample]:
    """The sample with its reasoning, who was asked for it, and which models answered; then the further pairs. Boxes of
    the evidence stay as people drew them: those that a teacher proposed stand in the reasoning alone."""
    origin = sample.origin.model_copy(update={"teacher": teacher, "answered_by": reasoning.models})
    update = {"reasoning": reasoning.traces, "origin": origin}
    own = [sample.model_copy(update=update)] if reasoning.traces else []
    return own + [pair.model_copy(update={"origin": origin}) for pair in reasoning.pairs]


class NoTeacher:
    """Rows stay as they are."""

    name = "none"

    def teach(self, samples: Iterable[Sample]) -> Generator[tuple[Sample, Outcome], None, None]:
        yield from ((sample, None) for sample in samples)

    def counts(self) -> Mapping[str, int]:
        return {}


class Teacher(Protocol):
    """Writes reasoning for the Samples that need it."""

    @property
    def name(self) -> str:
        """What `origin.teacher` says: "template/1", "none", or the model's name."""

    def teach(self, samples: Iterable[Sample]) -> Generator[tuple[Sample, Outcome], None, None]:
        """Every sample with its outcome, in the order in which they came. Close it if you leave it early."""

    def counts(self) -> Mapping[str, Any]:
        """What was spent since the start, for the report (requests, tokens); empty where nothing is."""
