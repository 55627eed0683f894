"""Whether what a teacher said can be believed: its boxes, and the answer that they lead to.

A proposed box goes through the checks of checks.py, which cost nothing, and then through those that ask: a second
proposal that does not know the first, a look at the cut-out, a detector where there is one. Some looks are made a
second time at a decoy, a cut-out that does not show the thing: how often those pass is how much a look is worth.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

from vcot.grounding import Box, Trace
from vcot.grounding.places import place
from vcot.records import Image, Reason, Sample
from vcot.teacher import checks, conclusion, crops
from vcot.teacher.anchors import sentences
from vcot.teacher.checks import Areas
from vcot.teacher.objects import Object, tells_answer
from vcot.teacher.prompt import asked, in_frame, reach
from vcot.teacher.request import Picture, Request
from vcot.teacher.shapes import Answered, Located, Looked
from vcot.teacher.structured import Fault
from vcot.teacher.talk import Manner, Refused, Talk

Parts = list[str | Picture]
ANSWER_FIRST = "answer-first"
LIKELY_OBJECTS = 2
"""In a piece of reasoning about a picture in which nothing is annotated."""


class Detector(Protocol):
    """Finds things by their names; a model of vcot.models, handed in by the job."""

    @property
    def name(self) -> str:
        """Which model it is, as far as its results depend on it."""

    def find(self, image: Image, labels: Sequence[str]) -> Mapping[str, Sequence[Box]]:
        """The boxes of each label, in pixels of the original. Called from several threads. Raises ImageError."""


@dataclass(frozen=True)
class Trust:
    """Which checks are made.

    Args:
        areas: limits of proposed boxes.
        twice: a second proposal must agree.
        look: the teacher, or the judge, must see the thing in the cut-out.
        decoy_share: share of the looks that are followed by one at a decoy, 0..1; which ones, the seed decides.
        reanswer: the answer must follow from the cut-outs of the evidence, and where they lie, alone.
        answer_first: what becomes of reasoning whose first sentence states the answer.
        wrong_answers: what becomes of reasoning that ends in another answer.
        bad_objects: what becomes of reasoning with an object that is refused; prose: the name stays, the box goes.
        detector: must find the thing there, if given.
    """

    areas: Areas = field(default_factory=Areas)
    twice: bool = True
    look: bool = True
    decoy_share: float = 0.1
    seed: int = 0
    reanswer: bool = True
    answer_first: Literal["flag", "refuse"] = "flag"
    wrong_answers: Literal["refuse", "negatives"] = "refuse"
    bad_objects: Literal["refuse", "prose"] = "refuse"
    detector: Detector | None = None

    def foreseen(self, sample: Sample, manner: Manner) -> list[Request]:
        """What the checks of one piece of reasoning will ask, before it is written. Where nothing is annotated: as if
        it named two objects, in the middle of the picture."""
        image = sample.shown
        boxes, wanted = list(sample.true_boxes or ()), []
        if not boxes and sample.evidence is None:
            boxes = [Box(image.width / 4, image.height / 4, image.width * 0.75, image.height * 0.75)]
            if self.twice:
                wanted.append(manner.request("locate", _locate(["object"], sample, manner), Located))
            if self.look:
                draws = [random.Random(f"{self.seed}\0{sample.id}\0{n}").random() for n in range(LIKELY_OBJECTS)]
                looks = LIKELY_OBJECTS + sum(draw < self.decoy_share for draw in draws)
                wanted += [manner.request("look", _look("object", boxes[0], sample, manner), Looked)] * looks
        if self.reanswer:
            wanted.append(manner.request("reanswer", _reanswer(boxes, sample, manner), Answered))
        return wanted

    # ---------------------------------------------------------------------------------------------- boxes

    async def judged(
        self, proposed: Sequence[tuple[str, Sequence[float]]], objects: Sequence[Object], talk: Talk
    ) -> list[Object | Fault]:
        """For each label and box of a proposal the object that it is: an annotated one, or a new one that stood all
        checks (number 0); or why it is refused."""
        found = [self.at_sight(label, numbers, objects, talk) for label, numbers in proposed]
        new = [one for one in found if isinstance(one, Object) and one.number == 0]
        faults = await self.confirmed(new, objects, talk)
        return [faults.get(one, one) if isinstance(one, Object) else one for one in found]

    def at_sight(self, label: str, numbers: Sequence[float], objects: Sequence[Object], talk: Talk) -> Object | Fault:
        """What is known of a proposal before anybody is asked."""
        sample = talk.sample
        box = checks.placed(label, numbers, talk.manner.frame_of(sample.shown))
        if isinstance(box, Fault):
            return box
        known = checks.gold(label, box, objects)
        if known is not None:
            return known
        fault = checks.named(label, sample) or checks.sized(label, box, sample, self.areas)
        return fault or Object(0, " ".join(label.split()), box, place(box, sample.shown.width, sample.shown.height))

    async def confirmed(
        self, new: Sequence[Object], objects: Sequence[Object], talk: Talk, *, look: bool = True
    ) -> Mapping[Object, Fault]:
        """Those of the new objects that a second proposal, a look or the detector denies, and which.

        Args:
            look: False where somebody will look later.
        """
        faults: dict[Object, Fault] = {}
        for check in (self._twice, self._looked, self._detected) if look else (self._twice, self._detected):
            standing = [one for one in dict.fromkeys(new) if one not in faults]
            if standing:
                denied = await check(standing, objects, talk)
                faults |= {one: fault for one, fault in zip(standing, denied, strict=True) if fault is not None}
        return faults

    def or_name(self, found: Object | Fault, name: str, part: str, talk: Talk) -> Object | str:
        """The object; or its bare name, where one that is refused may stay as prose. Raises Refused."""
        if isinstance(found, Object):
            return found
        if self.bad_objects == "refuse":
            raise Refused(found)
        talk.drop(part, found)
        return name

    async def _twice(self, new: Sequence[Object], _: Sequence[Object], talk: Talk) -> list[Fault | None]:
        if not self.twice:
            return [None] * len(new)
        talk.counts["second_proposals"] += 1
        second = await located([one.label for one in new], talk)
        agreed = checks.agreed([(one.label, one.box) for one in new], second)
        return [
            None if there else Fault(
                Reason.TEACHER_BOX_UNSURE, f"asked again where {one.label!r} is, the teacher pointed elsewhere"
            )
            for one, there in zip(new, agreed, strict=True)
        ]  # fmt: skip

    async def _looked(self, new: Sequence[Object], others: Sequence[Object], talk: Talk) -> list[Fault | None]:
        return [await self.seen(one, [*others, *new], talk) if self.look else None for one in new]

    async def seen(self, one: Object, others: Sequence[Object], talk: Talk) -> Fault | None:
        """A look at the cut-out of one object; now and then at a decoy too."""
        talk.counts["looks"] += 1
        await self.try_decoy(one, others, talk, lambda box: look(one.label, box, talk))
        if await look(one.label, one.box, talk):
            return None
        talk.counts["looks_refused"] += 1
        return Fault(Reason.TEACHER_BOX_NOT_SEEN, f"a look at the cut-out did not find {one.label!r} in it")

    async def try_decoy(
        self, one: Object, others: Sequence[Object], talk: Talk, passes: Callable[[Box], Awaitable[object]]
    ) -> None:
        """Counts whether a place that does not show the object passes for it; False and None say no.

        It is asked for a share of the objects, as the seed decides, and says nothing against the row.
        """
        seed = f"{self.seed}\0{talk.sample.id}\0{one.label}\0{one.box.as_list()}"
        if random.Random(seed).random() >= self.decoy_share:
            return
        box = crops.decoy(one.box, [other.box for other in others], talk.sample.shown, seed)
        if box is None:
            return
        with suppress(Refused):
            passed = await passes(box)
            talk.counts["decoys"] += 1
            talk.counts["decoys_accepted"] += passed is not None and passed is not False

    async def _detected(self, new: Sequence[Object], _: Sequence[Object], talk: Talk) -> list[Fault | None]:
        if self.detector is None:
            return [None] * len(new)
        labels = list(dict.fromkeys(one.label for one in new))
        talk.counts["detections"] += 1
        boxes = await asyncio.to_thread(self.detector.find, talk.sample.shown, labels)
        found = checks.agreed(
            [(one.label, one.box) for one in new], [(label, box) for label in labels for box in boxes.get(label, ())]
        )
        return [
            None if there else Fault(Reason.TEACHER_BOX_UNDETECTED, f"the detector finds no {one.label!r} there")
            for one, there in zip(new, found, strict=True)
        ]  # fmt: skip

    # --------------------------------------------------------------------------------------------- answers

    async def answered(
        self, answer: str, trace: Trace, talk: Talk, boxes: Sequence[Box] | None = None, *, written: bool = True
    ) -> None:
        """The teacher's answer must be the row's, in its closing and in its sentences, and must follow from what the
        reasoning points at. Raises Refused.

        Args:
            answer: "" where the teacher states none.
            boxes: the evidence, if it is more than what the reasoning mentions.
            written: False where the sentences are not the teacher's.
        """
        sample = talk.sample
        if answer and not conclusion.agrees(answer, sample):
            fault = Fault(
                Reason.TEACHER_WRONG_ANSWER, f"it closed with the answer {answer[:80]!r}, which is not the right one"
            )
            raise Refused(fault, negative_of(sample, trace, answer) if self.wrong_answers == "negatives" else None)
        if written and (led_elsewhere := conclusion.fault_of(trace.text, sample)):
            raise Refused(led_elsewhere)
        if self.answer_first == "refuse" and answer_comes_first(trace.text, sample):
            raise Refused(Fault(Reason.TEACHER_ANSWER_FIRST, "its first sentence states the answer"))
        if self.reanswer:
            await self._reanswered(trace.boxes if boxes is None else boxes, talk)

    async def _reanswered(self, boxes: Sequence[Box], talk: Talk) -> None:
        sample = talk.sample
        talk.counts["reanswers"] += 1
        again = await talk.ask("reanswer", _reanswer(boxes, sample, talk.manner), Answered)
        if not conclusion.agrees(again.answer, sample):
            raise Refused(
                Fault(
                    Reason.TEACHER_EVIDENCE_FALLS_SHORT,
                    f"from the cut-outs of its evidence alone the answer was {again.answer[:80]!r}",
                )
            )

    def flags(self, traces: Sequence[Trace], sample: Sample) -> tuple[str, ...]:
        return (ANSWER_FIRST,) if any(answer_comes_first(trace.text, sample) for trace in traces) else ()


async def located(labels: Sequence[str], talk: Talk) -> list[tuple[str, Box]]:
    """Where things of these names are, asked without saying where somebody has seen them. Boxes that are none are left
    out. Raises Refused."""
    sample, frame = talk.sample, talk.manner.frame_of(talk.sample.shown)
    said = await talk.ask("locate", _locate(labels, sample, talk.manner), Located)
    places = ((one.label, checks.placed(one.label, box, frame)) for one in said.objects for box in one.boxes)
    return [(label, box) for label, box in places if isinstance(box, Box)]


async def look(label: str, box: Box, talk: Talk) -> bool:
    """Whether the cut-out around this box shows it. Raises Refused."""
    return (await talk.ask("look", _look(label, box, talk.sample, talk.manner), Looked)).present


def _locate(labels: Sequence[str], sample: Sample, manner: Manner) -> Parts:
    words = [in_frame(manner.frame_of(sample.shown)), "Names:", *dict.fromkeys(labels)]
    return [Picture(sample.shown, manner.image_side), "\n".join(words)]


def _look(label: str, box: Box, sample: Sample, manner: Manner) -> Parts:
    return [crops.shown(box, sample.shown, manner.image_side), f"Name: {label}"]


def _reanswer(boxes: Sequence[Box], sample: Sample, manner: Manner) -> Parts:
    """Where the cut-outs lie is said, too: a question may ask for a place, or on which side of another a thing is."""
    pictures = crops.evidence(boxes, sample.shown, manner.image_side)
    reaches = (reach(picture.crop, sample.shown) for picture in pictures if picture.crop is not None)
    lie = [f"Cut-out {n} lies across {across}, down {down}." for n, (across, down) in enumerate(reaches, 1)]
    return [*pictures, "\n".join([*lie, *asked(sample)])]


def answer_comes_first(text: str, sample: Sample) -> bool:
    spans = sentences(text)
    return len(spans) > 1 and tells_answer(text[slice(*spans[0])], sample)


def negative_of(sample: Sample, trace: Trace, answer: str) -> Sample:
    return sample.model_copy(update={"reasoning": (trace,), "answers": (answer,)})
