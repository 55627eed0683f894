"""A shard of Samples through a teacher: some pass as they are, some get reasoning, the rest is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from typing import Any

from vcot.records import Reason, Rejection, Sample
from vcot.records.shards import ShardWriter
from vcot.teacher import funnel
from vcot.teacher.report.specimens import Specimens
from vcot.teacher.row import Outcome, Teacher, needs_teacher, refuse, taught


def distil(samples: Iterable[Sample], teacher: Teacher, writer: ShardWriter) -> Specimens:
    """Every sample goes to the writer once, in order: kept, with or without new reasoning, or refused.

    Returns rows for the page.
    """
    before = dict(teacher.counts())
    specimens = Specimens()
    with closing(teacher.teach(samples)) as rows:  # whatever happens here, requests under way come home
        facts = write(rows, teacher.name, writer, specimens)
    writer.facts |= facts | spending(before, teacher.counts())
    return specimens


def write(
    rows: Iterable[tuple[Sample, Outcome]], teacher: str, writer: ShardWriter, specimens: Specimens
) -> dict[str, Any]:
    """The rows as they came out, into the shard; what funnel.py says of them."""
    counts = {"taught": 0, "traces": 0, "had_reasoning": 0, "test_passed": 0}
    passage = funnel.Funnel()
    for sample, outcome in rows:
        if outcome is None and needs_teacher(sample):  # which is left alone only where there is no image
            outcome = refuse(sample, Reason.NO_REASONING, "it is asked by text alone: there is nothing to point at")
        if isinstance(outcome, Rejection):
            passage.refused(sample, outcome)
            specimens.refused(sample, outcome)
            writer.reject(outcome)
        elif outcome is None:
            passage.passed(sample)
            counts["test_passed" if sample.origin.split == "test" else "had_reasoning"] += 1
            writer.keep(sample)
        else:
            passage.kept(sample, outcome.flags, outcome.parts)
            made = taught(sample, outcome, teacher)
            specimens.kept(sample, made, outcome.flags)
            writer.keep(*made)
            for part in outcome.parts:
                specimens.refused(sample, part)
                writer.leave_out(part)
            counts["taught"] += 1
            counts["traces"] += sum(len(one.reasoning) for one in made)
    return {"rows": counts, **passage.facts()}


def spending(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """What was counted meanwhile."""
    spent = {name: value - before.get(name, 0) for name, value in after.items()}
    return {"trust": {name: spent.pop(name, 0) for name in funnel.TRUST}, "spent": spent}
