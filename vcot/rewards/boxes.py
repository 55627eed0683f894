"""The reward `boxes`: the reasoning points to the evidence, to all of it, and to nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from vcot.answers import NO_SYNONYMS, Synonyms
from vcot.grounding import Box, FrameSpec, Pairable, Trace, match, parse, split_answer
from vcot.records import Sample
from vcot.records.rollout import Rollout
from vcot.rewards import reward


@reward("boxes")
def box_reward(
    rollout: Rollout, sample: Sample, spec: FrameSpec, *, spare: int = 0, synonyms: Synonyms = NO_SYNONYMS
) -> float | None:
    """Soft F1 of the boxes in the reasoning against the evidence; where nobody annotated any, as of a question that has
    several ways to its answer, against that of its known reasonings which they come nearest to.

    None where there is neither, as of a question by text alone: there the format asks for no box.

    Where things of several names are the evidence, a box earns nothing for a thing of another name than it bears
    (vcot.answers.Synonyms). Only readable boxes count, and only those before the answer; what cannot be read costs the
    format its reward. For `spare` see soft_f1_with_spare.
    """
    known = (
        [trace for trace in sample.reasoning if trace.boxes] if sample.evidence is None else [Trace(sample.evidence)]
    )
    if not known:
        return None
    said = parse(split_answer(rollout.text)[0], sample.frame(spec)).trace
    return max(
        soft_f1_with_spare(said.boxes, true.boxes, spare=spare, pairable=synonyms.pairable(said.labels, true.labels))
        for true in known
    )


def soft_f1_with_spare(
    predicted: Sequence[Box], true: Sequence[Box], *, spare: int = 0, pairable: Pairable | None = None
) -> float:
    """Soft F1: 2 · Σ IoU(pairs) / (|predicted| + |true|), 0..1, but up to `spare` boxes beyond the true ones are free.

    A box too many costs as much as a box missed, so that neither duplicates nor one box around everything pay; for one
    box each it is their IoU. Where only the decisive region is annotated, good reasoning also mentions what stands
    around it, and a strict precision would teach it not to. Keep `spare` small: a reward without any price on boxes
    ends in replies that list boxes and never answer.
    """
    if spare < 0:
        raise ValueError(f"spare is a number of boxes, 0 or more; got {spare}")
    counted = max(min(len(predicted), len(true)), len(predicted) - spare)
    if counted + len(true) == 0:
        return 1.0
    return 2 * match(predicted, true, pairable).total / (counted + len(true))
