"""Good rationales that were drawn before, to be learned from again."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A rationale of a question, and its reward wherever it could have ended.

    Attributes:
        question: its number. ids: without its end.
        log_reward: float32 [len(ids) + 1], natural, at reward temperature 1, of each of its prefixes.
        log_likely: of the whole rationale with its end, by the model that the training began with.
        answer: the probability of the true answer after it. boxes: how well it points, 0..1; None: nothing to judge by.
    """

    question: int
    ids: tuple[int, ...]
    log_reward: Tensor
    log_likely: float = 0.0
    answer: float = 0.0
    boxes: float | None = None

    @property
    def key(self) -> tuple[int, tuple[int, ...]]:
        """Two with the same say the same of the same question."""
        return self.question, self.ids

    @property
    def worth(self) -> float:
        """log R of the whole rationale."""
        return float(self.log_reward[-1])


class Replay:
    """Of each question the `size` best rationales that were drawn for it, each once.

    Two that differ in a few tokens are two: in grounded reasoning these are other boxes, so other reasons.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[int, list[Trajectory]] = {}

    def add(self, trajectories: Iterable[Trajectory]) -> None:
        for one in trajectories:
            kept = self._kept.setdefault(one.question, [])
            if self._size and all(one.ids != other.ids for other in kept):
                kept.append(one)
                kept.sort(key=lambda each: (-each.worth, each.ids))
                del kept[self._size :]

    def drawn(self, question: int, count: int, seed: str) -> list[Trajectory]:
        """At most so many of a question's, by chance, none twice."""
        kept = self._kept.get(question, [])
        return random.Random(seed).sample(kept, min(count, len(kept)))

    @property
    def state(self) -> Any:
        """What a checkpoint keeps."""
        flat = [one for kept in self._kept.values() for one in kept]
        return {
            "questions": [one.question for one in flat],
            "lengths": [len(one.ids) for one in flat],
            "ids": torch.tensor([token for one in flat for token in one.ids], dtype=torch.int32),
            "rewards": torch.cat([one.log_reward for one in flat]) if flat else torch.zeros(0),
            "told": [[one.log_likely, one.answer, one.boxes] for one in flat],
        }

    @state.setter
    def state(self, state: Any) -> None:
        lengths: Sequence[int] = state["lengths"]
        ids = torch.split(state["ids"], list(lengths))
        rewards = torch.split(state["rewards"], [length + 1 for length in lengths])
        self._kept = {}
        for question, own, reward, told in zip(state["questions"], ids, rewards, state["told"], strict=True):
            one = Trajectory(question, tuple(own.tolist()), reward.clone(), *told)
            self._kept.setdefault(question, []).append(one)
