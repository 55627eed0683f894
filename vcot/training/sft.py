"""Supervised fine-tuning: the base learns the tokens of examples, as full weights or through adapters.

base + adapters → loop over batches, with checkpoints → the weights that were best on what was held out
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from vcot import logging
from vcot.errors import InputError
from vcot.models.device import compute_dtype
from vcot.models.families import family_of
from vcot.models.loading import whole_model
from vcot.records.example import IGNORED, Examples
from vcot.stage import Bar, stop
from vcot.tokens import Encoder
from vcot.training.batches import Plan, RankBatches
from vcot.training.checkpoints import Checkpoints
from vcot.training.config import TrainingConfig
from vcot.training.data import Item, loaders
from vcot.training.engine import (
    PROGRESS,
    Checkpointed,
    NotFinite,
    RunContext,
    announce,
    check_alike,
    in_shards,
    in_turn,
    is_over,
    lacks_evaluation,
    load_trained,
    of_all,
    reshard,
    trained,
)
from vcot.training.memory import divided, gpu_bytes, twice
from vcot.training.setup import TrainResult, fetching_for, model_to_train, newest, training_arguments


def fine_tune(
    config: TrainingConfig, *, base: Path, base_uri: str, encoder: Encoder, examples: Examples,
    checkpoints: Checkpoints, context: RunContext, adapter: Path | None = None,
) -> TrainResult:  # fmt: skip
    """Trains from the newest whole checkpoint, or from the base, to the end.

    Returns:
        The model with the weights of the best evaluation (of the last step where nothing is held out); in other
        ranks than the first, with those of the last step, unless each rank holds a part of it.

    Raises:
        InputError: there is nothing to learn from, ranks see different examples, an image is not what tokenize saw,
            or a checkpoint is one of another model.
        SettingsError: an example is longer than a batch may be; --parallel fsdp with one rank; ranks with different
            settings.
        Interrupted: a stop was asked for; what was learned is saved.
        NotFinite: the loss or the gradient left the numbers.
    """
    check_alike(context, config, examples.rows, gpu=gpu_bytes(), numbers=compute_dtype(config.dtype))
    start = _start(config, examples, checkpoints, context)
    plan, state, checkpoint = start.plan, start.state, start.checkpoint
    needs = None if start.over else plan.shards(examples.rows)
    with fetching_for(examples, needs, state.global_step, context) as fetching:  # while the model is loaded, too
        shards = context.ranks if divided(config, base, context.ranks) else 1
        model, compute = model_to_train(config, base, base_uri, shards=shards, adapter=adapter)
        if in_shards(model):
            checkpoints.group, checkpoints.first_of_pod = distributed.new_group(backend="gloo"), context.first_of_pod
        result = TrainResult(model, compute, [], sum(p.numel() for p in trained(model).values()))
        result.from_step = state.global_step
        result.metadata = {
            "train_samples": plan.samples["train"],
            "validation_samples": plan.samples["validation"],
            "ranks": context.ranks,
            "batches_per_step": plan.batches_per_step,
            "real_tokens": round(plan.real / plan.slots, 4),
        }
        if start.over:
            assert checkpoint is not None
            load_trained(model, checkpoint)
        else:
            batches = RankBatches(plan, rank=context.rank, ranks=context.ranks, start=state.global_step)
            train, validation = loaders(
                examples, encoder, batches, plan.evaluation(context.rank, context.ranks), samples=plan.samples,
                packed=config.packing == "on", workers=context.workers, cache_bytes=context.cache_bytes,
            )  # fmt: skip
            arguments = training_arguments(
                config, context, steps=len(plan.steps), accumulation=batches.per_step,
                evaluating=validation is not None, evaluating_first=start.lacks_evaluation,
                checkpointing=twice(config, base, compute, ranks=context.ranks, parts=shards),
            )  # fmt: skip
            checkpoints.whole = partial(announce, context)
            with Bar("train", len(plan.steps), "steps", shown=context.first) as bar:
                bar.advance(state.global_step)
                trainer = SFTTrainer(
                    model, arguments, config=config, context=context, checkpoints=checkpoints, compute=compute, bar=bar,
                    epoch=plan.epoch, batches_per_step=plan.batches_per_step, fetching=fetching, train=train,
                    validation=validation,
                )  # fmt: skip
                result.seconds = trainer.train_from(checkpoint)
            result.tokens = trainer.tokens - trainer.tokens_before
            state = trainer.state
            stop.raise_if_requested(
                f"step {state.global_step} of {len(plan.steps)} is done, the last checkpoint counts"
            )
    result.history = state.log_history
    if context.first or in_shards(model):
        best, last = state.best_global_step, state.global_step
        if best is not None and best != last:
            fetch = partial(checkpoints.at, best)
            if (folder := in_turn(context, fetch) if in_shards(model) else fetch()) is None:
                raise InputError(f"{checkpoints.uri}: the checkpoint of the best step, {best}, is gone")
            load_trained(model, folder)
        result.metadata |= {"last_step": last, "kept_step": last if best is None else best}
        model.eval()
    return result


@dataclass(frozen=True)
class _Start:
    """Where a training begins: its plan, the checkpoint to go on from (None: there is none) with the library's state in
    it, whether it was stopped before the evaluation of that step, and whether nothing is left to do."""

    plan: Plan
    checkpoint: Path | None
    state: TrainerState
    lacks_evaluation: bool
    over: bool


def _start(config: TrainingConfig, examples: Examples, checkpoints: Checkpoints, context: RunContext) -> _Start:
    found = newest(checkpoints, context)
    plan = Plan.of(
        examples.rows, batch_tokens=config.batch_tokens, packed=config.packing == "on", epochs=config.num_train_epochs,
        batches_per_step=config.gradient_accumulation_steps * context.ranks if found is None
        else found[1].batches_per_step,
        max_steps=config.max_steps, seed=config.seed,
        shards=examples.sizes, shuffle_bytes=int(config.shuffle_gib * 2**30),
    )  # fmt: skip
    steps = len(plan.steps)
    if not steps:
        raise InputError("there is not one example of the train split; look at the report of tokenize")
    if not plan.validation:
        logging.get().warning("no validation split: no early stopping, and the last weights are kept")
    if found is None:
        return _Start(plan, None, TrainerState(), lacks_evaluation=False, over=False)
    logging.get().info("going on from a checkpoint", step=found[1].step, of=steps)
    state = TrainerState.load_from_json(str(found[0] / PROGRESS))
    lacking = bool(plan.validation) and lacks_evaluation(state, steps, config)
    return _Start(plan, found[0], state, lacking, over=is_over(state, steps, config) and not lacking)


class SFTTrainer(Checkpointed, Trainer):  # type: ignore[misc]  # the library publishes no types
    """transformers' Trainer on our batches, with one mean of the loss over all learned tokens of a step.

    Args:
        train: this rank's batches of all steps that are left. validation: None where there is no such split.
        compute: the dtype of the forward pass.
    """

    control: TrainerControl
    loss_is_scaled_for_ga = True  # by `num_items_in_batch`, the learned tokens of a step over all ranks

    def __init__(
        self, model: Any, arguments: TrainingArguments, *, train: DataLoader[Item],
        validation: DataLoader[Item] | None, compute: torch.dtype, **shared: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train.dataset,
            eval_dataset=None if validation is None else validation.dataset,
            **shared,
        )
        self.remove_callback(PrinterCallback)
        self._train, self._validation, self._compute = train, validation, compute
        self._family = family_of(whole_model(model).config)

    def get_train_dataloader(self) -> DataLoader[Item]:
        return self._train

    def get_batch_samples(self, *arguments: Any) -> Any:
        # An evaluation that was made up for, before the first step, may have been the last.
        return ([], None) if self.control.should_training_stop else super().get_batch_samples(*arguments)

    def _get_num_items_in_batch(self, batch_samples: list[Mapping[str, Any]], device: torch.device) -> Tensor:
        self.step_examples = [name for batch in batch_samples for name in batch["names"]]
        self.step_tokens = sum(batch["tokens"] for batch in batch_samples)
        (learned,) = of_all([sum(learned_tokens(batch["labels"]) for batch in batch_samples)], device)
        return torch.tensor(max(learned, 1.0), device=device)

    def _loss_sum(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Over the learned tokens of this rank's batch; a scalar, float32."""
        packed = {name: inputs[name] for name in ("row_bounds", "longest_row") if name in inputs}
        given = self._family.model_inputs(inputs) | packed | {"labels": inputs["labels"]}
        if not isinstance(model, DistributedDataParallel):
            model = whole_model(model)  # PEFT calls the base's forward past the hooks of FSDP2
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self._compute == torch.bfloat16):
            loss: Tensor = model(**given, want="loss")
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        assert num_items_in_batch is not None
        if not inputs["names"] and self.context.ranks == 1:
            return torch.zeros((), device=self.args.device, requires_grad=True)
        # The engines average gradients over ranks; what is wanted is their sum.
        return self._loss_sum(model, inputs) * self.context.ranks / num_items_in_batch

    @torch.no_grad()
    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """One mean over the learned tokens of the validation split, logged as eval_loss.

        Raises:
            Interrupted: a stop was asked for; the step is saved, and the next start begins with its evaluation.
        """
        assert self._validation is not None
        self.model.eval()
        total, tokens, odd = 0.0, 0, list[str]()
        for batch in self._validation:
            if of_all([float(stop.requested)], self.args.device)[0]:
                stop.join()
                reshard(self.model)
                if self.tokens > self.tokens_before and not self.slow_to_save:  # else the step is saved already
                    self._save_checkpoint(self.model, None)
                stop.raise_if_requested("the last checkpoint counts")
            loss = float(self._loss_sum(self.model, self._prepare_inputs(batch)))
            if not math.isfinite(loss):
                odd += batch["names"]
            total += loss
            tokens += learned_tokens(batch["labels"])
        reshard(self.model)
        total, learned = of_all([total, tokens], self.args.device)
        if not math.isfinite(total):
            raise NotFinite(
                "the loss on the validation split is not finite", self.details(None, self.state.global_step, odd)
            )
        metrics = {f"{metric_key_prefix}_loss": total / max(learned, 1)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def learned_tokens(labels: Tensor) -> int:
    """How many tokens of [B, T] labels count; the first of a row is predicted from nothing."""
    return int((labels[:, 1:] != IGNORED).sum())
