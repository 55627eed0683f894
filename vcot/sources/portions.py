"""What each part of a mix brought: rows drawn and left out, kept and refused, and its share beside the others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from vcot.records import Rejection, Sample
from vcot.records.conversion import Portion


class Portions:
    """The counts of one shard."""

    def __init__(self) -> None:
        self._kept, self._train, self._left_out = Counter[str](), Counter[str](), Counter[str]()
        self._refused: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, part: str, result: Sample | Rejection) -> None:
        if isinstance(result, Rejection):
            self._refused[part][result.reason.value] += 1
        else:
            self._kept[part] += 1
            self._train[part] += result.origin.split == "train"

    def leave_out(self, part: str) -> None:
        self._left_out[part] += 1

    def facts(self) -> dict[str, Any]:
        """Part → its counts, as JSON."""
        return {
            name: {
                "kept": self._kept[name], "train": self._train[name], "not_drawn": self._left_out[name],
                "rejected": dict(sorted(self._refused[name].items())),
            }
            for name in sorted({*self._kept, *self._left_out, *self._refused})
        }  # fmt: skip


def portions(
    parts: Sequence[tuple[str, str, Fraction | None]], shards: Iterable[Mapping[str, Any]]
) -> tuple[Portion, ...]:
    """Of all shards together.

    parts: name, source and weight of each. shards: what `facts` said of each shard.
    """
    kept, train, left_out = Counter[str](), Counter[str](), Counter[str]()
    refused: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for facts in shards:
        for name, counts in facts.items():
            kept[name] += counts["kept"]
            train[name] += counts["train"]
            left_out[name] += counts["not_drawn"]
            refused[name].update(counts["rejected"])
    weights = sum(weight for _, _, weight in parts if weight is not None)
    rows = {name: kept[name] + refused[name].total() for name, _, _ in parts}
    return tuple(
        Portion(
            name=name, source=source, rows=rows[name] + left_out[name], not_drawn=left_out[name], kept=kept[name],
            rejected=dict(sorted(refused[name].items())),
            wanted=None if weight is None else float(weight / weights),
            drawn=_share(rows[name], rows.values()), learned=_share(train[name], train.values()),
        )
        for name, source, weight in parts
    )  # fmt: skip


def _share(part: int, all_parts: Iterable[int]) -> float:
    return part / max(sum(all_parts), 1)
