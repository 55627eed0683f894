"""One row of distill: which rows need a teacher, what a teacher answers, and the Sample that comes of it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vcot.grounding import Trace
from vcot.records import Reason, Rejection, Sample
from vcot.teacher.request import Asker, Request

STAGE = "distill"


def needs_teacher(sample: Sample) -> bool:
    """Not where somebody wrote reasoning already, and not in the test split, which is only answered, never learned."""
    return not sample.reasoning and sample.origin.split != "test"


def lacks_places(sample: Sample) -> bool:
    """Where nobody wrote reasoning that points at something; not where nothing is there to point at, or no image."""
    written = bool(sample.reasoning) and (sample.evidence == () or any(trace.mentions for trace in sample.reasoning))
    return not written and sample.origin.split != "test" and sample.image is not None


@dataclass(frozen=True)
class Lesson:
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


Outcome = Lesson | Rejection | None
"""None: the row needs no teacher."""


class Teacher(Protocol):
    """Writes reasoning for the Samples that need it."""

    @property
    def name(self) -> str:
        """What `origin.teacher` says: "template/1", or the model's name."""

    def teach(self, samples: Iterable[Sample]) -> Generator[tuple[Sample, Outcome], None, None]:
        """Every sample with its outcome, in the order in which they came. Close it if you leave it early."""

    def counts(self) -> Mapping[str, int]:
        """What was spent since the start, for the report (requests, tokens); empty where nothing is."""


class Way(Protocol):
    """How a model is made to write the reasoning for one row: it makes Requests and reads their replies.

    The same row and the same replies give the same outcome. A way opens no connection and no file, and holds
    nothing of a row after its outcome.
    """

    @property
    def name(self) -> str:
        """What `origin.teacher` says."""

    async def outcome(self, sample: Sample, asker: Asker) -> Outcome:
        """Teaches a row; None if this way leaves rows of its kind alone. Errors of the asker that are no fault of
        the row pass through."""

    def foreseen(self, sample: Sample) -> Sequence[Request]:
        """What a row will ask if each reply is good at once, in order; for the estimate before anything is paid.
        Nothing for a row that is left alone, or refused at once.

        The first request is the very one that `outcome` will make. Where later ones hold words of earlier
        replies, something as long stands in their place.
        """

    def counts(self) -> Mapping[str, int]:
        """What it counted since the start, for the report."""


def refuse(sample: Sample, reason: Reason, detail: str) -> Rejection:
    return Rejection(id=sample.id, stage=STAGE, reason=reason, detail=detail)


def taught(sample: Sample, lesson: Lesson, teacher: str) -> list[Sample]:
    """The sample with its reasoning, who was asked for it, and which models answered; then the further pairs. Boxes of
    the evidence stay as people drew them: those that a teacher proposed stand in the reasoning alone."""
    origin = sample.origin.model_copy(update={"teacher": teacher, "answered_by": lesson.models})
    own = [sample.model_copy(update={"reasoning": lesson.traces, "origin": origin})] if lesson.traces else []
    return own + [pair.model_copy(update={"origin": origin}) for pair in lesson.pairs]
