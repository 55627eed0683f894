"""RefCOCO, RefCOCO+, RefCOCOg, and any other file of expressions and boxes: acc@0.5, 0.75 and 0.9 of the first box.

Expressions that describe nothing in the image (evidence: an empty list) are counted apart. A reply to one of those
draws a box, or rejects the expression, or does neither: then it cannot be read, and is no rejection.
"""

from __future__ import annotations

import re

from vcot.answers import normalise
from vcot.evaluation.metrics import Metric
from vcot.evaluation.suites.base import Marked, Published, Suite, found_at, not_measured
from vcot.records import Sample

_ASKS = re.compile(r"\bwhat this describes: ")
"""Every wording of convert's (vcot.datasets.coco.EXPRESSION_PHRASINGS) has these words."""
_SAYS_NO = re.compile(
    r"(?:no|none|nothing|nobody|nowhere|absent|not (?:there|present|visible|found|in the (?:image|picture|photo))"
    r"|there (?:is|are) (?:no|none|nothing))\b"
)
_NO_BOX = re.compile(
    r"""["'](?:bbox_2d|bbox|box_2d|box)["']\s*:\s*(?:null|none|\[\s*\])|\A\s*(?:```json)?\s*\[\s*\]""", re.I
)


def _set(sample: Sample) -> str | None:
    """`refcoco testA`, `refcocog validation`: the dataset, and the split as its authors call it."""
    if not (sample.origin.dataset.startswith("refcoco") or _ASKS.search(sample.question)):
        return None
    return f"{sample.origin.dataset} {sample.metadata.get('split') or sample.origin.split}"


def rejects(marked: Marked) -> bool:
    """Says that the expression describes nothing: in its answer, or by a box of null or an empty list."""
    if marked.score.boxes:
        return False
    answer = normalise(marked.answer or "")
    return _SAYS_NO.match(answer) is not None or _NO_BOX.search(marked.score.text) is not None


def _absent(marked: Marked) -> bool:
    return marked.score.true_boxes == 0


def _published() -> tuple[Published, ...]:
    survey = "survey of 2026-09-06, second-hand, not checked"
    found = "acc@0.5 of one box; the model's own prompt and frame"
    return (
        Published("refcoco validation", "InternVL3.5-241B", "accuracy_at_50", 0.941, survey, found),
        Published("refcoco testA", "InternVL3.5-241B", "accuracy_at_50", 0.963, survey, found),
        *(
            Published("average", system, "accuracy_at_50", share, survey, f"{found}; mean of RefCOCO, + and g")
            for system, share in (("Qwen3.5-Plus", 0.952), ("Qwen3.6-27B", 0.925), ("PaDT-Pro 7B", 0.945))
        ),
        *(
            Published(
                "ref-l4 test", "Qwen3-VL-8B", f"accuracy_at_{at}", share, survey, f"acc@0.{at}; Ref-L4's own rows"
            )
            for at, share in ((50, 0.885), (75, 0.776), (90, 0.558))
        ),
    )


SUITE = Suite(
    "refcoco",
    "RefCOCO, +, g and other expressions: is the box where it should be?",
    _set,
    (
        "accuracy_at_50", "accuracy_at_75", "accuracy_at_90", "mean_iou", "no_box", "malformed",
        "rejected", "boxes_where_absent", "unreadable_where_absent",
    ),
    measure=not_measured,
    own_metrics={
        "accuracy_at_75": found_at(0.75),
        "accuracy_at_90": found_at(0.9),
        "rejected": Metric(
            "rejected", "Share of the expressions that describe nothing that the reply says this of, without any box.",
            lambda m: _absent(m) and rejects(m), _absent, "expressions, thing absent",
        ),
        "unreadable_where_absent": Metric(
            "neither box nor no",
            "Share of the expressions that describe nothing where the reply has no box that can be read, and does not "
            "say that there is nothing either.",
            lambda m: _absent(m) and not m.score.boxes and not rejects(m), _absent, "expressions, thing absent",
            low_is_good=True,
        ),
    },
    groups={
        "average": tuple(
            f"{name} {split}"
            for name, splits in (
                ("refcoco", ("validation", "testA", "testB")), ("refcocoplus", ("validation", "testA", "testB")),
                ("refcocog", ("validation", "test")),
            )
            for split in splits
        )
    },
    published=_published(),
)  # fmt: skip
