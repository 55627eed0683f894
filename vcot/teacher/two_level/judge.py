"""Verdicts: what was said about each cut-out, claim by claim, held against the cut-out."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from vcot.grounding import Box
from vcot.records import Reason, Sample
from vcot.records.steps import Branch, Branches, Caption, ClaimRecord, Crops, Objects, SeenObject, Verdict, Verdicts
from vcot.teacher import crops
from vcot.teacher.request import Picture, Request
from vcot.teacher.shapes import Judged
from vcot.teacher.structured import Fault
from vcot.teacher.talk import Refused, Talk
from vcot.teacher.two_level.describe import STAND_IN, cut_out, quarter
from vcot.teacher.two_level.step import FORESEEN_OBJECTS, Before, Step, as_object, seen


class VerdictsStep(Step):
    """What people annotated is there, whatever the judge says; only the words about it are judged."""

    name: ClassVar[str] = "verdicts"
    record = Verdicts
    purposes = ("verdict",)

    def parameters(self) -> dict[str, Any]:
        return {"decoy_share": self.trust.decoy_share, "seed": self.trust.seed}

    async def make(self, talk: Talk, before: Before) -> Verdicts:
        talk.said.append(before.get(Branches).model_dump_json())  # it is what is judged here
        verdicts: list[Verdict] = []
        decoys: list[bool | None] = []
        cuts = {cut.number: cut for cut in before.get(Crops).crops}
        for branch in before.get(Branches).branches:
            one = seen(before, branch.number)
            if not branch.visible:
                verdicts.append(_unseen(one))
                continue
            picture = cut_out(talk.sample, cuts[one.number], self.manner.image_side)
            talk.counts["looks"] += 1
            verdict = await self._judged(picture, one, branch, before, talk)
            talk.counts["looks_refused"] += verdict.verdict == "reject"
            verdicts.append(verdict)
            decoys.append(await self._at_decoy(one, branch, before, talk))
        if all(verdict.verdict == "reject" for verdict in verdicts) and talk.sample.evidence != ():
            raise Refused(
                Fault(Reason.TEACHER_CLAIMS_UNSUPPORTED, f"what was said of {len(verdicts)} objects is not to be seen")
            )
        return Verdicts(
            id=talk.sample.id, verdicts=tuple(verdicts), decoys=len(decoys) - decoys.count(None),
            decoys_accepted=decoys.count(True),
        )  # fmt: skip

    async def _at_decoy(self, one: SeenObject, branch: Branch, before: Before, talk: Talk) -> bool | None:
        """Whether the same words pass at a place that does not show the thing; None where that was not asked."""
        sample, objects = talk.sample, [as_object(other, talk.sample) for other in before.get(Objects).objects]
        there = one.model_copy(update={"source": "teacher"})  # nobody annotated it there

        async def passes(box: Box) -> bool:
            picture = crops.shown(box, sample.shown, self.manner.image_side)
            return (await self._judged(picture, there, branch, before, talk)).verdict != "reject"

        return await self.trust.try_decoy(as_object(one, sample), objects, talk, passes)

    async def _judged(self, picture: Picture, one: SeenObject, branch: Branch, before: Before, talk: Talk) -> Verdict:
        others = [other.label for other in before.get(Objects).objects if other.number != one.number]
        said = await talk.ask("verdict", [picture, _words(one, branch, before.get(Caption).caption, others)], Judged)
        return verdict_of(said, one, branch.caption)

    def foreseen(self, sample: Sample) -> list[Request]:
        thing = SeenObject(number=1, label="some thing", box=quarter(sample, 1).crop, score=1, source="teacher")
        words = _words(thing, Branch(number=1, visible=True, caption=STAND_IN[:150]), STAND_IN, ["others"])
        request = self.manner.request("verdict", [quarter(sample, self.manner.image_side), words], Judged)
        return [request] * (len(sample.true_boxes or ()) or FORESEEN_OBJECTS)


def verdict_of(said: Judged, one: SeenObject, caption: str) -> Verdict:
    """Rejected: the name is wrong, fewer than half of the claims hold, or the judge says so. Modified: only what is
    supported remains. What is annotated is never rejected."""
    claims = tuple(ClaimRecord(text=c.text, supported=c.supported, reason=c.reason) for c in said.claims)
    supported = [claim.text.strip() for claim in claims if claim.supported]
    few = not said.label_supported or said.verdict == "reject" or 2 * len(supported) < len(claims)
    verdict: Literal["keep", "modify", "reject"]
    if few and one.source != "gold":
        verdict, left = "reject", None
    elif not claims or len(supported) < len(claims):
        verdict, left = "modify", " ".join(supported)
    else:
        verdict, left = "keep", caption
    return Verdict(number=one.number, verdict=verdict, claims=claims, caption=left)


def _unseen(one: SeenObject) -> Verdict:
    """Of an object that whoever described the cut-out did not see."""
    gold = one.source == "gold"
    return Verdict(number=one.number, verdict="modify" if gold else "reject", claims=(), caption="" if gold else None)


def _words(one: SeenObject, branch: Branch, caption: str, others: list[str]) -> str:
    return "\n".join(
        [f"Name: {one.label}", f"Text: {branch.caption}", f"Description of the whole: {caption}",
         f"Other things: {', '.join(dict.fromkeys(others)) or 'none'}"]
    )  # fmt: skip
