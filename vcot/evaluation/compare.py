"""What a model must reach so that a chain goes on with it, and whether it is worse than it was.

"Worse" means that the whole 95 % interval of a paired difference lies below 0: a gate on the bare value would fail half
of all models that are exactly as good.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vcot.errors import GateFailed, InputError
from vcot.evaluation.config import EvaluationConfig
from vcot.evaluation.metrics import METRICS, boxes_found, measure
from vcot.evaluation.report import JUDGED, both, figures_of, judged, value
from vcot.evaluation.runner import read_replies
from vcot.evaluation.subjects import Finished
from vcot.records import Folder, Score
from vcot.reports.rendering import plural, render
from vcot.storage import join

SHOWN = ("accuracy_at_50", "mean_iou", "answer_accuracy", "answer_absent", "malformed")
"""A clear fall of one of JUDGED is a regression; the others are only shown."""
MOST_ROWS = 20
"""Rows that are named in each list of what changed."""

#: Settings that change replies; where they differ, not the model alone is compared.
ASKED = (
    "ask", "suite", "native_form", "subject_frame", "subject_dialect", "subject_instruction", "subject_min_pixels",
    "subject_max_pixels", "max_new_tokens", "quantization", "dtype", "per_device_eval_batch_size", "max_samples",
    "seed", "split", "synonyms",
)  # fmt: skip


# --- gates -------------------------------------------------------------------------------------------------


def judge_gates(report: Mapping[str, Any], config: EvaluationConfig) -> list[dict[str, Any]]:
    """The gates that were asked for: {"gate", "passed", "words"}. A figure that could not be measured passes none."""
    gates: list[dict[str, Any]] = []

    def judge(gate: str, passed: bool, found: str) -> None:
        gates.append({"gate": gate, "passed": passed, "words": f"{gate}: {found}"})

    results, differences = figures_of(report, "results"), figures_of(report, "differences")
    figures = results["subject-real"]
    if config.require_not_worse_than_base or config.promote:
        for name in JUDGED:
            if (change := differences["after-before"][name])["value"] is not None:
                judge(f"{name} not worse than the base", not _worse(change), f"it is {both(name, change, signed=True)}")
    for name, least in zip(JUDGED, (config.min_accuracy_at_50, config.min_answer_accuracy), strict=True):
        if least is not None:
            reached = figures[name]["value"] is not None and figures[name]["value"] >= least
            judge(f"{name} at least {least:.1%}", reached, f"it is {value(name, figures[name])}")
    if (most := config.max_blank_accuracy) is not None:
        blank = results["subject-blank"]["accuracy_at_50"] if "subject-blank" in results else {"value": None}
        low = blank["value"] is not None and blank["value"] <= most
        judge(f"accuracy_at_50 on blank images at most {most:.1%}", low, f"it is {value('accuracy_at_50', blank)}")
    if config.promote:
        # Where boxes are known they decide: a habit of answering right ("no" to most questions) is no fault while the
        # boxes come from looking.
        name = judged(figures)
        for key, kind in (("real-blank", "blank"), ("real-wrong", "wrong")):
            change = differences[key][name] if key in differences else {"low": None}
            clear = change["low"] is not None and change["low"] > 0
            found = f"it is {both(name, change, signed=True)}" if key in differences else "not measured"
            judge(f"{name} clearly better on real images than on {kind} ones", clear, found)
    return gates


def _worse(difference: Mapping[str, Any]) -> bool:
    bound = difference["value"] if difference["high"] is None else difference["high"]
    return bound is not None and bool(bound < 0)


def raise_if_failed(gates: Sequence[Mapping[str, Any]], page_uri: str) -> None:
    """Raises GateFailed naming every gate that was not passed."""
    if failed := [gate["words"] for gate in gates if not gate["passed"]]:
        raise GateFailed(f"{'; '.join(failed)}. See {page_uri}")


# --- two evaluations of the same questions, row by row -----------------------------------------------------


def write_comparison(
    folder: Folder, report: Mapping[str, Any], baseline: Finished, config: EvaluationConfig, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes ``comparison.json`` and ``comparison.md`` beside a report, where they are not there yet.

    Args:
        settings: of the evaluation, to say what was asked otherwise than of the baseline.
    """
    now, before = (
        [
            one.score
            for one in read_replies(folder.store, uri, shards)
            if (one.key, one.way, one.draw) == ("subject-real", config.ask[0], 0)
        ]
        for uri, shards in ((folder.uri, folder.shard_markers()), (baseline.uri, baseline.marker.shards))
    )
    comparison = compare(
        now, before, baseline=baseline, settings=settings, max_left_out_share=config.max_rejected_share,
        seed=config.seed,
    )  # fmt: skip
    page = markdown(comparison, made_with=report["made_with"], page_uri=join(folder.uri, "report.html"))
    for name, text in (("json", json.dumps(comparison, indent=1, ensure_ascii=False) + "\n"), ("md", page)):
        uri = join(folder.uri, f"comparison.{name}")
        if folder.store.stat(uri) is None or folder.store.read(uri) != text.encode():
            folder.store.write(uri, text.encode())
    return comparison


def compare(
    now: Iterable[Score], before: Iterable[Score], *, baseline: Finished, settings: Mapping[str, Any],
    max_left_out_share: float, seed: int,
) -> dict[str, Any]:  # fmt: skip
    """The comparison, ready for JSON. `settings`: of the evaluation of `now`, to say what was asked otherwise.

    Rows are paired by their id. One that only one side has, or whose true boxes were annotated anew, cannot be paired.
    Raises InputError: more than this share of the larger side's rows cannot be: the baseline is about something else.
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
    parts = {**measured.figures, "difference": measured.differences[pair]}
    figures = {
        name: {part: parts[part][name].to_dict() for part in ("baseline", "now", "difference")} for name in SHOWN
    }
    was = baseline.marker.settings
    found = {r: boxes_found(mine[r]) - boxes_found(other[r]) for r in rows}
    return {
        "version": 1,
        "baseline": {"uri": baseline.uri, "sha256": baseline.sha256, "code": baseline.marker.code},
        "rows": len(rows),
        "left_out": larger - len(rows),
        "asked_otherwise": [
            f"{name} was {was.get(name)!r} and is {settings.get(name)!r}"
            for name in ASKED
            if name in was and was[name] != settings.get(name)
        ],
        "figures": figures,
        "regressions": [name for name in JUDGED if _worse(figures[name]["difference"])],
        "answers_lost": [r for r in rows if other[r].answer == "right" and mine[r].answer != "right"],
        "answers_won": [r for r in rows if other[r].answer != "right" and mine[r].answer == "right"],
        "boxes_lost": [r for r in rows if found[r] < 0],
        "boxes_won": [r for r in rows if found[r] > 0],
    }


def changes(comparison: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The paired differences of JUDGED that both sides have."""
    differences = {name: comparison["figures"][name]["difference"] for name in JUDGED}
    return {name: change for name, change in differences.items() if change["value"] is not None}


def comparison_gates(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One gate, as `judge_gates` writes them, for each judged figure that both sides have."""
    gates = []
    for name, change in changes(comparison).items():
        passed, figure = name not in comparison["regressions"], comparison["figures"][name]
        words = (
            f"{'no regression' if passed else 'regression'} of {name}: {value(name, figure['baseline'])} → "
            f"{value(name, figure['now'])}, {both(name, change, signed=True)} on "
            f"{plural(comparison['rows'], 'row')} against the baseline {comparison['baseline']['uri']}"
        )
        gates.append({"gate": f"{name} not worse than the baseline", "passed": passed, "words": words})
    return gates


def markdown(comparison: Mapping[str, Any], *, made_with: Mapping[str, Any], page_uri: str) -> str:
    """``comparison.md``: what a person reads after an alert."""
    lists = {
        "answers_lost": "Answers that were right and are not",
        "answers_won": "Answers that are right and were not",
        "boxes_lost": "Rows with fewer boxes found",
        "boxes_won": "Rows with more boxes found",
    }
    return render(
        "comparison.md.j2", found=comparison, made_with=made_with, page_uri=page_uri, metrics=METRICS, value=value,
        both=both, plural=plural, lists=lists, most=MOST_ROWS,
    )  # fmt: skip
