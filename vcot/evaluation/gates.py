"""What a model must reach so that a chain goes on with it, and that it is not worse than it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcot.errors import GateFailed
from vcot.evaluation import credibility
from vcot.evaluation.compare import against_first, is_worse
from vcot.evaluation.config import EvaluationConfig
from vcot.evaluation.report import JUDGED, both, figures_of, judged, value
from vcot.reports.rendering import plural


def judge_gates(report: Mapping[str, Any], config: EvaluationConfig) -> list[dict[str, Any]]:
    """The gates that were asked for: {"gate", "passed", "words"}. A figure that could not be measured passes none."""
    gates: list[dict[str, Any]] = []

    def judge(gate: str, passed: bool, found: str) -> None:
        gates.append({"gate": gate, "passed": passed, "words": f"{gate}: {found}"})

    if report.get("credibility"):
        gates += credibility.gates(report["credibility"], config.max_unusable_share)
    results, differences = figures_of(report, "results"), figures_of(report, "differences")
    figures = results["subject-real"]
    if config.require_not_worse_than_base or config.promote:
        for name in JUDGED:
            if (change := differences["after-before"][name])["value"] is not None:
                judge(
                    f"{name} not worse than the base", not is_worse(change), f"it is {both(name, change, signed=True)}"
                )
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


def raise_if_failed(gates: Sequence[Mapping[str, Any]], page_uri: str) -> None:
    """Raises GateFailed naming every gate that was not passed."""
    if failed := [gate["words"] for gate in gates if not gate["passed"]]:
        raise GateFailed(f"{'; '.join(failed)}. See {page_uri}")


def judge_comparison(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One gate, as `judge_gates` writes them, for each run but the first and each judged figure that both have."""
    gates = []
    table, first = comparison["tables"][0], comparison["runs"][0]
    for run, measured, change in against_first(comparison):
        for name in JUDGED:
            if (difference := measured["difference"][name])["value"] is None:
                continue
            passed, before = name not in change["regressions"], table["runs"][0]["figures"][name]
            words = (
                f"{'no regression' if passed else 'regression'} of {name}: {value(name, before)} → "
                f"{value(name, measured['figures'][name])}, {both(name, difference, signed=True)} on "
                f"{plural(comparison['rows'], 'row')} of {run['uri']} against {first['uri']}"
            )
            gates.append({"gate": f"{name} not worse than {first['name']}", "passed": passed, "words": words})
    return gates
