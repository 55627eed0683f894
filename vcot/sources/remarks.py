"""What somebody who sees these numbers every day would say first."""

from __future__ import annotations

from collections.abc import Iterator

from vcot.records import Reason
from vcot.records.conversion import Conversion
from vcot.records.page import Remark
from vcot.sources.words import MEANING

_MANY = 0.05
"""Share of a dataset's rows above which refusing them is worth a word."""

_WANTED = (Reason.DUPLICATE, Reason.HELD_OUT)
"""Reasons that say nothing against the rows."""


def remarks(found: Conversion) -> list[Remark]:
    """Worst first."""
    said = [*_refusals(found), *_splits(found), *_contents(found), *_pictures(found)]
    return sorted(said, key=lambda remark: remark.good)


def _refusals(found: Conversion) -> Iterator[Remark]:
    rows = found.tally.rows
    if not found.tally.rejected_rows:
        yield Remark(True, f"Every row was kept: {rows:,} of {rows:,}.")
        return
    if not found.tally.kept:
        yield Remark(False, "Not one row was kept.")
    often = {name: each for name, each in found.datasets.items() if each.rejected_rows > _MANY * each.rows}
    for name, each in sorted(often.items(), key=lambda entry: -entry[1].rejected_rows)[:4]:
        reason = max(sorted(each.rejected), key=each.rejected.__getitem__)
        yield Remark(
            reason in _WANTED,
            f"{name}: {each.rejected_rows:,} of {each.rows:,} rows were refused, most of them as {reason}"
            f" ({MEANING.get(Reason(reason), '')}).",
        )
    if not often:
        yield Remark(True, f"{found.tally.rejected_rows:,} of {rows:,} rows were refused, in no dataset above 5 %.")


def _splits(found: Conversion) -> Iterator[Remark]:
    kept = {split: sum(each.kept.get(split, 0) for each in found.datasets.values()) for split in found.pictures}
    if found.tally.kept and not kept["train"]:
        yield Remark(False, "No row is there to train on: all that were kept are for validation or test.")
    elif kept["train"] and not kept["validation"]:
        yield Remark(
            False, "No row is there to validate on: --validation-share divides rows that name no split, and all with "
            "--splits by-content."
        )  # fmt: skip
    shared = sum(benchmark.pictures_shared for benchmark in found.benchmarks.values())
    if shared:
        refused = sum(benchmark.rows_refused for benchmark in found.benchmarks.values())
        yield Remark(
            True, f"{shared:,} pictures of the benchmarks were in these rows; {refused:,} rows were refused for it."
        )
    if found.near_duplicates is None and found.tally.kept:
        yield Remark(True, "Nobody looked for pictures that nearly are the same; the split goes by their bytes alone.")


def _contents(found: Conversion) -> Iterator[Remark]:
    kept = found.tally.kept
    unmarked, absent = found.boxes_per_row.get("not annotated", 0), found.boxes_per_row.get("0", 0)
    if by_text := sum(found.without_image.values()):
        yield Remark(True, f"{by_text:,} of {kept:,} rows are asked by text alone, without a picture.")
    if unmarked and unmarked == kept - by_text:
        yield Remark(True, "No row says where its evidence is; distill can look for it.")
    elif unmarked:
        yield Remark(True, f"{unmarked:,} of {kept:,} rows do not say where their evidence is.")
    if absent:
        yield Remark(True, f"{absent:,} rows ask about something that is not in the picture.")
    reasoned = kept - found.reasonings.get("0", 0)
    if reasoned:
        yield Remark(True, f"{reasoned:,} of {kept:,} rows bring a reasoning.")
    elif kept:
        yield Remark(True, "No row brings a reasoning; distill writes it.")
    for part in found.mix or ():
        if part.kept and part.wanted and not part.learned:
            yield Remark(False, f"All kept rows of the part {part.name} are to measure with; none is learned from.")
    if unknown := found.licences.get("unknown", 0):
        yield Remark(False, f"The licence of {unknown:,} rows is unknown; --licence says it.")


def _pictures(found: Conversion) -> Iterator[Remark]:
    if found.beyond_processor:
        yield Remark(
            False,
            f"{found.beyond_processor:,} pictures are more than 200 times as long as wide; no processor takes them.",
        )
    tokens = found.visual_tokens
    if tokens.n:
        yield Remark(
            True, f"Half of the pictures take {tokens.median:,} visual tokens or less, nine of ten {tokens.p90:,}."
        )
