"""Reasoning that leads to an answer which the teacher is told.

    sample → numbered objects → sentences that speak of them by number → Trace

Annotated objects have their places from people. Others the teacher may add, with a box in the declared frame: those
must stand the checks of verification.py. In the end the answer must follow from what the reasoning points at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vcot.distill import reply
from vcot.distill.dialogue import Dialogue, Parts, PromptConfig, Proposed, Reasoned, Refused
from vcot.distill.objects import Object, objects_of, words_for
from vcot.distill.request import Asker, Request
from vcot.distill.row import Outcome, lacks_places, refuse
from vcot.distill.strategy import Strategy
from vcot.distill.verification import Verification
from vcot.grounding import Trace
from vcot.records import Completion, Reason, Sample


class AnswerAware(Strategy):
    """Args: how many different traces a row gets; whether the teacher may add objects that nobody annotated, and how
    many of them one trace may speak of."""

    purposes = ("reason", "locate", "look", "reanswer")

    def __init__(
        self, config: PromptConfig, verification: Verification, *, alternatives: int = 1, propose: bool = True,
        most: int = 8,
    ) -> None:  # fmt: skip
        super().__init__(config, verification)
        self._alternatives, self._propose, self._most = alternatives, propose, most

    @classmethod
    def of(cls, config: PromptConfig, verification: Verification, settings: Any) -> AnswerAware:
        return cls(
            config, verification, alternatives=settings.alternatives, propose=settings.propose, most=settings.objects
        )

    def estimate(self, sample: Sample) -> Sequence[Request]:
        """Where objects are annotated, without what a proposed one would cost: most such rows need none."""
        if not lacks_places(sample) or not self._can_be_asked(sample):
            return ()
        parts = self._parts(sample)
        wanted = [self._config.request("reason", parts, Reasoned, n) for n in range(self._alternatives)]
        return wanted + self._verification.estimate(sample, self._config) * self._alternatives

    async def outcome(self, sample: Sample, asker: Asker) -> Outcome:
        if not lacks_places(sample):
            return None
        if not self._can_be_asked(sample):
            why = "nobody annotated where the evidence is, and --no-propose adds nothing"
            return refuse(sample, Reason.NO_REASONING, why)
        return await self.alternatives(sample, asker, self._trace, self._alternatives)

    def _can_be_asked(self, sample: Sample) -> bool:
        return sample.evidence is not None or self._propose

    def _may_add(self, sample: Sample) -> bool:
        return self._propose and sample.evidence != ()

    def _parts(self, sample: Sample) -> Parts:
        frame = self._config.frame_of(sample.shown) if self._may_add(sample) else None
        return [self._config.whole(sample.shown), words_for(sample, objects_of(sample), frame)]

    async def _trace(self, dialogue: Dialogue, alternative: int) -> Trace:
        sample, objects = dialogue.sample, objects_of(dialogue.sample)
        names = {one.number: one.label for one in objects}

        def read(completion: Completion) -> reply.Said:
            said = reply.read(completion, sample, names, may_add=self._may_add(sample))
            said = reply.concluding(said, sample, names)
            # Each object costs a look or more. Sentences lean on all of them, so none can be left out.
            if len(used := _spoken_of(said)) > self._most:
                raise Refused(Reason.TOO_MANY_BOXES, f"it added {len(used)} objects; --objects is {self._most}")
            return said

        said = await dialogue.hear("reason", self._parts(sample), Reasoned, read, alternative=alternative)
        used = _spoken_of(said)
        found = await self._verification.judged([(one.label, one.box) for one in used], objects, dialogue)
        known: dict[int, Object | str] = {one.number: one for one in objects}
        for one, it in zip(used, found, strict=True):
            known[one.number] = self._verification.or_name(it, one.label, f"object {one.number}", dialogue)
        trace = reply.build(said.parts, known)
        if not trace.mentions and sample.evidence != ():
            raise Refused(Reason.TEACHER_NOTHING_LEFT, "none of the objects that it spoke of stood the checks")
        await self._verification.answered(said.answer, trace, dialogue)
        return trace


def _spoken_of(said: reply.Said) -> list[Proposed]:
    """The objects that it adds and does not only list."""
    numbers = set(reply.numbers_in(said.parts))
    return [one for one in said.proposed if one.number in numbers]
