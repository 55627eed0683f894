"""What a reply is worth: its form, its answer, its boxes. Pure functions of a text and its Sample, each 0..1.

A new reward is one file here that registers itself with `@reward("name")`; weighing them is up to the training.
"""

from importlib import import_module
from pkgutil import iter_modules

from vcot.rewards.base import REWARDS, Reward, reward

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

from vcot.rewards.answer import answer_reward  # noqa: E402
from vcot.rewards.boxes import box_reward, soft_f1_with_spare  # noqa: E402
from vcot.rewards.format import Rule, broken_rules, format_reward  # noqa: E402

__all__ = [
    "REWARDS",
    "Reward",
    "Rule",
    "answer_reward",
    "box_reward",
    "broken_rules",
    "format_reward",
    "reward",
    "soft_f1_with_spare",
]
