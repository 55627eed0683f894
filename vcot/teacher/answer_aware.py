"""Reasoning that leads to an answer which the teacher is told, about objects that are annotated.

sample → numbered objects → request → Trace, or asked again with a stricter word
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcot.grounding import Trace
from vcot.records import Reason, Rejection, Sample
from vcot.records.sample import IMAGE_REASONS
from vcot.storage.images import ImageError
from vcot.teacher import prompt, reply
from vcot.teacher.objects import Object, objects_of
from vcot.teacher.reply import Fault
from vcot.teacher.request import Asker, Picture, Prompt, Request
from vcot.teacher.row import Lesson, Outcome, needs_teacher, refuse

PROMPT = Prompt("answer-aware", prompt.VERSION, prompt.RULES)


@dataclass(frozen=True)
class Options:
    """How the model is asked; all of it shapes the request.

    Args:
        temperature: None leaves it to the endpoint (some models accept no other).
        reply_tokens: most tokens of one reply.
        image_side: longest side, in pixels, of the picture that is sent.
        attempts: how often one row is asked before it is given up.
        alternatives: how many different traces a row gets.
    """

    model: str
    temperature: float | None = None
    reply_tokens: int = 1024
    image_side: int = 1024
    attempts: int = 3
    alternatives: int = 1


class AnswerAware:
    def __init__(self, options: Options) -> None:
        self.name = options.model
        self._options = options
        self._asked_again = 0

    def counts(self) -> Mapping[str, int]:
        return {"asked_again": self._asked_again}

    def foreseen(self, sample: Sample) -> Sequence[Request]:
        if sample.evidence is None or not needs_teacher(sample):
            return ()
        words = prompt.words_for(sample, objects_of(sample))
        return [self._request(sample, words, alternative) for alternative in range(self._options.alternatives)]

    async def outcome(self, sample: Sample, asker: Asker) -> Outcome:
        if not needs_teacher(sample):
            return None
        if sample.evidence is None:
            return refuse(
                sample, Reason.NO_REASONING, "nobody annotated where the evidence is, so there is nothing to number"
            )
        objects = objects_of(sample)
        traces: list[Trace] = []
        fault: Fault | None = None
        try:
            for alternative in range(self._options.alternatives):
                found = await self._trace(sample, objects, alternative, asker)
                if isinstance(found, Trace):
                    traces.append(found)
                else:
                    fault = found
        except ImageError as error:
            return refuse(sample, IMAGE_REASONS[error.reason], str(error))
        if traces:
            return Lesson(tuple(dict.fromkeys(traces)))
        assert fault is not None
        return refuse(sample, fault.reason, fault.why)

    async def _trace(self, sample: Sample, objects: Sequence[Object], alternative: int, asker: Asker) -> Trace | Fault:
        """Asks until a reply can be read; each time it could not, the teacher is told why."""
        faults: list[Fault] = []
        while len(faults) < self._options.attempts:
            words = prompt.words_for(sample, objects, [fault.why for fault in faults])
            completion = await asker.ask(self._request(sample, words, alternative), source=sample.origin.dataset)
            found = reply.read(completion, sample, objects)
            if isinstance(found, Trace):
                return found
            faults.append(found)
            self._asked_again += len(faults) < self._options.attempts
        return Fault(faults[-1].reason, f"after {len(faults)} attempts: {faults[-1].why}")

    def _request(self, sample: Sample, words: str, alternative: int) -> Request:
        options = self._options
        return Request(
            purpose="reason", prompt=PROMPT, parts=(Picture(sample.image, options.image_side), words),
            model=options.model, temperature=options.temperature, reply_tokens=options.reply_tokens,
            alternative=alternative,
        )  # fmt: skip
