"""What a model must reach so that a chain goes on with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcot.errors import GateFailed
from vcot.evaluation.words import both, find, value


def judge_gates(
    report: Mapping[str, Any],
    *,
    not_worse_than_base: bool = False,
    min_accuracy_at_50: float | None = None,
    min_answer_accuracy: float | None = None,
    max_blank_accuracy: float | None = None,
    depends_on_picture: bool = False,
) -> list[dict[str, Any]]:
    """The gates that were asked for: {"gate", "passed", "words"}.

    "Worse" means that the whole 95 % interval of the paired difference lies below 0: a gate on the bare value would
    fail half of all models that are exactly as good. A figure that could not be measured passes no gate.
    """
    after = find(report, "results", "tuned-real")
    assert after is not None
    figures = after["figures"]
    gates = []
    if not_worse_than_base:
        change = find(report, "differences", "after-before")
        assert change is not None
        for name in ("accuracy_at_50", "answer_accuracy"):
            figure = change["figures"][name]
            if figure["value"] is not None:
                worse = figure["value"] < 0 if figure["high"] is None else figure["high"] < 0
                gates.append(_gate(f"{name} not worse than the base", not worse, both(name, figure, signed=True)))
    for name, least in (("accuracy_at_50", min_accuracy_at_50), ("answer_accuracy", min_answer_accuracy)):
        if least is not None:
            reached = figures[name]["value"] is not None and figures[name]["value"] >= least
            gates.append(_gate(f"{name} at least {least:.1%}", reached, value(name, figures[name])))
    if max_blank_accuracy is not None:
        blank = find(report, "results", "tuned-blank")
        figure = {"value": None} if blank is None else blank["figures"]["accuracy_at_50"]
        low = figure["value"] is not None and figure["value"] <= max_blank_accuracy
        found = value("accuracy_at_50", figure)
        gates.append(_gate(f"accuracy_at_50 on blank pictures at most {max_blank_accuracy:.1%}", low, found))
    if depends_on_picture:
        gates += _looks(
            report, "accuracy_at_50" if figures["accuracy_at_50"]["value"] is not None else "answer_accuracy"
        )
    return gates


def _looks(report: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Clearly better (the whole interval above 0) than on blank pictures, and than on another row's.

    Judged by the boxes where there are true ones, else by the answers: a habit of answering right ("no" to most
    questions) is no fault while the boxes come from looking.
    """
    gates = []
    for key, kind in (("real-blank", "blank"), ("real-wrong", "wrong")):
        row = find(report, "differences", key)
        gate = f"{name} clearly better on real pictures than on {kind} ones"
        if row is None:
            gates.append({"gate": gate, "passed": False, "words": f"{gate}: not measured"})
        else:
            figure = row["figures"][name]
            passed = figure["low"] is not None and figure["low"] > 0
            gates.append(_gate(gate, passed, both(name, figure, signed=True)))
    return gates


def raise_if_failed(gates: Sequence[Mapping[str, Any]], page_uri: str) -> None:
    """Raises GateFailed naming every gate that was not passed."""
    failed = [gate["words"] for gate in gates if not gate["passed"]]
    if failed:
        raise GateFailed(f"{'; '.join(failed)}. See {page_uri}")


def _gate(gate: str, passed: bool, found: str) -> dict[str, Any]:
    return {"gate": gate, "passed": passed, "words": f"{gate}: it is {found}"}
