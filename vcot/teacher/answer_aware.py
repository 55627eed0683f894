"""Reasoning that leads to an answer which the teacher is told.

    sample → numbered objects → sentences that speak of them by number → Trace

Annotated objects have their places from people. Others the teacher may add, with a box in the declared frame: those
must stand the checks of trust.py. In the end the answer must follow from what the reasoning points at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vcot.grounding import Trace
from vcot.records import Reason, Sample
from vcot.teacher import prompt, reply
from vcot.teacher.alternatives import lesson
from vcot.teacher.objects import Object, objects_of
from vcot.teacher.request import Asker, Picture, Request
from vcot.teacher.row import Outcome, lacks_places, refuse
from vcot.teacher.shapes import Proposed, Reasoned
from vcot.teacher.structured import Fault
from vcot.teacher.talk import Manner, Refused, Talk
from vcot.teacher.trust import Trust


class AnswerAware:
    """Args: how many different traces a row gets; whether the teacher may add objects that nobody annotated, and how
    many of them one trace may speak of."""

    def __init__(
        self, manner: Manner, trust: Trust, *, alternatives: int = 1, propose: bool = True, most: int = 8
    ) -> None:
        self.name = manner.model
        self._manner, self._trust = manner, trust
        self._alternatives, self._propose, self._most = alternatives, propose, most
        self._counts: Counter[str] = Counter()

    def counts(self) -> Mapping[str, int]:
        return self._counts

    def foreseen(self, sample: Sample) -> Sequence[Request]:
        """Where objects are annotated, without what a proposed one would cost: most such rows need none."""
        if not lacks_places(sample) or not self._can_be_asked(sample):
            return ()
        parts = self._parts(sample)
        asked = [self._manner.request("reason", parts, Reasoned, n) for n in range(self._alternatives)]
        return asked + self._trust.foreseen(sample, self._manner) * self._alternatives

    async def outcome(self, sample: Sample, asker: Asker) -> Outcome:
        if not lacks_places(sample):
            return None
        if not self._can_be_asked(sample):
            return refuse(
                sample, Reason.NO_REASONING, "nobody annotated where the evidence is, and --no-propose adds nothing"
            )
        return await lesson(sample, asker, self._manner, self._trust, self._counts, self._trace, self._alternatives)

    def _can_be_asked(self, sample: Sample) -> bool:
        return sample.evidence is not None or self._propose

    def _may_add(self, sample: Sample) -> bool:
        return self._propose and sample.evidence != ()

    def _parts(self, sample: Sample) -> list[str | Picture]:
        frame = self._manner.frame_of(sample.shown) if self._may_add(sample) else None
        return [Picture(sample.shown, self._manner.image_side), prompt.words_for(sample, objects_of(sample), frame)]

    async def _trace(self, talk: Talk, alternative: int) -> Trace:
        sample, objects = talk.sample, objects_of(talk.sample)
        names = {one.number: one.label for one in objects}
        said = await talk.hear(
            "reason", self._parts(sample), Reasoned,
            lambda completion: self._few(
                reply.concluding(
                    reply.read(completion, sample, names, may_add=self._may_add(sample)), sample, names
                )
            ),
            alternative=alternative,
        )  # fmt: skip
        known: dict[int, Object | str] = {one.number: one for one in objects}
        trace = reply.build(said.parts, known | await self._added(said, objects, talk))
        if not trace.mentions and sample.evidence != ():
            raise Refused(Fault(Reason.TEACHER_NOTHING_LEFT, "none of the objects that it spoke of stood the checks"))
        await self._trust.answered(said.answer, trace, talk)
        return trace

    def _few(self, said: reply.Said | Fault) -> reply.Said | Fault:
        """Each object costs a look or more. Sentences lean on all of them, so none can be left out: all are refused."""
        if not isinstance(said, Fault) and len(used := _spoken_of(said)) > self._most:
            return Fault(Reason.TOO_MANY_BOXES, f"it added {len(used)} objects; --objects is {self._most}")
        return said

    async def _added(self, said: reply.Said, objects: Sequence[Object], talk: Talk) -> dict[int, Object | str]:
        """The added objects that the reasoning speaks of, as they stood the checks; or their bare names."""
        used = _spoken_of(said)
        found = await self._trust.judged([(one.label, one.box) for one in used], objects, talk)
        return {
            one.number: self._trust.or_name(it, one.label, f"object {one.number}", talk)
            for one, it in zip(used, found, strict=True)
        }


def _spoken_of(said: reply.Said) -> list[Proposed]:
    """The objects that it adds and does not only list."""
    numbers = set(reply.numbers_in(said.parts))
    return [one for one in said.proposed if one.number in numbers]
