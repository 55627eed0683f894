"""Guesses that anyone can make without looking; a model has learned what it does better than these.

They are written as replies and judged by the same scorer as the model's.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vcot.answers import NO_SYNONYMS
from vcot.evaluation.metrics import score
from vcot.grounding import Box, Frame, Mention, Trace, render_reply
from vcot.records import Sample, Score

NOTHING_NAMED = "nothing named"
NOT_ANNOTATED = "not annotated"

Fractions = tuple[float, float, float, float]
CENTRE: Fractions = (0.25, 0.25, 0.75, 0.75)
WHOLE: Fractions = (0.0, 0.0, 1.0, 1.0)


@dataclass
class Baselines:
    """What the training split teaches to somebody with closed eyes."""

    answers: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    boxes: dict[str, list[Fractions]] = field(default_factory=lambda: defaultdict(list))
    rows: int = 0

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Baselines:
        learned = cls()
        for sample in samples:
            learned.rows += 1
            learned.answers[sample.question][sample.answers[0]] += 1
            for mention in sample.evidence or ():
                for box in mention.boxes:
                    fractions = box.to_fractions(width=sample.shown.width, height=sample.shown.height)
                    learned.boxes[mention.label].append(fractions)
        return learned

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted(self.boxes))

    def answer(self, question: str) -> str | None:
        """The most frequent answer to this very question in training, or to any, where it was never asked there.

        None without a training split. Of equally frequent ones the first by alphabet.
        """
        counts = self.answers.get(question) or sum(self.answers.values(), Counter())
        return min(counts, key=lambda answer: (-counts[answer], answer)) if counts else None

    def box(self, label: str) -> Fractions | None:
        """The mean of the boxes that have this label in training, or of all, where none has it."""
        boxes = self.boxes.get(label) or [box for boxes in self.boxes.values() for box in boxes]
        if not boxes:
            return None
        x1, y1, x2, y2 = np.mean(boxes, axis=0).tolist()
        return x1, y1, x2, y2


def guesses(
    samples: Sequence[Sample], learned: Baselines, frame: Callable[[Sample], Frame]
) -> dict[str, tuple[Score, ...]]:
    """Name of the guess → a Score per sample, in order. Where there is no image, a guess of a box shows none.

    `centre-box` is half as wide and high as the image. Where the evidence has several names, a guess shows a box under
    each. A guess of a box has no answer, and the guess of an answer has no box; only the one half of its figures means
    something. Guesses from training are left out where there is nothing to learn them from.
    """

    def judged(sample: Sample, mentions: Sequence[Mention], answer: str) -> Score:
        return score(render_reply(Trace(tuple(mentions)), answer, frame(sample)), sample, frame(sample))

    def boxes(sample: Sample, box: Callable[[str], Fractions | None]) -> list[Mention]:
        names = NO_SYNONYMS.distinct(m.label for m in sample.evidence or ()) or [subject(sample, learned.labels)]
        found = []
        for name in names:
            if (image := sample.image) is not None and (fractions := box(name)) is not None:
                found.append(Mention(name, (Box.from_fractions(*fractions, width=image.width, height=image.height),)))
        return found

    by_box: dict[str, Callable[[str], Fractions | None]] = {
        "centre-box": lambda _: CENTRE,
        "whole-image": lambda _: WHOLE,
    }
    if learned.boxes:
        by_box["mean-box"] = learned.box
    found = {name: tuple(judged(s, boxes(s, box), "") for s in samples) for name, box in by_box.items()}
    if learned.answers:
        found["frequent-answer"] = tuple(judged(s, [], learned.answer(s.question) or "") for s in samples)
    return found


def subject(sample: Sample, labels: Sequence[str]) -> str:
    """What a question is about: the labels of its evidence, or, where that is absent, the longest of the known labels
    that the question names (in singular or plural)."""
    if sample.evidence is None:
        return NOT_ANNOTATED
    if sample.evidence:
        return " and ".join(sorted({mention.label or NOTHING_NAMED for mention in sample.evidence}))
    question = sample.question.casefold()
    named = [label for label in labels if re.search(rf"\b{re.escape(label.casefold())}(?:e?s)?\b", question)]
    return max(named, key=len, default=NOTHING_NAMED)
