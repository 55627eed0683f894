"""Is the teacher's output worth training on? What can be said of it at a glance."""

from __future__ import annotations

from collections.abc import Iterator

from vcot.records.distillation import Distillation, Passage
from vcot.records.page import Remark, share

FEW_DECOYS = 20
"""Fewer decoys than this say nothing about a look."""

_MUCH = 0.1
"""Share above which a thing is worth a look."""


def remarks(found: Distillation, all_rows: Passage) -> list[Remark]:
    return [*_of_rows(found, all_rows), *_of_boxes(found), *_of_answers(found, all_rows), *_of_money(found)]


def _of_rows(found: Distillation, rows: Passage) -> Iterator[Remark]:
    unasked = rows.rows - rows.passed - rows.asked
    if unasked > _MUCH * rows.rows:
        yield Remark(False, f"{share(unasked, rows.rows)} of the rows were refused before anybody was asked.")
    if not rows.asked:
        yield Remark(False, "No row was asked about: they have reasoning, or are of the test split, or were refused.")
        return
    yield Remark(
        rows.kept > rows.asked / 2,
        f"{share(rows.kept, rows.asked)} of the rows that needed reasoning got some that passed every check.",
    )
    if found.way is None:
        yield Remark(True, "A template wrote it from boxes that people drew; no model was asked, and nothing paid.")
    elif rows.asked - rows.parsed > _MUCH * rows.asked:
        lost = share(rows.asked - rows.parsed, rows.asked)
        yield Remark(False, f"{lost} of the replies could not be read: another prompt or model may do better.")


def _of_boxes(found: Distillation) -> Iterator[Remark]:
    trust = found.trust
    if found.way is None:
        return
    if not trust.looks:
        yield Remark(True, "No box was looked at: all are where people drew them, or looks are turned off (--look).")
        return
    if trust.decoys < FEW_DECOYS:
        yield Remark(
            False, f"{f'Only {trust.decoys:,}' if trust.decoys else 'None'} of {trust.looks:,} looks "
            f"{'was' if trust.decoys < 2 else 'were'} tested with a decoy, too few to say what a look is worth: "
            f"{'raise --decoy-share' if trust.decoys < trust.looks else 'more rows would tell'}.",
        )  # fmt: skip
        return
    rate = trust.decoys_accepted / trust.decoys
    seen = f"The look accepted {trust.decoys_accepted:,} of {trust.decoys:,} decoys ({share(rate, 1)})"
    yield Remark(
        rate <= _MUCH,
        f"{seen}: it tells what is there from what is not."
        if rate <= _MUCH
        else f"{seen}: proposed boxes that passed it may be wrong; another --judge-model may look better.",
    )


def _of_answers(found: Distillation, rows: Passage) -> Iterator[Remark]:
    lost = rows.boxes_accepted - rows.answer_agreed
    if lost > 2 * _MUCH * rows.boxes_accepted:
        yield Remark(
            False, f"{share(lost, rows.boxes_accepted)} of the rows with good boxes fell because the answer did not "
            "follow from them.",
        )  # fmt: skip
    first = sum(flags.get("answer-first", 0) for flags in found.flags.values())
    if first > _MUCH * rows.kept:
        yield Remark(
            False, f"{share(first, rows.kept)} of the kept rows state the answer in their first sentence, before they "
            "look at anything (--answer-first refuse).",
        )  # fmt: skip


def _of_money(found: Distillation) -> Iterator[Remark]:
    unpriced = sum(cost.unpriced for cost in found.costs.values())
    if unpriced:
        yield Remark(False, f"The price of {unpriced:,} replies is unknown; --prices FILE gives one.")
