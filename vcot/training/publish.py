"""What a training leaves behind: the model and what it silently assumes, the losses, the report, the marker."""

from __future__ import annotations

import json
import resource
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from vcot import __version__, logging
from vcot.models.device import device, device_name
from vcot.models.merge import write_generation_config
from vcot.records import Folder
from vcot.records.metadata import Losses, NoMetadata, TrainMetadata
from vcot.settings import Settings
from vcot.stage import summary
from vcot.storage import join, put_folder
from vcot.tokens import Encoder
from vcot.training.engine import means_of_rewards, reward_note, trained
from vcot.training.setup import TrainResult

MODEL = "model"
"""Folder of the model, below the stage's."""


def publish(
    folder: Folder[NoMetadata, TrainMetadata], settings: Settings, inputs: Mapping[str, str], result: TrainResult,
    encoder: Encoder, base: Mapping[str, str], scratch: Path,
) -> None:  # fmt: skip
    """Uploads everything, and the marker last. base: its uri and sha256.

    Called by rank 0, and by the other ranks too where each holds a part of the model.
    """
    first = not distributed.is_initialized() or distributed.get_rank() == 0
    write_model(scratch / MODEL, result, encoder, base, first=first)
    if not first:
        return
    losses = losses_by_step(result.history)
    files = put_folder(folder.store, scratch / MODEL, join(folder.uri, MODEL))
    folder.store.write(join(folder.uri, "losses.json"), json.dumps(losses, indent=0).encode() + b"\n")
    draw_losses(losses, scratch / "losses.png")
    folder.store.upload(scratch / "losses.png", join(folder.uri, "losses.png"))
    fingerprint = settings.fingerprint()
    metadata = TrainMetadata(
        contract=encoder.contract, base_uri=base["uri"], base_sha256=base["sha256"], tune=fingerprint["tune"],
        model=MODEL, files=files, losses=losses_summary(losses), trainable_parameters=result.parameters,
        **result.metadata,
    )  # fmt: skip
    folder.write_report({"stage": folder.stage} | metadata.model_dump(mode="json") | {"this_process": spent(result)})
    folder.finish(
        folder.kind.stage_marker(
            stage=folder.stage, code=__version__, settings=fingerprint, inputs=dict(inputs), metadata=metadata
        )
    )
    lowest = metadata.losses.model_dump()
    summary(**lowest)
    shown: dict[str, Any] = dict(lowest)
    if losses and (rewards := losses[-1].get("rewards")):  # the loss of a policy gradient shows no progress
        first = next(line["rewards"] for line in losses if "rewards" in line)
        shown = {"steps": lowest["steps"], "first_rewards": reward_note(first), "last_rewards": reward_note(rewards)}
    logging.get().info("trained", model=join(folder.uri, MODEL), **shown, **spent(result))


def write_model(
    folder: Path, result: TrainResult, encoder: Encoder, base: Mapping[str, str], *, first: bool = True
) -> None:
    """Fills a local folder; other ranks than the first only hand over their parts of the model.

    adapter_model.safetensors, adapter_config.json (or model.safetensors, config.json of a fully tuned model);
    the processor's files, with the budget of pixels that was trained with; contract.json: frame of the boxes,
    budget, template, and the base by URI and digest. A server needs all of it to read a box rightly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = result.model
    if hasattr(model, "peft_config"):
        save_adapter(model, folder)
    else:
        if result.compute == torch.bfloat16:
            model.to(torch.bfloat16)
        model.save_pretrained(str(folder), is_main_process=first)
    if not first:
        return
    write_generation_config(folder, folder)
    encoder.processor.save_pretrained(str(folder))
    about = {"contract": encoder.contract.model_dump(mode="json"), "base": dict(base)}
    (folder / "contract.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")


def save_adapter(model: Any, folder: Path) -> None:
    """adapter_model.safetensors, adapter_config.json: those that are trained, and none that is a reference."""
    adapters = {name: weight.detach() for name, weight in trained(model).items()}  # the base may be in parts
    model.save_pretrained(str(folder), state_dict=adapters, selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form with nothing filled in


def write_failure(folder: Folder, details: Mapping[str, Any]) -> None:
    """What led to a loss that is not finite, beside the checkpoints; each attempt's under its own name."""
    uri = join(folder.uri, "failures", f"step-{details['step']:06d}-{secrets.token_hex(4)}.json")
    folder.store.write(uri, json.dumps(details, indent=1).encode() + b"\n")
    logging.get().error("what led to it is written down", uri=uri)


def spent(result: TrainResult) -> dict[str, Any]:
    """Time and memory of this process; a run that was killed has others that are not counted."""
    found = {
        "from_step": result.from_step,
        "seconds": round(result.seconds, 1),
        "tokens": result.tokens,
        "tokens_per_second": round(result.tokens / result.seconds) if result.seconds else None,
        "device": device_name(),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    if device().type == "cuda":
        found["gpu_memory_mib"] = torch.cuda.get_device_properties(0).total_memory >> 20
        found["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() >> 20
    return found


# --- the losses of a run -----------------------------------------------------------------------------------

_NAMES = {"loss": "loss", "eval_loss": "eval_loss", "learning_rate": "learning_rate", "grad_norm": "gradient_norm"}


def losses_by_step(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per step: {step, epoch, loss, learning_rate, gradient_norm}, eval_loss where it was measured, and
    {rewards: {name: mean}} where it was learned from them.

    Without times, so that a run that was killed and went on gives the same entries as one that was not.
    """
    steps: dict[int, dict[str, Any]] = {}
    for entry in history:
        if not _NAMES.keys() & entry.keys():
            continue
        line = steps.setdefault(entry["step"], {"step": entry["step"], "epoch": entry["epoch"]})
        line |= {_NAMES[name]: entry[name] for name in _NAMES if name in entry}
        if rewards := means_of_rewards(entry):
            line["rewards"] = rewards
    return [steps[step] for step in sorted(steps)]


def losses_summary(losses: Sequence[Mapping[str, Any]]) -> Losses:
    """First, last and lowest."""
    seen = [(line["eval_loss"], line["step"]) for line in losses if "eval_loss" in line]
    best = min(seen, default=(None, None))
    first, last = (losses[0], losses[-1]) if losses else ({}, {})
    return Losses(
        steps=last.get("step", 0), first_loss=first.get("loss"), last_loss=last.get("loss"), best_eval_loss=best[0],
        best_step=best[1],
    )  # fmt: skip


def draw_losses(losses: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A PNG: the loss of each step, a smoothed line, the evaluations, the step that was kept; of a training from
    rewards, whose loss says nothing, what its replies earned."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rewards = sorted({name for line in losses for name in line.get("rewards", ())})
    for name in rewards:
        judged = [line for line in losses if name in line.get("rewards", ())]
        steps, values = [line["step"] for line in judged], [line["rewards"][name] for line in judged]
        (drawn,) = axes.plot(steps, values, linewidth=0.6, alpha=0.4)
        axes.plot(steps, smoothed(values), color=drawn.get_color(), linewidth=1.6, label=f"{name}, smoothed")
    if not rewards:
        steps, values = [line["step"] for line in losses], [line["loss"] for line in losses]
        axes.plot(steps, values, color="#b8c4d6", linewidth=0.8, label="loss of the step")
        axes.plot(steps, smoothed(values), color="#2b5fa8", linewidth=1.6, label="the same, smoothed")
    seen = [(line["step"], line["eval_loss"]) for line in losses if "eval_loss" in line]
    if seen:
        axes.plot(*zip(*seen, strict=True), "o-", color="#c4541a", markersize=3.5, label="loss on images held out")
        best = min(seen, key=lambda pair: pair[1])
        axes.axvline(best[0], color="#c4541a", linewidth=0.8, linestyle=":", label=f"kept: step {best[0]}")
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("reward, mean of a step's replies" if rewards else "cross entropy per learned token [nats]")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def smoothed(values: Sequence[float], width: float = 10.0) -> list[float]:
    """Return a line through the values: around each step a straight line, fitted to the steps near it.

    A moving average of the past would show each change some steps too late.

    Args:
        width: standard deviation of the weights, in steps.
    """
    away = np.arange(-round(4 * width), round(4 * width) + 1)
    weights, y = np.exp(-((away / width) ** 2) / 2), np.asarray(values, dtype=float)
    reach, there = len(away) // 2, np.ones_like(y)

    def moment(of: np.ndarray, power: int) -> np.ndarray:
        return np.convolve(of, weights * (-away) ** power)[reach : reach + len(y)]

    s0, s1, s2 = (moment(there, power) for power in range(3))
    t0, t1 = moment(y, 0), moment(y, 1)
    spread = s0 * s2 - s1**2
    line: list[float] = np.where(spread > 0, (s2 * t0 - s1 * t1) / np.where(spread > 0, spread, 1), t0 / s0).tolist()
    return line
