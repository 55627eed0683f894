"""The last steps: what stood is linked and asked about, and each question must pass the gates."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from vcot.answers import normalise
from vcot.grounding import Mention, Trace
from vcot.records import Completion, Reason, Sample
from vcot.records.steps import (
    Caption,
    Gates,
    JudgedPair,
    Objects,
    PairRecord,
    RelationRecord,
    Synthesis,
    Verdicts,
)
from vcot.teacher import checks, crops, reply, structured
from vcot.teacher.objects import NEUTRAL, gives_away
from vcot.teacher.prompt import asked, line
from vcot.teacher.request import Picture, Request
from vcot.teacher.shapes import Answered, Sentence, Synthesised
from vcot.teacher.structured import Fault
from vcot.teacher.talk import Refused, Talk
from vcot.teacher.two_level.describe import STAND_IN, quarter
from vcot.teacher.two_level.step import FORESEEN_OBJECTS, Before, Step, as_object

READING_GATES = ("parse", "evidence_kept", "no_answer_in_label")
ANSWER_GATES = {
    Reason.TEACHER_WRONG_ANSWER: "answer_agrees",
    Reason.TEACHER_ANSWER_FIRST: "evidence_first",
    Reason.TEACHER_EVIDENCE_FALLS_SHORT: "reanswer_agrees",
}
"""The gates in their order; those of the answer by the reason that they refuse for, as far as they are asked."""


@dataclass(frozen=True)
class SynthesisStep(Step):
    """`pairs`: how many new questions each image gets, beside its own."""

    pairs: int = 2

    name: ClassVar[str] = "synthesis"
    record = Synthesis
    purposes = ("synthesis",)
    version: ClassVar[int] = 2

    def parameters(self) -> dict[str, Any]:
        return {"pairs": self.pairs}

    async def make(self, talk: Talk, before: Before) -> Synthesis:
        sample, caption = talk.sample, before.get(Caption).caption
        captions = {v.number: v.caption or "" for v in before.get(Verdicts).verdicts if v.verdict != "reject"}
        kept = tuple(one for one in before.get(Objects).objects if one.number in captions)
        lines = [f"{line(as_object(one, sample), sample)}: {captions[one.number]}".rstrip(": ") for one in kept]
        said = await talk.hear(
            "synthesis", self._parts(sample, caption, lines), Synthesised, lambda c: read(c, sample, captions)
        )
        return Synthesis(
            id=sample.id, caption=caption, objects=kept, captions=captions,
            relations=tuple(RelationRecord(**relation.model_dump()) for relation in said.relations),
            pairs=tuple(
                PairRecord(
                    question=" ".join(pair.question.split()), choices=tuple(pair.choices),
                    answer=" ".join(pair.answer.split()), evidence=tuple(dict.fromkeys(pair.evidence)),
                    rationale=" ".join(reply.tidied(one.text) for one in pair.rationale),
                )
                for pair in said.pairs[: 1 + self.pairs]
            ),
            answered_by=talk.models,
        )  # fmt: skip

    def foreseen(self, sample: Sample) -> list[Request]:
        lines = [f"[1] some thing, top left, across 10-20 %, down 10-20 %: {STAND_IN[:150]}"] * FORESEEN_OBJECTS
        return [self.manner.request("synthesis", self._parts(sample, STAND_IN, lines), Synthesised)]

    def _parts(self, sample: Sample, caption: str, lines: list[str]) -> list[str | Picture]:
        words = [f"Description: {caption}", "Objects:", *(lines or ["None is known."]), *asked(sample)]
        words += [f"Right answer: {sample.answers[0]}", f"New pairs: {self.pairs}"]
        return [self.whole(sample), "\n".join(words)]


def read(completion: Completion, sample: Sample, kept: Collection[int]) -> Synthesised | Fault:
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


@dataclass(frozen=True)
class GatesStep(Step):
    """Each pair by itself; a row with one that is accepted is kept. Where none is, and rows are asked about again,
    `synthesis` makes other pairs."""

    synthesis: SynthesisStep

    name: ClassVar[str] = "gates"
    version: ClassVar[int] = 2
    record = Gates
    purposes = ("reanswer",)

    def parameters(self) -> dict[str, Any]:
        return {"reanswer": self.trust.reanswer, "answer_first": self.trust.answer_first}

    async def make(self, talk: Talk, before: Before) -> Gates:
        made = before.get(Synthesis)
        judged = [await self._judged(number, pair, made, talk) for number, pair in enumerate(made.pairs)]
        while not any(one.accepted for one in judged) and talk.again < self.manner.ask_again:
            talk = talk.anew()
            try:
                made = await self.synthesis.make(talk, before)
            except Refused:  # then what was refused before says more
                continue
            judged = [await self._judged(number, pair, made, talk) for number, pair in enumerate(made.pairs)]
        return Gates(
            id=talk.sample.id, accepted=any(one.accepted for one in judged), pairs=tuple(judged),
            answered_by=made.answered_by,
        )  # fmt: skip

    async def _judged(self, number: int, pair: PairRecord, made: Synthesis, talk: Talk) -> JudgedPair:
        row = talk.sample if number == 0 else question_of(talk.sample, number, pair, made)
        passed: list[str] = []
        trace: Trace | None = None
        try:
            if isinstance(row, Fault):
                raise Refused(row)
            trace = _readable(pair, row, made)
            passed.append("parse")
            _kept(pair, made)
            passed.append("evidence_kept")
            _discreet(pair, row, made)
            passed.append("no_answer_in_label")
            boxes = [one.box for one in made.objects if one.number in pair.evidence]
            await self.trust.answered(pair.answer, trace, talk.about(row), [*trace.boxes, *boxes])
            fault, gates = None, [*passed, *self._answer_gates()]
        except Refused as refused:
            fault = refused.fault
            gates = self._gates_until(fault.reason, passed)
        return JudgedPair(
            number=number, pair=pair, accepted=fault is None,
            gates={gate: fault is None or gate != gates[-1] for gate in gates},
            reason=fault and fault.reason, detail=fault.why if fault else "", reasoning=trace,
        )  # fmt: skip

    def _answer_gates(self) -> list[str]:
        asked = {"evidence_first": self.trust.answer_first == "refuse", "reanswer_agrees": self.trust.reanswer}
        return [gate for gate in ANSWER_GATES.values() if asked.get(gate, True)]

    def _gates_until(self, reason: Reason, passed: list[str]) -> list[str]:
        """The gates that were asked, the one that refused last."""
        if len(passed) < len(READING_GATES):
            return [*passed, READING_GATES[len(passed)]]
        answers = self._answer_gates()
        last = ANSWER_GATES.get(reason, answers[-1])  # any other reason: the answer could not be read
        return [*passed, *answers[: answers.index(last) + 1]]

    def foreseen(self, sample: Sample) -> list[Request]:
        if not self.trust.reanswer:
            return []
        words = "\n".join(asked(sample))
        cuts = crops.evidence(sample.true_boxes or (), sample.shown, self.manner.image_side)
        cuts = cuts if sample.true_boxes else [quarter(sample, self.manner.image_side)]
        return [self.manner.request("reanswer", [*cuts, words], Answered)]


def question_of(sample: Sample, number: int, pair: PairRecord, made: Synthesis) -> Sample | Fault:
    """A new question as a row of its own; its evidence is what was checked."""
    if not pair.question or not normalise(pair.answer):
        return Fault(Reason.TEACHER_UNREADABLE, "the pair has no question, or no answer")
    if not all(map(checks.plain, (pair.question, pair.answer, *pair.choices))):
        return Fault(Reason.TEACHER_UNREADABLE, f"the pair is not in plain words: {pair.question[:80]!r}")
    if normalise(pair.question) == normalise(sample.question):
        return Fault(Reason.DUPLICATE, "it is the row's own question again")
    if pair.choices and pair.answer not in pair.choices:
        return Fault(Reason.TEACHER_WRONG_ANSWER, f"its answer {pair.answer[:80]!r} is none of its choices")
    evidence = tuple(Mention(one.label, (one.box,)) for one in made.objects if one.number in pair.evidence)
    return sample.model_copy(
        update={
            "id": f"{sample.id}#{number}", "question": pair.question, "context": None, "choices": pair.choices or None,
            "answers": (pair.answer,), "reasoning": (), "evidence": evidence,
        }
    )  # fmt: skip


def _readable(pair: PairRecord, row: Sample, made: Synthesis) -> Trace:
    """The rationale with places. Raises Refused."""
    objects = {one.number: as_object(one, row) for one in made.objects}
    parts = _parts(pair, row, made)
    fault = reply.check(parts, row, grounded=row.evidence != ())
    said = fault or reply.concluding(
        reply.Said(parts, pair.answer, ()), row, {n: one.label for n, one in objects.items()}
    )
    if isinstance(said, Fault):
        raise Refused(said)
    return reply.build(parts, objects)


def _parts(pair: PairRecord, row: Sample, made: Synthesis) -> reply.Parts:
    parts = reply.parted([Sentence(text=pair.rationale)], row, [one.number for one in made.objects])
    if isinstance(parts, Fault):
        raise Refused(parts)
    return parts


def _kept(pair: PairRecord, made: Synthesis) -> None:
    numbers = {one.number for one in made.objects}
    for number in pair.evidence:
        if number not in numbers:
            raise Refused(Fault(Reason.TEACHER_UNGROUNDED, f"its evidence is [{number}], which was not kept"))


def _discreet(pair: PairRecord, row: Sample, made: Synthesis) -> None:
    spoken = {*pair.evidence, *reply.numbers_in(_parts(pair, row, made))}
    for one in made.objects:
        if one.number in spoken and one.label != NEUTRAL and gives_away(one.label, row):
            raise Refused(Fault(Reason.ANSWER_IN_LABEL, f"the label {one.label!r} gives the answer away"))
