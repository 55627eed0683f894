"""What ``report.json`` says of suites: figures of each set for each way to ask, and what others have published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from pydantic_core import to_json

from vcot.evaluation.config import Way
from vcot.evaluation.metrics import Metric
from vcot.evaluation.suites import SUITES, suites_named
from vcot.evaluation.suites.base import Marked, Suite
from vcot.records import Sample, Score

METRICS: Mapping[str, Metric[Marked]] = {
    name: metric for suite in SUITES.values() for name, metric in suite.metrics.items()
}
"""Of all suites; a name means the same in each."""


def tables(
    names: Sequence[str], samples: Sequence[Sample], replies: Mapping[Way, Sequence[Score | None]], seed: int
) -> list[dict[str, Any]]:  # fmt: skip
    """One table for each suite, ready for JSON.

    Args:
        names: of suites.
        replies: way → one Score per sample, of the subject, on the real images.
        seed: of the intervals.
    """
    return [_table(suite, samples, replies, seed) for suite in suites_named(names)]


def _table(
    suite: Suite, samples: Sequence[Sample], replies: Mapping[Way, Sequence[Score | None]], seed: int
) -> dict[str, Any]:  # fmt: skip
    ways: list[dict[str, Any]] = []
    for way, scores in replies.items():
        sets = [
            {
                "set": each.set,
                "rows": each.rows,
                "mean_of": list(each.group_of),
                "figures": {name: figure.to_dict() for name, figure in each.figures.items()},
            }
            for each in suite.results(_marked(suite, samples, scores), seed=seed)
        ]
        ways.append({"way": way, "sets": sets})
    measured = {name for sample in samples if (name := suite.sets(sample)) is not None}
    return {
        "suite": suite.name,
        "about": suite.about,
        "shown": list(suite.shown),
        "ways": ways,
        "published": list(_published(suite, measured)),
    }


def exports(
    names: Sequence[str], samples: Sequence[Sample], replies: Mapping[Way, Sequence[Score | None]]
) -> Iterator[tuple[str, bytes]]:
    """Files for the scorers of others, one for each way to ask: `treebench-direct.jsonl` and what is in it."""
    for suite in suites_named(names):
        for (way, scores), (stem, line) in product(replies.items(), suite.exports.items()):
            marked = _marked(suite, samples, scores)
            if lines := [said for one in marked if (said := line(one)) is not None]:
                yield f"{stem}-{way}.jsonl", b"".join(to_json(said) + b"\n" for said in lines)


def _marked(suite: Suite, samples: Sequence[Sample], scores: Sequence[Score | None]) -> list[Marked]:
    """Replies to the samples that are of the suite."""
    asked = [(sample, score) for sample, score in zip(samples, scores, strict=True) if score is not None]
    return [one for sample, score in asked if (one := suite.mark(sample, score)) is not None]


def _published(suite: Suite, measured: set[str]) -> Iterator[dict[str, Any]]:
    """Numbers of the sets that were measured, and of groups of them; a mean of other sets is another measure."""
    for one in suite.published:
        parts = suite.groups.get(one.set, (one.set,))
        if not (there := measured.intersection(parts)):
            continue
        lacking = f"a mean of {len(parts)} sets; here it is of {len(there)}" if len(there) < len(parts) else ""
        differs = "; ".join(filter(None, (one.differs, lacking)))
        yield one._asdict() | {"differs": differs, "same_measure": not differs}
