"""The reward `format`: a reply keeps the rules of its form."""

from __future__ import annotations

import sys
from enum import StrEnum

from vcot.answers import number
from vcot.grounding import FrameSpec, parse, read_reply
from vcot.records import Sample
from vcot.records.rollout import Rollout
from vcot.rewards import reward

FEW = 5
"""Most boxes of a reply if none are annotated. No reward knows there which boxes are right, so a long list must earn
less than one box."""
MOST = 50
"""Larger numbers as an answer, such as a year or a price, are taken for no count of boxes."""


class Rule(StrEnum):
    """What is asked of the form of a reply, in the order of the reply."""

    REASONING = "has_reasoning"
    MENTION = "mentions_a_place"  # with as many boxes as _allowed_boxes returns
    TAGS = "every_tag_and_box_is_well_formed"
    ONE_THINK_BLOCK = "at_most_one_think_block"  # <think>…</think> may stand around the reasoning
    ONE_ANSWER = "states_one_answer"
    PLAIN_ANSWER = "no_tag_in_the_answer"
    ENDS = "ends_with_the_answer"


@reward("format")
def format_reward(rollout: Rollout, sample: Sample, spec: FrameSpec, *, graded: bool = False) -> float:
    """1 if the reply breaks no Rule, else 0; graded, the share of the rules that it keeps.

    The graded form gives a model that gets nothing right yet a way to climb; the plain one leaves no reason to
    stop on the way.
    """
    broken = broken_rules(rollout.text, sample, spec)
    return 1.0 - len(broken) / len(Rule) if graded else float(not broken)


def broken_rules(text: str, sample: Sample, spec: FrameSpec) -> tuple[Rule, ...]:
    """The rules that the reply does not keep; boxes are read in the frame `spec` on the sample's image."""
    frame = sample.frame(spec)
    reply = read_reply(text)
    reasoning, answer = parse(reply.reasoning, frame), parse(reply.answer or "", frame)
    thinks = [text.count(tag) for tag in ("<think>", "</think>")]
    kept = {
        Rule.REASONING: bool(reasoning.trace.text.replace("<think>", "").replace("</think>", "").strip()),
        Rule.MENTION: len(reasoning.boxes) in _allowed_boxes(sample),
        Rule.TAGS: reasoning.well_formed and answer.well_formed,
        Rule.ONE_THINK_BLOCK: thinks in ([0, 0], [1, 1]),
        Rule.ONE_ANSWER: reply.answer is not None and reply.marks == 1,
        Rule.PLAIN_ANSWER: not answer.boxes,
        Rule.ENDS: not reply.after.strip(),
    }
    return tuple(rule for rule in Rule if not kept[rule])


def _allowed_boxes(sample: Sample) -> range:
    """Return the numbers of boxes that a reply may have.

    None without an image. At least one, unless the evidence is annotated as absent. At most FEW, or as many as the
    answer counts, if no boxes are annotated; otherwise the reward `boxes` sets the price of each.
    """
    if sample.image is None:
        return range(1)
    if sample.evidence is not None or any(trace.boxes for trace in sample.reasoning):
        return range(0 if sample.evidence == () else 1, sys.maxsize)
    counts = [value for answer in sample.answers if (value := number(answer)) is not None and value <= MOST]
    return range(1, int(max([FEW, *counts])) + 1)
