"""One reply held against its Sample."""

from __future__ import annotations

from typing import Literal

from vcot import answers
from vcot.answers import NO_SYNONYMS, Synonyms
from vcot.grounding import Frame, Pairable, Trace, match, match_at
from vcot.grounding.tags import parse, split_answer
from vcot.records import Sample, Score

THRESHOLD = 0.5
"""A box is found if a predicted one overlaps it with at least this IoU."""


def score(text: str, sample: Sample, frame: Frame, synonyms: Synonyms = NO_SYNONYMS) -> Score:
    """What is right and wrong about a reply.

    Every box of the text counts as predicted, wherever it stands and whatever label it has; boxes are paired with
    the true ones one to one, so that a box said twice finds one partner and its copy is a false one. Where the true
    ones have several names, only boxes of one name are paired. A box that cannot be read is no box, and a fault.
    Where nobody annotated the evidence, boxes are counted and not judged.
    """
    parsed = parse(text, frame)
    said, true = parsed.trace, Trace(sample.evidence or ())
    pairable = synonyms.pairable(said.labels, true.labels)
    matched = len(match_at(said.boxes, true.boxes, THRESHOLD, pairable).pairs)
    misnamed = 0 if pairable is None else len(match_at(said.boxes, true.boxes, THRESHOLD).pairs) - matched
    return Score(
        sample=sample.id,
        image=None if sample.image is None else sample.image.sha256,
        answer=_judge(text, sample),
        true_boxes=None if sample.evidence is None else len(true.boxes),
        predicted_boxes=len(said.boxes),
        matched=matched,
        misnamed=misnamed,
        ious=_ious(said, true, _first(said, true, synonyms), pairable),
        well_formed=parsed.well_formed,
        faults=tuple(fault.kind.value for fault in parsed.faults),
        text=text,
    )


def _judge(text: str, sample: Sample) -> Literal["right", "wrong", "absent"]:
    answer = split_answer(text)[1]
    if answer is None:
        return "absent"
    return "right" if answers.same(answer, sample.answers, sample.choices) else "wrong"


def _first(said: Trace, true: Trace, synonyms: Synonyms) -> list[int]:
    """Which of the predicted boxes can find a true one: of each true name the first, as many as are true.

    Boxes of other names take no place, and a box said again takes none. Where the truth has one name, no name is
    needed: those that have it come first, and boxes of any other name take the places that are left.
    """
    boxes = list(zip(said.labels, said.boxes, strict=True))
    fresh = sorted({box: i for i, box in reversed(list(enumerate(boxes)))}.values())
    names = synonyms.distinct(true.labels)
    chosen: set[int] = set()
    for name in names:
        many = sum(synonyms.same(name, label) for label in true.labels)
        named = [i for i in fresh if not name or synonyms.same(boxes[i][0], name)]
        if len(names) == 1:
            named += [i for i in fresh if i not in named]
        chosen.update(named[:many])
    return sorted(chosen)


def _ious(said: Trace, true: Trace, chosen: list[int], pairable: Pairable | None) -> tuple[float, ...]:
    """One IoU per true box, in their order; 0 where none of the `chosen` boxes is its partner."""
    boxes = [said.boxes[i] for i in chosen]
    pairs = match(boxes, true.boxes, None if pairable is None else [pairable[i] for i in chosen]).pairs
    found = {t: overlap for _, t, overlap in pairs}
    return tuple(found.get(t, 0.0) for t in range(len(true.boxes)))
