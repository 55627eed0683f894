"""The ranks of one training, which together do what one process with a larger batch would do.

The library keeps believing that it is alone: each rank has the whole model, learns from its share of every batch, and
before a step all of them hold the sum of the gradients. No wrapper sits around the model, so 4-bit weights, 8-bit
optimisers, frozen parts and batches without images are what they are for one process. What it costs: gradients
travel once a step, after the backward pass instead of during it (646 MB for adapters of rank 64 on 7 billion).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import Sampler

from vcot.models.device import device
from vcot.training.launcher import Rank

PATIENCE = timedelta(minutes=30)
"""How long ranks wait for each other: while one saves, or reads a checkpoint. A rank that died is noticed sooner."""

BUCKET = 1 << 24
"""Numbers that travel at once (64 MiB of float32)."""


@dataclass(frozen=True)
class Group:
    """This process among the others; alone by default, and then nothing here does anything."""

    number: int = 0
    local: int = 0
    size: int = 1

    @classmethod
    def join(cls, rank: Rank) -> Group:
        """Meets the others, where the variables of torch's launcher say."""
        distributed.init_process_group("nccl" if device().type == "cuda" else "gloo", timeout=PATIENCE)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)  # else the library, too, adds gradients up
        return cls(rank.number, rank.local, rank.size)

    @property
    def first(self) -> bool:
        """The one that writes: checkpoints, reports, the mark, progress."""
        return self.number == 0

    def share(self, batches: Sampler[list[int]] | list[list[int]]) -> Sampler[list[int]] | list[list[int]]:
        """This rank's rows of each batch."""
        return batches if self.size == 1 else Share(batches, self.number, self.size)

    def total(self, *values: float) -> list[float]:
        """Sums over all ranks."""
        if self.size == 1:
            return list(values)
        summed: list[float] = self._all(values).tolist()
        return summed

    def any(self, said: bool) -> bool:
        """Whether one of them says so. All must ask, in the same place."""
        return said if self.size == 1 else self._all([float(said)]).item() > 0

    def wait(self) -> None:
        """Until all are here."""
        self.any(False)

    def of_first(self, value: str) -> str:
        """What rank 0 says."""
        if self.size == 1:
            return value
        return str(self._everybody(value)[0])

    def of_all(self, values: Sequence[str]) -> list[str]:
        """What each rank says, one after another."""
        return list(values) if self.size == 1 else [value for each in self._everybody(list(values)) for value in each]

    @torch.no_grad()
    def spread(self, parameters: Iterable[Tensor]) -> None:
        """Rank 0's values for all."""
        if self.size > 1:
            for parameter in parameters:
                distributed.broadcast(parameter.data, src=0)

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Each gradient becomes the sum over all ranks. One that no rank has stays absent, as for one process."""
        if self.size == 1:
            return
        learning = list(parameters)
        had = self._all([float(parameter.grad is not None) for parameter in learning]).tolist()
        learning = [parameter for parameter, ranks in zip(learning, had, strict=True) if ranks]
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in learning if parameter.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            for gradient, part in zip(bucket, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def reseed(self, seed: int, step: int) -> None:
        """Other dropout and noise in each rank; of a step's number alone, so that a resumed run draws the same."""
        if self.size > 1:
            word = blake2b(f"{seed}/{step}/{self.number}".encode(), digest_size=7).digest()
            torch.manual_seed(int.from_bytes(word, "big"))

    def _all(self, values: Sequence[float]) -> Tensor:
        tensor = torch.tensor(values, dtype=torch.float64, device=device())
        distributed.all_reduce(tensor)
        return tensor

    def _everybody(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found


ALONE = Group()


class Share(Sampler[list[int]]):
    """Every `size`-th row of each batch. Of a batch with fewer rows than ranks some get none."""

    def __init__(self, batches: Sampler[list[int]] | list[list[int]], number: int, size: int) -> None:
        self._batches, self._number, self._size = batches, number, size

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # samplers of ours have a length

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield batch[self._number :: self._size]


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, of one dtype, and of BUCKET numbers or one tensor."""
    bucket: list[Tensor] = []
    numbers = 0
    for gradient in gradients:
        if bucket and (numbers + gradient.numel() > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, numbers = [], 0
        bucket.append(gradient)
        numbers += math.prod(gradient.shape)
    if bucket:
        yield bucket
