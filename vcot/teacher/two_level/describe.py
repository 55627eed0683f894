"""The first steps: the whole in words, what is in it and where, what is cut out, and each cut-out in words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from vcot.grounding import FrameSpec
from vcot.records import Reason, Sample
from vcot.records.steps import Branch, Branches, Caption, Crops, CutOut, LeftOut, Objects, SeenObject
from vcot.teacher import checks, crops
from vcot.teacher.objects import Object, objects_of
from vcot.teacher.prompt import asked, in_frame
from vcot.teacher.request import Picture, Request
from vcot.teacher.shapes import Branched, Captioned, Found, Located, Seen
from vcot.teacher.structured import Fault
from vcot.teacher.talk import Refused, Talk
from vcot.teacher.two_level.step import FORESEEN_OBJECTS, Before, Step, seen

STAND_IN = "A description of some eighty words stands here. " * 9
"""As long as a caption, for the estimate."""


class Captions(Step):
    """It does not know the question, so that all questions about an image share one caption."""

    name: ClassVar[str] = "captions"
    record = Caption
    purposes = ("caption",)

    async def make(self, talk: Talk, before: Before) -> Caption:
        image = talk.sample.shown
        said = await talk.ask("caption", self._parts(talk.sample), Captioned)
        caption = " ".join(said.caption.split())
        if not caption:
            raise Refused(Fault(Reason.TEACHER_EMPTY, "the caption was empty"))
        return Caption(id=talk.sample.id, image=image.uri, width=image.width, height=image.height, caption=caption)

    def foreseen(self, sample: Sample) -> list[Request]:
        return [self.manner.request("caption", self._parts(sample), Captioned)]

    def _parts(self, sample: Sample) -> list[str | Picture]:
        return [self.whole(sample), "Describe this image."]


@dataclass(frozen=True)
class ObjectsStep(Step):
    """Annotated objects, and at most `most` that the teacher proposes; those must stand the checks."""

    most: int = 8

    name: ClassVar[str] = "objects"
    record = Objects
    purposes = ("objects", "locate")

    def parameters(self) -> dict[str, Any]:
        areas, detector = self.trust.areas, self.trust.detector
        return {
            "most": self.most, "twice": self.trust.twice, "detector": None if detector is None else detector.name,
            "areas": [sorted(areas.smallest.items()), sorted(areas.largest.items())],
        }  # fmt: skip

    async def make(self, talk: Talk, before: Before) -> Objects:
        sample, gold = talk.sample, objects_of(talk.sample)
        said = await talk.ask("objects", self._parts(sample, before.get(Caption).caption), Found)
        left_out: list[LeftOut] = []
        new: list[tuple[Object, Seen]] = []
        for one in said.objects:
            found = self.trust.at_sight(one.label, one.box, gold, talk)
            if isinstance(found, Fault):
                left_out.append(_left_out(one, found))
            elif found.number == 0:  # else it is an annotated one, and there already
                new.append((found, one))
        apart = checks.apart([(found.label, found.box, _score(one)) for found, one in new], self.most)
        chosen = [new[index] for index in apart]
        left_out += [
            _left_out(one, _too_many(found, self.most)) for index, (found, one) in enumerate(new) if index not in apart
        ]
        denied = await self.trust.confirmed([found for found, _ in chosen], gold, talk, look=False)
        left_out += [_left_out(one, denied[found]) for found, one in chosen if found in denied]
        standing = [(found, one) for found, one in chosen if found not in denied]
        if not gold and not standing and sample.evidence != ():
            why = "; ".join(one.detail for one in left_out) or "none was proposed"
            raise Refused(Fault(Reason.TEACHER_NOTHING_LEFT, f"no object stood the checks: {why}"))
        objects = [SeenObject(number=o.number, label=o.label, box=o.box, score=1.0, source="gold") for o in gold]
        for number, (found, one) in enumerate(standing, len(gold) + 1):
            objects.append(
                SeenObject(number=number, label=found.label, box=found.box, score=_score(one), source="teacher")
            )
        return Objects(id=sample.id, objects=tuple(objects), left_out=tuple(left_out))

    def foreseen(self, sample: Sample) -> list[Request]:
        request = self.manner.request
        asked = [request("objects", self._parts(sample, STAND_IN), Found)]
        if self.trust.twice:
            words = "\n".join([in_frame(self.manner.frame_of(sample.shown)), "Names:", *["some thing"] * 4])
            asked.append(request("locate", [self.whole(sample), words], Located))
        return asked

    def _parts(self, sample: Sample, caption: str) -> list[str | Picture]:
        words = [in_frame(self.manner.frame_of(sample.shown)), f"Description: {caption}", *asked(sample)]
        return [self.whole(sample), "\n".join(words)]


class CropsStep(Step):
    name: ClassVar[str] = "crops"
    record = Crops

    async def make(self, talk: Talk, before: Before) -> Crops:
        cuts = ((one.number, crops.crop_of(one.box, talk.sample.shown)) for one in before.get(Objects).objects)
        made = (CutOut(number=n, crop_box=cut.box, scale=cut.scale, size=cut.size) for n, cut in cuts)
        return Crops(id=talk.sample.id, crops=tuple(made))


class BranchesStep(Step):
    """Whoever describes a cut-out does not know the whole, and cannot tell what is only likely there."""

    name: ClassVar[str] = "branches"
    record = Branches
    purposes = ("branch",)

    async def make(self, talk: Talk, before: Before) -> Branches:
        branches = []
        for cut in before.get(Crops).crops:
            picture = cut_out(talk.sample, cut, self.manner.image_side)
            said = await talk.ask("branch", [picture, f"Name: {seen(before, cut.number).label}"], Branched)
            branches.append(Branch(number=cut.number, visible=said.visible, caption=" ".join(said.caption.split())))
        return Branches(id=talk.sample.id, branches=tuple(branches))

    def foreseen(self, sample: Sample) -> list[Request]:
        request = self.manner.request("branch", [quarter(sample, self.manner.image_side), "Name: some thing"], Branched)
        return [request] * (len(sample.true_boxes or ()) or FORESEEN_OBJECTS)


def cut_out(sample: Sample, cut: CutOut, side: int) -> Picture:
    return Picture(sample.shown, side, cut.crop_box, least=crops.SHORT_SIDE)


def quarter(sample: Sample, side: int) -> Picture:
    """A cut-out of middling size, for the estimate."""
    frame = FrameSpec("thousandths").on(sample.shown.width, sample.shown.height)
    return crops.shown(frame.decode(375, 375, 625, 625), sample.shown, side)


def _too_many(one: Object, most: int) -> Fault:
    return Fault(Reason.DUPLICATE, f"another {one.label!r} lies there, or {most} objects are surer")


def _score(one: Seen) -> float:
    """Between 0 and 1; anything else says nothing."""
    return one.score if 0 <= one.score <= 1 else 0.0


def _left_out(one: Seen, fault: Fault) -> LeftOut:
    return LeftOut(label=one.label, written=json.dumps(one.box), reason=fault.reason, detail=fault.why)
