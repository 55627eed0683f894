"""VisCoT's benchmark (Shao et al. 2024, arXiv 2403.16999): questions with the one box that answers them.

Published answer scores come from a judge (a language model that says 0..1); here a rule measures what a rule can:

    documents and charts (docvqa, dude, sroie, infographicsvqa)    ANLS with the nearest accepted answer
    textvqa, textcap, general, reasoning, fine-grained              accuracy; VQA accuracy asks for three of ten people
                                                                    who agree, and these rows have one answer
    emotic                                                          F1 of the labels, in any order
    flickr30k                                                       nothing: answers are sentences; its boxes count

With `evaluate --judge` a language model says 0..1 as well (vcot.evaluation.judge), and the report says how often both
agree. The published judge is retired, so neither reproduces published numbers exactly. Boxes are measured as published:
IoU above 0.5 of the first box, a box that cannot be read is wrong. Both numbers are of all rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from vcot.answers import normalise
from vcot.evaluation.metrics import Metric
from vcot.evaluation.suites.base import AnswerMeasure, Marked, Published, Suite, anls, found_at, not_measured
from vcot.records import Sample

SETS = (
    "docvqa", "textcap", "textvqa", "dude", "sroie", "infographicsvqa", "flickr30k", "v7w", "gqa", "openimages", "vsr",
    "cub",
)  # fmt: skip
"""In the order of the published tables, as `convert` calls them. EMOTIC lies beside them and is in no table."""
GROUPS = {
    "text": ("docvqa", "textcap", "textvqa", "dude", "sroie"),
    "chart": ("infographicsvqa",),
    "general": ("flickr30k", "v7w"),
    "reasoning": ("gqa", "openimages", "vsr"),
    "fine-grained": ("cub",),
    "average": SETS,
}
_CALLED = {"visual7w": "v7w", "textcaps": "textcap"}


def _set(sample: Sample) -> str | None:
    """Only rows of the test split: training rows bear the names of the same sets."""
    name = _CALLED.get(sample.origin.dataset, sample.origin.dataset)
    return name if sample.origin.split == "test" and name in (*SETS, "emotic") else None


def labels(answer: str | None, sample: Sample) -> float:
    """F1 of the labels of an answer ("Happiness, Peace and Excitement"), as a set, with the nearest accepted one."""
    said = _labels(answer or "")
    return max((_f1(said, _labels(true)) for true in sample.answers), default=0.0)


def _labels(text: str) -> set[str]:
    return {name for part in re.split(r",|;|/|\band\b", text) if (name := normalise(part))}


def _f1(said: set[str], true: set[str]) -> float:
    return 2 * len(said & true) / (len(said) + len(true)) if said or true else 0.0


_MEASURES: Mapping[str, AnswerMeasure] = {
    **dict.fromkeys(("docvqa", "dude", "sroie", "infographicsvqa"), anls),
    "flickr30k": not_measured,
    "emotic": labels,
}


# ------------------------------------------------------------------------------------------------------- the judge


RIGHT = 0.5
"""An answer that is worth this much is right, where judge and rule are compared."""


def _score(marked: Marked) -> float | None:
    return None if marked.verdict is None else marked.verdict.score


def _both(marked: Marked) -> bool:
    return _score(marked) is not None and marked.worth is not None


def _agree(marked: Marked) -> bool:
    return ((_score(marked) or 0.0) >= RIGHT) == ((marked.worth or 0.0) >= RIGHT)


_OF_JUDGE: Mapping[str, Metric[Marked]] = {
    "judge_score": Metric(
        "judge", "Mean score that the judge gives to the final answers, where its verdict can be read; no answer is "
        "worth 0.",
        lambda m: _score(m) or 0.0, lambda m: _score(m) is not None, "verdicts",
    ),
    "judge_agreement": Metric(
        "judge = rule", "Share of the replies with a verdict and a rule where both find the answer worth one half or "
        "more, or both less.",
        lambda m: _both(m) and _agree(m), _both, "replies with both",
    ),
    "judge_unread": Metric(
        "verdict unread", "Share of the replies of which no verdict can be read; the judge's mean leaves them out.",
        lambda m: m.verdict is not None and m.verdict.score is None, lambda m: m.verdict is not None, "replies",
        low_is_good=True,
    ),
}  # fmt: skip


def kappa(marked: Iterable[Marked]) -> float | None:
    """Agreement of judge and rule beyond chance (Cohen 1960), -1..1, over the replies that have both; None: there are
    none, or both say the same of all."""
    said = [((_score(one) or 0.0) >= RIGHT, (one.worth or 0.0) >= RIGHT) for one in marked if _both(one)]
    if not said:
        return None
    agreed = sum(judge == rule for judge, rule in said) / len(said)
    judge, rule = (sum(each) / len(said) for each in zip(*said, strict=True))
    by_chance = judge * rule + (1 - judge) * (1 - rule)
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


# ------------------------------------------------------------------------------------------------------- published

_PAPER = "Shao et al. 2024, arXiv 2403.16999 v3"
_DOCTHINKER = "DocThinker, table 1"
_JUDGED = "answers scored 0..1 by gpt-3.5-turbo-1106 at its default temperature, two turns with a crop unless said"
_BY_JUDGE = "a judge gave it, and ours is by rule"
_BY_ANOTHER = "another judge gave it"
_FOUND = "IoU > 0.5 of the one predicted box; all rows count"

# Systems, and a value for each of SETS; shorter rows have none for the last sets.
_ANSWERS: Sequence[tuple[str, Sequence[float]]] = (
    ("LLaVA-1.5-7B 336", (.244, .597, .588, .290, .136, .400, .581, .575, .534, .412, .572, .530)),
    ("LLaVA-1.5-13B 336", (.268, .615, .617, .287, .164, .426, .620, .580, .571, .413, .590, .573)),
    ("SPHINX-13B 224", (.198, .551, .532, .000, .071, .352, .607, .558, .584, .467, .613, .505)),
    ("VisCoT-7B 224", (.355, .610, .719, .279, .341, .356, .671, .580, .616, .833, .682, .556)),
    ("VisCoT-7B 336", (.476, .675, .775, .386, .470, .324, .668, .558, .631, .822, .614, .559)),
    ("VisCoT-7B 224, one turn", (.170, .502, .463, .175, .044, .332, .610, .554, .600, .656, .634, .534)),
    ("VisCoT-7B 224, true box", (.774, .827, .840, .718, .633, .778, .692, .699, .796, .896, .792, .577)),
    ("VisCoT-7B 224, random box", (.208, .463, .495, .157, .146, .378, .627, .458, .477, .763, .585, .683)),
    ("VisCoT-7B 224, centre box", (.220, .533, .558, .204, .205, .366, .653, .529, .547, .803, .657, .609)),
)  # fmt: skip
_BOXES: Sequence[tuple[str, Sequence[float]]] = (
    ("VisCoT-7B 224", (13.6, 41.3, 46.8, 5.0, 15.7, 7.2, 49.6, 31.1, 42.0, 57.6, 69.6, 67.0)),
    ("VisCoT-7B 336", (20.4, 46.3, 57.6, 9.6, 18.5, 10.0, 51.3, 29.4, 49.5, 59.3, 54.0, 47.1)),
)
_ANSWERS_LATER: Sequence[tuple[str, Sequence[float]]] = (
    ("Qwen2.5-VL-7B (336)", (.350, .642, .735, .202, .472, .325, .603, .556, .455, .347, .616)),
    ("Qwen2.5-VL-7B (1536)", (.773, .710, .792, .492, .708, .663, .685, .604, .457, .371, .603)),
    ("Qwen2.5-VL-7B, SFT 4k (1536)", (.784, .725, .801, .498, .714, .674, .680, .609, .472, .427, .624)),
    ("DocThinker-7B, GRPO 4k (1536)", (.795, .738, .827, .515, .806, .689, .701, .625, .694, .686, .721)),
    ("DocThinker-7B, GRPO 8k (1536)", (.802, .757, .836, .568, .814, .697, .734, .641, .737, .784, .768)),
)  # fmt: skip


def _published(*, judged: bool = False) -> Iterator[Published]:
    """judged: a judge was asked here as well."""
    answers, differs = ("judge_score", _BY_ANOTHER) if judged else ("answer_score", _BY_JUDGE)
    later = f"{_JUDGED}; longer side of the image in brackets"
    for table, metric, per, source, protocol, other in (
        (_ANSWERS, answers, 1, _PAPER, _JUDGED, differs),
        (_BOXES, "accuracy_above_50", 100, _PAPER, _FOUND, ""),
        (_ANSWERS_LATER, answers, 1, _DOCTHINKER, later, differs),
    ):
        for system, values in table:
            # Not strict: the later table has no CUB.
            for part, value in zip(SETS, values, strict=False):
                yield Published(part, system, metric, round(value / per, 4), source, protocol, other)


SUITE = Suite(
    "viscot",
    "VisCoT's benchmark: 12 sets of questions with the box that answers them, and EMOTIC",
    _set,
    ("answer_score", "unreadable", "accuracy_above_50", "accuracy_at_50", "mean_iou", "malformed"),
    measures=_MEASURES,
    own_metrics={"accuracy_above_50": found_at(0.5, strict=True), **_OF_JUDGE},
    groups=GROUPS,
    published=tuple(_published()),
)
JUDGED = replace(
    SUITE,
    shown=(
        "answer_score",
        "unreadable",
        "judge_score",
        "judge_agreement",
        "accuracy_above_50",
        "judge_unread",
        *SUITE.shown[3:],
    ),
    published=tuple(_published(judged=True)),
)
"""The same where a judge was asked."""
