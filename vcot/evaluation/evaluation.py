"""The whole of an evaluation: which samples, which questions, and what is written at the end."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from vcot import __version__, logging
from vcot.answers import Synonyms
from vcot.errors import InputError, SettingsError
from vcot.evaluation import page
from vcot.evaluation.config import CONDITIONS, WAYS, EvaluationConfig, Way
from vcot.evaluation.credibility import assess
from vcot.evaluation.gates import judge_gates, raise_if_failed
from vcot.evaluation.models import ModelRunner, Models
from vcot.evaluation.report import build, gather, split_notes
from vcot.evaluation.runner import Baselines, EvaluationRunner, partners, read_replies, units
from vcot.evaluation.sample_logs import sample_logs
from vcot.evaluation.subjects import Subject, is_endpoint
from vcot.evaluation.suites import suites_named, tables
from vcot.evaluation.voting import SCORED
from vcot.models.decoding import Decoding
from vcot.records import Folder, RowCounts, Sample, read_samples
from vcot.records.metadata import EvaluateShardMetadata
from vcot.records.shards import ShardMarker
from vcot.storage import Store, join
from vcot.storage.images import ImageError
from vcot.tokens import prompt_text

LARGE_UNIT = 1024


@contextmanager
def models_of(
    store: Store, subject: Subject, config: EvaluationConfig, *, cache_uri: str, scratch: Path
) -> Iterator[Models]:
    """What is asked about a subject. scratch: on this disk, for weights. Raises SettingsError: an endpoint of which too
    little is declared."""
    if not is_endpoint(subject.uri):
        yield ModelRunner(store, subject, scratch, config)
        return
    from vcot.distill.endpoint import address_and_name
    from vcot.evaluation.endpoint import EndpointModel, declared_form

    address, name = address_and_name(subject.uri)
    form = declared_form(
        family=None if config.native_form in ("auto", "as-tuned") else config.native_form, frame=config.subject_frame,
        dialect=config.subject_dialect, min_pixels=config.subject_min_pixels, max_pixels=config.subject_max_pixels,
        instruction=config.subject_instruction,
    )  # fmt: skip
    with EndpointModel(
        store, address, name, form, cache_uri=cache_uri, at_once=config.subject_concurrency,
        timeout=config.subject_timeout, max_unanswered=config.max_rejected_share,
    ) as model:  # fmt: skip
        yield model


class Evaluation:
    """One subject's evaluation: `runner.run` makes its shards, `report` sums them up.

    Args:
        folder: of the stage. models: of the subject (`models_of`). cache_uri: where replies are kept.

    Raises:
        InputError: the stage that trained it lacks something, or there is nothing to ask about.
    """

    def __init__(
        self, store: Store, folder: Folder, subject: Subject, config: EvaluationConfig, models: Models, *,
        cache_uri: str,
    ) -> None:  # fmt: skip
        self.store, self.folder, self.subject, self.config = store, folder, subject, config
        self.models, self.cache_uri = models, cache_uri
        if config.probe and not models.can_score:
            raise SettingsError(
                f"--probe: {subject.uri} is an endpoint, which begins each reply by itself; evaluate the checkpoint"
            )
        self.samples = self._chosen()
        # A model that was trained without images is not shown any.
        shown = ("real",) if self.models.by_text else config.conditions
        self.ways = [way for name in config.ask for way in WAYS if way == name]
        conditions = [condition for condition in CONDITIONS if condition in shown]
        size = config.rows_per_shard
        if models.keeps_replies:  # then a unit that is killed loses nothing, and a large one keeps an endpoint busy
            size = max(size, LARGE_UNIT)
        self.runner = EvaluationRunner(
            store, self.samples, partners(self.samples, config.seed) if "shuffled" in conditions else (), self.models,
            units(
                len(self.samples), self.models.names, self.ways, conditions, size,
                config.draws, config.probe,
            ), cache_uri, Decoding(config.max_new_tokens, config.temperature, config.samples, config.seed),
            Synonyms.of(config.synonyms), config.seed, score_answers=any(name in config.vote for name in SCORED),
        )  # fmt: skip

    def _every(self) -> Iterator[Sample]:
        return read_samples(self.store, self.subject.samples.uri, self.subject.samples.marker)

    def _chosen(self) -> list[Sample]:
        """The samples to evaluate on, in the order in which they are stored; where they are limited, drawn at random:
        files are often sorted by kind."""
        by_split: dict[str, list[Sample]] = {}
        for sample in self._every():
            by_split.setdefault(sample.origin.split, []).append(sample)
        self.stored = {split: len(each) for split, each in by_split.items()}
        wanted, limit = self.config.split, self.config.max_samples
        if wanted == "auto":
            wanted = "test" if "test" in by_split else "validation"
        chosen = by_split.get(wanted, [])
        for note in split_notes(wanted, self.stored):
            logging.get().warning(note)
        if not chosen:
            there = ", ".join(f"{len(each)} {name}" for name, each in sorted(by_split.items())) or "none at all"
            raise InputError(f"there are no samples of the split {wanted} to evaluate on; there are {there}")
        if self.config.suite:
            chosen = of_suites(self.config.suite, chosen)
        if limit is None or limit >= len(chosen):
            return chosen
        return [chosen[n] for n in sorted(random.Random(self.config.seed).sample(range(len(chosen)), limit))]

    def report(
        self, markers: tuple[ShardMarker[EvaluateShardMetadata], ...], row_counts: RowCounts
    ) -> tuple[dict[str, Any], str]:
        """report.json and the page; also puts ``overlay.png`` and what the tools of lmms-eval and TreeBench read beside
        them.

        Raises GateFailed: after the report was written, so that it can be read; the stage stays without its marker.
        """
        frame, seed, uri = partial(self.models.frame, "subject"), self.config.seed, self.folder.uri
        learned = Baselines.of(sample for sample in self._every() if sample.origin.split == "train")
        evidence = gather(self.samples, read_replies(self.store, uri, markers), learned, frame, self.ways)
        if not evidence.samples:
            raise InputError(f"{uri}: no question could be asked; see {join(uri, 'rejections/')}")
        seconds = sum(marker.metadata.seconds for marker in markers)
        made_with = self._made_with() | {"seconds_of_generation": round(seconds, 1)}
        spent: dict[Way, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
        for marker, unit in zip(markers, self.runner.units, strict=True):
            if (unit.model, unit.condition, unit.draws, unit.probe) == ("subject", "real", 0, None):
                seconds, asked = spent[unit.way]
                spent[unit.way] = seconds + marker.metadata.seconds, asked + marker.metadata.asked
        by_way = {way: seconds / asked for way, (seconds, asked) in spent.items() if asked}
        split = self.samples[0].origin.split
        replies = tables.marked(self.config.suite, evidence.samples, evidence.by_way)
        judge: dict[str, Any] | None = None
        if self.config.judge is not None:
            replies["viscot"], judge = self._judged(self.config.judge, replies["viscot"])
        sent = getattr(self.models, "sent_size", None)
        endpoint = is_endpoint(self.subject.uri)
        credibility = assess(
            evidence.samples, evidence.ways, max_new_tokens=self.config.max_new_tokens,
            frame=self.models.prompt("subject", self.ways[0], evidence.samples[0], ()).frame,
            sent={} if sent is None else {s.id: sent(s) for s in evidence.samples if s.images},
            requested=self.subject.uri.partition("#")[2] if endpoint else None,
        )  # fmt: skip
        report = build(
            evidence, split=split, seed=seed, made_with=made_with, seconds=by_way, can_score=self.models.can_score,
            measures=self.config.vote, suites=tables.tables(replies, seed, judge), stored=self.stored,
            credibility=credibility,
        )  # fmt: skip
        report["gates"] = judge_gates(report, self.config)
        html = page.html(report, page.examples(self.store, evidence, report, self.config.overlays, seed))
        below = self.models.form("subject").below
        logs = sample_logs(evidence, replies, lambda sample, way: prompt_text(sample, below(sample, way)))
        for name, lines in logs.items():
            self.store.write(join(uri, "lmms-eval", name), lines)
        for name, data in tables.exports(replies):
            self.store.write(join(uri, name), data)
        try:
            if (image := page.overlay_png(self.store, evidence)) is not None:
                self.store.write(join(uri, "overlay.png"), image)
        except ImageError as error:
            logging.get().warning("no image for overlay.png", error=str(error))
        if not all(gate["passed"] for gate in report["gates"]):
            self.folder.write_report({"stage": self.folder.stage, "row_counts": row_counts.model_dump()} | report, html)
            raise_if_failed(report["gates"], join(uri, "report.html"))
        return report, html

    def _judged(self, by: str, replies: tables.Replies) -> tuple[tables.Replies, dict[str, Any]]:
        from vcot.distill.endpoint import address_and_name
        from vcot.distill.judge import Judge
        from vcot.evaluation.judge import judged

        config = self.config
        with Judge(
            self.store, *address_and_name(by, "--judge"), cache_uri=self.cache_uri, at_once=config.subject_concurrency,
            timeout=config.subject_timeout, max_unanswered=config.max_rejected_share,
        ) as judge:  # fmt: skip
            return judged(judge, replies)

    def _made_with(self) -> dict[str, Any]:
        config, form = self.config, self.models.form("subject")
        below = {way: form.below(self.samples[0], way) for way in self.ways}
        return self.models.made_with | {
            "prompt_of_the_first_row": prompt_text(self.samples[0], below[self.ways[0]]),
            **{f"asked_by_way_of_{way}": text or "no instruction" for way, text in below.items()},
            "samples": self.subject.samples.uri,
            "max_new_tokens": config.max_new_tokens,
            "per_device_eval_batch_size": config.per_device_eval_batch_size,
            "dtype": config.dtype,
            "suites": ", ".join(config.suite) or "none",
            "judge": config.judge or "none",
            "synonyms": ", ".join(config.synonyms) or "none",
            "seed": config.seed,
            "vcot": __version__,
            **self.subject.metadata,
        }


def of_suites(names: Sequence[str], samples: Sequence[Sample]) -> list[Sample]:
    """Those that are of any of the suites, in their order. Raises InputError: a suite has none."""
    suites = suites_named(names)
    for suite in suites:
        if not any(suite.sets(sample) for sample in samples):
            datasets = Counter(sample.origin.dataset for sample in samples).most_common(8)
            there = ", ".join(f"{many} {name}" for name, many in datasets)
            raise InputError(
                f"--suite {suite.name}: none of the {len(samples)} samples of the split {samples[0].origin.split} is "
                f"of it; their datasets are {there}; see docs/suites.md, a suite without its files"
            )
    return [sample for sample in samples if any(suite.sets(sample) for suite in suites)]
