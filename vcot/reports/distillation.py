"""The report of distill: how far rows came, what was refused and why, what was checked, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vcot.grounding.frames_fit import GOOD_FIT
from vcot.records import Folder, Reason, RowCounts
from vcot.records.metadata import Counts, DistillMetadata, DistillShardMetadata, Line, Passage
from vcot.records.reports import Cost, Distillation
from vcot.records.shards import ShardMarker
from vcot.reports.examples import LARGE, SMALL, Card, Cards, ExampleSampler, sampled
from vcot.reports.rendering import MOST_LINES, REASONS, Finding, dollars, most_frequent, render, share, where
from vcot.reports.statistics import summed

SHOWN = 6
"""Examples that are kept of each dataset."""
SHOWN_OF_REASON = 3
FEW_NEGATIVES = 20
"""Fewer negative crops than this say nothing about the crop check."""

_MUCH = 0.1
"""Share above which a thing is worth a look."""
_STEPS = {
    "asked": "asked", "parsed": "reply could be read", "boxes_accepted": "boxes accepted",
    "answer_agreed": "answer agreed", "kept": "kept",
}  # fmt: skip

GATES: tuple[str, ...] = tuple(REASONS["distill"])
MEANING: Mapping[Reason, tuple[str, str]] = {
    Reason(name): (gate, told) for gate, reasons in REASONS["distill"].items() for name, told in reasons.items()
}
"""Reason → at which gate, and what happened."""

FLAGS = {"answer-first": "the first sentence states the answer"}


def report(
    folder: Folder, markers: Sequence[ShardMarker[DistillShardMetadata]], row_counts: RowCounts,
    metadata: DistillMetadata,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """What report.json holds, and the page. Raises InputError: a shard put nothing aside."""
    counted = DistillShardMetadata(**summed(marker.metadata.model_dump() for marker in markers))
    costs = {
        source: _cost(lines.values(), counted.funnel.get(source, Passage())) for source, lines in counted.bill.items()
    }
    found = Distillation(
        row_counts=row_counts, shards=len(markers), costs=costs, **metadata.model_dump(), **counted.model_dump()
    )
    page = _page(found, sampled(folder, markers, SHOWN), Cards(folder.store))
    return found.model_dump(mode="json"), page


def _cost(lines: Iterable[Line], funnel: Passage) -> Cost:
    """The sums of a dataset's bill, with what a row of it costs."""
    total = summed(line.model_dump() for line in lines)
    rows = funnel.kept
    priced = rows and not total["unpriced"]
    return Cost(
        **total, rows_kept=rows, usd_a_row_kept=round((total["usd"] + total["usd_lost"]) / rows, 9) if priced else None
    )


def _page(found: Distillation, examples: ExampleSampler, cards: Cards) -> str:
    whole = _sum(found.funnel.values())
    steps = _STEPS if found.strategy else {step: _STEPS[step] for step in ("asked", "kept")}
    datasets = _datasets(found)
    return render(
        "distill.html.j2", found=found, all_rows=whole, steps=steps, datasets=datasets,
        findings=findings(found, whole), tiles=list(_tiles(found, whole)),
        costs=[(name, found.costs[name]) for name, _ in datasets if name in found.costs],
        purposes=_purposes(found), flagged=_over_datasets(found.flags), flags=FLAGS,
        kept=_kept(examples, cards), refused=_gates(found.refused, "refused", examples, cards),
        parts=_gates(found.parts, "part", examples, cards),
    )  # fmt: skip


def _sum(passages: Iterable[Passage]) -> Passage:
    return Passage(**summed(one.model_dump() for one in passages))


def _datasets(found: Distillation) -> list[tuple[str, Passage]]:
    """The largest first; many small ones share the last line."""
    largest = [name for name, _ in most_frequent({name: rows.rows for name, rows in found.funnel.items()})]
    lines = [(name, found.funnel[name]) for name in largest[:MOST_LINES]]
    if others := largest[MOST_LINES:]:
        lines.append((f"{len(others):,} others", _sum(found.funnel[name] for name in others)))
    return lines


def _tiles(found: Distillation, rows: Passage) -> Iterator[tuple[str, str]]:
    """(what stands large, what it is)"""
    yield share(rows.kept, rows.asked), f"kept: {rows.kept:,} of {rows.asked:,} rows that needed reasoning"
    if found.strategy is None:
        return
    trust = found.trust
    if trust.decoys:
        few = f" of only {trust.decoys:,}" if trust.decoys < FEW_NEGATIVES else f" of {trust.decoys:,}"
        yield share(trust.decoys_accepted, trust.decoys), f"negative crops that the crop check accepted,{few}"
    else:
        yield "–", "negative crops: no crop check was tested"
    costs = found.costs.values()
    if any(cost.unpriced for cost in costs):
        tokens = sum(cost.tokens_in + cost.tokens_out for cost in costs)
        yield f"{tokens:,}", "tokens in and out; what they cost is unknown"
        return
    usd = sum(cost.usd + cost.usd_lost for cost in costs)
    yield dollars(usd), "cost of all replies, kept ones too"
    yield (dollars(usd / rows.kept) if rows.kept else "–"), "for each row kept"


def _purposes(found: Distillation) -> list[tuple[str, Line]]:
    """What each kind of question did cost, over all datasets."""
    lines = summed({purpose: line.model_dump() for purpose, line in of.items()} for of in found.bill.values())
    purposes = {purpose: Line(**line) for purpose, line in lines.items()}
    return sorted(purposes.items(), key=lambda one: (-one[1].tokens_in - one[1].tokens_out, one[0]))


def _over_datasets(counts: Counts) -> Counter[str]:
    """Name → rows, over all datasets."""
    return sum(map(Counter, counts.values()), Counter())


def _kept(examples: ExampleSampler, cards: Cards) -> list[tuple[str, list[Card]]]:
    """Of many datasets only as many as there is room for, each with fewer rows."""
    kept = {name: groups["kept"] for name, groups in examples.by_dataset().items() if "kept" in groups}
    each = SHOWN if len(kept) <= 8 else SHOWN // 2
    return [(name, [cards.card(row, LARGE) for row in kept[name][:each]]) for name in list(kept)[:MOST_LINES]]


def _gates(
    counts: Counts, group: str, examples: ExampleSampler, cards: Cards
) -> list[tuple[str, list[dict[str, Any]]]]:
    """The reasons at each gate, most frequent first, with some of their rows."""
    gates: dict[str, list[dict[str, Any]]] = {gate: [] for gate in GATES}
    for reason, rows in most_frequent(_over_datasets(counts)):
        gate, meaning = MEANING[Reason(reason)]
        shown = examples.of_group(f"{group}:{reason}", SHOWN_OF_REASON)
        drawn = [cards.card(row, SMALL) for row in shown]
        gates[gate].append(
            {"name": reason, "meaning": meaning, "n": rows, "where": where(counts, reason), "cards": drawn}
        )
    return [(gate, reasons) for gate, reasons in gates.items() if reasons]


def findings(found: Distillation, all_rows: Passage) -> list[Finding]:
    """Is the teacher's output worth training on? What can be said of it at a glance."""
    return [*_of_rows(found, all_rows), *_of_boxes(found), *_of_answers(found, all_rows)]


def _of_rows(found: Distillation, rows: Passage) -> Iterator[Finding]:
    unasked = rows.rows - rows.passed - rows.asked
    if unasked > _MUCH * rows.rows:
        yield Finding(False, f"{share(unasked, rows.rows)} of the rows were refused before anybody was asked.")
    if not rows.asked:
        yield Finding(False, "No row was asked about: they have reasoning, or are of the test split, or were refused.")
        return
    yield Finding(
        rows.kept > rows.asked / 2,
        f"{share(rows.kept, rows.asked)} of the rows that needed reasoning got some that passed every check.",
    )
    if found.strategy is None:
        yield Finding(True, "A template wrote it from boxes that people drew; no model was asked, and nothing paid.")
    elif rows.asked - rows.parsed > _MUCH * rows.asked:
        lost = share(rows.asked - rows.parsed, rows.asked)
        yield Finding(False, f"{lost} of the replies could not be read: another prompt or model may do better.")


def _of_boxes(found: Distillation) -> Iterator[Finding]:
    trust = found.trust
    if found.strategy is None:
        return
    if (fit := found.frame_fit) is not None:
        better = "" if fit.best == fit.declared else f" ({fit.best_iou:.2f} in {fit.best})"
        boxes = (
            f"the teacher's boxes fit with a mean IoU of {fit.declared_iou:.2f} in {fit.declared} as declared{better}, "
            f"over {fit.boxes:,} boxes of {fit.rows:,} rows"
        )
        asked = f"Asked where the annotated things of {fit.rows_requested:,} rows are,"
        yield Finding(fit.declared_iou >= GOOD_FIT, f"{asked} {boxes if fit.rows else 'the teacher gave no box'}.")
    if not trust.looks:
        yield Finding(
            True,
            "No box was looked at: all are where people drew them, or the crop check is turned off (--crop-check).",
        )
        return
    if trust.decoys < FEW_NEGATIVES:
        yield Finding(
            False, f"{f'Only {trust.decoys:,}' if trust.decoys else 'None'} of {trust.looks:,} crop checks "
            f"{'was' if trust.decoys < 2 else 'were'} tested with a negative crop, too few to say what they are worth: "
            f"{'raise --negative-crop-share' if trust.decoys < trust.looks else 'more rows would tell'}.",
        )  # fmt: skip
        return
    good = trust.decoys_accepted <= _MUCH * trust.decoys
    seen = f"The crop check accepted {trust.decoys_accepted:,} of {trust.decoys:,} negative crops"
    meaning = (
        "it tells what is there from what is not."
        if good
        else "proposed boxes that passed it may be wrong; another --judge-model may look better."
    )
    yield Finding(good, f"{seen} ({share(trust.decoys_accepted, trust.decoys)}): {meaning}")


def _of_answers(found: Distillation, rows: Passage) -> Iterator[Finding]:
    lost = rows.boxes_accepted - rows.answer_agreed
    if lost > 2 * _MUCH * rows.boxes_accepted:
        yield Finding(
            False, f"{share(lost, rows.boxes_accepted)} of the rows with good boxes fell because the answer did not "
            "follow from them.",
        )  # fmt: skip
    first = sum(flags.get("answer-first", 0) for flags in found.flags.values())
    if first > _MUCH * rows.kept:
        yield Finding(
            False, f"{share(first, rows.kept)} of the kept rows state the answer in their first sentence, before they "
            "look at anything (--answer-first refuse).",
        )  # fmt: skip

    if unpriced := sum(cost.unpriced for cost in found.costs.values()):
        yield Finding(False, f"The price of {unpriced:,} replies is unknown; --prices FILE gives one.")
