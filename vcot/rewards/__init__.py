"""What a reply is worth: rewards of 0..1, pure functions of a Rollout and its Sample, weighed and added.

    format, answer, boxes, counts, length

A new one is one file beside this one with one function under `@reward("name")`. One of a user's own needs no file here:
`mine=package.module:function` in the place of its weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, TypeVar

from vcot.errors import InputError
from vcot.grounding import FrameSpec
from vcot.records import Sample
from vcot.records.rollout import Rollout
from vcot.rewards import time_limit
from vcot.settings import nearest


class Reward(Protocol):
    """0..1 for a reply to a question about a Sample, boxes read in `spec`; None where there is nothing to judge by."""

    def __call__(self, rollout: Rollout, sample: Sample, spec: FrameSpec, /) -> float | None: ...


F = TypeVar("F", bound=Reward)

REWARDS: dict[str, Reward] = {}

DEFAULT_WEIGHTS = ("format=0.2", "answer=1", "boxes=1", "length=0.2")
"""By these no reply that only looks good earns as much as an honest one (tests/rewards/test_not_fooled.py)."""


def reward(name: str) -> Callable[[F], F]:
    """Registers a reward under the name by which a training asks for it."""

    def register(function: F) -> F:
        if name in REWARDS:
            raise ValueError(f"two rewards are called {name}")
        REWARDS[name] = function
        return function

    return register


@dataclass(frozen=True)
class Weighed:
    """A reward and what it counts for in the sum."""

    name: str
    function: Reward
    weight: float


class BrokenReward(InputError):
    """A reward raised, exited or hung, or its result is neither None nor a number of 0..1."""


def weighed(entries: Iterable[str]) -> tuple[Weighed, ...]:
    """["format=0.2", "answer=1", "mine=package.module:function", "mine=0.5"] → rewards in the order of their names'
    first mention; one whose function alone is given weighs 1.

    Raises ValueError: an unknown name (with the nearest one), no number, or nothing weighs anything.
    """
    functions, weights = dict(REWARDS), dict[str, float]()
    for entry in entries:
        name, is_there, value = entry.partition("=")
        if not is_there or not name:
            raise ValueError(f"{entry!r} is not name=weight, as in answer=1")
        if ":" in value:
            functions[name] = _of_a_user(name, value)
            weights.setdefault(name, 1.0)
            continue
        try:
            weights[name] = float(value)
        except ValueError:
            raise ValueError(f"{entry!r}: {value!r} is neither a weight nor package.module:function") from None
        if not 0 <= weights[name] < math.inf:
            raise ValueError(f"{entry!r}: a weight is a number from 0 on")
    for name in weights:
        if name not in functions:
            raise ValueError(
                f"no such reward: {name}{nearest(name, functions) or '.'} There are {', '.join(sorted(REWARDS))}, and "
                f"any of your own as {name}=package.module:function"
            )
    if not any(weights.values()):
        raise ValueError("every reward weighs 0: there is nothing to learn from; give answer=1, for one")
    return tuple(Weighed(name, functions[name], weight) for name, weight in weights.items())


def _of_a_user(name: str, where: str) -> Reward:
    module, _, attribute = where.partition(":")
    try:
        function: Reward = getattr(import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise ValueError(f"{name}={where}: {type(error).__name__}: {error}") from None
    if not callable(function):
        raise ValueError(f"{name}={where}: that is no function")
    return partial(time_limit.call_in_time, function)


def earned(rollout: Rollout, sample: Sample, spec: FrameSpec, rewards: Iterable[Weighed]) -> Mapping[str, float | None]:
    """Return what each reward gives, by name.

    Raises:
        BrokenReward: one of them fails; names the reward, the sample and the reason.
    """
    found: dict[str, float | None] = {}
    for one in rewards:
        try:
            value = one.function(rollout, sample, spec)
            sound = value is None or 0 <= value <= 1  # not NaN
        except time_limit.OutOfTime as error:
            raise BrokenReward(
                f"the reward {one.name} gave no result on {sample.id} within {time_limit.SECONDS:g} s"
            ) from error
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit and asyncio's cancellation are no Exceptions
            raise BrokenReward(
                f"the reward {one.name} raised {type(error).__name__} on {sample.id}: {error}"
            ) from error
        if not sound:
            raise BrokenReward(f"the reward {one.name} gave {value!r} on {sample.id}; it has to be 0..1, or None")
        found[one.name] = None if value is None else float(value)
    return found


def total(found: Mapping[str, float | None], rewards: Iterable[Weighed]) -> float | None:
    """The weighed sum of what could be judged; None where nothing could."""
    parts = [one.weight * value for one in rewards if (value := found[one.name]) is not None]
    return math.fsum(parts) if parts else None


# Last, because each of them imports `reward` from here.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
