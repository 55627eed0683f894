"""Supervised fine-tuning: the base learns the tokens of examples, as full weights or through adapters.

base + adapters → loop over batches, with checkpoints → the weights that were best on what was held out
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from vcot import log
from vcot.errors import InputError, SettingsError
from vcot.models import attach_lora, compute_dtype, device, load_base
from vcot.records.example import Examples
from vcot.stage import Bar, stop
from vcot.tokens import Encoder
from vcot.training.checkpoints import Checkpoints, Manifest
from vcot.training.group import ALONE, Group
from vcot.training.lessons import Collate, Epochs, Lessons, held_out, loader, samples_of
from vcot.training.recipe import Recipe
from vcot.training.trainer import Tuner, Watch, is_over, load_trained, read_progress, trained


@dataclass(frozen=True)
class Place:
    """Where a training runs and what it may use; nothing of it shapes the weights.

    scratch: a folder of this process. trackers: names for `report_to`; files: a tracker's folder is `files`.
    saved: called after each checkpoint. cache_bytes: for pictures that were cut into patches. workers: processes
    that prepare batches; 0: this one does. grace: seconds between SIGTERM and SIGKILL. group: this process among
    the ranks of the training.
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


@dataclass
class Tuned:
    """What came out. history: the library's log of losses. tokens and seconds: since this process
    began, with all its ranks."""

    model: Any
    compute: torch.dtype
    history: list[dict[str, Any]]
    parameters: int
    tokens: int = 0
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def fine_tune(
    recipe: Recipe, *, base: Path, base_uri: str, encoder: Encoder, examples: Examples, checkpoints: Checkpoints,
    place: Place,
) -> Tuned:  # fmt: skip
    """Trains from the newest whole checkpoint, or from the base, to the end.

    Returns:
        The model with the weights of the best evaluation (of the last step where nothing is held out); in other
        ranks than the first, with those of the last step.

    Raises:
        InputError: there is nothing to learn from, or a picture is not what tokenize saw.
        SettingsError: the checkpoints were made by another number of ranks.
        Interrupted: a stop was asked for; what was learned is saved.
        NotFinite: the loss or the gradient left the numbers.
    """
    lessons = Lessons(examples, encoder, cache_bytes=place.cache_bytes // max(place.workers, 1))
    collate = Collate(encoder.pad_token_id)
    group = place.group
    together = recipe.batch_size * group.size
    epochs = Epochs(examples.rows, batch_size=together, seed=recipe.seed, similar_lengths=recipe.similar_lengths)
    if not len(epochs):
        raise InputError("there is not one example of the train split; look at the report of tokenize")
    kept_aside = held_out(examples.rows, together)
    if not kept_aside:
        log.get().warning("no validation split: no early stopping, and the last weights are kept")
    model, compute = _model(recipe, base, base_uri)
    found = _newest(checkpoints, group)
    tuned = Tuned(model, compute, [], sum(p.numel() for p in trained(model).values()))
    tuned.facts = {
        "train_samples": len(samples_of(examples.rows, "train")),
        "validation_samples": sum(map(len, kept_aside)),
        "ranks": group.size,
    }
    arguments = _arguments(recipe, place, evaluating=bool(kept_aside))
    steps = _steps(recipe, len(epochs))
    if found is not None:
        log.get().info("going on from a checkpoint", step=found[1].step, of=steps)
        progress = read_progress(found[0])
        if is_over(progress, steps, recipe.patience, recipe.min_delta):
            tuned.history = progress["log_history"]
            load_trained(model, found[0])
            best, last = progress["best_global_step"], progress["global_step"]
            return _with_best_weights(tuned, best, last, checkpoints) if group.first else tuned
    group.spread(trained(model).values())
    with Bar("train", steps, "steps", shown=group.first) as bar:
        watch = Watch(
            bar, checkpoints, patience=recipe.patience, min_delta=recipe.min_delta, grace=place.grace, group=group,
            seed=recipe.seed, saved=place.saved,
        )  # fmt: skip
        tuner = watch.tuner = Tuner(
            model,
            arguments,
            train=loader(lessons, group.share(epochs), collate, place.workers),
            epochs=epochs,
            validation=loader(lessons, group.share(kept_aside), collate, place.workers) if kept_aside else None,
            checkpoints=checkpoints,
            compute=compute,
            grace=place.grace,
            group=group,
            callbacks=[watch],
        )
        _loop(tuner, tuned, bar, found[0] if found else None)
    state = tuner.state
    stop.raise_if_requested(f"step {state.global_step} of {steps} is done, the last checkpoint counts")
    return _with_best_weights(tuned, state.best_global_step, state.global_step, checkpoints) if group.first else tuned


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
            "whose steps would learn from other examples; start as many (--nproc, PET_NNODES), or use another run name"
        )
    return found


def _loop(tuner: Tuner, tuned: Tuned, bar: Bar, start: Path | None) -> None:
    if start is not None:
        bar.advance(read_progress(start)["global_step"])
    begun = time.monotonic()
    tuner.train(resume_from_checkpoint=None if start is None else str(start))
    tuner.end()
    tuned.seconds, tuned.tokens = time.monotonic() - begun, tuner.tokens - tuner.tokens_before
    tuned.history = tuner.state.log_history


def _model(recipe: Recipe, base: Path, base_uri: str) -> tuple[Any, torch.dtype]:
    """The model to train, and what it computes with."""
    compute = compute_dtype(recipe.dtype)
    set_seed(recipe.seed)  # the adapters' first values
    if recipe.tune == "full":
        return load_base(base, dtype=recipe.dtype, weights="float32"), compute
    model = load_base(base, quantisation="nf4" if recipe.tune == "qlora" else "none", dtype=recipe.dtype)
    set_seed(recipe.seed)
    return attach_lora(model, r=recipe.r, alpha=recipe.alpha, dropout=recipe.dropout, base_uri=base_uri), compute


def _steps(recipe: Recipe, batches: int) -> int:
    """Optimiser steps, as the library counts them: the last one of an epoch may hold fewer batches."""
    per_epoch = max(-(-batches // recipe.accumulation), 1)
    return recipe.max_steps or -int(-recipe.epochs * per_epoch // 1)


def _arguments(recipe: Recipe, place: Place, *, evaluating: bool) -> TrainingArguments:
    where = device()
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(place.files)  # the library takes it from nowhere else
    checkpointing = recipe.gradient_checkpointing == "on" or (
        recipe.gradient_checkpointing == "auto" and where.type == "cuda"
    )
    arguments = TrainingArguments(
        output_dir=str(place.scratch / "trainer"),
        use_cpu=where.type == "cpu",
        seed=recipe.seed,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        optim=recipe.optimiser,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.schedule,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        neftune_noise_alpha=recipe.neftune or None,
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        eval_strategy="steps" if evaluating else "no",
        eval_steps=recipe.eval_every,
        metric_for_best_model="eval_loss" if evaluating else None,
        greater_is_better=False if evaluating else None,
        save_strategy="steps",
        save_steps=recipe.save_every,
        logging_strategy="steps",
        logging_steps=1,  # a loss per step is what a resumed run is held against
        logging_nan_inf_filter=False,
        report_to=list(place.trackers) or "none",
        disable_tqdm=True,
        log_level="error",
        remove_unused_columns=False,
    )
    if arguments.n_gpu > 1:
        log.get().warning("training uses one GPU", seen=arguments.n_gpu)
        arguments._n_gpu = 1  # or the library would copy the model to all of them, which 4 bits do not survive
    return arguments


def _with_best_weights(tuned: Tuned, best: int | None, last: int, checkpoints: Checkpoints) -> Tuned:
    if best is not None and best != last:
        folder = checkpoints.at(best)
        if folder is None:
            raise InputError(f"{checkpoints.uri}: the checkpoint of the best step, {best}, is gone")
        load_trained(tuned.model, folder)
    tuned.facts |= {"last_step": last, "kept_step": last if best is None else best}
    tuned.model.eval()
    return tuned
