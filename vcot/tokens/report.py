"""What tokenize counts, and the audit page: what is learned and what is not, seen at a glance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from zlib import crc32

from vcot.errors import InputError
from vcot.records import Contract
from vcot.records.example import Example
from vcot.records.metadata import TokenizeShardMetadata
from vcot.records.sample import Rejection, Sample
from vcot.records.shards import RowCounts
from vcot.reports.examples import TRUE, data_uri, overlay
from vcot.reports.rendering import bars, number, render
from vcot.reports.statistics import percentile, summed

if TYPE_CHECKING:
    from vcot.tokens.rows import View

SHOWN = 4
"""Examples that a shard offers for the audit page, of each kind."""


@dataclass
class Counts:
    """Numbers of a shard, in a form that can stand in its marker and be added up."""

    splits: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)  # tokens → examples
    visual: Counter[int] = field(default_factory=Counter)  # visual tokens → examples
    lost_alternatives: Counter[str] = field(default_factory=Counter)  # reason → of rows that were kept
    by_text: int = 0  # examples of samples without an image; they are not in `visual`
    learned: int = 0  # tokens
    shrunk: int = 0
    test_rows: int = 0
    shown: list[dict[str, Any]] = field(default_factory=list)

    def add(self, example: Example, sample: Sample, visual: int) -> None:
        row = self.examples  # its number in the shard
        self.splits[example.split] += 1
        self.lengths[len(example.ids)] += 1
        if sample.image is None:
            self.by_text += 1
        else:
            self.visual[visual] += 1
        self.learned += example.learned
        self.shrunk += example.shrunk
        kind = "shrunk" if example.shrunk else "by-text" if sample.image is None else example.split
        sizes = (sample.image, sample.image.kept) if sample.image else (None, None)
        size, kept = (image and [image.width, image.height] for image in sizes)
        self._show({"row": row, "rank": crc32(example.id.encode()), "kind": kind, "size": size, "kept": kept})

    def lose(self, rejection: Rejection) -> None:
        """One reasoning of a row that others kept."""
        self.lost_alternatives[rejection.reason.value] += 1

    def _show(self, one: dict[str, Any]) -> None:
        """Offers an example for the page; of each kind those whose ids have the smallest hashes."""
        alike = [shown for shown in self.shown if shown["kind"] == one["kind"]]
        worst = max(alike, key=lambda shown: int(shown["rank"])) if len(alike) == SHOWN else None
        if worst is None:
            self.shown.append(one)
        elif one["rank"] < worst["rank"]:
            self.shown[self.shown.index(worst)] = one

    @property
    def examples(self) -> int:
        return self.splits.total()

    @property
    def tokens(self) -> int:
        return sum(length * count for length, count in self.lengths.items())

    def metadata(self) -> TokenizeShardMetadata:
        """For the marker of the shard."""
        sorted_counters = {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }
        return TokenizeShardMetadata(**sorted_counters)

    @classmethod
    def sum(cls, shards: Iterable[TokenizeShardMetadata]) -> Self:
        """The sums over shards; what they show stays with them."""
        total = cls()
        for name, value in summed(shard.model_dump(exclude={"shown"}) for shard in shards).items():
            setattr(total, name, Counter(value) if isinstance(value, dict) else value)
        return total


def numbers(counts: Counts, row_counts: RowCounts, contract: Contract) -> dict[str, Any]:
    """What stands in report.json.

    Raises InputError where examples were made and nothing in them is learned.
    """
    if counts.examples and not counts.learned:
        raise InputError(f"nothing is learned in any of {counts.examples} examples")
    return {
        "examples": {"train": counts.splits["train"], "validation": counts.splits["validation"]},
        "tokens": {
            "all": counts.tokens,
            "learned": counts.learned,
            "learned_share": round(counts.learned / counts.tokens, 4) if counts.tokens else 0.0,
            "per_example": _spread(counts.lengths),
            "histogram": histogram(counts.lengths),
        },
        "visual_tokens": {"per_example": _spread(counts.visual), "histogram": histogram(counts.visual)},
        "by_text": counts.by_text,
        "shrunk": counts.shrunk,
        "refused": row_counts.rejected,
        "refused_alternatives": dict(counts.lost_alternatives),
        "rows": row_counts.rows,
        "test_rows_left_out": counts.test_rows,
        "contract": contract.model_dump(mode="json"),
    }


def _spread(counts: dict[int, int]) -> dict[str, int]:
    quantiles = {"p50": percentile(counts, 0.5), "p95": percentile(counts, 0.95)}
    return {"min": min(counts, default=0), **quantiles, "max": max(counts, default=0)}


def histogram(counts: Mapping[int, int], bars: int = 10) -> list[tuple[int, int, int]]:
    """(from, up to and with, how many) in at most `bars` steps of one width."""
    if not counts:
        return []
    low, high = min(counts), max(counts)
    width = -(-(high - low + 1) // bars)
    steps = ((start, min(start + width - 1, high)) for start in range(low, high + 1, width))
    return [(a, b, sum(n for value, n in counts.items() if a <= value <= b)) for a, b in steps]


def report_page(found: dict[str, Any], views: Sequence[View]) -> str:
    charts = (
        ("Tokens per example", "prompt, visual tokens and reply", "examples", found["tokens"]),
        ("Visual tokens per image", "after resizing", "images", found["visual_tokens"]),
    )
    return render(
        "tokenize.html.j2", found=found, contract=found["contract"], cards=[_card(one) for one in views],
        charts=[_chart(*chart) for chart in charts],
    )  # fmt: skip


def _chart(name: str, about: str, counted: str, of: Mapping[str, Any]) -> dict[str, Any]:
    steps, spread = of["histogram"], of["per_example"]
    return {
        "name": name, "about": about, "counted": counted, "n": sum(n for *_, n in steps),
        "bars": bars((f"{a}–{b}" if b > a else f"{a}", n) for a, b, n in steps),
        "spread": f"from {number(spread['min'])} to {number(spread['max'])}, half of them at most "
        f"{number(spread['p50'])}, 95 of 100 {number(spread['p95'])}",
    }  # fmt: skip


def _card(one: View) -> dict[str, Any]:
    boxes = one.parsed.boxes
    labels = []
    for mention in one.parsed.trace.mentions:
        # The name at the first of its boxes, numbers in the order of the text at the others.
        count = len(mention.boxes)
        labels += [f"{mention.label} 1" if count > 1 else mention.label, *(str(n) for n in range(2, count + 1))]
    image = None
    if one.image is not None:
        image = data_uri(overlay(one.image, {TRUE: boxes}, {TRUE: labels}, original=one.original, longest_side=360))
    visual = sum(piece.tokens for piece in one.pieces if piece.control and "×" in piece.text)
    return {"view": one, "image": image, "visual": visual, "boxes": len(boxes)}
