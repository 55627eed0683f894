"""The registry of rewards."""

from __future__ import annotations

from collections.abc import Callable
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
