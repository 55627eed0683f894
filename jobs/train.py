"""Entry point of the stage train: python -m jobs.train --run-uri … --base-uri …"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from vcot.errors import InputError
from vcot.ranks import Rank, World, run_ranks
from vcot.settings import DEVICE, CommaSeparated, Device, Settings, flag, setting
from vcot.stage import launch, summary

if TYPE_CHECKING:
    from vcot.records import StageMark
    from vcot.records.example import Examples
    from vcot.records.shards import Folder
    from vcot.tokens import Encoder
    from vcot.training.group import Group
    from vcot.training.sft import Tuned

TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Name of a tracker → the package it needs."""


class TrainSettings(Settings):
    """Fine-tunes the base on the examples of <run-uri>/tokenize and writes the model to <run-uri>/train/model.

    The defaults are QLoRA: the base in 4 bits, adapters of rank 64 on the language model. On a GPU or without
    one, the same. With several GPUs it starts a process for each; in several pods PET_NNODES, PET_NODE_RANK and
    PET_MASTER_ADDR say how they find each other. Checkpoints go to storage while it runs; a run that was stopped or
    killed goes on from the last whole one with the same command, and ends with the same losses. Beside the model:
    losses.json, losses.png, tensorboard/, report.json.
    """

    stage: ClassVar[str] = "train"

    base_uri: str = setting(description="folder of the base model: weights in safetensors, tokenizer, processor",
                            min_length=1)  # fmt: skip
    input_uri: str | None = setting(None, "finished stage with the examples; default: <run-uri>/tokenize")
    method: Literal["sft", "grpo", "gfn"] = setting(
        "sft", "sft: learn the examples' replies. grpo and gfn, which learn from rewards, are not there yet"
    )
    tune: Literal["full", "lora", "qlora"] = setting(
        "qlora",
        "full: all weights; lora: adapters on the language model; qlora: the same with the base in 4 bits (NF4)",
    )
    device: Device = setting("auto", DEVICE, shapes_result=False)
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "numbers to compute with; auto: bfloat16 where the device has it, else float32. Adapters are float32"
    )
    r: int = setting(64, "rank of the adapters", gt=0)
    alpha: float = setting(128, "scale of the adapters: they are multiplied by alpha / r", gt=0)
    dropout: float = setting(
        0.05, "share of an adapter's inputs that are zeroed while training", unit="0..1", ge=0, lt=1
    )
    learning_rate: float = setting(1e-4, "highest learning rate, after the warm-up", gt=0)
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = setting("cosine", "learning rate after the warm-up")
    warmup: float = setting(
        0.03, "warm-up from 0 to the learning rate: below 1 a share of all steps, from 1 on a number of steps", ge=0
    )
    optimiser: Literal["adamw_8bit", "paged_adamw_8bit", "adamw_torch_fused"] = setting(
        "adamw_8bit", "AdamW with its state in 8 bits, the same in pages that can leave the GPU, or in float32"
    )
    weight_decay: float = setting(0.01, "decoupled weight decay", ge=0)
    clip: float = setting(0.3, "longest gradient (norm over all that is trained); 0: no limit", ge=0)
    neftune: float = setting(5.0, "noise on the tokens' embeddings while training (NEFTune's alpha); 0: none", ge=0)
    batch_size: int = setting(4, "examples that go through the model at once, on each GPU", unit="examples", gt=0)
    accumulation: int = setting(
        4, "batches whose gradients make one step; a step learns from batch-size x accumulation x GPUs examples",
        unit="batches", gt=0,
    )  # fmt: skip
    similar_lengths: bool = setting(
        True, "put examples into batches with others of their length: less padding, a little less random"
    )
    epochs: float = setting(
        2, "times that each sample is seen, each time with one of its reasonings", unit="epochs", gt=0
    )
    max_steps: int | None = setting(None, "end after so many steps, whatever --epochs says", unit="steps", gt=0)
    eval_every: int = setting(500, "measure the loss on the validation split", unit="steps", gt=0)
    patience: int = setting(
        3, "stop after so many evaluations in a row that are not better by --min-delta; 0: never", unit="evaluations",
        ge=0,
    )  # fmt: skip
    min_delta: float = setting(0.001, "what counts as better", unit="nats per token", ge=0)
    save_every: int = setting(
        500, "write a checkpoint; a new best evaluation and the end write one too", unit="steps", gt=0,
        shapes_result=False,
    )  # fmt: skip
    keep: int = setting(
        3, "checkpoints kept, the newest and beside them the best: older ones are deleted, here and in storage, "
        "when a new one is whole", unit="checkpoints", gt=0,
        shapes_result=False,
    )  # fmt: skip
    gradient_checkpointing: Literal["auto", "on", "off"] = setting(
        "auto", "compute activations twice instead of keeping them: a third of the memory, a fifth slower; "
        "auto: on a GPU"
    )  # fmt: skip
    seed: int = setting(42, "first values of adapters, order of examples, dropout, noise", ge=0)
    report_to: CommaSeparated = setting(
        ("tensorboard",), "where losses are shown: tensorboard, wandb, mlflow, or none; separated by commas",
        shapes_result=False,
    )  # fmt: skip
    workers: int | None = setting(
        None, "processes that prepare pictures; default: 2 beside a GPU, else none", unit="processes", ge=0,
        shapes_result=False,
    )  # fmt: skip
    cache_mib: int = setting(
        1024, "memory for prepared pictures; with enough, each is prepared once", unit="MiB", ge=0, shapes_result=False
    )
    nproc: int | None = setting(
        None, "ranks in this pod; default: what PET_NPROC_PER_NODE says, else one for each GPU, one without a GPU",
        unit="processes", ge=1, shapes_result=False,
    )  # fmt: skip
    grace_seconds: float = setting(
        30, "time between SIGTERM and SIGKILL; the last checkpoint is only begun when there is time for it",
        unit="seconds", gt=0, shapes_result=False,
    )  # fmt: skip

    @field_validator("method")
    @classmethod
    def _is_there(cls, value: str) -> str:
        if value != "sft":
            raise ValueError("this method is not there yet; sft is")
        return value

    @field_validator("report_to")
    @classmethod
    def _trackers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == ("none",):
            return ()
        if unknown := [name for name in value if name not in TRACKERS]:
            raise ValueError(f"no such tracker: {', '.join(unknown)}; there are {', '.join(TRACKERS)}, or none alone")
        if missing := [TRACKERS[name] for name in value if importlib.util.find_spec(TRACKERS[name]) is None]:
            raise ValueError(f"not installed here: {', '.join(missing)}; install it, or leave it out")
        return value

    @model_validator(mode="after")
    def _they_agree(self) -> Self:
        if self.part not in ("all", "prepare", "look"):
            raise ValueError("train is not made of shards: --part and --shard have no meaning here")
        useless = [flag(name) for name in ("r", "alpha", "dropout") if name in self.model_fields_set]
        if self.tune == "full" and useless:
            raise ValueError(
                f"{', '.join(useless)}: --tune full has no adapters; leave it out, or choose --tune lora or qlora"
            )
        if self.warmup >= 1 and self.max_steps is not None and self.warmup >= self.max_steps:
            raise ValueError(
                f"--warmup={self.warmup:g} steps leaves nothing of --max-steps={self.max_steps}; "
                "below 1 it is a share of all steps"
            )
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            raise ValueError(f"--warmup={self.warmup:g} is neither a share below 1 nor a whole number of steps")
        return self


def run(settings: TrainSettings) -> None:
    # Where cores are shared, threads that spin while they wait make a small model ten times slower. Must be set
    # before torch is loaded; no number changes by it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vcot.records.shards import Folder, read_mark
    from vcot.storage import Store, join

    folder = Folder(Store(), settings.run_uri, settings.stage)
    if (rank := Rank.from_environment()) is not None:
        _as_rank(settings, folder, rank)
        return
    source_uri = settings.input_uri or join(settings.run_uri, "tokenize")
    source, inputs = read_mark(folder.store, source_uri)
    if (done := folder.whole(settings, inputs)) is not None:
        summary(**done.facts["losses"])
        return
    from vcot.models import use_device

    # Before the base is fetched. Of several processes each tries its own GPU, and this one holds none.
    if settings.part == "all":
        use_device(settings.device, compute=False)
    world = World.asked_for(settings.nproc)
    if settings.part == "all" and world.size == 1:
        use_device(settings.device)
    with tempfile.TemporaryDirectory(prefix="train-", ignore_cleanup_errors=True) as scratch:
        _train(settings, folder, source_uri, source, inputs, Path(scratch), world)


@dataclass(frozen=True)
class Material:
    """What a training needs on this disk, and what it says of its inputs: URI → sha256."""

    contract: Mapping[str, Any]
    base: str
    base_sha256: str
    examples: tuple[str, ...]
    inputs: Mapping[str, str]

    NAME: ClassVar[str] = "material.json"


def _train(
    settings: TrainSettings,
    folder: Folder,
    source_uri: str,
    source: StageMark,
    inputs: dict[str, str],
    scratch: Path,
    world: World,
) -> None:
    """Fetches once for all processes of this pod, and learns in this one where it is the only one."""
    material = _fetch(settings, folder, source_uri, source, inputs, scratch)
    if settings.part == "prepare":
        return
    if world.size == 1:
        from vcot.training.group import ALONE

        _learn(settings, folder, material, scratch, ALONE)
        return
    (scratch / Material.NAME).write_text(json.dumps(asdict(material)))
    run_ranks(world, scratch, settings.grace_seconds)


def _as_rank(settings: TrainSettings, folder: Folder, rank: Rank) -> None:
    from vcot import log

    summary.path = rank.last_word
    log.bind(rank=rank.number)
    if rank.number > 0:
        log.quiet()
    from vcot.models import use_device
    from vcot.training.group import Group

    use_device(settings.device)
    scratch = Path(rank.folder)
    material = Material(**json.loads((scratch / Material.NAME).read_text()))
    _learn(settings, folder, material, scratch, Group.join(rank))


def _fetch(
    settings: TrainSettings, folder: Folder, source_uri: str, source: StageMark, inputs: dict[str, str], scratch: Path
) -> Material:
    from vcot.records.shards import fetch_file
    from vcot.storage.folders import fetch_with_digest

    store = folder.store
    base, digest = fetch_with_digest(store, settings.base_uri, scratch / "base")
    inputs |= {settings.base_uri: digest}
    folder.begin(settings, inputs)
    if settings.part == "prepare":
        return Material({}, str(base), digest, (), inputs)
    if "contract" not in source.facts:
        raise InputError(f"{source_uri}: its mark states no contract; it is not a finished tokenize stage")
    into = scratch / "examples"
    into.mkdir()
    examples = [fetch_file(store, source_uri, file, into) for mark in source.shards for file in mark.files]
    return Material(source.facts["contract"], str(base), digest, tuple(map(str, examples)), inputs)


def _learn(settings: TrainSettings, folder: Folder, material: Material, scratch: Path, group: Group) -> None:
    from vcot.records.example import Examples

    examples = Examples([Path(path) for path in material.examples])
    encoder = _encoder(material)
    tuned = _fine_tune(settings, folder, Path(material.base), encoder, examples, scratch, group)
    if not group.first:
        return
    from vcot.training.publish import publish

    base = {"uri": settings.base_uri, "sha256": material.base_sha256}
    publish(folder, settings, material.inputs, tuned, encoder, base, scratch)


def _encoder(material: Material) -> Encoder:
    """The base's processor, held against what the examples promise."""
    from vcot.tokens import Contract, Encoder, load_processor

    contract = Contract.model_validate(material.contract)
    processor = load_processor(Path(material.base), min_pixels=contract.min_pixels, max_pixels=contract.max_pixels)
    return Encoder(processor, contract)


def _fine_tune(
    settings: TrainSettings, folder: Folder, base: Path, encoder: Encoder, examples: Examples, scratch: Path,
    group: Group,
) -> Tuned:  # fmt: skip
    from vcot.models import device
    from vcot.storage import join
    from vcot.training.checkpoints import Checkpoints
    from vcot.training.publish import tell_what_led_to_it, upload_trackers
    from vcot.training.recipe import Recipe
    from vcot.training.sft import Place, fine_tune
    from vcot.training.trainer import NotFinite

    def saved() -> None:
        if group.first:
            upload_trackers(folder.store, scratch / "tensorboard", join(folder.uri, "tensorboard"))

    place = Place(
        scratch=scratch,
        trackers=settings.report_to if group.first else (),
        saved=saved,
        cache_bytes=settings.cache_mib << 20,
        workers=settings.workers if settings.workers is not None else 2 * (device().type == "cuda"),
        grace=settings.grace_seconds,
        group=group,
    )
    try:
        tuned = fine_tune(
            Recipe.of(settings),
            base=base,
            base_uri=settings.base_uri,
            encoder=encoder,
            examples=examples,
            checkpoints=Checkpoints(
                folder.store, join(folder.uri, "checkpoints"), scratch / "checkpoints", settings.keep, group.size
            ),
            place=place,
        )
    except NotFinite as error:
        if group.first:
            tell_what_led_to_it(folder, error.facts)
        saved()
        raise
    saved()
    return tuned


if __name__ == "__main__":
    launch(TrainSettings, run)
