"""What a run will take, before anything is started or paid for: rows, tokens, steps, storage, memory, GPU-hours, money.

    found = estimate(settings, options)      settings: stage → its settings
    show(found, config, console)             tables and a line in words (estimate_table)
    found.to_json()                          the same for programs

Each number is low / expected / high where it is not counted; where the ranges come from stands in `Estimate.grounds`,
and is printed.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml

from vcot.distill.costs import PICO, prompt_tokens, read_prices
from vcot.distill.strategies import STRATEGIES
from vcot.errors import InputError, SettingsError
from vcot.evaluation.config import WAYS, Model, Way
from vcot.models.shapes import Shapes
from vcot.pipeline.estimate_options import DEFAULT_GPU, EstimateOptions
from vcot.pipeline.rows import ASSUMED, WRITTEN, WRITTEN_FROM, Data, FinishedStages, Range, Typical, data_of
from vcot.records.example import Row
from vcot.records.shards import CONVERT, DISTILL, TOKENIZE, TRAIN
from vcot.storage import NotFound, Store, join, read_json
from vcot.training.batches import Plan
from vcot.training.config import METHODS, RolloutOptions, TrainingConfig
from vcot.training.estimate import (
    CONTEXT,
    ERROR,
    NF4_BITS,
    OPTIMISER_BYTES,
    DtypeName,
    Load,
    Memory,
    checkpoints,
    divides,
)
from vcot.training.flops import GPU, GPUS, Flops, step_flops

UTILISATION = Range(0.5, 0.38, 0.25)
"""Share of a GPU's peak that is computed, what is computed twice included, for low, expected and high hours. Published:
43 % for adapters on text on an H100 (NeMo Automodel); 30 to 40 % of what is needed, so up to half of the peak as
computed, for a 7B with images (lmms-engine); 23 % in GRPO (EasyR1)."""
DECODING = Range(0.5, 0.25, 0.08)
"""Share of a GPU's memory bandwidth that reading the weights for each written token gets, by transformers' generate."""
EXPANDED = 50_000
"""Examples whose batches are planned one by one; of more, the steps are scaled."""
COUNTED = 5_000
"""Examples whose FLOPs are counted; of more, they are scaled."""


@dataclass(frozen=True)
class StageEstimate:
    """None: does not apply, or nobody knows. stored: bytes."""

    rows: Range
    stored: Range
    tokens: Range | None = None
    visual: Range | None = None
    steps: Range | None = None
    flops: Range | None = None
    gpu_hours: Range | None = None
    usd: Range | None = None


@dataclass(frozen=True)
class Estimate:
    """
    Attributes:
        basis: where the rows are from. stages: by name. gpu: its name, gpus: how many, gpu_bytes: memory of one.
        memory: of the training on each; parts in bytes. checkpointing, sharded: what --gradient-checkpointing and
        --parallel come to there. grounds: where ranges are from. calibrated, measured: see there.
    """

    basis: str
    stages: Mapping[str, StageEstimate]
    gpu: str
    gpus: int
    gpu_bytes: int
    memory: Memory
    load: Load
    checkpointing: bool
    sharded: bool
    grounds: tuple[str, ...]
    calibrated: Mapping[str, float] = field(default_factory=dict)
    measured: tuple[Measured, ...] = ()
    run_uri: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


@dataclass(frozen=True)
class Measured:
    """A number of a finished stage beside the planned one."""

    stage: str
    what: str
    planned: float
    measured: float


def estimate(
    settings: Mapping[str, Any], options: EstimateOptions, fingerprints: Mapping[str, Mapping[str, Any]] | None = None
) -> Estimate:
    """
    Args:
        settings: stage → its settings; those that are judged, train among them or not.
        fingerprints: stage → the settings that shape its result in the run itself, where the plan reads folders of
            this computer instead of their copies in storage. Default: those of `settings`.

    Raises:
        InputError: rows or base cannot be read.
    """
    name, gpu = _gpu(options)
    train, base_uri = settings["train"], settings["train"].base_uri
    shapes = _shapes(base_uri)
    given = options.rows is not None
    typical = Typical(options.rows or 0, options.visual_tokens, options.text_tokens, options.reply_tokens)
    prints = fingerprints or {stage: each.fingerprint() for stage, each in settings.items()}
    finished = FinishedStages.of(settings, prints)
    data = data_of(settings, base_uri, typical if given else None, finished)
    dtype = _dtype(train, name)
    stages = {"convert": _convert(settings["convert"], data), "distill": _distill(settings["distill"], data)}
    work = _Work.of(train, data, shapes, options.gpus)
    stages["tokenize"] = _tokenize(data, work)
    memory_of_gpu = None if name == "cpu" else gpu.bytes
    sharded = divides(shapes, train, ranks=options.gpus, memory=memory_of_gpu)
    twice = checkpoints(shapes, train, dtype=dtype, memory=memory_of_gpu, ranks=options.gpus, sharded=sharded)
    memory = Memory.of(
        shapes, train, work.load, dtype=dtype, where="cpu" if name == "cpu" else "cuda", checkpointing=twice,
        ranks=options.gpus, sharded=sharded,
    )  # fmt: skip
    calibrated = _calibrated(train, base_uri, work) if options.calibrate else {}
    speed = calibrated.get("tokens_per_second")
    price = options.gpu_hour_usd
    stages["train"] = _train(train, data, work, shapes, gpu, price, twice=twice, tokens_per_second=speed)
    stages["evaluate"] = _evaluate(
        settings["evaluate"], settings["tokenize"].learn, train, data, work, shapes, gpu, price
    )  # fmt: skip
    return Estimate(
        data.basis, stages, name, options.gpus, gpu.bytes, memory, work.load, twice, sharded,
        (*_grounds(data, settings, name, shapes), *finished.notes), calibrated,
        () if given else measured_of(settings["train"].run_uri, finished, stages, memory, options.gpus, (name, gpu)),
        settings["train"].run_uri,
    )  # fmt: skip


def _gpu(options: EstimateOptions) -> tuple[str, GPU]:
    name = options.gpu or (options.overlay and _of_pool(options.overlay)) or DEFAULT_GPU
    if name == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        gpu = GPU(memory >> 20, math.nan, math.nan)
    else:
        gpu = GPUS[name]
    if options.gpu_memory_gib is not None:
        gpu = GPU(int(options.gpu_memory_gib * 1024), gpu.peak, gpu.bandwidth)
    return name, gpu


def _of_pool(overlay: Path) -> str | None:
    """The GPU that the node pool among an overlay's components asks for, where it names a kind."""
    try:
        components = yaml.safe_load((overlay / "kustomization.yaml").read_text()).get("components", [])
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"--overlay={overlay}: not an overlay: {error}") from None
    for one in components:
        path = overlay / one / "kustomization.yaml"
        said = path.read_text() if path.exists() else ""
        if kind := re.search(r"(?:gke-accelerator|instance-gpu-name):\s*(?:nvidia-)?([\w-]+)", said):
            plain = kind[1].removeprefix("tesla-").replace("-", "").removesuffix("gb")
            # Of several cards of a name the SXM one, as in GPUS; a100 alone is that of 40 GB.
            cards = (name for name in GPUS if "pcie" not in name or "pcie" in plain)
            if (gpu := next((name for name in cards if name.replace("-", "").startswith(plain)), None)) is None:
                raise SettingsError(
                    f"--overlay={overlay}: its node pool asks for {kind[1]}, which is none of {', '.join(GPUS)}; say "
                    "with --gpu which of these comes nearest, and with --gpu-memory-gib what it holds"
                )
            return gpu
    return None


def settings_folders(base: Path, overlay: Path) -> list[Path]:
    """Folders with settings/<stage>.env that an overlay is made of, in the order in which they beat each other.

    Raises SettingsError: it is no overlay.
    """
    try:
        resources = yaml.safe_load((overlay / "kustomization.yaml").read_text()).get("resources", [])
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"--overlay={overlay}: not an overlay: {error}") from None
    below = [overlay / one for one in resources if (overlay / one / "kustomization.yaml").exists()]
    found = [base]
    for one in below:
        found += [folder for folder in settings_folders(base, one.resolve()) if folder not in found]
    return [*found, *([overlay / "settings"] if (overlay / "settings").is_dir() else [])]


def _shapes(base_uri: str) -> Shapes:
    try:
        config = read_json(Store(), join(base_uri, "config.json"), dict, "push the base again")
    except NotFound:
        raise InputError(
            f"--base-uri={base_uri}: there is no config.json; put the base there (make push-base), or say with "
            "--base which folder here has at least its config.json"
        ) from None
    except ValueError as error:
        raise InputError(f"{base_uri}/config.json is not JSON: {error}") from None
    return Shapes.of(config if isinstance(config, dict) else {}, base_uri)


def _dtype(config: TrainingConfig, gpu: str) -> DtypeName:
    if config.dtype != "auto":
        return config.dtype
    if gpu != "cpu":
        return "bfloat16"
    from vcot.models.device import compute_dtype, use_device

    use_device("cpu")
    return "bfloat16" if str(compute_dtype("auto")).endswith("bfloat16") else "float32"


# --- stages ------------------------------------------------------------------------------------------------


def _convert(settings: Any, data: Data) -> StageEstimate:
    copies = data.image_bytes if settings.ingest else 0.0
    made = Range.around(data.kept * (data.sample_bytes + copies), 0.3)
    return StageEstimate(Range.exactly(data.rows), _stored(data, "convert", made))


def _stored(data: Data, stage: str, estimated: Range) -> Range:
    """What a finished stage has, else what is estimated."""
    return Range.exactly(data.done[stage]) if stage in data.done else estimated


def _distill(settings: Any, data: Data) -> StageEstimate:
    """What a teacher costs: the requests of the strategy's own estimate, for the rows that were looked at."""
    stored = _stored(data, "distill", Range.around(data.kept * data.sample_bytes * 1.2, 0.3))
    rows = Range.exactly(data.kept)
    if settings.teacher != "openai" or not data.to_teach:
        return StageEstimate(rows, stored, usd=Range.exactly(0) if settings.teacher != "openai" else None)
    store = Store()
    prices = read_prices(store, settings.prices)
    strategy = STRATEGIES[settings.strategy].make(settings, store)
    tokens, pico, known = [0.0] * 3, [0.0] * 3, True
    for sample in data.to_teach:
        for request in strategy.estimate(sample):
            price = prices.of(request.model)
            prompt = prompt_tokens(request, price)
            replies = (
                min(WRITTEN_FROM, request.reply_tokens),
                min(WRITTEN, request.reply_tokens),
                request.reply_tokens,
            )
            for n, (into, out) in enumerate(zip((prompt.likely, prompt.likely, prompt.most), replies, strict=True)):
                tokens[n] += into + out
                known &= price is not None
                pico[n] += price.cost(into, out, batch=settings.batch) if price else 0
    times = data.times_to_teach
    usd = Range(*(one * times / PICO for one in pico)) if known else None
    return StageEstimate(rows, stored, tokens=Range(*tokens) * times, usd=usd)


def _tokenize(data: Data, work: _Work) -> StageEstimate:
    number = data.times * len(data.examples)
    tokens = data.times * sum(row.tokens for row in data.examples)
    visual = data.times * sum(row.patches for row in data.examples) / work.merge**2
    stored = _stored(data, "tokenize", Range.around(number * data.image_bytes + 2 * tokens, 0.3))
    return StageEstimate(Range.exactly(number), stored, data.count(tokens), data.count(visual))


@dataclass(frozen=True)
class _Work:
    """Of a training: steps; tokens that are learned from in all of it, real and with padding; what its largest batch
    has; how many tokens each evaluation has, and how many evaluations."""

    steps: Range
    tokens: Range
    slots: Range
    load: Load
    validation_tokens: float
    evaluations: float
    merge: int

    @classmethod
    def of(cls, config: Any, data: Data, shapes: Shapes, gpus: int) -> _Work:
        rows, scale = _expanded(data)
        if issubclass(METHODS[config.method].options, RolloutOptions):
            return cls._from_replies(config, data, shapes, rows, scale, gpus)
        plan = Plan.of(
            rows, batch_tokens=config.batch_tokens, packed=config.packing == "on",
            batches_per_step=config.gradient_accumulation_steps * gpus, epochs=1, seed=config.seed,
        )  # fmt: skip
        if not plan.steps:
            raise InputError("there would be not one example of the train split to learn from")
        epochs = config.num_train_epochs
        steps = data.count(math.ceil(len(plan.steps) * scale * epochs))
        if config.max_steps is not None:
            epochs = config.max_steps / (len(plan.steps) * scale)
            steps = Range.exactly(config.max_steps)
        packed = config.packing == "on"
        loads = [_load([rows[row] for row in batch], data.learned, packed) for step in plan.steps for batch in step]
        held = sum(rows[row].tokens for batch in plan.validation for row in batch)
        return cls(
            steps=steps, tokens=data.count(plan.real * scale * epochs), slots=data.count(plan.slots * scale * epochs),
            load=Load(*(max(getattr(one, name) for one in loads) for name in ("tokens", "patches", "learned"))),
            validation_tokens=held * scale, evaluations=steps.expected / config.eval_steps + 1 if held else 0,
            merge=shapes.merge,
        )  # fmt: skip

    @classmethod
    def _from_replies(
        cls, config: Any, data: Data, shapes: Shapes, rows: Sequence[Row], scale: float, gpus: int
    ) -> _Work:  # fmt: skip
        """Of a method that learns from replies of its own: rough, as nobody knows how long they will be."""
        train = [row for row in rows if row.split == "train"]
        if not train:
            raise InputError("there would be not one example of the train split to learn from")
        questions = len({row.sample for row in train}) * scale
        tokens = sum(row.tokens for row in train) / len(train)
        prompt, reply = tokens * (1 - data.learned), max(tokens * data.learned, 16)
        longest = config.max_completion_length
        replies = Range(min(reply / 2, longest), min(reply, longest), longest)
        steps = config.max_steps or math.ceil(questions * config.num_train_epochs / config.questions_per_step)
        number = steps * config.questions_per_step * config.num_generations
        all_tokens = Range(*(number * (prompt + one) for one in (replies.low, replies.expected, replies.high)))
        patches = max(row.patches for row in train)
        at_once = max(1, config.batch_tokens // max(1, int(prompt + longest)))
        load = Load(at_once * (prompt + longest), at_once * patches, at_once * longest)
        return cls(Range.exactly(steps), all_tokens, all_tokens, load, 0.0, 0.0, shapes.merge)


def _expanded(data: Data) -> tuple[list[Row], float]:
    """As many examples as there will be, or EXPANDED of them; and how many each of these stands for."""
    number = max(1, round(len(data.examples) * data.times))
    if data.times == 1:
        return list(data.examples), 1.0
    some = min(number, EXPANDED)
    rounds = -(-some // len(data.examples))
    rows = [
        Row(row.id, f"{row.sample}/{n}", row.alternative, row.split, row.tokens, row.patches, row.way)
        for n in range(rounds)
        for row in data.examples
    ]
    return rows[:some], number / some


def _load(batch: Sequence[Row], learned: float, packed: bool) -> Load:
    tokens = sum(row.tokens for row in batch)
    slots = tokens if packed else max(row.tokens for row in batch) * len(batch)
    return Load(slots, sum(row.patches for row in batch), tokens * learned)


def flops_of(shapes: Shapes, config: TrainingConfig, rows: Sequence[Row], learned: float) -> tuple[Flops, float]:
    """Of one pass over these examples, forward and backward, and how many tokens they have. Images count as squares."""
    rows = rows[:COUNTED]
    tokens = sum(row.tokens for row in rows)
    sides = [shapes.merge * max(1, round(math.sqrt(row.patches) / shapes.merge)) for row in rows if row.patches]
    grids = [(1, side, side) for side in sides]
    return step_flops(shapes, config, lengths=[r.tokens for r in rows], learned=tokens * learned, grids=grids), tokens


def _train(
    config: Any, data: Data, work: _Work, shapes: Shapes, gpu: GPU, price: float | None, *, twice: bool,
    tokens_per_second: float | None,
) -> StageEstimate:  # fmt: skip
    found, tokens = flops_of(shapes, config, data.examples, data.learned)
    a_token = found.total / tokens
    flops = work.tokens * a_token
    computed = work.slots * ((found.total + found.again * twice) / tokens)
    computed += Range.exactly(work.validation_tokens * work.evaluations * a_token / 3)
    draws = issubclass(METHODS[config.method].options, RolloutOptions)
    forward = 2 * found.again / tokens if draws else 0.0  # drawn, and judged by the model as it was
    computed += work.tokens * forward
    hours = Range(*(one / 3600 for one in _seconds(computed, gpu)))
    if tokens_per_second:  # of an update
        update = (found.total + found.again * twice) / tokens
        hours = work.slots * ((1 + forward / update) / tokens_per_second / 3600)
    if draws and not math.isnan(gpu.bandwidth):
        replies = work.steps.expected * config.questions_per_step * config.num_generations
        hours += _decoding(config, shapes, gpu, replies / config.generation_batch_size, config.max_completion_length)
    known = not math.isnan(hours.expected)
    trained = shapes.parameters() if config.tune == "full" else shapes.adapter_parameters(config.lora_r, config.targets)
    kept = min(config.save_total_limit + 1, work.steps.expected / config.save_steps + 1)
    model = trained * (2 if config.tune == "full" else 4)
    stored = model + kept * trained * (4 + OPTIMISER_BYTES[config.optim])
    return StageEstimate(
        Range.exactly(sum(row.split == "train" for row in data.examples) * data.times), Range.around(stored, 0.05),
        tokens=work.tokens, visual=work.tokens * _visual_share(data, shapes), steps=work.steps, flops=flops,
        gpu_hours=hours if known else None, usd=hours * price if known and price else None,
    )  # fmt: skip


def _seconds(flops: Range, gpu: GPU) -> tuple[float, float, float]:
    share = UTILISATION
    return (
        flops.low / share.low / gpu.peak, flops.expected / share.expected / gpu.peak, flops.high / share.high / gpu.peak
    )  # fmt: skip


def _decoding(config: Any, shapes: Shapes, gpu: GPU, batches: float, longest: int) -> Range:
    """Hours of writing: for each token of a batch all weights are read once."""
    size = shapes.parameters("language") * (NF4_BITS / 8 if config.tune == "qlora" else 2)
    seconds = batches * longest * size / gpu.bandwidth / 3600
    share = DECODING
    # A batch is written until its longest reply ends, or the limit.
    return Range(0.4 * seconds / share.low, 0.7 * seconds / share.expected, seconds / share.high)


def _visual_share(data: Data, shapes: Shapes) -> float:
    tokens = sum(row.tokens for row in data.examples)
    return sum(row.patches for row in data.examples) / shapes.merge**2 / max(tokens, 1)


def _evaluate(
    settings: Any, learned: Sequence[str], train: Any, data: Data, work: _Work, shapes: Shapes, gpu: GPU,
    price: float | None,
) -> StageEstimate:  # fmt: skip
    """learned: ways that the examples are made in (tokenize --learn)."""
    from vcot.evaluation.runner import units

    questions = min(data.held_out, settings.max_samples or data.held_out)
    ways: list[Way] = [way for way in WAYS if way in (settings.ask or learned)] or ["ground"]
    base: list[Model] = ["base"] if settings.native_form == "as-tuned" else ["base", "native"]
    models: list[Model] = [*(base if settings.ask_base else ()), "subject"]
    asked = units(1, models, ways, settings.conditions, 1, settings.draws, settings.probe)
    times = sum(unit.draws or 1 for unit in asked)
    found, tokens = flops_of(shapes, train, data.examples, data.learned)
    mean = tokens / len(data.examples[:COUNTED])
    longest = settings.max_new_tokens
    written = Range(min(mean * data.learned / 2, longest), min(mean * data.learned, longest), longest)
    replies = questions * times
    each = Range(*(mean * (1 - data.learned) + one for one in (written.low, written.expected, written.high)))
    flops = each * (replies * (found.again + found.vision) / tokens)
    at_once = min(settings.per_device_eval_batch_size, max(1, settings.eval_batch_tokens // int(mean + longest)))
    batches = replies / at_once
    hours = Range(*(one / 3600 for one in _seconds(flops, gpu))) + _decoding(train, shapes, gpu, batches, longest)
    known = not math.isnan(hours.expected)
    return StageEstimate(
        Range.exactly(questions), Range.around(replies * 600, 0.5), tokens=each * replies, flops=flops,
        gpu_hours=hours if known else None, usd=hours * price if known and price else None,
    )  # fmt: skip


# --- what was measured -------------------------------------------------------------------------------------


def _calibrated(config: Any, base_uri: str, work: _Work) -> dict[str, float]:
    """Five real steps of batches as large as the largest, in a process of its own."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    given = config.model_dump(include=set(TrainingConfig.model_fields) & config.model_fields_set)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        asked = pool.submit(_calibrate, TrainingConfig(**given), config.device, base_uri, work.load)
        return asked.result()


def _calibrate(config: TrainingConfig, where: Any, base_uri: str, load: Load) -> dict[str, float]:
    import tempfile

    from vcot import logging
    from vcot.models.device import use_device
    from vcot.storage.folders import fetch_folder
    from vcot.training.calibration import calibrate
    from vcot.training.estimate import batch_of

    logging.quiet()
    use_device(where)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as scratch:
        base = Path(scratch) / "base"
        base.mkdir()
        base = fetch_folder(Store(), base_uri, base)
        batch = batch_of(load, Shapes.read(base))
        found = calibrate(config, base, batch)
        shapes = Shapes.read(base)
        on = "cpu" if found.device == "cpu" else "cuda"
        dtype = _dtype(config, found.device)
        gpu = None
        if on == "cuda":
            from vcot.training.memory import gpu_bytes

            gpu = gpu_bytes()
        planned = Memory.of(
            shapes, config, batch.load, dtype=dtype, where=on,  # type: ignore[arg-type]
            checkpointing=checkpoints(shapes, config, dtype=dtype, memory=gpu),
        )  # fmt: skip
    return {
        "peak_bytes": found.peak_bytes, "planned_bytes": planned.peak, "seconds_per_step": found.seconds_per_step,
        "tokens_per_second": found.tokens_per_step / found.seconds_per_step,
    }  # fmt: skip


def measured_of(
    run_uri: str, finished: FinishedStages, stages: Mapping[str, StageEstimate], memory: Memory, ranks: int,
    planned_gpu: tuple[str, GPU],
) -> tuple[Measured, ...]:  # fmt: skip
    """Compare the figures of this run's finished stages with the planned ones.

    Steps need as many ranks as the plan has; hours and memory need the same hardware, too.
    """
    found = list[Measured]()
    for kind in (CONVERT, DISTILL, TOKENIZE):
        if kind.name not in finished.own:
            continue
        marker, estimated = finished.markers[kind.name], stages[kind.name]
        size = sum(file.size for shard in marker.shards for file in shard.files)
        counts = marker.row_counts
        rows = {CONVERT: counts.rows, DISTILL: counts.kept, TOKENIZE: counts.written}[kind]
        found += [
            Measured(kind.name, "rows", estimated.rows.expected, rows),
            Measured(kind.name, "bytes", estimated.stored.expected, size),
        ]
    if TRAIN.name not in finished.own:
        return tuple(found)
    trained, train = finished.markers[TRAIN.name].metadata, stages["train"]
    spent = read_json(Store(), join(run_uri, TRAIN.name, "report.json"), itemgetter("this_process"))
    same_ranks, uninterrupted = trained.ranks == ranks, spent.get("from_step") == 0
    same_hardware = same_ranks and runs_on(spent, *planned_gpu)
    if train.steps is not None and same_ranks:
        found.append(Measured("train", "steps", train.steps.expected, trained.losses.steps))
    if train.tokens is not None and uninterrupted:
        found.append(Measured("train", "tokens", train.tokens.expected, spent["tokens"]))
    if train.gpu_hours is not None and uninterrupted and same_hardware:
        hours = spent["seconds"] / 3600 * trained.ranks
        found.append(Measured("train", "hours", train.gpu_hours.expected, hours))
    if "peak_gpu_memory_mib" in spent and same_hardware:
        found.append(Measured("train", "peak bytes", memory.peak, spent["peak_gpu_memory_mib"] << 20))
    return tuple(found)


def runs_on(spent: Mapping[str, Any], name: str, gpu: GPU) -> bool:
    """Return True if a training ran on the planned device.

    Args:
        spent: `this_process` of its report.
        name: Name of the planned GPU as in GPUS, or cpu for this computer.
        gpu: Its memory and speed.
    """
    there = str(spent.get("device", ""))
    if name == "cpu":
        from vcot.models.device import device_name, use_device

        use_device("cpu")
        return there == device_name()
    card, *variant = name.split("-")[:-1]
    words = re.findall(r"[a-z0-9]+", there.lower().replace("rtx ", "rtx"))
    same_memory = abs((spent.get("gpu_memory_mib", 0) << 20) / gpu.bytes - 1) < 0.05  # less what the driver keeps
    return card in words and ("pcie" in words) == bool(variant) and same_memory


# --- in words ----------------------------------------------------------------------------------------------


def _grounds(data: Data, settings: Mapping[str, Any], gpu: str, shapes: Shapes) -> tuple[str, ...]:
    found = [f"rows: {data.basis}"]
    if data.examples[0].id == ASSUMED:
        found.append(f"tokens: ±{data.spread:.0%}, assumed as well")
    elif not data.exact:
        found.append(f"tokens: ±{data.spread:.0%}, by the rows that were looked at (twice the standard error)")
    found.append(
        f"memory: within {ERROR:.0%} of what was measured (docs/plan.md); beside it {CONTEXT >> 30} GiB for CUDA's "
        "context and gaps"
    )
    if gpu != "cpu":
        found.append(
            f"hours: {UTILISATION.high:.0%} / {UTILISATION.expected:.0%} / {UTILISATION.low:.0%} of the peak, what is "
            "computed twice included; published: NeMo 43 % (adapters), lmms-engine 30–40 % (7B, images), EasyR1 23 %. "
            "None of ours is measured on a GPU yet; --calibrate measures yours"
        )
    else:
        found.append("hours on a CPU: with --calibrate alone, and without the writing of replies")
    train = settings["train"]
    if issubclass(METHODS[train.method].options, RolloutOptions):
        tokens = train.generation_batch_size * (train.max_completion_length + data.mean_tokens)
        cache = 4 * tokens * shapes.text.narrow * shapes.text.layers
        found.append(
            f"{train.method}: rough, ±30% in memory, as nobody knows how long replies will be (half of the annotated "
            "ones, as long, as long as is allowed); memory is that of an update. While it writes, keys and values of "
            f"{train.generation_batch_size} replies take {cache / 2**30:.1f} GiB beside the weights"
        )
    if settings["distill"].teacher == "openai":
        found.append(f"teacher: replies of {WRITTEN_FROM} / {WRITTEN} / the most allowed tokens; each good at once")
    return tuple(found)
