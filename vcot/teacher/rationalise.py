"""Reasoning that somebody wrote as mere text gets places: what its sentences name is pointed at, and stays as it is.

    "A red cup stands on the table. So it is breakfast."
      →  "A ", Mention("red cup", …), " stands on the ", Mention("table", …), ". So it is breakfast."

The words of the text never change. Annotated objects have their places from people; the others are proposed, and must
stand the checks of trust.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vcot.answers import normalise
from vcot.grounding import Box, Trace
from vcot.records import Completion, Reason, Sample
from vcot.teacher import checks, prompt, structured
from vcot.teacher.alternatives import lesson
from vcot.teacher.anchors import Span, anchored, find, sentences
from vcot.teacher.objects import Object, objects_of
from vcot.teacher.request import Asker, Picture, Request
from vcot.teacher.row import Outcome, lacks_places, refuse
from vcot.teacher.shapes import Anchored
from vcot.teacher.structured import Fault
from vcot.teacher.talk import Manner, Refused, Talk
from vcot.teacher.trust import Trust


class Pointed(NamedTuple):
    """Words of the text, and what they name: an annotated object, or four numbers in the declared frame."""

    words: str
    span: Span
    to: Object | Sequence[float]


class Rationalise:
    """Args: whether the teacher may propose places that nobody annotated, and how many of one text are looked at."""

    def __init__(self, manner: Manner, trust: Trust, *, propose: bool = True, most: int = 8) -> None:
        self.name = manner.model
        self._manner, self._trust, self._propose, self._most = manner, trust, propose, most
        self._counts: Counter[str] = Counter()

    def counts(self) -> Mapping[str, int]:
        return self._counts

    def foreseen(self, sample: Sample) -> Sequence[Request]:
        """Where objects are annotated, without what a proposed place would cost."""
        if not lacks_places(sample) or self._hindrance(sample):
            return ()
        request = self._manner.request
        asked = [request("anchor", self._parts(sample, trace.text), Anchored) for trace in sample.reasoning]
        return asked + self._trust.foreseen(sample, self._manner) * len(sample.reasoning)

    async def outcome(self, sample: Sample, asker: Asker) -> Outcome:
        if not lacks_places(sample):
            return None
        if hindrance := self._hindrance(sample):
            return refuse(sample, Reason.NO_REASONING, hindrance)
        return await lesson(sample, asker, self._manner, self._trust, self._counts, self._trace, len(sample.reasoning))

    def _hindrance(self, sample: Sample) -> str:
        if not any(trace.text.strip() for trace in sample.reasoning):
            return "nobody wrote reasoning for it; --way rationalise gives places to what was written"
        if not sample.evidence and not self._propose:
            return "nobody annotated where the evidence is, and --no-propose adds nothing"
        return ""

    def _parts(self, sample: Sample, text: str) -> list[str | Picture]:
        numbered = (f"({n}) {' '.join(text[slice(*span)].split())}" for n, span in enumerate(sentences(text), 1))
        lines = [*prompt.asked(sample), f"Right answer: {sample.answers[0]}", "Sentences:", *numbered]
        lines += prompt.listed(sample, objects_of(sample))
        lines.append(prompt.in_frame(self._manner.frame_of(sample.shown)) if self._propose else "Add no boxes.")
        return [Picture(sample.shown, self._manner.image_side), "\n".join(lines)]

    async def _trace(self, talk: Talk, alternative: int) -> Trace:
        sample, objects = talk.sample, objects_of(talk.sample)
        text = sample.reasoning[alternative].text
        pointed = await talk.hear(
            "anchor", self._parts(sample, text), Anchored,
            lambda completion: read(completion, text, objects, may_add=self._propose),
        )  # fmt: skip
        trace = anchored(text, await self._places(self._few(pointed, talk), objects, talk))
        if not trace.mentions:
            raise Refused(Fault(Reason.TEACHER_NOTHING_LEFT, "none of the places that it gave stood the checks"))
        await self._trust.answered("", trace, talk, written=False)
        return trace

    def _few(self, pointed: Sequence[Pointed], talk: Talk) -> list[Pointed]:
        """The first so many of those that somebody must look at. The text stays as it was written: nothing in it leans
        on the places that are left out."""
        unsure = [one for one in pointed if not _by_its_name(one)]
        if left := len(unsure[self._most :]):
            said = f"it pointed at {len(unsure)} places that must be looked at; --objects is {self._most}: {left} more"
            talk.drop(f"anchors after {self._most}", Fault(Reason.TOO_MANY_BOXES, f"{said} are left out"))
        kept = {id(one) for one in unsure[: self._most]}
        return [one for one in pointed if _by_its_name(one) or id(one) in kept]

    async def _places(
        self, pointed: Sequence[Pointed], objects: Sequence[Object], talk: Talk
    ) -> list[tuple[Span, Box]]:
        """The spans and boxes that stood the checks."""
        proposed = [(one.words, one.to) for one in pointed if not isinstance(one.to, Object)]
        judged = iter(await self._trust.judged(proposed, objects, talk))
        places = []
        for number, one in enumerate(pointed, 1):
            found = await self._annotated(one, objects, talk) if isinstance(one.to, Object) else next(judged)
            kept = self._trust.or_name(found, one.words, f"anchor {number}", talk)
            if isinstance(kept, Object):
                places.append((one.span, kept.box))
        return places

    async def _annotated(self, one: Pointed, objects: Sequence[Object], talk: Talk) -> Object | Fault:
        """An annotated object under the words of the text. Its place is from people; that these words mean it is not,
        unless they are its name: then the cut-out is looked at."""
        assert isinstance(one.to, Object)
        if fault := checks.named(one.words, talk.sample):
            return fault
        if self._trust.look and not _by_its_name(one):
            named = Object(one.to.number, one.words, one.to.box, one.to.place)
            return await self._trust.seen(named, objects, talk) or one.to
        return one.to


def _by_its_name(one: Pointed) -> bool:
    """An annotated object under its own label: nobody need look."""
    return isinstance(one.to, Object) and normalise(one.words) == normalise(one.to.label)


def read(completion: Completion, text: str, objects: Sequence[Object], *, may_add: bool) -> list[Pointed] | Fault:
    """What a reply points at in the text."""
    said = structured.read(completion, Anchored)
    if isinstance(said, Fault):
        return said
    spans, known = sentences(text), {one.number: one for one in objects}
    pointed = []
    for anchor in said.anchors:
        if not 1 <= anchor.sentence <= len(spans):
            return Fault(Reason.TEACHER_UNGROUNDED, f"it spoke of sentence {anchor.sentence}; there are {len(spans)}")
        span = find(text, spans[anchor.sentence - 1], anchor.words)
        if span is None:
            return Fault(
                Reason.TEACHER_UNGROUNDED, f"sentence {anchor.sentence} does not hold the words {anchor.words[:80]!r}"
            )
        to = anchor.box if anchor.object is None else known.get(anchor.object)
        if to is None:
            return Fault(Reason.TEACHER_UNGROUNDED, f"{anchor.words[:80]!r} has no box and no number of the list")
        if not may_add and not isinstance(to, Object):
            return Fault(Reason.TEACHER_UNGROUNDED, f"it gave {anchor.words[:80]!r} a box, and none may be added")
        pointed.append(Pointed(text[slice(*span)], span, to))
    return pointed or Fault(Reason.TEACHER_UNGROUNDED, "it pointed at nothing")
