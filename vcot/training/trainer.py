"""transformers' Trainer with our own data order, loss, evaluation and checkpoints.

The library keeps the loop: accumulation, clipping, schedule, noise, mixed precision of the optimiser, trackers. What
is replaced, and why:

    data        which rows come when is a function of seed and epoch, so that a resumed run draws the same
    loss        logits only where something is learned; one mean over all tokens of the accumulated batch
    evaluation  one mean over all tokens of the split (the library weighs batches alike, whatever they hold)
    ranks       one adds its gradients to those of the others before a step (the library's wrapper does not know a loss
                whose head is apart, and is slow to learn which parts were not used)
    checkpoints in safetensors and JSON (the library's optimiser, schedule and random states are pickles)
    not finite  stops at once, before the weights are touched (the library logs an average instead)
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vcot import logging
from vcot.errors import SettingsError
from vcot.records.example import IGNORED
from vcot.stage import Bar, stop, summary
from vcot.training.checkpoints import (
    Checkpoints,
    load_tensors,
    random_state,
    read_state,
    restore_random_state,
    save_tensors,
    write_state,
)
from vcot.training.config import TrainingConfig
from vcot.training.data import EpochSampler, Item
from vcot.training.ranks import ALONE, Group

WEIGHTS, STATE, PROGRESS = "weights.safetensors", "state.safetensors", "trainer_state.json"


class NotFinite(SettingsError):
    """The loss or the gradient is not a number any more.

    A SettingsError (78, no retry): the same settings would end in the same step again, and what a person can change
    is a setting: a lower learning rate, more warm-up, float32. `details` has what led to it.
    """

    def __init__(self, what: str, details: dict[str, Any]) -> None:
        before = ", ".join(f"{loss:.4g}" for loss in details["losses_before"]) or "none"
        super().__init__(
            f"{what} at step {details['step']} (learning rate {details['learning_rate']:.3g}; losses before: {before}; "
            f"examples: {', '.join(details['examples'][:4])}{', …' if len(details['examples']) > 4 else ''}). "
            "Try a lower --learning-rate, more --warmup-steps, or --dtype float32"
        )
        self.details = details | {"what": what}


@dataclass(frozen=True)
class RunContext:
    """Where a training runs and what it may use; nothing of it shapes the weights.

    scratch: a folder of this process. trackers: names for `report_to`, whose files go below `files`. saved: called
    after each checkpoint. cache_bytes: for images that were cut into patches. workers: processes that prepare batches;
    0: this one does. grace: seconds between SIGTERM and SIGKILL. group: this process among the ranks.
    """

    scratch: Path
    trackers: Sequence[str] = ()
    saved: Callable[[], None] = lambda: None
    cache_bytes: int = 1 << 30
    workers: int = 0
    grace: float = 30.0
    group: Group = ALONE

    @property
    def files(self) -> Path:
        return self.scratch / "tensorboard"


def learned_tokens(labels: Tensor) -> Tensor:
    """How many tokens of [B, T] labels count; the first of a row is predicted from nothing."""
    return (labels[:, 1:] != IGNORED).sum()


def loss_sum(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Cross entropy summed over a batch's learned tokens; a scalar, float32. `model`: with or without an adapter."""
    given = {name: value for name, value in batch.items() if name != "names"}
    total: Tensor = model(**given, want="loss")
    return total


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """The context in which a model with float32 adapters or weights computes in `dtype`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


class SFTTrainer(Trainer):  # type: ignore[misc]  # the library publishes no types
    """
    Args:
        train, epochs: the loader, and its sampler, which is told the epoch.
        validation: None where there is no such split.
        compute: the dtype of the forward pass.
    """

    control: TrainerControl
    loss_is_scaled_for_ga = True  # by `num_items_in_batch`, the tokens of the whole accumulated batch

    def __init__(
        self, model: Any, arguments: TrainingArguments, config: TrainingConfig, context: RunContext, *,
        train: DataLoader[Item], epochs: EpochSampler, validation: DataLoader[Item] | None, checkpoints: Checkpoints,
        compute: torch.dtype, bar: Bar,
    ) -> None:  # fmt: skip
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train.dataset,
            eval_dataset=None if validation is None else validation.dataset,
            callbacks=[RunCallback(self, bar, checkpoints, config, context)],
        )
        self.remove_callback(PrinterCallback)
        self.tokens = self.tokens_before = 0  # so far, over all ranks; of these, what earlier processes have learned
        self._train, self._epochs, self._validation = train, epochs, validation
        self._checkpoints, self._compute = checkpoints, compute
        self._group, self._grace = context.group, context.grace
        self._losses: deque[float] = deque(maxlen=10)
        self._batch: list[str] = []

    # --- data ----------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Item]:
        return self._train

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        self._epochs.epoch = epoch
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Mapping[str, Any]], device: torch.device) -> Tensor:
        self._batch = [name for batch in batch_samples for name in batch["names"]]
        learned = torch.stack([learned_tokens(batch["labels"]) for batch in batch_samples]).sum()
        return learned.new_tensor(self._group.total(int(learned))[0]).to(device)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the library counts all parameters anew at every step, by a rule that does not hold for adapters

    # --- a step --------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        if not inputs["names"]:  # this rank's share of a small batch: nothing, and nothing to learn from it
            return torch.zeros((), device=self.args.device, requires_grad=True)
        with autocast(self.args.device, self._compute):
            total = loss_sum(model, inputs)
        loss = total / (learned_tokens(inputs["labels"]) if num_items_in_batch is None else num_items_in_batch)
        return (loss, {}) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        tokens = float(inputs["attention_mask"].sum()) if inputs["names"] else 0.0
        if self._group.size > 1:
            mean, tokens = self._group.total(loss.item(), tokens)
            loss = loss.new_tensor(mean)
        if not math.isfinite(loss.item()):
            raise NotFinite("the loss is not finite", self._details(None))
        self.tokens += int(tokens)
        if self.accelerator.sync_gradients:  # the last batch of a step
            self._group.add_gradients(trained(self.model).values())
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Of the gradient before it is cut, also where no limit was set (--max-grad-norm 0)."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if not math.isfinite(float(norm)):
            raise NotFinite("the gradient is not finite", self._details(float(norm)))
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._losses.append(logs["loss"])
        if "train_runtime" not in logs:  # its seconds are not the same twice; the report has them
            super().log(logs, start_time)

    def _details(self, gradient: float | None) -> dict[str, Any]:
        return {
            "step": self.state.global_step + 1,
            "epoch": self.state.epoch,
            "examples": self._group.of_all(self._batch),
            "learning_rate": self._get_learning_rate(),
            "gradient_norm": None if gradient is None else repr(gradient),
            "losses_before": list(self._losses),
        }

    # --- evaluation ----------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """One mean over the learned tokens of the validation split, logged as eval_loss.

        Raises:
            Interrupted: a stop was asked for, and there is no time to see this through.
        """
        assert self._validation is not None
        self.model.eval()
        total, tokens = 0.0, 0.0
        asked: float | None = None
        for batch in self._validation:
            if stop.requested:
                asked = asked or time.monotonic()
            if self._group.any(asked is not None and time.monotonic() - asked > self._grace / 2):
                stop.join()
                stop.raise_if_requested("the last checkpoint counts")
            if not batch["names"]:
                continue
            inputs = self._prepare_inputs(batch)
            with autocast(self.args.device, self._compute):
                total += float(loss_sum(self.model, inputs))
            tokens += int(learned_tokens(inputs["labels"]))
        total, tokens = self._group.total(total, tokens)
        if not math.isfinite(total):
            raise NotFinite("the loss on the validation split is not finite", self._details(None))
        metrics = {f"{metric_key_prefix}_loss": total / max(tokens, 1)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # --- checkpoints ---------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Rank 0 writes; the others wait, and hear how long it took."""
        if self._group.first:
            self._checkpoints.save(self.state.global_step, self.state.best_global_step, self._write)
        took = self._group.total(self._checkpoints.last_save_seconds if self._group.first else 0.0)
        (self._checkpoints.last_save_seconds,) = took

    def _write(self, folder: Path) -> None:
        save_tensors(trained(self.model), folder / WEIGHTS)
        state = {
            "optimiser": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "random": random_state(),
            "tokens": self.tokens,
        }
        write_state(state, folder / STATE)
        self.state.save_to_json(str(folder / PROGRESS))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(model or self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = read_state(Path(checkpoint) / STATE)
            self.optimizer.load_state_dict(state["optimiser"])
            self.lr_scheduler.load_state_dict(state["schedule"])
            self.tokens = self.tokens_before = state["tokens"]
            self._losses.extend(entry["loss"] for entry in self.state.log_history if "loss" in entry)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            restore_random_state(read_state(Path(checkpoint) / STATE)["random"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """bfloat16 and float32 need none."""


def trained(model: Any) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def load_trained(model: Any, folder: Path) -> None:
    """Fills them from a checkpoint."""
    tensors, _ = load_tensors(folder / WEIGHTS)
    parameters = trained(model)
    assert tensors.keys() == parameters.keys(), "a checkpoint of another model"
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Moves the bar, saves a new best, stops when nothing gets better or when somebody asks.

    Whether nothing gets better is read off the losses so far, so there is no counter that a resumed run could lose.
    """

    def __init__(
        self, trainer: SFTTrainer, bar: Bar, checkpoints: Checkpoints, config: TrainingConfig, context: RunContext
    ) -> None:
        self._trainer, self._bar, self._checkpoints, self._config = trainer, bar, checkpoints, config
        self._group, self._grace, self._saved = context.group, context.grace, context.saved
        self._begun: tuple[float, int] | None = None

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        summary(saved_step=state.global_step)
        logging.get().info("saved", step=state.global_step, seconds=round(self._checkpoints.last_save_seconds, 1))
        self._saved()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._group.reseed(self._config.seed, state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._group.any(stop.requested):
            stop.join()
            control.should_training_stop = True
            control.should_save = self._checkpoints.last_save_seconds < self._grace - 3

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now, tokens, speed = time.monotonic(), self._trainer.tokens, "…"
        if self._begun is None:  # what one waits for: it learns, and memory suffices
            self._begun = now, tokens
            logging.get().info("first step", step=state.global_step, loss=round(logs["loss"], 4))
        else:
            speed = f"{(tokens - self._begun[1]) / (now - self._begun[0]):.0f} tokens/s"
        self._bar.advance(note=f"loss {logs['loss']:.3f}, {speed}")

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        losses = eval_losses(state.log_history)
        logging.get().info("evaluated", step=state.global_step, loss=round(losses[-1], 4))
        if losses[-1] < min(losses[:-1], default=math.inf):
            control.should_save = True
        if lost_patience(losses, self._config):
            control.should_training_stop = control.should_save = True


def eval_losses(history: Iterable[Mapping[str, Any]]) -> list[float]:
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


def lost_patience(losses: Iterable[float], config: TrainingConfig) -> bool:
    """Whether the last `early_stopping_patience` evaluations were not better than the best by the threshold."""
    best, worse = math.inf, 0
    for loss in losses:
        worse = 0 if loss < best - config.early_stopping_threshold else worse + 1
        best = min(best, loss)
    return 0 < config.early_stopping_patience <= worse


def is_over(state: TrainerState, max_steps: int, config: TrainingConfig) -> bool:
    """Whether a checkpoint's state is that of a finished training."""
    return state.global_step >= max_steps or lost_patience(eval_losses(state.log_history), config)
