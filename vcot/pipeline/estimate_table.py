"""An estimate for people: tables for a terminal of 100 columns, and a line in words."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from vcot.pipeline.estimate import Estimate, Range
from vcot.training.estimate import CONTEXT, ERROR, fits
from vcot.training.flops import GPUS

Units = tuple[tuple[float, str], ...]
"""Size and name, the largest first."""
COUNTS: Units = ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1, ""))
SIZES: Units = ((2**40, " TiB"), (2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"))
HOURS: Units = ((1, " h"), (1 / 60, " min"), (1 / 3600, " s"))

SMALL = 0.05
"""Seconds of a step, of which so few say that a GPU would mostly wait for its next kernel."""


def show(found: Estimate, config: Any, console: Console) -> None:
    """config: of the training."""
    console.print("[italic]What it will take: expected, and from low to high where it is not counted[/]")
    table = Table()
    time = "time" if found.gpu == "cpu" else "GPU time"
    for name in ("stage", "rows", "tokens", "visual", "steps", "storage", "FLOPs", time, "US$"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, one in found.stages.items():
        counts = [_cell(value, COUNTS) for value in (one.rows, one.tokens, one.visual, one.steps)]
        flops = "–" if one.flops is None else f"{one.flops.expected:.2g}"
        table.add_row(name, *counts, _cell(one.stored, SIZES), flops, _cell(one.gpu_hours, HOURS), _usd(one.usd))
    console.print(table)
    where = "this computer" if found.gpu == "cpu" else f"each {found.gpu}"
    console.print(
        f"[italic]Memory of train on {where}, for a batch of {found.load.tokens:,.0f} tokens and "
        f"{found.load.patches:,.0f} patches[/]", highlight=False,
    )  # fmt: skip
    table = Table("part")
    for name in ("GiB", "of all"):
        table.add_column(name, justify="right")
    parts = {
        "weights": "weights" + (", a part of each" if found.sharded else ""), "adapters": "adapters",
        "gradients": "gradients", "optimiser": "optimiser",
        "kept": "activations that are kept" + (", the rest made twice" if found.checkpointing else ""),
        "working": "activations of the layer at work", "logits": "logits", "images": "images",
        "process": "the process, beside tensors",
        "peak": "[bold]the most at once",
    }  # fmt: skip
    for part, value in asdict(found.memory).items():
        if part == "process" and not value:
            continue
        table.add_row(parts[part], f"{value / 2**30:.3f}", f"{value / found.gpu_bytes:.1%}")
    console.print(table)
    if told := found.calibrated:
        off = told["planned_bytes"] / told["peak_bytes"] - 1
        console.print(
            f"calibrated here, five steps: {told['seconds_per_step']:.2f} s a step, {told['tokens_per_second']:,.0f} "
            f"tokens/s, by which the time above is; peak {_written(told['peak_bytes'], SIZES)} measured, "
            f"{_written(told['planned_bytes'], SIZES)} planned ({off:+.1%})", highlight=False,
        )  # fmt: skip
    if found.measured:
        console.print(f"[italic]Measured in {found.run_uri}, and planned[/]", highlight=False, soft_wrap=True)
        table = Table("stage", "what")
        for name in ("planned", "measured", "planned is off by"):
            table.add_column(name, justify="right")
        for line in found.measured:
            units = {"bytes": SIZES, "peak bytes": SIZES, "hours": HOURS}.get(line.what, COUNTS)
            off_by = f"{line.planned / line.measured - 1:+.1%}" if line.measured else "–"
            table.add_row(
                line.stage, line.what, _written(line.planned, units), _written(line.measured, units), off_by
            )  # fmt: skip
        console.print(table)
    for ground in found.grounds:
        console.print(f"[dim]{ground}[/]", highlight=False)
    console.print(f"[bold]{in_words(found, config)}[/]", highlight=False)


def in_words(found: Estimate, config: Any) -> str:
    """ "fits on one 80 GB GPU (30 of 80 GiB); about 11 h on 1, 1.5 h on 8"."""
    peak, room = found.memory.peak, found.gpu_bytes
    each = f"one {_marketed(found.gpu, room)} GPU"
    if found.gpu == "cpu":
        each = "this computer"
    elif found.gpus > 1:
        each = f"each of {found.gpus} {_marketed(found.gpu, room)} GPUs"
    has = f"{peak / 2**30:.3g} of {room / 2**30:.3g} GiB"
    if fits(found.memory, room):
        words = f"fits on {each} ({has})"
    elif peak + CONTEXT <= room:
        words = f"may not fit on {each} ({has}, less than {ERROR:.0%} to spare); {_mend(found, config)}"
    else:
        words = f"does not fit on {each} ({has}); {_mend(found, config)}"
    train = found.stages["train"]
    if train.gpu_hours is None:
        return f"{words}."
    hours, many = train.gpu_hours.expected, found.gpus if found.gpus > 1 else 8
    # GPUs of one node lose a tenth at most to each other where gradients are those of adapters.
    times = [f"{_written(hours / many / 0.9, HOURS)} on {many}"] if found.gpu != "cpu" else []
    if found.gpus == 1:
        times.insert(0, f"{_written(hours, HOURS)} of training" + (" on 1" if times else ""))
    words += f"; about {', '.join(times)}"
    if train.steps is not None and hours * 3600 < SMALL * train.steps.expected:
        words += " (longer in truth: so small a model does not keep a GPU busy)"
    return f"{words}, US$ {train.usd.low:,.2f} to {train.usd.high:,.2f}." if train.usd is not None else f"{words}."


def _mend(found: Estimate, config: Any) -> str:
    ways = [] if found.checkpointing else ["--gradient-checkpointing on"]
    ways.append(f"a --batch-tokens below {config.batch_tokens}")
    if config.tune == "full":
        ways.append("--tune lora" if found.gpus == 1 else "--parallel fsdp")
    elif config.tune == "lora":
        ways.append("--tune qlora")
    return f"try {', or '.join(ways)}"


def _marketed(name: str, room: int) -> str:
    size = name.rpartition("-")[2].removesuffix("gb")
    return f"{size} GB" if size.isdigit() and GPUS[name].bytes == room else f"{room / 2**30:.0f} GiB"


def _written(value: float, units: Units, of: float | None = None) -> str:
    """In the unit that fits `of`, else the value itself."""
    size, name = next((unit for unit in units if (value if of is None else of) >= unit[0]), units[-1])
    scaled = value / size
    return f"{scaled:,.0f}{name}" if scaled >= 100 or (size == 1 and units is COUNTS) else f"{scaled:.2g}{name}"


def _cell(value: Range | None, units: Units) -> str:
    """The expected value, and below it from low to high."""
    if value is None:
        return "–"
    low, middle, high = (_written(one, units, value.expected) for one in (value.low, value.expected, value.high))
    unit = next((name for _, name in units if name and middle.endswith(name)), "")
    return middle if low == high else f"{middle}\n[dim]{low.removesuffix(unit)}–{high.removesuffix(unit)}[/]"


def _usd(value: Range | None) -> str:
    if value is None:
        return "–"
    low, middle, high = (f"{one:,.2f}" for one in (value.low, value.expected, value.high))
    return middle if low == high else f"{middle}\n[dim]{low}–{high}[/]"
