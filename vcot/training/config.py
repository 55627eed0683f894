"""What shapes a training's weights, without where things lie. Knows no torch: `--check` reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import BaseModel, model_validator

from vcot.rewards import DEFAULT_WEIGHTS, weighed
from vcot.settings import CommaSeparated, Options, flag, setting


class TrainingConfig(BaseModel):
    """Knobs of supervised fine-tuning; the entry point adds where it reads, where it runs and what it keeps."""

    tune: Literal["full", "lora", "qlora"] = setting(
        "qlora",
        "full: all weights; lora: adapters; qlora: the same with the base's language model in 4 bits (NF4)",
    )
    targets: Literal["language", "language+merger", "all"] = setting(
        "language", "parts of the model whose linear layers get adapters; merger: between vision tower and language "
        "model; all: in the vision tower too"
    )  # fmt: skip
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "numbers to compute with; auto: bfloat16 where the device has it, else float32. Adapters are float32"
    )
    lora_r: int = setting(64, "rank of the adapters", gt=0)
    lora_alpha: float = setting(
        128,
        "scale of the adapters: they are multiplied by lora_alpha / lora_r (--use-rslora: by its square root)",
        gt=0,
    )
    lora_dropout: float = setting(
        0.05, "share of an adapter's inputs that are zeroed while training", unit="0..1", ge=0, lt=1
    )
    use_rslora: bool = setting(False, "scale adapters by lora_alpha / √lora_r, so that a higher rank learns as fast")
    use_dora: bool = setting(
        False, "adapters learn the length of each row of a weight apart from its direction (DoRA); slower"
    )
    learning_rate: float = setting(1e-4, "highest learning rate, after the warm-up", gt=0)
    merger_learning_rate: float | None = setting(
        None, "the same for the layers between vision tower and language model, with --tune full; 0: they stay as they "
        "are; default: --learning-rate", ge=0,
    )  # fmt: skip
    vision_learning_rate: float | None = setting(
        None, "the same for the vision tower, with --tune full; 0: it stays as it is; default: a fifth of "
        "--learning-rate", ge=0,
    )  # fmt: skip
    freeze_embeddings: bool = setting(
        False, "--tune full leaves the tokens' embeddings and the output head as they are"
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = setting(
        "cosine", "learning rate after the warm-up"
    )
    warmup_steps: float = setting(
        0.03, "warm-up from 0 to the learning rate: below 1 a share of all steps, from 1 on a number of steps", ge=0
    )
    optim: Literal["adamw_8bit", "paged_adamw_8bit", "adamw_torch_fused"] = setting(
        "adamw_8bit", "AdamW with its state in 8 bits, the same in pages that can leave the GPU, or in float32. With "
        "--tune full the default is adamw_torch_fused: only that one updates weights that are divided among GPUs"
    )  # fmt: skip
    weight_decay: float = setting(0.01, "decoupled weight decay", ge=0)
    max_grad_norm: float = setting(0.3, "longest gradient (norm over all that is trained); 0: no limit", ge=0)
    neftune_noise_alpha: float = setting(
        5.0, "noise on the tokens' embeddings while training (NEFTune's alpha); 0: none", ge=0
    )
    batch_tokens: int = setting(
        8192, "what goes through the model at once, on each GPU; at least the longest example", unit="tokens", gt=0
    )
    packing: Literal["on", "off"] = setting(
        "off", "on: a batch is several examples end to end that do not see each other, without padding (and with the "
        "NEFTune noise of one long example); off: examples of like length side by side"
    )  # fmt: skip
    shuffle_gib: float = setting(
        10, "examples of so many shards are shuffled together as have this size; of a dataset that has not more, all. "
        "Others follow one after another, in another order each epoch. At most --cache-gib", unit="GiB", gt=0,
    )  # fmt: skip
    gradient_accumulation_steps: int = setting(
        2, "batches of each GPU whose gradients make one step; a run that goes on with another number of GPUs keeps "
        "the batches of a step", unit="batches", gt=0,
    )  # fmt: skip
    parallel: Literal["auto", "ddp", "fsdp"] = setting(
        "auto", "several GPUs: ddp: each holds the whole model; fsdp: each holds a part of it (FSDP2; not with "
        "--tune qlora); auto: fsdp where the model would not fit on one"
    )  # fmt: skip
    num_train_epochs: float = setting(
        2, "times that each sample is seen, each time with one of its reasonings", unit="epochs", gt=0
    )
    max_steps: int | None = setting(
        None, "end after so many steps, whatever --num-train-epochs says", unit="steps", gt=0
    )
    eval_steps: int = setting(500, "measure the loss on the validation split", unit="steps", gt=0)
    early_stopping_patience: int = setting(
        3, "stop after so many evaluations in a row that are not better by --early-stopping-threshold; 0: never",
        unit="evaluations", ge=0,
    )  # fmt: skip
    early_stopping_threshold: float = setting(0.001, "what counts as better", unit="nats per token", ge=0)
    save_steps: int = setting(
        500, "write a checkpoint; a new best evaluation and the end write one too", unit="steps", gt=0,
        shapes_result=False,
    )  # fmt: skip
    gradient_checkpointing: Literal["auto", "on", "off"] = setting(
        "auto", "compute activations twice instead of keeping them: a third of the memory, a fifth slower; "
        "auto: on a GPU that cannot hold them"
    )  # fmt: skip
    seed: int = setting(42, "first values of adapters, order of examples, dropout, noise", ge=0)

    @model_validator(mode="before")
    @classmethod
    def _optimizer_of_full_weights(cls, given: Any) -> Any:
        is_full = isinstance(given, dict) and given.get("tune") == "full"
        return {"optim": "adamw_torch_fused"} | given if is_full else given

    @model_validator(mode="after")
    def _knobs_agree(self) -> Self:
        of_adapters = ("targets", "lora_r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora")
        of_weights = ("merger_learning_rate", "vision_learning_rate", "freeze_embeddings")
        useless = [flag(name) for name in of_adapters if name in self.model_fields_set]
        if self.tune == "full" and useless:
            raise ValueError(
                f"{', '.join(useless)}: --tune full has no adapters; leave it out, or choose --tune lora or qlora"
            )
        if self.parallel == "fsdp" and self.tune == "qlora":
            raise ValueError(
                "--parallel fsdp: weights in 4 bits are not divided; choose --tune lora, or leave out --parallel"
            )
        useless = [flag(name) for name in of_weights if name in self.model_fields_set]
        if self.tune != "full" and useless:
            raise ValueError(
                f"{', '.join(useless)}: --tune {self.tune} trains adapters alone, all at --learning-rate; leave "
                "it out, or choose --tune full"
            )
        if self.warmup_steps >= 1 and self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"--warmup-steps={self.warmup_steps:g} steps leaves nothing of --max-steps={self.max_steps}; "
                "below 1 it is a share of all steps"
            )
        if self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise ValueError(
                f"--warmup-steps={self.warmup_steps:g} is neither a share below 1 nor a whole number of steps"
            )
        return self

    def part_learning_rate(self, part: Literal["language", "merger", "vision"]) -> float:
        """Of a part of the model; 0: it is not trained.

        That the vision tower learns five times more slowly than the rest is the recipe of LaCoT (2e-6 and 1e-5): it
        has seen far more images than there are here, and the rest has to follow what it changes.
        """
        if self.tune != "full" or part == "language":
            return self.learning_rate
        if part == "merger":
            return self.learning_rate if self.merger_learning_rate is None else self.merger_learning_rate
        return self.learning_rate / 5 if self.vision_learning_rate is None else self.vision_learning_rate


# --- methods -----------------------------------------------------------------------------------------------


class NoOptions(Options):
    """Supervised fine-tuning needs nothing beyond TrainingConfig."""


class GuardOptions(Options):
    """When a training that learns from rewards has left the path, and is stopped (exit code 20). Each is looked at over
    the replies of ten steps together; with another bound the same command goes on from the last checkpoint."""

    max_boxes: float = setting(
        3.0, "stop when a reply has so many times the boxes that one had in the first steps: lists of boxes in the "
        "place of an answer", unit="times", gt=1, shapes_result=False,
    )  # fmt: skip
    max_malformed: float = setting(
        0.5, "stop when so many of the replies have a fault in their form", unit="0..1", gt=0, le=1,
        shapes_result=False,
    )  # fmt: skip
    max_cut_off: float = setting(
        0.5, "stop when so many of the replies do not end by themselves", unit="0..1", gt=0, le=1,
        shapes_result=False,
    )  # fmt: skip
    min_entropy: float = setting(
        0.005, "stop when the entropy of its tokens is less: all replies alike, nothing left to learn from", ge=0,
        unit="nats per token", shapes_result=False,
    )  # fmt: skip
    max_masked: float = setting(
        0.5, "with --rollouts vllm: stop when so many of the replies are left out, as the server finds them much less "
        "or more likely than the model that learns: it has other weights", unit="0..1", gt=0, le=1,
        shapes_result=False,
    )  # fmt: skip
    max_kl: float = setting(
        1.0, "with --beta, and with --method gfn: stop when it is so far from the model it began with",
        unit="nats per token", gt=0, shapes_result=False,
    )  # fmt: skip
    min_distinct: float = setting(
        0.25, "with --method gfn: stop when the distinct ones among the rationales of a question are so few, of what "
        "they were in the first steps", unit="0..1", ge=0, lt=1, shapes_result=False,
    )  # fmt: skip


class RolloutOptions(GuardOptions):
    """What methods share that learn from replies of the model's own."""

    num_generations: int = setting(
        8, "replies to each question, which are held against each other; more where rewards are rare", unit="replies",
        ge=2,
    )  # fmt: skip
    questions_per_step: int = setting(
        8, "questions of an optimiser step, on all GPUs together; more where rewards are noisy", unit="questions", gt=0
    )
    max_completion_length: int = setting(
        512, "longest reply; what is longer is cut off, and has no answer", unit="tokens", gt=0
    )
    generation_batch_size: int = setting(
        128, "replies that the model writes at the same time on each GPU, at most; lower where memory is short",
        unit="replies", gt=0,
    )  # fmt: skip
    questions: Literal["all", "without-reasoning"] = setting(
        "all", "what is asked; without-reasoning: questions alone, of tokenize --without-reasoning ask, not those "
        "whose reasoning was learned before"
    )  # fmt: skip
    curriculum: Literal["off", "by-success"] = setting(
        "off", "by-success: from the second epoch on, questions that were right in about half of their tries come "
        "first, those that were always right or always wrong last; off: in an order drawn anew"
    )  # fmt: skip
    rollouts_every: int = setting(10, "write the page of replies", unit="steps", gt=0, shapes_result=False)


class GRPOOptions(RolloutOptions):
    """Learning from rewards; names and defaults are TRL's where it has them, and DAPO's for --epsilon-high."""

    rewards: CommaSeparated = setting(
        DEFAULT_WEIGHTS, "what a reply earns, each 0..1 times its weight: format, answer, boxes, counts (as many boxes "
        "as the answer says), length (it ends in time), necessity (the answer hangs on what is pointed at; two passes "
        "more), judge (a language model finds it right), or a function of yours, mine=package.module:function",
    )  # fmt: skip
    judge: str | None = setting(
        None, "with judge among --rewards: an OpenAI-compatible endpoint and its model, https://host:8000/v1#name; its "
        "key is JUDGE_API_KEY, else OPENAI_API_KEY",
    )  # fmt: skip
    judge_requests: int | None = setting(
        None, "most that it is asked in all; the training stops before it asks more, and goes on with a larger number",
        unit="requests", gt=0, shapes_result=False,
    )  # fmt: skip
    temperature: float = setting(1.0, "of the draws; lower where replies fall apart, higher where all are alike", gt=0)
    beta: float = setting(
        0.0, "weight of the KL divergence from the model that the training began with: per token, "
        "exp(ref - new) - (ref - new) - 1 of the log-probabilities, times the probability ratio new / old "
        "(bias-corrected). Raise it to 0.001 to 0.04 if the model forgets other tasks; costs one more forward pass",
        ge=0,
    )  # fmt: skip
    epsilon: float = setting(
        0.2,
        "lower clip range of the probability ratio, 1 - epsilon (PPO epsilon); raise it if learning is slow. Unused by "
        "--loss-type cispo and sapo",
        gt=0,
        lt=1,
    )
    epsilon_high: float = setting(
        0.28,
        "upper clip range of the probability ratio, 1 + epsilon (DAPO's clip-higher): with --loss-type cispo the "
        "largest weight of a token; set it to --epsilon for the symmetric range of PPO. Unused by --loss-type sapo",
        gt=0,
    )
    importance_sampling_level: Literal["token", "sequence"] = setting(
        "token", "what is held against the model that drew it: each token, or the whole reply (GSPO, with --loss-type "
        "grpo), for long replies and mixtures of experts",
    )  # fmt: skip
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "sapo"] = setting(
        "dapo", "dapo: every token of a step counts alike; grpo: every reply does, so that long ones count less by the "
        "token; dr_grpo: as dapo, over --max-completion-length; bnpo: as dapo, by the batch; cispo: as dapo, with the "
        "gradient of every token kept and its weight, the probability ratio, limited to 1 + --epsilon-high; sapo: a "
        "smooth gate instead of clipping, averaged as grpo",
    )  # fmt: skip
    scale_rewards: Literal["group", "batch", "none"] = setting(
        "group", "advantages are divided by the spread in their group, in all groups of a step, or by nothing (Dr. "
        "GRPO: so easy and hard questions are not blown up)",
    )  # fmt: skip
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = setting(
        "sum_then_normalize", "normalize_then_sum: each reward is normalised by itself before they are added (GDPO), "
        "where one drowns the others",
    )  # fmt: skip
    num_iterations: int = setting(
        1, "updates from the same replies; 2 to 4 where drawing takes most of the time", unit="updates", gt=0
    )
    rollouts: Literal["transformers", "vllm"] = setting(
        "transformers", "who writes the replies: transformers: the model that learns, where it learns; vllm: a vLLM "
        "server on other GPUs, which is handed the adapters at each step; many times faster from 3B on",
    )  # fmt: skip
    vllm_url: str = setting(
        "http://localhost:8000/v1",
        "address of that server",
        shapes_result=False,
    )
    vllm_folder: str = setting(
        "/tmp/vllm", "folder that training and server both see under this name: the training lays the base into its "
        "base/, for the server to begin with, and the adapters of each step into its adapters/", shapes_result=False,
    )  # fmt: skip
    redraws: int = setting(
        2, "questions whose replies all earn the same teach nothing; so many times others are drawn in their place "
        "(DAPO's dynamic sampling); 0: never", unit="times", ge=0,
    )  # fmt: skip
    mask_truncated_completions: bool = setting(
        False, "replies that were cut off teach nothing, neither good nor bad; where the limit cuts off good ones"
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        try:
            weighed(self.rewards)
        except ValueError as error:
            yield f"--rewards={','.join(self.rewards)}: {error}"
        asks_judge = any(entry.startswith("judge=") for entry in self.rewards)
        if asks_judge and self.judge is None:
            yield "--rewards judge: by whom? Give --judge https://host:8000/v1#name as well"
        if self.judge is not None and not asks_judge:
            yield f"--judge={self.judge}: nothing asks it; give it a weight, as in --rewards answer=1,judge=1"
        if self.epsilon_high < self.epsilon:
            yield (
                f"--epsilon-high={self.epsilon_high:g} is less than --epsilon={self.epsilon:g}; at least the same: "
                "what is good must not be held back more than what is bad"
            )
        if self.loss_type != "grpo" and self.importance_sampling_level == "sequence":
            yield (
                f"--importance-sampling-level sequence with --loss-type {self.loss_type} weighs replies by their "
                "length; give --loss-type grpo with it, as GSPO does"
            )


class GFNOptions(RolloutOptions):
    """Sampling rationales in proportion to how well they explain the answer (GFlowNet; vcot.training.gfn)."""

    reward_temperature_start: float = setting(
        1.0, "a rationale's share is its reward to the power of 1 / this; below 1 the best take more, above 1 all are "
        "more alike; here at the start", gt=0,
    )  # fmt: skip
    reward_temperature_end: float = setting(1.0, "the same from --reward-temperature-steps on", gt=0)
    reward_temperature_steps: int = setting(50, "steps from the one to the other", unit="steps", gt=0)
    reward_floor: float = setting(
        0.01, "the true answer counts as at least so likely, and boxes as at least so good: what leads nowhere is "
        "worth a hundredth of what leads there, and the loss is not ruled by how hopeless it is; 0: as they are",
        unit="0..1", ge=0, lt=1,
    )  # fmt: skip
    box_weight: float = setting(
        1.0, "power to which the boxes' soft F1 against the annotated ones stands in the reward, which else is the "
        "likelihood of rationale and answer alone; 8: one wrong box among five costs most of it; 0: boxes as likely as "
        "any words", ge=0,
    )  # fmt: skip
    reward_stride: int = setting(
        8, "the answer is scored after every so many tokens of a rationale, and between these its log-likelihood lies "
        "on a line; 1: exact, and slower", unit="tokens", gt=0,
    )  # fmt: skip
    min_rationale_length: int = setting(
        0, "rationales that end before are worth e^-99 of what they were; where a model ends too soon", unit="tokens",
        ge=0,
    )  # fmt: skip
    subtb_decay: float = setting(
        1.0, "how much less two prefixes of a rationale count in the loss for each token that they are apart: 1: all "
        "alike (sub-trajectory balance); 0: neighbours alone (detailed balance), for very long rationales", ge=0, le=1,
    )  # fmt: skip
    across_weight: float = setting(
        0.0, "weight of the log-variance loss beside that of the prefixes: rationales of a question that are computed "
        "together (--batch-tokens) are held against each other as wholes, for rationales of hundreds of tokens; 0: "
        "prefixes of the same rationale alone, as LaCoT", ge=0,
    )  # fmt: skip
    learn_reference: bool = setting(
        True, "learn from the annotated rationale, too, where there is one; of several one by chance"
    )
    tolerance_start: float = setting(
        0.0, "learn from no rationale whose log-reward by the token is more than so many times (below 0) that of the "
        "annotated one: LaCoT has 1.5 at the start and 1 in the end; what is dropped stays as likely as it was. 0: "
        "from all", ge=0,
    )  # fmt: skip
    tolerance_end: float = setting(1.0, "the same from --tolerance-steps on", ge=0)
    tolerance_steps: int = setting(50, "steps from the one to the other", unit="steps", gt=0)
    explore_share: float = setting(
        0.25, "share of the steps whose rationales are drawn at another temperature, between --explore-min-temperature "
        "and --explore-max-temperature", unit="0..1", ge=0, le=1,
    )  # fmt: skip
    explore_min_temperature: float = setting(0.5, "of these draws", gt=0)
    explore_max_temperature: float = setting(1.0, "of these draws; above 1 to find what is not found else", gt=0)
    replay_share: float = setting(
        0.25, "share of the questions that, when they are asked again, are learned from the best rationales that were "
        "drawn for them before in the place of new ones", unit="0..1", ge=0, le=1,
    )  # fmt: skip
    replay_size: int = setting(50, "rationales of each question that are kept for that", unit="rationales", gt=0)

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.explore_min_temperature > self.explore_max_temperature:
            yield (
                f"--explore-min-temperature={self.explore_min_temperature:g} is more than "
                f"--explore-max-temperature={self.explore_max_temperature:g}; at most the same"
            )
        if 0 < self.tolerance_start < self.tolerance_end:
            yield (
                f"--tolerance-start={self.tolerance_start:g} is stricter than --tolerance-end={self.tolerance_end:g}; "
                "log-rewards are below 0, so that more is looser: give at least the same"
            )
        if self.min_rationale_length >= self.max_completion_length:
            yield (
                f"--min-rationale-length={self.min_rationale_length} leaves nothing of "
                f"--max-completion-length={self.max_completion_length}"
            )


@dataclass(frozen=True)
class Method:
    """How a training learns. defaults: where they are other than those of TrainingConfig."""

    about: str
    example: str
    options: type[Options]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def disagreements(config: TrainingConfig, options: RolloutOptions) -> Iterator[str]:
    """What cannot be together, a line each."""
    if config.parallel == "fsdp":
        yield "--parallel fsdp: a training from its own replies has the whole model on each GPU; leave it out"
    if config.lora_dropout and config.tune != "full":
        yield f"--lora-dropout={config.lora_dropout:g}: replies are drawn and judged without dropout; leave it out"
    if config.packing == "on":
        yield "--packing on: replies are padded; leave it out"
    if isinstance(options, GFNOptions):
        if config.tune == "full":
            yield (
                "--tune full with --method gfn: rewards are what the model finds likely without its adapters; choose "
                "--tune lora or qlora"
            )
        if config.gradient_checkpointing == "on":
            yield (
                "--gradient-checkpointing on with --method gfn: rationales share the keys and values of their prompt, "
                "which are kept; lower --batch-tokens instead"
            )
    if not isinstance(options, GRPOOptions):
        return
    if options.beta and config.tune == "full":
        yield (
            f"--beta={options.beta:g} with --tune full would need the whole model a second time, as it was; choose "
            "--tune lora, whose adapters are switched off for that, or --beta 0"
        )
    if options.rollouts != "vllm":
        return
    if config.tune == "qlora":
        yield (
            "--rollouts vllm with --tune qlora: the server would draw from other weights than those that learn, as it "
            "packs 4 bits in its own way (TRL #4973); choose --tune lora, or --rollouts transformers"
        )
    if config.tune == "full":
        yield (
            "--rollouts vllm with --tune full: all weights would have to be sent at each step; choose --tune lora, or "
            "--rollouts transformers"
        )
    if config.targets != "language":
        yield f"--rollouts vllm with --targets {config.targets}: vLLM has adapters on the language model alone"
    if config.use_dora:
        yield "--rollouts vllm with --use-dora: vLLM knows no DoRA; leave one of them out"


_FROM_OWN_REPLIES: dict[str, Any] = {
    "neftune_noise_alpha": 0.0, "lora_dropout": 0.0, "weight_decay": 0.0, "lr_scheduler_type": "constant_with_warmup",
    "num_train_epochs": 1.0, "early_stopping_patience": 0,
}  # fmt: skip

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "sft": Method("It learns the examples' replies, token by token.", "--base-uri s3://models/base", NoOptions),
        "grpo": Method(
            "It writes several replies to each question, rewards say which are better, and it learns from the "
            "difference (GRPO, by TRL). Begin with a model that is right in 30 to 70 % of its tries.",
            "--base-uri s3://models/base --from-uri s3://runs/first/train/model",
            GRPOOptions,
            _FROM_OWN_REPLIES | {"learning_rate": 1e-5},
        ),
        "gfn": Method(
            "It learns to draw rationales in proportion to how well they explain the answer, so that several good ones "
            "keep their share (GFlowNet, after LaCoT). Begin with a model that was tuned on tokenize --roles "
            "rationale.",
            "--base-uri s3://models/base --from-uri s3://runs/first/train/model",
            GFNOptions,
            _FROM_OWN_REPLIES | {"learning_rate": 5e-5},
        ),
    }
)  # fmt: skip
