"""Reasoning that somebody wrote as mere text gets places: what its sentences name is pointed at, and stays as it is.

    "A red cup stands on the table. So it is breakfast."
      →  "A ", Mention("red cup", …), " stands on the ", Mention("table", …), ". So it is breakfast."

Annotated objects have their places from people; the others are proposed, and must stand the checks of verification.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vcot.answers import normalise
from vcot.distill import DistilledReasoning, Fault, Refused
from vcot.distill.crops import Object, frame_line, object_lines, objects_of, question_lines
from vcot.distill.dialogue import Dialogue, Numbers, Parts, Shape, parse_reply
from vcot.distill.prose import Span, sentences
from vcot.distill.request import Client, Request
from vcot.distill.strategies import ProposeOptions, Strategy, strategy
from vcot.distill.verification import fault_of_name
from vcot.grounding import Box, Mention, Trace
from vcot.records import Completion, Reason, Rejection, Sample


class Anchor(Shape):
    """Words of a sentence, and the listed object or the box that they name."""

    sentence: int
    words: str
    object: int | None = None
    box: Numbers | None = None


class Anchored(Shape, purpose="anchor"):
    anchors: list[Anchor]


class Pointed(NamedTuple):
    """Words of the text, and what they name: an annotated object, or four numbers in the declared frame."""

    words: str
    span: Span
    to: Object | Sequence[float]

    @property
    def by_its_name(self) -> bool:
        """An annotated object under its own label: nobody need look."""
        return isinstance(self.to, Object) and normalise(self.words) == normalise(self.to.label)


@strategy("rationalise", "Reasoning that was written as mere text stays as it is and gets places.", ProposeOptions)
class Rationalise(Strategy):
    purposes = ("anchor", "locate", "look", "reanswer")

    def requests(self, sample: Sample) -> Sequence[Request]:
        """Where objects are annotated, without what a proposed place would cost."""
        wanted = [self.config.request(Anchored, self._parts(sample, trace.text)) for trace in sample.reasoning]
        return wanted + self.verification.estimate(sample, self.config) * len(sample.reasoning)

    async def teach(self, sample: Sample, client: Client) -> DistilledReasoning | Rejection:
        return await self.alternatives(sample, client, self._trace, len(sample.reasoning))

    def hindrance(self, sample: Sample) -> str:
        if not any(trace.text.strip() for trace in sample.reasoning):
            return "nobody wrote reasoning for it; --strategy rationalise gives places to what was written"
        if not sample.evidence and not self.options.propose:
            return "nobody annotated where the evidence is, and --no-propose adds nothing"
        return ""

    def _parts(self, sample: Sample, text: str) -> Parts:
        numbered = (f"({n}) {' '.join(text[slice(*span)].split())}" for n, span in enumerate(sentences(text), 1))
        lines = [*question_lines(sample), f"Right answer: {sample.answers[0]}", "Sentences:", *numbered]
        lines += object_lines(sample, objects_of(sample))
        lines.append(frame_line(self.config.frame_of(sample.shown)) if self.options.propose else "Add no boxes.")
        return [*self.config.all_of(sample), "\n".join(lines)]

    async def _trace(self, dialogue: Dialogue, alternative: int) -> Trace:
        sample, objects = dialogue.sample, objects_of(dialogue.sample)
        text = sample.reasoning[alternative].text
        pointed = await dialogue.read(
            self.config.request(Anchored, self._parts(sample, text)),
            lambda completion: read(completion, text, objects, may_add=self.options.propose),
        )
        pointed = self._up_to_most(pointed, dialogue)
        proposed = [(one.words, one.to) for one in pointed if not isinstance(one.to, Object)]
        checked = iter(await self.verification.check_boxes(proposed, objects, dialogue))
        places = []
        for number, one in enumerate(pointed, 1):
            it = one.to
            found = await self._annotated(one, it, objects, dialogue) if isinstance(it, Object) else next(checked)
            kept = self.verification.or_name(found, one.words, f"anchor {number}", dialogue)
            if isinstance(kept, Object):
                places.append((one.span, kept.box))
        trace = anchored(text, places)
        if not trace.mentions:
            raise Refused(Reason.TEACHER_NOTHING_LEFT, "none of the places that it gave stood the checks")
        await self.verification.check_answer("", trace, dialogue, written=False)
        return trace

    def _up_to_most(self, pointed: Sequence[Pointed], dialogue: Dialogue) -> list[Pointed]:
        """The first so many of those that somebody must look at. The text stays as it was written: nothing in it leans
        on the places that are left out."""
        most = self.options.objects
        unsure = [one for one in pointed if not one.by_its_name]
        if left := len(unsure[most:]):
            said = f"it pointed at {len(unsure)} places that must be looked at; --objects is {most}: {left} more"
            dialogue.drop(f"anchors after {most}", Fault(Reason.TOO_MANY_BOXES, f"{said} are left out"))
        kept = {id(one) for one in unsure[:most]}
        return [one for one in pointed if one.by_its_name or id(one) in kept]

    async def _annotated(
        self, one: Pointed, to: Object, objects: Sequence[Object], dialogue: Dialogue
    ) -> Object | Fault:
        """An annotated object under the words of the text. Its place is from people; that these words mean it is not,
        unless they are its name: then the crop is looked at."""
        if fault := fault_of_name(one.words, dialogue.sample):
            return fault
        if self.verification.options.crop_check and not one.by_its_name:
            return await self.verification.look_at(Object(to.number, one.words, to.box), objects, dialogue) or to
        return to


def read(completion: Completion, text: str, objects: Sequence[Object], *, may_add: bool) -> list[Pointed]:
    """What a reply points at in the text. Raises Refused."""
    said = parse_reply(completion, Anchored)
    spans, listed = sentences(text), {one.number: one for one in objects}
    pointed = []
    for anchor in said.anchors:
        if not 1 <= anchor.sentence <= len(spans):
            raise Refused(Reason.TEACHER_UNGROUNDED, f"it spoke of sentence {anchor.sentence}; there are {len(spans)}")
        span = find(text, spans[anchor.sentence - 1], anchor.words)
        words = f"{anchor.words[:80]!r}"
        if span is None:
            raise Refused(Reason.TEACHER_UNGROUNDED, f"sentence {anchor.sentence} does not hold the words {words}")
        to = anchor.box if anchor.object is None else listed.get(anchor.object)
        if to is None:
            raise Refused(Reason.TEACHER_UNGROUNDED, f"{words} has no box and no number of the list")
        if not may_add and not isinstance(to, Object):
            raise Refused(Reason.TEACHER_UNGROUNDED, f"it gave {words} a box, and none may be added")
        pointed.append(Pointed(text[slice(*span)], span, to))
    if not pointed:
        raise Refused(Reason.TEACHER_UNGROUNDED, "it pointed at nothing")
    return pointed


def find(text: str, sentence: Span, words: str) -> Span | None:
    """Where these words stand in the sentence for the first time, as whole words; in any case and spacing."""
    wanted = r"\s+".join(map(re.escape, words.split()))
    if not wanted:
        return None
    found = re.compile(rf"(?<!\w){wanted}(?!\w)", re.IGNORECASE).search(text, sentence.start, sentence.end)
    return Span(*found.span()) if found else None


def anchored(text: str, places: Iterable[tuple[Span, Box]]) -> Trace:
    """The text, letter by letter, with a mention at each span. Several boxes of one span are one mention; of spans that
    overlap, the one that begins first counts, then the longer one."""
    boxes: dict[Span, list[Box]] = {}
    for span, box in places:
        boxes.setdefault(span, []).append(box)
    parts: list[str | Mention] = []
    done = 0
    for span in sorted(boxes, key=lambda span: (span.start, -span.end)):
        if span.start >= done:
            parts += text[done : span.start], Mention(text[slice(*span)], tuple(dict.fromkeys(boxes[span])))
            done = span.end
    return Trace((*parts, text[done:]))
