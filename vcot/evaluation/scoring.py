"""One reply held against its Sample."""

from __future__ import annotations

from typing import Literal

from vcot import answers
from vcot.grounding import Frame, Trace
from vcot.grounding.boxes import Box
from vcot.grounding.matching import match, match_at
from vcot.grounding.tags import parse, render_reply, split_answer
from vcot.grounding.trace import Mention
from vcot.records import Sample, Score

THRESHOLD = 0.5
"""A box is found if a predicted one overlaps it with at least this IoU."""


def score(text: str, sample: Sample, frame: Frame) -> Score:
    """What is right and wrong about a reply.

    Every box of the text counts as predicted, wherever it stands and whatever label it has; boxes are paired with
    the true ones one to one, so that a box said twice finds one partner and its copy is a false one. A box that
    cannot be read is no box, and a fault. Where nobody annotated the evidence, boxes are counted and not judged.
    """
    parsed = parse(text, frame)
    true = sample.true_boxes
    return Score(
        sample=sample.id,
        answer=_judge(text, sample),
        true_boxes=None if true is None else len(true),
        predicted_boxes=len(parsed.boxes),
        matched=len(match_at(parsed.boxes, true, THRESHOLD).pairs) if true else 0,
        ious=_ious(parsed.boxes, true) if true else (),
        well_formed=parsed.well_formed,
        faults=tuple(fault.kind.value for fault in parsed.faults),
        text=text,
    )


def score_guess(box: Box | None, answer: str, sample: Sample, frame: Frame) -> Score:
    """A guess made without looking, written as the model would write it and judged by the same scorer."""
    trace = Trace(() if box is None else (Mention("", (box,)),))
    return score(render_reply(trace, answer, frame), sample, frame)


def _judge(text: str, sample: Sample) -> Literal["right", "wrong", "absent"]:
    answer = split_answer(text)[1]
    if answer is None:
        return "absent"
    return "right" if answers.same(answer, sample.answers, sample.choices) else "wrong"


def _ious(predicted: tuple[Box, ...], true: tuple[Box, ...]) -> tuple[float, ...]:
    """One IoU per true box, in their order; 0 where it found no partner."""
    found = {t: overlap for _, t, overlap in match(predicted, true).pairs}
    return tuple(found.get(t, 0.0) for t in range(len(true)))
