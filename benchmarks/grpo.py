"""Learning from rewards, ours beside TRL's GRPOTrainer used directly.

    python -m benchmarks.grpo --base examples/rehearsal --steps 6        (`make bench-grpo`)

First both learn from the same recorded replies and rewards for three updates (β 0.04, and the policy that drew them
kept): log-probabilities of every token, losses and gradients have to agree to 1e-4. Then each draws and learns by
itself, by the same settings on the same rows, in turns: replies a second, with all that belongs to it. The first round
warms up and is not counted.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as jobs.train has it; before torch is loaded

import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig, GRPOTrainer

from benchmarks.rows import ROOT, ROW_SETS, encoder_of, examples
from vcot import logging
from vcot.models.device import use_device
from vcot.models.loading import attach_lora, load_base
from vcot.records.rollout import Rollout
from vcot.rewards import DEFAULT_WEIGHTS, earned, total, weighed
from vcot.stage import Bar
from vcot.storage import Store
from vcot.tokens import prompt_text
from vcot.training.checkpoints import Checkpoints
from vcot.training.config import TrainingConfig
from vcot.training.engine import RunContext
from vcot.training.grpo import RewardedTrainer
from vcot.training.questions import Curriculum, Questions
from vcot.training.rounds import drawn_here
from vcot.training.setup import training_arguments


def spread(rollout: Rollout, *_: Any) -> float:
    """By chance, so that replies of a group earn different things where the base earns nothing."""
    return zlib.crc32(rollout.text.encode()) % 1000 / 1000


GENERATIONS, QUESTIONS, LIMIT, BETA, UPDATES = 4, 4, 48, 0.04, 3


class Recording:
    """Of a trainer: what tokens were worth, losses, gradients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.logprobs: list[torch.Tensor] = []
        self.losses: list[float] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        super().__init__(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model: Any, ids: Any, mask: Any, kept: int, *a: Any, **k: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(model, ids, mask, kept, *a, **k)  # type: ignore[misc]
        self.logprobs.append(found[0].detach() * mask[:, -kept:])
        return found

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        torch.manual_seed(0)  # what TRL shuffles the rows by next
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = super()._compute_loss(model, inputs)  # type: ignore[misc]
        self.losses.append(float(loss.detach()))
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        named = self.model.named_parameters()  # type: ignore[attr-defined]
        self.gradients.append({name: p.grad.detach().clone() for name, p in named if p.grad is not None})
        return super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]


class OursRecorded(Recording, RewardedTrainer):
    pass


class TheirsRecorded(Recording, GRPOTrainer):  # type: ignore[misc]  # the library publishes no types
    pass


class Bench:
    """Rows, and both trainers on them."""

    def __init__(self, base: Path, name: str, scratch: Path) -> None:
        self.base, self.scratch = base, scratch
        self.rows = ROW_SETS[name](32)
        self.encoder = encoder_of(base, self.rows)
        self.made = examples(self.rows, self.encoder, scratch / "rows.parquet")
        self.rewards = weighed((*DEFAULT_WEIGHTS, "spread=benchmarks.grpo:spread", "spread=0.2"))
        self.config = TrainingConfig(
            tune="lora", dtype="float32", lora_r=16, lora_alpha=32, lora_dropout=0.0, optim="adamw_torch_fused",
            learning_rate=1e-3, lr_scheduler_type="constant_with_warmup", warmup_steps=0, neftune_noise_alpha=0.0,
            weight_decay=0.0, max_grad_norm=1.0, gradient_checkpointing="off", save_steps=10**6, seed=1,
        )  # fmt: skip

    def arguments(self, steps: int, updates: int, folder: Path) -> GRPOConfig:
        context = RunContext(folder)
        made: Any = training_arguments(
            self.config, context, steps=steps, accumulation=1, evaluating=False, checkpointing=False, kind=GRPOConfig,
            per_device_train_batch_size=QUESTIONS * GENERATIONS, steps_per_generation=1, num_generations=GENERATIONS,
            max_completion_length=LIMIT, beta=BETA, num_iterations=updates, epsilon_high=0.28, disable_dropout=True,
            shuffle_dataset=False, gradient_checkpointing=False,
        )  # fmt: skip
        return made  # type: ignore[no-any-return]

    def ours(self, steps: int, updates: int, kind: type[RewardedTrainer] = RewardedTrainer) -> Any:
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        torch.manual_seed(1)
        model = attach_lora(load_base(self.base, dtype="float32"), r=16, alpha=32, dropout=0.0)
        questions = Questions(
            self.made, self.rows.samples, self.encoder, way="ground", file=folder / "samples", cache_bytes=1 << 30
        )
        return kind(
            model, self.arguments(steps, updates, folder), encoder=self.encoder, questions=questions,
            rewards=self.rewards, draw=partial(drawn_here, questions, self.encoder, 128),
            curriculum=Curriculum(questions, self.config.seed, by_success=False), questions_per_step=QUESTIONS,
            redraws=0, compute=torch.float32, start=0, keep=lambda *_: None, config=self.config,
            context=RunContext(folder), checkpoints=Checkpoints(Store(), str(folder / "kept"), folder / "local"),
            bar=Bar("train", steps, "steps", shown=False), epoch=float, batches_per_step=1,
        )  # fmt: skip

    def theirs(self, steps: int, updates: int, recorded: Any = None) -> Any:
        """recorded: a trainer of ours, whose first round of replies is learned from; None: it draws its own."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        torch.manual_seed(1)
        plain = AutoModelForImageTextToText.from_pretrained(str(self.base), dtype=torch.float32, local_files_only=True)
        model = attach_lora(plain, r=16, alpha=32, dropout=0.0)
        processor = AutoProcessor.from_pretrained(str(self.base), local_files_only=True)
        processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": self.rows.max_pixels}
        processor.tokenizer.padding_side = "left"
        groups = [] if recorded is None else recorded._groups
        order = [g.question for g in groups] or list(range(len(self.rows.samples)))
        samples = [self.rows.samples[number] for number in order]
        # Converted, or `datasets` would pack what was a JPEG as a JPEG once more.
        opened = [[Image.open(io.BytesIO(self.rows.data[one.uri])) for one in sample.images] for sample in samples]
        images = [[image.convert("RGB") for image in several] for several in opened]
        prompts = [[{"role": "user", "content": prompt_text(sample)}] for sample in samples]
        data = Dataset.from_dict({"prompt": prompts, "images": images, "number": order})
        rollouts = [one for group in groups for one in group.rollouts]

        def reward(name: str) -> Any:
            def given(number: list[int], completions: Any, **_: Any) -> list[float | None]:
                if groups:
                    return [one.rewards[name] for one in rollouts]
                said = [one[0]["content"] for one in completions]
                return [
                    earned(Rollout(text=text, limit=LIMIT), self.rows.samples[n], self.spec, self.rewards)[name]
                    for n, text in zip(number, said, strict=True)
                ]

            given.__name__ = name
            return given

        def replies(prompts: Any, trainer: Any) -> dict[str, Any]:
            return dict(recorded._recorded(prompts, trainer))

        arguments = self.arguments(steps, updates, folder)
        arguments.reward_weights = [one.weight for one in self.rewards]
        kind = TheirsRecorded if groups else GRPOTrainer
        return kind(
            model=model, args=arguments, processing_class=processor, train_dataset=data,
            reward_funcs=[reward(one.name) for one in self.rewards], **({"rollout_func": replies} if groups else {}),
        )  # fmt: skip

    @property
    def spec(self) -> Any:
        return self.encoder.contract.frame_spec


def apart(gradients: list[torch.Tensor]) -> float:
    """Length of all of them as one vector."""
    return float(torch.stack([one.norm() for one in gradients]).norm())


def agree(bench: Bench) -> bool:
    ours = bench.ours(UPDATES, UPDATES, OursRecorded)
    ours.train()
    theirs = bench.theirs(UPDATES, UPDATES, ours)
    theirs.train()
    tokens = sum(len(one.ids) for group in ours._groups for one in group.said)
    worst = {
        "log-probabilities": max(
            float((a - b).abs().max()) for a, b in zip(ours.logprobs, theirs.logprobs, strict=True)
        ),
        "losses": max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)),
        "gradients": max(
            apart([mine[name] - other[name] for name in other]) / max(apart(list(other.values())), 1e-9)
            for mine, other in zip(ours.gradients, theirs.gradients, strict=True)
        ),
    }
    earned_by = [total(one.rewards, bench.rewards) for group in ours._groups for one in group.rollouts]
    print(
        f"{bench.rows.name}: {UPDATES} updates from {len(earned_by)} replies ({tokens} tokens) that earned "
        f"{min(filter(None, earned_by), default=0):.2f} to {max(filter(None, earned_by), default=0):.2f}; largest "
        "difference between ours and TRL's: " + ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    )
    return all(value <= 1e-4 for value in worst.values())


def speed(bench: Bench, steps: int, rounds: int) -> None:
    for number in range(rounds + 1):
        told = []
        for who in ("ours", "theirs"):
            trainer = getattr(bench, who)(steps, 1)
            begun = time.monotonic()
            trainer.train()
            seconds = time.monotonic() - begun
            told.append((who, steps * QUESTIONS * GENERATIONS / seconds))
        if number:
            (_, ours), (_, theirs) = told
            print(f"{bench.rows.name}: {ours:.2f} replies/s, TRL {theirs:.2f}: {ours / theirs:.2f} times", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "examples" / "rehearsal", help="folder of a base model")
    parser.add_argument("--sets", nargs="+", choices=("scenes", "cells"), default=["scenes"])
    parser.add_argument("--steps", type=int, default=6, help="of each training that is timed")
    parser.add_argument("--rounds", type=int, default=2, help="that count, after one that does not")
    options = parser.parse_args()
    use_device("cpu")
    logging.configure()
    logging.quiet()
    good = True
    for name in options.sets:
        with tempfile.TemporaryDirectory(prefix="grpo-") as folder:
            bench = Bench(options.base, name, Path(folder))
            good &= agree(bench)
            if options.rounds:
                speed(bench, options.steps, options.rounds)
    if not good:
        raise SystemExit("ours and TRL's do not agree to 1e-4")


if __name__ == "__main__":
    main()
