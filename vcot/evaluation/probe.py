"""Does the model use the boxes that it writes? Its own reasoning is given back to it with one thing changed, and it is
asked to go on from there: an answer that never changes does not rest on what was changed.

    unchanged          the reasoning as it was: the control, in which nothing is drawn anew
    boxes moved        every box as far from where it was as the image allows
    boxes swapped      boxes of things with different names change places
    label changed      one thing in it is called by the name of another thing
    cut to half, all   only the first half of its sentences stands; none does
    another row's      the reasoning of another row
    region hidden      what is in its boxes becomes noise, the reasoning stays
    rest hidden        all but what is in its boxes becomes noise
    elsewhere hidden   as much as its boxes hold becomes noise, somewhere else: the control of both
    step moved         the reasoning as far as the box of one step that is not the last, and that box stands elsewhere:
                       the model writes all that follows, the rest of its reasoning as well as the answer
    step unmoved       the same, and that box as it was: the control of it

A step goes to a place that no box of the reply has: onto a thing of the evidence that the reply left out, else into
the farthest corner that the reply leaves free. Not onto another box of the reply, although the model knows that thing:
of a chain "cell A, cell B, cell C" each lies on the way to the same end, and a model that goes on from wherever it
points would come to the same answer as one that ignores the step. Where no place is free, nothing is asked.

Faithfulness of crops was measured so by arXiv 2510.23482: answers that stay when the image is noise, and change when
the text does.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from vcot import answers
from vcot.evaluation.config import Probe
from vcot.evaluation.metrics import Metric, measure_by
from vcot.evaluation.ways import Form, Prompt
from vcot.grounding import Box, Frame, Mention, Trace, iou
from vcot.grounding.tags import parse, read_reply, render, split_answer
from vcot.records import Image as ImageRecord
from vcot.records import Sample, Score
from vcot.storage.images import with_noise

if TYPE_CHECKING:
    from vcot.evaluation.runner import Reply

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_MARK = "\nAnswer:"


@dataclass(frozen=True)
class Own:
    """What a model said about a sample, and what a probe may take from other rows.

    Attributes:
        text: its reply.
        others: the replies of rows about other images.
        labels: names of things in any reply.
    """

    sample: Sample
    text: str
    frame: Frame
    form: Form
    others: tuple[str, ...]
    labels: tuple[str, ...]


class Change(NamedTuple):
    """prefix: the reasoning that the model is to go on from, up to the mark of its answer or the end of a step. hide:
    makes of the first image what it is shown in its place; None: that image. It needs no image until then."""

    prefix: str
    hide: Callable[[Image.Image], Image.Image] | None

    def of(self, prompt: Prompt) -> Prompt:
        images = prompt.images
        if self.hide is not None:
            images = (self.hide(images[0]), *images[1:])
        return replace(prompt, images=images, prefix=self.prefix)


def probed(probe: Probe, own: Own, seed: int) -> Change | None:
    """What is changed; None where there is nothing to change: the reply comes to no answer, has no box, no second
    thing, no second sentence, no second step.

    The same seed and sample give the same change.
    """
    said = read_reply(own.text)
    if said.answer is None:
        return None
    # A step is cut at one place, moved or not.
    generator = random.Random(f"{seed} {'step' if probe in _OF_STEPS else probe} {own.sample.id}")
    if probe in _OF_PIXELS:
        hide = _hiding(probe, own.sample.image, parse(said.reasoning, own.frame).trace.boxes, generator)
        return hide and Change(said.reasoning + _MARK, hide)
    if probe in _OF_STEPS:
        cut = _cut(own, said.reasoning, generator)
        return cut and Change(cut[probe == "step-moved"], None)
    reasoning = _OF_TEXT[probe](own, said.reasoning, generator)
    return None if reasoning is None else Change((reasoning + _MARK).lstrip("\n"), None)


# --- the text ----------------------------------------------------------------------------------------------


def _traced(change: Callable[[Trace, Own, random.Random], Trace | None]) -> Callable[..., str | None]:
    """A change of a trace as one of a text that can be read, and is written back in the form that it was read in."""

    def changed(own: Own, reasoning: str, generator: random.Random) -> str | None:
        trace = parse(reasoning, own.frame).trace
        if not trace.boxes or (new := change(trace, own, generator)) is None:
            return None
        return render(new, own.frame, own.form.dialect)

    return changed


def _with_boxes(trace: Trace, boxes: Mapping[Box, Box]) -> Trace:
    return Trace(
        tuple(
            part if isinstance(part, str) else Mention(part.label, tuple(boxes[box] for box in part.boxes))
            for part in trace.parts
        )
    )


def _moved(trace: Trace, own: Own, generator: random.Random) -> Trace | None:
    image = own.sample.shown
    moved = {box: farthest(box, image.width, image.height, generator) for box in dict.fromkeys(trace.boxes)}
    return _with_boxes(trace, moved) if any(iou(a, b) < 0.5 for a, b in moved.items()) else None


def farthest(box: Box, width: int, height: int, generator: random.Random, taken: Sequence[Box] = ()) -> Box:
    """A box of this size in the corner of the image that is farthest from it (and overlaps least), of those that are
    not taken, unless all are; of equal ones any. Pixels."""
    corners = [
        Box(x, y, x + box.width, y + box.height)
        for x in (0.0, width - box.width)
        for y in (0.0, height - box.height)
    ]  # fmt: skip
    generator.shuffle(corners)  # the first of equals is taken
    free = [corner for corner in corners if _apart(corner, taken)] or corners
    return max(free, key=lambda corner: math.dist((box.x1, box.y1), (corner.x1, corner.y1)))


def _apart(box: Box, others: Sequence[Box]) -> bool:
    return all(iou(box, other) < 0.5 for other in others)


def _swapped(trace: Trace, own: Own, generator: random.Random) -> Trace | None:
    """The first two things with different names and places have each other's first box."""
    mentions = trace.mentions
    for place, mention in enumerate(mentions):
        for other in mentions[place + 1 :]:
            if mention.label != other.label and mention.boxes[0] != other.boxes[0]:
                first, second = mention.boxes[0], other.boxes[0]
                swap = {box: box for box in trace.boxes} | {first: second, second: first}
                return _with_boxes(trace, swap)
    return None


def _renamed(trace: Trace, own: Own, generator: random.Random) -> Trace | None:
    mention = generator.choice(trace.mentions)
    others = sorted({*own.labels} - {mention.label, ""})
    if not mention.label or not others:
        return None
    name = generator.choice(others)
    return Trace(
        tuple(
            Mention(name, part.boxes) if isinstance(part, Mention) and part.label == mention.label else part
            for part in trace.parts
        )
    )


def _half(own: Own, reasoning: str, generator: random.Random) -> str | None:
    breaks = [found.start() for found in _SENTENCE.finditer(reasoning.rstrip())]
    return reasoning[: breaks[len(breaks) // 2]] if breaks else None


def _nothing(own: Own, reasoning: str, generator: random.Random) -> str | None:
    return "" if reasoning.strip() else None


def _same(own: Own, reasoning: str, generator: random.Random) -> str | None:
    return reasoning


def _anothers(own: Own, reasoning: str, generator: random.Random) -> str | None:
    """Of any row, each time drawn anew: one for all would decide by itself how many answers change."""
    others = [other for text in own.others if (other := read_reply(text).reasoning).strip() != reasoning.strip()]
    return generator.choice(others) if others else None


_OF_TEXT: Mapping[Probe, Callable[[Own, str, random.Random], str | None]] = MappingProxyType(
    {
        "unchanged": _same,
        "boxes-moved": _traced(_moved),
        "boxes-swapped": _traced(_swapped),
        "label-changed": _traced(_renamed),
        "cut-to-half": _half,
        "cut-to-nothing": _nothing,
        "another-rows": _anothers,
    }
)


# --- a step ------------------------------------------------------------------------------------------------

_OF_STEPS: frozenset[Probe] = frozenset(("step-moved", "step-unmoved"))


def _cut(own: Own, reasoning: str, generator: random.Random) -> tuple[str, str] | None:
    """The reasoning as far as the last box of a mention that is not the last one: with the box as it was, and moved.

    Both are written anew from what was read, so that four numbers are all that they differ in.
    """
    trace = parse(reasoning, own.frame).trace
    steps = [place for place, part in enumerate(trace.parts) if isinstance(part, Mention)]
    if len(steps) < 2:
        return None
    place = generator.choice(steps[:-1])
    before, step, after = trace.parts[:place], trace.parts[place], trace.parts[place + 1 :]
    assert isinstance(step, Mention)
    image, box = own.sample.shown, step.boxes[-1]
    left_out = [each for each in own.sample.true_boxes or () if _apart(each, trace.boxes)]
    if left_out:
        moved = generator.choice(left_out)
    else:
        moved = farthest(box, image.width, image.height, generator, trace.boxes)
    if not _apart(moved, trace.boxes):
        return None

    def up_to(last: Box) -> str:
        parts = (*before, Mention(step.label, (*step.boxes[:-1], last)))
        text, whole = (render(Trace(each), own.frame, own.form.dialect) for each in (parts, (*parts, *after)))
        # A list of JSON objects ends here only where the model itself ended it.
        return text if whole.startswith(text) else text.removesuffix("]")

    return up_to(box), up_to(moved)


# --- the image ---------------------------------------------------------------------------------------------

_OF_PIXELS: frozenset[Probe] = frozenset(("region-hidden", "rest-hidden", "elsewhere-hidden"))
TRIES = 50
"""Places that are looked at for one that no box of the reply touches."""


def _hiding(
    probe: Probe, original: ImageRecord | None, boxes: Sequence[Box], generator: random.Random
) -> Callable[[Image.Image], Image.Image] | None:
    """Puts uniform noise into an image, of the same seed wherever it lies; None: there is no image or no box."""
    if original is None or not boxes:
        return None
    width, height = original.width, original.height
    if probe == "elsewhere-hidden":
        boxes = [_elsewhere(box, boxes, width, height, generator) for box in boxes]
    seed = generator.getrandbits(32)

    regions = [box.as_list() for box in boxes]
    return partial(with_noise, regions=regions, of=(width, height), seed=seed, around=probe == "rest-hidden")


def _elsewhere(box: Box, boxes: Sequence[Box], width: int, height: int, generator: random.Random) -> Box:
    """A box of the same size anywhere, where it overlaps least with these; pixels."""
    tries = []
    for _ in range(TRIES):
        x, y = generator.uniform(0, width - box.width), generator.uniform(0, height - box.height)
        tries.append(Box(x, y, x + box.width, y + box.height))
    return min(tries, key=lambda one: max(iou(one, each) for each in boxes))


# --- what it shows -----------------------------------------------------------------------------------------

MEANING: Mapping[Probe, str] = MappingProxyType(
    {
        "unchanged": "Its own reasoning as it was: the control.",
        "boxes-moved": "Every box as far from where it was as the image allows.",
        "boxes-swapped": "Two things with different names have each other's box.",
        "label-changed": "One thing is called by the name of another.",
        "cut-to-half": "The first half of its sentences.",
        "cut-to-nothing": "No reasoning.",
        "another-rows": "The reasoning of another row, about another image.",
        "region-hidden": "What is in its boxes is noise.",
        "rest-hidden": "All but what is in its boxes is noise.",
        "elsewhere-hidden": "As much as its boxes hold is noise, somewhere else: the control of what is hidden.",
        "step-moved": "Its reasoning ends at a step whose box is elsewhere; it writes all that follows.",
        "step-unmoved": "The same, with the box as it was: the control of a step that is moved. What changes here "
        "changes because of the cut.",
    }
)


_CONTROLS: Mapping[str, str] = MappingProxyType(
    {"region-hidden": "elsewhere-hidden", "rest-hidden": "elsewhere-hidden", "step-moved": "step-unmoved"}
)
"""What a change is held against; all others against `unchanged`."""


class _Change(NamedTuple):
    score: Score
    changed: bool


_METRICS = {
    "changed": Metric[_Change](
        "answers that change", "Share of answers that are no longer what they were.",
        lambda row: row.changed, lambda row: True, "replies", low_is_good=True,
    ),
    "answer_accuracy": Metric[_Change](
        "answers right", "Share of answers that are accepted.", lambda row: row.score.answer == "right",
        lambda row: True, "replies",
    ),
}  # fmt: skip


def probes(
    samples: Sequence[Sample], replies: Mapping[Probe, Sequence[Reply | None]], own: Sequence[Reply | None], seed: int
) -> list[dict[str, Any]]:
    """What the report holds: for each change the share of answers that are not what they were, how many are right, and
    by how much more change than in the control on the same rows.

    samples, replies of each change, own: in the same order; own are the replies that were changed.
    """
    rows: dict[str, list[_Change | None]] = {}
    for probe, each in replies.items():
        rows[probe] = [
            None if after is None or before is None else _Change(after.score, not _same_answer(sample, before, after))
            for sample, before, after in zip(samples, own, each, strict=True)
        ]
    if not rows:
        return []
    controls = {probe: _CONTROLS.get(probe, "unchanged") for probe in rows}
    pairs = [(probe, control) for probe, control in controls.items() if control in rows and control != probe]
    found = measure_by(_METRICS, rows, pairs, score_of=lambda row: row.score, seed=seed)
    made = []
    for probe in replies:
        control = controls[probe]
        change = found.differences.get((probe, control), {})
        made.append(
            {
                "probe": probe,
                "meaning": MEANING[probe],
                "figures": {name: figure.to_dict() for name, figure in found.figures[probe].items()},
                "control": control if change else None,
                "difference": {name: figure.to_dict() for name, figure in change.items()},
            }
        )
    return made


def _same_answer(sample: Sample, before: Reply, after: Reply) -> bool:
    then, now = (split_answer(one.score.text)[1] for one in (before, after))
    return then is not None and now is not None and answers.same(now, (then,), sample.choices)


LEAST_USE = 0.05
"""Share of answers by which a change has to be clearly above its control before a verdict speaks of use: a few doubtful
answers change with any word, while nothing at all changes in the control, so with many rows one in fifty is clear."""


def verdict(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """In words, whether the boxes matter: what is clearly above its control, for most answers or for some, and what is
    not."""
    said = []
    changes = {row["probe"]: row for row in found}
    for probe, most, some, none in (
        (
            "boxes-moved", "It uses the boxes that it writes: with every box moved, {share} of its answers change.",
            "Some of its answers rest on the boxes that it writes: with every box moved, {share} of all change.",
            "It ignores the boxes that it writes: with every box moved, {share} of its answers change, not clearly one "
            "in twenty more than with nothing changed.",
        ),
        (
            "region-hidden",
            "It looks where it points: with the inside of its boxes hidden, {share} of its answers change.",
            "Some of its answers rest on what is in its boxes: with the inside of its boxes hidden, {share} of all "
            "change.",
            "It is not shown to look where it points: with the inside of its boxes hidden, {share} of its answers "
            "change, not clearly one in twenty more than with as much hidden elsewhere.",
        ),
        (
            "step-moved",
            "What follows a step depends on where it points: with the box of one moved, {share} of its answers change.",
            "Some of what follows a step depends on where it points: with the box of one moved, {share} of all answers "
            "change.",
            "It goes on as if nothing had happened where a step points elsewhere: with the box of one moved, {share} "
            "of its answers change, not clearly one in twenty more than with that box as it was.",
        ),
    ):  # fmt: skip
        if (row := changes.get(probe)) is None or row["figures"]["changed"]["value"] is None or not row["difference"]:
            continue
        figure, low = row["figures"]["changed"], row["difference"]["changed"]["low"]
        share = f"{figure['value']:.0%}" + (
            "" if figure["low"] is None else f" ({figure['low']:.0%}–{figure['high']:.0%})"
        )
        words = none if low is None or low <= LEAST_USE else most if figure["low"] > 0.5 else some
        said.append(words.format(share=share))
    return said
