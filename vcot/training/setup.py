"""What a training of any method begins with: the checkpoint to go on from, its model, the library's arguments; and what
comes out of it."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed
from transformers import TrainingArguments, set_seed

from vcot import logging
from vcot.models.branches import REFERENCE
from vcot.models.device import compute_dtype, device
from vcot.models.families import family_of
from vcot.models.loading import attach_lora, load_adapter, load_base
from vcot.records.cache import Fetching
from vcot.records.example import Examples
from vcot.training.checkpoints import Checkpoints, Manifest
from vcot.training.config import TrainingConfig
from vcot.training.engine import RunContext, in_turn
from vcot.training.parameters import freeze


@dataclass
class TrainResult:
    """What came out. history: the library's log of losses. from_step: that this process went on from. tokens and
    seconds: since then, with all its ranks."""

    model: Any
    compute: torch.dtype
    history: list[dict[str, Any]]
    parameters: int
    from_step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    metadata: dict[str, Any] = field(default_factory=dict)


def newest(checkpoints: Checkpoints, context: RunContext) -> tuple[Path, Manifest] | None:
    """The checkpoint that all ranks go on from: rank 0 looks for it."""
    found = checkpoints.newest() if context.first else None
    if not distributed.is_initialized():
        return found
    name: list[Any] = [None if found is None else found[0].name]
    distributed.broadcast_object_list(name, src=0)
    if name[0] is None:
        return None
    return in_turn(context, lambda: checkpoints.called(name[0]))


def fetching_for(
    examples: Examples, needs: Sequence[Collection[int]] | None, step: int, context: RunContext
) -> AbstractContextManager[Fetching | None]:
    """What brings this pod its examples from storage, where they are there, in one of its ranks.

    needs: of each step, numbers of the files that it reads; None: nothing will be read.
    """
    if examples.cache is None or not context.first_of_pod or needs is None:
        return nullcontext()
    fetching = Fetching(examples.cache, needs)
    fetching.at(step)
    return fetching


def model_to_train(
    config: TrainingConfig, base: Path, base_uri: str, *, shards: int = 1, adapter: Path | None = None,
    reference: bool = False,
) -> tuple[Any, torch.dtype]:  # fmt: skip
    """The model to train, and what it computes with.

    Args:
        base_uri: how an adapter names its base.
        adapter: folder of one to go on with; None: new ones, or all weights. reference: keep that adapter as it is
            beside the one that is trained (`vcot.models.branches.as_it_was`).
    """
    compute = compute_dtype(config.dtype)
    if config.tune == "full":
        model = load_base(base, dtype=config.dtype, weights="float32", shards=shards)
        freeze(model, config, family_of(model.config))
        return model, compute
    quantization: Literal["none", "nf4"] = "nf4" if config.tune == "qlora" else "none"
    model = load_base(base, quantization=quantization, dtype=config.dtype, shards=shards)
    if adapter is not None:
        model = load_adapter(model, adapter, trainable=True)
        if reference:
            model.load_adapter(str(adapter), adapter_name=REFERENCE, is_trainable=False, local_files_only=True)
        return model, compute
    set_seed(config.seed)  # the adapters' first values
    adapted = attach_lora(
        model, r=config.lora_r, alpha=config.lora_alpha, dropout=config.lora_dropout, base_uri=base_uri,
        targets=config.targets, use_rslora=config.use_rslora, use_dora=config.use_dora,
    )  # fmt: skip
    return adapted, compute


_SAME_NAMES = {
    "seed", "optim", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm",
    "eval_steps", "save_steps",
}  # fmt: skip
"""Fields of TrainingConfig that are the library's arguments as they are."""


def training_arguments(
    config: TrainingConfig, context: RunContext, *, steps: int, accumulation: int, evaluating: bool,
    checkpointing: bool, evaluating_first: bool = False, kind: type[TrainingArguments] = TrainingArguments, **more: Any,
) -> TrainingArguments:  # fmt: skip
    """The library's, and of a `kind` that has `more`."""
    where = device()
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(context.files)  # the library takes it from nowhere else
    arguments = kind(
        output_dir=str(context.scratch / "trainer"),
        use_cpu=where.type == "cpu",
        **config.model_dump(include=_SAME_NAMES),
        max_steps=steps,
        gradient_accumulation_steps=accumulation,
        ignore_data_skip=True,  # the batches begin where the checkpoint ends
        bf16=False,  # autocast is entered where the loss is computed, and not at all for float32; TRL's default is True
        neftune_noise_alpha=config.neftune_noise_alpha or None,
        activation_checkpointing=checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
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
        **{"ddp_find_unused_parameters": False} | more,
    )
    if arguments.n_gpu > 1:
        logging.get().warning("training uses one GPU", seen=arguments.n_gpu)
        arguments._n_gpu = 1  # or the library would copy the model to all of them, which 4 bits do not survive
    return arguments
