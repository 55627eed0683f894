"""Two-level distillation: the whole image in words, then each thing in it on its own, judged, then put together.

    captions → objects → branches (each cut-out in words) → verdicts → synthesis (questions and reasoning) → gates

Nothing but replies is kept: who runs it again, with another prompt for a late step, finds those of the early steps in
the reply cache. Objects are numbered from 1, annotated ones first, and keep their numbers through all steps.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, TypeVar

from pydantic import Field

from vcot.answers import normalise
from vcot.distill import DistilledReasoning, Fault, Refused, reasoning, refuse
from vcot.distill.conclusion import gives_away
from vcot.distill.crops import NEUTRAL, Object, evidence_crops, frame_line, object_line, objects_of, question_lines
from vcot.distill.dialogue import Dialogue, Numbers, Parts, Shape, parse_reply
from vcot.distill.reasoning import Reasoning, Sentence, Sentences
from vcot.distill.request import Client, Request
from vcot.distill.strategies import ProposalOptions, Strategy, strategy, whole_row
from vcot.distill.verification import SAME_THING, Answered, Located, is_plain
from vcot.grounding import Box, FrameSpec, Mention, iou
from vcot.records import Completion, Reason, Rejection, Sample
from vcot.records.sample import IMAGE_REASONS
from vcot.settings import setting
from vcot.storage.images import ImageError

T = TypeVar("T")

LIKELY_OBJECTS = 4  # of an image, for the estimate before anybody has looked
STAND_IN = "A description of some eighty words stands here. " * 9  # as long as a caption, for the estimate


class TwoLevelOptions(ProposalOptions):
    pairs: int = setting(2, "two-level: new questions for each image, beside its own", unit="questions", ge=0, le=16)


class Captioned(Shape, purpose="caption"):
    caption: str


class Seen(Shape):
    label: str
    box: Numbers
    score: float = 0.0


class Found(Shape, purpose="objects"):
    objects: list[Seen]


class Branched(Shape, purpose="branch"):
    visible: bool
    caption: str = ""


class Claim(Shape):
    text: str
    supported: bool
    reason: str = ""


class Judged(Shape, purpose="verdict"):
    label_supported: bool
    claims: list[Claim]
    verdict: Literal["keep", "modify", "reject"]


class Relation(Shape):
    subject: int
    predicate: str
    object: int


class Pair(Shape):
    question: str
    choices: list[str] = Field(default_factory=list)
    answer: str
    evidence: list[int]
    rationale: Sentences


class Synthesised(Shape, purpose="synthesis"):
    relations: list[Relation] = Field(default_factory=list)
    pairs: list[Pair]


class Branch(NamedTuple):
    """An object, and its cut-out in words."""

    object: Object
    visible: bool
    caption: str


class Question(NamedTuple):
    """A pair on one line each: question, answer, and the reasoning as it was written, with objects by number."""

    question: str
    choices: tuple[str, ...]
    answer: str
    evidence: tuple[int, ...]
    rationale: str


@strategy(
    "two-level",
    "The model describes the image and each thing in it apart, judges what it said, then writes reasoning and new\n"
    "questions.",
    TwoLevelOptions,
)
class TwoLevel(Strategy):
    purposes = ("caption", "objects", "locate", "branch", "verdict", "look", "synthesis", "reanswer")

    async def teach(self, sample: Sample, client: Client) -> DistilledReasoning | Rejection:
        async def step(name: str, make: Callable[[Dialogue], Awaitable[T]]) -> T:
            """What a step makes; where the row is refused at it, it is made again as often as the settings say."""
            said: tuple[str, ...] = ()
            for again in range(1 + self.config.options.ask_again):
                dialogue = Dialogue(client, sample, self.config, self.counted, again=again)
                try:
                    return await make(dialogue)
                except Refused as refused:
                    rejection = dialogue.rejection(refused)
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
            synthesise = partial(self._synthesise, caption=caption, kept=kept)
            questions, models = await step("synthesis", synthesise)
            dialogue = Dialogue(client, sample, self.config, self.counted)
            checked = [await self._check_pair(n, pair, kept, dialogue) for n, pair in enumerate(questions)]
            # Where no pair is accepted, and rows are asked about again, other pairs are asked for.
            while all(isinstance(one, Rejection) for one in checked) and dialogue.again < self.config.options.ask_again:
                dialogue = dialogue.about(sample, again=1)
                with suppress(Refused):  # else what was refused before says more
                    questions, models = await synthesise(dialogue)
                    checked = [await self._check_pair(n, pair, kept, dialogue) for n, pair in enumerate(questions)]
        except _RowRefused as refused:
            return refused.rejection
        except ImageError as error:
            return refuse(sample, IMAGE_REASONS[error.reason], str(error))
        fallen = [one for one in checked if isinstance(one, Rejection)]
        accepted = [one for one in checked if isinstance(one, Sample)]
        if not accepted:
            return whole_row(fallen)
        own = accepted.pop(0).reasoning if accepted[0].id == sample.id else ()
        flags = self.verification.flags(own, sample)
        return DistilledReasoning(own, tuple(accepted), models=models, flags=flags, parts=tuple(fallen))

    # --- what is in the image, and where

    async def _describe(self, dialogue: Dialogue) -> str:
        """Without the question, so that all questions about an image share one caption."""
        said = await dialogue.ask(Captioned, self._caption_parts(dialogue.sample))
        if not (caption := " ".join(said.caption.split())):
            raise Refused(Reason.TEACHER_EMPTY, "the caption was empty")
        return caption

    async def _find_objects(self, dialogue: Dialogue, caption: str) -> list[Object]:
        """Annotated objects, and those that the teacher proposes and that stand the checks."""
        sample, annotated, most = dialogue.sample, objects_of(dialogue.sample), self.options.objects
        said = await dialogue.ask(Found, self._objects_parts(sample, caption))
        left_out: list[str] = []
        new: list[tuple[Object, float]] = []
        for one in said.objects:
            found = self.verification.at_sight(one.label, one.box, annotated, dialogue)
            if isinstance(found, Fault):
                left_out.append(found.why)
            elif found.number == 0:  # else it is an annotated one, and there already
                new.append((found, one.score if 0 <= one.score <= 1 else 0.0))
        surest = apart(new, most)
        left_out += [
            f"another {found.label!r} lies there, or {most} objects are surer"
            for index, (found, _) in enumerate(new)
            if index not in surest
        ]
        chosen = [new[index][0] for index in surest]
        denied = await self.verification.denied(chosen, annotated, dialogue, look=False)
        left_out += [denied[one].why for one in chosen if one in denied]
        standing = [one for one in chosen if one not in denied]
        if not annotated and not standing and sample.evidence != ():
            why = "; ".join(left_out) or "none was proposed"
            raise Refused(Reason.TEACHER_NOTHING_LEFT, f"no object stood the checks: {why}")
        return [*annotated, *(replace(one, number=n) for n, one in enumerate(standing, len(annotated) + 1))]

    async def _describe_each(self, dialogue: Dialogue, objects: Sequence[Object]) -> list[Branch]:
        """Whoever describes a cut-out does not know the whole, and cannot tell what is only likely there."""
        branches = []
        for one in objects:
            parts: Parts = [self.config.crop(one.box, dialogue.sample.shown), f"Name: {one.label}"]
            said = await dialogue.ask(Branched, parts)
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
            one, is_annotated = branch.object, branch.object in annotated
            found = "" if is_annotated else None
            if branch.visible:
                dialogue.counts["looks"] += 1
                words = _verdict_words(branch, caption, [other.label for other in objects if other is not one])
                judge = partial(self._judge, dialogue, branch, words)
                found = await judge(one.box, annotated=is_annotated)
                dialogue.counts["looks_refused"] += found is None
                # Nobody annotated it at the negative crop.
                await self.verification.try_negative_crop(one, objects, dialogue, partial(judge, annotated=False))
            if found is not None:
                captions[one.number] = found
        if not captions and sample.evidence != ():
            why = f"what was said of {len(branches)} objects is not to be seen"
            raise Refused(Reason.TEACHER_CLAIMS_UNSUPPORTED, why)
        return captions

    async def _judge(self, dialogue: Dialogue, branch: Branch, words: str, box: Box, *, annotated: bool) -> str | None:
        said = await dialogue.ask(Judged, [self.config.crop(box, dialogue.sample.shown), words])
        return supported_of(said, branch.caption, annotated=annotated)

    # --- what can be asked about it

    async def _synthesise(
        self, dialogue: Dialogue, caption: str, kept: Mapping[Object, str]
    ) -> tuple[list[Question], tuple[str, ...]]:
        """The row's own question first, then new ones; and which models wrote them."""
        sample, numbers = dialogue.sample, {one.number for one in kept}
        lines = [f"{object_line(one, sample.shown)}: {words}".rstrip(": ") for one, words in kept.items()]
        said = await dialogue.read(
            self.config.request(Synthesised, self._synthesis_parts(sample, caption, lines)),
            lambda completion: read_synthesis(completion, sample, numbers),
        )
        questions = [
            Question(
                " ".join(pair.question.split()), tuple(pair.choices), " ".join(pair.answer.split()),
                tuple(dict.fromkeys(pair.evidence)), " ".join(reasoning.tidied(one.text) for one in pair.rationale),
            )
            for pair in said.pairs[: 1 + self.options.pairs]
        ]  # fmt: skip
        return questions, dialogue.models

    async def _check_pair(
        self, number: int, pair: Question, kept: Collection[Object], dialogue: Dialogue
    ) -> Sample | Rejection:
        """The question as a row with its reasoning; number 0 is the row's own."""
        sample, trace = dialogue.sample, None
        try:
            row = sample if number == 0 else question_of(sample, number, pair, kept)
            objects = {one.number: one for one in kept}
            parts = reasoning.cut([Sentence(text=pair.rationale)], row, objects)
            reasoning.check(parts, row, grounded=row.evidence != ())
            names = {one.number: one.label for one in kept}
            reasoning.check_conclusion(Reasoning(parts, pair.answer), row, names)
            trace = reasoning.build(parts, objects)
            for missing in (n for n in pair.evidence if n not in objects):
                raise Refused(Reason.TEACHER_UNGROUNDED, f"its evidence is [{missing}], which was not kept")
            spoken_of = {*pair.evidence, *reasoning.numbers_in(parts)}
            for one in kept:
                if one.number in spoken_of and one.label != NEUTRAL and gives_away(one.label, row):
                    raise Refused(Reason.ANSWER_IN_LABEL, f"the label {one.label!r} gives the answer away")
            evidence = [one.box for one in kept if one.number in pair.evidence]
            await self.verification.check_answer(pair.answer, trace, dialogue.about(row), [*trace.boxes, *evidence])
        except Refused as refused:
            fault, negative = refused.fault, None
            if fault.reason is Reason.TEACHER_WRONG_ANSWER and number == 0 and trace is not None:
                negative = self.verification.negative_of(sample, trace, pair.answer)
            return refuse(sample, fault.reason, f"gates: {fault.why}").model_copy(
                update={"part": f"pair {number}", "said": (_compact(pair._asdict()),), "negative": negative}
            )
        return row.model_copy(update={"reasoning": (trace,)})

    # --- what is asked

    def requests(self, sample: Sample) -> Sequence[Request]:
        """Where nothing is annotated: as if four things were in the image."""
        image, crop, verify = sample.shown, self.config.crop, self.verification.options
        middle = FrameSpec("thousandths").on(image.width, image.height).decode(375, 375, 625, 625)
        thing, boxes = Object(1, "some thing", middle), sample.true_boxes
        verdict = _verdict_words(Branch(thing, True, STAND_IN[:150]), STAND_IN, ["others"])
        names = "\n".join([frame_line(self.config.frame_of(image)), "Names:", *[thing.label] * LIKELY_OBJECTS])
        lines = [f"[1] some thing, top left, across 10-20 %, down 10-20 %: {STAND_IN[:150]}"] * LIKELY_OBJECTS
        cuts = evidence_crops(boxes, image, self.config.options.image_side) if boxes else [crop(middle, image)]
        each = len(boxes or ()) or LIKELY_OBJECTS
        steps: list[tuple[type[Shape], Parts, int]] = [
            (Captioned, self._caption_parts(sample), 1),
            (Found, self._objects_parts(sample, STAND_IN), 1),
            (Located, [self.config.whole(image), names], int(verify.self_consistency)),
            (Branched, [crop(middle, image), "Name: some thing"], each),
            (Judged, [crop(middle, image), verdict], each),
            (Synthesised, self._synthesis_parts(sample, STAND_IN, lines), 1),
            (Answered, [*cuts, "\n".join(question_lines(sample))], int(verify.answer_from_evidence)),
        ]
        return [self.config.request(shape, parts) for shape, parts, times in steps for _ in range(times)]

    def _caption_parts(self, sample: Sample) -> Parts:
        return [*self.config.all_of(sample), "Describe this image."]

    def _objects_parts(self, sample: Sample, caption: str) -> Parts:
        frame = frame_line(self.config.frame_of(sample.shown))
        words = [frame, f"Description: {caption}", *question_lines(sample)]
        return [*self.config.all_of(sample), "\n".join(words)]

    def _synthesis_parts(self, sample: Sample, caption: str, lines: list[str]) -> Parts:
        words = [f"Description: {caption}", "Objects:", *(lines or ["None is known."]), *question_lines(sample)]
        words += [f"Right answer: {sample.answers[0]}", f"New pairs: {self.options.pairs}"]
        return [*self.config.all_of(sample), "\n".join(words)]


@dataclass(eq=False)
class _RowRefused(Exception):
    rejection: Rejection


def apart(found: Sequence[tuple[Object, float]], most: int) -> list[int]:
    """Per label, the surest of those that overlap (IoU 0.7); of all, the `most` surest. Their indices, in order."""
    kept: list[int] = []
    for index in sorted(range(len(found)), key=lambda index: -found[index][1]):
        label, box = normalise(found[index][0].label), found[index][0].box
        others = (found[k][0] for k in kept)
        if all(normalise(other.label) != label or iou(other.box, box) < SAME_THING for other in others):
            kept.append(index)
    return sorted(kept[:most])


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


def question_of(sample: Sample, number: int, pair: Question, kept: Collection[Object]) -> Sample:
    """A new question as a row of its own; its evidence is what was checked. Raises Refused."""
    if not pair.question or not normalise(pair.answer):
        raise Refused(Reason.TEACHER_UNREADABLE, "the pair has no question, or no answer")
    if not all(map(is_plain, (pair.question, pair.answer, *pair.choices))):
        raise Refused(Reason.TEACHER_UNREADABLE, f"the pair is not in plain words: {pair.question[:80]!r}")
    if normalise(pair.question) == normalise(sample.question):
        raise Refused(Reason.DUPLICATE, "it is the row's own question again")
    if pair.choices and pair.answer not in pair.choices:
        raise Refused(Reason.TEACHER_WRONG_ANSWER, f"its answer {pair.answer[:80]!r} is none of its choices")
    evidence = tuple(Mention(one.label, (one.box,)) for one in kept if one.number in pair.evidence)
    return sample.model_copy(
        update={
            "id": f"{sample.id}#{number}", "question": pair.question, "context": None, "choices": pair.choices or None,
            "answers": (pair.answer,), "reasoning": (), "evidence": evidence,
        }
    )  # fmt: skip


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
