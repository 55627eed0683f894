"""The losses of a run: numbers for programs, a picture for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NAMES = {"loss": "loss", "eval_loss": "eval_loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}


def by_step(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per step: {step, epoch, loss, learning_rate, gradient_norm} and eval_loss where it was measured.

    Without times, so that a run that was killed and went on gives the same entries as one that was not.
    """
    steps: dict[int, dict[str, Any]] = {}
    for entry in history:
        if not _NAMES.keys() & entry.keys():
            continue
        line = steps.setdefault(entry["step"], {"step": entry["step"], "epoch": entry["epoch"]})
        line |= {_NAMES[name]: entry[name] for name in _NAMES if name in entry}
    return [steps[step] for step in sorted(steps)]


def summary(losses: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """First, last and lowest."""
    seen = [(line["eval_loss"], line["step"]) for line in losses if "eval_loss" in line]
    best = min(seen, default=(None, None))
    return {
        "steps": losses[-1]["step"] if losses else 0,
        "first_loss": losses[0]["loss"] if losses else None,
        "last_loss": losses[-1]["loss"] if losses else None,
        "best_eval_loss": best[0],
        "best_step": best[1],
    }


def draw(losses: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A PNG: the loss of each step, a smoothed line, the evaluations, the step that was kept."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = [line["step"] for line in losses]
    values = [line["loss"] for line in losses]
    axes.plot(steps, values, color="#b8c4d6", linewidth=0.8, label="loss of the step")
    axes.plot(steps, _smoothed(values), color="#2b5fa8", linewidth=1.6, label="the same, smoothed")
    seen = [(line["step"], line["eval_loss"]) for line in losses if "eval_loss" in line]
    if seen:
        axes.plot(*zip(*seen, strict=True), "o-", color="#c4541a", markersize=3.5, label="loss on pictures held out")
        best = min(seen, key=lambda pair: pair[1])
        axes.axvline(best[0], color="#c4541a", linewidth=0.8, linestyle=":", label=f"kept: step {best[0]}")
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("cross entropy per learned token [nats]")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _smoothed(values: Sequence[float], keep: float = 0.95) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smooth, mean = [], 0.0
    for count, value in enumerate(values, 1):
        mean = keep * mean + (1 - keep) * value
        smooth.append(mean / (1 - keep**count))
    return smooth
