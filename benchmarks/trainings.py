"""One training of fixed rows, by our trainer or by TRL's, with a clock at each step.

Both are trainers of transformers' kind, so one mixin measures both: what the clock and the processor say from the
beginning of training to the end of each step, how long batches were waited for, how long checkpoints took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

from benchmarks.rows import RowSet, chat_rows
from vcot.models.device import compute_dtype, device
from vcot.models.families import family_of
from vcot.models.loading import attach_lora
from vcot.records.example import Examples
from vcot.stage import Bar
from vcot.storage import Store
from vcot.tokens import Encoder
from vcot.training.batches import Plan, RankBatches
from vcot.training.checkpoints import Checkpoints
from vcot.training.config import TrainingConfig
from vcot.training.data import Collator, SFTDataset, loader
from vcot.training.engine import RunContext
from vcot.training.sft import SFTTrainer, training_arguments

R, ALPHA, DROPOUT = 16, 32, 0.05
"""Of the adapters on the language model's linear layers, in both trainers."""


@dataclass(frozen=True)
class Batch:
    """What a model was given at once. lengths: real tokens of each row. slots: tokens that are computed, padding
    included. learned: tokens whose loss counts. grids: of its images, in patches."""

    lengths: tuple[int, ...]
    slots: int
    learned: int
    grids: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, batch: Mapping[str, Any], rows: Mapping[str, int]) -> Batch:
        """Of a collator's batch, ours or TRL's. rows: id → tokens of a row, where the batch has its rows' names."""
        mask, grids = batch.get("attention_mask"), batch.get("image_grid_thw")
        lengths = mask.sum(1).tolist() if mask is not None else [rows[name] for name in batch["names"]]
        return cls(
            lengths=tuple(lengths),
            slots=batch["input_ids"].numel(),
            learned=int((batch["labels"][:, 1:] >= 0).sum()),
            grids=() if grids is None else tuple(map(tuple, grids.tolist())),
        )


@dataclass
class Clock:
    """Seconds since training began, at the end of each step: of the wall and of a core. batches: those that were made.

    waiting: for batches. saving: while training stood still for each checkpoint. first_step: seconds from the making
    of the trainer.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    saving: list[float] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    made: float = field(default_factory=time.monotonic)
    first_step: float = 0.0
    begun: tuple[float, float] = (0.0, 0.0)

    def now(self) -> tuple[float, float]:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic(), time.process_time()


class ClockCallback(TrainerCallback):  # type: ignore[misc]  # the library publishes no types
    def __init__(self, clock: Clock, each_step: Callable[[], None] | None = None) -> None:
        self._clock, self._each_step = clock, each_step

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._clock.begun = self._clock.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        wall, cpu = self._clock.now()
        if not self._clock.wall:
            self._clock.first_step = wall - self._clock.made
        self._clock.wall.append(wall - self._clock.begun[0])
        self._clock.cpu.append(cpu - self._clock.begun[1])
        if self._each_step is not None:
            self._each_step()

    def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self._clock.losses.append(logs["loss"])


class Timed:
    """Before a Trainer among the bases; `clock` and `tokens_of` (a row's id → its tokens) are set when it is made."""

    clock: Clock
    tokens_of: Mapping[str, int]

    def get_batch_samples(self, *arguments: Any) -> Any:
        begun, _ = self.clock.now()
        batches, items = super().get_batch_samples(*arguments)  # type: ignore[misc]
        self.clock.waits.append(time.monotonic() - begun)
        self.clock.batches += [Batch.of(batch, self.tokens_of) for batch in batches]
        return batches, items

    def _save_checkpoint(self, *arguments: Any, **named: Any) -> None:
        begun, _ = self.clock.now()
        super()._save_checkpoint(*arguments, **named)  # type: ignore[misc]
        self.clock.saving.append(time.monotonic() - begun)


class OurTrainer(Timed, SFTTrainer):
    """The trainer of `jobs.train`, timed."""


def ours(
    model: Any, encoder: Encoder, examples: Examples, scratch: Path, *, packed: bool, batch_tokens: int,
    epochs: float = 1, max_steps: int | None = None, cache_bytes: int = 0,
    workers: int = 0, each_step: Callable[[], None] | None = None, **changes: Any,
) -> Clock:  # fmt: skip
    """Trains fresh adapters on a base of `load_base` as `vcot.training.sft.fine_tune` does, without validation.

    changes: of TrainingConfig.
    """
    clock = Clock()
    config = TrainingConfig(
        **{
            "tune": "lora", "lora_r": R, "lora_alpha": ALPHA, "lora_dropout": DROPOUT, "optim": "adamw_torch_fused",
            "neftune_noise_alpha": 0, "batch_tokens": batch_tokens, "packing": "on" if packed else "off",
            "gradient_accumulation_steps": 1, "num_train_epochs": epochs, "max_steps": max_steps,
            "save_steps": 10**9, "seed": 1, **changes,
        }
    )  # fmt: skip
    plan = Plan.of(
        examples.rows, batch_tokens=batch_tokens, packed=packed, batches_per_step=1, epochs=epochs, seed=config.seed,
        max_steps=max_steps,
    )  # fmt: skip
    adapted = attach_lora(model, r=config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout)
    context = RunContext(scratch, workers=workers)
    checkpoints = Checkpoints(Store(), str(scratch / "stored"), scratch / "local")
    collate = Collator(encoder.pad_token_id, packed=packed)
    dataset = SFTDataset(examples, encoder, cache_bytes=cache_bytes)
    with Bar("train", len(plan.steps), "steps", shown=False) as bar:
        trainer = OurTrainer(
            adapted, training_arguments(
                config, context, steps=len(plan.steps), accumulation=1, evaluating=False,
                checkpointing=config.gradient_checkpointing == "on",
            ),
            config=config, context=context, checkpoints=checkpoints, compute=compute_dtype(config.dtype), bar=bar,
            epoch=plan.epoch, batches_per_step=1, train=loader(dataset, RankBatches(plan), collate, workers),
            validation=None,
        )  # fmt: skip
        trainer.clock, trainer.tokens_of = clock, {row.id: row.tokens for row in examples.rows}
        trainer.add_callback(ClockCallback(clock, each_step))
        trainer.train()
        checkpoints.wait()
    return clock


def trl(
    model: Any, encoder: Encoder, rows: RowSet, examples: Examples, scratch: Path, *, batch_rows: int,
    epochs: float = 1, max_steps: int = -1, each_step: Callable[[], None] | None = None, **changes: Any,
) -> Clock:  # fmt: skip
    """Trains fresh adapters on a plain model of transformers with TRL's SFTTrainer and its vision collator.

    Its defaults are left as they are (activation checkpointing on), but for max_length, which would cut rows.
    changes: of SFTConfig.
    """
    from trl import SFTConfig, SFTTrainer

    class TheirTrainer(Timed, SFTTrainer):  # type: ignore[misc]
        pass

    clock = Clock()
    family = family_of(model.config)
    on_cpu = device().type == "cpu"
    arguments = SFTConfig(
        output_dir=str(scratch), use_cpu=on_cpu, bf16=not on_cpu, max_length=None, completion_only_loss=True,
        per_device_train_batch_size=batch_rows, num_train_epochs=epochs, max_steps=max_steps, save_strategy="no",
        report_to="none", disable_tqdm=True, log_level="error", seed=1, **changes,
    )  # fmt: skip
    adapters = LoraConfig(
        r=R, lora_alpha=ALPHA, lora_dropout=DROPOUT, task_type="CAUSAL_LM", target_modules=family.adapted["language"]
    )
    trainer = TheirTrainer(
        model=model, args=arguments, train_dataset=chat_rows(rows, encoder, examples),
        processing_class=encoder.processor, peft_config=adapters,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.clock, trainer.tokens_of = clock, {}
    trainer.add_callback(ClockCallback(clock, each_step))
    trainer.train()
    return clock
