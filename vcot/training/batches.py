"""Which rows make which batch of which step: planned for a whole training before it begins, from lengths alone.

    plan = Plan.of(rows, batch_tokens=8192, packed=True, batches_per_step=8, epochs=2, seed=42)
    plan.steps[0]                    the batches of the first step, each a tuple of row numbers
    RankBatches(plan, rank, ranks)   this rank's share of them, for a DataLoader
    plan.evaluation(rank, ranks)     its share of the batches of an evaluation

The plan is a function of rows, settings and seed. So a training that goes on after a stop learns from the same rows,
and so does one that goes on with another number of ranks: what a step is made of does not depend on who computes it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch.utils.data import Sampler

from vcot.errors import SettingsError
from vcot.records.example import ALONE, Row

WINDOW = 64
"""Batches whose rows are sorted or packed together; beyond it, order is random among what is shuffled together."""

Batch = tuple[int, ...]
"""Row numbers."""


@dataclass(frozen=True)
class Plan:
    """
    steps: the batches of each step. epochs: how many epochs have been seen after each step. batches_per_step: of all
    steps but the last of an epoch, which may have fewer. slots: tokens that are computed in all of them, padding
    included; real: those among them that rows are made of. samples: how many each split has.
    """

    steps: tuple[tuple[Batch, ...], ...]
    epochs: tuple[float, ...]
    batches_per_step: int
    slots: int
    real: int
    validation: tuple[Batch, ...]
    samples: Mapping[str, int]

    @classmethod
    def of(
        cls, rows: Sequence[Row], *, batch_tokens: int, packed: bool, batches_per_step: int, epochs: float, seed: int,
        max_steps: int | None = None, shards: Sequence[int] = (), shuffle_bytes: int = 0,
    ) -> Plan:  # fmt: skip
        """
        Args:
            rows: of all splits; those of the split train are learned. Of each sample, in each way of answering, one
                row (one alternative of its reasoning) is drawn per epoch; of one of the split validation the first is
                taken, always. Questions alone are left out.
            batch_tokens: of one batch: of its rows together where they are packed, else of its longest row times
                their number.
            max_steps: where given, so many steps, whatever `epochs` says.
            shards: bytes of each of the rows' files. Where all of them are more than `shuffle_bytes`, only rows of as
                many of them are shuffled together; which ones, is drawn anew each epoch.

        Raises:
            SettingsError: a row is longer than `batch_tokens`.
        """
        by_split = _samples_by_split(rows)
        samples, held_out = by_split["train"], [alternatives[0] for alternatives in by_split["validation"]]
        _check_lengths(rows, [*itertools.chain(*samples), *held_out], batch_tokens)
        steps: list[tuple[Batch, ...]] = []
        seen: list[float] = []
        epoch = 0
        while samples and (len(steps) < max_steps if max_steps else epoch < epochs):
            dice = random.Random(f"{seed}/{epoch}")
            drawn = [dice.choice(alternatives) for alternatives in samples]
            batches: list[Batch] = []
            for together in _shuffled_together(rows, drawn, shards, shuffle_bytes, dice):
                dice.shuffle(together)
                some: list[Batch] = []
                for window in _windows(rows, together, batch_tokens):
                    some += _pack(rows, window, batch_tokens) if packed else _pad(rows, window, batch_tokens)
                dice.shuffle(some)
                batches += some
            made = [tuple(batches[at : at + batches_per_step]) for at in range(0, len(batches), batches_per_step)]
            ends = [epoch + done / len(made) for done in range(1, len(made) + 1)]
            last = len(made) if max_steps else math.ceil(min(epochs - epoch, 1) * len(made))
            steps += made[:last]
            seen += ends[:last]
            epoch += 1
        steps, seen = steps[:max_steps], seen[:max_steps]
        chosen = [batch for step in steps for batch in step]
        real = [[rows[row].tokens for row in batch] for batch in chosen]
        slots = sum(sum(lengths) if packed else max(lengths) * len(lengths) for lengths in real)
        shuffled = _shuffled_together(rows, held_out, shards, shuffle_bytes)
        return cls(
            tuple(steps), tuple(seen), batches_per_step, slots, sum(map(sum, real)),
            validation=tuple(batch for together in shuffled for batch in _pad(rows, together, batch_tokens)),
            samples={split: len({rows[some[0]].sample for some in each}) for split, each in by_split.items()},
        )  # fmt: skip

    def shards(self, rows: Sequence[Row]) -> list[set[int]]:
        """Of each step, the files that its rows are in."""
        return [{rows[row].shard for batch in step for row in batch} for step in self.steps]

    def epoch(self, step: int) -> float:
        """How many epochs have been seen after so many steps."""
        return self.epochs[step - 1] if step else 0.0

    def evaluation(self, rank: int = 0, ranks: int = 1) -> list[list[int]]:
        """One rank's batches of the validation split, for each rank as many: not packed, short rows first (of the
        shards that are shuffled together)."""
        batches = self.validation + ((),) * (-len(self.validation) % ranks)
        return [list(batch) for batch in batches[rank::ranks]]


class RankBatches(Sampler[list[int]]):
    """One rank's batches of all steps from `start` on, in the order of steps; of each step as many, for each rank.

    A step that has fewer is filled up with empty batches, first ones first, because libraries take the last batch of
    a step for the one after which gradients are exchanged.
    """

    def __init__(self, plan: Plan, *, rank: int = 0, ranks: int = 1, start: int = 0) -> None:
        self._plan, self._rank, self._ranks, self._start = plan, rank, ranks, start
        self.per_step = -(-plan.batches_per_step // ranks)

    def __len__(self) -> int:
        return len(self._plan.steps) * self.per_step

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._plan.steps[self._start :]:
            batches = [()] * (self.per_step * self._ranks - len(step)) + list(step)
            yield from map(list, batches[self._rank :: self._ranks])


def _samples_by_split(rows: Sequence[Row]) -> dict[str, list[list[int]]]:
    """Split → its samples, once for each way, each its rows in the order of their alternatives."""
    found: dict[str, dict[tuple[str, str], list[int]]] = {"train": defaultdict(list), "validation": defaultdict(list)}
    for number, row in enumerate(rows):
        if row.split in found and row.alternative != ALONE:
            found[row.split][row.sample, row.way].append(number)
    return {
        split: [sorted(numbers, key=lambda number: rows[number].alternative) for numbers in samples.values()]
        for split, samples in found.items()
    }


def _check_lengths(rows: Sequence[Row], chosen: Sequence[int], batch_tokens: int) -> None:
    longest = max((rows[row] for row in chosen), key=lambda row: row.tokens, default=None)
    if longest is not None and longest.tokens > batch_tokens:
        raise SettingsError(
            f"--batch-tokens={batch_tokens} is less than the longest example, {longest.id}, has: {longest.tokens} "
            f"tokens; give {longest.tokens} or more, or make examples shorter (--max-length of tokenize)"
        )


def _shuffled_together(
    rows: Sequence[Row], drawn: list[int], shards: Sequence[int], shuffle_bytes: int, dice: random.Random | None = None
) -> Iterator[list[int]]:
    """The rows, divided by shards that together have at most `shuffle_bytes`; without dice, in the shards' order."""
    if sum(shards) <= shuffle_bytes or len(shards) < 2:
        yield drawn
        return
    order = list(range(len(shards)))
    if dice is not None:
        dice.shuffle(order)
    window_of: dict[int, int] = {}
    window = room = -1
    for shard in order:
        if shards[shard] > room:
            window, room = window + 1, max(shuffle_bytes, shards[shard])
        window_of[shard], room = window, room - shards[shard]
    by_window = sorted(drawn, key=lambda row: window_of[rows[row].shard])
    for _, some in itertools.groupby(by_window, key=lambda row: window_of[rows[row].shard]):
        yield list(some)


def _windows(rows: Sequence[Row], drawn: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Neighbours with as many tokens as WINDOW batches hold."""
    window: list[int] = []
    tokens = 0
    for row in drawn:
        window.append(row)
        tokens += rows[row].tokens
        if tokens >= WINDOW * batch_tokens:
            yield window
            window, tokens = [], 0
    if window:
        yield window


def _pad(rows: Sequence[Row], window: Sequence[int], batch_tokens: int) -> list[Batch]:
    """Rows of like length together: each batch's longest row times the number of its rows is within the limit."""
    batches: list[Batch] = []
    batch: list[int] = []
    for row in sorted(window, key=lambda row: rows[row].tokens):
        if batch and rows[row].tokens * (len(batch) + 1) > batch_tokens:
            batches.append(tuple(batch))
            batch = []
        batch.append(row)
    return batches + [tuple(batch)] * bool(batch)


def _pack(rows: Sequence[Row], window: Sequence[int], batch_tokens: int) -> list[Batch]:
    """As few batches as first-fit decreasing needs; where its rows fit so, too, with as many image patches in each.

    A batch with more images takes longer, and other ranks wait for it (NeMo Automodel balances its packs for that).
    """
    longest_first = sorted(window, key=lambda row: -rows[row].tokens)
    room: list[int] = []
    first_fit: list[list[int]] = []
    for row in longest_first:
        tokens = rows[row].tokens
        place = next((at for at, free in enumerate(room) if free >= tokens), len(room))
        if place == len(room):
            first_fit.append([])
            room.append(batch_tokens)
        first_fit[place].append(row)
        room[place] -= tokens
    balanced: list[list[int]] = [[] for _ in first_fit]
    room, patches = [batch_tokens] * len(balanced), [0] * len(balanced)
    for row in longest_first:
        fitting = [at for at, free in enumerate(room) if free >= rows[row].tokens]
        if not fitting:
            return list(map(tuple, first_fit))
        place = min(fitting, key=lambda at: patches[at])
        balanced[place].append(row)
        room[place] -= rows[row].tokens
        patches[place] += rows[row].patches
    return list(map(tuple, balanced))
