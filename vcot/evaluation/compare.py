"""Finished evaluations of the same questions side by side, row by row, each against the first of them.

"Worse" means that the whole 95 % interval of a paired difference lies below 0: a gate on the bare value would fail half
of all models that are exactly as good.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import Any

from vcot.errors import InputError
from vcot.evaluation.config import Way
from vcot.evaluation.metrics import METRICS, Metric, boxes_found, measure_by
from vcot.evaluation.report import JUDGED
from vcot.evaluation.runner import read_replies
from vcot.evaluation.subjects import Finished
from vcot.evaluation.suites import suites_named
from vcot.records import Sample, Score, read_samples
from vcot.records.shards import OF_SAMPLES, ShardMarker
from vcot.reports.rendering import plural
from vcot.storage import NotFound, Store, join, read_json

SHOWN = ("accuracy_at_50", "mean_iou", "answer_accuracy", "unreadable", "malformed")
"""A clear fall of one of JUDGED is a regression; the others are only shown."""

#: Settings that change replies; where they differ, not the model alone is compared.
ASKED = (
    "ask", "suite", "native_form", "subject_frame", "subject_dialect", "subject_instruction", "subject_min_pixels",
    "subject_max_pixels", "max_new_tokens", "quantization", "dtype", "per_device_eval_batch_size", "max_samples",
    "eval_batch_tokens", "seed", "split", "synonyms",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One side of a comparison: what its subject said to the real images, greedily.

    Attributes:
        name: short, and another one than those it is compared with.
        scores: way → id of a sample → Score.
        made_with: of its report.
    """

    name: str
    uri: str
    settings: Mapping[str, Any]
    scores: Mapping[Way, Mapping[str, Score]]
    made_with: Mapping[str, Any]
    finished: Finished | None = None

    @classmethod
    def read(
        cls, store: Store, name: str, uri: str, settings: Mapping[str, Any], shards: Sequence[ShardMarker],
        finished: Finished | None = None,
    ) -> Run:  # fmt: skip
        """Of an evaluation whose report is written; without its marker where a gate was not passed."""
        scores: dict[Way, dict[str, Score]] = defaultdict(dict)
        for reply in read_replies(store, uri, shards):
            if (reply.key, reply.draw, reply.probe) == ("subject-real", 0, None):
                scores[reply.way][reply.score.sample] = reply.score
        made_with = read_json(store, join(uri, "report.json"), itemgetter("made_with"), "run evaluate again")
        return cls(name, uri, settings, scores, made_with, finished)

    @classmethod
    def of(cls, store: Store, name: str, finished: Finished) -> Run:
        marker = finished.marker
        return cls.read(store, name, finished.uri, marker.settings, marker.shards, finished)


def names(uris: Sequence[str]) -> list[str]:
    """What tells evaluations at different URIs apart: the last parts of these, as few as will do."""
    parts = [uri.removesuffix("/evaluate").split("/") for uri in uris]
    every = (["/".join(each[-many:]) for each in parts] for many in range(1, max(map(len, parts)) + 1))
    return next(found for found in every if len(set(found)) == len(found))


def samples_of(store: Store, runs: Sequence[Run]) -> dict[str, Sample]:
    """Id → the sample that was asked about, of the first run whose samples are still there; else none."""
    for run in runs:
        uri, asked = str(run.made_with["samples"]), next(iter(run.scores.values()), {})
        try:
            marker = Finished.at(store, uri, *OF_SAMPLES).marker
            return {sample.id: sample for sample in read_samples(store, uri, marker) if sample.id in asked}
        except (InputError, NotFound):
            continue
    return {}


def compare(
    runs: Sequence[Run], samples: Mapping[str, Sample], *, max_left_out_share: float, seed: int, common: bool = False
) -> dict[str, Any]:
    """The comparison, ready for JSON.

    Rows are paired by their id. One that not all have, about another image, or with more or fewer true boxes than
    before, cannot be paired.

    Args:
        runs: two or more; the first is what the others are compared with.
        samples: by their ids; without them there is no table of suites.
        common: compare the rows that can be paired, however few.

    Raises:
        InputError: more than this share of the rows cannot be paired, or there is no way that all were asked in.
    """
    first, others = runs[0], runs[1:]
    ways = [way for way in others[0].scores if all(way in run.scores for run in runs)]
    if not ways:
        said = "; ".join(f"{run.uri}: {', '.join(run.scores) or 'nothing'}" for run in runs)
        raise InputError(f"these evaluations have no way to ask in common ({said}); ask again with the --ask of one")
    every = [run.scores[way] for run in runs for way in ways]
    rows = [
        name for name, one in every[0].items() if all(name in each and _of(each[name]) == _of(one) for each in every)
    ]
    larger = max(map(len, every))
    if not rows or (larger - len(rows) > max_left_out_share * larger and not common):
        raise InputError(
            f"{', '.join(run.uri for run in others)} cannot be compared with {first.uri}: {len(rows)} of "
            f"{plural(larger, 'row')} are the same in all. Evaluate the same samples, split and limit"
            + (", or compare the rows that they share with --common" if rows else "")
        )
    changes = [_changes(run, first, ways[0], rows) for run in others]
    tables = list(_tables(runs, ways, rows, samples, seed))
    for number, change in enumerate(changes, start=1):
        differences = tables[0]["runs"][number]["difference"]
        change["regressions"] = [name for name in JUDGED if is_worse(differences[name])]
    return {
        "version": 2,
        "runs": [
            {
                "name": run.name,
                "uri": run.uri,
                "sha256": run.finished and run.finished.sha256,
                "code": run.finished and run.finished.marker.code,
                "subject": run.made_with.get("subject") or run.made_with["tuned"],  # in version 1
                "asked_otherwise": [
                    f"{name} is {run.settings[name]!r}, of {first.name} it is {first.settings[name]!r}"
                    for name in ASKED
                    if name in run.settings and name in first.settings and run.settings[name] != first.settings[name]
                ],
            }
            for run in runs
        ],
        "rows": len(rows),
        "left_out": larger - len(rows),
        "images_known": bool(samples),
        "tables": tables,
        "changes": changes,
    }  # fmt: skip


def against_first(comparison: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], ...]]:
    """Of each run but the first: the run, what all its rows gave in the way that is judged, and what changed."""
    return zip(comparison["runs"][1:], comparison["tables"][0]["runs"][1:], comparison["changes"], strict=True)


def is_worse(difference: Mapping[str, Any]) -> bool:
    """Without an interval, as of a single image, nothing is shown."""
    return difference["high"] is not None and bool(difference["high"] < 0)


def _of(score: Score) -> tuple[str | None, int | None]:
    """What two runs have to be asked alike about."""
    return score.image, score.true_boxes


def _tables(
    runs: Sequence[Run], ways: Sequence[Way], rows: Sequence[str], samples: Mapping[str, Sample], seed: int
) -> Iterator[dict[str, Any]]:
    """Of all rows for each way, then of each set of each suite that any of them was asked, by its rules (a judge's
    verdicts are not kept with replies)."""
    shown: Mapping[str, Metric[Score]] = {name: METRICS[name] for name in SHOWN}
    for way in ways:
        said = {run.name: [run.scores[way][name] for name in rows] for run in runs}
        about = {"way": way, "suite": None, "set": "all rows", "rows": len(rows)}
        yield about | _measured(shown, said, lambda score: score, seed)
    asked = dict.fromkeys(name for run in runs for name in run.settings.get("suite") or ())
    known = [name for name in rows if name in samples]
    for suite in suites_named(asked):
        parts = {name: part for name in known if (part := suite.sets(samples[name])) is not None}
        metrics = {name: suite.metrics[name] for name in suite.shown}
        for part, way in product(sorted({*parts.values()}), ways):
            of = [name for name, each in parts.items() if each == part]
            marked = {run.name: [suite.mark(samples[name], run.scores[way][name]) for name in of] for run in runs}
            about = {"way": way, "suite": suite.name, "set": part, "rows": len(of)}
            yield about | _measured(metrics, marked, lambda one: one.score, seed)


def _measured(
    metrics: Mapping[str, Metric[Any]], said: Mapping[str, Sequence[Any]], score_of: Callable[[Any], Score], seed: int
) -> dict[str, Any]:
    first, *others = said
    found = measure_by(metrics, said, [(name, first) for name in others], score_of=score_of, seed=seed)
    return {
        "runs": [
            {
                "figures": {metric: figure.to_dict() for metric, figure in found.figures[name].items()},
                "difference": {
                    metric: figure.to_dict() for metric, figure in found.differences.get((name, first), {}).items()
                },
            }
            for name in said
        ]
    }


def _changes(run: Run, first: Run, way: Way, rows: Sequence[str]) -> dict[str, Any]:
    """Rows that changed, those that changed most first."""
    now, before = run.scores[way], first.scores[way]
    found = {r: boxes_found(now[r]) - boxes_found(before[r]) for r in rows}
    right = {r: (now[r].answer == "right") - (before[r].answer == "right") for r in rows}
    order = sorted(rows, key=lambda r: (-abs(right[r] + found[r]), r))
    return {
        "run": run.name,
        "answers_lost": [r for r in order if right[r] < 0],
        "answers_won": [r for r in order if right[r] > 0],
        "boxes_lost": [r for r in order if found[r] < 0],
        "boxes_won": [r for r in order if found[r] > 0],
    }
