"""POPE (Li et al. 2023, arXiv 2305.10355): is there a …? As many questions about things that are there as about others.

Three sets by what is asked about that is not there: `random`, the things that are most often in images (`popular`), or
those that most often stand beside what is there (`adversarial`). `convert --source pope` reads POPE's own questions
(sets `pope random`, …), `--source coco --absent-by …` makes such questions of other images. Accuracy alone hides a
model that always says yes; its yes-share does not.
"""

from __future__ import annotations

import re

from vcot.answers import yes_or_no
from vcot.evaluation.metrics import Metric
from vcot.evaluation.suites.base import Marked, Published, Suite
from vcot.records import Sample

_ROW = re.compile(r":presence-(random|popular|adversarial):")


def _set(sample: Sample) -> str | None:
    if sample.origin.dataset == "pope":
        return f"pope {sample.metadata.get('absent by')}"
    found = _ROW.search(sample.origin.row)
    return None if found is None else found[1]


def _said_yes(marked: Marked) -> bool:
    return marked.answer is not None and yes_or_no(marked.answer) == "yes"


def _is_there(marked: Marked) -> bool:
    return marked.sample.answers[0] == "yes"


def _yes_and_there(marked: Marked) -> bool:
    return _said_yes(marked) and _is_there(marked)


def _right(answer: str | None, sample: Sample) -> float:
    return float(answer is not None and yes_or_no(answer) == sample.answers[0])


SUITE = Suite(
    "pope",
    "POPE: is there a …? Half of the things are not there",
    _set,
    ("answer_score", "unreadable", "f1_yes", "precision_yes", "recall_yes", "yes_share"),
    measure=_right,
    own_metrics={
        "f1_yes": Metric(
            "F1 of yes", "Precision and recall of yes in one; a reply that is neither yes nor no finds nothing.",
            lambda m: 2 * _yes_and_there(m), lambda m: _said_yes(m) + _is_there(m), "yes, said and true",
        ),
        "precision_yes": Metric(
            "precision of yes", "Share of the replies that say yes that are about a thing that is there.",
            _yes_and_there, _said_yes, "replies that say yes",
        ),
        "recall_yes": Metric(
            "recall of yes", "Share of the things that are there that a reply says yes to.",
            _yes_and_there, _is_there, "questions, thing there",
        ),
        "yes_share": Metric(
            "says yes", "Share of all replies that say yes; half of the things are there.",
            _said_yes, lambda _: 1, "replies",
        ),
    },
    groups={
        "pope average": ("pope random", "pope popular", "pope adversarial"),
        "average": ("random", "popular", "adversarial"),
    },
    published=tuple(
        Published(
            group, "leading models of 2026", "f1_yes", 0.905, "survey of 2026-09-06, second-hand, not checked",
            "POPE's own questions (500 images of COCO val2014, six each); about 90.5 %", differs,
        )
        for group, differs in (
            ("pope average", ""), ("average", "the same measure of other images and questions"),
        )
    ),
)  # fmt: skip
