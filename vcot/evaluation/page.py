"""``report.html``: the result for people who were not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcot.evaluation import words
from vcot.evaluation.gallery import Card
from vcot.reports import rendering
from vcot.reports.overlays import PREDICTED, TRUE

SHOWN_FIRST = 12
"""Images that are seen without opening the rest."""

PARTS = ("results", "guesses", "differences")
ASIDE = ("base-blank", "base-shuffled", "base-real-blank")
"""Rows that stand among all figures only: what a model does with a blank image before it was tuned is a detail."""

COLUMNS = ("accuracy_at_50", "mean_iou", "precision", "answer_accuracy", "malformed")


def render(report: Mapping[str, Any], worst: Sequence[Card] = (), drawn: Sequence[Card] = ()) -> str:
    """The page of a report, self-contained.

    Args:
        report: what stands in ``report.json``.
        worst, drawn: rows with their images, both worst first; `drawn` at random from what is not in `worst`.
    """
    rows = report["samples"]["rows"]
    first = f"All {rows:,} rows, worst first" if len(worst) == rows else f"The {len(worst):,} worst of {rows:,} rows"
    galleries = ((first, worst), (f"{len(drawn):,} of the others, drawn at random, worst first", drawn))
    return rendering.render(
        "evaluate.html.j2", report=report, samples=report["samples"], verdict=report["verdict"],
        rows=[row for part in PARTS for row in report[part] if row["key"] not in ASIDE], tiles=_tiles(report),
        charts=[chart for figure in ("accuracy_at_50", "answer_accuracy") if (chart := _chart(report, figure))],
        groups=[group | {"rows_of_table": _group_rows(group)} for group in report["groups"]],
        gallery=[(title, cards) for title, cards in galleries if cards], shown_first=SHOWN_FIRST,
        colours=(TRUE, PREDICTED), columns=COLUMNS, names=words.FIGURES, differences=words.DIFFERENCES,
        before=words.before, value=words.value, interval=words.interval, counted=words.counted, faults=words.faults,
    )  # fmt: skip


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what stands large, what it is)"""
    results, tiles = words.results_of(report), []
    for figure, what, guess in (
        ("accuracy_at_50", "of true boxes found", "by the best guess of a box"),
        ("answer_accuracy", "of answers right", "by the usual answer"),
    ):
        was, now = (words.value(figure, of) for of in (words.before(results, figure), results["tuned-real"][figure]))
        if now == "–":
            continue
        tiles.append((f"{was} → {now}", f"{what}, before → after tuning"))
        if "tuned-blank" in results:
            tiles.append((words.value(figure, results["tuned-blank"][figure]), f"{what}, on blank images"))
        if able := [row["figures"][figure] for row in report["guesses"] if figure in row["figures"]]:
            tiles.append((words.value(figure, max(able, key=lambda f: f["value"] or 0.0)), f"{what}, {guess}"))
    return tiles


def _chart(report: Mapping[str, Any], figure: str) -> dict[str, Any] | None:
    """Dots with their intervals on one scale from 0 to 100 %."""
    kinds = {"tuned-real": "after", "base-real": "before", "native-real": "before"}
    dots = [
        {"name": row["name"], "text": words.both(figure, found), "kind": kinds.get(row["key"], "other")}
        | {end: 100 * (found[end] or 0) for end in ("value", "low", "high")}
        for part in ("results", "guesses")
        for row in report[part]
        if row["key"] not in ASIDE and (found := row["figures"].get(figure)) and found["value"] is not None
    ]
    return {"title": words.FIGURES[figure], "dots": dots} if dots else None


def _group_rows(group: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], bool]]:
    """One group's table: (name, figures, whether they are differences)."""
    against = group["against_guess"]
    rows = [(words.RESULTS[key][0], figures, False) for key, figures in group["results"].items()]
    if against:
        kinds = " / ".join(words.guess_name(each["guess"]) for each in against.values())
        rows.append((f"best guess: {kinds}", {figure: each["its"] for figure, each in against.items()}, False))
        rows.append(("after − best guess", {figure: each["difference"] for figure, each in against.items()}, True))
    return rows + [(words.DIFFERENCES[key][0], figures, True) for key, figures in group["differences"].items()]
