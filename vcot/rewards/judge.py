"""The reward `judge`: a language model finds the answer right."""

from __future__ import annotations

from vcot.grounding import FrameSpec
from vcot.records import Sample
from vcot.records.rollout import Rollout
from vcot.rewards import reward


@reward("judge")
def judge_reward(rollout: Rollout, sample: Sample, spec: FrameSpec) -> float | None:
    """What training has asked the judge (vcot.training.measures.Judged). None: its reply says no score."""
    return rollout.measured.get("judge")
