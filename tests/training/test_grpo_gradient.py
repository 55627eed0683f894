"""The gradient of every GRPO loss, compared with a computation by hand: one full pass per reply, no code of TRL."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.toy import *  # noqa: F403  (fixtures)
from tests.training.toy import in_rounds
from vcot.models.generation import Generated
from vcot.models.loading import whole_model
from vcot.records.rollout import Rollout
from vcot.training.config import GRPOOptions
from vcot.training.engine import trained
from vcot.training.grpo import RewardedTrainer, learn_from_rewards
from vcot.training.rounds import drawn_here

TINY = 1e-4
"""Added to a standard deviation before it divides."""

LOSS_TYPES = ("dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo")
CASES: dict[str, dict[str, Any]] = {
    **{f"{name} with KL": {"loss_type": name, "beta": 0.1} for name in LOSS_TYPES},
    "advantages not scaled": {"scale_rewards": "none"},
    "advantages scaled by the batch": {"scale_rewards": "batch"},
    "rewards normalized one by one": {"multi_objective_aggregation": "normalize_then_sum"},
    "ratio of the sequence": {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1},
}


def score(salt: str, text: str) -> float:
    return int(hashlib.sha256((salt + text).encode()).hexdigest(), 16) % 1000 / 1000


def first(rollout: Rollout, sample: Any, spec: Any) -> float:
    return score("first", rollout.text)


def second(rollout: Rollout, sample: Any, spec: Any) -> float:
    return score("second", rollout.text)


REWARDS = (f"first={__name__}:first", f"second={__name__}:second", "second=0.5")


class Reply:
    """One row of a step: its tokens, and the log-probabilities under policy, sampler and reference model."""

    def __init__(self, trainer: Any, inputs: dict[str, Any], row: int, sampled: dict[Any, Tensor]) -> None:
        self.question = int(inputs["question"][row])
        self.ids = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
        self.advantage = float(inputs["advantages"][row])
        text = trainer.encoder.decode(self.ids.tolist())
        self.rewards = score("first", text), score("second", text)
        self.logprobs = self.read(trainer)
        self.sampled = sampled.setdefault((self.question, *self.ids.tolist()), self.logprobs.detach())
        self.reference = self.logprobs.detach()
        if trainer.beta:
            with trainer.model.disable_adapter(), torch.no_grad():
                self.reference = self.read(trainer)
        self.ratio = (self.logprobs - self.sampled).exp()

    def read(self, trainer: Any) -> Tensor:
        prompt = trainer.questions.prompts([self.question])
        ids = torch.cat([prompt["input_ids"], self.ids[None]], dim=1)
        batch = prompt | {
            "input_ids": ids, "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": torch.nn.functional.pad(prompt["mm_token_type_ids"], (0, len(self.ids))),
        }  # fmt: skip
        logits = whole_model(trainer.model)(**batch).logits[0, -len(self.ids) - 1 : -1]
        return (logits / trainer.temperature).log_softmax(-1).gather(1, self.ids[:, None])[:, 0]


def spread(values: list[float]) -> float:
    return statistics.stdev(values) + TINY


def advantages(replies: list[Reply], options: GRPOOptions) -> list[float]:
    groups = defaultdict(list)
    for reply in replies:
        groups[reply.question].append(reply)

    def centred(reply: Reply, value: Any, scale: str) -> float:
        group = [value(each) for each in groups[reply.question]]
        every = [value(each) for each in replies]
        divisor = {"group": spread(group), "batch": spread(every), "none": 1.0}[scale]
        return (value(reply) - statistics.mean(group)) / divisor

    if options.multi_objective_aggregation == "sum_then_normalize":
        return [
            centred(reply, lambda each: each.rewards[0] + 0.5 * each.rewards[1], options.scale_rewards)
            for reply in replies
        ]
    sums = [
        centred(reply, lambda each: each.rewards[0], "group")
        + 0.5 * centred(reply, lambda each: each.rewards[1], "group")
        for reply in replies
    ]
    return [(value - statistics.mean(sums)) / spread(sums) for value in sums]


def token_losses(reply: Reply, options: GRPOOptions) -> Tensor:
    """GRPO's and DAPO's clipped surrogate, CISPO's clipped weight, SAPO's gate; plus beta times the KL divergence."""
    ratio, advantage = reply.ratio, reply.advantage
    if options.importance_sampling_level == "sequence":
        ratio = (reply.logprobs - reply.sampled).mean().exp().expand(len(reply.ids))
    if options.loss_type == "cispo":
        loss = -ratio.clamp(max=1 + options.epsilon_high).detach() * advantage * reply.logprobs
    elif options.loss_type == "sapo":
        temperature = 1.0 if advantage > 0 else 1.05
        loss = -4 / temperature * torch.sigmoid(temperature * (ratio - 1)) * advantage
    else:
        bounded = ratio.clamp(max=1 + options.epsilon_high) if advantage > 0 else ratio.clamp(min=1 - options.epsilon)
        loss = -bounded * advantage
    distance = reply.reference - reply.logprobs
    return loss + options.beta * ratio * (distance.exp() - distance - 1)


def loss_by_hand(batches: list[list[Reply]], options: GRPOOptions) -> Tensor:
    """batches: what goes through the model at once."""
    replies = [reply for batch in batches for reply in batch]
    sums = {id(reply): token_losses(reply, options).sum() for reply in replies}
    total = torch.stack(list(sums.values())).sum()
    if options.loss_type in ("dapo", "cispo"):
        return total / sum(len(reply.ids) for reply in replies)
    if options.loss_type == "dr_grpo":
        return total / (len(replies) * options.max_completion_length)
    if options.loss_type == "bnpo":
        parts = [
            torch.stack([sums[id(reply)] for reply in batch]).sum() / sum(len(reply.ids) for reply in batch)
            for batch in batches
        ]
        return torch.stack(parts).mean()
    return torch.stack([sums[id(reply)] / len(reply.ids) for reply in replies]).mean()


@pytest.mark.parametrize("name", CASES)
def test_grpo_gradient_equals_the_hand_computation(
    name: str, toy_base: Path, toy_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two updates from the same replies: with ratios of 1, and with ratios beyond both clip ranges."""
    options = GRPOOptions(
        num_generations=3, questions_per_step=2, max_completion_length=9, redraws=0, rewards=REWARDS, num_iterations=2,
        temperature=2.0, epsilon=0.05, epsilon_high=0.08, max_malformed=1.0, max_cut_off=1.0, **CASES[name],
    )  # fmt: skip
    batches: list[dict[str, Any]] = []
    sampled: dict[Any, Tensor] = {}
    steps: list[tuple[float, float, float, bool]] = []
    compute, norm = RewardedTrainer._compute_loss, RewardedTrainer._get_grad_norm

    def record(trainer: Any, model: Any, inputs: dict[str, Any]) -> Tensor:
        batches.append(dict(inputs))
        return compute(trainer, model, inputs)

    def compare(trainer: Any, model: Any, grad_norm: Any = None) -> float:
        parameters = trained(trainer.model)
        theirs = [parameter.grad.detach().clone() for parameter in parameters.values()]
        rows = [
            [Reply(trainer, inputs, row, sampled) for row in range(len(inputs["advantages"]))] for inputs in batches
        ]
        replies = [reply for batch in rows for reply in batch]
        batches.clear()
        assert len({len(reply.ids) for reply in replies}) == 3
        expected = advantages(replies, options)
        ours = torch.autograd.grad(loss_by_hand(rows, options), list(parameters.values()), allow_unused=True)
        ours = [torch.zeros_like(a) if b is None else b for a, b in zip(theirs, ours, strict=True)]
        length = math.sqrt(sum(float(each.square().sum()) for each in ours))
        apart = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(theirs, ours, strict=True)))
        off = max(abs(reply.advantage - value) for reply, value in zip(replies, expected, strict=True))
        high = any(reply.ratio.max() > 1 + options.epsilon_high for reply in replies if reply.advantage > 0)
        low = any(reply.ratio.min() < 1 - options.epsilon for reply in replies if reply.advantage < 0)
        steps.append((apart / length, off, length, high and low))
        return norm(trainer, model, grad_norm)

    def draw_of_other_lengths(*arguments: Any, **more: Any) -> list[list[Generated]]:
        """Cut after 4, 6 and 8 tokens: of replies of one length, most averages are the same."""
        return [
            [Generated(reply.ids[: 4 + 2 * n], reply.logprobs[: 4 + 2 * n], False) for n, reply in enumerate(group)]
            for group in drawn_here(*arguments, **more)
        ]

    monkeypatch.setattr("vcot.training.grpo.drawn_here", draw_of_other_lengths)
    monkeypatch.setattr(RewardedTrainer, "_compute_loss", record)
    monkeypatch.setattr(RewardedTrainer, "_get_grad_norm", compare)
    in_rounds(
        learn_from_rewards, options, toy_base, toy_encoder, tmp_path, batch_tokens=200, max_steps=2,
        learning_rate=2e-2, warmup_steps=0, max_grad_norm=0, optim="adamw_torch_fused", save_steps=50,
    )  # fmt: skip
    assert len(steps) == 2
    for apart, off, length, _ in steps:
        assert length > 1e-3
        assert off < 1e-5
        assert apart < 1e-4
    assert not steps[0][3]
    assert steps[1][3]
