"""A shard of Samples through a teacher: some pass as they are, some get reasoning, the rest is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from vcot.grounding import FrameSpec, tags
from vcot.records import Rejection, Sample
from vcot.records.shards import ShardMark, ShardWriter
from vcot.teacher.row import Teacher, taught

EXAMPLES = 3
"""Lessons of each shard that the report shows as text."""


def distil(samples: Iterable[Sample], teacher: Teacher, writer: ShardWriter) -> None:
    """Every sample goes to the writer once, in order: kept, with or without new reasoning, or refused."""
    counts = {"taught": 0, "traces": 0, "had_reasoning": 0, "test_passed": 0}
    examples: list[dict[str, Any]] = []
    before = dict(teacher.counts())
    with closing(teacher.teach(samples)) as rows:  # whatever happens here, requests under way come home
        for sample, outcome in rows:
            if isinstance(outcome, Rejection):
                writer.reject(outcome)
                continue
            if outcome is None:
                counts["had_reasoning" if sample.reasoning else "test_passed"] += 1
            else:
                sample = taught(sample, outcome, teacher.name)
                counts["taught"] += 1
                counts["traces"] += len(sample.reasoning)
                if len(examples) < EXAMPLES:
                    examples.append(shown(sample))
            writer.keep(sample)
    spent = {name: value - before[name] for name, value in teacher.counts().items()}
    writer.facts |= {"rows": counts, "spent": spent, "examples": examples}


def shown(sample: Sample) -> dict[str, Any]:
    """A lesson as it will be read: question, reply in thousandths, and where it comes from."""
    frame = sample.frame(FrameSpec("thousandths"))
    reply = tags.render_reply(sample.reasoning[0], sample.answers[0], frame)
    return {"id": sample.id, "image": sample.shown.uri, "question": sample.question, "reply": reply}


def summed(marks: Sequence[ShardMark]) -> dict[str, Any]:
    """The counts of all shards, and the first examples, for report.json."""
    return {
        "rows": _sum([mark.facts["rows"] for mark in marks]),
        "spent": _sum([mark.facts["spent"] for mark in marks]),
        "examples": [example for mark in marks for example in mark.facts["examples"]][: 4 * EXAMPLES],
    }


def _sum(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = list(dict.fromkeys(name for count in counts for name in count))
    return {name: sum(count.get(name, 0) for count in counts) for name in names}
