"""The report of distill as a page that needs no other file: what the teacher wrote, and how much of it was believed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vcot.records import Reason
from vcot.records.distillation import Counts, Distillation, Passage
from vcot.records.page import fill, page, share
from vcot.teacher.prices import PICO, dollars
from vcot.teacher.report.body import BODY, CSS
from vcot.teacher.report.gallery import Gallery
from vcot.teacher.report.remarks import FEW_DECOYS, remarks
from vcot.teacher.report.specimens import SHOWN, Chosen, Specimen
from vcot.teacher.report.words import FLAGS, MEANING

MOST_SOURCES = 40
"""Lines of a table; what rows call their dataset may be anything."""

_STEPS = {
    "asked": "asked", "parsed": "reply could be read", "boxes_accepted": "boxes accepted",
    "answer_agreed": "answer agreed", "kept": "kept",
}  # fmt: skip


def as_page(found: Distillation, chosen: Chosen, gallery: Gallery) -> str:
    sources = _most(found)
    whole = _sum(found.funnel.values())
    steps = _STEPS if found.way else {step: _STEPS[step] for step in ("asked", "kept")}
    body = fill(
        BODY, css=CSS, found=found, all_rows=whole, steps=steps, remarks=remarks(found, whole),
        funnel=_bars(whole, steps), sources=sources, tiles=list(_tiles(found, whole)), costs=_costs(found, sources),
        purposes=_purposes(found), flags=FLAGS, flagged=_summed(found.flags),
        shelves=[(name, gallery.cards(rows)) for name, rows in _kept(chosen)],
        refused=_gates(found.refused, chosen["refused"], gallery),
        parts=_gates(found.parts, chosen["part"], gallery),
        share=share, money=money,
    )  # fmt: skip
    return page("Distill: what the teacher wrote, what was believed", body)


def _tiles(found: Distillation, rows: Passage) -> Iterator[tuple[str, str]]:
    """(what stands large, what it is)"""
    yield share(rows.kept, rows.asked), f"kept: {rows.kept:,} of {rows.asked:,} rows that needed reasoning"
    if found.way is None:
        return
    trust = found.trust
    if trust.decoys:
        few = f", of only {trust.decoys:,}" if trust.decoys < FEW_DECOYS else f" of {trust.decoys:,}"
        yield share(trust.decoys_accepted, trust.decoys), f"decoy rate: nonsense that the look accepted{few}"
    else:
        yield "–", "decoy rate: no look was tested"
    costs = found.costs.values()
    if any(cost.unpriced for cost in costs):
        tokens = sum(cost.tokens_in + cost.tokens_out for cost in costs)
        yield f"{tokens:,}", "tokens in and out; what they cost is unknown"
        return
    usd = sum(cost.usd + cost.usd_lost for cost in costs)
    yield money(usd), "cost of all replies, kept ones too"
    yield (money(usd / rows.kept) if rows.kept else "–"), "for each row kept"


def _bars(rows: Passage, steps: Mapping[str, str]) -> list[tuple[str, int, str, float]]:
    """(step, rows, share of those asked, width in percent)."""
    counts = [(told, getattr(rows, step)) for step, told in steps.items()]
    return [(told, n, share(n, rows.asked), 100 * n / (rows.asked or 1)) for told, n in counts]


def _most(found: Distillation) -> list[tuple[str, Passage]]:
    """The largest first; many small ones share the last line."""
    largest = sorted(found.funnel, key=lambda name: (-found.funnel[name].rows, name))
    lines = [(name, found.funnel[name]) for name in largest[:MOST_SOURCES]]
    if others := largest[MOST_SOURCES:]:
        lines.append((f"{len(others):,} others", _sum(found.funnel[name] for name in others)))
    return lines


def _sum(passages: Iterable[Passage]) -> Passage:
    rows = list(passages)
    return Passage(**{name: sum(getattr(one, name) for one in rows) for name in Passage.model_fields})


def _costs(found: Distillation, sources: Sequence[tuple[str, Passage]]) -> list[dict[str, Any]]:
    """A line for each source that something was asked about."""
    return [{"name": name, "of": found.costs[name]} for name, _ in sources if name in found.costs]


def _purposes(found: Distillation) -> list[dict[str, Any]]:
    """What each kind of question did cost, over all sources."""
    lines: dict[str, dict[str, float]] = {}
    for purposes in found.bill.values():
        for purpose, line in purposes.items():
            total = lines.setdefault(purpose, {"replies": 0, "tokens": 0, "usd": 0.0, "unpriced": 0})
            total["replies"] += line.requests + line.kept_replies_used
            total["tokens"] += line.tokens_in + line.tokens_out
            total["usd"] += line.usd + line.usd_lost
            total["unpriced"] += line.unpriced
    return [{"name": name, **lines[name]} for name in sorted(lines, key=lambda name: (-lines[name]["tokens"], name))]


def _kept(chosen: Chosen) -> Iterator[tuple[str, Sequence[Specimen]]]:
    """Of many sources only as many as there is room for, each with fewer rows."""
    kept = chosen["kept"]
    each = SHOWN["kept"] if len(kept) <= 8 else SHOWN["kept"] // 2
    for name in sorted(kept)[:MOST_SOURCES]:
        yield name, kept[name][:each]


Gates = list[tuple[str, list[dict[str, Any]]]]


def _gates(counts: Counts, examples: Mapping[str, Sequence[Specimen]], gallery: Gallery) -> Gates:
    """The reasons at each gate, most frequent first, with some of their rows."""
    summed = _summed(counts)
    gates: dict[str, list[dict[str, Any]]] = {gate: [] for gate, _ in MEANING.values()}
    for reason in sorted(summed, key=lambda name: (-summed[name], name)):
        gate, meaning = MEANING[Reason(reason)]
        told = {"name": reason, "meaning": meaning, "n": summed[reason], "where": _where(reason, counts)}
        gates[gate].append(told | {"cards": gallery.cards(examples.get(reason, ()))})
    return [(gate, reasons) for gate, reasons in gates.items() if reasons]


def _summed(counts: Counts) -> dict[str, int]:
    """Name → rows, over all sources."""
    total: dict[str, int] = {}
    for of_source in counts.values():
        for name, n in of_source.items():
            total[name] = total.get(name, 0) + n
    return total


def _where(reason: str, counts: Counts) -> str:
    """ "vsr 12, docvqa 3 and 2 more" """
    rows = sorted(((-of[reason], name) for name, of in counts.items() if reason in of))
    more = f" and {len(rows) - 6} more" if len(rows) > 6 else ""
    return ", ".join(f"{name} {-n:,}" for n, name in rows[:6]) + more


def money(usd: float) -> str:
    return dollars(round(usd * PICO))
