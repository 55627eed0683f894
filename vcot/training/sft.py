"""Supervised fine-tuning: the base learns the tokens of examples, as full weights or through adapters.

base + adapters → loop over batches, with checkpoints → the weights that were best on what was held out
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments, set_seed

from vcot import logging
from vcot.errors import InputError, SettingsError
from vcot.models.device import compute_dtype, device
from vcot.models.families import family_of
from vcot.models.loading import attach_lora, load_base
from vcot.records.example import Examples
from vcot.stage import Bar, stop
from vcot.tokens import Encoder
from vcot.training.checkpoints import Checkpoints, Manifest
from vcot.training.config import TrainingConfig
from vcot.training.data import Collator, EpochSampler, SFTDataset, loader, samples_of, validation_batches
from vcot.training.parameters import freeze
from vcot.training.ranks import Group
from vcot.training.trainer import PROGRESS, RunContext, SFTTrainer, is_over, load_trained, trained

_SAME_NAMES = {
    "seed", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "optim", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "eval_steps", "save_steps",
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
        ranks than the first, with those of the last step.

    Raises:
        InputError: there is nothing to learn from, or an image is not what tokenize saw.
        SettingsError: the checkpoints were made by another number of ranks.
        Interrupted: a stop was asked for; what was learned is saved.
        NotFinite: the loss or the gradient left the numbers.
    """
    dataset = SFTDataset(examples, encoder, cache_bytes=context.cache_bytes // max(context.workers, 1))
    collate, group = Collator(encoder.pad_token_id), context.group
    together = config.per_device_train_batch_size * group.size
    epochs = EpochSampler(examples.rows, batch_size=together, seed=config.seed, group_by_length=config.group_by_length)
    if not len(epochs):
        raise InputError("there is not one example of the train split; look at the report of tokenize")
    held_out = validation_batches(examples.rows, together)
    if not held_out:
        logging.get().warning("no validation split: no early stopping, and the last weights are kept")
    model, compute = _model(config, base, base_uri)
    found = _newest(checkpoints, group)
    result = TrainResult(model, compute, [], sum(p.numel() for p in trained(model).values()))
    result.metadata = {
        "train_samples": len(samples_of(examples.rows, "train")),
        "validation_samples": sum(map(len, held_out)),
        "ranks": group.size,
    }
    arguments = _arguments(config, context, evaluating=bool(held_out))
    steps, state = config.steps(len(epochs)), TrainerState()
    if found is not None:
        logging.get().info("going on from a checkpoint", step=found[1].step, of=steps)
        state = TrainerState.load_from_json(str(found[0] / PROGRESS))
    if found is not None and is_over(state, steps, config):
        load_trained(model, found[0])
    else:
        group.spread(trained(model).values())
        with Bar("train", steps, "steps", shown=group.first) as bar:
            bar.advance(state.global_step)
            trainer = SFTTrainer(
                model, arguments, config, context, epochs=epochs, checkpoints=checkpoints, compute=compute, bar=bar,
                train=loader(dataset, group.share(epochs), collate, context.workers),
                validation=loader(dataset, group.share(held_out), collate, context.workers) if held_out else None,
            )  # fmt: skip
            begun = time.monotonic()
            trainer.train(resume_from_checkpoint=None if found is None else str(found[0]))
            trainer.end()
        result.seconds, result.tokens = time.monotonic() - begun, trainer.tokens - trainer.tokens_before
        state = trainer.state
        stop.raise_if_requested(f"step {state.global_step} of {steps} is done, the last checkpoint counts")
    result.history = state.log_history
    if group.first:
        best, last = state.best_global_step, state.global_step
        if best is not None and best != last:
            if (folder := checkpoints.at(best)) is None:
                raise InputError(f"{checkpoints.uri}: the checkpoint of the best step, {best}, is gone")
            load_trained(model, folder)
        result.metadata |= {"last_step": last, "kept_step": last if best is None else best}
        model.eval()
    return result


def _newest(checkpoints: Checkpoints, group: Group) -> tuple[Path, Manifest] | None:
    """The checkpoint that all ranks go on from: rank 0 looks, and one rank of each pod fetches."""
    found = checkpoints.newest() if group.first else None
    name = group.of_first("" if found is None else found[0].name)
    if not name:
        return None
    for turn in (group.local == 0, True):
        if turn and found is None:
            found = checkpoints.called(name)
        group.wait()
    assert found is not None
    if found[1].ranks != group.size:
        raise SettingsError(
            f"{checkpoints.uri}: this training was begun by {found[1].ranks} ranks and cannot go on with {group.size}, "
            "whose steps would learn from other examples; start as many (--nproc-per-node, PET_NNODES), or use "
            "another run name"
        )
    return found


def _model(config: TrainingConfig, base: Path, base_uri: str) -> tuple[Any, torch.dtype]:
    """The model to train, and what it computes with."""
    compute = compute_dtype(config.dtype)
    set_seed(config.seed)  # the adapters' first values
    if config.tune == "full":
        model = load_base(base, dtype=config.dtype, weights="float32")
        freeze(model, config, family_of(model.config))
        return model, compute
    model = load_base(base, quantization="nf4" if config.tune == "qlora" else "none", dtype=config.dtype)
    set_seed(config.seed)
    adapted = attach_lora(
        model, r=config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout, base_uri=base_uri,
        targets=config.targets, use_rslora=config.use_rslora, use_dora=config.use_dora,
    )  # fmt: skip
    return adapted, compute


def _arguments(config: TrainingConfig, context: RunContext, *, evaluating: bool) -> TrainingArguments:
    where = device()
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(context.files)  # the library takes it from nowhere else
    checkpointing = config.gradient_checkpointing == "on" or (
        config.gradient_checkpointing == "auto" and where.type == "cuda"
    )
    arguments = TrainingArguments(
        output_dir=str(context.scratch / "trainer"),
        use_cpu=where.type == "cpu",
        **config.model_dump(include=_SAME_NAMES),
        max_steps=config.max_steps or -1,
        neftune_noise_alpha=config.neftune_noise_alpha or None,
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        eval_strategy="steps" if evaluating else "no",
        metric_for_best_model="eval_loss" if evaluating else None,
        greater_is_better=False if evaluating else None,
        save_strategy="steps",
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
