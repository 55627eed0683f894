"""From what the shards counted to what `report.json` says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vcot.grounding import smart_resize
from vcot.records.conversion import Benchmark, Conversion, Measures, NearDuplicates, Rows
from vcot.records.shards import ShardMark, Tally
from vcot.records.spread import distribution, spread
from vcot.sources.base import SPLITS
from vcot.sources.tally import BY_TEXT, NOT_ANNOTATED, Counts, added
from vcot.sources.used import Sizes
from vcot.storage import images

TOKEN_SIDE = 28
"""Pixels a side of what becomes one visual token: 2 x 2 patches of 14 (Qwen2-VL, Qwen2.5-VL)."""
LEAST = 4 * TOKEN_SIDE**2
"""Pixels to which their processors enlarge what is smaller."""

_LENGTHS = (0, *(digit * 10**power for power in range(8) for digit in (1, 2, 5)))
_AREAS = tuple(float(f"{digit}e{power}") for power in range(-5, 0) for digit in (1, 2, 5))
_PIXELS = tuple(digit * 10**power for power in range(2, 9) for digit in (1, 2, 5))
_STEPS = 10
_NO_NUMBER = {NOT_ANNOTATED: "not annotated", BY_TEXT: "by text alone"}


def report(
    marks: Sequence[ShardMark], tally: Tally, pictures: Mapping[str, Sizes], seen: Mapping[str, Any], *,
    source: str, budget: int, ingested: bool,
) -> Conversion:  # fmt: skip
    """
    pictures: split → sizes of its pictures. seen: what the survey counted. budget: pixels that a model sees at most.
    ingested: whether later stages read copies of that size.
    """
    datasets: Mapping[str, Counts] = {}
    for mark in marks:
        datasets = added(datasets, mark.facts["datasets"])
    everything: Counts = {}
    for counts in datasets.values():
        everything = added(everything, counts)
    sizes = sum(pictures.values(), Sizes())
    kept = Sizes()
    for size, often in sizes.items():
        kept[images.within(*size, budget) if ingested else size] += often
    tokens, beyond = visual_tokens(kept, budget)
    return Conversion(
        source=source, tally=tally, shards=len(marks),
        datasets={name: _rows(counts) for name, counts in datasets.items()},
        licences=_sorted(everything.get("licences", {})),
        reasonings=_numbered(everything.get("reasonings", {})),
        boxes_per_row=_numbered(everything.get("boxes_per_row", {})),
        box_area=distribution(_numbers(everything, "box_area"), _AREAS),
        question_length=distribution(_numbers(everything, "question_length"), _LENGTHS),
        answer_length=distribution(_numbers(everything, "answer_length"), _LENGTHS),
        by_dataset={name: _measures(counts) for name, counts in datasets.items() if counts["kept"]},
        pictures={split: found.total() for split, found in pictures.items()},
        without_image={split: n for split in SPLITS if (n := everything.get("without_image", {}).get(split))},
        pixels=distribution(_areas(sizes), _PIXELS),
        budget=budget, ingested=ingested,
        pixels_kept=distribution(_areas(kept), _PIXELS),
        visual_tokens=distribution(tokens, _steps(budget // TOKEN_SIDE**2)),
        beyond_processor=beyond,
        near_duplicates=NearDuplicates(**near) if (near := seen.get("near_duplicates")) else None,
        benchmarks={name: Benchmark(**counts) for name, counts in seen.get("benchmarks", {}).items()},
    )  # fmt: skip


def visual_tokens(sizes: Mapping[tuple[int, int], int], budget: int) -> tuple[Counter[float], int]:
    """Visual tokens → pictures, and how many pictures no processor takes.

    An estimate of what the processor of Qwen2-VL and Qwen2.5-VL makes (their `smart_resize`, which tokenize is held
    to): both sides become multiples of 28, the area goes into 4 · 28² … budget, and w · h / 28² tokens come of it.
    Tokenize may be given other limits, or a model of other patches.
    """
    tokens, beyond = Counter[float](), 0
    for (width, height), often in sizes.items():
        try:
            across, down = smart_resize(width, height, min_pixels=LEAST, max_pixels=budget, factor=TOKEN_SIDE)
        except ValueError:  # more than 200 times as long as wide
            beyond += often
        else:
            tokens[across * down // TOKEN_SIDE**2] += often
    return tokens, beyond


def _areas(sizes: Mapping[tuple[int, int], int]) -> Counter[float]:
    areas = Counter[float]()
    for (width, height), often in sizes.items():
        areas[width * height] += often
    return areas


def _measures(counts: Counts) -> Measures:
    boxes = _numbers(counts, "boxes_per_row")
    boxes = {number: rows for number, rows in boxes.items() if number not in _NO_NUMBER}
    return Measures(
        boxes_per_row=spread(boxes),
        box_area=spread(_numbers(counts, "box_area")),
        question_length=spread(_numbers(counts, "question_length")),
        answer_length=spread(_numbers(counts, "answer_length")),
    )


def _numbers(counts: Counts, name: str) -> dict[float, int]:
    """Keys of JSON are text."""
    return {float(value) if name == "box_area" else int(value): n for value, n in counts.get(name, {}).items()}


def _numbered(counts: Mapping[str, int]) -> dict[str, int]:
    ordered = sorted(counts.items(), key=lambda entry: int(entry[0]))
    return {_NO_NUMBER.get(int(number), number): n for number, n in ordered}


def _rows(counts: Counts) -> Rows:
    kept = {split: counts["kept"][split] for split in SPLITS if split in counts["kept"]}
    return Rows(kept=kept, rejected=_sorted(counts["rejected"]))


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _steps(most: int) -> list[float]:
    """At most ten bars of one round width."""
    width = max(1, -(-most // _STEPS))
    return list(range(0, most, width)) or [0]
