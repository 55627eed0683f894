"""How far several replies to one question differ, and how many of its known reasonings they find.

    distinct          how many of the draws' rationales are not the same
    coverage          of the known reasonings of a Sample that has several, those that a draw with a right answer gives
    self_similarity   mean resemblance of two draws: 1 is all alike, 0 is nothing in common

Whoever draws one reply over and over learns nothing from more of them, and a model that was trained for reward alone
tends to have one way left. Two rationales are the same when their words are, but for case, white space and punctuation,
and their boxes pair off in order at IoU >= 0.5. A known reasoning that points is found by its boxes alone: they are the
way to the answer, in whatever words it is told.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import combinations
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vcot.evaluation.config import Way
from vcot.evaluation.metrics import THRESHOLD, Figure, Metric, measure_by
from vcot.evaluation.voting import sizes_up_to
from vcot.grounding import Box, Frame, Trace, iou, parse, split_answer
from vcot.records import Sample, Score

if TYPE_CHECKING:
    from vcot.evaluation.runner import Reply

SEVERAL, MANY = 2, 6
"""Known reasonings from which on a question counts for coverage, and for coverage among many."""
_AROUND = ".,;:!?\"'`*()…“”‘’„«»"


# --- one question ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rationale:
    """What is compared of a reasoning: its words (labels among them), and its boxes in order, in original pixels."""

    words: tuple[str, ...]
    boxes: tuple[Box, ...]

    @classmethod
    def of(cls, trace: Trace) -> Rationale:
        """Words without case, without the punctuation around each, and white space counts only as what parts them."""
        words = (word.strip(_AROUND) for word in unicodedata.normalize("NFKC", trace.text).casefold().split())
        return cls(tuple(filter(None, words)), trace.boxes)

    @cached_property
    def shingles(self) -> set[tuple[str, ...]]:
        """Pairs of neighbouring words; of a single word, the word."""
        return {self.words[at : at + 2] for at in range(max(len(self.words) - 1, min(len(self.words), 1)))}


def same(one: Rationale, other: Rationale) -> bool:
    """Equal words, and as many boxes, each at IoU >= 0.5 with the other's of its place."""
    return one.words == other.words and len(one.boxes) == len(other.boxes) == _boxes_alike(one, other)


def finds(drawn: Rationale, known: Rationale) -> bool:
    """Whether a rationale goes this way to the answer: the same boxes in the same order; of one without, its words."""
    if not known.boxes:
        return same(drawn, known)
    return len(drawn.boxes) == len(known.boxes) == _boxes_alike(drawn, known)


def _boxes_alike(one: Rationale, other: Rationale) -> int:
    return sum(iou(a, b) >= THRESHOLD for a, b in zip(one.boxes, other.boxes, strict=False))


def distinct(rationales: Sequence[Rationale]) -> int:
    """How many there are, where those that are the same count once; also those that a chain of such pairs joins, so
    that their order does not matter."""
    groups = list[list[Rationale]]()
    for each in dict.fromkeys(rationales):
        joined = [group for group in groups if any(same(each, other) for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([other for group in joined for other in group] + [each])
    return len(groups)


def resemblance(one: Rationale, other: Rationale) -> float:
    """The Jaccard index of what two rationales consist of: pairs of neighbouring words (w-shingling with w = 2, Broder
    1997, On the resemblance and containment of documents) and boxes, where two at the same place of the order are one
    at IoU >= 0.5. Of two empty ones it is 1."""
    ours, theirs = one.shingles, other.shingles
    boxes = _boxes_alike(one, other)
    either = len(ours | theirs) + len(one.boxes) + len(other.boxes) - boxes
    return (len(ours & theirs) + boxes) / either if either else 1.0


@dataclass(frozen=True)
class QuestionDiversity:
    """What is measured of one question.

    Attributes:
        score: says which sample and which image it is about, and nothing else.
        draws, distinct: rationales, and those of them that differ.
        pairs, similarity: of the draws, and the sum of their resemblance.
        found_by: of each known reasoning the draw that first gives it and is right: 1, 2, …; None: none does.
    """

    score: Score
    draws: int
    distinct: int
    pairs: int
    similarity: float
    found_by: tuple[int | None, ...]

    def known(self, least: int) -> int:
        """Known reasonings, if they are so many at least; else 0: it does not count."""
        return len(self.found_by) if len(self.found_by) >= least else 0

    def found(self, least: int, draws: int | None = None) -> int:
        """Of these, how many the first draws (None: all) find."""
        found = sum(at is not None and (draws is None or at <= draws) for at in self.found_by)
        return found if self.known(least) else 0


def of_question(
    sample: str, image: str | None, draws: Sequence[Rationale], right: Sequence[bool], known: Sequence[Rationale] = ()
) -> QuestionDiversity:
    """Args:
        sample, image: its id, and the digest of its image.
        draws, right: of each reply, in the order drawn, its rationale, and whether its answer is accepted.
        known: reasonings that lead to the answer.

    Raises ValueError: another number of rationales than of verdicts.
    """
    # Many draws are the same to the letter: each pair of texts is compared once, however often both were drawn.
    times = Counter(draws)
    similarity = math.fsum(times[a] * times[b] * resemblance(a, b) for a, b in combinations(times, 2))
    similarity += sum(math.comb(many, 2) for many in times.values())
    first: list[int | None] = []
    told = list(zip(draws, right, strict=True))
    for reasoning in known:
        found = (at for at, (drawn, is_right) in enumerate(told, start=1) if is_right and finds(drawn, reasoning))
        first.append(next(found, None))
    about = Score(
        sample=sample, image=image, answer="absent", true_boxes=None, predicted_boxes=0, matched=0, well_formed=True,
        text="",
    )  # fmt: skip
    return QuestionDiversity(about, len(draws), distinct(draws), math.comb(len(draws), 2), similarity, tuple(first))


# --- many questions ----------------------------------------------------------------------------------------

FIGURES: Mapping[str, Metric[QuestionDiversity]] = MappingProxyType(
    {
        "distinct": Metric(
            "distinct", "Share of the replies' rationales that differ: of eight replies with two rationales, 25 %.",
            lambda q: q.distinct, lambda q: q.draws, "replies",
        ),
        "distinct_rationales": Metric(
            "rationales", "Mean number of rationales to a question that differ.",
            lambda q: q.distinct, lambda q: 1, "questions", share=False, decimal=True,
        ),
        "self_similarity": Metric(
            "self-similarity",
            "Mean resemblance of two replies' rationales, the Jaccard index of their pairs of neighbouring words and "
            "their boxes: 1 is all alike.",
            lambda q: q.similarity, lambda q: q.pairs, "pairs of replies", decimal=True,
        ),
        "coverage": Metric(
            "coverage",
            f"Of the known reasonings of questions that have {SEVERAL} or more, the share that a reply with a right "
            "answer gives.",
            lambda q: q.found(SEVERAL), lambda q: q.known(SEVERAL), "known reasonings",
        ),
        "coverage_of_many": Metric(
            f"coverage, {MANY} or more", f"The same, of questions with {MANY} known reasonings or more.",
            lambda q: q.found(MANY), lambda q: q.known(MANY), "known reasonings",
        ),
    }
)  # fmt: skip
"""Name → what it is, in the order in which they are shown."""
COVERAGES = {"coverage": SEVERAL, "coverage_of_many": MANY}


@dataclass(frozen=True)
class Diversity:
    """Of all questions, with 95 % intervals over images (vcot.evaluation.metrics).

    figures: by the names of FIGURES; without a value where there is nothing to measure, as no known reasonings.
    by_draws: number of draws → coverage and coverage_of_many, of the first so many replies to each question.
    """

    questions: int
    draws: int
    figures: Mapping[str, Figure]
    by_draws: Mapping[int, Mapping[str, Figure]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "questions": self.questions,
            "draws": self.draws,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "by_draws": [
                {"draws": n} | {name: figure.to_dict() for name, figure in figures.items()}
                for n, figures in self.by_draws.items()
            ],
        }


def diversity(
    questions: Sequence[QuestionDiversity], sizes: Sequence[int] | None = None, *, seed: int = 0
) -> Diversity:  # fmt: skip
    """sizes: numbers of draws that coverage is given for: 1, 2, 4, … and all, unless they are given."""
    most = max((question.draws for question in questions), default=0)
    sizes = sizes_up_to(most) if sizes is None else sizes
    metrics = dict(FIGURES)
    for n in sizes:
        for name, least in COVERAGES.items():
            metrics[f"{name} {n}"] = FIGURES[name]._replace(
                above=partial(QuestionDiversity.found, least=least, draws=n)
            )
    found = measure_by(metrics, {"draws": questions}, score_of=lambda q: q.score, seed=seed).figures["draws"]
    return Diversity(
        len(questions), most, {name: found[name] for name in FIGURES},
        {n: {name: found[f"{name} {n}"] for name in COVERAGES} for n in sizes},
    )  # fmt: skip


def of_draws(
    samples: Sequence[Sample], draws: Mapping[Way, Sequence[Sequence[Reply]]], frame: Callable[[Sample], Frame],
    groups: Mapping[str, Sequence[str]], *, seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """What the report holds of each way that was asked several times, and that has rationales.

    Args:
        draws: way → for each sample, in order, what was said. A sample without draws is left out.
        frame: in whose numbers the subject writes boxes about a sample.
        groups: name of a metadata → its value for each sample.
    """
    found = []
    for way, each in draws.items():
        if way == "direct":  # the answer alone
            continue
        asked = {
            place: _question(sample, several, way, frame(sample))
            for place, (sample, several) in enumerate(zip(samples, each, strict=True))
            if several
        }
        if not asked:
            continue
        parts = {
            name: {
                value: [one for place, one in asked.items() if values[place] == value]
                for value in sorted({values[place] for place in asked}, key=lambda said: (len(said), said))
            }
            for name, values in groups.items()
        }
        found.append(
            {"way": way}
            | diversity([*asked.values()], seed=seed).to_dict()
            | {
                "by_metadata": {
                    name: [
                        {"value": value, "questions": len(some)}
                        | {"figures": diversity(some, (), seed=seed).to_dict()["figures"]}
                        for value, some in values.items()
                    ]
                    for name, values in parts.items()
                }
            }
        )
    return found


def _question(sample: Sample, draws: Sequence[Reply], way: Way, frame: Frame) -> QuestionDiversity:
    said = [parse(split_answer(reply.score.text)[0], frame).trace for reply in draws]
    # Asked to reason in words, a model is not expected to point.
    known = [Trace((trace.text,)) if way == "reason" else trace for trace in sample.reasoning]
    return of_question(
        sample.id, None if sample.image is None else sample.image.sha256, [*map(Rationale.of, said)],
        [reply.score.answer == "right" for reply in draws], [*map(Rationale.of, known)],
    )  # fmt: skip
