"""Sampling rationales in proportion to how well they explain the answer: a GFlowNet (LaCoT, arXiv 2510.23925).

    questions → rationales (drawn, drawn before, annotated) → rewards of all their prefixes → balance of the prefixes

What is wanted is q(Z | X) ∝ R(Z) = (P(Z | X) · max(P(Y | X, Z), floor) · max(boxes(Z)^w, floor))^(1/τ), with P that of
the model as it was when the training began, the same weights with other adapters or none, and Y the true answer. Every
prefix of a rationale could have been its end, with a reward of its own; `vcot.training.subtb` says what they have in
common.

One pass over a question serves all its rationales, and one over a rationale all its prefixes (vcot.models.branches).
The likelihood of a prefix and of its end are exact at every token; the answer's is worked out at every
`--reward-stride`th, and lies on a line between.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from vcot.errors import InputError
from vcot.grounding import parse
from vcot.models.branches import Branch, Scored, as_it_was, narrow, score_branches
from vcot.models.decoding import Decoding
from vcot.models.loss import needs_vision
from vcot.records.rollout import Rollout
from vcot.rewards.boxes import box_reward
from vcot.tokens import Encoder
from vcot.training.checkpoints import Checkpoints
from vcot.training.config import GFNOptions, TrainingConfig
from vcot.training.engine import Checkpointed, RunContext, of_all
from vcot.training.questions import Curriculum, Questions
from vcot.training.replay import Replay, Trajectory
from vcot.training.rounds import Rounds, drawn_here
from vcot.training.setup import TrainResult, training_arguments
from vcot.training.start import StartFacts, check_start
from vcot.training.subtb import balance_across, balance_loss, falling, interpolated, residuals, stops

Keep = Callable[[int, Sequence[tuple[int, Rollout]], Sequence[Mapping[str, Any]]], None]
"""(step, rationales of all ranks, each with the number of its question; what was logged so far)."""

LEAST = -1e4
"""Log-rewards are not below it: a rationale that the model finds impossible is worth nothing, not minus infinity."""
TOO_SHORT = -99.0
REFUSED_SHARE = 0.1
"""Of the questions, whose answers may be too long to be explained, before the training stops."""


@dataclass(frozen=True)
class Asked:
    """Of a question: ids of its true answer, with their end, cut off at the limit; whether they were; and ids of one of
    its annotated rationales, without an end."""

    answer: tuple[int, ...]
    too_long: bool
    reference: tuple[int, ...] | None


class GFNTrainer(Checkpointed, Trainer):  # type: ignore[misc]  # the library publishes no types
    """The library's loop; a step draws, judges and learns from rationales within its one `training_step`.

    Args:
        questions_per_step: of this rank. compute: the dtype of the forward pass.
        keep: told, in rank 0, of all rationales that were drawn in a step.
    """

    def __init__(
        self, model: Any, arguments: TrainingArguments, *, encoder: Encoder, questions: Questions, options: GFNOptions,
        curriculum: Curriculum, questions_per_step: int, compute: torch.dtype, start: int, keep: Keep, **shared: Any,
    ) -> None:  # fmt: skip
        from datasets import Dataset

        self.encoder, self.questions, self.options, self.curriculum = encoder, questions, options, curriculum
        self.questions_per_step, self.compute, self.start, self.keep = questions_per_step, compute, start, keep
        self.replay = Replay(options.replay_size)
        self.asked = self.too_long = 0  # questions of this rank, and of these those whose answer is longer than a reply
        self._limit = options.max_completion_length
        self.spec, self.end = encoder.contract.frame_spec, encoder.eos_token_ids[0]
        self._seen: dict[str, float] = {}
        # Of each rationale of a step, by how many nats it is drawn too seldom, but for a constant of its question.
        self._too_seldom: dict[tuple[int, tuple[int, ...]], float] = {}
        super().__init__(model=model, args=arguments, train_dataset=Dataset.from_dict({"step": [0]}), **shared)
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Nothing but so many steps: the questions of each are chosen when it begins."""
        steps: Any = [{}] * (self.args.max_steps - self.start)
        return DataLoader(steps, batch_size=None)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gradients of one step, from all its rationales; the mean of their losses."""
        step = self.state.global_step
        numbers = self.curriculum.of_rank(self.context, step, self.questions_per_step)
        asked = {number: self._asked(number, step) for number in numbers}
        self.model.eval()  # no dropout: rewards, draws and what is learned are of one model
        drawn, replayed, texts = self._rationales(numbers, step)
        references = [
            Trajectory(number, one.reference, torch.zeros(0))
            for number, one in asked.items()
            if one.reference is not None
        ]
        judged = self._judged([*drawn, *references], asked)
        drawn, references = judged[: len(drawn)], judged[len(drawn) :]
        together = [*drawn, *replayed, *(references if self.options.learn_reference else [])]
        weights = self._weights(together, references, asked, step)
        loss = self._learn(model, together, weights, step)
        self._tell(step, drawn, texts, replayed)
        return loss

    # --- rationales ----------------------------------------------------------------------------------

    def _asked(self, number: int, step: int) -> Asked:
        sample = self.questions.sample(number)
        answer = self.encoder.said(f"Answer: {sample.answers[0]}", ended=True, rationale=False)
        reference, limit = self.questions.reference(number, f"{self.config.seed}/{step}/{number}"), self._limit
        too_long = len(answer) > limit
        self.asked += 1
        self.too_long += too_long
        if self.too_long > max(REFUSED_SHARE * self.asked, self.questions_per_step):
            raise InputError(
                f"the answer of {sample.id} has {len(answer)} tokens, --max-completion-length allows {limit}; so it "
                f"was for {self.too_long} of {self.asked} questions"
            )
        if reference is not None and len(reference) > limit:
            reference = None
        return Asked(tuple(answer[:limit]), too_long, reference)

    def _rationales(
        self, numbers: Sequence[int], step: int
    ) -> tuple[list[Trajectory], list[Trajectory], list[Rollout]]:
        """Those that are drawn now, those that were drawn before, and what is told of the former."""
        options, chance = self.options, random.Random(f"{self.config.seed}/{step}")
        temperature = 1.0
        if chance.random() < options.explore_share:
            temperature = chance.uniform(options.explore_min_temperature, options.explore_max_temperature)
        replayed: list[Trajectory] = []
        anew = []
        for number in numbers:
            seed = f"{self.config.seed}/{step}/{number}/again"
            again = random.Random(seed).random() < options.replay_share
            found = self.replay.drawn(number, options.num_generations, seed) if again else []
            replayed += found
            if not found:
                anew.append(number)
        limit = self._limit
        decoding = Decoding(limit, temperature, options.num_generations, seed=self.config.seed * 1_000_003 + step)
        replies = drawn_here(
            self.questions, self.encoder, options.generation_batch_size, self.model, anew, decoding, whole=False
        )
        drawn, told = [], []
        for number, several in zip(anew, replies, strict=True):
            for draw, one in enumerate(several):
                ids = tuple(one.ids[:-1] if one.ended else one.ids)
                drawn.append(Trajectory(number, ids, torch.zeros(0)))
                told.append(
                    Rollout(
                        step=step, sample=self.questions.sample(number).id, draw=draw, ended=one.ended, limit=limit,
                        text=self.encoder.decode(ids), tokens=len(one.ids),
                    )
                )  # fmt: skip
        return drawn, replayed, told

    # --- rewards -------------------------------------------------------------------------------------

    def _judged(self, trajectories: Sequence[Trajectory], asked: Mapping[int, Asked]) -> list[Trajectory]:
        """With their rewards, by the model as it was; what was said several times is judged once."""
        found = {one.key: one for one in trajectories}
        for piece in self._pieces(list(found.values())):
            with torch.no_grad(), as_it_was(self.model):
                scored = self._scored(self.model, piece, asked)
            for row, one in enumerate(piece):
                found[one.key] = self._reward(one, scored, row)
        return [found[one.key] for one in trajectories]

    def _reward(self, one: Trajectory, scored: Scored, row: int) -> Trajectory:
        length = len(one.ids)
        at = stops(length, self.options.reward_stride)
        answers = scored.answers[row]
        said = torch.nn.functional.pad(scored.tokens[row, :length].double().cumsum(0), (1, 0)).cpu()
        ended = scored.ends[row, : length + 1].double().cpu()
        boxes = [self._pointing(one, stop) for stop in at]
        # What is worked out at the stops alone: the answer's likelihood and how well is pointed.
        least = _log(self.options.reward_floor)
        slow = [
            max(answer, least) + (0.0 if pointing is None else max(self.options.box_weight * _log(pointing), least))
            for answer, pointing in zip(answers, boxes, strict=True)
        ]
        reward = said + ended + torch.tensor(interpolated(slow, at), dtype=torch.float64)
        reward[: min(self.options.min_rationale_length, length)] += TOO_SHORT
        if length < self.options.min_rationale_length:
            reward[length] += TOO_SHORT
        reward = reward.nan_to_num(nan=LEAST, neginf=LEAST).clamp(min=LEAST).float()
        end = 0.0 if length >= self._limit else float(ended[-1])  # as in _ends
        return replace(
            one, log_reward=reward, log_likely=float(said[-1]) + end, answer=math.exp(min(answers[-1], 0.0)),
            boxes=boxes[-1],
        )  # fmt: skip

    def _pointing(self, one: Trajectory, length: int) -> float | None:
        """Soft F1 of the boxes in the first so many tokens."""
        if not self.options.box_weight:
            return None
        prefix = Rollout(text=self.encoder.decode(one.ids[:length]))
        return box_reward(prefix, self.questions.sample(one.question), self.spec)

    def _weights(
        self, together: Sequence[Trajectory], references: Sequence[Trajectory], asked: Mapping[int, Asked], step: int
    ) -> list[float]:
        """1 of each rationale that is learned from; 0 of one whose answer was cut off, or that is dropped because it is
        worth too little (equation 6 of LaCoT)."""
        options = self.options
        tolerance = falling(options.tolerance_start, options.tolerance_end, step, options.tolerance_steps)
        least = {one.question: tolerance * one.worth / (len(one.ids) + 1) for one in references}
        if not options.tolerance_start:
            least = {}
        return [
            float(
                not asked[one.question].too_long
                and one.worth / (len(one.ids) + 1) >= least.get(one.question, -math.inf)
            )
            for one in together
        ]

    # --- learning ------------------------------------------------------------------------------------

    def _learn(self, model: Any, together: Sequence[Trajectory], weights: Sequence[float], step: int) -> Tensor:
        options = self.options
        temperature = falling(
            options.reward_temperature_start, options.reward_temperature_end, step, options.reward_temperature_steps
        )
        (total,) = of_all([sum(weights)], self.args.device)
        times = Counter(one.key for one in together)  # what was said several times is computed once
        weight_of = dict.fromkeys(times, 0.0)
        for one, own in zip(together, weights, strict=True):
            weight_of[one.key] += own
        pieces = self._pieces({one.key: one for one in together}.values())
        summed = torch.zeros((), device=self.args.device)
        seen = {"kl": 0.0, "entropy": 0.0, "tokens": 0.0, "log_z": 0.0}
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                scored = self._scored(model, piece, None)
                lengths = torch.tensor([len(one.ids) for one in piece], device=summed.device)
                ends = self._ends(scored, lengths)
                reward = _padded([one.log_reward for one in piece], scored.ends) / temperature
                along = residuals(reward, scored.tokens, ends)
                weight = torch.tensor([weight_of[one.key] for one in piece], device=summed.device)
                each = balance_loss(along, lengths, options.subtb_decay)
                if options.across_weight:
                    asked = torch.tensor([one.question for one in piece], device=summed.device)
                    whole = along[torch.arange(len(piece), device=summed.device), lengths]
                    each = each + options.across_weight * balance_across(whole, asked, weight)
                loss = (each * weight).sum() / max(total, 1.0)
                # The engine averages gradients over ranks; what is wanted is their sum.
                self.accelerator.backward(loss * self.context.ranks)
            summed += loss.detach()
            counts = torch.tensor([times[one.key] for one in piece], device=summed.device)
            self._measure(seen, piece, counts, scored, ends.detach(), along.detach(), lengths)
        rationales, *values = of_all([len(together), *seen.values()], self.args.device)
        kl, entropy, tokens, log_z = values
        self._seen |= {
            "kl": kl / tokens, "entropy": entropy / tokens, "log_z": log_z / rationales,
            "reward_temperature": temperature, "dropped": 1 - total / rationales,
        }  # fmt: skip
        self.step_examples = list(dict.fromkeys(self.questions.sample(one.question).id for one in together))
        self.step_tokens = sum(len(one.ids) + 1 for one in together)
        return summed * self.context.ranks

    def _ends(self, scored: Scored, lengths: Tensor) -> Tensor:
        """log q(end | prefix); where a rationale has reached its limit it can only end."""
        full = torch.arange(scored.ends.shape[1], device=lengths.device) >= self._limit
        return scored.ends.masked_fill(full[None, :], 0.0)

    def _measure(
        self, seen: dict[str, float], piece: Sequence[Trajectory], counts: Tensor, scored: Scored, ends: Tensor,
        along: Tensor, lengths: Tensor,
    ) -> None:  # fmt: skip
        """Sums over the rationales, each as often as it was said: how far the model has moved on them, entropy, their
        estimates of log Σ R."""
        rows = torch.arange(len(piece), device=lengths.device)
        likely = scored.tokens.detach().sum(dim=1) + ends[rows, lengths]
        before = torch.tensor([one.log_likely for one in piece], device=lengths.device)
        there = torch.arange(scored.entropies.shape[1], device=lengths.device) <= lengths[:, None]
        seen["kl"] += float(((likely - before) * counts).sum())
        seen["entropy"] += float((scored.entropies.where(there, 0).sum(dim=1) * counts).sum())
        seen["tokens"] += float(((lengths + 1) * counts).sum())
        seen["log_z"] += float((along[rows, lengths] * counts).sum())
        self._too_seldom |= {one.key: by for one, by in zip(piece, along[rows, lengths].tolist(), strict=True)}

    def _pieces(self, trajectories: Iterable[Trajectory]) -> list[list[Trajectory]]:
        """As many together as --batch-tokens has room for, one at least; those of a question are parted only where
        there is no room for them alone."""
        pieces: list[list[Trajectory]] = [[]]
        for _, several in groupby(sorted(trajectories, key=_question), key=_question):
            group = list(several)
            if not self._has_room([*pieces[-1], *group]):
                pieces.append([])
            for one in group:
                if not self._has_room([*pieces[-1], one]):
                    pieces.append([])
                pieces[-1].append(one)
        return [piece for piece in pieces if piece]

    def _has_room(self, piece: Sequence[Trajectory]) -> bool:
        """For these together, each prompt counted once."""
        prompts, longest = {one.question for one in piece}, max(len(one.ids) for one in piece) + 1
        return len(piece) * longest + len(prompts) * self.questions.longest <= self.config.batch_tokens

    def _scored(self, model: Any, piece: Sequence[Trajectory], asked: Mapping[int, Asked] | None) -> Scored:
        """asked: where their answers are to be scored, too."""
        numbers = list(dict.fromkeys(one.question for one in piece))
        rows = {number: row for row, number in enumerate(numbers)}
        branches = [
            Branch(rows[one.question], one.ids)
            if asked is None
            else Branch(
                rows[one.question], one.ids, stops(len(one.ids), self.options.reward_stride), asked[one.question].answer
            )
            for one in piece
        ]
        batch = {name: value.to(self.args.device) for name, value in self.questions.prompts(numbers).items()}
        run = partial(
            score_branches, branches=branches, end=self.end, between=self.encoder.between,
            branch_tokens=self.config.batch_tokens,
        )  # fmt: skip
        with narrow(self.compute, self.args.device):
            found = model(**batch, want=run)
        assert isinstance(found, Scored)
        return found

    # --- what is told --------------------------------------------------------------------------------

    def _tell(self, step: int, drawn: Sequence[Trajectory], texts: Sequence[Rollout], replayed: Sequence[Any]) -> None:
        """To guards, log, page, curriculum and replay; of all ranks, or one would do what is true of its few alone."""
        seldom: dict[int, list[float]] = {}
        for (number, _), by in self._too_seldom.items():
            seldom.setdefault(number, []).append(by)
        means = {number: sum(each) / len(each) for number, each in seldom.items()}
        own = [
            (one.question, told.model_copy(update={
                "rewards": {"answer": one.answer, "boxes": one.boxes}, "reward": one.worth,
                "advantage": self._too_seldom[one.key] - means[one.question],
            }))
            for one, told in zip(drawn, texts, strict=True)
        ]  # fmt: skip
        self._too_seldom = {}
        everyones = gather_object(own)
        if self.options.replay_share and self.args.max_steps * self.options.questions_per_step > len(self.questions):
            self.replay.add(gather_object(list(drawn)))  # some question is asked again
        again = sum(gather_object([len(replayed)]))
        self._seen["replayed"] = again / max(again + len(everyones), 1)
        self.curriculum.earned(everyones)
        if everyones:
            self._seen |= measures(everyones, self.questions, self.spec)
        if self.context.first:
            self.keep(step, everyones, self.state.log_history)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs, self._seen = logs | self._seen, {}
        super().log(logs, start_time)

    @property
    def state_of_method(self) -> Any:
        told = {"asked": self.asked, "too_long": self.too_long}
        return told | {"curriculum": self.curriculum.state, "replay": self.replay.state}

    def load_state_of_method(self, state: Any) -> None:
        if state is not None:
            self.curriculum.state, self.replay.state = state["curriculum"], state["replay"]
            self.asked, self.too_long = state["asked"], state["too_long"]


def _log(value: float) -> float:
    return math.log(value) if value else -math.inf


def _question(one: Trajectory) -> int:
    return one.question


def _padded(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """[rows, L + 1], with zeros behind each."""
    made = torch.zeros_like(like)
    for row, values in enumerate(rows):
        made[row, : len(values)] = values.to(made)
    return made


def measures(everyones: Sequence[tuple[int, Rollout]], questions: Questions, spec: Any) -> dict[str, float]:
    """What guards and curves look at, of all rationales that were drawn in a step.

    distinct: how many of a question's are others than those before them, as a share.
    """
    rollouts = [one for _, one in everyones]
    parsed = [parse(one.text, questions.sample(number).frame(spec)) for number, one in everyones]
    texts: dict[int, set[str]] = {}
    for number, one in everyones:
        texts.setdefault(number, set()).add(" ".join(one.text.lower().split()))
    count = len(rollouts)
    found = {
        "reward": sum(one.reward or 0.0 for one in rollouts) / count,
        "boxes": sum(len(one.trace.boxes) for one in parsed) / count,
        "malformed": sum(not one.well_formed for one in parsed) / count,
        "cut_off": sum(not one.ended for one in rollouts) / count,
        "completions/mean_length": sum(one.tokens for one in rollouts) / count,
        "distinct": sum(map(len, texts.values())) / count,
        "impossible": sum((one.reward or 0.0) <= LEAST for one in rollouts) / count,
    }
    for name in rollouts[0].rewards:
        values = [value for one in rollouts if (value := one.rewards[name]) is not None]
        if values:
            found[f"rewards/{name}/mean"] = sum(values) / len(values)
    return found


# --- a whole training --------------------------------------------------------------------------------------


def learn_to_sample(
    config: TrainingConfig, options: GFNOptions, *, base: Path, base_uri: str, adapter: Path | None, encoder: Encoder,
    questions: Questions, checkpoints: Checkpoints, context: RunContext, keep: Keep,
) -> TrainResult:  # fmt: skip
    """Trains from the newest whole checkpoint, or from the model it is given, to the end.

    Args: as of `vcot.training.grpo.learn_from_rewards`.

    Raises:
        SettingsError: settings that do not go together with this model, or it has no rationales of its own. GateFailed:
            a guard stopped it. Interrupted: a stop was asked for.
    """
    facts = StartFacts(ranks=context.ranks, roles=encoder.contract.roles, longest=questions.longest)
    check_start(config, options, facts)
    rounds = Rounds.begin(
        config, options, base=base, base_uri=base_uri, adapter=adapter, questions=questions, checkpoints=checkpoints,
        context=context, reference=True,
    )  # fmt: skip
    context_length = rounds.model.config.get_text_config().max_position_embeddings
    check_start(config, options, replace(facts, context_length=context_length))
    arguments = training_arguments(
        config, context, steps=rounds.steps, accumulation=1, evaluating=False, checkpointing=False,
        ddp_find_unused_parameters=needs_vision(rounds.model),
    )  # fmt: skip
    return rounds.train(arguments, partial(GFNTrainer, encoder=encoder, options=options, keep=keep))
