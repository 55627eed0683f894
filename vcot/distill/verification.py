"""Whether what a teacher said can be believed: the boxes that it proposes, and the answer that they lead to.

    placed    in the declared frame, inside the image          sized    neither a speck nor everything
    gold      the annotated object that it is, if there is one named    short, plain, and not the answer

These cost nothing. What stands them goes through the checks that ask: a second proposal that does not know the first
(self-consistency), a look at the crop, a detector where there is one. Some looks are repeated at a negative crop, one
that does not show the thing: how often those pass is how much a look is worth. Boxes that people drew are not doubted.
"""

from __future__ import annotations

import asyncio
import random
import re
import unicodedata
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Protocol

from vcot.answers import normalise
from vcot.distill import conclusion
from vcot.distill.dialogue import Answered, Dialogue, Fault, Located, Looked, Parts, PromptConfig, Refused
from vcot.distill.objects import Object, asked, gives_away, in_frame, reach, sentences, tells_answer
from vcot.distill.request import Request, ShownImage
from vcot.grounding import Box, BoxError, BoxFault, Frame, Trace, iou, match_at
from vcot.records import Image, Reason, Sample

AGREEMENT = 0.5
"""IoU from which two boxes are the same place."""

SAME_THING = 0.7
"""IoU from which two boxes of one label are one object."""

LONGEST_LABEL = 80
"""Characters."""

ANSWER_FIRST = "answer-first"

LIKELY_OBJECTS = 2
"""In a piece of reasoning about an image in which nothing is annotated."""

_MARKUP = re.compile(r"</?[a-z|!]|<\||\[\d|[{}]", re.IGNORECASE)

_REASONS = {
    BoxFault.NOT_FINITE: Reason.BOX_NOT_FINITE,
    BoxFault.INVERTED: Reason.BOX_INVERTED,
    BoxFault.ZERO_AREA: Reason.BOX_EMPTY,
    BoxFault.OUTSIDE: Reason.BOX_OUTSIDE,
    BoxFault.OUT_OF_RANGE: Reason.BOX_OUTSIDE,
}


class Detector(Protocol):
    """Finds things by their names; a model of vcot.models, handed in by the job."""

    @property
    def name(self) -> str:
        """Which model it is, as far as its results depend on it."""

    def find(self, image: Image, labels: Sequence[str]) -> Mapping[str, Sequence[Box]]:
        """The boxes of each label, in pixels of the original. Called from several threads. Raises ImageError."""


@dataclass(frozen=True)
class AreaLimits:
    """Limits of a proposed box's area, as shares of the image, by dataset; "" stands for all others."""

    smallest: Mapping[str, float] = field(default_factory=lambda: {"": 0.0005})
    largest: Mapping[str, float] = field(default_factory=lambda: {"": 0.9})


@dataclass(frozen=True)
class Verification:
    """Which checks are made.

    Args:
        areas: limits of proposed boxes.
        self_consistency: a second proposal must agree.
        crop_check: the teacher, or the judge, must see the thing in the crop.
        negative_crop_share: share of the looks, 0..1, that are followed by one at a negative crop; the seed chooses.
        answer_from_evidence: the answer must follow from the crops of the evidence, and where they lie, alone.
        answer_first: what becomes of reasoning whose first sentence states the answer.
        wrong_answers: what becomes of reasoning that ends in another answer.
        bad_objects: what becomes of reasoning with an object that is refused; prose: the name stays, the box goes.
        detector: must find the thing there, if given.
    """

    areas: AreaLimits = field(default_factory=AreaLimits)
    self_consistency: bool = True
    crop_check: bool = True
    negative_crop_share: float = 0.1
    seed: int = 0
    answer_from_evidence: bool = True
    answer_first: Literal["flag", "refuse"] = "flag"
    wrong_answers: Literal["refuse", "negatives"] = "refuse"
    bad_objects: Literal["refuse", "prose"] = "refuse"
    detector: Detector | None = None

    def estimate(self, sample: Sample, config: PromptConfig) -> list[Request]:
        """What the checks of one piece of reasoning will ask, before it is written. Where nothing is annotated: as if
        it named two objects, in the middle of the image."""
        image = sample.shown
        boxes, wanted = list(sample.true_boxes or ()), []
        if not boxes and sample.evidence is None:
            boxes = [Box(image.width / 4, image.height / 4, image.width * 0.75, image.height * 0.75)]
            if self.self_consistency:
                wanted.append(config.request("locate", locate_parts(["object"], image, config), Located))
            if self.crop_check:
                draws = [random.Random(f"{self.seed}\0{sample.id}\0{n}").random() for n in range(LIKELY_OBJECTS)]
                looks = LIKELY_OBJECTS + sum(draw < self.negative_crop_share for draw in draws)
                wanted += [config.request("look", _look_parts("object", boxes[0], image, config), Looked)] * looks
        if self.answer_from_evidence:
            wanted.append(config.request("reanswer", reanswer_parts(boxes, sample, config), Answered))
        return wanted

    # ---------------------------------------------------------------------------------------------- boxes

    async def judged(
        self, proposed: Sequence[tuple[str, Sequence[float]]], objects: Sequence[Object], dialogue: Dialogue
    ) -> list[Object | Fault]:
        """For each label and box of a proposal the object that it is: an annotated one, or a new one that stood all
        checks (number 0); or why it is refused."""
        found = [self.at_sight(label, numbers, objects, dialogue) for label, numbers in proposed]
        new = [one for one in found if isinstance(one, Object) and one.number == 0]
        faults = await self.confirmed(new, objects, dialogue)
        return [faults.get(one, one) if isinstance(one, Object) else one for one in found]

    def at_sight(
        self, label: str, numbers: Sequence[float], objects: Sequence[Object], dialogue: Dialogue
    ) -> Object | Fault:
        """What is known of a proposal before anybody is asked."""
        sample = dialogue.sample
        box = placed(label, numbers, dialogue.config.frame_of(sample.shown))
        if isinstance(box, Fault):
            return box
        known = gold(label, box, objects)
        if known is not None:
            return known
        fault = named(label, sample) or sized(label, box, sample, self.areas)
        return fault or Object(0, " ".join(label.split()), box)

    async def confirmed(
        self, new: Sequence[Object], objects: Sequence[Object], dialogue: Dialogue, *, look: bool = True
    ) -> Mapping[Object, Fault]:
        """Those of the new objects that a second proposal, a look or the detector denies, and which.

        Args:
            look: False where somebody will look later.
        """
        faults: dict[Object, Fault] = {}
        for check in (self._consistent, self._seen, self._detected) if look else (self._consistent, self._detected):
            if standing := [one for one in dict.fromkeys(new) if one not in faults]:
                faults |= await check(standing, objects, dialogue)
        return faults

    async def _consistent(
        self, new: Sequence[Object], _: Sequence[Object], dialogue: Dialogue
    ) -> Mapping[Object, Fault]:
        if not self.self_consistency:
            return {}
        dialogue.counts["second_proposals"] += 1
        image, config = dialogue.sample.shown, dialogue.config
        frame = config.frame_of(image)
        said = await dialogue.ask("locate", locate_parts([one.label for one in new], image, config), Located)
        places = ((one.label, placed(one.label, box, frame)) for one in said.objects for box in one.boxes)
        second = [(label, box) for label, box in places if isinstance(box, Box)]
        return {
            one: Fault(Reason.TEACHER_BOX_UNSURE, f"asked again where {one.label!r} is, the teacher pointed elsewhere")
            for one in _unmatched(new, second)
        }

    async def _seen(
        self, new: Sequence[Object], others: Sequence[Object], dialogue: Dialogue
    ) -> Mapping[Object, Fault]:
        faults = {}
        for one in new if self.crop_check else ():
            if fault := await self.seen(one, [*others, *new], dialogue):
                faults[one] = fault
        return faults

    async def seen(self, one: Object, others: Sequence[Object], dialogue: Dialogue) -> Fault | None:
        """A look at the crop of one object; now and then at a negative crop too."""

        async def look(box: Box) -> bool:
            parts = _look_parts(one.label, box, dialogue.sample.shown, dialogue.config)
            return (await dialogue.ask("look", parts, Looked)).present

        dialogue.counts["looks"] += 1
        await self.try_negative_crop(one, others, dialogue, look)
        if await look(one.box):
            return None
        dialogue.counts["looks_refused"] += 1
        return Fault(Reason.TEACHER_BOX_NOT_SEEN, f"a look at the cut-out did not find {one.label!r} in it")

    async def try_negative_crop(
        self, one: Object, others: Sequence[Object], dialogue: Dialogue, passes: Callable[[Box], Awaitable[object]]
    ) -> None:
        """Counts whether a place that does not show the object passes for it; False and None say no.

        It is asked for a share of the objects, as the seed decides, and says nothing against the row.
        """
        seed = f"{self.seed}\0{dialogue.sample.id}\0{one.label}\0{one.box.as_list()}"
        if random.Random(seed).random() >= self.negative_crop_share:
            return
        box = negative_crop(one.box, [other.box for other in others], dialogue.sample.shown, seed)
        if box is None:
            return
        with suppress(Refused):
            passed = await passes(box)
            dialogue.counts["decoys"] += 1
            dialogue.counts["decoys_accepted"] += passed is not None and passed is not False

    async def _detected(self, new: Sequence[Object], _: Sequence[Object], dialogue: Dialogue) -> Mapping[Object, Fault]:
        if self.detector is None:
            return {}
        labels = list(dict.fromkeys(one.label for one in new))
        dialogue.counts["detections"] += 1
        boxes = await asyncio.to_thread(self.detector.find, dialogue.sample.shown, labels)
        found = [(label, box) for label in labels for box in boxes.get(label, ())]
        return {
            one: Fault(Reason.TEACHER_BOX_UNDETECTED, f"the detector finds no {one.label!r} there")
            for one in _unmatched(new, found)
        }

    def or_name(self, found: Object | Fault, name: str, part: str, dialogue: Dialogue) -> Object | str:
        """The object; or its bare name, where one that is refused may stay as prose. Raises Refused."""
        if isinstance(found, Object):
            return found
        if self.bad_objects == "refuse":
            raise Refused(*found)
        dialogue.drop(part, found)
        return name

    # --------------------------------------------------------------------------------------------- answers

    async def answered(
        self, answer: str, trace: Trace, dialogue: Dialogue, boxes: Sequence[Box] | None = None, *, written: bool = True
    ) -> None:
        """The teacher's answer must be the row's, in its closing and in its sentences, and must follow from what the
        reasoning points at. Raises Refused.

        Args:
            answer: "" where the teacher states none.
            boxes: the evidence, if it is more than what the reasoning mentions.
            written: False where the sentences are not the teacher's.
        """
        sample = dialogue.sample
        if answer and not conclusion.agrees(answer, sample):
            why = f"it closed with the answer {answer[:80]!r}, which is not the right one"
            raise Refused(Reason.TEACHER_WRONG_ANSWER, why, self.negative_of(sample, trace, answer))
        if written and (led_elsewhere := conclusion.fault_of(trace.text, sample)):
            raise Refused(*led_elsewhere)
        if self.answer_first == "refuse" and answer_comes_first(trace.text, sample):
            raise Refused(Reason.TEACHER_ANSWER_FIRST, "its first sentence states the answer")
        if self.answer_from_evidence:
            dialogue.counts["reanswers"] += 1
            parts = reanswer_parts(trace.boxes if boxes is None else boxes, sample, dialogue.config)
            again = await dialogue.ask("reanswer", parts, Answered)
            if not conclusion.agrees(again.answer, sample):
                why = f"from the cut-outs of its evidence alone the answer was {again.answer[:80]!r}"
                raise Refused(Reason.TEACHER_EVIDENCE_FALLS_SHORT, why)

    def negative_of(self, sample: Sample, trace: Trace, answer: str) -> Sample | None:
        """The row with its wrong answer, to learn from, where that is asked for."""
        if self.wrong_answers == "refuse":
            return None
        return sample.model_copy(update={"reasoning": (trace,), "answers": (answer,)})

    def flags(self, traces: Sequence[Trace], sample: Sample) -> tuple[str, ...]:
        return (ANSWER_FIRST,) if any(answer_comes_first(trace.text, sample) for trace in traces) else ()


def answer_comes_first(text: str, sample: Sample) -> bool:
    spans = sentences(text)
    return len(spans) > 1 and tells_answer(text[slice(*spans[0])], sample)


# ------------------------------------------------------------------------------------------ what the checks ask


def locate_parts(labels: Sequence[str], image: Image, config: PromptConfig) -> Parts:
    """Where things of these names are, asked without saying where somebody has seen them."""
    return [config.whole(image), "\n".join([in_frame(config.frame_of(image)), "Names:", *dict.fromkeys(labels)])]


def _look_parts(label: str, box: Box, image: Image, config: PromptConfig) -> Parts:
    return [crop(box, image, config.image_side), f"Name: {label}"]


def reanswer_parts(boxes: Sequence[Box], sample: Sample, config: PromptConfig) -> Parts:
    """Where the crops lie is said, too: a question may ask for a place, or on which side of another a thing is."""
    images = evidence_crops(boxes, sample.shown, config.image_side)
    reaches = (reach(image.crop, sample.shown) for image in images if image.crop is not None)
    lie = [f"Cut-out {n} lies across {across}, down {down}." for n, (across, down) in enumerate(reaches, 1)]
    return [*images, "\n".join([*lie, *asked(sample)])]


# ------------------------------------------------------------------------------------------ boxes, nobody asked


def placed(label: str, numbers: Sequence[float], frame: Frame) -> Box | Fault:
    """The box that these numbers mean in the declared frame."""
    if len(numbers) != 4:
        return Fault(Reason.BOX_MALFORMED, f"the box of {label!r} has {len(numbers)} numbers; four are wanted")
    try:
        return frame.decode(*numbers)
    except BoxError as error:
        return Fault(_REASONS.get(error.fault, Reason.BOX_MALFORMED), f"the box of {label!r}: {error}")


def sized(label: str, box: Box, sample: Sample, areas: AreaLimits) -> Fault | None:
    share = box.area / (sample.shown.width * sample.shown.height)
    dataset = sample.origin.dataset
    low = areas.smallest.get(dataset, areas.smallest.get("", 0.0))
    high = areas.largest.get(dataset, areas.largest.get("", 1.0))
    if low <= share <= high:
        return None
    small = share < low
    which, limit = ("--min-proposed-area", low) if small else ("--max-proposed-area", high)
    why = f"the box of {label!r} takes {share:.3%} of the image; {which} is {limit:.3%}"
    return Fault(Reason.BOX_TOO_SMALL if small else Reason.BOX_TOO_LARGE, why)


def named(label: str, sample: Sample) -> Fault | None:
    """A label must say something in plain words, and must not say the answer."""
    if not normalise(label):
        return Fault(Reason.TEACHER_UNREADABLE, "an object has no name")
    if len(label) > LONGEST_LABEL or not plain(label):
        return Fault(Reason.TEACHER_UNREADABLE, f"the label {label[:80]!r} is no short name in plain words")
    if gives_away(label, sample):
        return Fault(Reason.ANSWER_IN_LABEL, f"the label {label!r} gives the answer away")
    return None


def plain(text: str) -> bool:
    """Without markup, special tokens and control characters: nothing that means more than its words."""
    return _MARKUP.search(text) is None and all(unicodedata.category(c)[0] != "C" for c in text)


def gold(label: str, box: Box, objects: Sequence[Object]) -> Object | Fault | None:
    """The annotated object that a proposal is; None where nothing of its name or place is annotated.

    A proposal on an annotated place is that object. One that bears the name of annotated objects and lies on none of
    them is wrong.
    """
    best = max(objects, key=lambda known: iou(box, known.box), default=None)
    if best is not None and iou(box, best.box) >= AGREEMENT:
        return best
    namesakes = [iou(box, known.box) for known in objects if normalise(known.label) == normalise(label)]
    if not namesakes:
        return None
    near = f"its IoU with the nearest is {max(namesakes):.2f}, {AGREEMENT} is wanted"
    return Fault(Reason.TEACHER_BOX_OFF_GOLD, f"{label!r} is annotated, and elsewhere: {near}")


def agreed(first: Sequence[tuple[str, Box]], second: Sequence[tuple[str, Box]]) -> list[bool]:
    """For each box of the first proposal, whether the second has one of the same label there, one to one."""
    found = [False] * len(first)
    for label in dict.fromkeys(normalise(label) for label, _ in first):
        mine = [index for index, (name, _) in enumerate(first) if normalise(name) == label]
        theirs = [box for name, box in second if normalise(name) == label]
        for index, _, _ in match_at([first[index][1] for index in mine], theirs, AGREEMENT).pairs:
            found[mine[index]] = True
    return found


def _unmatched(new: Sequence[Object], found: Sequence[tuple[str, Box]]) -> list[Object]:
    there = agreed([(one.label, one.box) for one in new], found)
    return [one for one, is_there in zip(new, there, strict=True) if not is_there]


def apart(found: Sequence[tuple[str, Box, float]], most: int) -> list[int]:
    """Per label, the surest of those that overlap (IoU 0.7); of all, the `most` surest. Their indices, in order."""
    kept: list[int] = []
    for index in sorted(range(len(found)), key=lambda index: -found[index][2]):
        label, box, _ = found[index]
        if all(normalise(found[k][0]) != normalise(label) or iou(found[k][1], box) < SAME_THING for k in kept):
            kept.append(index)
    return sorted(kept[:most])


# ------------------------------------------------------------------------------------------ crops
#
# Sides are padded, so that a thing is seen with what is around it, and small crops are enlarged; the same object always
# gives the same crop. Pixels are those of the upright original.

PAD, LEAST_PAD = 0.15, 16.0
"""Added on each side: this share of the box's side, at least so many pixels."""

SHORT_SIDE = 336
"""Pixels that the short side of a crop has at least, as it is sent."""

MOST = 8
"""Crops in one request; where there is more to show, one around everything takes their place."""

_TRIES = 32
_SHARED = 0.1


def padded(box: Box, image: Image) -> Box:
    """What is cut out to show this box."""
    across, down = max(PAD * box.width, LEAST_PAD), max(PAD * box.height, LEAST_PAD)
    return Box(
        max(0.0, box.x1 - across), max(0.0, box.y1 - down),
        min(float(image.width), box.x2 + across), min(float(image.height), box.y2 + down),
    )  # fmt: skip


def crop(box: Box, image: Image, side: int) -> ShownImage:
    """The crop around a box as a part of a request."""
    return ShownImage(image, side, padded(box, image), least=SHORT_SIDE)


def evidence_crops(boxes: Sequence[Box], image: Image, side: int) -> list[ShownImage]:
    """The crops that show all these boxes; the whole image where there is none (nothing there is seen by looking
    everywhere)."""
    boxes = list(dict.fromkeys(boxes))
    if not boxes:
        return [ShownImage(image, side)]
    if len(boxes) > MOST:
        left, top, right, bottom = zip(*(box.as_list() for box in boxes), strict=True)
        boxes = [Box(min(left), min(top), max(right), max(bottom))]
    return [crop(box, image, side) for box in boxes]


def negative_crop(box: Box, others: Sequence[Box], image: Image, seed: str) -> Box | None:
    """A place of the same size that shows none of these boxes, chosen by the seed; None where no such place is found.

    It may show another thing of the same name that nobody has marked. The rate at which negative crops are accepted is
    therefore an upper limit of how often nonsense is.
    """
    draw = random.Random(seed)
    taken = [padded(one, image) for one in (box, *others)]
    for _ in range(_TRIES):
        left, top = draw.uniform(0, image.width - box.width), draw.uniform(0, image.height - box.height)
        place = Box(left, top, left + box.width, top + box.height)
        if all(_covered(padded(place, image), one) <= _SHARED for one in taken):
            return place
    return None


def _covered(a: Box, b: Box) -> float:
    """The share of the smaller that the two have in common."""
    across, down = min(a.x2, b.x2) - max(a.x1, b.x1), min(a.y2, b.y2) - max(a.y1, b.y1)
    return across * down / min(a.area, b.area) if across > 0 and down > 0 else 0.0
