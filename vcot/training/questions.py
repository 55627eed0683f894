"""Questions to learn from by rewards: prompts as tokenize made them, their images, and the Samples behind them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from vcot.errors import InputError
from vcot.grounding.ways import LearnedWay
from vcot.records import Sample
from vcot.records.example import ALONE, Examples
from vcot.records.rollout import Rollout
from vcot.tokens import Encoder
from vcot.tokens.rows import learned_replies, reply_begins
from vcot.training.data import Item, SFTDataset, images_of
from vcot.training.engine import RunContext

PREPARED = 32
"""Questions whose images stay as they go into the model, beside what the cache keeps: each reply wants them."""


class Questions:
    """Those of the split train, by number: `len`, `sample(i)`, `prompts([i, …])`.

    Args:
        samples: of the stage that tokenize read, in any order. They are kept in a file, so that memory does not grow
            with their number.
        way: in which questions are asked; one prompt for each sample, whatever reasonings it has, or none.
        alone: those whose sample has no reasoning, and no others.
        file: a place on this disk for the samples.

    Raises:
        InputError: no example is asked in that way, or a sample of an example is not there.
    """

    def __init__(
        self, examples: Examples, samples: Iterable[Sample], encoder: Encoder, *, way: LearnedWay, file: Path,
        alone: bool = False, cache_bytes: int,
    ) -> None:  # fmt: skip
        self.examples, self._encoder, self.way = examples, encoder, way
        data = SFTDataset(examples, encoder, cache_bytes=cache_bytes)
        self._example = lru_cache(maxsize=PREPARED)(data.__getitem__)
        firsts = (ALONE,) if alone else (ALONE, 0)
        asked = {row.sample: number for number, row in reversed(list(enumerate(examples.rows)))
                 if row.split == "train" and row.way == way and row.alternative in firsts}  # fmt: skip
        if not asked:
            which = "question without reasoning" if alone else "example"
            raise InputError(
                f"there is not one {which} of the train split in the way {way}; look at the report of tokenize"
            )
        self._rows = sorted(asked.values())
        places: dict[str, int] = {}
        with file.open("wb") as kept:
            for sample in samples:
                if sample.id in asked:
                    places[sample.id] = kept.tell()
                    kept.write(sample.line())
        if missing := sorted(asked.keys() - places.keys()):
            raise InputError(
                f"{len(missing)} of {len(asked)} examples have no Sample in the stage that tokenize read, such as "
                f"{missing[0]}; run tokenize again"
            )
        self._numbers = {examples.rows[row].sample: number for number, row in enumerate(self._rows)}
        self._file, self._places = file, [places[sample] for sample in self._numbers]
        self.sample = lru_cache(maxsize=256)(self._sample)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest of their examples, replies included: no prompt is longer."""
        return max(self.examples.rows[row].tokens for row in self._rows)

    def _sample(self, number: int) -> Sample:
        with self._file.open("rb") as kept:
            kept.seek(self._places[number])
            return Sample.model_validate_json(kept.readline())

    def number(self, sample: str) -> int:
        """Of the question that this Sample, by its id, asks."""
        return self._numbers[sample]

    def shard(self, number: int) -> int:
        """Of its example."""
        return self.examples.rows[self._rows[number]].shard

    def item(self, number: int) -> Item:
        """Of its prompt; ids: int64 [T]."""
        item = self._example(self._rows[number])
        if self.examples.rows[self._rows[number]].alternative == ALONE:
            return item
        rationale = self._encoder.has_rationale(self.way)
        return item | {"ids": item["ids"][: reply_begins(tuple(item["labels"].tolist()), rationale=rationale)]}

    @cached_property
    def _reasonings(self) -> dict[str, list[int]]:
        """Sample → rows of its examples that have one."""
        found: dict[str, list[int]] = {}
        for place, row in enumerate(self.examples.rows):
            if row.sample in self._numbers and row.way == self.way and row.alternative != ALONE:
                found.setdefault(row.sample, []).append(place)
        return found

    def reference(self, number: int, seed: str) -> tuple[int, ...] | None:
        """Ids of an annotated rationale that is a turn of its own, without its end; of several one by chance. None:
        there is none."""
        several = self._reasonings.get(self.examples.rows[self._rows[number]].sample)
        if not several:
            return None
        labels = tuple(self._example(random.Random(seed).choice(several))["labels"].tolist())
        (first, end), _ = learned_replies(labels)[-2:]
        return labels[first : end - 1]

    def prompts(self, numbers: Sequence[int]) -> dict[str, Any]:
        """A batch to generate from, as `Encoder.prompts` makes it."""
        items = [self.item(number) for number in numbers]
        longest = max(len(item["ids"]) for item in items)
        padded = [_padded(item["ids"], longest, self._encoder.pad_token_id) for item in items]
        masks = [_padded(torch.ones_like(item["ids"]), longest, 0) for item in items]
        ids = torch.stack(padded)
        kinds = (ids == self._encoder.processor.image_token_id).long()
        batch = {"input_ids": ids, "attention_mask": torch.stack(masks), "mm_token_type_ids": kinds}
        return {**batch, **self.images(numbers)}

    def images(self, numbers: Sequence[int]) -> dict[str, Any]:
        """pixel_values and image_grid_thw of their images, as in a batch of examples."""
        return images_of([self._example(self._rows[number]) for number in numbers])

    def shown(self, number: int) -> int:
        """How many images it has."""
        return len(self.image_bytes(number))

    def image_bytes(self, number: int) -> Sequence[bytes]:
        """Its images as they are stored."""
        return self.examples[self._rows[number]].images


class Curriculum:
    """Which questions a round asks: all of an epoch in an order drawn anew, so many at a time.

    Args:
        by_success: from the second epoch on those come first that were right in about half of the tries when they were
            asked last, and those last whose replies were all right or all wrong.
    """

    def __init__(self, questions: Questions, seed: int, *, by_success: bool) -> None:
        self._questions, self._seed, self._by_success = questions, seed, by_success
        self._success: dict[int, float] = {}
        self._epoch, self._order = 0, list[int]()

    def of_round(self, round_: int, count: int, again: int = 0) -> list[int]:
        """Their numbers. again: 1, 2, …: others in their place, from an order of their own."""
        first, chosen = round_ * count, []
        for place in range(first, first + count):
            epoch, within = divmod(place, len(self._questions))
            chosen.append(self._of_epoch(epoch, again)[within])
        return chosen

    def of_rank(self, context: RunContext, round_: int, count: int, again: int = 0) -> list[int]:
        """Its share of a round. count: of each rank."""
        chosen = self.of_round(round_, count * context.ranks, again)
        return chosen[context.rank * count : (context.rank + 1) * count]

    def _of_epoch(self, epoch: int, again: int) -> Sequence[int]:
        drawn = _order(len(self._questions), f"{self._seed}/{epoch}/{again}")
        if not self._by_success or again or not epoch:
            return drawn
        if epoch != self._epoch:  # fixed when it begins: or what is earned meanwhile would ask some twice, some never
            self._epoch = epoch
            self._order = sorted(drawn, key=lambda number: abs(self._success.get(number, 0.5) - 0.5))
        return self._order

    def earned(self, replies: Iterable[tuple[int, Rollout]]) -> None:
        """What came of a round: each reply with the number of its question. A reply is right where its `answer` is, or
        all that it earned where nothing judges answers."""
        found: dict[int, list[float]] = {}
        for number, one in replies:
            right = one.rewards.get("answer", one.reward)
            if right is not None:
                found.setdefault(number, []).append(min(right, 1.0))
        self._success |= {number: sum(each) / len(each) for number, each in found.items()}

    @property
    def state(self) -> Any:
        """What a checkpoint keeps."""
        return {"success": list(self._success.items()), "epoch": self._epoch, "order": self._order}

    @state.setter
    def state(self, state: Any) -> None:
        self._success = {int(number): share for number, share in state["success"]}
        self._epoch, self._order = state["epoch"], list(state["order"])

    def needs(self, steps: int, steps_a_round: int, count: int) -> list[set[int]]:
        """Of each step, numbers of the files that its questions are in; others may be asked for in their place."""
        every = {self._questions.shard(number) for number in range(len(self._questions))}
        found = []
        for step in range(steps):
            round_ = step // steps_a_round
            known = not self._by_success or (round_ + 1) * count <= len(self._questions)
            found.append({self._questions.shard(n) for n in self.of_round(round_, count)} if known else every)
        return found


@lru_cache(maxsize=8)
def _order(count: int, seed: str) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order


def _padded(row: torch.Tensor, length: int, filling: int) -> torch.Tensor:
    """Padded on the left."""
    return torch.nn.functional.pad(row, (length - len(row), 0), value=filling)
