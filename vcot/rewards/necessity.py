"""The reward `necessity`: the answer rests on what is pointed at."""

from __future__ import annotations

from vcot.grounding import FrameSpec
from vcot.records import Sample
from vcot.records.rollout import Rollout
from vcot.rewards import reward


@reward("necessity")
def necessity_reward(rollout: Rollout, sample: Sample, spec: FrameSpec) -> float | None:
    """What training has measured (vcot.training.measures.Necessity): how much less likely the model finds the answer
    when what lies in the reply's boxes is hidden from it. None: nothing was measured, as there is no image."""
    return rollout.measured.get("necessity")
