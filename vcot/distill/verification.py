"""Whether what a teacher said can be believed: the boxes that it proposes, and the answer that they lead to.

    placed         in the declared frame, inside the image      fault_of_size   neither a speck nor everything
    annotated_as   the annotated object that it is              fault_of_name   short, plain, and not the answer

These cost nothing. What stands them goes through the checks that ask: a second proposal that does not know the first
(self-consistency), the crop check, a detector where there is one. Some crop checks are repeated at a negative crop, one
that does not show the thing: how often those pass is how much they are worth. Boxes that people drew are not doubted.
"""

from __future__ import annotations

import asyncio
import random
import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Literal, Protocol

from vcot.answers import normalise
from vcot.distill import Fault, Refused, conclusion
from vcot.distill.crops import Object, evidence_crops, extent, frame_line, negative_crop, question_lines
from vcot.distill.dialogue import Dialogue, Numbers, Parts, PromptConfig, Shape
from vcot.distill.prose import sentences
from vcot.distill.request import Request
from vcot.grounding import Box, BoxError, BoxFault, Frame, Trace, iou, match_at
from vcot.records import Image, Reason, Sample
from vcot.settings import CommaSeparated, Options, flag, setting

AGREEMENT = 0.5  # IoU from which two boxes are the same place
SAME_THING = 0.7  # IoU from which two boxes of one label are one object
LONGEST_LABEL = 80  # characters

ANSWER_FIRST = "answer-first"

LIKELY_OBJECTS = 2  # in a piece of reasoning about an image in which nothing is annotated, for the estimate

_MARKUP = re.compile(r"</?[a-z|!]|<\||\[\d|[{}]", re.IGNORECASE)
_SHARE = re.compile(r"(?:[^=,]+=)?(?:0?\.[0-9]+|[01](?:\.0*)?)")

_REASONS = {
    BoxFault.NOT_FINITE: Reason.BOX_NOT_FINITE,
    BoxFault.INVERTED: Reason.BOX_INVERTED,
    BoxFault.ZERO_AREA: Reason.BOX_EMPTY,
    BoxFault.OUTSIDE: Reason.BOX_OUTSIDE,
    BoxFault.OUT_OF_RANGE: Reason.BOX_OUTSIDE,
}


class Detector(Protocol):
    """Finds things by their names; a model of vcot.models, handed in by the job."""

    def find(self, image: Image, labels: Sequence[str]) -> Mapping[str, Sequence[Box]]:
        """The boxes of each label, in pixels of the original. Called from several threads. Raises ImageError."""


class VerificationOptions(Options):
    """Which checks are made, and what becomes of what they deny."""

    min_proposed_area: CommaSeparated = setting(
        ("0.0005",), "openai: proposed boxes cover this share of the image at least: 0.0005, or 0.0005,docvqa=0.001 by "
        "dataset; boxes that people drew are never measured", unit="0..1",
    )  # fmt: skip
    max_proposed_area: CommaSeparated = setting(("0.9",), "openai: and at most: 0.9, or 0.9,vsr=1", unit="0..1")
    self_consistency: bool = setting(
        True, "openai: a second proposal that does not know the first must agree (IoU 0.5)"
    )
    crop_check: bool = setting(True, "openai: a look at the cut-out must find the thing in it")
    negative_crop_share: float = setting(
        0.1, "openai: share of the crop checks that are repeated at a negative crop, a place that does not show the "
        "thing; how often those pass is in the report", unit="0..1", ge=0, le=1,
    )  # fmt: skip
    seed: int = setting(0, "template: which row gets which wording; openai: which crop checks are tested")
    detector_uri: str | None = setting(
        None, "openai: folder of a detector (Grounding DINO, OWLv2) that must find what is proposed; needs torch"
    )
    answer_from_evidence: bool = setting(
        True, "openai: the answer must follow from the cut-outs of the evidence, and where they lie, alone"
    )
    answer_first: Literal["flag", "refuse"] = setting(
        "flag", "openai: what becomes of reasoning whose first sentence states the answer"
    )
    wrong_answers: Literal["refuse", "negatives"] = setting(
        "refuse", "openai: what becomes of reasoning that ends in another answer; negatives: it is refused, and the "
        "rejection holds it as a whole row with its wrong answer, to learn from",
    )  # fmt: skip
    bad_objects: Literal["refuse", "prose"] = setting(
        "refuse", "openai: what becomes of reasoning with an object that is refused; prose: it stays without that box"
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        for name in ("min_proposed_area", "max_proposed_area"):
            for entry in getattr(self, name):
                if not _SHARE.fullmatch(entry):
                    share = f"{flag(name)}: {entry!r} is no share of an image"
                    yield f"{share}; write 0.0005, or 0.0005,docvqa=0.0001"


class Places(Shape):
    label: str
    boxes: list[Numbers]


class Located(Shape, purpose="locate"):
    objects: list[Places]


class Looked(Shape, purpose="look"):
    present: bool


class Answered(Shape, purpose="reanswer"):
    answer: str


class Verification:
    """Args: which checks are made; a detector that must find the thing there, if given."""

    def __init__(self, options: VerificationOptions, detector: Detector | None = None) -> None:
        self.options, self._detector = options, detector
        self._smallest, self._largest = _shares(options.min_proposed_area), _shares(options.max_proposed_area)

    def estimate(self, sample: Sample, config: PromptConfig) -> list[Request]:
        """What the checks of one piece of reasoning will ask, before it is written. Where nothing is annotated: as if
        it named two objects, in the middle of the image."""
        image, options = sample.shown, self.options
        boxes, wanted = list(sample.true_boxes or ()), []
        if not boxes and sample.evidence is None:
            boxes = [Box(image.width / 4, image.height / 4, image.width * 0.75, image.height * 0.75)]
            if options.self_consistency:
                wanted.append(config.request(Located, locate_parts(["object"], image, config)))
            if options.crop_check:
                draws = [random.Random(f"{options.seed}\0{sample.id}\0{n}").random() for n in range(LIKELY_OBJECTS)]
                looks = LIKELY_OBJECTS + sum(draw < options.negative_crop_share for draw in draws)
                wanted += [config.request(Looked, _look_parts("object", boxes[0], image, config))] * looks
        if options.answer_from_evidence:
            wanted.append(config.request(Answered, reanswer_parts(boxes, sample, config)))
        return wanted

    # --- boxes

    async def check_boxes(
        self, proposed: Sequence[tuple[str, Sequence[float]]], objects: Sequence[Object], dialogue: Dialogue
    ) -> list[Object | Fault]:
        """For each label and box of a proposal the object that it is: an annotated one, or a new one that stood all
        checks (number 0); or why it is refused."""
        found = [self.at_sight(label, numbers, objects, dialogue) for label, numbers in proposed]
        new = [one for one in found if isinstance(one, Object) and one.number == 0]
        faults = await self.denied(new, objects, dialogue)
        return [faults.get(one, one) if isinstance(one, Object) else one for one in found]

    def at_sight(
        self, label: str, numbers: Sequence[float], objects: Sequence[Object], dialogue: Dialogue
    ) -> Object | Fault:
        """What a proposal is before anybody is asked."""
        sample = dialogue.sample
        box = placed(label, numbers, dialogue.config.frame_of(sample.shown))
        if isinstance(box, Fault):
            return box
        if (annotated := annotated_as(label, box, objects)) is not None:
            return annotated
        fault = fault_of_name(label, sample) or self._fault_of_size(label, box, sample)
        return fault or Object(0, " ".join(label.split()), box)

    def _fault_of_size(self, label: str, box: Box, sample: Sample) -> Fault | None:
        share = box.area / (sample.shown.width * sample.shown.height)
        dataset = sample.origin.dataset
        low = self._smallest.get(dataset, self._smallest.get("", 0.0))
        high = self._largest.get(dataset, self._largest.get("", 1.0))
        if low <= share <= high:
            return None
        small = share < low
        which, limit = ("--min-proposed-area", low) if small else ("--max-proposed-area", high)
        why = f"the box of {label!r} takes {share:.3%} of the image; {which} is {limit:.3%}"
        return Fault(Reason.BOX_TOO_SMALL if small else Reason.BOX_TOO_LARGE, why)

    async def denied(
        self, new: Sequence[Object], objects: Sequence[Object], dialogue: Dialogue, *, look: bool = True
    ) -> dict[Object, Fault]:
        """Those of the new objects that a second proposal, a look (unless somebody will look later) or the detector
        denies, and which."""
        image, faults, standing = dialogue.sample.shown, dict[Object, Fault](), list(dict.fromkeys(new))
        if self.options.self_consistency and standing:
            # Asked where things of these names are, without a word on where it has seen them.
            dialogue.counts["second_proposals"] += 1
            parts = locate_parts([one.label for one in standing], image, dialogue.config)
            said, frame = await dialogue.ask(Located, parts), dialogue.config.frame_of(image)
            places = ((one.label, placed(one.label, box, frame)) for one in said.objects for box in one.boxes)
            for one in unmatched(standing, [(label, box) for label, box in places if isinstance(box, Box)]):
                why = f"asked again where {one.label!r} is, the teacher pointed elsewhere"
                faults[one] = Fault(Reason.TEACHER_BOX_UNSURE, why)
            standing = [one for one in standing if one not in faults]
        for one in standing if look and self.options.crop_check else ():
            if fault := await self.look_at(one, [*objects, *standing], dialogue):
                faults[one] = fault
        standing = [one for one in standing if one not in faults]
        if self._detector is not None and standing:
            dialogue.counts["detections"] += 1
            labels = list(dict.fromkeys(one.label for one in standing))
            boxes = await asyncio.to_thread(self._detector.find, image, labels)
            for one in unmatched(standing, [(label, box) for label, found in boxes.items() for box in found]):
                faults[one] = Fault(Reason.TEACHER_BOX_UNDETECTED, f"the detector finds no {one.label!r} there")
        return faults

    async def look_at(self, one: Object, others: Sequence[Object], dialogue: Dialogue) -> Fault | None:
        """A look at the crop of one object; now and then at a negative crop too."""

        async def look(box: Box) -> bool:
            parts = _look_parts(one.label, box, dialogue.sample.shown, dialogue.config)
            return (await dialogue.ask(Looked, parts)).present

        dialogue.counts["looks"] += 1
        await self.try_negative_crop(one, others, dialogue, look)
        if await look(one.box):
            return None
        dialogue.counts["looks_refused"] += 1
        return Fault(Reason.TEACHER_BOX_NOT_SEEN, f"a look at the cut-out did not find {one.label!r} in it")

    async def try_negative_crop(
        self, one: Object, others: Sequence[Object], dialogue: Dialogue, passes: Callable[[Box], Awaitable[object]]
    ) -> None:
        """Counts whether a place that does not show the object passes for it; False and None say no. It is asked for a
        share of the objects, as the seed decides, and says nothing against the row."""
        seed = f"{self.options.seed}\0{dialogue.sample.id}\0{one.label}\0{one.box.as_list()}"
        if random.Random(seed).random() >= self.options.negative_crop_share:
            return
        box = negative_crop(one.box, [other.box for other in others], dialogue.sample.shown, seed)
        if box is None:
            return
        with suppress(Refused):
            passed = await passes(box)
            dialogue.counts["decoys"] += 1
            dialogue.counts["decoys_accepted"] += passed is not None and passed is not False

    def or_name(self, found: Object | Fault, name: str, part: str, dialogue: Dialogue) -> Object | str:
        """The object; or its bare name, where one that is refused may stay as prose. Raises Refused."""
        if isinstance(found, Object):
            return found
        if self.options.bad_objects == "refuse":
            raise Refused(*found)
        dialogue.drop(part, found)
        return name

    # --- answers

    async def check_answer(
        self, answer: str, trace: Trace, dialogue: Dialogue, boxes: Sequence[Box] | None = None, *, written: bool = True
    ) -> None:
        """The teacher's answer must be the row's, in its closing and in its sentences, and must follow from what the
        reasoning points at. Raises Refused.

        `answer`: "" where the teacher states none; `boxes`: the evidence, if it is more than what the reasoning
        mentions; `written`: False where the sentences are not the teacher's.
        """
        sample = dialogue.sample
        if answer and not conclusion.agrees(answer, sample):
            why = f"it closed with the answer {answer[:80]!r}, which is not the right one"
            raise Refused(Reason.TEACHER_WRONG_ANSWER, why, self.negative_of(sample, trace, answer))
        if written and (led_elsewhere := conclusion.fault_of(trace.text, sample)):
            raise Refused(*led_elsewhere)
        if self.options.answer_first == "refuse" and self.flags([trace], sample):
            raise Refused(Reason.TEACHER_ANSWER_FIRST, "its first sentence states the answer")
        if self.options.answer_from_evidence:
            dialogue.counts["reanswers"] += 1
            parts = reanswer_parts(trace.boxes if boxes is None else boxes, sample, dialogue.config)
            again = await dialogue.ask(Answered, parts)
            if not conclusion.agrees(again.answer, sample):
                why = f"from the cut-outs of its evidence alone the answer was {again.answer[:80]!r}"
                raise Refused(Reason.TEACHER_EVIDENCE_FALLS_SHORT, why)

    def negative_of(self, sample: Sample, trace: Trace, answer: str) -> Sample | None:
        """The row with its wrong answer, to learn from, where that is asked for."""
        if self.options.wrong_answers == "refuse" or not answer.strip():
            return None
        return sample.model_copy(update={"reasoning": (trace,), "answers": (answer,)})

    def flags(self, traces: Sequence[Trace], sample: Sample) -> tuple[str, ...]:
        """ANSWER_FIRST where the first of several sentences states the answer."""
        for trace in traces:
            spans = sentences(trace.text)
            if len(spans) > 1 and conclusion.tells_answer(trace.text[slice(*spans[0])], sample):
                return (ANSWER_FIRST,)
        return ()


# --- what the checks ask


def locate_parts(labels: Sequence[str], image: Image, config: PromptConfig) -> Parts:
    return [config.whole(image), "\n".join([frame_line(config.frame_of(image)), "Names:", *dict.fromkeys(labels)])]


def _look_parts(label: str, box: Box, image: Image, config: PromptConfig) -> Parts:
    return [config.crop(box, image), f"Name: {label}"]


def reanswer_parts(boxes: Sequence[Box], sample: Sample, config: PromptConfig) -> Parts:
    """Where the crops lie is said, too: a question may ask for a place, or on which side of another a thing is."""
    images = evidence_crops(boxes, sample.shown, config.options.image_side)
    extents = (extent(image.crop, sample.shown) for image in images if image.crop is not None)
    lie = [f"Cut-out {n} lies across {across}, down {down}." for n, (across, down) in enumerate(extents, 1)]
    others = map(config.whole, sample.images[1:])  # nobody knows where in these the evidence is
    return [*images, *others, "\n".join([*lie, *question_lines(sample)])]


# --- boxes and names, nobody asked


def _shares(entries: Sequence[str]) -> dict[str, float]:
    """0.9,vsr=1 → {"": 0.9, "vsr": 1.0}"""
    return {name.strip(): float(share) for name, _, share in (entry.rpartition("=") for entry in entries)}


def placed(label: str, numbers: Sequence[float], frame: Frame) -> Box | Fault:
    """The box that these numbers mean in the declared frame."""
    if len(numbers) != 4:
        return Fault(Reason.BOX_MALFORMED, f"the box of {label!r} has {len(numbers)} numbers; four are wanted")
    try:
        return frame.decode(*numbers)
    except BoxError as error:
        return Fault(_REASONS.get(error.fault, Reason.BOX_MALFORMED), f"the box of {label!r}: {error}")


def fault_of_name(label: str, sample: Sample) -> Fault | None:
    """A label must say something in plain words, and must not say the answer."""
    if not normalise(label):
        return Fault(Reason.TEACHER_UNREADABLE, "an object has no name")
    if len(label) > LONGEST_LABEL or not is_plain(label):
        return Fault(Reason.TEACHER_UNREADABLE, f"the label {label[:80]!r} is no short name in plain words")
    if conclusion.gives_away(label, sample):
        return Fault(Reason.ANSWER_IN_LABEL, f"the label {label!r} gives the answer away")
    return None


def is_plain(text: str) -> bool:
    """Without markup, special tokens and control characters: nothing that means more than its words."""
    return _MARKUP.search(text) is None and all(unicodedata.category(c)[0] != "C" for c in text)


def annotated_as(label: str, box: Box, objects: Sequence[Object]) -> Object | Fault | None:
    """The annotated object that a proposal is; None where nothing of its name or place is annotated. A proposal on an
    annotated place is that object. One that bears the name of annotated objects and lies on none of them is wrong."""
    best = max(objects, key=lambda one: iou(box, one.box), default=None)
    if best is not None and iou(box, best.box) >= AGREEMENT:
        return best
    namesakes = [iou(box, one.box) for one in objects if normalise(one.label) == normalise(label)]
    if not namesakes:
        return None
    near = f"its IoU with the nearest is {max(namesakes):.2f}, {AGREEMENT} is wanted"
    return Fault(Reason.TEACHER_BOX_OFF_GOLD, f"{label!r} is annotated, and elsewhere: {near}")


def unmatched(first: Sequence[Object], second: Sequence[tuple[str, Box]]) -> list[Object]:
    """The objects of the first proposal that the second has not under the same label at the same place, one to one."""
    missing = []
    for label in dict.fromkeys(normalise(one.label) for one in first):
        mine = [one for one in first if normalise(one.label) == label]
        theirs = [box for name, box in second if normalise(name) == label]
        matched = {index for index, _, _ in match_at([one.box for one in mine], theirs, AGREEMENT).pairs}
        missing += [one for index, one in enumerate(mine) if index not in matched]
    return missing
