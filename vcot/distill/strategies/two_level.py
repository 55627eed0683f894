"""Two-level distillation: the whole image in words, then each thing in it on its own, judged, then put together.

    captions → objects → branches (each cut-out in words) → verdicts → synthesis (questions and reasoning) → gates

Nothing but replies is kept: who runs it again, with another prompt for a late step, finds those of the early steps in
the reply cache. Objects are numbered from 1, annotated ones first, and keep their numbers through all steps.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

from vcot.answers import normalise
from vcot.distill import reply
from vcot.distill.dialogue import (
    Answered,
    Branched,
    Captioned,
    Dialogue,
    Fault,
    Found,
    Judged,
    Located,
    Parts,
    PromptConfig,
    Refused,
    Sentence,
    Synthesised,
    parse_reply,
)
from vcot.distill.objects import NEUTRAL, Object, asked, gives_away, in_frame, line, objects_of
from vcot.distill.request import Asker, Request, ShownImage
from vcot.distill.row import DistilledReasoning, Outcome, lacks_places, refuse
from vcot.distill.strategy import Strategy, whole_row
from vcot.distill.verification import Verification, apart, crop, evidence_crops, plain
from vcot.grounding import Box, FrameSpec, Mention, Trace
from vcot.records import Completion, Reason, Rejection, Sample
from vcot.records.sample import IMAGE_REASONS
from vcot.storage.images import ImageError

T = TypeVar("T")

LIKELY_OBJECTS = 4
"""Of an image, for the estimate before anybody has looked."""

STAND_IN = "A description of some eighty words stands here. " * 9
"""As long as a caption, for the estimate."""


class Branch(NamedTuple):
    """An object, and its cut-out in words."""

    object: Object
    visible: bool
    caption: str


class Pair(NamedTuple):
    """A question, its answer, and the reasoning as it was written, with objects by number."""

    question: str
    choices: tuple[str, ...]
    answer: str
    evidence: tuple[int, ...]
    rationale: str


class TwoLevel(Strategy):
    """Args: how many objects the teacher may propose for an image, and how many new questions an image gets."""

    purposes = ("caption", "objects", "locate", "branch", "verdict", "look", "synthesis", "reanswer")

    def __init__(self, config: PromptConfig, verification: Verification, *, most: int = 8, pairs: int = 2) -> None:
        super().__init__(config, verification)
        self._most, self._pairs = most, pairs

    @classmethod
    def of(cls, config: PromptConfig, verification: Verification, settings: Any) -> TwoLevel:
        return cls(config, verification, most=settings.objects, pairs=settings.pairs)

    async def outcome(self, sample: Sample, asker: Asker) -> Outcome:
        if not lacks_places(sample):
            return None

        async def step(name: str, make: Callable[[Dialogue], Awaitable[T]]) -> T:
            """What a step makes; where the row is refused at it, it is made again as often as the settings say."""
            said: tuple[str, ...] = ()
            for again in range(1 + self._config.ask_again):
                dialogue = Dialogue(asker, sample, self._config, self._counts, again=again)
                try:
                    return await make(dialogue)
                except Refused as refused:
                    rejection = dialogue.refusal(refused)
                    said += rejection.said
                    if rejection.reason is Reason.TEACHER_FAILED:  # at the endpoint, not for what was said
                        break
            raise _RowRefused(rejection.model_copy(update={"detail": f"{name}: {rejection.detail}", "said": said}))

        try:
            caption = await step("captions", self._describe)
            objects = await step("objects", lambda dialogue: self._find_objects(dialogue, caption))
            branches = await step("branches", lambda dialogue: self._describe_each(dialogue, objects))
            captions = await step("verdicts", lambda dialogue: self._judge_each(dialogue, caption, branches))
            kept = {one: captions[one.number] for one in objects if one.number in captions}

            async def synthesise(dialogue: Dialogue) -> tuple[list[Pair], tuple[str, ...]]:
                return await self._synthesise(dialogue, caption, kept), dialogue.models

            made = await step("synthesis", synthesise)
            return await step("gates", lambda dialogue: self._put_through_gates(dialogue, kept, made, synthesise))
        except _RowRefused as refused:
            return refused.rejection
        except ImageError as error:
            return refuse(sample, IMAGE_REASONS[error.reason], str(error))

    # ------------------------------------------------------------------------------- what is in the image, and where

    async def _describe(self, dialogue: Dialogue) -> str:
        """Without the question, so that all questions about an image share one caption."""
        said = await dialogue.ask("caption", self._caption_parts(dialogue.sample), Captioned)
        caption = " ".join(said.caption.split())
        if not caption:
            raise Refused(Reason.TEACHER_EMPTY, "the caption was empty")
        return caption

    async def _find_objects(self, dialogue: Dialogue, caption: str) -> list[Object]:
        """Annotated objects, and those that the teacher proposes and that stand the checks."""
        sample, gold = dialogue.sample, objects_of(dialogue.sample)
        said = await dialogue.ask("objects", self._objects_parts(sample, caption), Found)
        left_out: list[str] = []
        new: list[tuple[Object, float]] = []
        for one in said.objects:
            found = self._verification.at_sight(one.label, one.box, gold, dialogue)
            if isinstance(found, Fault):
                left_out.append(found.why)
            elif found.number == 0:  # else it is an annotated one, and there already
                new.append((found, one.score if 0 <= one.score <= 1 else 0.0))
        surest = apart([(found.label, found.box, score) for found, score in new], self._most)
        left_out += [
            f"another {found.label!r} lies there, or {self._most} objects are surer"
            for index, (found, _) in enumerate(new)
            if index not in surest
        ]
        chosen = [new[index][0] for index in surest]
        denied = await self._verification.confirmed(chosen, gold, dialogue, look=False)
        left_out += [denied[one].why for one in chosen if one in denied]
        standing = [one for one in chosen if one not in denied]
        if not gold and not standing and sample.evidence != ():
            why = "; ".join(left_out) or "none was proposed"
            raise Refused(Reason.TEACHER_NOTHING_LEFT, f"no object stood the checks: {why}")
        return [*gold, *(replace(one, number=number) for number, one in enumerate(standing, len(gold) + 1))]

    async def _describe_each(self, dialogue: Dialogue, objects: Sequence[Object]) -> list[Branch]:
        """Whoever describes a cut-out does not know the whole, and cannot tell what is only likely there."""
        branches = []
        for one in objects:
            said = await dialogue.ask(
                "branch", [self._cut_out(one.box, dialogue.sample), f"Name: {one.label}"], Branched
            )
            branches.append(Branch(one, said.visible, " ".join(said.caption.split())))
        return branches

    async def _judge_each(self, dialogue: Dialogue, caption: str, branches: Sequence[Branch]) -> dict[int, str]:
        """Number of an object → of its description, what its cut-out supports. What people annotated is there, whatever
        the judge says; only the words about it are judged."""
        sample, objects = dialogue.sample, [branch.object for branch in branches]
        annotated = objects_of(sample)
        described = [{"number": b.object.number, "visible": b.visible, "caption": b.caption} for b in branches]
        dialogue.said.append(_compact({"version": 1, "id": sample.id, "branches": described}))
        captions: dict[int, str] = {}
        for branch in branches:
            one, is_gold = branch.object, branch.object in annotated
            found = "" if is_gold else None
            if branch.visible:
                dialogue.counts["looks"] += 1
                words = _verdict_words(branch, caption, [other.label for other in objects if other is not one])
                found = await self._judge(dialogue, branch, words, one.box, annotated=is_gold)
                dialogue.counts["looks_refused"] += found is None
                passes = partial(
                    self._judge, dialogue, branch, words, annotated=False
                )  # nobody annotated it at a decoy
                await self._verification.try_negative_crop(one, objects, dialogue, passes)
            if found is not None:
                captions[one.number] = found
        if not captions and sample.evidence != ():
            why = f"what was said of {len(branches)} objects is not to be seen"
            raise Refused(Reason.TEACHER_CLAIMS_UNSUPPORTED, why)
        return captions

    async def _judge(self, dialogue: Dialogue, branch: Branch, words: str, box: Box, *, annotated: bool) -> str | None:
        said = await dialogue.ask("verdict", [self._cut_out(box, dialogue.sample), words], Judged)
        return supported_of(said, branch.caption, annotated=annotated)

    # --------------------------------------------------------------------------------------- what can be asked about it

    async def _synthesise(self, dialogue: Dialogue, caption: str, kept: Mapping[Object, str]) -> list[Pair]:
        """The row's own question first, then new ones."""
        sample, numbers = dialogue.sample, {one.number for one in kept}
        lines = [f"{line(one, sample.shown)}: {words}".rstrip(": ") for one, words in kept.items()]
        said = await dialogue.hear(
            "synthesis", self._synthesis_parts(sample, caption, lines), Synthesised,
            lambda completion: read_synthesis(completion, sample, numbers),
        )  # fmt: skip
        return [
            Pair(
                " ".join(pair.question.split()), tuple(pair.choices), " ".join(pair.answer.split()),
                tuple(dict.fromkeys(pair.evidence)), " ".join(reply.tidied(one.text) for one in pair.rationale),
            )
            for pair in said.pairs[: 1 + self._pairs]
        ]  # fmt: skip

    async def _put_through_gates(
        self, dialogue: Dialogue, kept: Collection[Object], made: tuple[list[Pair], tuple[str, ...]],
        synthesise: Callable[[Dialogue], Awaitable[tuple[list[Pair], tuple[str, ...]]]],
    ) -> DistilledReasoning | Rejection:  # fmt: skip
        """Each pair by itself; a row with one that is accepted is kept. Where none is, and rows are asked about again,
        other pairs are asked for."""
        pairs, models = made
        judged = [await self._judge_pair(number, pair, kept, dialogue) for number, pair in enumerate(pairs)]
        while all(isinstance(one, Rejection) for one in judged) and dialogue.again < self._config.ask_again:
            dialogue = dialogue.about(dialogue.sample, again=1)
            try:
                pairs, models = await synthesise(dialogue)
            except Refused:  # then what was refused before says more
                continue
            judged = [await self._judge_pair(number, pair, kept, dialogue) for number, pair in enumerate(pairs)]
        fallen = [one for one in judged if isinstance(one, Rejection)]
        accepted = [one for one in judged if isinstance(one, Sample)]
        if not accepted:
            return whole_row(fallen)
        own = accepted.pop(0).reasoning if accepted[0].id == dialogue.sample.id else ()
        flags = self._verification.flags(own, dialogue.sample)
        return DistilledReasoning(own, tuple(accepted), models=models, flags=flags, parts=tuple(fallen))

    async def _judge_pair(
        self, number: int, pair: Pair, kept: Collection[Object], dialogue: Dialogue
    ) -> Sample | Rejection:
        """The question as a row with its reasoning."""
        sample, trace = dialogue.sample, None
        try:
            row = sample if number == 0 else question_of(sample, number, pair, kept)
            parts, trace = read_rationale(pair, row, kept)
            numbers = {one.number for one in kept}
            for missing in (n for n in pair.evidence if n not in numbers):
                raise Refused(Reason.TEACHER_UNGROUNDED, f"its evidence is [{missing}], which was not kept")
            spoken = {*pair.evidence, *reply.numbers_in(parts)}
            for one in kept:
                if one.number in spoken and one.label != NEUTRAL and gives_away(one.label, row):
                    raise Refused(Reason.ANSWER_IN_LABEL, f"the label {one.label!r} gives the answer away")
            evidence = [one.box for one in kept if one.number in pair.evidence]
            await self._verification.answered(pair.answer, trace, dialogue.about(row), [*trace.boxes, *evidence])
        except Refused as refused:
            fault, negative = refused.fault, None
            if fault.reason is Reason.TEACHER_WRONG_ANSWER and number == 0 and trace is not None:
                negative = self._verification.negative_of(sample, trace, pair.answer)
            return refuse(sample, fault.reason, f"gates: {fault.why}").model_copy(
                update={"part": f"pair {number}", "said": (_compact(pair._asdict()),), "negative": negative}
            )
        return row.model_copy(update={"reasoning": (trace,)})

    # ----------------------------------------------------------------------------------------------- what is asked

    def estimate(self, sample: Sample) -> Sequence[Request]:
        """Where nothing is annotated: as if four things were in the image."""
        if not lacks_places(sample):
            return ()
        request, image = self._config.request, sample.shown
        middle = FrameSpec("thousandths").on(image.width, image.height).decode(375, 375, 625, 625)
        cut_out = self._cut_out(middle, sample)
        wanted = [request("caption", self._caption_parts(sample), Captioned)]
        wanted.append(request("objects", self._objects_parts(sample, STAND_IN), Found))
        if self._verification.self_consistency:
            words = "\n".join([in_frame(self._config.frame_of(image)), "Names:", *["some thing"] * 4])
            wanted.append(request("locate", [self._config.whole(sample.shown), words], Located))
        objects = len(sample.true_boxes or ()) or LIKELY_OBJECTS
        wanted += [request("branch", [cut_out, "Name: some thing"], Branched)] * objects
        thing = Branch(Object(1, "some thing", middle), True, STAND_IN[:150])
        verdict = _verdict_words(thing, STAND_IN, ["others"])
        wanted += [request("verdict", [cut_out, verdict], Judged)] * objects
        lines = [f"[1] some thing, top left, across 10-20 %, down 10-20 %: {STAND_IN[:150]}"] * LIKELY_OBJECTS
        wanted.append(request("synthesis", self._synthesis_parts(sample, STAND_IN, lines), Synthesised))
        if self._verification.answer_from_evidence:
            boxes = sample.true_boxes
            cuts = evidence_crops(boxes, image, self._config.image_side) if boxes else [cut_out]
            wanted.append(request("reanswer", [*cuts, "\n".join(asked(sample))], Answered))
        return wanted

    def _caption_parts(self, sample: Sample) -> Parts:
        return [self._config.whole(sample.shown), "Describe this image."]

    def _objects_parts(self, sample: Sample, caption: str) -> Parts:
        words = [in_frame(self._config.frame_of(sample.shown)), f"Description: {caption}", *asked(sample)]
        return [self._config.whole(sample.shown), "\n".join(words)]

    def _synthesis_parts(self, sample: Sample, caption: str, lines: list[str]) -> Parts:
        words = [f"Description: {caption}", "Objects:", *(lines or ["None is known."]), *asked(sample)]
        words += [f"Right answer: {sample.answers[0]}", f"New pairs: {self._pairs}"]
        return [self._config.whole(sample.shown), "\n".join(words)]

    def _cut_out(self, box: Box, sample: Sample) -> ShownImage:
        return crop(box, sample.shown, self._config.image_side)


class _RowRefused(Exception):
    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.detail)
        self.rejection = rejection


def _verdict_words(branch: Branch, caption: str, others: Sequence[str]) -> str:
    named = ", ".join(dict.fromkeys(others)) or "none"
    said = f"Name: {branch.object.label}\nText: {branch.caption}"
    return f"{said}\nDescription of the whole: {caption}\nOther things: {named}"


def supported_of(said: Judged, caption: str, *, annotated: bool) -> str | None:
    """What a verdict leaves of a caption: all of it, or the claims that are supported. None: the object is rejected,
    because its name is wrong, fewer than half of the claims hold, or the judge says so. An annotated one never is."""
    supported = [claim.text.strip() for claim in said.claims if claim.supported]
    few = not said.label_supported or said.verdict == "reject" or 2 * len(supported) < len(said.claims)
    if few and not annotated:
        return None
    return caption if said.claims and len(supported) == len(said.claims) else " ".join(supported)


def read_synthesis(completion: Completion, sample: Sample, kept: Collection[int]) -> Synthesised:
    """The synthesis of a reply: the row's own question comes first, relations are among what was kept. Raises
    Refused."""
    said = parse_reply(completion, Synthesised)
    if not said.pairs or normalise(said.pairs[0].question) != normalise(sample.question):
        raise Refused(Reason.TEACHER_UNREADABLE, "its first pair is not the question that was given")
    for number in (n for relation in said.relations for n in (relation.subject, relation.object)):
        if number not in kept:
            raise Refused(Reason.TEACHER_UNGROUNDED, f"a relation speaks of [{number}], which is not in the list")
    return said


def question_of(sample: Sample, number: int, pair: Pair, kept: Collection[Object]) -> Sample:
    """A new question as a row of its own; its evidence is what was checked. Raises Refused."""
    if not pair.question or not normalise(pair.answer):
        raise Refused(Reason.TEACHER_UNREADABLE, "the pair has no question, or no answer")
    if not all(map(plain, (pair.question, pair.answer, *pair.choices))):
        raise Refused(Reason.TEACHER_UNREADABLE, f"the pair is not in plain words: {pair.question[:80]!r}")
    if normalise(pair.question) == normalise(sample.question):
        raise Refused(Reason.DUPLICATE, "it is the row's own question again")
    if pair.choices and pair.answer not in pair.choices:
        why = f"its answer {pair.answer[:80]!r} is none of its choices"
        raise Refused(Reason.TEACHER_WRONG_ANSWER, why)
    evidence = tuple(Mention(one.label, (one.box,)) for one in kept if one.number in pair.evidence)
    return sample.model_copy(
        update={
            "id": f"{sample.id}#{number}", "question": pair.question, "context": None, "choices": pair.choices or None,
            "answers": (pair.answer,), "reasoning": (), "evidence": evidence,
        }
    )  # fmt: skip


def read_rationale(pair: Pair, row: Sample, kept: Collection[Object]) -> tuple[reply.Parts, Trace]:
    """The rationale, cut where it speaks of objects, and with their places. Raises Refused."""
    objects = {one.number: one for one in kept}
    parts = reply.parted([Sentence(text=pair.rationale)], row, objects)
    reply.check(parts, row, grounded=row.evidence != ())
    reply.concluding(reply.Said(parts, pair.answer, ()), row, {number: one.label for number, one in objects.items()})
    return parts, reply.build(parts, objects)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
