"""How results are named and written, the same in the table of a terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcot.evaluation.metrics import METRICS
from vcot.reports.rendering import plural as plural

MINUS = "−"

#: What each row of the table is, in one short sentence.
RESULTS: Mapping[str, tuple[str, str]] = {
    "base-real": ("before tuning", "The base model as it came, asked as the tuned one is about the real images."),
    "native-real": (
        "before, own form",
        "The base model as it came, asked for boxes as its family writes them: its own frame, notation and prompt.",
    ),
    "tuned-real": ("after tuning", "The tuned model, asked the same about the same images."),
    "base-blank": ("before, blank images", "The base model sees plain grey instead of each image."),
    "tuned-blank": (
        "after, blank images",
        "The tuned model sees plain grey: what it gets right by habit, without looking. It should be low.",
    ),
    "base-shuffled": ("before, wrong images", "The base model sees another row's image."),
    "tuned-shuffled": (
        "after, wrong images",
        "The tuned model sees another row's image: what comes of knowing where such things usually lie.",
    ),
}
GUESSES: Mapping[str, tuple[str, str]] = {
    "centre-box": ("guess: centre box", "Always the same box, half the image's width and height, in its middle."),
    "whole-image": ("guess: whole image", "Always a box around everything."),
    "mean-box": ("guess: average box", "Always the average box of that thing in the training images."),
    "frequent-answer": ("guess: usual answer", "Always the answer given most often to that question in training."),
}
DIFFERENCES: Mapping[str, tuple[str, str]] = {
    "after-before": (
        "after − before",
        "What tuning changed, row by row on the same images; where the base was asked twice, from its better figure.",
    ),
    "real-blank": ("real − blank", "How much the tuned model's result depends on seeing the image."),
    "real-wrong": ("real − wrong", "How much it depends on seeing the right image."),
    "base-real-blank": ("before: real − blank", "The same dependence before tuning."),
}

#: Figure → (name, one sentence). The order is that of the page.
FIGURES: Mapping[str, tuple[str, str]] = {name: (metric.label, metric.meaning) for name, metric in METRICS.items()}

HEADLINE = ("accuracy_at_50", "precision", "mean_iou", "answer_accuracy", "malformed")
"""The columns of the first table."""

PLAIN = tuple(name for name, metric in METRICS.items() if metric.decimal)
"""Figures that are written as decimal numbers; all others are shares, written in per cent."""

#: What a guess says something about: a guess of a box has no answer, and its form is right by construction.
GUESSED_BOX = ("accuracy_at_50", "mean_iou", "precision", "recall", "f1")
GUESSED_ANSWER = ("answer_accuracy",)


def number(name: str, value: float, *, rows: int, signed: bool = False) -> str:
    """A figure's value: "76 %", "0.58"; with a sign for differences: "+70 points", "−0.05"."""
    digits = 2 if name in PLAIN else 1 if rows >= 1000 else 0
    size = round(value if name in PLAIN else 100 * value, digits)
    unit = "" if name in PLAIN else " points" if signed else " %"
    sign = MINUS if size < 0 else "+" if signed and size else ""
    return f"{sign}{abs(size):.{digits}f}{unit}"


def value(name: str, figure: Mapping[str, Any], *, signed: bool = False) -> str:
    """The figure's value, or a dash where there was nothing to measure."""
    if figure["value"] is None:
        return "–"
    return number(name, figure["value"], rows=figure["rows"], signed=signed)


def interval(name: str, figure: Mapping[str, Any], *, signed: bool = False) -> str:
    """The 95 % interval: "62–88", "0.44–0.58", for differences "58 to 82"; empty where there is none."""
    if figure["value"] is None or figure["low"] is None:
        return ""
    low, high = (number(name, figure[end], rows=figure["rows"]).removesuffix(" %") for end in ("low", "high"))
    return f"{low} to {high}" if signed else f"{low}–{high}"


def both(name: str, figure: Mapping[str, Any], *, signed: bool = False) -> str:
    """ "76 % (62–88)"."""
    around = interval(name, figure, signed=signed)
    return value(name, figure, signed=signed) + (f" ({around})" if around else "")


def counted(figure: Mapping[str, Any]) -> str:
    """What a figure was measured on: "50 replies", "57 true boxes, 50 rows", "200 replies, 50 images"."""
    count = f"{figure['count']:,.0f} {figure['of']}"
    if not figure["of"].startswith("replies"):
        count += f", {plural(figure['rows'], 'row')}"
    return count if figure["images"] == figure["rows"] else f"{count}, {plural(figure['images'], 'image')}"


BASES = ("native-real", "base-real")
"""The base in its own form, and in the tuned model's. Of equally good ones the first."""

LOW_IS_GOOD = tuple(name for name, metric in METRICS.items() if metric.low_is_good)


def better_base(values: Mapping[str, float | None], name: str) -> str:
    """Under which of BASES the base does better by a figure: "before tuning" is that one, figure by figure."""
    there = {key: value for key in BASES if (value := values.get(key)) is not None}
    if not there:
        return next(key for key in BASES if key in values)
    return (min if name in LOW_IS_GOOD else max)(there, key=lambda key: there[key])


def before(results: Mapping[str, Mapping[str, Any]], name: str) -> Any:
    """The figure of the better base. `results`: key of a row → its figures."""
    return results[better_base({k: results[k][name]["value"] for k in BASES if k in results}, name)][name]


def results_of(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {row["key"]: row["figures"] for row in report["results"]}


def find(report: Mapping[str, Any], part: str, key: str) -> dict[str, Any] | None:
    """One row of `results`, `guesses` or `differences` by its key."""
    return next((row for row in report[part] if row["key"] == key), None)


def guess_name(key: str) -> str:
    """ "average box"."""
    return GUESSES[key][0].removeprefix("guess: ")


FAULTS: Mapping[str, str] = {
    "no_box_text": "a label without a box",
    "wrong_count": "not four numbers",
    "not_a_number": "not a number",
    "not_finite": "not a finite number",
    "inverted": "left and right, or top and bottom, exchanged",
    "zero_area": "an empty box",
    "outside": "outside the image",
    "out_of_range": "numbers of another frame",
    "unbalanced_tag": "a tag left open",
}


def faults(kinds: Sequence[str]) -> list[str]:
    """Each kind of fault once, in words, with how often it occurred."""
    return [
        FAULTS.get(kind, kind) + (f" ×{times}" if (times := kinds.count(kind)) > 1 else "")
        for kind in dict.fromkeys(kinds)
    ]
