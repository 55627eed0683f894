"""Two-level distillation: the whole image in words, then each thing in it on its own, judged, then put together.

    captions → objects → branches (each cut-out in words) → verdicts → synthesis (questions and reasoning) → gates

Nothing but replies is kept: who runs it again, with another prompt for a late step, finds those of the early steps in
the reply cache. Objects are numbered from 1, annotated ones first, and keep their numbers through all steps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

from vcot.answers import normalise
from vcot.grounding import Box, FrameSpec, Mention, Trace
from vcot.records import Completion, Reason, Rejection, Sample
from vcot.records.sample import IMAGE_REASONS
from vcot.storage.images import ImageError
from vcot.teacher import checks, crops, reply, structured
from vcot.teacher.alternatives import whole_row
from vcot.teacher.objects import NEUTRAL, Object, gives_away, objects_of
from vcot.teacher.prompt import asked, in_frame, line
from vcot.teacher.request import Asker, Picture, Request
from vcot.teacher.row import Lesson, Outcome, lacks_places, refuse
from vcot.teacher.shapes import Answered, Branched, Captioned, Found, Judged, Located, Sentence, Synthesised
from vcot.teacher.structured import Fault
from vcot.teacher.talk import Manner, Refused, Talk
from vcot.teacher.trust import Trust, negative_of

T = TypeVar("T")
Parts = list[str | Picture]

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


class TwoLevel:
    """Args: how many objects the teacher may propose for an image, and how many new questions an image gets."""

    def __init__(self, manner: Manner, trust: Trust, *, most: int = 8, pairs: int = 2) -> None:
        self.name = manner.model
        self._manner, self._trust, self._most, self._pairs = manner, trust, most, pairs
        self._counts: Counter[str] = Counter()

    def counts(self) -> Mapping[str, int]:
        return self._counts

    async def outcome(self, sample: Sample, asker: Asker) -> Outcome:
        if not lacks_places(sample):
            return None

        async def step(name: str, make: Callable[[Talk], Awaitable[T]]) -> T:
            """What a step makes; where the row is refused at it, it is made again as often as the settings say."""
            said: tuple[str, ...] = ()
            for again in range(1 + self._manner.ask_again):
                talk = Talk(asker, sample, self._manner, self._counts, again=again)
                try:
                    return await make(talk)
                except Refused as refused:
                    rejection = talk.refusal(refused)
                    said += rejection.said
                    if rejection.reason is Reason.TEACHER_FAILED:  # at the endpoint, not for what was said
                        break
            raise _RowRefused(rejection.model_copy(update={"detail": f"{name}: {rejection.detail}", "said": said}))

        try:
            caption = await step("captions", self._describe)
            objects = await step("objects", lambda talk: self._find_objects(talk, caption))
            branches = await step("branches", lambda talk: self._describe_each(talk, objects))
            captions = await step("verdicts", lambda talk: self._judge_each(talk, caption, branches))
            kept = {one: captions[one.number] for one in objects if one.number in captions}

            async def synthesise(talk: Talk) -> tuple[list[Pair], tuple[str, ...]]:
                return await self._synthesise(talk, caption, kept), talk.models

            made = await step("synthesis", synthesise)
            return await step("gates", lambda talk: self._put_through_gates(talk, kept, made, synthesise))
        except _RowRefused as refused:
            return refused.rejection
        except ImageError as error:
            return refuse(sample, IMAGE_REASONS[error.reason], str(error))

    # ------------------------------------------------------------------------------- what is in the image, and where

    async def _describe(self, talk: Talk) -> str:
        """Without the question, so that all questions about an image share one caption."""
        caption = " ".join((await talk.ask("caption", self._caption_parts(talk.sample), Captioned)).caption.split())
        if not caption:
            raise Refused(Fault(Reason.TEACHER_EMPTY, "the caption was empty"))
        return caption

    async def _find_objects(self, talk: Talk, caption: str) -> list[Object]:
        """Annotated objects, and those that the teacher proposes and that stand the checks."""
        sample, gold = talk.sample, objects_of(talk.sample)
        said = await talk.ask("objects", self._objects_parts(sample, caption), Found)
        left_out: list[str] = []
        new: list[tuple[Object, float]] = []
        for one in said.objects:
            found = self._trust.at_sight(one.label, one.box, gold, talk)
            if isinstance(found, Fault):
                left_out.append(found.why)
            elif found.number == 0:  # else it is an annotated one, and there already
                new.append((found, one.score if 0 <= one.score <= 1 else 0.0))
        surest = checks.apart([(found.label, found.box, score) for found, score in new], self._most)
        left_out += [
            f"another {found.label!r} lies there, or {self._most} objects are surer"
            for index, (found, _) in enumerate(new)
            if index not in surest
        ]
        chosen = [new[index][0] for index in surest]
        denied = await self._trust.confirmed(chosen, gold, talk, look=False)
        left_out += [denied[one].why for one in chosen if one in denied]
        standing = [one for one in chosen if one not in denied]
        if not gold and not standing and sample.evidence != ():
            why = "; ".join(left_out) or "none was proposed"
            raise Refused(Fault(Reason.TEACHER_NOTHING_LEFT, f"no object stood the checks: {why}"))
        return [*gold, *(replace(one, number=number) for number, one in enumerate(standing, len(gold) + 1))]

    async def _describe_each(self, talk: Talk, objects: Sequence[Object]) -> list[Branch]:
        """Whoever describes a cut-out does not know the whole, and cannot tell what is only likely there."""
        branches = []
        for one in objects:
            said = await talk.ask("branch", [self._cut_out(one.box, talk.sample), f"Name: {one.label}"], Branched)
            branches.append(Branch(one, said.visible, " ".join(said.caption.split())))
        return branches

    async def _judge_each(self, talk: Talk, caption: str, branches: Sequence[Branch]) -> dict[int, str]:
        """Number of an object → of its description, what its cut-out supports. What people annotated is there, whatever
        the judge says; only the words about it are judged."""
        sample, objects = talk.sample, [branch.object for branch in branches]
        annotated = objects_of(sample)
        described = [{"number": b.object.number, "visible": b.visible, "caption": b.caption} for b in branches]
        talk.said.append(_compact({"version": 1, "id": sample.id, "branches": described}))
        captions: dict[int, str] = {}
        for branch in branches:
            one, is_gold = branch.object, branch.object in annotated
            found = "" if is_gold else None
            if branch.visible:
                talk.counts["looks"] += 1
                words = _verdict_words(branch, caption, [other.label for other in objects if other is not one])
                found = await self._judge(talk, branch, words, one.box, annotated=is_gold)
                talk.counts["looks_refused"] += found is None
                passes = partial(self._judge, talk, branch, words, annotated=False)  # nobody annotated it at a decoy
                await self._trust.try_decoy(one, objects, talk, passes)
            if found is not None:
                captions[one.number] = found
        if not captions and sample.evidence != ():
            why = f"what was said of {len(branches)} objects is not to be seen"
            raise Refused(Fault(Reason.TEACHER_CLAIMS_UNSUPPORTED, why))
        return captions

    async def _judge(self, talk: Talk, branch: Branch, words: str, box: Box, *, annotated: bool) -> str | None:
        said = await talk.ask("verdict", [self._cut_out(box, talk.sample), words], Judged)
        return supported_of(said, branch.caption, annotated=annotated)

    # --------------------------------------------------------------------------------------- what can be asked about it

    async def _synthesise(self, talk: Talk, caption: str, kept: Mapping[Object, str]) -> list[Pair]:
        """The row's own question first, then new ones."""
        sample, numbers = talk.sample, {one.number for one in kept}
        lines = [f"{line(one, sample)}: {words}".rstrip(": ") for one, words in kept.items()]
        said = await talk.hear(
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
        self, talk: Talk, kept: Collection[Object], made: tuple[list[Pair], tuple[str, ...]],
        synthesise: Callable[[Talk], Awaitable[tuple[list[Pair], tuple[str, ...]]]],
    ) -> Lesson | Rejection:  # fmt: skip
        """Each pair by itself; a row with one that is accepted is kept. Where none is, and rows are asked about again,
        other pairs are asked for."""
        pairs, models = made
        judged = [await self._judge_pair(number, pair, kept, talk) for number, pair in enumerate(pairs)]
        while all(isinstance(one, Rejection) for one in judged) and talk.again < self._manner.ask_again:
            talk = talk.anew()
            try:
                pairs, models = await synthesise(talk)
            except Refused:  # then what was refused before says more
                continue
            judged = [await self._judge_pair(number, pair, kept, talk) for number, pair in enumerate(pairs)]
        fallen = [one for one in judged if isinstance(one, Rejection)]
        accepted = [one for one in judged if isinstance(one, Sample)]
        if not accepted:
            return whole_row(fallen)
        own = accepted.pop(0).reasoning if accepted[0].id == talk.sample.id else ()
        flags = self._trust.flags(own, talk.sample)
        return Lesson(own, tuple(accepted), models=models, flags=flags, parts=tuple(fallen))

    async def _judge_pair(self, number: int, pair: Pair, kept: Collection[Object], talk: Talk) -> Sample | Rejection:
        """The question as a row with its reasoning."""
        sample, trace = talk.sample, None
        try:
            row = sample if number == 0 else question_of(sample, number, pair, kept)
            parts, trace = read_rationale(pair, row, kept)
            numbers = {one.number for one in kept}
            for missing in (n for n in pair.evidence if n not in numbers):
                raise Refused(Fault(Reason.TEACHER_UNGROUNDED, f"its evidence is [{missing}], which was not kept"))
            spoken = {*pair.evidence, *reply.numbers_in(parts)}
            for one in kept:
                if one.number in spoken and one.label != NEUTRAL and gives_away(one.label, row):
                    raise Refused(Fault(Reason.ANSWER_IN_LABEL, f"the label {one.label!r} gives the answer away"))
            evidence = [one.box for one in kept if one.number in pair.evidence]
            await self._trust.answered(pair.answer, trace, talk.about(row), [*trace.boxes, *evidence])
        except Refused as refused:
            fault, negative = refused.fault, None
            if fault.reason is Reason.TEACHER_WRONG_ANSWER and number == 0 and trace is not None:
                negative = negative_of(sample, trace, pair.answer)
            return refuse(sample, fault.reason, f"gates: {fault.why}").model_copy(
                update={
                    "part": f"pair {number}", "said": (_compact(pair._asdict()),),
                    "negative": negative if self._trust.wrong_answers == "negatives" else None,
                }
            )  # fmt: skip
        return row.model_copy(update={"reasoning": (trace,)})

    # ----------------------------------------------------------------------------------------------- what is asked

    def foreseen(self, sample: Sample) -> Sequence[Request]:
        """Where nothing is annotated: as if four things were in the image."""
        if not lacks_places(sample):
            return ()
        request, image = self._manner.request, sample.shown
        middle = FrameSpec("thousandths").on(image.width, image.height).decode(375, 375, 625, 625)
        cut_out = self._cut_out(middle, sample)
        wanted = [request("caption", self._caption_parts(sample), Captioned)]
        wanted.append(request("objects", self._objects_parts(sample, STAND_IN), Found))
        if self._trust.twice:
            words = "\n".join([in_frame(self._manner.frame_of(image)), "Names:", *["some thing"] * 4])
            wanted.append(request("locate", [self._whole(sample), words], Located))
        objects = len(sample.true_boxes or ()) or LIKELY_OBJECTS
        wanted += [request("branch", [cut_out, "Name: some thing"], Branched)] * objects
        thing = Branch(Object(1, "some thing", middle, ""), True, STAND_IN[:150])
        verdict = _verdict_words(thing, STAND_IN, ["others"])
        wanted += [request("verdict", [cut_out, verdict], Judged)] * objects
        lines = [f"[1] some thing, top left, across 10-20 %, down 10-20 %: {STAND_IN[:150]}"] * LIKELY_OBJECTS
        wanted.append(request("synthesis", self._synthesis_parts(sample, STAND_IN, lines), Synthesised))
        if self._trust.reanswer:
            boxes = sample.true_boxes
            cuts = crops.evidence(boxes, image, self._manner.image_side) if boxes else [cut_out]
            wanted.append(request("reanswer", [*cuts, "\n".join(asked(sample))], Answered))
        return wanted

    def _caption_parts(self, sample: Sample) -> Parts:
        return [self._whole(sample), "Describe this image."]

    def _objects_parts(self, sample: Sample, caption: str) -> Parts:
        words = [in_frame(self._manner.frame_of(sample.shown)), f"Description: {caption}", *asked(sample)]
        return [self._whole(sample), "\n".join(words)]

    def _synthesis_parts(self, sample: Sample, caption: str, lines: list[str]) -> Parts:
        words = [f"Description: {caption}", "Objects:", *(lines or ["None is known."]), *asked(sample)]
        words += [f"Right answer: {sample.answers[0]}", f"New pairs: {self._pairs}"]
        return [self._whole(sample), "\n".join(words)]

    def _whole(self, sample: Sample) -> Picture:
        return Picture(sample.shown, self._manner.image_side)

    def _cut_out(self, box: Box, sample: Sample) -> Picture:
        return crops.shown(box, sample.shown, self._manner.image_side)


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


def read_synthesis(completion: Completion, sample: Sample, kept: Collection[int]) -> Synthesised | Fault:
    """The synthesis of a reply: the row's own question comes first, relations are among what was kept."""
    said = structured.read(completion, Synthesised)
    if isinstance(said, Fault):
        return said
    if not said.pairs or normalise(said.pairs[0].question) != normalise(sample.question):
        return Fault(Reason.TEACHER_UNREADABLE, "its first pair is not the question that was given")
    for number in (n for relation in said.relations for n in (relation.subject, relation.object)):
        if number not in kept:
            return Fault(Reason.TEACHER_UNGROUNDED, f"a relation speaks of [{number}], which is not in the list")
    return said


def question_of(sample: Sample, number: int, pair: Pair, kept: Collection[Object]) -> Sample:
    """A new question as a row of its own; its evidence is what was checked. Raises Refused."""
    if not pair.question or not normalise(pair.answer):
        raise Refused(Fault(Reason.TEACHER_UNREADABLE, "the pair has no question, or no answer"))
    if not all(map(checks.plain, (pair.question, pair.answer, *pair.choices))):
        raise Refused(Fault(Reason.TEACHER_UNREADABLE, f"the pair is not in plain words: {pair.question[:80]!r}"))
    if normalise(pair.question) == normalise(sample.question):
        raise Refused(Fault(Reason.DUPLICATE, "it is the row's own question again"))
    if pair.choices and pair.answer not in pair.choices:
        why = f"its answer {pair.answer[:80]!r} is none of its choices"
        raise Refused(Fault(Reason.TEACHER_WRONG_ANSWER, why))
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
    if isinstance(parts, Fault):
        raise Refused(parts)
    fault = reply.check(parts, row, grounded=row.evidence != ())
    said = fault or reply.concluding(reply.Said(parts, pair.answer, ()), row, {n: o.label for n, o in objects.items()})
    if isinstance(said, Fault):
        raise Refused(said)
    return parts, reply.build(parts, objects)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
