"""A reward that pays for what is found and not for what is too much: how does that end?

    make local-train EXAMPLE=examples/reasoning RUN_ID=recall TRAIN_METHOD=grpo PIPELINE_FROM_RUN=boards-sft:tokenize \\
        TRAIN_REWARDS=answer=1,recall=benchmarks.rewards:recall,length=0.2
"""

from __future__ import annotations

from vcot.grounding import FrameSpec, Trace, match, parse, split_answer
from vcot.records import Sample
from vcot.records.rollout import Rollout


def recall(rollout: Rollout, sample: Sample, spec: FrameSpec) -> float | None:
    """What is found of the evidence, whatever is pointed at besides: as TreeVGR without its precision term."""
    if not sample.true_boxes:
        return None
    said = Trace(parse(split_answer(rollout.text)[0], sample.frame(spec)).trace.mentions)
    return match(said.boxes, sample.true_boxes).total / len(sample.true_boxes)
