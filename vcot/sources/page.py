"""The report of convert as a page that needs no other file: what went in, and what was refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from vcot.records import Reason
from vcot.records.conversion import Conversion, Pair, Rows
from vcot.records.page import fill, page, share
from vcot.records.spread import Bar, Distribution
from vcot.sources.base import SPLITS
from vcot.sources.gallery import Shelf
from vcot.sources.remarks import remarks
from vcot.sources.template import BODY, CSS
from vcot.sources.words import MEANING

PairSeen = tuple[Pair, str | None, str | None]
"""A pair, and its pictures as data URIs; None for one that cannot be read."""
_MOST_BOXES = 5
_MOST_DATASETS = 40
"""Lines of a table; what rows call their dataset may be anything."""


def as_page(found: Conversion, shelves: Sequence[Shelf], pairs: Sequence[PairSeen]) -> str:
    body = fill(
        BODY, css=CSS, found=found, shelves=shelves, pairs=pairs, splits=SPLITS, remarks=remarks(found),
        rows=_rows(found), reasons=list(_reasons(found)),
        charts=list(_charts(found)), measures=_measures(found) if len(found.by_dataset) > 1 else [],
        kept_rows={split: sum(rows.kept.get(split, 0) for rows in found.datasets.values()) for split in SPLITS},
        share=share, tail=tail,
    )  # fmt: skip
    return page("Convert: what went in, what was refused", body)


def _rows(found: Conversion) -> list[dict[str, Any]]:
    """A line for each dataset, the largest first; many small ones share the last line."""
    largest = sorted(found.datasets, key=lambda name: (-found.datasets[name].rows, name))
    lines = {name: found.datasets[name] for name in largest[:_MOST_DATASETS]}
    if others := [found.datasets[name] for name in largest[_MOST_DATASETS:]]:
        kept, rejected = Counter[str](), Counter[str]()
        for rows in others:
            kept.update(rows.kept)
            rejected.update(rows.rejected)
        lines[f"{len(others):,} others"] = Rows(kept=kept, rejected=rejected)
    most = max(rows.rows for rows in lines.values())
    return [_row(name, rows, most) for name, rows in lines.items()]


def _row(name: str, rows: Rows, most: int) -> dict[str, Any]:
    counts = [*(rows.kept.get(split, 0) for split in SPLITS), rows.rejected_rows]
    return {
        "name": name, "rows": rows, "share": share(rows.rejected_rows, rows.rows),
        "parts": [(kind, 100 * n / most) for kind, n in zip((*SPLITS, "refused"), counts, strict=True) if n],
    }  # fmt: skip


def _reasons(found: Conversion) -> Iterator[dict[str, Any]]:
    """Most frequent first, each with the datasets that it befell."""
    for reason, n in sorted(found.tally.rejected.items(), key=lambda entry: (-entry[1], entry[0])):
        datasets = {name: rows.rejected[reason] for name, rows in found.datasets.items() if reason in rows.rejected}
        frequent = sorted(datasets.items(), key=lambda entry: (-entry[1], entry[0]))
        where = ", ".join(f"{name} {often:,}" for name, often in frequent[:6])
        more = f" and {len(frequent) - 6} more" if len(frequent) > 6 else ""
        yield {"name": reason, "meaning": MEANING.get(Reason(reason), ""), "n": n, "where": where + more}


# ------------------------------------------------------------------------------------------------------------ charts


def _charts(found: Conversion) -> Iterator[dict[str, Any]]:
    yield _chart("Area of a box", "share of its picture", "boxes", found.box_area, _area_bar, area, "roughly ")
    yield _boxes_per_row(found)
    yield _chart("Length of the question", "characters", "rows", found.question_length, _whole_bar, amount)
    yield _chart("Length of the answer", "characters", "rows", found.answer_length, _whole_bar, amount)
    yield _chart("Size of a picture", "megapixels", "pictures", found.pixels, _pixel_bar, megapixels)
    if found.ingested:
        about = f"megapixels, of copies of at most {megapixels(found.budget)}"
        yield _chart("Size as it is kept", about, "pictures", found.pixels_kept, _pixel_bar, megapixels)
    about = f"estimated: 28 × 28 pixels each, {found.budget // 784:,} at most"
    yield _chart("Visual tokens of a picture", about, "pictures", found.visual_tokens, _whole_bar, amount)


def _chart(
    name: str, about: str, counted: str, values: Distribution, label: Callable[[Bar], str],
    told: Callable[[float], str], roughly: str = "",
) -> dict[str, Any]:  # fmt: skip
    spread = (
        f"{roughly}from {told(values.min)} to {told(values.max)}, half of them at most {told(values.median)}, "
        f"nine of ten {told(values.p90)}"
    )
    bars = _wide([(label(bar), bar.n) for bar in values.bars])
    return {"name": name, "about": about, "counted": counted, "n": values.n, "bars": bars, "spread": spread}


def _boxes_per_row(found: Conversion) -> dict[str, Any]:
    """One by one up to a few, then all together; what has no number stays beside them."""
    bars: dict[str, int] = {}
    for number, rows in found.boxes_per_row.items():
        many = number.isdigit() and int(number) > _MOST_BOXES
        names = {"0": "0 (not there)"}
        label = f"{_MOST_BOXES + 1} or more" if many else names.get(number, number)
        bars[label] = bars.get(label, 0) + rows
    return {
        "name": "Boxes of a row", "about": "places that the evidence points at", "counted": "rows",
        "n": sum(bars.values()), "bars": _wide(list(bars.items())), "spread": "",
    }  # fmt: skip


def _wide(bars: Sequence[tuple[str, int]]) -> list[tuple[str, int, float]]:
    """(label, how many, width in percent)."""
    most = max((n for _, n in bars), default=0) or 1
    return [(label, n, 100 * n / most) for label, n in bars]


def _area_bar(bar: Bar) -> str:
    low = f"{100 * bar.low:g}"
    return f"{low} – {100 * bar.below:g} %" if bar.below is not None else f"{low} – 100 %"


def _pixel_bar(bar: Bar) -> str:
    return _span(bar, lambda value: f"{value / 1e6:g}")


def _whole_bar(bar: Bar) -> str:
    if bar.below is not None and bar.below == bar.low + 1:
        return amount(bar.low)
    return _span(bar, amount, last=1)


def _span(bar: Bar, told: Callable[[float], str], last: int = 0) -> str:
    return f"{told(bar.low)} or more" if bar.below is None else f"{told(bar.low)} – {told(bar.below - last)}"


def _measures(found: Conversion) -> list[dict[str, Any]]:
    """Of each dataset: (median, what nine of ten do not exceed) of what the charts show of all."""
    shown: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("boxes of a row", "boxes_per_row", amount),
        ("area of a box", "box_area", area),
        ("characters of the question", "question_length", amount),
        ("of the answer", "answer_length", amount),
    )
    names = [name for name, _, _ in shown]
    return [
        {
            "dataset": dataset,
            "names": names,
            "cells": [
                (told(spread.median), told(spread.p90)) if spread.n else ("–", "")
                for spread, told in ((getattr(measures, field), told) for _, field, told in shown)
            ],
        }
        for dataset, measures in islice(found.by_dataset.items(), _MOST_DATASETS)
    ]


# ----------------------------------------------------------------------------------------------------------- numbers


def amount(value: float) -> str:
    return f"{value:,.0f}"


def area(value: float) -> str:
    return f"{100 * value:g} %"


def megapixels(value: float) -> str:
    return f"{value / 1e6:.3g} MP"


def tail(text: str, most: int = 64) -> str:
    """The end of a URI, which is what tells pictures apart."""
    return text if len(text) <= most else f"…{text[-most:]}"
