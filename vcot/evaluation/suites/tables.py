"""What ``report.json`` says of suites: figures of each set for each way to ask, and what others have published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from pydantic_core import to_json

from vcot.evaluation.config import Way
from vcot.evaluation.metrics import Metric
from vcot.evaluation.suites import SUITES, suites_named, viscot
from vcot.evaluation.suites.base import Marked, Suite
from vcot.records import Sample, Score

METRICS: Mapping[str, Metric[Marked]] = {
    name: metric for suite in SUITES.values() for name, metric in suite.metrics.items()
}
"""Of all suites; a name means the same in each."""


Replies = Mapping[Way, Sequence[Marked]]


def marked(
    names: Sequence[str], samples: Sequence[Sample], replies: Mapping[Way, Sequence[Score | None]]
) -> dict[str, Replies]:
    """What the suites of these names see, by suite and way.

    replies: way → one Score per sample, of the subject, on the real images.
    """

    def seen(suite: Suite, scores: Sequence[Score | None]) -> list[Marked]:
        asked = [(sample, score) for sample, score in zip(samples, scores, strict=True) if score is not None]
        return [one for sample, score in asked if (one := suite.mark(sample, score)) is not None]

    return {suite.name: {way: seen(suite, each) for way, each in replies.items()} for suite in suites_named(names)}


def tables(replies: Mapping[str, Replies], seed: int, judge: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """One table for each suite, ready for JSON. seed: of the intervals. judge: who gave the verdicts on VisCoT's."""
    return [_table(name, each, seed, judge if name == viscot.SUITE.name else None) for name, each in replies.items()]


def _table(name: str, replies: Replies, seed: int, judge: Mapping[str, Any] | None) -> dict[str, Any]:
    suite = SUITES[name] if judge is None else viscot.JUDGED
    ways: list[dict[str, Any]] = []
    for way, seen in replies.items():
        sets = [
            {
                "set": each.set,
                "rows": each.rows,
                "mean_of": list(each.group_of),
                "figures": {name: figure.to_dict() for name, figure in each.figures.items()},
            }
            for each in suite.results(seen, seed=seed)
        ]
        ways.append({"way": way, "sets": sets})
    measured = {one.set for seen in replies.values() for one in seen}
    table: dict[str, Any] = {
        "suite": suite.name,
        "about": suite.about,
        "shown": list(suite.shown),
        "ways": ways,
        "published": list(_published(suite, measured)),
    }
    if judge is not None:
        found = {way: viscot.kappa(seen) for way, seen in replies.items()}
        table["judge"] = dict(judge) | {
            "kappa": {way: None if each is None else round(each, 4) for way, each in found.items()}
        }
    return table


def exports(replies: Mapping[str, Replies]) -> Iterator[tuple[str, bytes]]:
    """Files for the scorers of others, one for each way to ask: `treebench-direct.jsonl` and what is in it."""
    for suite, each in replies.items():
        for (way, seen), (stem, line) in product(each.items(), SUITES[suite].exports.items()):
            if lines := [said for one in seen if (said := line(one)) is not None]:
                yield f"{stem}-{way}.jsonl", b"".join(to_json(said) + b"\n" for said in lines)


def _published(suite: Suite, measured: set[str]) -> Iterator[dict[str, Any]]:
    """Numbers of the sets that were measured, and of groups of them; a mean of other sets is another measure."""
    for one in suite.published:
        parts = suite.groups.get(one.set, (one.set,))
        if not (there := measured.intersection(parts)):
            continue
        lacking = f"a mean of {len(parts)} sets; here it is of {len(there)}" if len(there) < len(parts) else ""
        differs = "; ".join(filter(None, (one.differs, lacking)))
        yield one._asdict() | {"differs": differs, "same_measure": not differs}
