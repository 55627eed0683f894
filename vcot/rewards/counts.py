"""The reward `counts`: a reply that answers with a number points to as many things."""

from __future__ import annotations

from vcot.answers import number, stated_number
from vcot.grounding import FrameSpec, Trace, parse, split_answer
from vcot.records import Sample
from vcot.records.rollout import Rollout
from vcot.rewards import reward


@reward("counts")
def counts_reward(rollout: Rollout, sample: Sample, spec: FrameSpec) -> float | None:
    """1 if the number in the answer is that of the boxes before it, else 0.

    None where it is not asked for: the sample's own evidence is not as many boxes as its answer says. Right or wrong
    it does not ask; `answer` does.
    """
    if sample.evidence is None or number(sample.answers[0]) != len(Trace(sample.evidence).boxes):
        return None
    reasoning, answer = split_answer(rollout.text)
    said = len(parse(reasoning, sample.frame(spec)).trace.boxes)
    return float(answer is not None and stated_number(answer) == said)
