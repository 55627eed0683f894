"""The reward `answer`: what is asked for is said."""

from __future__ import annotations

from vcot.answers import anls, number, same
from vcot.grounding import FrameSpec, split_answer
from vcot.records import Sample
from vcot.records.rollout import Rollout
from vcot.rewards import reward

LONGEST = 1000  # letters; DeepEyes counts a longer answer as wrong, for it is written for a judge, not a reader


@reward("answer")
def answer_reward(rollout: Rollout, sample: Sample, spec: FrameSpec | None = None, *, similar: bool = False) -> float:
    """1 if the answer of the reply is one of the accepted ones (see answers.same), else 0.

    With `similar`, meant for text that was read off an image, a near miss earns its ANLS with the nearest
    accepted answer. Not so for options and numbers: 1235 is as wrong for 1234 as any other number.
    A reply without an answer earns nothing, and so does one of 1000 letters or more.
    """
    answer = split_answer(rollout.text)[1]
    if answer is None or len(answer) >= LONGEST:
        return 0.0
    if same(answer, sample.answers, sample.choices):
        return 1.0
    if not similar or sample.choices:
        return 0.0
    return max((anls(answer, true) for true in sample.answers if number(true) is None), default=0.0)
