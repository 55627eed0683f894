"""The result as a table for a terminal. Made from report.json alone, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from vcot.evaluation.words import FIGURES, HEADLINE, before, both, results_of


def render(report: Mapping[str, Any]) -> Table:
    """Before → after with 95 % intervals, wrong images, guesses, and the number of rows and boxes.

    Args:
        report: what evaluate wrote to ``report.json``.
    """
    samples = report["samples"]
    table = Table(
        title=f"{samples['rows']:,} questions, {samples['boxes']:,} true boxes in {samples['images']:,} images"
        f" ({samples['split']}); in brackets the 95 % interval",
        caption=Text("\n").join(Text(line) for line in caption(report)),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="none",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    for figure in HEADLINE:
        table.add_column(FIGURES[figure][0], justify="right")
    for row in report["results"]:
        if row["key"] in ("base-blank", "base-shuffled"):
            continue  # on the page
        style = "bold" if row["key"] == "tuned-real" else ""
        table.add_row(row["name"], *_cells(row["figures"]), style=style, end_section=row["key"] == "tuned-real")
    table.add_section()
    for row in report["guesses"]:
        table.add_row(row["name"], *_cells(row["figures"]), style="dim")
    table.add_section()
    for row in report["differences"]:
        if row["key"] in ("after-before", "real-blank"):
            table.add_row(row["name"], *_cells(row["figures"], signed=True))
    return table


def headline(report: Mapping[str, Any]) -> dict[str, Any]:
    """The same in a few numbers: the columns of the table, after and before; those that could be measured."""
    results = results_of(report)
    found = {name: results["tuned-real"][name] for name in HEADLINE}
    found |= {f"base_{name}": before(results, name) for name in HEADLINE}
    values = {name: round(figure["value"], 4) for name, figure in found.items() if figure["value"] is not None}
    return values | {"samples": report["samples"]["rows"]}


def caption(report: Mapping[str, Any]) -> list[str]:
    """What the columns are, and what the model cannot do."""
    verdict = report["verdict"]
    lines = [
        "found: true boxes met with IoU ≥ 0.5 by the first boxes of the reply, as many as are true (acc@0.5);",
        "precision: right ones of all its boxes; overlap: mean IoU. A box that was missed counts as 0.",
    ]
    for heading, sentences in (("It can:", verdict["can"]), ("It cannot:", verdict["cannot"])):
        if sentences:
            lines += ["", heading, *(f"  · {sentence}" for sentence in sentences)]
    return [*lines, "", *verdict["notes"]]


def _cells(figures: Mapping[str, Any], *, signed: bool = False) -> list[str]:
    """Where a cell is too narrow it breaks before its interval."""
    texts = [both(name, figures[name], signed=signed) if name in figures else "" for name in HEADLINE]
    return [text.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}(", " (") for text in texts]
