"""What a reply is worth: its form, its answer, its boxes. Pure functions of a text and its Sample, each 0..1.

A new reward is one file beside this one that registers itself with `@reward("name")`; weighing them is up to the
training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, TypeVar

from vcot.answers import NO_SYNONYMS, Synonyms, anls, number, same
from vcot.grounding import Box, FrameSpec, Pairable, Trace, match, parse, read_reply, split_answer
from vcot.records import Sample

LONGEST = 1000  # letters; DeepEyes counts a longer answer as wrong, for it is written for a judge, not a reader


class Reward(Protocol):
    """0..1 for a reply to a question about a Sample, boxes read in `spec`; None where there is nothing to judge by."""

    def __call__(self, text: str, sample: Sample, spec: FrameSpec, /) -> float | None: ...


F = TypeVar("F", bound=Reward)

REWARDS: dict[str, Reward] = {}


def reward(name: str) -> Callable[[F], F]:
    """Registers a reward under the name by which a training asks for it."""

    def register(function: F) -> F:
        if name in REWARDS:
            raise ValueError(f"two rewards are called {name}")
        REWARDS[name] = function
        return function

    return register


class Rule(StrEnum):
    """What is asked of the form of a reply, in the order of the reply."""

    REASONING = "has_reasoning"
    MENTION = "mentions_a_place"  # not asked where the evidence was annotated as absent; none, where there is no image
    TAGS = "every_tag_and_box_is_well_formed"
    ONE_THINK_BLOCK = "at_most_one_think_block"  # <think>…</think> may stand around the reasoning
    ONE_ANSWER = "states_one_answer"
    PLAIN_ANSWER = "no_tag_in_the_answer"
    ENDS = "ends_with_the_answer"


@reward("format")
def format_reward(text: str, sample: Sample, spec: FrameSpec, *, graded: bool = False) -> float:
    """1 if the reply breaks no Rule, else 0; graded, the share of the rules that it keeps.

    The graded form gives a model that gets nothing right yet a way to climb; the plain one leaves no reason to
    stop on the way.
    """
    broken = broken_rules(text, sample, spec)
    return 1.0 - len(broken) / len(Rule) if graded else float(not broken)


def broken_rules(text: str, sample: Sample, spec: FrameSpec) -> tuple[Rule, ...]:
    """The rules that the reply does not keep; boxes are read in the frame `spec` on the sample's image."""
    frame = sample.frame(spec)
    reply = read_reply(text)
    reasoning, answer = parse(reply.reasoning, frame), parse(reply.answer or "", frame)
    thinks = [text.count(tag) for tag in ("<think>", "</think>")]
    kept = {
        Rule.REASONING: bool(reasoning.trace.text.replace("<think>", "").replace("</think>", "").strip()),
        Rule.MENTION: not reasoning.boxes if sample.image is None else bool(reasoning.boxes) or sample.evidence == (),
        Rule.TAGS: reasoning.well_formed and answer.well_formed,
        Rule.ONE_THINK_BLOCK: thinks in ([0, 0], [1, 1]),
        Rule.ONE_ANSWER: reply.answer is not None and reply.marks == 1,
        Rule.PLAIN_ANSWER: not answer.boxes,
        Rule.ENDS: not reply.after.strip(),
    }
    return tuple(rule for rule in Rule if not kept[rule])


@reward("answer")
def answer_reward(text: str, sample: Sample, spec: FrameSpec | None = None, *, similar: bool = False) -> float:
    """1 if the answer of the reply is one of the accepted ones (see answers.same), else 0.

    With `similar`, meant for text that was read off an image, a near miss earns its ANLS with the nearest
    accepted answer. Not so for options and numbers: 1235 is as wrong for 1234 as any other number.
    A reply without an answer earns nothing, and so does one of 1000 letters or more.
    """
    answer = split_answer(text)[1]
    if answer is None or len(answer) >= LONGEST:
        return 0.0
    if same(answer, sample.answers, sample.choices):
        return 1.0
    if not similar or sample.choices:
        return 0.0
    return max((anls(answer, true) for true in sample.answers if number(true) is None), default=0.0)


@reward("boxes")
def box_reward(
    text: str, sample: Sample, spec: FrameSpec, *, spare: int = 0, synonyms: Synonyms = NO_SYNONYMS
) -> float | None:
    """Soft F1 of the boxes in the reasoning against the evidence; None where nobody annotated any.

    Nor is there evidence for a question by text alone: there the format asks for no box.

    Where things of several names are the evidence, a box earns nothing for a thing of another name than it bears
    (vcot.answers.Synonyms). Only readable boxes count, and only those before the answer; what cannot be read costs the
    format its reward. For `spare` see soft_f1_with_spare.
    """
    if sample.evidence is None:
        return None
    said = Trace(parse(split_answer(text)[0], sample.frame(spec)).trace.mentions)
    true = Trace(sample.evidence)
    pairable = synonyms.pairable(said.labels, true.labels)
    return soft_f1_with_spare(said.boxes, true.boxes, spare=spare, pairable=pairable)


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


# Last, because each of them imports `reward` from here.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
