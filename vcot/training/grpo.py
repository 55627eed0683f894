"""Learning from rewards: several replies to each question, and what tells them apart (GRPO, arXiv 2402.03300).

    questions → groups of replies → rewards → advantages → TRL's loss

The engine is TRL's GRPOTrainer. What is overridden, each with a test that fails when the library changes it, and why:

    _generate_and_score_completions   replies are drawn and judged before TRL asks for them, so that questions whose
                                      replies all earn the same can be drawn again; TRL is handed what came of it
    _get_per_token_logps_and_entropies, _compute_loss
                                      images come from the examples, once for each question: TRL would render the
                                      conversation anew, in which a user's text may turn into control tokens, and keep
                                      the patches of each image as often as there are replies
    get_train_dataloader              questions in an order of ours, which goes on where a checkpoint ends
    __init__                          weights in 4 bits: adapters stay in float32, where TRL makes them bfloat16, whose
                                      steps are larger than those of learning rates below 1e-3 of a weight

With `--rollouts vllm` TRL is told that its vLLM was used: it then weighs each reply by how much likelier this model
finds it than the server did, and leaves out those where the two are too far apart.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from vcot import logging
from vcot.errors import InputError
from vcot.grounding import parse, split_answer
from vcot.models.decoding import Decoding
from vcot.models.generation import Generated, put_there
from vcot.models.loss import needs_vision
from vcot.records import Sample
from vcot.records.rollout import Rollout
from vcot.rewards import BrokenReward, Weighed, earned, total, weighed
from vcot.tokens import Encoder
from vcot.training.checkpoints import Checkpoints
from vcot.training.config import GRPOOptions, TrainingConfig
from vcot.training.engine import (
    Checkpointed,
    RunContext,
    trained,
)
from vcot.training.measures import Measure, Necessity, Reply
from vcot.training.memory import twice
from vcot.training.questions import Curriculum, Questions
from vcot.training.rounds import Rounds, drawn_here
from vcot.training.served import VllmServer, is_loopback
from vcot.training.setup import TrainResult, training_arguments
from vcot.training.start import StartFacts, check_start

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # a warning at each start, of `rollout_func`

_SAME_NAMES = {
    "num_generations", "beta", "epsilon", "importance_sampling_level", "loss_type", "scale_rewards",
    "multi_objective_aggregation", "num_iterations", "mask_truncated_completions",
}  # fmt: skip
"""Options that are TRL's arguments as they are."""

Draw = Callable[[Any, Sequence[int], Decoding], list[list[Generated]]]
"""(model, numbers of questions, decoding) → of each its replies."""

Keep = Callable[[int, Sequence[tuple[int, Rollout]], Sequence[Mapping[str, Any]]], None]
"""(step, replies of all ranks, each with the number of its question; what was logged so far)."""

FAR = 1 / 3
"""With --rollouts vllm: a reply teaches nothing that this model finds less likely than the server did by this factor,
or likelier by as much."""

REFUSED_SHARE = 0.1
"""Of the replies, that a reward may raise for, or give no number for, before the training stops."""


class Group(NamedTuple):
    """The replies to one question.

    Attributes:
        said: their tokens, as they were drawn.
        earned: of each reply, by reward, what counts in the comparison: what it earned or, where it alone could not be
            judged, the mean of the others, so that it is no worse for that.
        teaches: whether they earned different things, of what has a weight.
    """

    question: int
    rollouts: list[Rollout]
    said: list[Generated]
    earned: list[dict[str, float | None]]
    teaches: bool


class RewardedTrainer(Checkpointed, GRPOTrainer):  # type: ignore[misc]  # the library publishes no types
    """
    Args:
        rewards: what replies earn. draw: who writes them, this model itself or `served`, which is then handed its
            adapters before each round. measures: by name, what rewards read and a model must be asked for.
        questions_per_step: of this rank. redraws: how often others are drawn for questions that teach nothing.
        compute: the dtype of the forward pass. keep: told, in rank 0, of all replies of a step with their advantages.
    """

    def __init__(
        self, model: Any, arguments: GRPOConfig, *, encoder: Encoder, questions: Questions,
        rewards: Sequence[Weighed], draw: Draw, questions_per_step: int, redraws: int, compute: torch.dtype,
        start: int, keep: Keep, curriculum: Curriculum,
        measures: Mapping[str, Measure] = MappingProxyType({}), served: VllmServer | None = None, **shared: Any,
    ) -> None:  # fmt: skip
        from datasets import Dataset

        self.encoder, self.questions, self.rewards, self.draw = encoder, questions, rewards, draw
        self.questions_per_step, self.redraws, self.compute, self.start = questions_per_step, redraws, compute, start
        self.keep, self.served, self.curriculum, self.measures = keep, served, curriculum, measures
        self.spec = encoder.contract.frame_spec
        self.refused = Counter[str]()  # rewards that were no numbers, by what was said of them
        self.judged = 0
        self._kept_rounds: list[Any] = []
        self._groups: list[Group] = []
        self._asked: list[int] = []  # of each row of the batch that is computed, its question
        arguments.reward_weights = [one.weight for one in rewards]
        before = {name: parameter.data for name, parameter in trained(model).items()}
        super().__init__(
            model=model, args=arguments, processing_class=encoder.processor,
            reward_funcs=[_reader(one.name) for one in rewards],
            train_dataset=Dataset.from_dict({"prompt": ["what TRL counts; questions come from the loader"]}),
            rollout_func=self._recorded, **shared,
        )  # fmt: skip
        self.remove_callback(PrinterCallback)
        for name, parameter in trained(model).items():
            parameter.data = before[name]
        self.use_vllm = served is not None

    # --- questions -----------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Nothing but so many forward passes: the questions of a round are chosen when it begins, by what replies have
        earned until then."""
        passes: Any = [[]] * ((self.args.max_steps - self.start) * self.args.gradient_accumulation_steps)
        return DataLoader(passes, batch_size=None, collate_fn=_as_it_is)

    def _of_step(self, step: int, again: int = 0) -> list[int]:
        """Of this rank. again: 1, 2, …: others in their place."""
        round_ = step // self.num_iterations
        return self.curriculum.of_rank(self.context, round_, self.questions_per_step, again)

    # --- replies -------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[int]) -> dict[str, Any]:
        step = self.state.global_step
        if self.served is not None:
            [name] = broadcast_object_list([self.served.name_of(step)])
            self.served.publish(self.model, name)
            self.accelerator.wait_for_everyone()
            self._last_loaded_step = step  # or TRL would send all weights to a server of its own
        groups = self._drawn(self._of_step(step), step, 0)
        tried = list(groups)
        for again in range(1, self.redraws + 1):
            empty = [place for place, group in enumerate(groups) if not group.teaches]
            if not empty:
                break
            others = self._of_step(step, again)[: len(empty)]
            for place, group in zip(empty, self._drawn(others, step, again), strict=True):
                tried.append(group)
                if group.teaches:
                    groups[place] = group
        self._groups = groups
        self._asked = [group.question for group in groups for _ in group.rollouts]
        rollouts = [one for group in groups for one in group.rollouts]
        rows = [
            {"prompt": one.sample, "earned": each}
            for group in groups
            for one, each in zip(group.rollouts, group.earned, strict=True)
        ]
        output: dict[str, Any] = super()._generate_and_score_completions(rows)
        output["question"] = torch.tensor(self._asked, device=output["prompt_ids"].device)
        learned = zip(rollouts, output["advantages"].tolist(), strict=True)
        self.step_examples = list(dict.fromkeys(one.sample for one in rollouts))
        self.step_tokens = sum(one.tokens for one in rollouts)
        own = [
            (number, one.model_copy(update={"advantage": advantage}))
            for number, (one, advantage) in zip(self._asked, learned, strict=True)
        ]
        everyones = gather_object(own)
        self._count(everyones, gather_object([group.teaches for group in groups]))
        if self.served is not None:
            masked = (output["importance_sampling_ratio"] == 0).float().mean().reshape(1)
            self._metrics["train"]["masked"].append(float(self.accelerator.gather(masked).mean()))
        # Of all that were asked: those that were right each time, or never, have others in their place by now.
        self.curriculum.earned(gather_object([(group.question, one) for group in tried for one in group.rollouts]))
        if self.context.first:
            self.keep(step, everyones, self.state.log_history)
        return output

    def _drawn(self, numbers: Sequence[int], step: int, again: int) -> list[Group]:
        """Replies to these questions, judged."""
        limit = self.max_completion_length
        decoding = Decoding(limit, self.temperature, self.num_generations, seed=_seed(self.config.seed, step, again))
        replies = self.draw(self.model, numbers, decoding)
        texts = [[self.encoder.decode(one.ids) for one in said] for said in replies]
        measured = self._measured(numbers, replies, texts)
        groups = []
        for number, said, text in zip(numbers, replies, texts, strict=True):
            sample = self.questions.sample(number)
            rollouts = [
                Rollout(
                    step=step, sample=sample.id, draw=draw, text=text[draw], tokens=len(one.ids), limit=limit,
                    ended=one.ended, measured=next(measured),
                )
                for draw, one in enumerate(said)
            ]  # fmt: skip
            groups.append(self._group(number, [self._judged(one, sample) for one in rollouts], said))
        return groups

    def _group(self, number: int, rollouts: list[Rollout], said: list[Generated]) -> Group:
        columns = [_comparable([rollout.rewards[one.name] for rollout in rollouts]) for one in self.rewards]
        names = [one.name for one in self.rewards]
        comparable = [dict(zip(names, each, strict=True)) for each in zip(*columns, strict=True)]
        worth: set[Any] = {tuple(each[one.name] for one in self.rewards if one.weight) for each in comparable}
        if self.args.multi_objective_aggregation == "sum_then_normalize":
            worth = {total(each, self.rewards) for each in comparable}
        return Group(number, rollouts, said, comparable, len(worth) > 1)

    def _measured(
        self, numbers: Sequence[int], replies: Sequence[Sequence[Generated]], texts: Sequence[Sequence[str]]
    ) -> Iterator[dict[str, float | None]]:
        """Of each reply, in order."""
        flat = [
            Reply(number, text, one.ids)
            for number, said, spoken in zip(numbers, replies, texts, strict=True)
            for one, text in zip(said, spoken, strict=True)
        ]
        columns = {name: measure(self.model, flat) for name, measure in self.measures.items()}
        return iter([{name: column[place] for name, column in columns.items()} for place in range(len(flat))])

    def _judged(self, rollout: Rollout, sample: Sample) -> Rollout:
        self.judged += 1
        try:
            found = earned(rollout, sample, self.spec, self.rewards)
        except BrokenReward as error:
            self.refused[str(error)] += 1
            if (many := self.refused.total()) > max(REFUSED_SHARE * self.judged, self.num_generations):
                raise InputError(f"{error}; so it was for {many} of {self.judged} replies") from error
            found = dict.fromkeys([one.name for one in self.rewards])
        return rollout.model_copy(update={"rewards": found, "reward": total(found, self.rewards)})

    # --- a round that is under way ---------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Replies that are to be learned from once more are kept, those of all ranks."""
        under_way = self._step % (self.args.steps_per_generation * self.num_iterations)
        self._kept_rounds = gather_object([self._buffered_inputs]) if under_way else []
        super()._save_checkpoint(model, trial)

    @property
    def state_of_method(self) -> Any:
        refused = {"judged": self.judged, "refused": dict(self.refused), "curriculum": self.curriculum.state}
        return refused | {"forward_passes": self._step, "rounds": self._kept_rounds}

    def load_state_of_method(self, state: Any) -> None:
        if state is None:
            return
        self.judged, self.refused = state["judged"], Counter(state["refused"])
        self.curriculum.state = state["curriculum"]
        if len(state["rounds"]) == self.context.ranks:
            device = self.args.device
            own = state["rounds"][self.context.rank]
            self._step = state["forward_passes"]
            self._buffered_inputs = [
                {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
                for batch in own
            ]
        elif state["rounds"]:
            logging.get().warning("the replies of the last round are drawn anew: it had another number of GPUs")

    def _recorded(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`: what was drawn already."""
        prompts_ids = [self.questions.item(group.question)["ids"].tolist() for group in self._groups]
        each = [(ids, one) for ids, group in zip(prompts_ids, self._groups, strict=True) for one in group.said]
        found = {
            "prompt_ids": [ids for ids, _ in each],
            "completion_ids": [one.ids for _, one in each],
            "logprobs": [one.logprobs for _, one in each],
        }
        if self.encoder.between:  # what was put behind a rationale, no model has said
            found["env_mask"] = [self._said_by_it(one) for _, one in each]
        return found

    def _said_by_it(self, one: Generated) -> list[int]:
        """Of each token 1, or 0 where it teaches nothing."""
        ends = self.encoder.eos_token_ids
        if self.mask_truncated_completions and not one.ended and one.ids[-1] in ends:
            return [0] * len(one.ids)  # cut off at the very end of its rationale: TRL would take it for whole
        put = put_there(one.ids, ends, self.encoder.between)
        return [int(place not in put) for place in range(len(one.ids))]

    def _count(self, everyones: Sequence[tuple[int, Rollout]], teaches: Sequence[bool]) -> None:
        """What the guards look at, and what TRL does not log of rewards; of all ranks, or one would stop for what is
        true of its few replies alone."""
        seen, rollouts = self._metrics["train"], [one for _, one in everyones]
        parsed = [self._parsed(one, number) for number, one in everyones]
        seen["boxes"].append(sum(boxes for boxes, _ in parsed) / len(parsed))
        seen["malformed"].append(sum(not well for _, well in parsed) / len(parsed))
        seen["cut_off"].append(sum(not one.ended for one in rollouts) / len(rollouts))
        seen["groups_that_teach"].append(sum(teaches) / len(teaches))
        for one in self.rewards:
            values = [value for rollout in rollouts if (value := rollout.rewards[one.name]) is not None]
            if values:
                seen[f"rewards/{one.name}/at_most"].append(sum(value >= 1 for value in values) / len(values))
            seen[f"rewards/{one.name}/not_judged"].append(1 - len(values) / len(rollouts))

    def _parsed(self, rollout: Rollout, number: int) -> tuple[int, bool]:
        """How many boxes it has, and whether its form has no fault."""
        sample = self.questions.sample(number)
        parsed = parse(rollout.text, sample.frame(self.spec))
        return len(parsed.trace.boxes), parsed.well_formed and split_answer(rollout.text)[1] is not None

    # --- the loss ------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._asked = inputs["question"].tolist()
        loss: Tensor = super()._compute_loss(model, inputs)
        return loss

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, batch_size: int | None = None,
        **given: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        """With the images of the questions that the rows ask (`_asked`)."""
        rows, size = len(input_ids), batch_size or len(input_ids)
        found = []
        for first in range(0, rows, size):
            asked = self._asked[first : first + size]
            ids = input_ids[first : first + size]
            images = self.questions.images(asked)
            if images:
                images = {name: value.to(ids.device) for name, value in images.items()} | {
                    "mm_token_type_ids": (ids == self.encoder.processor.image_token_id).long(),
                    "num_images": [self.questions.shown(number) for number in asked],
                }
            mask = attention_mask[first : first + size]
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.compute == torch.bfloat16):
                made = super()._get_per_token_logps_and_entropies(model, ids, mask, logits_to_keep, **given | images)
            found.append(made)
        logprobs, entropies, others = zip(*found, strict=True)
        together = None if entropies[0] is None else torch.cat(entropies)
        return torch.cat(logprobs), together, None if others[0] is None else torch.stack(others).mean()


def _reader(name: str) -> Callable[..., list[float | None]]:
    """A reward function of TRL's kind that says what a rollout earned already."""

    def read(earned: Sequence[Mapping[str, float | None]], **_: Any) -> list[float | None]:
        return [one[name] for one in earned]

    read.__name__ = name
    return read


def _comparable(values: Sequence[float | None]) -> list[float | None]:
    """With the mean of the others where one is missing: TRL would count it as 0, worse than they are."""
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else None
    return [mean if value is None else value for value in values]


def _seed(seed: int, step: int, again: int) -> int:
    return (seed * 1_000_003 + step) * 101 + again


def _as_it_is(batch: Any) -> Any:
    return batch


# --- a whole training --------------------------------------------------------------------------------------


def learn_from_rewards(
    config: TrainingConfig, options: GRPOOptions, *, base: Path, base_uri: str, adapter: Path | None, encoder: Encoder,
    questions: Questions, checkpoints: Checkpoints, context: RunContext, keep: Keep,
    measures: Mapping[str, Measure] = MappingProxyType({}),
) -> TrainResult:  # fmt: skip
    """Trains from the newest whole checkpoint, or from the model it is given, to the end.

    Args:
        base: folder of the model without adapters. adapter: folder of one to go on with; None: new ones, or all
            weights.
        keep: called with the number of each step and its replies, in rank 0. measures: of rewards that ask another
            model; that of `necessity` is this one's own.

    Raises:
        SettingsError: settings that do not go together with this model. InputError: a reward that cannot be trusted,
            or nothing in the replies to learn from. GateFailed: a guard stopped it. Interrupted: a stop was asked for.
    """
    facts = StartFacts(ranks=context.ranks, roles=encoder.contract.roles, longest=questions.longest)
    check_start(config, options, facts)
    rewards, ranks = weighed(options.rewards), context.ranks
    rounds = Rounds.begin(
        config, options, base=base, base_uri=base_uri, adapter=adapter, questions=questions, checkpoints=checkpoints,
        context=context, updates=options.num_iterations,
    )  # fmt: skip
    model, compute = rounds.model, rounds.compute
    rows = options.questions_per_step * options.num_generations // ranks
    at_once = rows_at_once(rows, config.batch_tokens, questions.longest + options.max_completion_length)
    arguments = training_arguments(
        config, context, steps=rounds.steps, accumulation=rows // at_once, evaluating=False,
        checkpointing=twice(config, base, compute, ranks=context.ranks),
        ddp_find_unused_parameters=needs_vision(model),  # a batch of questions without images leaves it out
        kind=GRPOConfig, per_device_train_batch_size=at_once, steps_per_generation=rows // at_once,
        temperature=options.temperature, max_completion_length=options.max_completion_length,
        use_vllm=False, vllm_importance_sampling_clip_min=FAR, vllm_importance_sampling_clip_max=1 / FAR,
        log_completions=False, disable_dropout=True, use_bias_correction_kl=True, epsilon_high=upper_clip(options),
        **{name: getattr(options, name) for name in _SAME_NAMES},
    )  # fmt: skip
    if any(one.name == "necessity" for one in rewards):
        measures = {**measures, "necessity": Necessity(encoder, questions, at_once)}
    draw: Draw = partial(drawn_here, questions, encoder, options.generation_batch_size)
    served = None
    if options.rollouts == "vllm" and not rounds.over:
        # On this pod's own address each pod has a server of its own; else all have one.
        hands_over = context.first_of_pod if is_loopback(options.vllm_url) else context.first
        served = VllmServer(options.vllm_url, Path(options.vllm_folder), questions, encoder, hands_over=hands_over)
        served.lay(base)
        served.wait()
        draw = served.drawn
    make = partial(
        RewardedTrainer, encoder=encoder, rewards=rewards, measures=measures, draw=draw, served=served,
        redraws=options.redraws, keep=keep,
    )  # fmt: skip
    try:
        return rounds.train(arguments, make)
    finally:
        if served is not None:
            served.close()


def upper_clip(options: GRPOOptions) -> float:
    """Return TRL's `epsilon_high`: for cispo the largest weight itself, for other losses its distance from 1."""
    return options.epsilon_high + (1 if options.loss_type == "cispo" else 0)


def rows_at_once(rows: int, batch_tokens: int, longest: int) -> int:
    """Of a rank's replies of a step, how many go through the model together: the most that --batch-tokens has room for,
    in equal parts. longest: tokens, at most --batch-tokens."""
    return max(
        size for size in range(1, rows + 1) if rows % size == 0 and (size == 1 or size * longest <= batch_tokens)
    )
