"""A few real training steps on batches of a given shape, and what they took: what `vcot.training.estimate` is held
against, on the machine that a run is planned for.

The base's own weights, its adapters, its optimiser and the trainer of `jobs.train`; rows of random tokens and random
images, so that no data are needed. Nothing is saved.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from vcot.models.device import device
from vcot.models.families import family_in
from vcot.models.shapes import Shapes
from vcot.records.example import IGNORED
from vcot.stage import Bar
from vcot.storage import Store
from vcot.training.checkpoints import Checkpoints
from vcot.training.config import TrainingConfig
from vcot.training.data import Collator, Item
from vcot.training.engine import RunContext
from vcot.training.estimate import BatchShape
from vcot.training.memory import twice
from vcot.training.setup import model_to_train, training_arguments
from vcot.training.sft import SFTTrainer

STEPS = 5
COLD = 2
"""Steps until the optimiser has its state and libraries their tables; what follows is timed."""


@dataclass(frozen=True)
class Calibration:
    """What was measured. peak_bytes: on a GPU torch's own count of what it had allocated at most, weights among it;
    on a CPU by how much the process was larger at its largest than before the model was loaded."""

    device: str
    peak_bytes: int
    seconds_per_step: float
    tokens_per_step: int
    steps: int


class _Unsaved(SFTTrainer):
    def _save_checkpoint(self, *_: Any, **__: Any) -> None:
        pass


class _Watch(TrainerCallback):  # type: ignore[misc]  # the library publishes no types
    """The peak of the first steps on a CPU is taken with memory that returns at once; the others are timed without."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.peak = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if device().type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.monotonic())
        if len(self.ends) == COLD:
            self.peak = _peak()
            _return_at_once(False)


def calibrate(config: TrainingConfig, base: Path, batch: BatchShape, *, steps: int = STEPS) -> Calibration:
    """Trains so many steps on this process' device. Call it in a process of its own: memory that others have used and
    given back would not be seen.

    Raises what loading a base and training raise: InputError, SettingsError, torch.OutOfMemoryError.
    """
    if device().type == "cuda":
        return _steps(config, base, batch, steps)
    # Once with a row of a few tokens: what libraries load when they are first used is none of the training's.
    side = min(batch.grid[0], 2 * batch.merge)
    _steps(config, base, BatchShape(1, 16, 8, (side, side), batch.merge), COLD + 1)
    gc.collect()
    return _steps(config, base, batch, steps)


def _steps(config: TrainingConfig, base: Path, batch: BatchShape, steps: int) -> Calibration:
    items = [_item(base, batch, number) for number in range(batch.rows)]
    _return_at_once(True)
    before = _now()
    model, compute = model_to_train(config, base, str(base))
    accumulation = config.gradient_accumulation_steps
    with tempfile.TemporaryDirectory(prefix="calibrate-") as scratch:
        context = RunContext(Path(scratch))
        batches = [list(range(batch.rows))] * (steps * accumulation)
        collate = Collator(0, packed=config.packing == "on")
        _reset_peak()
        watch = _Watch()
        with Bar("calibrate", steps, "steps", shown=False) as bar:
            trainer = _Unsaved(
                model, training_arguments(
                    config, context, steps=steps, accumulation=accumulation, evaluating=False,
                    checkpointing=twice(config, base, compute),
                ),
                config=config, context=context, checkpoints=Checkpoints(Store(), scratch, Path(scratch)),
                compute=compute, bar=bar, epoch=float, batches_per_step=accumulation,
                train=DataLoader(items, batch_sampler=batches, collate_fn=collate), validation=None,  # type: ignore[arg-type]
            )  # fmt: skip
            trainer.add_callback(watch)
            trainer.train()
    seconds = (watch.ends[-1] - watch.ends[COLD - 1]) / (steps - COLD)
    name = torch.cuda.get_device_name(0) if device().type == "cuda" else "cpu"
    peak = _peak() if device().type == "cuda" else watch.peak - before
    return Calibration(name, peak, seconds, batch.tokens * batch.rows * accumulation, steps)


def _item(base: Path, batch: BatchShape, number: int) -> Item:
    """A row as SFTDataset gives it: every other image is larger, and its text shorter."""
    config, shapes, family = json.loads((base / "config.json").read_bytes()), Shapes.read(base), family_in(base)
    image = int(config["image_token_id"])
    dice = torch.Generator().manual_seed(number)
    rows, columns = batch.grid
    if rows > shapes.merge and shapes.fixed_side is None:
        # Images of one size would need no padding in attention, as those of a data set do.
        rows += shapes.merge * (-1) ** number
    visual = torch.full((rows * columns // shapes.merge**2,), image)
    words = torch.randint(shapes.vocabulary - 1, (batch.tokens - len(visual),), generator=dice)
    words[words == image] = shapes.vocabulary - 1
    if (start := config.get("vision_start_token_id")) is not None:
        words[0] = start
    ids = torch.cat([words[:1], visual, words[1:]])
    labels = torch.full_like(ids, IGNORED)
    labels[-batch.learned :] = ids[-batch.learned :]
    grids, pixels = [], None
    if len(visual):
        grids = [(1, rows, columns)]
        shape = (rows * columns, shapes.patch)
        if shapes.fixed_side is not None:
            shape = (1, config["vision_config"].get("num_channels", 3), shapes.fixed_side, shapes.fixed_side)  # type: ignore[assignment]
        pixels = torch.randn(shape, generator=dice)
    places = family.positions(ids.tolist(), grids, image_token_id=image, merge_size=shapes.merge)
    return {
        "id": f"random-{number}", "ids": ids, "labels": labels, "positions": places, "pixels": pixels,
        "grids": torch.tensor(grids) if grids else None,
    }  # fmt: skip


# --- memory --------------------------------------------------------------------------------------------------


def _return_at_once(wanted: bool) -> None:
    """Whether glibc gives blocks of 64 KiB and more back to the kernel when they are freed. Else what was freed stays
    with the process for later, and its size says little of what it needs."""
    name = ctypes.util.find_library("c")
    libc = None if name is None else ctypes.CDLL(name)
    if hasattr(libc, "mallopt"):  # musl and macOS have none
        assert libc is not None
        libc.mallopt(-3, 1 << 16 if wanted else 1 << 25)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 16 if wanted else 1 << 27)  # M_TRIM_THRESHOLD
        libc.malloc_trim(0)  # what is free now would be used first, and not be seen


def _reset_peak() -> None:
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if device().type == "cuda" else _status("VmHWM")


def _now() -> int:
    return 0 if device().type == "cuda" else _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) << 10
