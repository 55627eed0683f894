"""Reasoning that somebody wrote as mere text gets places: what its sentences name is pointed at, and stays as it is.

    "A red cup stands on the table. So it is breakfast."
      →  "A ", Mention("red cup", …), " stands on the ", Mention("table", …), ". So it is breakfast."

Annotated objects have their places from people; the others are proposed, and must stand the checks of verification.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vcot.answers import normalise
from vcot.distill.dialogue import Anchored, Dialogue, Fault, Parts, PromptConfig, Refused, parse_reply
from vcot.distill.objects import Object, Span, anchored, asked, find, in_frame, listed, objects_of, sentences
from vcot.distill.request import Asker, Request
from vcot.distill.row import Outcome, lacks_places, refuse
from vcot.distill.strategy import Strategy
from vcot.distill.verification import Verification, named
from vcot.grounding import Trace
from vcot.records import Completion, Reason, Sample


class Pointed(NamedTuple):
    """Words of the text, and what they name: an annotated object, or four numbers in the declared frame."""

    words: str
    span: Span
    to: Object | Sequence[float]

    @property
    def by_its_name(self) -> bool:
        """An annotated object under its own label: nobody need look."""
        return isinstance(self.to, Object) and normalise(self.words) == normalise(self.to.label)


class Rationalise(Strategy):
    """Args: whether the teacher may propose places that nobody annotated, and how many of one text are looked at."""

    purposes = ("anchor", "locate", "look", "reanswer")

    def __init__(
        self, config: PromptConfig, verification: Verification, *, propose: bool = True, most: int = 8
    ) -> None:
        super().__init__(config, verification)
        self._propose, self._most = propose, most

    @classmethod
    def of(cls, config: PromptConfig, verification: Verification, settings: Any) -> Rationalise:
        return cls(config, verification, propose=settings.propose, most=settings.objects)

    def estimate(self, sample: Sample) -> Sequence[Request]:
        """Where objects are annotated, without what a proposed place would cost."""
        if not lacks_places(sample) or self._hindrance(sample):
            return ()
        request = self._config.request
        wanted = [request("anchor", self._parts(sample, trace.text), Anchored) for trace in sample.reasoning]
        return wanted + self._verification.estimate(sample, self._config) * len(sample.reasoning)

    async def outcome(self, sample: Sample, asker: Asker) -> Outcome:
        if not lacks_places(sample):
            return None
        if hindrance := self._hindrance(sample):
            return refuse(sample, Reason.NO_REASONING, hindrance)
        return await self.alternatives(sample, asker, self._trace, len(sample.reasoning))

    def _hindrance(self, sample: Sample) -> str:
        if not any(trace.text.strip() for trace in sample.reasoning):
            return "nobody wrote reasoning for it; --strategy rationalise gives places to what was written"
        if not sample.evidence and not self._propose:
            return "nobody annotated where the evidence is, and --no-propose adds nothing"
        return ""

    def _parts(self, sample: Sample, text: str) -> Parts:
        numbered = (f"({n}) {' '.join(text[slice(*span)].split())}" for n, span in enumerate(sentences(text), 1))
        lines = [*asked(sample), f"Right answer: {sample.answers[0]}", "Sentences:", *numbered]
        lines += listed(sample, objects_of(sample))
        lines.append(in_frame(self._config.frame_of(sample.shown)) if self._propose else "Add no boxes.")
        return [self._config.whole(sample.shown), "\n".join(lines)]

    async def _trace(self, dialogue: Dialogue, alternative: int) -> Trace:
        sample, objects = dialogue.sample, objects_of(dialogue.sample)
        text = sample.reasoning[alternative].text
        pointed = await dialogue.hear(
            "anchor", self._parts(sample, text), Anchored,
            lambda completion: read(completion, text, objects, may_add=self._propose),
        )  # fmt: skip
        pointed = self._up_to_most(pointed, dialogue)
        proposed = [(one.words, one.to) for one in pointed if not isinstance(one.to, Object)]
        judged = iter(await self._verification.judged(proposed, objects, dialogue))
        places = []
        for number, one in enumerate(pointed, 1):
            found = await self._annotated(one, objects, dialogue) if isinstance(one.to, Object) else next(judged)
            kept = self._verification.or_name(found, one.words, f"anchor {number}", dialogue)
            if isinstance(kept, Object):
                places.append((one.span, kept.box))
        trace = anchored(text, places)
        if not trace.mentions:
            raise Refused(Reason.TEACHER_NOTHING_LEFT, "none of the places that it gave stood the checks")
        await self._verification.answered("", trace, dialogue, written=False)
        return trace

    def _up_to_most(self, pointed: Sequence[Pointed], dialogue: Dialogue) -> list[Pointed]:
        """The first so many of those that somebody must look at. The text stays as it was written: nothing in it leans
        on the places that are left out."""
        unsure = [one for one in pointed if not one.by_its_name]
        if left := len(unsure[self._most :]):
            said = f"it pointed at {len(unsure)} places that must be looked at; --objects is {self._most}: {left} more"
            dialogue.drop(f"anchors after {self._most}", Fault(Reason.TOO_MANY_BOXES, f"{said} are left out"))
        kept = {id(one) for one in unsure[: self._most]}
        return [one for one in pointed if one.by_its_name or id(one) in kept]

    async def _annotated(self, one: Pointed, objects: Sequence[Object], dialogue: Dialogue) -> Object | Fault:
        """An annotated object under the words of the text. Its place is from people; that these words mean it is not,
        unless they are its name: then the crop is looked at."""
        assert isinstance(one.to, Object)
        if fault := named(one.words, dialogue.sample):
            return fault
        if self._verification.crop_check and not one.by_its_name:
            under_its_words = Object(one.to.number, one.words, one.to.box)
            return await self._verification.seen(under_its_words, objects, dialogue) or one.to
        return one.to


def read(completion: Completion, text: str, objects: Sequence[Object], *, may_add: bool) -> list[Pointed]:
    """What a reply points at in the text. Raises Refused."""
    said = parse_reply(completion, Anchored)
    spans, known = sentences(text), {one.number: one for one in objects}
    pointed = []
    for anchor in said.anchors:
        if not 1 <= anchor.sentence <= len(spans):
            raise Refused(Reason.TEACHER_UNGROUNDED, f"it spoke of sentence {anchor.sentence}; there are {len(spans)}")
        span = find(text, spans[anchor.sentence - 1], anchor.words)
        words = f"{anchor.words[:80]!r}"
        if span is None:
            why = f"sentence {anchor.sentence} does not hold the words {words}"
            raise Refused(Reason.TEACHER_UNGROUNDED, why)
        to = anchor.box if anchor.object is None else known.get(anchor.object)
        if to is None:
            raise Refused(Reason.TEACHER_UNGROUNDED, f"{words} has no box and no number of the list")
        if not may_add and not isinstance(to, Object):
            raise Refused(Reason.TEACHER_UNGROUNDED, f"it gave {words} a box, and none may be added")
        pointed.append(Pointed(text[slice(*span)], span, to))
    if not pointed:
        raise Refused(Reason.TEACHER_UNGROUNDED, "it pointed at nothing")
    return pointed
