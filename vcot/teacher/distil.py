"""A shard of Samples through a teacher: some pass as they are, some get reasoning, the rest is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from vcot.grounding import FrameSpec, tags
from vcot.records import Rejection, Sample
from vcot.records.shards import ShardMark, ShardWriter
from vcot.teacher import funnel
from vcot.teacher.row import Outcome, Teacher, taught

EXAMPLES = 3
"""Lessons of each shard that the report shows."""


def distil(samples: Iterable[Sample], teacher: Teacher, writer: ShardWriter) -> None:
    """Every sample goes to the writer once, in order: kept, with or without new reasoning, or refused."""
    before = dict(teacher.counts())
    with closing(teacher.teach(samples)) as rows:  # whatever happens here, requests under way come home
        facts = write(rows, teacher.name, writer)
    writer.facts |= facts | spending(before, teacher.counts())


def write(rows: Iterable[tuple[Sample, Outcome]], teacher: str, writer: ShardWriter) -> dict[str, Any]:
    """The rows as they came out, into the shard; what funnel.py says of them."""
    counts = {"taught": 0, "traces": 0, "had_reasoning": 0, "test_passed": 0}
    examples: list[dict[str, Any]] = []
    passage = funnel.Funnel()
    for sample, outcome in rows:
        if isinstance(outcome, Rejection):
            passage.refused(sample, outcome)
            writer.reject(outcome)
        elif outcome is None:
            passage.passed(sample)
            counts["test_passed" if sample.origin.split == "test" else "had_reasoning"] += 1
            writer.keep(sample)
        else:
            passage.kept(sample, outcome.flags, outcome.parts)
            made = taught(sample, outcome, teacher)
            writer.keep(*made)
            for part in outcome.parts:
                writer.leave_out(part)
            counts["taught"] += 1
            counts["traces"] += sum(len(one.reasoning) for one in made)
            examples += [shown(one) for one in made[: EXAMPLES - len(examples)]]
    return {"rows": counts, "examples": examples, **passage.facts()}


def spending(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, Any]:
    """What was counted meanwhile."""
    spent = {name: value - before.get(name, 0) for name, value in after.items()}
    return {"trust": {name: spent.pop(name, 0) for name in funnel.TRUST}, "spent": spent}


def shown(sample: Sample) -> dict[str, Any]:
    """A lesson as it will be read: question, reply in thousandths, what it points at, and where it comes from."""
    frame = sample.image.frame(FrameSpec("thousandths"))
    evidence = None if sample.evidence is None else [mention.to_json() for mention in sample.evidence]
    return {
        "id": sample.id, "source": sample.origin.dataset, "image": sample.image.model_dump(mode="json"),
        "question": sample.question, "answer": sample.answers[0], "evidence": evidence,
        "reasoning": sample.reasoning[0].to_json(),
        "reply": tags.render_reply(sample.reasoning[0], sample.answers[0], frame),
    }  # fmt: skip


def summed(marks: Sequence[ShardMark]) -> dict[str, Any]:
    """The facts of all shards, added up, for report.json; see funnel.py."""
    facts = [mark.facts for mark in marks]
    examples = [example for one in facts for example in one.get("examples", ())][: 4 * EXAMPLES]
    return funnel.summed({**one, "examples": []} for one in facts) | {"examples": examples}
