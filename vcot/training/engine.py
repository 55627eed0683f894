"""What the trainers of all methods share: a mixin over the Trainer of transformers (or of TRL, which builds on it).

    class SFTTrainer(Checkpointed, Trainer): …

The library keeps the loop: accumulation, DDP or FSDP2 through accelerate, clipping, schedule, noise, trackers. What is
replaced, each with a test that fails when the library changes it, and why:

    checkpoints  in safetensors and JSON, by torch.distributed.checkpoint where each rank holds a part; uploaded while
                 training goes on (the library's are pickles, on a local disk)
    randomness   drawn anew each step from seed, step and rank (the library's states fit one number of ranks alone)
    not finite   stops at once, before the weights are touched (the library logs an average instead)
    stopping     all ranks agree, at each step and batch of an evaluation, and save (the library's signal handling is
                 each rank's own)
"""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, distributed
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from vcot import logging
from vcot.errors import InputError, SettingsError
from vcot.models.device import device
from vcot.models.families import family_of
from vcot.models.loading import whole_model
from vcot.records.cache import Fetching
from vcot.records.example import Row
from vcot.settings import flag
from vcot.stage import Bar, stop, summary
from vcot.training.checkpoints import Checkpoints, load_tensors, read_state, save_tensors, write_state
from vcot.training.config import TrainingConfig
from vcot.training.parameters import parameter_groups

T = TypeVar("T")

PATIENCE = timedelta(minutes=30)
"""How long ranks wait for each other: while one reads a checkpoint, say. A rank that died is noticed sooner."""

_BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)

WEIGHTS, STATE, PROGRESS = "weights.safetensors", "state.safetensors", "trainer_state.json"


class NotFinite(SettingsError):
    """The loss or the gradient is not a number any more.

    A SettingsError (78, no retry): the same settings would end in the same step again, and what a person can change
    is a setting: a lower learning rate, more warm-up, float32. `details` has what led to it.
    """

    def __init__(self, what: str, details: dict[str, Any]) -> None:
        before = ", ".join(f"{loss:.4g}" for loss in details["losses_before"]) or "none"
        super().__init__(
            f"{what} at step {details['step']} (learning rate {details['learning_rate']:.3g}; losses before: {before}; "
            f"examples: {', '.join(details['examples'][:4])}{', …' if len(details['examples']) > 4 else ''}). "
            "Try a lower --learning-rate, more --warmup-steps, or --dtype float32"
        )
        self.details = details | {"what": what}


@dataclass(frozen=True)
class RunContext:
    """Where a training runs and what it may use; nothing of it shapes the weights.

    scratch: a folder of this process. trackers: names for `report_to`, whose files go below `files`. saved: called
    after each checkpoint. cache_bytes: for images that were cut into patches, in all processes that this one starts.
    workers: processes that prepare batches; 0: this one does. grace: seconds between SIGTERM and SIGKILL. rank of
    ranks: this process among those that train together. first_of_pod: of those that share its disk.
    """

    scratch: Path
    trackers: Sequence[str] = ()
    saved: Callable[[], None] = lambda: None
    cache_bytes: int = 1 << 30
    workers: int = 0
    grace: float = 30.0
    rank: int = 0
    ranks: int = 1
    first_of_pod: bool = True

    @property
    def files(self) -> Path:
        return self.scratch / "tensorboard"

    @property
    def first(self) -> bool:
        """The one that writes: checkpoints, reports, the marker, progress."""
        return self.rank == 0


@contextmanager
def process_group() -> Iterator[None]:
    """This process meets the others of its training, where its launcher's variables say, and leaves them when done."""
    distributed.init_process_group("nccl" if device().type == "cuda" else "gloo", timeout=PATIENCE)
    yield
    distributed.destroy_process_group()  # not after a failure: what the others still wait for would hold it


def of_all(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over all ranks. All must ask, in the same place."""
    if not distributed.is_initialized():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor)
    summed: list[float] = tensor.tolist()
    return summed


def in_turn(context: RunContext, fetch: Callable[[], T]) -> T:
    """First one rank of each pod, then the others, who find its files there. All must ask."""
    if not distributed.is_initialized():
        return fetch()
    if context.first_of_pod:
        found = fetch()
    distributed.barrier()
    if not context.first_of_pod:
        found = fetch()
    distributed.barrier()
    return found


def check_alike(
    context: RunContext, config: TrainingConfig, rows: Sequence[Row], *, gpu: int | None, numbers: torch.dtype
) -> None:
    """Raises SettingsError or InputError where ranks were given other settings, see other examples, or have GPUs of
    another size (bytes) or kind (which numbers they compute with)."""
    if not distributed.is_initialized():
        return
    told = {name: getattr(config, name) for name in TrainingConfig.model_fields}
    seen = blake2b("".join(f"{row.id} {row.tokens}\n" for row in rows).encode()).hexdigest()
    found: list[Any] = [None] * context.ranks
    distributed.all_gather_object(found, (told, seen, f"{(gpu or 0) >> 30} GiB, {numbers}"))
    for rank, (theirs, of, kind) in enumerate(found):
        if kind != found[0][2]:
            raise SettingsError(
                f"rank {rank} has another GPU ({kind}) than rank 0 ({found[0][2]}); give all the same kind"
            )
        for name, value in theirs.items():
            if value != (first := found[0][0][name]):
                raise SettingsError(
                    f"rank {rank} was given {flag(name)}={value} and rank 0 {flag(name)}={first}; "
                    "all pods of a training need the same settings"
                )
        if of != found[0][1]:
            raise InputError(
                f"rank {rank} sees other examples than rank 0; all pods of a training need the same --run-uri"
            )


def trained(model: Any) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def reshard(model: Any) -> None:
    """Under FSDP2 a forward pass without a backward pass leaves weights whole; back to each rank's part."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def in_shards(model: Any) -> bool:
    """Whether each rank holds and learns a part of every weight (FSDP2, all weights are tuned)."""
    return any(isinstance(parameter, DTensor) for parameter in trained(model).values())


@torch.no_grad()
def load_trained(model: Any, folder: Path) -> None:
    """Fills them from a checkpoint; in shards, all ranks together. Raises InputError: it is one of another model."""
    parameters = trained(model)
    if in_shards(model):
        tensors = {f"weights.{name}": parameter for name, parameter in parameters.items()}
        _load_shards(tensors, folder)
        return
    tensors, _ = load_tensors(folder / WEIGHTS)
    if odd := sorted(tensors.keys() ^ parameters.keys()):
        raise InputError(f"{folder.name} is a checkpoint of another model: only one of them trains {odd[0]}")
    for name, parameter in parameters.items():
        if tensors[name].shape != parameter.shape:
            raise InputError(
                f"{folder.name} is a checkpoint of another model: {name} is {tuple(tensors[name].shape)} in it, "
                f"{tuple(parameter.shape)} here"
            )
        parameter.copy_(tensors[name])


def _load_shards(tensors: dict[str, Any], folder: Path) -> None:
    """Fills DTensors from the files of any number of ranks. Raises InputError: one of them is not in the files."""
    with warnings.catch_warnings(action="ignore"):
        try:
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
        except (dcp.api.CheckpointException, RuntimeError) as error:
            said = " ".join(str(error).split())[-200:]
            raise InputError(f"{folder.name} is a checkpoint of another model: {said}") from None


class Checkpointed:
    """Before the library's Trainer among the bases; its attributes are declared here, its hooks overridden.

    Args:
        config, context, checkpoints: as `fine_tune` was given them.
        epoch: how many epochs have been seen after so many steps.
        batches_per_step: over all ranks.
        bar: moved once a step. fetching: told of each step that begins.
    """

    args: Any
    model: Any
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any
    state: TrainerState
    accelerator: Any
    callback_handler: Any
    _tr_loss: Tensor
    _get_learning_rate: Callable[[], float]
    train: Callable[..., Any]
    get_optimizer_cls_and_kwargs: Callable[..., tuple[Any, dict[str, Any]]]

    def __init__(
        self, *args: Any, config: TrainingConfig, context: RunContext, checkpoints: Checkpoints,
        epoch: Callable[[int], float], batches_per_step: int, bar: Bar, fetching: Fetching | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        self.config, self.context, self.checkpoints = config, context, checkpoints
        self.epoch, self.batches_per_step = epoch, batches_per_step
        self.tokens = self.tokens_before = 0  # so far, over all ranks; of these, what earlier processes have learned
        self.asked_to_stop = False
        self.slow_to_save = False
        self.step_tokens = 0
        self.step_examples: list[str] = []
        self._losses: deque[float] = deque(maxlen=10)
        super().__init__(*args, **kwargs, callbacks=[RunCallback(self, bar, fetching)])  # type: ignore[call-arg]

    def create_optimizer(self, model: Any = None) -> Any:
        """The library's, with a learning rate for each part of the model."""
        if self.optimizer is None:
            groups = parameter_groups(self.model, self.config, family_of(whole_model(self.model).config))
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    # --- a step --------------------------------------------------------------------------------------

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        """Of the gradient before it is cut, also where no limit was set (--max-grad-norm 0).

        Gradients are those of all ranks by now, and nothing has been changed: so here ranks exchange, once a step,
        what else they must agree on.
        """
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))  # type: ignore[misc]
        slow = self.checkpoints.last_save_seconds > self.context.grace - 3
        said = [float(self._tr_loss), self.step_tokens, float(stop.requested), float(slow)]
        loss, tokens, stops, slows = of_all(said, self.args.device)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "the gradient is not finite" if math.isfinite(loss) else "the loss is not finite"
            raise NotFinite(what, self.details(norm, self.state.global_step + 1, self.step_examples))
        self.tokens += int(tokens)
        self.asked_to_stop, self.slow_to_save = stops > 0, slows > 0
        return norm

    def details(self, gradient_norm: float | None, step: int, examples: list[str]) -> dict[str, Any]:
        """What a person wants to know of a step that went wrong. examples: of this rank. All ranks must ask."""
        of_ranks: list[Any] = [examples]
        if distributed.is_initialized():
            of_ranks = [None] * self.context.ranks
            distributed.all_gather_object(of_ranks, examples)
        return {
            "step": step,
            "epoch": self.state.epoch,
            "examples": [name for each in of_ranks for name in each],
            "learning_rate": self._get_learning_rate(),
            "gradient_norm": None if gradient_norm is None else repr(gradient_norm),
            "losses_before": list(self._losses),
        }

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the library counts all parameters anew at every step, by a rule that does not hold for adapters

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._losses.append(logs["loss"])
        if "train_runtime" not in logs:  # its seconds are not the same twice; the report has them
            super().log(logs, start_time)  # type: ignore[misc]

    # --- checkpoints ---------------------------------------------------------------------------------

    def train_from(self, checkpoint: Path | None) -> float:
        """Trains from there, or from the beginning, until it is over and the last checkpoint is in storage; seconds."""
        begun = time.monotonic()
        try:
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except BaseException:
            self.checkpoints.wait(and_raise=False)
            raise
        self.checkpoints.wait()
        return time.monotonic() - begun

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Rank 0 writes what all hold alike; in shards, each rank its part."""
        if self.context.first or in_shards(self.model):
            self.checkpoints.save(
                self.state.global_step, self.state.best_global_step, self.batches_per_step, self._write
            )

    def _write(self, folder: Path) -> None:
        if in_shards(self.model):
            optimiser, tensors = self._shards()
            tensors |= {f"weights.{name}": parameter for name, parameter in trained(self.model).items()}
            with warnings.catch_warnings(action="ignore"):
                dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
            if not self.context.first:
                return
        else:
            optimiser = self.optimizer.state_dict()
            save_tensors(trained(self.model), folder / WEIGHTS)
        state = {
            "optimiser": optimiser,
            "schedule": self.lr_scheduler.state_dict(),
            "tokens": self.tokens,
            "of_method": self.state_of_method,
        }
        write_state(state, folder / STATE)
        self.state.save_to_json(str(folder / PROGRESS))

    @property
    def state_of_method(self) -> Any:
        """What a method has to keep beside weights, optimiser and log, as `write_state` takes it."""
        return None

    def load_state_of_method(self, state: Any) -> None:
        """As it was kept; None where nothing was."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = read_state(Path(checkpoint) / STATE)
            if in_shards(self.model):
                _, tensors = self._shards()
                _load_shards(tensors, Path(checkpoint))
                set_optimizer_state_dict(
                    self.model, self._torch_optimizer, state["optimiser"] | tensors, options=_BY_NAME
                )
            else:
                self.optimizer.load_state_dict(state["optimiser"])
            self.lr_scheduler.load_state_dict(state["schedule"])
            self.tokens = self.tokens_before = state["tokens"]
            self.load_state_of_method(state.get("of_method"))
            self._losses.extend(entry["loss"] for entry in self.state.log_history if "loss" in entry)

    def _shards(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The optimiser's state, by parameters' names: plain values, and tensors."""
        state: dict[str, Any] = get_optimizer_state_dict(self.model, self._torch_optimizer, options=_BY_NAME)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        return {name: value for name, value in state.items() if name not in tensors}, tensors

    @property
    def _torch_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Each step draws its own."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """bfloat16 and float32 need none."""


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout and noise of a step: others in each rank, and after a stop the same again."""
    word = blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(word, "big"))


class RunCallback(TrainerCallback):  # type: ignore[misc]  # the library publishes no types
    """Moves the bar, knows and saves a new best, stops when nothing gets better or when somebody asks.

    Whether nothing gets better is read off the losses so far, so there is no counter that a resumed run could lose.
    """

    def __init__(self, trainer: Checkpointed, bar: Bar, fetching: Fetching | None) -> None:
        self._trainer, self._bar, self._fetching = trainer, bar, fetching
        self._begun: tuple[float, int] | None = None
        self._rewards: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.save_steps = args.save_steps  # a checkpoint's state brings those of its own time, and they may change

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        seed_step(self._trainer.config.seed, state.global_step, self._trainer.context.rank)
        if self._fetching is not None:
            self._fetching.at(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.epoch = self._trainer.epoch(state.global_step)
        self._trainer.checkpoints.raise_failure()
        if self._trainer.asked_to_stop:
            stop.join()
            control.should_training_stop = True
            control.should_evaluate = False  # the next start does; what is left of the grace period is for saving
            control.should_save = not self._trainer.slow_to_save

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now, tokens, speed = time.monotonic(), self._trainer.tokens, "…"
        # A further update from the same replies has no rewards of its own.
        self._rewards = {name: value for name, value in logs.items() if name.startswith("reward")} or self._rewards
        note = progress_note(self._rewards | logs)
        if self._begun is None:  # what one waits for: it learns, and memory suffices
            self._begun = now, tokens
            logging.get().info("first step", step=state.global_step, note=note)
        else:
            speed = f"{(tokens - self._begun[1]) / (now - self._begun[0]):.0f} tokens/s"
        self._bar.advance(note=f"{note}, {speed}")

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        losses = eval_losses(state.log_history)
        logging.get().info("evaluated", step=state.global_step, loss=round(losses[-1], 4))
        if losses[-1] < min(losses[:-1], default=math.inf):
            state.best_global_step, state.best_metric = state.global_step, losses[-1]
            control.should_save = True
        if lost_patience(losses, self._trainer.config):
            control.should_training_stop = control.should_save = True


def progress_note(logs: Mapping[str, Any]) -> str:
    """Return the rewards, where there are any, and the loss of a step, for a line of the console."""
    loss = round(logs["loss"], 6) + 0.0  # never -0
    parts = [f"loss {loss:.4g}"]
    if "reward" in logs:
        means = reward_note(means_of_rewards(logs))
        parts.insert(0, f"reward {logs['reward']:.3f}" + (f" ({means})" if means else ""))
    return ", ".join(parts)


def reward_note(means: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())


def means_of_rewards(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean of each reward over a step's replies, by name, from what TRL logs at a step."""
    found = ((name.split("/"), value) for name, value in entry.items())
    return {
        name[1]: value
        for name, value in found
        if len(name) == 3 and (name[0], name[2]) == ("rewards", "mean") and value is not None and math.isfinite(value)
    }


def announce(context: RunContext, step: int) -> None:
    """A checkpoint is whole."""
    summary(saved_step=step)
    logging.get().info("saved", step=step)
    context.saved()


def eval_losses(history: Iterable[Mapping[str, Any]]) -> list[float]:
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


def lost_patience(losses: Iterable[float], config: TrainingConfig) -> bool:
    """Whether the last `early_stopping_patience` evaluations were not better than the best by the threshold."""
    best, worse = math.inf, 0
    for loss in losses:
        worse = 0 if loss < best - config.early_stopping_threshold else worse + 1
        best = min(best, loss)
    return 0 < config.early_stopping_patience <= worse


def lacks_evaluation(state: TrainerState, max_steps: int, config: TrainingConfig) -> bool:
    """Whether a checkpoint's state is that of a stop before the evaluation that its step should have had."""
    step = state.global_step
    due = step > 0 and (step % config.eval_steps == 0 or step >= max_steps)
    return due and not any(entry["step"] == step for entry in state.log_history if "eval_loss" in entry)


def is_over(state: TrainerState, max_steps: int, config: TrainingConfig) -> bool:
    """Whether a checkpoint's state is that of a finished training, but for an evaluation that it may lack."""
    return state.global_step >= max_steps or lost_patience(eval_losses(state.log_history), config)
