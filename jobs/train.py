"""Entry point of the stage train: python -m jobs.train --run-uri … --base-uri …"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import field_validator, model_validator

from vcot.errors import InputError, SettingsError, VcotError
from vcot.settings import DEVICE, CommaSeparated, Device, Settings, offers, setting
from vcot.stage import launch, summary
from vcot.training.config import METHODS, GFNOptions, GRPOOptions, RolloutOptions, TrainingConfig, disagreements
from vcot.training.launcher import Rank, World, run_ranks
from vcot.training.start import StartFacts, check_start

if TYPE_CHECKING:
    from vcot.records import Contract
    from vcot.records.base import Record
    from vcot.records.metadata import NoMetadata, TokenizeMetadata, TrainMetadata
    from vcot.records.shards import Folder, StageMarker
    from vcot.storage import Store

    TrainFolder = Folder[NoMetadata, TrainMetadata]

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Each is the name of the package that it needs, too."""


@offers("method", METHODS)
class TrainSettings(TrainingConfig, Settings):
    """Fine-tunes the base on the examples of <run-uri>/tokenize and writes the model to <run-uri>/train/model.

    The defaults are QLoRA: the base in 4 bits, adapters of rank 64 on the language model. On a GPU or without
    one, the same. With several GPUs it starts a process for each; in several pods PET_NNODES, PET_NODE_RANK and
    PET_MASTER_ADDR say how they find each other. Checkpoints go to storage while it runs; a run that was stopped or
    killed goes on from the last whole one with the same command, and ends with the same losses. Beside the model:
    losses.json, losses.png, tensorboard/, report.json.
    """

    stage: ClassVar[str] = "train"

    base_uri: str = setting(
        description="folder of the base model: weights in safetensors, tokenizer, processor",
        min_length=1,
        existing_folder=True,
    )
    input_uri: str | None = setting(None, "finished stage with the examples; default: <run-uri>/tokenize")
    from_uri: str | None = setting(
        None,
        "folder of a model that train has made, to go on from; default: with sft the base, else the model of the "
        "run whose examples it reads, <input-uri>/../train/model, if there is one",
    )
    method: str = setting("sft", "how it learns; see below")
    device: Device = setting("auto", DEVICE, shapes_result=False)
    save_total_limit: int = setting(
        3, "checkpoints kept, the newest and beside them the best: older ones are deleted, here and in storage, "
        "when a new one is whole", unit="checkpoints", gt=0,
        shapes_result=False,
    )  # fmt: skip
    report_to: CommaSeparated = setting(
        ("tensorboard",), "where losses are shown: tensorboard, wandb, mlflow, or none; separated by commas",
        shapes_result=False,
    )  # fmt: skip
    dataloader_num_workers: int | None = setting(
        None, "processes that prepare images; default: 2 beside a GPU, else none", unit="processes", ge=0,
        shapes_result=False,
    )  # fmt: skip
    cache_mib: int = setting(
        1024, "memory of each rank for prepared images, in all its processes together; with enough, each is prepared "
        "once", unit="MiB", ge=0, shapes_result=False,
    )  # fmt: skip
    cache_gib: float = setting(
        20, "disk for shards of examples, which arrive while it trains and leave when they are not needed for long; at "
        "least --shuffle-gib, unless all examples are less. Where not all fit, each evaluation fetches again what it "
        "needs", unit="GiB", gt=0, shapes_result=False,
    )  # fmt: skip
    nproc_per_node: int | None = setting(
        None, "ranks in this pod; default: what PET_NPROC_PER_NODE says, else one for each GPU, one without a GPU",
        unit="processes", ge=1, shapes_result=False,
    )  # fmt: skip
    grace_seconds: float = setting(
        30, "time between SIGTERM and SIGKILL; the last checkpoint is only begun when there is time for it",
        unit="seconds", gt=0, shapes_result=False,
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, given: Any) -> Any:
        method = METHODS.get(given.get("method", "sft")) if isinstance(given, dict) else None
        if method is None:
            return given
        of_adapters = {"lora_dropout"} if given.get("tune") == "full" else set()
        return {name: value for name, value in method.defaults.items() if name not in of_adapters} | given

    @field_validator("report_to")
    @classmethod
    def _trackers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value == ("none",):
            return ()
        if unknown := [name for name in value if name not in TRACKERS]:
            raise ValueError(f"no such tracker: {', '.join(unknown)}; there are {', '.join(TRACKERS)}, or none alone")
        if missing := [name for name in value if importlib.util.find_spec(name) is None]:
            raise ValueError(f"not installed here: {', '.join(missing)}; install it, or leave it out")
        return value

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        options = METHODS[self.method].options
        if issubclass(options, RolloutOptions):
            yield from disagreements(self, options.from_settings(self))

    @property
    def source_uri(self) -> str:
        """Folder of the stage tokenize whose examples are learned."""
        return self.input_uri or f"{self.run_uri.rstrip('/')}/tokenize"

    def validate_files(self) -> None:
        """Check what the start checks, with the facts that are known now."""
        from vcot.records.shards import DONE, TOKENIZE, read_marker
        from vcot.storage import Store, join

        super().validate_files()
        store, source, about = Store(), None, None
        with suppress(VcotError):  # storage may be out of reach here
            if _may_hold(store, join(self.source_uri, DONE)):
                source, _ = read_marker(store, self.source_uri, TOKENIZE)
            if self.from_uri is not None and _may_hold(store, contract := join(self.from_uri, "contract.json")):
                is_adapter = store.stat(join(self.from_uri, "adapter_config.json")) is not None
                about = store.read(contract)
        check_settings(self, World.asked_for(self.nproc_per_node), source)
        if source is not None and self.from_uri is not None and about is not None:
            _check_origin(self, self.from_uri, about, source.metadata.contract, is_adapter=is_adapter)

    @model_validator(mode="after")
    def _they_agree(self) -> Self:
        if self.part not in ("all", "prepare", "look"):
            raise ValueError("train is not made of shards: --part and --shard have no meaning here")
        return self


def run(settings: TrainSettings) -> None:
    # Where cores are shared, threads that spin while they wait make a small model ten times slower. Must be set
    # before torch is loaded; no number changes by it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vcot.records.shards import TOKENIZE, TRAIN, Folder, read_marker
    from vcot.storage import Store

    folder = Folder(Store(), settings.run_uri, TRAIN)
    if (rank := Rank.from_environment()) is not None:
        _as_rank(settings, folder, rank)
        return
    source_uri = settings.source_uri
    source, inputs = read_marker(folder.store, source_uri, TOKENIZE)
    if (done := folder.whole(settings, inputs)) is not None:
        summary(**done.metadata.losses.model_dump())
        return
    world = World.asked_for(settings.nproc_per_node)
    check_settings(settings, world, source)
    from vcot.models.device import use_device

    # Before the base is fetched. Of several processes each tries its own GPU, and this one holds none.
    if settings.part == "all":
        use_device(settings.device, compute=False)
    if settings.part == "all" and world.size == 1:
        use_device(settings.device)
    with tempfile.TemporaryDirectory(prefix="train-", ignore_cleanup_errors=True) as scratch:
        _train(settings, folder, source_uri, source, inputs, Path(scratch), world)


def check_settings(settings: TrainSettings, world: World, source: StageMarker[Record, TokenizeMetadata] | None) -> None:
    """Check the settings against the ranks and, where they are made, the examples; `--check` and the start call it.

    Raises:
        SettingsError: a line for each rule that is broken.
    """
    facts = StartFacts(
        ranks=world.size,
        on_gpu=settings.device == "cuda" or (settings.device == "auto" and world.gpus > 0),
        roles=None if source is None else source.metadata.contract.roles,
    )
    check_start(settings, METHODS[settings.method].options.from_settings(settings), facts)
    if source is not None:
        _demand_room(settings, [file.size for marker in source.shards for file in marker.files])


def _may_hold(store: Store, uri: str) -> bool:
    """Return whether an object exists, as far as --check can see. It sends no request to S3 without keys in the
    environment: boto3 would search for others for seconds."""
    keys = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    return ("://" not in uri or any(name in os.environ for name in keys)) and store.stat(uri) is not None


@dataclass(frozen=True)
class TrainingInputs:
    """What a training needs on this disk, and what it says of its inputs: URI → sha256."""

    contract: Mapping[str, Any]
    base: str
    base_uri: str
    base_sha256: str
    adapter: str | None
    examples_uri: str
    examples: tuple[Mapping[str, Any], ...]
    samples_uri: str | None
    inputs: Mapping[str, str]

    NAME: ClassVar[str] = "inputs.json"


def _train(
    settings: TrainSettings, folder: TrainFolder, source_uri: str, source: StageMarker[Record, TokenizeMetadata],
    inputs: dict[str, str], scratch: Path, world: World,
) -> None:  # fmt: skip
    """Fetches once for all processes of this pod, and learns in this one where it is the only one."""
    from vcot.records.shards import DONE
    from vcot.storage.folders import fetch_with_digest

    files = [file for marker in source.shards for file in marker.files]
    base, digest = fetch_with_digest(folder.store, settings.base_uri, scratch / "base")
    inputs |= {settings.base_uri: digest}
    base_uri, adapter = settings.base_uri, None
    if (from_uri := _begins_with(settings, folder, source_uri)) is not None:
        tuned, its_digest = fetch_with_digest(folder.store, from_uri, scratch / "from")
        inputs |= {from_uri: its_digest}
        if _is_adapter(settings, from_uri, tuned, digest, source.metadata.contract):
            adapter = str(tuned)
        else:
            base, base_uri, digest = tuned, from_uri, its_digest
    folder.begin(settings, inputs)
    if settings.part == "prepare":
        return
    contract = source.metadata.contract.model_dump(mode="json")
    examples = tuple(file.model_dump() for file in files)
    samples_uri = next((uri.removesuffix(f"/{DONE}") for uri in source.inputs if uri.endswith(f"/{DONE}")), None)
    fetched = TrainingInputs(
        contract, str(base), base_uri, digest, adapter, source_uri, examples, samples_uri, inputs
    )  # fmt: skip
    if world.size > 1:
        (scratch / TrainingInputs.NAME).write_text(json.dumps(asdict(fetched)))
        run_ranks(world, scratch, settings.grace_seconds)
        return
    _learn(settings, folder, fetched, scratch)


def _begins_with(settings: TrainSettings, folder: TrainFolder, source_uri: str) -> str | None:
    """Folder of the model to go on from; None: the base."""
    from vcot import logging
    from vcot.records.shards import DONE
    from vcot.storage import join

    if settings.from_uri is not None or settings.method == "sft":
        return settings.from_uri
    beside = join(source_uri.rstrip("/").rpartition("/")[0], "train")
    if beside != folder.uri and folder.store.stat(join(beside, DONE)) is not None:
        logging.get().info("it begins with the model beside its examples", uri=join(beside, "model"))
        return join(beside, "model")
    logging.get().warning("it learns from rewards with a base that was not tuned before; --from-uri names one that was")
    return None


def _is_adapter(settings: TrainSettings, from_uri: str, tuned: Path, base_sha256: str, contract: Contract) -> bool:
    """Whether the model to go on from is an adapter on the base, and not a model by itself.

    Raises:
        InputError: it is no model of train, or writes boxes in another frame, or in other turns, than the examples.
        SettingsError: it is an adapter on another base, or cannot be tuned so.
    """
    try:
        about = (tuned / "contract.json").read_bytes()
    except OSError:
        about = b""
    is_adapter = (tuned / "adapter_config.json").is_file()
    _check_origin(settings, from_uri, about, contract, is_adapter=is_adapter, base_sha256=base_sha256)
    return is_adapter


def _check_origin(
    settings: TrainSettings, from_uri: str, about: bytes, contract: Contract, *, is_adapter: bool,
    base_sha256: str | None = None,
) -> None:  # fmt: skip
    """Check the model to go on from against the examples and the settings; `--check` and the start call it.

    Args:
        about: its contract.json. base_sha256: of the base where that is known.

    Raises: as `_is_adapter`.
    """
    try:
        described = json.loads(about)
        its_base, its_contract = described["base"], described["contract"]
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"--from-uri={from_uri}: no model that train made; it has no contract.json with a base. A model "
            "that was not tuned here is --base-uri"
        ) from None
    if its_contract["frame"] != contract.frame:
        raise InputError(
            f"--from-uri={from_uri} writes boxes in {its_contract['frame']}, the examples in "
            f"{contract.frame}; tokenize them with the frame of the model"
        )
    if (its_roles := tuple(its_contract.get("roles", ()))) != contract.roles:
        raise InputError(
            f"--from-uri={from_uri} was tuned with --roles={','.join(its_roles) or '(none)'}, the examples are made "
            f"with --roles={','.join(contract.roles) or '(none)'}; tokenize them with the model's"
        )
    if not is_adapter:
        return
    if settings.tune == "full":
        raise SettingsError(
            f"--tune full: --from-uri={from_uri} is an adapter; go on as it was made, with --tune lora or qlora"
        )
    if base_sha256 is not None and its_base["sha256"] != base_sha256:
        raise SettingsError(
            f"--from-uri={from_uri} is an adapter on {its_base['uri']}, and --base-uri={settings.base_uri} "
            "is another model; give the one that it was tuned from"
        )


def _demand_room(settings: TrainSettings, sizes: list[int]) -> None:
    """Raises SettingsError: --cache-gib holds less than the shards that are read at the same time."""
    together, largest = min(sum(sizes), int(settings.shuffle_gib * 2**30)), max(sizes, default=0)
    needed = max(together, largest)
    if settings.cache_gib * 2**30 < needed:
        what = "the largest shard" if largest >= together else "the shards that are shuffled together"
        other = "" if largest >= together else ", or a smaller --shuffle-gib, which is another order of examples"
        raise SettingsError(
            f"--cache-gib={settings.cache_gib:g} has no room for {what}, {needed / 2**30:.3g} GiB; give "
            f"--cache-gib={math.ceil(needed / 2**30 * 1000) / 1000:g} or more{other}"
        )


def _as_rank(settings: TrainSettings, folder: TrainFolder, rank: Rank) -> None:
    from vcot import logging
    from vcot.models.device import use_device
    from vcot.training.engine import process_group

    summary.path = rank.last_word
    logging.bind(rank=rank.number)
    if rank.number > 0:
        logging.quiet()
    use_device(settings.device)
    scratch = Path(rank.folder)
    fetched = TrainingInputs(**json.loads((scratch / TrainingInputs.NAME).read_text()))
    with process_group():
        _learn(settings, folder, fetched, scratch, rank)


def _learn(
    settings: TrainSettings, folder: TrainFolder, fetched: TrainingInputs, scratch: Path, rank: Rank | None = None
) -> None:
    from vcot.models.device import device
    from vcot.records import Contract
    from vcot.records.cache import ShardCache
    from vcot.records.example import Examples
    from vcot.records.shards import File
    from vcot.storage import join, put_folder
    from vcot.tokens import Encoder, load_processor
    from vcot.training.checkpoints import Checkpoints
    from vcot.training.engine import NotFinite, RunContext, in_shards, in_turn
    from vcot.training.publish import publish, write_failure

    def saved() -> None:
        # Event files so far, after each checkpoint, so that a run that goes on from it repeats no step.
        if context.first and (scratch / "tensorboard").is_dir():
            put_folder(folder.store, scratch / "tensorboard", join(folder.uri, "tensorboard"))

    number, ranks = (0, 1) if rank is None else (rank.number, rank.size)
    base, contract = Path(fetched.base), Contract.model_validate(fetched.contract)
    processor = load_processor(base, min_pixels=contract.min_pixels, max_pixels=contract.max_pixels)
    encoder = Encoder(processor, contract)  # holds the base's processor against what the examples promise
    workers = settings.dataloader_num_workers
    context = RunContext(
        scratch=scratch, trackers=settings.report_to if number == 0 else (),
        saved=saved,
        cache_bytes=settings.cache_mib << 20, workers=2 * (device().type == "cuda") if workers is None else workers,
        grace=settings.grace_seconds, rank=number, ranks=ranks, first_of_pod=rank is None or rank.local == 0,
    )  # fmt: skip
    files = [File.model_validate(file) for file in fetched.examples]
    cache = ShardCache(folder.store, fetched.examples_uri, files, scratch / "examples", int(settings.cache_gib * 2**30))
    uri, here = join(folder.uri, "checkpoints"), scratch / "checkpoints"
    examples = in_turn(context, lambda: Examples(cache))
    given: dict[str, Any] = {
        "base": base, "base_uri": fetched.base_uri, "adapter": fetched.adapter and Path(fetched.adapter),
        "encoder": encoder, "context": context,
        "checkpoints": Checkpoints(folder.store, uri, here, settings.save_total_limit),
    }  # fmt: skip
    exits = ExitStack()
    try:
        if settings.method == "sft":
            from vcot.training.sft import fine_tune

            result = fine_tune(settings, examples=examples, **given)
        else:
            from vcot.records.shards import OF_SAMPLES, read_marker, read_samples
            from vcot.training.questions import Questions
            from vcot.training.rollout_log import RolloutLog

            if fetched.samples_uri is None:
                raise InputError(
                    f"{fetched.examples_uri}: it does not say which Samples it was made of; run tokenize again"
                )
            source, _ = read_marker(folder.store, fetched.samples_uri, *OF_SAMPLES)
            kind = METHODS[settings.method].options
            assert issubclass(kind, RolloutOptions)
            options = kind.from_settings(settings)
            questions = Questions(
                examples, read_samples(folder.store, fetched.samples_uri, source), encoder,
                way="ground" if "ground" in contract.ways else contract.ways[0],
                alone=options.questions == "without-reasoning", cache_bytes=context.cache_bytes,
                file=scratch / f"samples-{number}.jsonl",
            )  # fmt: skip
            if isinstance(options, GRPOOptions) and options.judge is not None:
                from vcot.distill.endpoint import address_and_name
                from vcot.distill.judge import Judge
                from vcot.training.measures import Judged

                judge = exits.enter_context(
                    Judge(
                        folder.store, *address_and_name(options.judge, "--judge"), cache_uri=join(folder.uri, "judge"),
                        budget_requests=options.judge_requests, stage="train", flags=False, stops=False,
                    )
                )  # fmt: skip
                given["measures"] = {"judge": Judged(judge, questions)}
            log = RolloutLog(
                folder, questions, contract.frame_spec, every=options.rollouts_every, save_steps=settings.save_steps,
                updates=options.num_iterations if isinstance(options, GRPOOptions) else 1,
            )  # fmt: skip
            exits.callback(log.write)  # however it ends: the last replies are what a person wants to see then
            given |= {"questions": questions, "keep": log.keep}
            if isinstance(options, GRPOOptions):
                from vcot.training.grpo import learn_from_rewards

                result = learn_from_rewards(settings, options, **given)
            else:
                from vcot.training.gfn import learn_to_sample

                assert isinstance(options, GFNOptions)
                result = learn_to_sample(settings, options, **given)
    except NotFinite as error:
        if context.first:
            write_failure(folder, error.details)
        saved()
        raise
    finally:
        exits.close()
    saved()
    if context.first or in_shards(result.model):
        about = {"uri": fetched.base_uri, "sha256": fetched.base_sha256}
        publish(folder, settings, fetched.inputs, result, encoder, about, scratch)


if __name__ == "__main__":
    launch(TrainSettings, run)
