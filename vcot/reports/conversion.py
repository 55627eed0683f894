"""The report of convert: what went in, what was refused, and how the rows that were kept look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from vcot.grounding import smart_resize
from vcot.records import Folder, Reason, RowCounts
from vcot.records.metadata import ConvertShardMetadata
from vcot.records.reports import Bar, Benchmark, Conversion, Distribution, Measures, NearDuplicates, Portion, Rows
from vcot.records.shards import ShardMarker
from vcot.reports.examples import LARGE, SMALL, Card, Cards, ShownExample, sampled
from vcot.reports.rendering import MOST_LINES, REASONS, Finding, chart, most_frequent, number, render, where
from vcot.reports.statistics import SampleStatistics, distribution, sample_statistics, spread, summed
from vcot.storage import images

SHOWN = 8
"""Examples of each dataset and kind; a kind is the kept rows, or those refused for one reason."""
SPLITS = ("train", "validation", "test")

TOKEN_SIDE = 28
"""Pixels a side of what becomes one visual token: 2 x 2 patches of 14 (Qwen2-VL, Qwen2.5-VL)."""
LEAST_PIXELS = 4 * TOKEN_SIDE**2
"""To which their processors enlarge what is smaller."""

_FEW_CARDS, _MANY_CARDS, _LEAST_CARDS = 100, 160, 2
"""Examples on a page that are few, how many there should be at most, and how many each dataset has all the same."""
_MANY_REFUSED = 0.05
"""Share of a dataset's rows above which refusing them is worth a word."""
_MOST_BOXES = 5
_LENGTHS = (0, *(digit * 10**power for power in range(8) for digit in (1, 2, 5)))
_AREAS = tuple(float(f"{digit}e{power}") for power in range(-5, 0) for digit in (1, 2, 5))
_PIXELS = tuple(digit * 10**power for power in range(2, 9) for digit in (1, 2, 5))

MEANING: Mapping[Reason, str] = {Reason(name): meaning for name, meaning in REASONS["convert"].items()}


def report(
    folder: Folder, markers: Sequence[ShardMarker[ConvertShardMetadata]], row_counts: RowCounts, scratch: Path, *,
    source: str, seen: Mapping[str, Any],
    budget: int, ingested: bool, mix: tuple[Portion, ...], max_pixels: int,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """What report.json holds, and the page.

    seen: what was counted before the shards were made: near-duplicates and benchmarks. budget: pixels that a model sees
    at most. ingested: whether later stages read copies of that size. max_pixels: larger images are not decoded.
    """
    refused = summed(marker.metadata.refused for marker in markers)
    with sample_statistics(folder.store, folder.uri, markers, scratch) as statistics:
        found = _counted(
            statistics, refused, source=source, row_counts=row_counts, shards=len(markers), mix=mix, budget=budget,
            ingested=ingested, seen=seen,
        )  # fmt: skip
    cards = Cards(folder.store, max_pixels=max_pixels)
    examples = _chosen(found, sampled(folder, markers, SHOWN).by_dataset(), cards)
    pairs = [
        (pair, cards.plain(pair.one), cards.plain(pair.other))
        for pair in (found.near_duplicates.pairs if found.near_duplicates else ())
    ]
    page = render(
        "convert.html.j2", found=found, examples=examples, pairs=pairs, splits=SPLITS, findings=findings(found),
        datasets=_lines(found), reasons=_reasons(found), charts=list(_charts(found)),
        kept_rows={split: sum(rows.kept.get(split, 0) for rows in found.datasets.values()) for split in SPLITS},
        measures=_measures(found) if len(found.by_dataset) > 1 else [],
    )  # fmt: skip
    return found.model_dump(mode="json"), page


def _counted(
    statistics: SampleStatistics, refused: Mapping[str, Mapping[str, int]], *, budget: int, ingested: bool,
    seen: Mapping[str, Any], **known: Any,
) -> Conversion:  # fmt: skip
    kept = statistics.counts("split")
    question_length, answer_length = statistics.counts("question_length"), statistics.counts("answer_length")
    boxes, box_area = statistics.counts("len(areas)", "areas is not null"), statistics.box_areas()
    boxes_per_row = {str(n): rows for n, rows in sorted(_all(boxes).items())}
    unmarked = {"by text alone": "image is null", "not annotated": "image is not null and areas is null"}
    unmarked_rows = {name: sum(_all(statistics.counts("1", which)).values()) for name, which in unmarked.items()}
    sizes = statistics.image_sizes()
    pixels, pixels_kept, tokens, beyond = Counter[float](), Counter[float](), Counter[float](), 0
    for (width, height), often in _all(sizes).items():
        pixels[width * height] += often
        if ingested:
            width, height = images.within(width, height, budget)
        pixels_kept[width * height] += often
        if (made := visual_tokens(width, height, budget)) is None:
            beyond += often
        else:
            tokens[made] += often
    most = budget // TOKEN_SIDE**2
    steps = range(0, most, max(1, -(-most // 10))) or (0,)  # at most ten bars of one round width
    near = seen.get("near_duplicates")
    by_text = _all(statistics.counts("split", "image is null"))
    return Conversion(
        datasets={
            name: Rows(
                kept={split: n for split in SPLITS if (n := kept.get(name, Counter[str]())[split])},
                rejected=dict(sorted(refused.get(name, {}).items())),
            )
            for name in sorted({*kept, *refused})
        },
        licences=dict(sorted(_all(statistics.counts("licence")).items())),
        reasonings={str(n): rows for n, rows in sorted(_all(statistics.counts("reasonings")).items())},
        boxes_per_row={name: n for name, n in unmarked_rows.items() if n} | boxes_per_row,
        box_area=distribution(_all(box_area), _AREAS),
        question_length=distribution(_all(question_length), _LENGTHS),
        answer_length=distribution(_all(answer_length), _LENGTHS),
        by_dataset={
            name: Measures(
                boxes_per_row=spread(boxes.get(name, Counter[int]())),
                box_area=spread(box_area.get(name, Counter[float]())),
                question_length=spread(question_length[name]), answer_length=spread(answer_length[name]),
            )
            for name in sorted(kept)
        },
        images={split: sizes[split].total() if split in sizes else 0 for split in SPLITS},
        without_image={split: n for split in SPLITS if (n := by_text[split])},
        pixels=distribution(pixels, _PIXELS),
        pixels_kept=distribution(pixels_kept, _PIXELS),
        visual_tokens=distribution(tokens, steps),
        beyond_processor=beyond,
        near_duplicates=NearDuplicates(**near) if near else None,
        benchmarks={name: Benchmark(**counts) for name, counts in seen.get("benchmarks", {}).items()},
        budget=budget, ingested=ingested, **known,
    )  # fmt: skip


def _all(counts: Mapping[str, Counter[Any]]) -> Counter[Any]:
    return sum(counts.values(), Counter())


def visual_tokens(width: int, height: int, budget: int) -> int | None:
    """An estimate of what the processor of Qwen2-VL and Qwen2.5-VL makes of an image; None where it takes none.

    Both sides become multiples of 28, the area goes into 4 · 28² … budget (`smart_resize`, which tokenize is held to),
    and w · h / 28² tokens come of it. Tokenize may be given other limits, or a model of other patches.
    """
    try:
        across, down = smart_resize(width, height, min_pixels=LEAST_PIXELS, max_pixels=budget, factor=TOKEN_SIDE)
    except ValueError:  # more than 200 times as long as wide
        return None
    return across * down // TOKEN_SIDE**2


# ---------------------------------------------------------------------------------------------------------- findings


def findings(found: Conversion) -> list[Finding]:
    """What somebody who sees these numbers every day would say first; worst first."""
    return sorted((*_of_refusals(found), *_of_splits(found), *_of_contents(found)), key=lambda finding: finding.good)


def _of_refusals(found: Conversion) -> Iterator[Finding]:
    rows = found.row_counts.rows
    if not found.row_counts.rejected_rows:
        yield Finding(True, f"Every row was kept: {rows:,} of {rows:,}.")
        return
    if not found.row_counts.kept:
        yield Finding(False, "Not one row was kept.")
    often = {name: each.rejected_rows for name, each in found.datasets.items()
             if each.rejected_rows > _MANY_REFUSED * each.rows}  # fmt: skip
    for name, refused in most_frequent(often)[:4]:
        reason = most_frequent(found.datasets[name].rejected)[0][0]
        yield Finding(
            reason in (Reason.DUPLICATE, Reason.HELD_OUT),  # these say nothing against the rows
            f"{name}: {refused:,} of {found.datasets[name].rows:,} rows were refused, most of them as {reason}"
            f" ({MEANING.get(Reason(reason), '')}).",
        )
    if not often:
        yield Finding(
            True, f"{found.row_counts.rejected_rows:,} of {rows:,} rows were refused, in no dataset above 5 %."
        )


def _of_splits(found: Conversion) -> Iterator[Finding]:
    kept = {split: sum(each.kept.get(split, 0) for each in found.datasets.values()) for split in SPLITS}
    if found.row_counts.kept and not kept["train"]:
        yield Finding(False, "No row is there to train on: all that were kept are for validation or test.")
    elif kept["train"] and not kept["validation"]:
        yield Finding(
            False, "No row is there to validate on: --validation-share divides rows that name no split, and all with "
            "--splits by-content."
        )  # fmt: skip
    if shared := sum(benchmark.images_shared for benchmark in found.benchmarks.values()):
        refused = sum(benchmark.rows_refused for benchmark in found.benchmarks.values())
        yield Finding(
            True, f"{shared:,} images of the benchmarks were in these rows; {refused:,} rows were refused for it."
        )
    if found.near_duplicates is None and found.row_counts.kept:
        yield Finding(True, "Nobody looked for images that nearly are the same; the split goes by their bytes alone.")
    for part in found.mix:
        if part.kept and part.wanted and not part.learned:
            yield Finding(False, f"All kept rows of the part {part.name} are to measure with; none is learned from.")


def _of_contents(found: Conversion) -> Iterator[Finding]:
    kept = found.row_counts.kept
    unmarked, absent = found.boxes_per_row.get("not annotated", 0), found.boxes_per_row.get("0", 0)
    if by_text := sum(found.without_image.values()):
        yield Finding(True, f"{by_text:,} of {kept:,} rows are asked by text alone, without an image.")
    if unmarked and unmarked == kept - by_text:
        yield Finding(True, "No row says where its evidence is; distill can look for it.")
    elif unmarked:
        yield Finding(True, f"{unmarked:,} of {kept:,} rows do not say where their evidence is.")
    if absent:
        yield Finding(True, f"{absent:,} rows ask about something that is not in the image.")
    if reasoned := kept - found.reasonings.get("0", 0):
        yield Finding(True, f"{reasoned:,} of {kept:,} rows bring a reasoning.")
    elif kept:
        yield Finding(True, "No row brings a reasoning; distill writes it.")
    if unknown := found.licences.get("unknown", 0):
        yield Finding(False, f"The licence of {unknown:,} rows is unknown; --licence says it.")
    if found.beyond_processor:
        yield Finding(
            False,
            f"{found.beyond_processor:,} images are more than 200 times as long as wide; no processor takes them.",
        )
    if (tokens := found.visual_tokens).n:
        yield Finding(
            True, f"Half of the images take {tokens.median:,} visual tokens or less, nine of ten {tokens.p90:,}."
        )


# ---------------------------------------------------------------------------------------------------------- the page


def _largest(found: Conversion) -> list[str]:
    return [name for name, _ in most_frequent({name: rows.rows for name, rows in found.datasets.items()})]


def _lines(found: Conversion) -> list[dict[str, Any]]:
    """A line for each dataset, the largest first; many small ones share the last line."""
    largest = _largest(found)
    lines = {name: found.datasets[name] for name in largest[:MOST_LINES]}
    if others := [found.datasets[name] for name in largest[MOST_LINES:]]:
        lines[f"{len(others):,} others"] = Rows(**summed(rows.model_dump() for rows in others))
    most = max(rows.rows for rows in lines.values())
    return [
        {"name": name, "rows": rows, "parts": [
            (kind, 100 * n / most) for kind, n in (*rows.kept.items(), ("refused", rows.rejected_rows)) if n
        ]}
        for name, rows in lines.items()
    ]  # fmt: skip


def _reasons(found: Conversion) -> list[dict[str, Any]]:
    """Most frequent first, each with the datasets that it befell."""
    by_dataset = {name: rows.rejected for name, rows in found.datasets.items()}
    return [
        {"name": reason, "meaning": MEANING.get(Reason(reason), ""), "n": n, "where": where(by_dataset, reason)}
        for reason, n in most_frequent(found.row_counts.rejected)
    ]


def _chosen(
    found: Conversion, examples: Mapping[str, Mapping[str, Sequence[ShownExample]]], cards: Cards
) -> list[tuple[str, list[Card], list[Card]]]:
    """(dataset, kept, refused): every dataset with as many examples as there is room for, the largest first; of the
    refused ones one of each reason, then a second of each, …"""
    rows = []
    for name in _largest(found):
        groups = examples.get(name, {})
        reasons = (groups.get(f"refused:{reason}", ()) for reason, _ in most_frequent(found.datasets[name].rejected))
        refused = [row for row in chain.from_iterable(zip_longest(*reasons)) if row is not None]
        if name in examples:
            rows.append((name, groups.get("kept", ()), refused))

    def shown(most: int) -> int:
        return sum(len(kept[:most]) + len(refused[:most]) for _, kept, refused in rows)

    each = next((most for most in range(SHOWN, _LEAST_CARDS, -1) if shown(most) <= _MANY_CARDS), _LEAST_CARDS)
    side = SMALL if shown(each) > _FEW_CARDS else LARGE
    return [
        (name, [cards.card(row, side) for row in kept[:each]], [cards.card(row, side) for row in refused[:each]])
        for name, kept, refused in rows
    ]


def _charts(found: Conversion) -> Iterator[dict[str, Any]]:
    yield _chart("Area of a box", "share of its image", "boxes", found.box_area, _area, roughly="roughly ")
    boxes = Counter[str]()
    for name, rows in found.boxes_per_row.items():
        many = name.isdigit() and int(name) > _MOST_BOXES
        boxes[f"{_MOST_BOXES + 1} or more" if many else {"0": "0 (not there)"}.get(name, name)] += rows
    yield chart("Boxes of a row", "places that the evidence points at", "rows", boxes.items())
    yield _chart("Length of the question", "characters", "rows", found.question_length, number, whole=True)
    yield _chart("Length of the answer", "characters", "rows", found.answer_length, number, whole=True)
    yield _chart("Size of an image", "megapixels", "images", found.pixels, _megapixels)
    if found.ingested:
        about = f"megapixels, of copies of at most {_megapixels(found.budget)}"
        yield _chart("Size as it is kept", about, "images", found.pixels_kept, _megapixels)
    about = f"estimated: 28 × 28 pixels each, {found.budget // TOKEN_SIDE**2:,} at most"
    yield _chart("Visual tokens of an image", about, "images", found.visual_tokens, number, whole=True)


def _chart(
    name: str, about: str, counted: str, values: Distribution, written: Callable[[float], str], *,
    whole: bool = False, roughly: str = "",
) -> dict[str, Any]:  # fmt: skip
    """`whole`: only whole numbers occur, so that a bar ends one below where the next begins."""

    def label(bar: Bar) -> str:
        if bar.below is None:
            return f"{written(bar.low)} or more"
        last = bar.below - whole
        return written(last) if last == bar.low else f"{written(bar.low).removesuffix(' %')} – {written(last)}"

    spread = (
        f"{roughly}from {written(values.min)} to {written(values.max)}, half of them at most "
        f"{written(values.median)}, nine of ten {written(values.p90)}"
    )
    return chart(name, about, counted, ((label(bar), bar.n) for bar in values.bars), spread)


def _area(value: float) -> str:
    return f"{100 * value:g} %"


def _megapixels(value: float) -> str:
    return f"{value / 1e6:.3g}"


def _measures(found: Conversion) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each dataset: (median, what nine of ten do not exceed) of what the charts show of all."""
    shown = (("boxes_per_row", number), ("box_area", _area), ("question_length", number), ("answer_length", number))
    lines = []
    for name in [name for name in _largest(found) if name in found.by_dataset][:MOST_LINES]:
        spreads = [(getattr(found.by_dataset[name], field), written) for field, written in shown]
        cells = [(written(one.median), written(one.p90)) if one.n else ("–", "") for one, written in spreads]
        lines.append((name, cells))
    return lines
