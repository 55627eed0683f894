"""Rules between the settings of a training and the place and examples that it starts with.

    check_start(config, options, facts)      raises SettingsError, a line for each broken rule

The training calls it with the facts it has at each point: ranks and examples before anything is fetched, lengths when
they are read. `--check` and `--plan` call it with the same facts as far as they are known. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vcot.errors import SettingsError
from vcot.settings import Options
from vcot.training.config import GFNOptions, GRPOOptions, RolloutOptions, TrainingConfig


@dataclass(frozen=True)
class StartFacts:
    """Facts about a training that are known before its first step; None: unknown.

    Attributes:
        ranks: processes that train together.
        on_gpu: each of them computes on a GPU.
        roles: turns of the examples' replies (tokenize --roles).
        longest: tokens of the longest example.
        context_length: tokens that the base reads.
    """

    ranks: int | None = None
    on_gpu: bool = False
    roles: Sequence[str] | None = None
    longest: int | None = None
    context_length: int | None = None


def check_start(config: TrainingConfig, options: Options | None, facts: StartFacts) -> None:
    """Check every rule whose facts are known.

    Args:
        options: of the method; None or another class than RolloutOptions: supervised fine-tuning.

    Raises:
        SettingsError: a line for each broken rule.
    """
    rules = _rollout_rules if isinstance(options, RolloutOptions) else _fine_tuning_rules
    if faults := list(rules(config, options, facts)):
        raise SettingsError("\n".join(faults))


def _fine_tuning_rules(config: TrainingConfig, options: Options | None, facts: StartFacts) -> Iterator[str]:
    ranks = facts.ranks
    if ranks == 1 and config.parallel == "fsdp":
        yield (
            "--parallel fsdp divides a model among several ranks, and there is one; leave it out, or start more "
            "(--nproc-per-node, PET_NNODES)"
        )
    # `divides` depends on the GPU's memory, which is unknown before a pod has its GPUs. So auto counts as fsdp.
    may_divide = config.parallel == "fsdp" or (config.parallel == "auto" and facts.on_gpu)
    if ranks is not None and ranks > 1 and may_divide and config.tune == "full" and config.optim != "adamw_torch_fused":
        yield (
            f"--optim={config.optim} cannot update weights that are divided among ranks, as --tune full with "
            f"--parallel {config.parallel} may do on {ranks}; choose --optim adamw_torch_fused, or --parallel ddp if "
            "each GPU holds the complete model"
        )


def _rollout_rules(config: TrainingConfig, options: Options | None, facts: StartFacts) -> Iterator[str]:
    assert isinstance(options, RolloutOptions)
    is_gfn = isinstance(options, GFNOptions)
    if facts.ranks is not None and options.questions_per_step % facts.ranks:
        yield (
            f"--questions-per-step={options.questions_per_step} cannot be divided among {facts.ranks} GPUs; give a "
            "multiple"
        )
    if facts.roles is not None and is_gfn and not facts.roles:
        yield (
            "--method gfn: in these examples a rationale has no end of its own; make them with tokenize --roles "
            "rationale, and begin with a model that was tuned on such"
        )
    if facts.roles and isinstance(options, GRPOOptions) and options.rollouts == "vllm":
        yield (
            "--rollouts=vllm: in the examples the rationale is a turn of its own (tokenize --roles rationale), and the "
            "server would end each reply with the rationale, before the answer; give --rollouts transformers"
        )
    # An example of unknown length has at least one token.
    longest = (facts.longest or 1) + options.max_completion_length + is_gfn
    known = "" if facts.longest else " at least"
    if longest > config.batch_tokens:
        yield (
            f"--batch-tokens={config.batch_tokens} has no room for the longest example and --max-completion-length "
            f"together,{known} {longest} tokens; give {longest} or more"
        )
    if facts.context_length is not None and longest > facts.context_length:
        yield (
            f"--max-completion-length={options.max_completion_length} with the longest question makes {longest} "
            f"tokens, and this base reads {facts.context_length}; give less"
        )
