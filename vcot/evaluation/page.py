"""``report.html``: the result for people who were not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from vcot.evaluation import words
from vcot.evaluation.gallery import Card
from vcot.evaluation.template import BODY, CSS
from vcot.records.page import PREDICTED, TRUE, fill, page

SHOWN_FIRST = 12
"""Pictures that are seen without opening the rest."""

PARTS = ("results", "guesses", "differences")
ASIDE = ("base-blank", "base-shuffled", "base-real-blank")
"""Rows that stand among all figures only: what a model does with a blank picture before it was tuned is a detail."""

COLUMNS = ("accuracy_at_50", "mean_iou", "precision", "answer_accuracy", "malformed")


def render(report: Mapping[str, Any], worst: Sequence[Card] = (), drawn: Sequence[Card] = ()) -> str:
    """The page of a report, self-contained.

    Args:
        report: what stands in ``report.json``.
        worst, drawn: rows with their pictures, both worst first; `drawn` at random from what is not in `worst`.
    """
    body = fill(
        BODY,
        report=report,
        samples=report["samples"],
        verdict=report["verdict"],
        rows=[row for part in PARTS for row in report[part] if row["key"] not in ASIDE],
        tiles=_tiles(report),
        charts=[chart for figure in ("accuracy_at_50", "answer_accuracy") if (chart := _chart(report, figure))],
        groups=[group | {"rows_of_table": _group_rows(group)} for group in report["groups"]],
        gallery=[(title, cards) for title, cards in _galleries(report, worst, drawn) if cards],
        columns=COLUMNS,
        names=words.FIGURES,
        results=words.RESULTS,
        guesses=words.GUESSES,
        differences=words.DIFFERENCES,
        before=words.before,
        value=words.value,
        interval=words.interval,
        both=words.both,
        counted=words.counted,
        faults=words.faults,
        iou=lambda score: ", ".join(f"{iou:.3f}" for iou in score.ious),
        css=Markup(CSS),
        colours=(TRUE, PREDICTED),
        shown_first=SHOWN_FIRST,
    )
    return page("How well does the tuned model see?", body, lead=report["verdict"]["headline"])


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what stands large, what it is)"""
    results = words.results_of(report)
    blank = words.find(report, "results", "tuned-blank")
    tiles = []
    for figure, what, guess in (
        ("accuracy_at_50", "of true boxes found", "by the best guess of a box"),
        ("answer_accuracy", "of answers right", "by the usual answer"),
    ):
        was, now = (words.value(figure, of) for of in (words.before(results, figure), results["tuned-real"][figure]))
        if now == "–":
            continue
        tiles.append((f"{was} → {now}", f"{what}, before → after tuning"))
        if blank is not None:
            tiles.append((words.value(figure, blank["figures"][figure]), f"{what}, on blank pictures"))
        able = [row["figures"][figure] for row in report["guesses"] if figure in row["figures"]]
        if able:
            tiles.append((words.value(figure, max(able, key=lambda f: f["value"] or 0.0)), f"{what}, {guess}"))
    return tiles


def _chart(report: Mapping[str, Any], figure: str) -> dict[str, Any] | None:
    """Dots with their intervals on one scale from 0 to 100 %."""
    rows = [row for part in PARTS[:2] for row in report[part] if figure in row["figures"] and row["key"] not in ASIDE]
    dots = [
        {
            "name": row["name"],
            "text": words.both(figure, row["figures"][figure]),
            "kind": {"tuned-real": "after", "base-real": "before", "native-real": "before"}.get(row["key"], "other"),
            **{end: 100 * (row["figures"][figure][end] or 0) for end in ("value", "low", "high")},
        }
        for row in rows
        if row["figures"][figure]["value"] is not None
    ]
    return {"title": words.FIGURES[figure], "dots": dots} if dots else None


def _group_rows(group: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], bool]]:
    """One group's table: (name, figures, whether they are differences)."""
    guesses = {figure: each["its"] for figure, each in group["against_guess"].items()}
    better = {figure: each["difference"] for figure, each in group["against_guess"].items()}
    kinds = " / ".join(
        words.GUESSES[each["guess"]][0].removeprefix("guess: ") for each in group["against_guess"].values()
    )
    rows = [(words.RESULTS[key][0], figures, False) for key, figures in group["results"].items()]
    rows += [(f"best guess: {kinds}", guesses, False), ("after − best guess", better, True)] if guesses else []
    return rows + [(words.DIFFERENCES[key][0], figures, True) for key, figures in group["differences"].items()]


def _galleries(
    report: Mapping[str, Any], worst: Sequence[Card], drawn: Sequence[Card]
) -> list[tuple[str, Sequence[Card]]]:
    rows = report["samples"]["rows"]
    if not drawn:
        title = (
            f"All {rows:,} rows, worst first" if len(worst) == rows else f"The {len(worst):,} worst of {rows:,} rows"
        )
        return [(title, worst)]
    return [
        (f"The {len(worst):,} worst of {rows:,} rows", worst),
        (f"{len(drawn):,} of the others, drawn at random, worst first", drawn),
    ]
