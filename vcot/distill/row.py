"""One row of distill: which rows need a teacher, what a teacher answers, and the Sample that comes of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from vcot.grounding import Trace
from vcot.records import Reason, Rejection, Sample


def needs_teacher(sample: Sample) -> bool:
    """Not where somebody wrote reasoning already, and not in the test split, which is only answered, never learned."""
    return not sample.reasoning and sample.origin.split != "test"


def lacks_places(sample: Sample) -> bool:
    """Where nobody wrote reasoning that points at something; not where nothing is there to point at, or no image."""
    written = bool(sample.reasoning) and (sample.evidence == () or any(trace.mentions for trace in sample.reasoning))
    return not written and sample.origin.split != "test" and sample.image is not None


@dataclass(frozen=True)
class DistilledReasoning:
    """The reasoning for one Sample: one Trace, or several alternatives.

    Args:
        pairs: further questions about the same image, whole Samples.
        models: those that wrote it, as their endpoint names them.
        flags: what a reader should look at (see funnel.py).
        parts: what was refused of the row; each says which part it is.
    """

    traces: tuple[Trace, ...]
    pairs: tuple[Sample, ...] = ()
    models: tuple[str, ...] = field(default=(), compare=False)
    flags: tuple[str, ...] = field(default=(), compare=False)
    parts: tuple[Rejection, ...] = field(default=(), compare=False)


Outcome = DistilledReasoning | Rejection | None
"""None: the row needs no teacher."""


def refuse(sample: Sample, reason: Reason, detail: str) -> Rejection:
    return Rejection(id=sample.id, stage="distill", reason=reason, detail=detail)


def taught(sample: Sample, reasoning: DistilledReasoning, teacher: str) -> list[Sample]:
    """The sample with its reasoning, who was asked for it, and which models answered; then the further pairs. Boxes of
    the evidence stay as people drew them: those that a teacher proposed stand in the reasoning alone."""
    origin = sample.origin.model_copy(update={"teacher": teacher, "answered_by": reasoning.models})
    update = {"reasoning": reasoning.traces, "origin": origin}
    own = [sample.model_copy(update=update)] if reasoning.traces else []
    return own + [pair.model_copy(update={"origin": origin}) for pair in reasoning.pairs]


class Teacher(Protocol):
    """Writes reasoning for the Samples that need it."""

    @property
    def name(self) -> str:
        """What `origin.teacher` says: "template/1", or the model's name."""

    def teach(self, samples: Iterable[Sample]) -> Generator[tuple[Sample, Outcome], None, None]:
        """Every sample with its outcome, in the order in which they came. Close it if you leave it early."""

    def counts(self) -> Mapping[str, int]:
        """What was spent since the start, for the report (requests, tokens); empty where nothing is."""
