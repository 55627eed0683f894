"""Why replies fail: one cause for each reply that is not right in all.

format                     a tag or box that cannot be read, no answer, or no box where something is there to show
wrong object               a true box that nothing was drawn on, and a wrong answer
right answer, wrong box    the same with a right answer: it did not come from where the model points
loose box                  drawn on every true box, but with an IoU below 0.5
right box, wrong answer    every true box was found
too many boxes             the same, the answer is right, and there are boxes besides
box of what is not there   for a thing that is not in the image
wrong answer               where nobody marked boxes, or none is asked for
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vcot.evaluation.metrics import THRESHOLD, Metric, measure_by, parses
from vcot.records import Score

TOUCHES = 0.1
"""IoU from which a box is taken to be of the true object, if badly drawn."""

CAUSES: Mapping[str, str] = MappingProxyType(
    {
        "format": "A tag or box that cannot be read, no answer, or no box where there is something to show.",
        "wrong object": f"A true box that no box of its name meets with IoU {TOUCHES}, and no right answer.",
        "right answer, wrong box": "The same, but the answer is right: it does not come from where the model points.",
        "loose box": f"On the right thing, with an IoU between {TOUCHES} and {THRESHOLD}.",
        "right box, wrong answer": "Every true box is found, and the answer is wrong.",
        "too many boxes": "Every true box is found and the answer is right, but there are other boxes.",
        "box of what is not there": "A box for a thing that is not in the image.",
        "wrong answer": "Where boxes say nothing: nobody marked any, there is nothing to mark, or none is asked for.",
    }
)
"""Name → what it means, in the order in which they are looked for."""


def cause(score: Score, *, boxes: bool = True) -> str | None:
    """One of CAUSES; None: nothing is wrong. boxes: the way to ask asks for them."""
    right = score.answer == "right"
    if not parses(score) or (boxes and score.true_boxes and not score.predicted_boxes):
        return "format"
    if boxes and score.true_boxes == 0 and score.predicted_boxes:
        return "box of what is not there"
    if not boxes or not score.true_boxes:
        return None if right else "wrong answer"
    if score.matched == score.true_boxes:  # by any of its boxes, not by the first alone
        if not right:
            return "right box, wrong answer"
        return "too many boxes" if score.predicted_boxes > score.matched else None
    if min(score.ious) < TOUCHES:
        return "right answer, wrong box" if right else "wrong object"
    return "loose box"


def failures(scores: Sequence[Score], *, boxes: bool, seed: int) -> list[dict[str, Any]]:
    """What the report holds: each cause that there is, most frequent first, as a share of all replies."""

    causes = {score.sample: cause(score, boxes=boxes) for score in scores}

    def is_of(name: str) -> Callable[[Score], bool]:
        return lambda score: causes[score.sample] == name

    metrics = {
        name: Metric(name, meaning, is_of(name), lambda _: True, "replies", low_is_good=True)
        for name, meaning in CAUSES.items()
    }
    found = measure_by(metrics, {"subject": scores}, score_of=lambda score: score, seed=seed).figures["subject"]
    shares = sorted(
        ((name, figure) for name, figure in found.items() if figure.value), key=lambda one: -(one[1].value or 0)
    )
    return [{"cause": name, "meaning": CAUSES[name], "share": figure.to_dict()} for name, figure in shares]
