"""Supervised fine-tuning: the base learns the tokens of examples, as full weights or through adapters.

base + adapters → loop over batches, with checkpoints → the weights that were best on what was held out
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

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
    set_seed,
)

from vcot import logging
from vcot.errors import InputError
from vcot.models.device import compute_dtype, device
from vcot.models.families import family_of
from vcot.models.loading import attach_lora, load_base, whole_model
from vcot.records.cache import Fetching
from vcot.records.example import IGNORED, Examples
from vcot.stage import Bar, stop
from vcot.tokens import Encoder
from vcot.training.batches import Plan, RankBatches
from vcot.training.checkpoints import Checkpoints, Manifest
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
from vcot.training.parameters import freeze, parameter_groups

_SAME_NAMES = {
    "seed", "optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
    "eval_steps", "save_steps",
}  # fmt: skip
"""Fields of TrainingConfig that are the library's arguments as they are."""


@dataclass
class TrainResult:
    """What came out. history: the library's log of losses. tokens and seconds: since this process began, with all its
    ranks."""

    model: Any
    compute: torch.dtype
    history: list[dict[str, Any]]
    parameters: int
    tokens: int = 0
    seconds: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)


def fine_tune(
    config: TrainingConfig, *, base: Path, base_uri: str, encoder: Encoder, examples: Examples,
    checkpoints: Checkpoints, context: RunContext,
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
    with _fetching(examples, start, context) as fetching:  # while the model is loaded, too
        shards = context.ranks if divided(config, base, context.ranks) else 1
        model, compute = _model(config, base, base_uri, shards=shards)
        if in_shards(model):
            checkpoints.group, checkpoints.first_of_pod = distributed.new_group(backend="gloo"), context.first_of_pod
        result = TrainResult(model, compute, [], sum(p.numel() for p in trained(model).values()))
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
                checkpointing=twice(config, base, whole_model(model).config.text_config, compute, shards),
            )  # fmt: skip
            checkpoints.whole = partial(announce, context)
            with Bar("train", len(plan.steps), "steps", shown=context.first) as bar:
                bar.advance(state.global_step)
                trainer = SFTTrainer(
                    model, arguments, config=config, context=context, checkpoints=checkpoints, compute=compute, bar=bar,
                    epoch=plan.epoch, batches_per_step=plan.batches_per_step, fetching=fetching, train=train,
                    validation=validation,
                )  # fmt: skip
                begun = time.monotonic()
                try:
                    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                except BaseException:
                    checkpoints.wait(and_raise=False)
                    raise
                checkpoints.wait()
            result.seconds, result.tokens = time.monotonic() - begun, trainer.tokens - trainer.tokens_before
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
    found = _newest(checkpoints, context)
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


def _fetching(examples: Examples, start: _Start, context: RunContext) -> AbstractContextManager[Fetching | None]:
    """What brings this pod its examples from storage, where they are there, in one of its ranks."""
    if examples.cache is None or not context.first_of_pod or start.over:
        return nullcontext()
    fetching = Fetching(examples.cache, start.plan.shards(examples.rows))
    fetching.at(start.state.global_step)
    return fetching


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

    def create_optimizer(self, model: Any = None) -> Any:
        """The library's, with a learning rate for each part of the model."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.config, self._family)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(groups, **options)
        return self.optimizer

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


def _newest(checkpoints: Checkpoints, context: RunContext) -> tuple[Path, Manifest] | None:
    """The checkpoint that all ranks go on from: rank 0 looks for it."""
    found = checkpoints.newest() if context.first else None
    if not distributed.is_initialized():
        return found
    name: list[Any] = [None if found is None else found[0].name]
    distributed.broadcast_object_list(name, src=0)
    if name[0] is None:
        return None
    return in_turn(context, lambda: checkpoints.called(name[0]))


def _model(config: TrainingConfig, base: Path, base_uri: str, *, shards: int) -> tuple[Any, torch.dtype]:
    """The model to train, and what it computes with."""
    compute = compute_dtype(config.dtype)
    if config.tune == "full":
        model = load_base(base, dtype=config.dtype, weights="float32", shards=shards)
        freeze(model, config, family_of(model.config))
        return model, compute
    quantization: Literal["none", "nf4"] = "nf4" if config.tune == "qlora" else "none"
    model = load_base(base, quantization=quantization, dtype=config.dtype, shards=shards)
    set_seed(config.seed)  # the adapters' first values
    adapted = attach_lora(
        model, r=config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout, base_uri=base_uri,
        targets=config.targets, use_rslora=config.use_rslora, use_dora=config.use_dora,
    )  # fmt: skip
    return adapted, compute


def training_arguments(
    config: TrainingConfig, context: RunContext, *, steps: int, accumulation: int, evaluating: bool,
    checkpointing: bool, evaluating_first: bool = False,
) -> TrainingArguments:  # fmt: skip
    where = device()
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(context.files)  # the library takes it from nowhere else
    arguments = TrainingArguments(
        output_dir=str(context.scratch / "trainer"),
        use_cpu=where.type == "cpu",
        **config.model_dump(include=_SAME_NAMES),
        max_steps=steps,
        gradient_accumulation_steps=accumulation,
        ignore_data_skip=True,  # the batches begin where the checkpoint ends
        neftune_noise_alpha=config.neftune_noise_alpha or None,
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,
        eval_strategy="steps" if evaluating else "no",
        eval_on_start=evaluating_first,
        save_strategy="steps",
        save_only_model=True,  # the library refuses to resume a model in shards; it saves nothing here anyway
        logging_strategy="steps",
        logging_steps=1,  # a loss per step is what a resumed run is held against
        logging_nan_inf_filter=False,
        report_to=list(context.trackers) or "none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
    )
    if arguments.n_gpu > 1:
        logging.get().warning("training uses one GPU", seen=arguments.n_gpu)
        arguments._n_gpu = 1  # or the library would copy the model to all of them, which 4 bits do not survive
    return arguments
