"""From a reply to its Score, and from Scores to figures with intervals.

Every figure is a ratio of two sums over samples (right answers / replies, matched boxes / predicted boxes, …), so
one table says what each is, and one bootstrap gives the interval of all of them at once. Images are drawn, each with
all its samples (a cluster bootstrap: Davison and Hinkley 1997, 3.8): questions about one image, and its boxes, are
right or wrong together, so that drawing them one by one promises more than was measured. All conditions (before and
after tuning, real and blank images, guesses) are measured on the same samples and drawn together, so that differences
are paired. Of few images (some 20) percentile intervals come out too narrow, by whatever unit one draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vcot import answers
from vcot.answers import NO_SYNONYMS, Synonyms
from vcot.grounding import Frame, Trace, match, match_at
from vcot.grounding.tags import parse, split_answer
from vcot.records import Sample, Score

Floats = NDArray[np.float64]
Row = TypeVar("Row")
"""What is measured of one reply: a Score, or what a suite makes of it."""

THRESHOLD = 0.5
"""A box is found if a predicted one overlaps it with at least this IoU."""
CONFIDENCE = 0.95
RESAMPLES = 5000
_CELLS = 4_000_000  # numbers held at once while drawing: 32 MB


# --- one reply ---------------------------------------------------------------------------------------------


def score(text: str, sample: Sample, frame: Frame, synonyms: Synonyms = NO_SYNONYMS) -> Score:
    """What is right and wrong about a reply.

    Every box of the text counts as predicted, wherever it stands and whatever label it has; boxes are paired with
    the true ones one to one, so that a box said twice finds one partner and its copy is a false one. Where the true
    ones have several names, only boxes of one name are paired. A box that cannot be read is no box, and a fault.
    Where nobody annotated the evidence, boxes are counted and not judged.
    """
    parsed, answer = parse(text, frame), split_answer(text)[1]
    said, true = parsed.trace, Trace(sample.evidence or ())
    pairable = synonyms.pairable(said.labels, true.labels)
    matched = len(match_at(said.boxes, true.boxes, THRESHOLD, pairable).pairs)
    misnamed = 0 if pairable is None else len(match_at(said.boxes, true.boxes, THRESHOLD).pairs) - matched
    first = _first(said, true, synonyms)
    pairs = match([said.boxes[i] for i in first], true.boxes, pairable and [pairable[i] for i in first]).pairs
    overlaps = {place: overlap for _, place, overlap in pairs}
    return Score(
        sample=sample.id,
        image=None if sample.image is None else sample.image.sha256,
        answer=judge_answer(answer, sample),
        true_boxes=None if sample.evidence is None else len(true.boxes),
        predicted_boxes=len(said.boxes),
        matched=matched,
        misnamed=misnamed,
        ious=tuple(overlaps.get(place, 0.0) for place in range(len(true.boxes))),
        well_formed=parsed.well_formed,
        faults=tuple(fault.kind.value for fault in parsed.faults),
        mentions=said.mentions,
        text=text,
    )


def judge_answer(answer: str | None, sample: Sample) -> Literal["right", "wrong", "unreadable", "absent"]:
    """Return what the final answer of a reply is worth. None: the reply states none.

    An answer that cannot be read (`answers.read_answer`) is never right.
    """
    if answer is None:
        return "absent"
    if answers.same(answer, sample.answers, sample.choices):
        return "right"
    return "unreadable" if answers.read_answer(answer, sample.answers, sample.choices) is None else "wrong"


def is_unreadable(score: Score) -> bool:
    """Return True if no answer can be read in the reply: it states none, several, or none of the kind asked for."""
    return score.answer in ("absent", "unreadable")


def _first(said: Trace, true: Trace, synonyms: Synonyms) -> list[int]:
    """Which of the predicted boxes can find a true one: of each true name the first, as many as are true.

    Boxes of other names take no place, and a box said again takes none. Where the truth has one name, no name is
    needed: those that have it come first, and boxes of any other name take the places that are left.
    """
    boxes = list(zip(said.labels, said.boxes, strict=True))
    fresh = sorted({box: i for i, box in reversed(list(enumerate(boxes)))}.values())
    names = synonyms.distinct(true.labels)
    chosen: set[int] = set()
    for name in names:
        many = sum(synonyms.same(name, label) for label in true.labels)
        named = [i for i in fresh if not name or synonyms.same(boxes[i][0], name)]
        if len(names) == 1:
            named += [i for i in fresh if i not in named]
        chosen.update(named[:many])
    return sorted(chosen)


# --- what is measured --------------------------------------------------------------------------------------


class Metric(NamedTuple, Generic[Row]):
    """A ratio of two sums over replies, and how it is named on the page."""

    label: str
    meaning: str  # one sentence
    above: Callable[[Row], float]
    below: Callable[[Row], float]
    of: str  # what is counted below the line
    share: bool = True  # between 0 and 1 by its nature
    decimal: bool = False  # written as 0.58, not as 58 %
    low_is_good: bool = False


def parses(score: Score) -> bool:
    """The reply has the form it should have: no fault in any tag or box, and an answer."""
    return score.well_formed and score.answer != "absent"


def _true(score: Score) -> int:
    return score.true_boxes or 0


def _predicted(score: Score) -> int:
    """Predicted boxes that can be judged: those of samples whose evidence was annotated, if only as absent."""
    return 0 if score.true_boxes is None else score.predicted_boxes


def boxes_found(score: Score) -> int:
    """True boxes that the reply finds, as acc@0.5 counts them."""
    return sum(iou >= THRESHOLD for iou in score.ious)


def _replies(_: Score) -> int:
    return 1


METRICS: dict[str, Metric[Score]] = {
    "accuracy_at_50": Metric(
        "found",
        "acc@0.5: share of true boxes that the first boxes of a reply, as many as are true, meet with IoU of at least "
        "0.5; a miss counts as 0.",
        boxes_found, _true, "true boxes",
    ),
    "mean_iou": Metric(
        "overlap",
        "Mean IoU over all true boxes, of the same predicted ones: 0 is no overlap or no box, 1 is exact.",
        lambda s: math.fsum(s.ious), _true, "true boxes", decimal=True,
    ),
    "answer_accuracy": Metric(
        "answers right", "Share of replies whose final answer is one of the accepted ones.",
        lambda s: s.answer == "right", _replies, "replies",
    ),
    "answer_wrong": Metric(
        "answers wrong", "Share of replies with an answer that is not accepted.",
        lambda s: s.answer in ("wrong", "unreadable"), _replies, "replies", low_is_good=True,
    ),
    "unreadable": Metric(
        "unreadable answers",
        "Share of replies whose answer cannot be read: they state none, name several, or name none of the kind that "
        "is asked for (an option, yes or no, a number). They count as not right.",
        is_unreadable, _replies, "replies", low_is_good=True,
    ),
    "answer_absent": Metric(
        "no answer", "Share of replies that never come to an answer.",
        lambda s: s.answer == "absent", _replies, "replies", low_is_good=True,
    ),
    "precision": Metric(
        "precision", "Share of all predicted boxes that are right; drawing boxes everywhere lowers it.",
        lambda s: s.matched, _predicted, "predicted boxes",
    ),
    "recall": Metric(
        "recall", "Share of the true boxes that any predicted box meets at IoU 0.5, each used once.",
        lambda s: s.matched, _true, "true boxes",
    ),
    "f1": Metric(
        "F1", "Precision and recall in one: missing boxes and boxes too many cost the same.",
        lambda s: 2 * s.matched, lambda s: _predicted(s) + _true(s), "boxes of both",
    ),
    "all_boxes_right": Metric(
        "whole chain right",
        "Share of replies whose boxes are all right, with none missing and none too many: every step of their "
        "reasoning points where it should.",
        lambda s: _true(s) > 0 and s.matched == s.true_boxes == s.predicted_boxes, lambda s: _true(s) > 0,
        "replies, thing there",
    ),
    "misnamed": Metric(
        "misnamed",
        "Share of true boxes that are met only under another name, where things of several names are asked for.",
        lambda s: s.misnamed, _true, "true boxes", low_is_good=True,
    ),
    "boxes_where_absent": Metric(
        "false alarms", "Share of replies with a box, of those about a thing that is not there.",
        lambda s: s.true_boxes == 0 and s.predicted_boxes > 0, lambda s: s.true_boxes == 0, "replies, thing absent",
        low_is_good=True,
    ),
    "no_box": Metric(
        "no box", "Share of replies without any box that can be read, of those about a thing that is there.",
        lambda s: _true(s) > 0 and s.predicted_boxes == 0, lambda s: _true(s) > 0, "replies, thing there",
        low_is_good=True,
    ),
    "malformed": Metric(
        "malformed", "Share of replies with a tag or box that cannot be read.",
        lambda s: not s.well_formed, _replies, "replies", low_is_good=True,
    ),
    "boxes_per_answer": Metric(
        "boxes per reply", "Mean number of boxes that can be read, right or wrong.",
        lambda s: s.predicted_boxes, _replies, "replies", share=False, decimal=True,
    ),
    "accuracy_at_50_parsed": Metric(
        "found, if in form",
        "acc@0.5 over only those replies that keep the form: every tag and box readable, and an answer.",
        lambda s: boxes_found(s) * parses(s), lambda s: _true(s) * parses(s), "true boxes, in form",
    ),
    "mean_iou_parsed": Metric(
        "overlap, if in form", "Mean IoU over only those replies that keep the form.",
        lambda s: math.fsum(s.ious) * parses(s), lambda s: _true(s) * parses(s), "true boxes, in form", decimal=True,
    ),
}  # fmt: skip
"""Name → what it is, in the order of the page; a new metric is a new entry. Precision, recall and F1 are micro averages
over boxes. Box figures leave samples without annotated evidence out, and count those annotated as absent with the boxes
that are predicted for them. `accuracy_at_50` and `mean_iou` look at the first boxes of a reply alone, as many as are
true (for one true box the protocol of referring expressions); `recall`, `precision` and `f1` at all of them."""


@dataclass(frozen=True)
class Figure:
    """A number, its 95 % interval, and what it was measured on.

    `value` None: there was nothing to measure. `low` and `high` None: no interval can be given.
    `rows`: samples that count; `images`: those that they are about, a sample without one for itself; `count`: what
    was counted below the line (`of` says what).
    """

    value: float | None
    low: float | None
    high: float | None
    rows: int
    images: int
    count: float
    of: str
    interval: Literal["bootstrap", "exact", "none"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; no float is longer than it is meaningful."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Measured:
    """Figures per condition, and paired differences (first condition minus second)."""

    figures: dict[str, dict[str, Figure]]
    differences: dict[tuple[str, str], dict[str, Figure]]


def measure(
    conditions: Mapping[str, Sequence[Score | None]], pairs: Sequence[tuple[str, str]] = (), *, seed: int = 0,
    resamples: int = RESAMPLES,
) -> Measured:  # fmt: skip
    """All of METRICS; see measure_by."""
    return measure_by(METRICS, conditions, pairs, score_of=lambda score: score, seed=seed, resamples=resamples)


def measure_by(
    metrics: Mapping[str, Metric[Row]], conditions: Mapping[str, Sequence[Row | None]],
    pairs: Sequence[tuple[str, str]] = (), *, score_of: Callable[[Row], Score], seed: int = 0,
    resamples: int = RESAMPLES,
) -> Measured:  # fmt: skip
    """All figures of all conditions, with 95 % percentile bootstrap intervals over images.

    Args:
        conditions: name → one row per sample, or None where it was not asked; all in the same order of samples.
        score_of: says which sample and which image a row is about.
        pairs: which conditions to subtract (after, before), over the samples that both have.
        seed: the same seed gives the same intervals.

    Where every image is alike the bootstrap knows no doubt at all; a share of 0 or 1 gets the exact interval of Clopper
    and Pearson (over images) then: 0 of 50 may well be 7 %. Raises ValueError: the conditions are not about the same
    samples.
    """
    names, lists = list(conditions), list(conditions.values())
    scores = [[None if row is None else score_of(row) for row in rows] for rows in lists]
    samples = list(zip(*scores, strict=False))
    if len({len(rows) for rows in lists}) > 1 or any(len({s.sample for s in each if s}) > 1 for each in samples):
        raise ValueError("conditions are compared sample by sample; these are not about the same samples")
    image = _images(samples)
    ratios = [(metric.above, metric.below) for metric in metrics.values()]
    sums = np.array(
        [[[(0, 0) if r is None else (above(r), below(r)) for r in rows] for above, below in ratios] for rows in lists],
        dtype=np.float64,
    ).reshape(len(lists), len(ratios), -1, 2)
    above, below = sums[..., 0], sums[..., 1]  # [conditions, figures, samples]
    drawn = _draw(_by_image(above, image), _by_image(below, image), seed, resamples)
    figures = {
        name: {
            figure: _figure(above[row, column], below[row, column], image, drawn[row, column], metric)
            for column, (figure, metric) in enumerate(metrics.items())
        }
        for row, name in enumerate(names)
    }
    differences: dict[tuple[str, str], dict[str, Figure]] = {}
    for after, before in pairs:
        both = list(zip(conditions[after], conditions[before], strict=True))
        if any((a is None) != (b is None) for a, b in both):
            shared = {
                name: [None if None in pair else pair[side] for pair in both]
                for side, name in enumerate((after, before))
            }
            again = measure_by(metrics, shared, [(after, before)], score_of=score_of, seed=seed, resamples=resamples)
            differences |= again.differences
            continue
        apart = drawn[names.index(after)] - drawn[names.index(before)]
        differences[after, before] = {
            figure: _difference(figures[after][figure], figures[before][figure], apart[column])
            for column, figure in enumerate(metrics)
        }
    return Measured(figures, differences)


def _images(samples: Sequence[Sequence[Score | None]]) -> NDArray[np.int64]:
    """For each sample the number of its image: 0, 1, … as they first occur. A sample without one has its own, however
    often it is there."""
    numbers: dict[str | int, int] = {}
    keys = (
        next((s.image for s in row if s and s.image), None) or next((s.sample for s in row if s), place)
        for place, row in enumerate(samples)
    )
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _by_image(sums: Floats, image: NDArray[np.int64]) -> Floats:
    """[conditions, figures, samples] → [conditions, figures, images]: what the samples of an image add up to."""
    found = np.zeros((*sums.shape[:2], int(image.max(initial=-1)) + 1))
    np.add.at(found.transpose(2, 0, 1), image, sums.transpose(2, 0, 1))
    return found


def _draw(above: Floats, below: Floats, seed: int, resamples: int) -> Floats:
    """Every figure on every bootstrap draw: [conditions, figures, resamples]; NaN where nothing was measured.

    above, below: [conditions, figures, images].
    """
    rows, columns, images = above.shape
    if images < 2:
        return np.full((rows, columns, 1), np.nan)
    flat_above, flat_below = above.reshape(-1, images), below.reshape(-1, images)
    rng, at_once, drawn = np.random.default_rng(seed), max(1, _CELLS // images), []
    for first in range(0, resamples, at_once):
        draws = min(at_once, resamples - first)
        table = rng.integers(0, images, (draws, images)) + images * np.arange(draws)[:, None]
        times = np.bincount(table.ravel(), minlength=images * draws).reshape(draws, images)  # each image was drawn
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append((flat_above @ times.T) / (flat_below @ times.T))
    return np.concatenate(drawn, axis=1).reshape(rows, columns, -1)


def _figure(above: Floats, below: Floats, image: NDArray[np.int64], drawn: Floats, ratio: Metric[Any]) -> Figure:
    total, images = float(below.sum()), len(np.unique(image[below > 0]))
    figure = partial(Figure, rows=int(np.count_nonzero(below)), images=images, count=total, of=ratio.of)
    value = float(above.sum()) / total if total else None
    exact = value is not None and ratio.share and value in (0.0, 1.0)
    return _with_interval(figure, value, drawn, _clopper_pearson(value, images, CONFIDENCE) if exact else None)


def _difference(after: Figure, before: Figure, drawn: Floats) -> Figure:
    rows, images = max(after.rows, before.rows), max(after.images, before.images)
    figure = partial(Figure, rows=rows, images=images, count=max(after.count, before.count), of=after.of)
    value, exact = None if after.value is None or before.value is None else after.value - before.value, None
    if after.interval == before.interval == "exact":
        # Each at 97.5 %, so that both hold at 95 %.
        mine, other = (_clopper_pearson(f.value, f.images, (1 + CONFIDENCE) / 2) for f in (after, before))
        exact = mine[0] - other[1], mine[1] - other[0]
    return _with_interval(figure, value, drawn, exact)


def _with_interval(
    figure: Callable[..., Figure], value: float | None, drawn: Floats, exact: tuple[float, float] | None
) -> Figure:
    """The middle 95 % of the draws; `exact` where they are all alike. Draws without anything to measure (no predicted
    box, for precision) say nothing."""
    kept = drawn[np.isfinite(drawn)]
    if value is not None and kept.size:
        low, high = np.quantile(kept, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
        if low < high:
            return figure(value, low, high, interval="bootstrap")
    low, high = exact or (None, None)
    return figure(value, low, high, interval="exact" if exact else "none")


def _clopper_pearson(value: float | None, images: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a share that is 0 or 1 on each of `images`; in these cases it has a closed form."""
    far = ((1 - confidence) / 2) ** (1 / images)
    return (0.0, 1 - far) if value == 0 else (far, 1.0)
