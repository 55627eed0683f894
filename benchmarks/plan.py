"""The memory plan against what trainings really take: several configurations, each in a process of its own.

    python -m benchmarks.plan --out build/plan.json [--base folder]

On a GPU what is measured is torch.cuda.max_memory_allocated over all steps, with weights. On a CPU it is by how much
the process grew, at its largest, over what it was before the model was loaded (VmHWM against VmRSS, with glibc giving
memory back at once, see vcot.training.calibration); a tiny training before has loaded libraries and their tables. The
process' size is what matters there, and torch's profiler would not see what kernels allocate for themselves.

The exit code is 1 where a plan is off by more than vcot.training.estimate.ERROR.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "rehearsal"

FULL: dict[str, Any] = {"tune": "full", "optim": "adamw_torch_fused"}
LORA: dict[str, Any] = {"tune": "lora"}
TWICE = {"gradient_checkpointing": "on"}
SMALL = {"rows": 4, "text": 240, "learned": 100, "grid": (16, 16)}
LARGE = {"rows": 12, "text": 240, "learned": 100, "grid": (16, 16)}
NO_IMAGES = {"rows": 24, "text": 304, "learned": 100}

CONFIGURATIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    *(
        (tune | {"dtype": dtype} | twice, batch)
        for tune in (LORA, FULL)
        for dtype in ("float32", "bfloat16")
        for twice in ({"gradient_checkpointing": "off"}, TWICE)
        for batch in (SMALL, LARGE)
    ),
    (LORA | {"dtype": "float32", "targets": "all"}, LARGE),
    (LORA | {"dtype": "float32", "lora_dropout": 0.0}, LARGE),
    (LORA | {"dtype": "float32", "packing": "on"}, LARGE),
    (LORA | {"dtype": "float32", "gradient_accumulation_steps": 2}, LARGE),
    ({"tune": "qlora", "dtype": "bfloat16"}, LARGE),
    *((tune | {"dtype": dtype} | TWICE, NO_IMAGES) for tune in (LORA, FULL) for dtype in ("float32", "bfloat16")),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=BASE, help="folder of a base; default: the rehearsal's")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "plan.json")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of configurations, from 0")
    options = parser.parse_args()
    from vcot.training.estimate import ERROR

    found: list[dict[str, Any]] = []
    for number, (changes, batch) in enumerate(CONFIGURATIONS):
        if options.only and number not in options.only:
            continue
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            result = pool.submit(measure, changes, batch, options.base).result()
        found.append({"number": number, **changes, "batch": batch, **result})
        print(line(found[-1]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    worst = max(abs(one["off"]) for one in found)
    print(f"off by {worst:.1%} at most; {options.out}")
    if worst > ERROR:
        raise SystemExit(1)


def measure(changes: dict[str, Any], batch: dict[str, Any], base: Path) -> dict[str, Any]:
    import torch

    from vcot import logging
    from vcot.models.device import device, use_device
    from vcot.models.shapes import Shapes
    from vcot.training.calibration import calibrate
    from vcot.training.config import TrainingConfig
    from vcot.training.estimate import BatchShape, Memory

    use_device("auto")
    logging.configure("lines")
    logging.quiet()
    where: Any = device().type
    config, shape = TrainingConfig(**{"gradient_accumulation_steps": 1, **changes}), BatchShape(**batch)
    if where == "cpu":
        torch.set_num_threads(1)
    found = calibrate(config, base, shape, steps=3)
    planned = Memory.of(
        Shapes.read(base), config, shape.load, dtype=changes["dtype"], where=where,
        checkpointing=config.gradient_checkpointing == "on",
    )  # fmt: skip
    return {
        "device": found.device, "tokens": shape.load.tokens, "patches": shape.load.patches,
        "measured_mib": found.peak_bytes / 2**20, "planned_mib": planned.peak / 2**20,
        "off": planned.peak / found.peak_bytes - 1,
    }  # fmt: skip


def line(result: dict[str, Any]) -> str:
    """A row of a table in Markdown."""
    told = {"targets": "", "lora_dropout": "dropout ", "packing": "packing ", "gradient_accumulation_steps": "batches "}
    more = ", ".join(f"{said}{result[name]}" for name, said in told.items() if name in result)
    twice = "twice" if result.get("gradient_checkpointing") == "on" else "kept"
    return (
        f"| {result['tune']}{f', {more}' if more else ''} | {result['dtype']} | {twice} | "
        f"{result['tokens']:,.0f}, {result['patches']:,.0f} | {result['measured_mib']:.1f} | "
        f"{result['planned_mib']:.1f} | {result['off']:+.1%} |"
    )


if __name__ == "__main__":
    main()
