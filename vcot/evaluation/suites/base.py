"""A suite: a named benchmark. Which samples are of it, how answers are measured, and what others have published.

What is measured of one reply is a Marked; a figure is a ratio of two sums over them, with the same intervals as in
vcot.evaluation.metrics.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vcot import answers
from vcot.evaluation.metrics import METRICS, Figure, Metric, measure_by
from vcot.grounding import split_answer
from vcot.records import Sample, Score

AnswerMeasure = Callable[[str | None, Sample], float | None]
"""The final answer (None: the reply comes to none) → 0..1; None: no rule can measure an answer to this sample."""


# ------------------------------------------------------------------------------------------------- answers by rule


def accuracy(answer: str | None, sample: Sample) -> float:
    """1 for an accepted answer: an option where there are choices, a number, or the same text (answers.same)."""
    return float(answer is not None and answers.same(answer, sample.answers, sample.choices))


def anls(answer: str | None, sample: Sample) -> float:
    """The similarity to the nearest accepted answer (Biten et al. 2019); below one half it is 0."""
    return max((answers.anls(answer, true) for true in sample.answers), default=0.0) if answer is not None else 0.0


def not_measured(answer: str | None, sample: Sample) -> None:
    """Of answers that only a judge can tell apart, such as sentences."""


# ------------------------------------------------------------------------------------------------------- figures


class Verdict(NamedTuple):
    """What a judge says of an answer: its score, 0..1; None: no score could be read of its reply."""

    score: float | None


@dataclass(frozen=True)
class Marked:
    """What a suite sees of one reply.

    Attributes:
        set: the part of the suite that the sample is of.
        answer: the final answer; None: the reply comes to none.
        worth: of the answer by the measure of its set, 0..1; None: it cannot be measured by rule.
        verdict: of a judge; None: none was asked.
    """

    sample: Sample
    set: str
    answer: str | None
    score: Score
    worth: float | None
    verdict: Verdict | None = None


def _true_boxes(marked: Marked) -> int:
    return marked.score.true_boxes or 0


def found_at(threshold: float, *, strict: bool = False) -> Metric[Marked]:
    """acc@threshold of the first boxes of a reply, as many as are true; strict: only above the threshold."""
    sign = "above" if strict else "of at least"
    return Metric(
        f"acc@{threshold:g}",
        "Share of true boxes that the first boxes of a reply, as many as are true, meet with IoU "
        f"{sign} {threshold:g}; no box, or none that can be read, is a miss.",
        lambda m: sum(iou > threshold or (not strict and iou == threshold) for iou in m.score.ious),
        _true_boxes, "true boxes",
    )  # fmt: skip


def of_score(name: str) -> Metric[Marked]:
    """A metric of every evaluation, among those of a suite."""
    metric = METRICS[name]
    return Metric(
        metric.label, metric.meaning, lambda m: metric.above(m.score), lambda m: metric.below(m.score), metric.of,
        metric.share, metric.decimal, metric.low_is_good,
    )  # fmt: skip


COMMON: Mapping[str, Metric[Marked]] = {
    "answer_score": Metric(
        "answers",
        "Mean worth of the final answers by the rule of their set (docs/suites.md); no answer is worth 0.",
        lambda m: m.worth or 0.0, lambda m: m.worth is not None, "replies with a rule",
    ),
    "accuracy_at_50": found_at(0.5),
    **{name: of_score(name) for name in (
        "mean_iou", "precision", "recall", "f1", "no_box", "boxes_where_absent", "boxes_per_answer", "answer_absent",
        "unreadable", "malformed",
    )},
}  # fmt: skip


class Published(NamedTuple):
    """A number that somebody has published.

    Attributes:
        set, metric: what it is to be compared with; a metric of the suite.
        value: a share, 0..1.
        source: where it stands.
        protocol: what was measured; a number under another protocol is no target.
        differs: in words, how its measure or its rows are other than ours; empty: the same measure.
    """

    set: str
    system: str
    metric: str
    value: float
    source: str
    protocol: str
    differs: str = ""


class SetResult(NamedTuple):
    """Figures of one set, or of the sets of a group: then their plain mean, without an interval, and `rows` is what
    they have together."""

    set: str
    rows: int
    figures: Mapping[str, Figure]
    group_of: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, float | None]:
        return {name: figure.value for name, figure in self.figures.items()}


@dataclass(frozen=True)
class Suite:
    """A named benchmark.

    Attributes:
        about: one line.
        sets: a sample → the part of the suite that it is of; None: it is not of this suite.
        measures: set → how its answers are measured.
        measure: of all other sets.
        shown: names of metrics, in the order of the table.
        own_metrics: those beside COMMON.
        groups: name → sets whose plain mean is reported under it.
        exports: name of a file of JSON lines beside report.json → what stands there of a reply, for the scorer of
            others; None: nothing.
    """

    name: str
    about: str
    sets: Callable[[Sample], str | None]
    shown: tuple[str, ...]
    measures: Mapping[str, AnswerMeasure] = field(default_factory=dict)
    measure: AnswerMeasure = accuracy
    own_metrics: Mapping[str, Metric[Marked]] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    exports: Mapping[str, Callable[[Marked], Mapping[str, Any] | None]] = field(default_factory=dict)
    published: tuple[Published, ...] = ()

    @property
    def metrics(self) -> Mapping[str, Metric[Marked]]:
        return {**COMMON, **self.own_metrics}

    def mark(self, sample: Sample, score: Score) -> Marked | None:
        """A reply that was judged; None: its sample is not of this suite."""
        if (part := self.sets(sample)) is None:
            return None
        answer = split_answer(score.text)[1]
        return Marked(sample, part, answer, score, self.measures.get(part, self.measure)(answer, sample))

    def results(self, marked: Iterable[Marked], *, seed: int = 0) -> list[SetResult]:
        """The shown figures: of each set by name, then of each group the plain mean of its sets that were measured.

        marked: replies to different samples. seed: of the intervals.
        """
        by_set: defaultdict[str, list[Marked]] = defaultdict(list)
        for one in marked:
            by_set[one.set].append(one)
        metrics = {name: self.metrics[name] for name in self.shown}
        found = {}
        for part, rows in sorted(by_set.items()):
            measured = measure_by(metrics, {part: rows}, score_of=lambda one: one.score, seed=seed)
            found[part] = SetResult(part, len(rows), measured.figures[part])
        grouped = []
        for group, parts in self.groups.items():
            if there := tuple(part for part in parts if part in found):
                figures = {name: _mean([found[part].figures[name] for part in there]) for name in self.shown}
                grouped.append(SetResult(group, sum(found[part].rows for part in there), figures, there))
        return [*found.values(), *grouped]


def _mean(figures: Sequence[Figure]) -> Figure:
    """The plain mean of those that were measured. `images`: of all of them, one that is in several sets in each."""
    known = [figure for figure in figures if figure.value is not None]
    value = math.fsum(figure.value or 0.0 for figure in known) / len(known) if known else None
    rows, images = sum(figure.rows for figure in known), sum(figure.images for figure in known)
    return Figure(value, None, None, rows, images, len(known), "sets", "none")
