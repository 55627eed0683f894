"""A training in rounds: the model answers questions, what came of it is judged, it learns from that, and so on.

rounds = Rounds.begin(config, options, …)           where it begins or goes on
result = rounds.train(arguments, make, …)           to its end
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState, TrainingArguments

from vcot.models.decoding import Decoding
from vcot.models.generation import Generated, generate
from vcot.stage import Bar, stop
from vcot.tokens import Encoder
from vcot.training.checkpoints import Checkpoints
from vcot.training.config import RolloutOptions, TrainingConfig
from vcot.training.engine import PROGRESS, RunContext, announce, load_trained, trained
from vcot.training.guards import Guards
from vcot.training.questions import Curriculum, Questions
from vcot.training.setup import TrainResult, fetching_for, model_to_train, newest


@dataclass
class Rounds:
    """checkpoint: that it goes on from; None: it begins. state: the library's, of that checkpoint. steps: in all."""

    config: TrainingConfig
    options: RolloutOptions
    questions: Questions
    checkpoints: Checkpoints
    context: RunContext
    checkpoint: Path | None
    state: TrainerState
    steps: int
    updates: int
    model: Any
    compute: torch.dtype
    curriculum: Curriculum

    @classmethod
    def begin(
        cls, config: TrainingConfig, options: RolloutOptions, *, base: Path, base_uri: str, adapter: Path | None,
        questions: Questions, checkpoints: Checkpoints, context: RunContext, updates: int = 1, reference: bool = False,
    ) -> Rounds:  # fmt: skip
        """
        Args:
            base: folder of the model without adapters. adapter: folder of one to go on with; None: new ones, or all
                weights. updates: steps from the same replies. reference: keep the adapter as it was, too.
        """
        rounds = math.ceil(config.num_train_epochs * len(questions) / options.questions_per_step)
        found = newest(checkpoints, context)
        state = TrainerState() if found is None else TrainerState.load_from_json(str(found[0] / PROGRESS))
        model, compute = model_to_train(config, base, base_uri, adapter=adapter, reference=reference)
        curriculum = Curriculum(questions, config.seed, by_success=options.curriculum == "by-success")
        checkpoints.whole = partial(announce, context)
        return cls(
            config, options, questions, checkpoints, context, None if found is None else found[0], state,
            config.max_steps or rounds * updates, updates, model, compute, curriculum,
        )  # fmt: skip

    @property
    def over(self) -> bool:
        return self.checkpoint is not None and self.state.global_step >= self.steps

    @property
    def questions_per_step(self) -> int:
        """Of this rank."""
        return self.options.questions_per_step // self.context.ranks

    def train(self, arguments: TrainingArguments, make: Callable[..., Any]) -> TrainResult:
        """To the end. make: of what trainers of such a kind share, by name, the trainer.

        Raises GateFailed: a guard stopped it. Interrupted: a stop was asked for.
        """
        context, config = self.context, self.config
        result = TrainResult(self.model, self.compute, [], sum(p.numel() for p in trained(self.model).values()))
        result.metadata = {
            "train_samples": len(self.questions), "validation_samples": 0, "ranks": context.ranks,
            "batches_per_step": arguments.gradient_accumulation_steps * context.ranks,
        }  # fmt: skip
        state = self.state
        result.from_step = state.global_step
        if self.over:
            assert self.checkpoint is not None
            load_trained(self.model, self.checkpoint)
        else:
            needs = self.curriculum.needs(self.steps, self.updates, self.options.questions_per_step)
            fetching = fetching_for(self.questions.examples, needs, state.global_step, context)
            with fetching as told, Bar("train", self.steps, "steps", shown=context.first) as bar:
                bar.advance(state.global_step)
                trainer = make(
                    self.model, arguments, questions=self.questions, curriculum=self.curriculum,
                    questions_per_step=self.questions_per_step, compute=self.compute, start=state.global_step,
                    config=config, context=context, checkpoints=self.checkpoints, bar=bar, fetching=told,
                    batches_per_step=result.metadata["batches_per_step"],
                    epoch=lambda step: step / self.steps * config.num_train_epochs,
                )  # fmt: skip
                trainer.add_callback(Guards(self.options))
                result.seconds = trainer.train_from(self.checkpoint)
            result.tokens = trainer.tokens - trainer.tokens_before
            state = trainer.state
            stop.raise_if_requested(f"step {state.global_step} of {self.steps} is done, the last checkpoint counts")
        result.history = state.log_history
        result.metadata |= {"last_step": state.global_step, "kept_step": state.global_step}
        self.model.eval()
        return result


def drawn_here(
    questions: Questions, encoder: Encoder, at_once: int, model: Any, numbers: Sequence[int], decoding: Decoding, *,
    whole: bool = True,
) -> list[list[Generated]]:  # fmt: skip
    """Replies by the model that learns, to so many questions together as give `at_once` of them (one at least).

    whole: of a model whose rationale is a turn of its own, with the answer after it; else the rationale alone.
    """
    size = max(at_once // decoding.samples, 1)
    parts = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    ends, between = encoder.eos_token_ids, encoder.between if whole else ()
    return [
        replies
        for part in parts
        for replies in generate(model, questions.prompts(part), decoding, eos_token_ids=ends, between=between)
    ]
