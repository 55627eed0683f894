"""The whole of an evaluation: which samples, which questions, and what is written at the end."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vcot import log
from vcot.errors import InputError
from vcot.evaluation import gallery, page
from vcot.evaluation.chance import Habits
from vcot.evaluation.gates import judge_gates, raise_if_failed
from vcot.evaluation.replies import read_replies
from vcot.evaluation.report import Evidence, build, gather
from vcot.grounding import Frame
from vcot.records import Folder, Sample, StageMark, Tally, read_samples
from vcot.records.shards import ShardMark
from vcot.storage import Store, join
from vcot.storage.images import ImageError

Split = Literal["train", "validation", "test"]


def choose(samples: Iterator[Sample], split: Split | Literal["auto"], limit: int | None, seed: int) -> list[Sample]:
    """The samples to evaluate on, in the order in which they are stored.

    Args:
        split: `auto` is test where there is one, else validation.
        limit: at most so many, drawn at random: files are often sorted by kind.

    Raises:
        InputError: there is none.
    """
    by_split: dict[str, list[Sample]] = {}
    for sample in samples:
        by_split.setdefault(sample.origin.split, []).append(sample)
    wanted = split if split != "auto" else ("test" if "test" in by_split else "validation")
    chosen = by_split.get(wanted, [])
    if not chosen:
        there = ", ".join(f"{len(each)} {name}" for name, each in sorted(by_split.items())) or "none at all"
        raise InputError(f"there are no samples of the split {wanted} to evaluate on; there are {there}")
    if limit is not None and limit < len(chosen):
        kept = set(random.Random(seed).sample(range(len(chosen)), limit))
        chosen = [sample for index, sample in enumerate(chosen) if index in kept]
    return chosen


@dataclass(frozen=True)
class Ending:
    """What the finish of the stage makes of the replies."""

    store: Store
    folder: Folder
    samples: Sequence[Sample]
    source_uri: str
    source: StageMark
    frame: Callable[[Sample], Frame]
    overlays: int
    seed: int
    made_with: Mapping[str, Any]
    gates: Mapping[str, Any]

    def report(self, marks: tuple[ShardMark, ...], tally: Tally) -> tuple[dict[str, Any], str]:
        """report.json and the page; also puts ``overlay.png`` beside them.

        Raises:
            GateFailed: after the report was written, so that it can be read; the stage stays without its mark.
        """
        habits = Habits.of(
            sample for sample in read_samples(self.store, self.source_uri, self.source) if _to_train(sample)
        )
        replies = read_replies(self.store, self.folder.uri, marks)
        evidence = gather(self.samples, replies, habits, self.frame)
        if not evidence.samples:
            raise InputError(
                f"{self.folder.uri}: no question could be asked; see {join(self.folder.uri, 'rejections/')}"
            )
        seconds = sum(mark.facts.get("seconds", 0.0) for mark in marks)
        report = build(
            evidence,
            split=self.samples[0].origin.split,
            seed=self.seed,
            made_with=dict(self.made_with) | {"seconds_of_generation": round(seconds, 1)},
        )
        report["gates"] = judge_gates(report, **self.gates)
        chosen = gallery.choose(evidence, self.overlays, self.seed)
        worst, drawn = ([gallery.card(self.store, evidence, i, self.frame) for i in part] for part in chosen)
        html = page.render(report, worst, drawn)
        self._specimen(evidence)
        if not all(gate["passed"] for gate in report["gates"]):
            self.folder.write_report({"stage": self.folder.stage, "tally": tally.model_dump()} | report, html)
            raise_if_failed(report["gates"], join(self.folder.uri, "report.html"))
        return report, html

    def _specimen(self, evidence: Evidence) -> None:
        try:
            image = gallery.specimen(self.store, evidence, self.frame)
        except ImageError as error:
            log.get().warning("no picture for overlay.png", error=str(error))
            return
        if image is not None:
            buffer = io.BytesIO()
            image.save(buffer, "PNG", optimize=True)
            self.store.write(join(self.folder.uri, "overlay.png"), buffer.getvalue())


def _to_train(sample: Sample) -> bool:
    return sample.origin.split == "train"
