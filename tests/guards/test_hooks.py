"""What we override or read of libraries below their public face is still there, and is called as we take it to be."""

from __future__ import annotations

import inspect
import sys
from importlib.metadata import version
from typing import Any

import pytest
from bitsandbytes.nn import Linear4bit
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SubprocessContext
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from trl import GRPOTrainer

from vcot.training.agent import Agent
from vcot.training.engine import Checkpointed, RunCallback
from vcot.training.gfn import GFNTrainer
from vcot.training.grpo import RewardedTrainer
from vcot.training.guards import Guards
from vcot.training.sft import SFTTrainer

OVERRIDDEN: dict[tuple[type, tuple[type, ...]], dict[str, str]] = {
    (Trainer, (Checkpointed, SFTTrainer, GFNTrainer)): {
        "_get_grad_norm": "model grad_norm",
        "_get_num_items_in_batch": "batch_samples device",
        "_load_from_checkpoint": "resume_from_checkpoint model",
        "_load_optimizer_and_scheduler": "checkpoint",
        "_load_rng_state": "checkpoint",
        "_load_scaler": "checkpoint",
        "_save_checkpoint": "model trial",
        "compute_loss": "model inputs return_outputs num_items_in_batch",
        "create_optimizer": "model",
        "evaluate": "eval_dataset ignore_keys metric_key_prefix",
        "floating_point_ops": "inputs",
        "get_batch_samples": "epoch_iterator num_batches device",
        "get_train_dataloader": "",
        "log": "logs start_time",
        "training_step": "model inputs num_items_in_batch",
    },
    (GRPOTrainer, (RewardedTrainer,)): {
        "_compute_loss": "model inputs",
        "_generate_and_score_completions": "inputs",
        "_get_per_token_logps_and_entropies": "model input_ids attention_mask logits_to_keep batch_size "
        "compute_entropy compute_aux_loss pixel_values image_grid_thw num_images pixel_attention_mask spatial_shapes "
        "num_tiles image_sizes token_type_ids mm_token_type_ids image_position_ids",
        "_save_checkpoint": "model trial",
        "get_train_dataloader": "",
    },
    (TrainerCallback, (RunCallback, Guards)): dict.fromkeys(
        ("on_evaluate", "on_log", "on_step_begin", "on_step_end", "on_train_begin"), "args state control kwargs"
    ),
    (LocalElasticAgent, (Agent,)): {
        "_monitor_workers": "worker_group",
        "_shutdown": "death_sig timeout",
        "_start_workers": "worker_group",
    },
    (PreTrainedModel, ()): {"enable_input_require_grads": ""},  # replaced on each model that is loaded
}
"""Of a library's class, and of ours that override it: the hooks, each with what the library hands it."""

READ = [
    (Trainer, "self._tr_loss +="), (Trainer, "def _get_learning_rate(self)"), (Trainer, "def _prepare_inputs(self,"),
    (Trainer, "if args.eval_on_start:"), (TrainingArguments, "self._n_gpu ="),
    (GRPOTrainer, "self._step % generate_every == 0 or self._buffered_inputs is None"),
    (GRPOTrainer, "if self.use_vllm and self.state.global_step != self._last_loaded_step:"),
    (GRPOTrainer, "if self.use_vllm and self.vllm_importance_sampling_correction:"),
    (GRPOTrainer, 'output["importance_sampling_ratio"] = vllm_importance_sampling_ratio'),
    (GRPOTrainer, "param.data = param.data.to(torch.bfloat16)"),
    (GRPOTrainer, "output = self.rollout_func(prompts, self)"), (GRPOTrainer, 'self._metrics["train"]["step_time"]'),
    (LocalElasticAgent, "self._pcontext"), (SubprocessContext, "self.subprocess_handlers"),
    (SubprocessHandler, "self.proc"), (Linear4bit, "self.support_avx512bf16_for_cpu"),
]  # fmt: skip
"""What our code reads or sets besides."""


def pinned(library: type) -> str:
    package = library.__module__.partition(".")[0]
    return f"{package} {version(package)}: {library.__name__}"


@pytest.mark.parametrize(
    ("library", "hook", "given"), [(pair[0], *hook) for pair, hooks in OVERRIDDEN.items() for hook in hooks.items()]
)
def test_a_hook_is_there_with_its_parameters_and_is_called(library: Any, hook: str, given: str) -> None:
    assert hasattr(library, hook), f"{pinned(library)} has no {hook} any more; what we put in its place is never called"
    found = " ".join([*inspect.signature(getattr(library, hook)).parameters][1:])
    assert found == given, f"{pinned(library)}.{hook} is given other arguments than the one we put in its place"
    callers = [inspect.getsource(sys.modules[cls.__module__]) for cls in library.__mro__[:-1]]
    callers.append(inspect.getsource(sys.modules["transformers.trainer_callback"]))
    called = f'"{hook}"' if library is TrainerCallback else f".{hook}("
    assert any(called in source for source in callers), f"{pinned(library)} does not call its {hook} any more"


def test_each_method_of_ours_that_overrides_a_librarys_is_listed() -> None:
    for (library, ours), hooks in OVERRIDDEN.items():
        names = {name for cls in ours for name, value in vars(cls).items() if inspect.isfunction(value)}
        overriding = {name for name in names if hasattr(library, name) and not name.startswith("__")}
        assert overriding == (hooks.keys() if ours else set()), library


@pytest.mark.parametrize(("library", "text"), READ)
def test_what_is_read_is_there(library: type, text: str) -> None:
    sources = [inspect.getsource(cls) for cls in library.__mro__[:-1] if cls.__module__ != "builtins"]
    assert any(text in source for source in sources), f"{pinned(library)} has no line with {text!r} any more"
