"""What shapes a training's weights, without where things lie. Knows no torch: `--check` reads it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, model_validator

from vcot.settings import flag, setting


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
        "adamw_8bit", "AdamW with its state in 8 bits, the same in pages that can leave the GPU, or in float32"
    )
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
