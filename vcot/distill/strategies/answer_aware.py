"""Reasoning that leads to an answer which the teacher is told.

    sample → numbered objects → sentences that speak of them by number → Trace

Annotated objects have their places from people. Others the teacher may add, with a box in the declared frame: those
must stand the checks of verification.py. In the end the answer must follow from what the reasoning points at.
"""

from __future__ import annotations

from collections.abc import Sequence

from vcot.distill import DistilledReasoning, Refused, reasoning
from vcot.distill.crops import Object, frame_line, object_lines, objects_of, question_lines
from vcot.distill.dialogue import Dialogue, Parts
from vcot.distill.reasoning import Proposed, Reasoned, Reasoning
from vcot.distill.request import Client, Request
from vcot.distill.strategies import ProposeOptions, Strategy, strategy
from vcot.grounding import Trace
from vcot.records import Completion, Reason, Rejection, Sample


@strategy(
    "answer-aware",
    "The model is told the answer and a numbered list of the evidence, and refers to objects by number.",
    ProposeOptions,
)
class AnswerAware(Strategy):
    purposes = ("reason", "locate", "look", "reanswer")

    def hindrance(self, sample: Sample) -> str:
        unknown = sample.evidence is None and not self.options.propose
        return "nobody annotated where the evidence is, and --no-propose adds nothing" if unknown else ""

    def requests(self, sample: Sample) -> Sequence[Request]:
        """Where objects are annotated, without what a proposed one would cost: most such rows need none."""
        parts, count = self._parts(sample), self.config.options.alternatives
        wanted = [self.config.request(Reasoned, parts, n) for n in range(count)]
        return wanted + self.verification.estimate(sample, self.config) * count

    async def teach(self, sample: Sample, client: Client) -> DistilledReasoning | Rejection:
        return await self.alternatives(sample, client, self._trace, self.config.options.alternatives)

    def _may_add(self, sample: Sample) -> bool:
        return self.options.propose and sample.evidence != ()

    def _parts(self, sample: Sample) -> Parts:
        objects = objects_of(sample)
        lines = [*question_lines(sample), f"Right answer: {sample.answers[0]}"]
        if len(sample.answers) > 1:
            lines.append("Also accepted: " + "; ".join(sample.answers[1:]))
        lines += object_lines(sample, objects)
        if self._may_add(sample):
            frame = frame_line(self.config.frame_of(sample.shown))
            lines.append(f"You may add objects, from [{len(objects) + 1}] on. {frame}")
        return [*self.config.all_of(sample), "\n".join(lines)]

    async def _trace(self, dialogue: Dialogue, alternative: int) -> Trace:
        sample, annotated = dialogue.sample, objects_of(dialogue.sample)
        names = {one.number: one.label for one in annotated}

        def read(completion: Completion) -> Reasoning:
            said = reasoning.read(completion, sample, names, may_add=self._may_add(sample))
            reasoning.check_conclusion(said, sample, names)
            # Each object costs a look or more. Sentences lean on all of them, so none can be left out.
            if len(used := _spoken_of(said)) > (most := self.options.objects):
                raise Refused(Reason.TOO_MANY_BOXES, f"it added {len(used)} objects; --objects is {most}")
            return said

        said = await dialogue.read(self.config.request(Reasoned, self._parts(sample), alternative), read)
        used = _spoken_of(said)
        found = await self.verification.check_boxes([(one.label, one.box) for one in used], annotated, dialogue)
        objects: dict[int, Object | str] = {one.number: one for one in annotated}
        for one, it in zip(used, found, strict=True):
            objects[one.number] = self.verification.or_name(it, one.label, f"object {one.number}", dialogue)
        trace = reasoning.build(said.parts, objects)
        if not trace.mentions and sample.evidence != ():
            raise Refused(Reason.TEACHER_NOTHING_LEFT, "none of the objects that it spoke of stood the checks")
        await self.verification.check_answer(said.answer, trace, dialogue)
        return trace


def _spoken_of(said: Reasoning) -> list[Proposed]:
    """The objects that it adds and does not only list."""
    numbers = set(reasoning.numbers_in(said.parts))
    return [one for one in said.proposed if one.number in numbers]
