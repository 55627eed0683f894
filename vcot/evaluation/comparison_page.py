"""A comparison for people: ``comparison.md``, ``comparison.html``, and the table for a terminal.

All numbers come from ``comparison.json``; each row that changed opens to the image as both subjects see it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from rich import box
from rich.table import Table

from vcot.evaluation.compare import Run, against_first
from vcot.evaluation.metrics import METRICS
from vcot.evaluation.page import drawn, fair_shares, highlighted
from vcot.evaluation.report import JUDGED, both, interval, value
from vcot.evaluation.suites import tables as of_suites
from vcot.records import Sample, Score
from vcot.reports.examples import PREDICTED, TRUE
from vcot.reports.rendering import REASONS, plural, render
from vcot.storage import Store, join

KINDS = {
    "answers_lost": "Answers that were right and are not",
    "boxes_lost": "Fewer true boxes found",
    "answers_won": "Answers that are right and were not",
    "boxes_won": "More true boxes found",
}
MOST_NAMED = 20
"""Rows that are named in each list of ``comparison.md``."""


class Side(NamedTuple):
    """What one run said about a row. image: a data URI with its boxes; None: there is none, or it has gone."""

    run: str
    score: Score
    image: str | None
    reply: Markup


class Row(NamedTuple):
    """A row that changed: the first run beside another."""

    id: str
    sample: Sample | None
    sides: tuple[Side, Side]


def write(
    store: Store, folder: str, comparison: Mapping[str, Any], runs: Sequence[Run], samples: Mapping[str, Sample], *,
    most: int,
) -> str:  # fmt: skip
    """Writes ``comparison.json``, ``.md`` and ``.html`` into the folder where they are not there yet as they are; the
    URI of the last. most: rows that the page shows."""
    files = {
        "json": json.dumps(comparison, indent=1, ensure_ascii=False) + "\n",
        "md": markdown(comparison, join(folder, "comparison.html")),
        "html": html(comparison, rows(store, comparison, runs, samples, most)),
    }
    for name, text in files.items():
        uri = join(folder, f"comparison.{name}")
        if store.stat(uri) is None or store.read(uri) != text.encode():
            store.write(uri, text.encode())
    return uri


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """ "second is worse than first: answers right 80 % → 60 %, −20 points (−30 to −10)." for each run but the first."""
    first, table, said = comparison["runs"][0], comparison["tables"][0], []
    for run, measured, change in against_first(comparison):
        known = [name for name in JUDGED if measured["difference"][name]["value"] is not None]
        moved = "; ".join(
            f"{METRICS[name].label} {value(name, table['runs'][0]['figures'][name])} → "
            f"{value(name, measured['figures'][name])}, {both(name, measured['difference'][name], signed=True)}"
            for name in known
        )
        better = [name for name in known if (measured["difference"][name]["low"] or 0) > 0]
        word = "worse than" if change["regressions"] else "better than" if better else "not shown to differ from"
        if change["regressions"] and better:
            word = "worse in one and better in the other than"
        said.append(f"{run['name']} is {word} {first['name']}: {moved or 'nothing that both measure'}.")
    return said


def headline(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """For the last word of the stage: which figures fell, and by how much the judged ones changed, of each run."""
    changes = {
        run["name"]: {
            name: [change["value"], change["low"], change["high"]]
            for name in JUDGED
            if (change := measured["difference"][name])["value"] is not None
        }
        for run, measured, _ in against_first(comparison)
    }
    return {"regressions": {one["run"]: one["regressions"] for one in comparison["changes"]}, "changes": changes}


def markdown(comparison: Mapping[str, Any], page_uri: str) -> str:
    """``comparison.md``: what a person reads after an alert."""
    return render("comparison.md.j2", page_uri=page_uri, most=MOST_NAMED, **_shown(comparison))


def html(comparison: Mapping[str, Any], changed: Sequence[tuple[str, Sequence[tuple[str, Sequence[Row]]]]]) -> str:
    """The page, self-contained. changed: run → kind of change → rows with their images."""
    figures = dict.fromkeys(name for table in comparison["tables"] for name in table["runs"][0]["figures"])
    return render(
        "comparison.html.j2", changed=changed, colours=(TRUE, PREDICTED), figures=figures, interval=interval,
        reasons=REASONS["evaluate"], **_shown(comparison),
    )  # fmt: skip


def _shown(comparison: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "found": comparison, "said": sentences(comparison), "metrics": {**of_suites.METRICS, **METRICS},
        "value": value, "both": both, "plural": plural, "kinds": KINDS,
    }  # fmt: skip


def rows(
    store: Store, comparison: Mapping[str, Any], runs: Sequence[Run], samples: Mapping[str, Sample], most: int
) -> list[tuple[str, list[tuple[str, list[Row]]]]]:
    """Run → kind of change → the rows that changed most, `most` on the whole page."""
    first, by_name = runs[0], {run.name: run for run in runs}
    way = comparison["tables"][0]["way"]
    wanted = {(each["run"], kind): len(each[kind]) for each in comparison["changes"] for kind in KINDS if each[kind]}
    shares = fair_shares(wanted, most)
    found = []
    for change in comparison["changes"]:
        pair = first, by_name[change["run"]]
        kinds: list[tuple[str, list[Row]]] = []
        told: set[str] = set()
        for kind in (kind for kind in KINDS if change[kind]):
            share = shares[change["run"], kind]
            names = [name for name in change[kind] if name not in told][:share]  # one that won both stands once
            told.update(names)
            kinds.append((kind, [_row(store, name, samples.get(name), pair, way) for name in names]))
        found.append((change["run"], kinds))
    return found


def _row(store: Store, name: str, sample: Sample | None, pair: tuple[Run, Run], way: str) -> Row:
    def side(run: Run) -> Side:
        score = run.scores[way][name]  # type: ignore[index]
        image = None if sample is None else drawn(store, sample, score)
        return Side(run.name, score, image, highlighted(score.text))

    return Row(name, sample, (side(pair[0]), side(pair[1])))


def tables(comparison: Mapping[str, Any]) -> list[Table]:
    """For a terminal: of each way, and of each set of each suite, a line for each run with its difference."""
    return [_table(table, comparison) for table in comparison["tables"]]


def _table(table: Mapping[str, Any], comparison: Mapping[str, Any]) -> Table:
    of = f"{table['suite']}, {table['set']}" if table["suite"] else table["set"]
    title = f"{of}, asked by way of {table['way']}: {plural(table['rows'], 'row')}; in brackets the 95 % interval"
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown = list(table["runs"][0]["figures"])[:5]
    made.add_column("")
    for name in shown:
        made.add_column((METRICS.get(name) or of_suites.METRICS[name]).label, justify="right")
    for run, measured in zip(comparison["runs"], table["runs"], strict=True):
        made.add_row(run["name"], *(both(name, measured["figures"][name]) for name in shown), style="bold")
        if measured["difference"]:
            cells = (both(name, measured["difference"][name], signed=True) for name in shown)
            made.add_row(f"  − {comparison['runs'][0]['name']}", *cells)
    return made
