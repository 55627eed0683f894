"""All steps for one row, and what becomes of the row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from vcot.records import Reason, Rejection, Sample
from vcot.records.sample import IMAGE_REASONS
from vcot.records.steps import Gates, JudgedPair, StepRecord, Synthesis
from vcot.storage.images import ImageError
from vcot.teacher.funnel import reached
from vcot.teacher.request import Asker, Request
from vcot.teacher.row import Lesson, Outcome, lacks_places, refuse
from vcot.teacher.talk import Manner, Refused, Talk
from vcot.teacher.trust import Trust, negative_of
from vcot.teacher.two_level.compose import GatesStep, SynthesisStep, question_of
from vcot.teacher.two_level.describe import BranchesStep, Captions, CropsStep, ObjectsStep
from vcot.teacher.two_level.judge import VerdictsStep
from vcot.teacher.two_level.step import Before, Step


class TwoLevel:
    """Args: how many objects the teacher may propose for an image, and how many new questions an image gets."""

    def __init__(self, manner: Manner, trust: Trust, *, most: int = 8, pairs: int = 2) -> None:
        self.name = manner.model
        self.trust = trust
        self.tally: Counter[str] = Counter()
        self._manner = manner
        synthesis = SynthesisStep(manner, trust, pairs)
        self.steps: tuple[Step, ...] = (
            Captions(manner, trust), ObjectsStep(manner, trust, most), CropsStep(manner, trust),
            BranchesStep(manner, trust), VerdictsStep(manner, trust), synthesis,
            GatesStep(manner, trust, synthesis),
        )  # fmt: skip

    def counts(self) -> Mapping[str, int]:
        return self.tally

    def foreseen(self, sample: Sample) -> Sequence[Request]:
        return [request for step in self.steps for request in step.foreseen(sample)] if lacks_places(sample) else ()

    async def outcome(self, sample: Sample, asker: Asker) -> Outcome:
        if not lacks_places(sample):
            return None
        before = Before({})
        for step in self.steps:
            made = await self.one(step, sample, before, asker)
            if isinstance(made, Rejection):
                return made
            before = before.add(made)
        return self.lesson(sample, before)

    async def one(self, step: Step, sample: Sample, before: Before, asker: Asker) -> StepRecord | Rejection:
        """One step of one row; where the row falls at it, it is made again as often as the manner says."""
        said: tuple[str, ...] = ()
        for again in range(1 + self._manner.ask_again):
            talk = Talk(asker, sample, self._manner, self.tally, again=again)
            try:
                return await step.make(talk, before)
            except Refused as refused:
                fallen = talk.refusal(refused)
                said += fallen.said
            except ImageError as error:
                return refuse(sample, IMAGE_REASONS[error.reason], str(error))
        return fallen.model_copy(update={"detail": f"{step.name}: {fallen.detail}", "said": said})

    def lesson(self, sample: Sample, before: Before) -> Lesson | Rejection:
        """What the gates let through; the row is refused where that is nothing."""
        judged, made = before.get(Gates).pairs, before.get(Synthesis)
        fallen = [self._refusal(sample, one) for one in judged if not one.accepted]
        if not before.get(Gates).accepted:
            best = max(fallen, key=lambda one: reached(one.reason))
            return best.model_copy(update={"part": "", "said": tuple(text for one in fallen for text in one.said)})
        traces = {one.number: one.reasoning for one in judged if one.accepted and one.reasoning is not None}
        own = (traces[0],) if 0 in traces else ()
        pairs = []
        for one in judged:
            row = question_of(sample, one.number, one.pair, made) if one.number and one.number in traces else None
            if isinstance(row, Sample):
                pairs.append(row.model_copy(update={"reasoning": (traces[one.number],)}))
        models, flags = before.get(Gates).answered_by, self.trust.flags(own, sample)
        return Lesson(own, tuple(pairs), models=models, flags=flags, parts=tuple(fallen))

    def _refusal(self, sample: Sample, one: JudgedPair) -> Rejection:
        assert one.reason is not None  # it was not accepted
        negative = None
        if one.reason is Reason.TEACHER_WRONG_ANSWER and one.number == 0 and one.reasoning is not None:
            negative = negative_of(sample, one.reasoning, one.pair.answer)
        return refuse(sample, one.reason, f"gates: {one.detail}").model_copy(
            update={
                "part": f"pair {one.number}", "said": (one.pair.model_dump_json(),),
                "negative": negative if self.trust.wrong_answers == "negatives" else None,
            }
        )  # fmt: skip
