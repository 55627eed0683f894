"""What a reply is worth: its form, its answer, its boxes. Pure functions of a text and its Sample, each 0..1.

A new reward is one file here that registers itself with `@reward("name")`; weighing them is up to the training.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, TypeVar

from vcot.grounding import FrameSpec
from vcot.records import Sample


class Reward(Protocol):
    """0..1 for a reply to a question about a Sample, boxes read in `spec`; None where there is nothing to judge by."""

    def __call__(self, text: str, sample: Sample, spec: FrameSpec, /) -> float | None: ...


F = TypeVar("F", bound=Reward)

REWARDS: dict[str, Reward] = {}


def reward(name: str) -> Callable[[F], F]:
    """Registers a reward under the name by which a training asks for it."""

    def register(function: F) -> F:
        if name in REWARDS:
            raise ValueError(f"two rewards are called {name}")
        REWARDS[name] = function
        return function

    return register


for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

from vcot.rewards.answer import answer_reward  # noqa: E402
from vcot.rewards.boxes import box_reward, soft_f1_with_spare  # noqa: E402
from vcot.rewards.format import Rule, broken_rules, format_reward  # noqa: E402

__all__ = [
    "REWARDS", "Reward", "Rule", "answer_reward", "box_reward", "broken_rules", "format_reward", "reward",
    "soft_f1_with_spare",
]  # fmt: skip
