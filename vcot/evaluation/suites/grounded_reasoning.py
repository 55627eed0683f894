"""TreeBench (Wang et al. 2025, arXiv 2507.07999) and V* (Wu and Xie 2023, arXiv 2312.14135): choices that want looking.

Three things are measured: whether the choice is right; whether the boxes of the reasoning are those of the targets, one
to one (F1: a box too many costs as much as one that is missing); and TreeBench's own measure, the mean over true boxes
of the best IoU with any predicted one. That is recall alone: boxes everywhere make it 1, so it stands beside F1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from vcot import answers
from vcot.evaluation.metrics import Metric
from vcot.evaluation.suites.base import Marked, Published, Suite
from vcot.evaluation.suites.multiple_choice import choice
from vcot.grounding import Box, iou
from vcot.records import Sample


def _set(sample: Sample) -> str | None:
    return sample.origin.dataset if sample.origin.dataset in ("treebench", "vstar") else None


def best_iou(predicted: Sequence[Box], true: Sequence[Box]) -> float | None:
    """TreeBench's measure of one reply: the mean over true boxes of the best IoU with any predicted one, 0..1.

    None: there are no true boxes.
    """
    if not true:
        return None
    return math.fsum(max((iou(box, said) for said in predicted), default=0.0) for box in true) / len(true)


def _best_iou(marked: Marked) -> float | None:
    """Of the boxes as its scorer is told them: in whole pixels."""
    return best_iou([_whole(box) for box in marked.score.boxes], marked.sample.true_boxes or ())


def treebench_line(marked: Marked) -> dict[str, Any] | None:
    """One row of the table that TreeBench's scorer in VLMEvalKit reads, with the reply in its form; None: of V*.

    It takes boxes from `<think>`, written as `<box>[12,34,56,78]</box>` (whole pixels of the original, no blanks), and
    the option from `<answer>`. Of the words of the reply, only the names of the boxes are left.
    """
    sample = marked.sample
    if marked.set != "treebench" or not sample.choices:
        return None
    said = ((mention.label.replace("<", "&lt;"), mention.boxes) for mention in marked.score.mentions or ())
    named = (label + "".join(map(_written, boxes)) for label, boxes in said)
    chosen = None if marked.answer is None else answers.letter(marked.answer, sample.choices)
    return {
        "index": sample.id, "category": sample.metadata.get("category", ""),
        "answer": answers.letter(sample.answers[0], sample.choices),
        "target_instances": str([box.as_list() for box in sample.true_boxes or ()]),
        "prediction": f"<think>{', '.join(named)}</think>\n<answer>{chosen or ''}</answer>",
    }  # fmt: skip


def _written(box: Box) -> str:
    x1, y1, x2, y2 = map(int, _whole(box).as_list())
    return f"<box>[{x1},{y1},{x2},{y2}]</box>"


def _whole(box: Box) -> Box:
    """In whole pixels; a box thinner than a pixel becomes one pixel wide."""
    (x1, x2), (y1, y2) = _edges(box.x1, box.x2), _edges(box.y1, box.y2)
    return Box(x1, y1, x2, y2)


def _edges(low: float, high: float) -> tuple[int, int]:
    first, last = round(low), round(high)
    return (first, last) if first < last else (math.floor(low), math.floor(low) + 1)


_TREEVGR = "Wang et al. 2025, arXiv 2507.07999"
_AGAIN = "README of github.com/Haochen-Wang409/TreeVGR"
_OWN = "its own prompt with <think> and <answer>, greedy; images of 1280 to 16384 visual tokens"
_UNKNOWN = "how it was measured is not said"
_SURVEY = "survey of 2026-09-06, second-hand, not checked"


def _of_treevgr() -> list[Published]:
    """Accuracy and mean best IoU on TreeBench, accuracy on V*, of the ablation of its training."""
    table: Sequence[tuple[str, float, float | None, float]] = (
        ("Qwen2.5-VL-7B", 0.370, None, 0.712),
        ("TreeVGR-7B, SFT alone", 0.390, 0.234, 0.764),
        ("TreeVGR-7B", 0.504, 0.440, 0.911),
        ("TreeVGR-7B, no reward for boxes", 0.380, 0.272, 0.879),
        ("TreeVGR-7B, boxes too many are free", 0.0, 0.783, 0.0),
        ("TreeVGR-7B, missing boxes are free", 0.454, 0.206, 0.895),
        ("TreeVGR-7B, text alone", 0.390, None, 0.869),
    )
    return [
        Published(part, system, metric, value, _TREEVGR, _OWN)
        for system, accuracy, overlap, vstar in table
        for part, metric, value in (
            ("treebench", "answer_score", accuracy), ("treebench", "best_iou", overlap),
            ("vstar", "answer_score", vstar),
        )
        if value is not None
    ]  # fmt: skip


SUITE = Suite(
    "grounded-reasoning",
    "TreeBench and V*: the right choice, and the boxes of what it stands on",
    _set,
    ("answer_score", "unreadable", "f1", "precision", "recall", "best_iou", "malformed"),
    measure=choice,
    own_metrics={
        "best_iou": Metric(
            "best overlap",
            "TreeBench's own: the mean over true boxes of the best IoU with any box of the reply in whole pixels, "
            "averaged over replies; boxes too many cost nothing.",
            lambda m: _best_iou(m) or 0.0, lambda m: _best_iou(m) is not None, "replies with true boxes", decimal=True,
        ),
    },
    exports={"treebench": treebench_line},
    published=(
        *_of_treevgr(),
        Published("treebench", "o3", "answer_score", 0.5487, _TREEVGR, "not said", _UNKNOWN),
        Published("treebench", "TreeVGR-7B, run again", "answer_score", 0.4938, _AGAIN, _OWN),
        Published("treebench", "TreeVGR-7B, run again", "best_iou", 0.433, _AGAIN, _OWN),
        Published("treebench", "Seed2.0 Pro", "answer_score", 0.647, _SURVEY, "not said", _UNKNOWN),
        Published(
            "vstar", "leading models of 2026", "answer_score", 0.960, _SURVEY, "191 questions; not said", _UNKNOWN
        ),
    ),
)  # fmt: skip
