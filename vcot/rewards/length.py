"""The reward `length`: a reply comes to its end in time."""

from __future__ import annotations

from vcot.grounding import FrameSpec
from vcot.records import Sample
from vcot.records.rollout import Rollout
from vcot.rewards import reward

FREE = 0.8


@reward("length")
def length_reward(rollout: Rollout, sample: Sample, spec: FrameSpec) -> float | None:
    """1 up to FREE of the tokens that it might have, from there falling to 0 at all of them; 0 where it was cut off.

    The soft punishment of DAPO (arXiv 2503.14476, equation 13), moved to 0..1. Below the bound length costs nothing: a
    price on every token teaches not to reason. None where there was no limit.
    """
    if rollout.limit is None:
        return None
    if not rollout.ended:
        return 0.0
    free = FREE * rollout.limit
    return 1 - max(rollout.tokens - free, 0) / (rollout.limit - free)
