"""A shard of Samples through a teacher: some pass as they are, some get reasoning, the rest is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

from vcot.records import Reason, Rejection, Sample
from vcot.records.shards import ShardWriter
from vcot.teacher.funnel import TRUST, Funnel
from vcot.teacher.row import Outcome, Teacher, needs_teacher, refuse, taught


def distil(samples: Iterable[Sample], teacher: Teacher, writer: ShardWriter) -> Funnel:
    """Every sample goes to the writer once, in order: kept, with or without new reasoning, or refused.

    Returns what became of them, for the report.
    """
    before = dict(teacher.counts())
    with closing(teacher.teach(samples)) as rows:  # whatever happens here, requests under way come home
        funnel = write(rows, teacher.name, writer)
    writer.facts |= funnel.facts() | spending(before, teacher.counts())
    return funnel


def write(rows: Iterable[tuple[Sample, Outcome]], teacher: str, writer: ShardWriter) -> Funnel:
    """The rows as they came out, into the shard."""
    funnel = Funnel()
    for sample, outcome in rows:
        if outcome is None and needs_teacher(sample):  # which is left alone only where there is no image
            outcome = refuse(sample, Reason.NO_REASONING, "it is asked by text alone: there is nothing to point at")
        if isinstance(outcome, Rejection):
            funnel.refused(sample, outcome)
            writer.reject(outcome)
        elif outcome is None:
            funnel.passed(sample)
            writer.keep(sample)
        else:
            made = taught(sample, outcome, teacher)
            funnel.kept(sample, made, outcome.flags, outcome.parts)
            writer.keep(*made)
            for part in outcome.parts:
                writer.leave_out(part)
    return funnel


def spending(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """What was counted meanwhile."""
    spent = {name: value - before.get(name, 0) for name, value in after.items()}
    return {"trust": {name: spent.pop(name, 0) for name in TRUST}, "spent": spent}
