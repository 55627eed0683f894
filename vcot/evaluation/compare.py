"""Is a model worse than it was? Two evaluations of the same questions, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vcot.errors import InputError
from vcot.evaluation.finished import Finished
from vcot.evaluation.metrics import boxes_found, measure
from vcot.evaluation.replies import read_replies
from vcot.evaluation.words import FIGURES, both, plural, value
from vcot.records import Score
from vcot.records.shards import ShardMark
from vcot.storage import Store

JUDGED = ("accuracy_at_50", "answer_accuracy")
"""A clear fall of one of these is a regression; the others are shown."""
SHOWN = ("accuracy_at_50", "mean_iou", "answer_accuracy", "answer_absent", "malformed")
MOST_ROWS = 20
"""Rows that are named in each list of what changed."""

#: Settings that change replies; where they differ, not the model alone is compared.
ASKED = ("max_new_tokens", "quantisation", "dtype", "batch_size", "limit", "seed", "split", "synonyms")


def scores(store: Store, stage_uri: str, marks: Sequence[ShardMark]) -> list[Score]:
    """What the tuned model reached on real pictures, a Score per row."""
    replies = read_replies(store, stage_uri, marks)
    return [reply.score for reply in replies if (reply.model, reply.condition) == ("tuned", "real")]


def compare(
    now: Iterable[Score],
    before: Iterable[Score],
    *,
    baseline: Finished,
    settings: Mapping[str, Any],
    max_left_out_share: float,
    seed: int,
) -> dict[str, Any]:
    """The comparison, ready for JSON.

    Rows are paired by their id, and drawn together in the bootstrap (vcot.evaluation.metrics), with all rows about the
    same image, so that a hard one is hard for both. A row that only one side has, or whose true boxes were annotated
    anew, cannot be paired.
    "Worse" means that the whole 95 % interval of the paired difference lies below 0.

    Args:
        settings: of the evaluation of `now`, to say what was asked otherwise.
        max_left_out_share: of the larger side's rows.

    Raises:
        InputError: more rows cannot be paired: the baseline is about something else.
    """
    mine, other = ({score.sample: score for score in each} for each in (now, before))
    rows = [name for name in mine if name in other and mine[name].true_boxes == other[name].true_boxes]
    larger = max(len(mine), len(other))
    if not rows or larger - len(rows) > max_left_out_share * larger:
        raise InputError(
            f"{baseline.uri} cannot be the baseline: {len(rows)} of {plural(larger, 'row')} are the same in both; "
            "pin an evaluation of the same samples, split and limit"
        )
    pair = ("now", "baseline")
    measured = measure({"now": [mine[r] for r in rows], "baseline": [other[r] for r in rows]}, [pair], seed=seed)
    figures = {
        name: {
            "baseline": measured.figures["baseline"][name].to_dict(),
            "now": measured.figures["now"][name].to_dict(),
            "difference": measured.differences[pair][name].to_dict(),
        }
        for name in SHOWN
    }
    return {
        "version": 1,
        "baseline": {"uri": baseline.uri, "sha256": baseline.sha256, "code": baseline.mark.code},
        "rows": len(rows),
        "left_out": larger - len(rows),
        "asked_otherwise": _asked_otherwise(settings, baseline.mark.settings),
        "figures": figures,
        "regressions": [name for name in JUDGED if _worse(figures[name]["difference"])],
        "answers_lost": [r for r in rows if other[r].answer == "right" and mine[r].answer != "right"],
        "answers_won": [r for r in rows if other[r].answer != "right" and mine[r].answer == "right"],
        "boxes_lost": [r for r in rows if boxes_found(mine[r]) < boxes_found(other[r])],
        "boxes_won": [r for r in rows if boxes_found(mine[r]) > boxes_found(other[r])],
    }


def _worse(difference: Mapping[str, Any]) -> bool:
    if difference["value"] is None:
        return False
    bound = difference["value"] if difference["high"] is None else difference["high"]
    return bool(bound < 0)


def _asked_otherwise(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in ASKED
        if before.get(name) != now.get(name)
    ]


def gates(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One gate for each judged figure that both sides have, as vcot.evaluation.gates writes them."""
    return [
        {"gate": f"{name} not worse than the baseline", "passed": name not in comparison["regressions"], "words": words}
        for name in JUDGED
        if (words := _in_words(name, comparison)) is not None
    ]


def _in_words(name: str, comparison: Mapping[str, Any]) -> str | None:
    figure = comparison["figures"][name]
    if figure["difference"]["value"] is None:
        return None
    was, now = value(name, figure["baseline"]), value(name, figure["now"])
    kind = "regression" if name in comparison["regressions"] else "no regression"
    return (
        f"{kind} of {name}: {was} → {now}, {both(name, figure['difference'], signed=True)} on "
        f"{plural(comparison['rows'], 'row')} against the baseline {comparison['baseline']['uri']}"
    )


def changes(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The same in a few numbers, for the last word of the stage."""
    found = {}
    for name in JUDGED:
        difference = comparison["figures"][name]["difference"]
        if difference["value"] is not None:
            found[f"change_{name}"] = [difference["value"], difference["low"], difference["high"]]
    return found


def markdown(comparison: Mapping[str, Any], *, made_with: Mapping[str, Any], page_uri: str) -> str:
    """``comparison.md``: what a person reads after an alert."""
    regressions = comparison["regressions"]
    verdict = " and ".join(FIGURES[name][0] for name in regressions)
    lines = [
        f"# Evaluation of {made_with['tuned']}",
        "",
        f"**Regression: {verdict}.**" if regressions else "**No regression.**",
        "",
        "| | baseline | now | change (95 % interval) | measured on |",
        "|---|---:|---:|---:|---|",
        *(_table_row(name, figure) for name, figure in comparison["figures"].items()),
        "",
        f"- {plural(comparison['rows'], 'row')}, paired; intervals by bootstrap over pictures",
        f"- baseline: `{comparison['baseline']['uri']}`",
        *(f"- {name}: `{made_with[name]}`" for name in ("occasion", "pointer", "samples", "vcot") if name in made_with),
        f"- page with pictures: `{page_uri}`",
    ]
    if comparison["left_out"]:
        lines.append(f"- {plural(comparison['left_out'], 'row')} left out: only one side has them as they are")
    lines += [f"- asked otherwise: {said}" for said in comparison["asked_otherwise"]]
    for key, title in (
        ("answers_lost", "Answers that were right and are not"),
        ("answers_won", "Answers that are right and were not"),
        ("boxes_lost", "Rows with fewer boxes found"),
        ("boxes_won", "Rows with more boxes found"),
    ):
        lines += _rows(title, comparison[key])
    return "\n".join(lines) + "\n"


def _table_row(name: str, figure: Mapping[str, Any]) -> str:
    was, now = value(name, figure["baseline"]), value(name, figure["now"])
    return (
        f"| {FIGURES[name][0]} | {was} | {now} | {both(name, figure['difference'], signed=True)} | {_count(figure)} |"
    )


def _count(figure: Mapping[str, Any]) -> str:
    return f"{figure['now']['count']:,.0f} {figure['now']['of']}"


def _rows(title: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = [f"- … and {len(names) - MOST_ROWS:,} more"] if len(names) > MOST_ROWS else []
    return ["", f"## {title}: {len(names):,}", "", *(f"- `{name}`" for name in names[:MOST_ROWS]), *more]
