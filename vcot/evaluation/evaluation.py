"""The whole of an evaluation: which samples, which questions, and what is written at the end."""

from __future__ import annotations

import dataclasses
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from vcot import __version__, logging
from vcot.answers import Synonyms
from vcot.errors import InputError
from vcot.evaluation import gallery, page
from vcot.evaluation.ablations import partners
from vcot.evaluation.base_form import own_form
from vcot.evaluation.baselines import Baselines
from vcot.evaluation.compare import judge_gates, raise_if_failed
from vcot.evaluation.config import CONDITIONS, EvaluationConfig
from vcot.evaluation.report import Evidence, build, gather
from vcot.evaluation.runner import EvaluationRunner, ModelRunner, TrainedModel, read_replies, units
from vcot.evaluation.subjects import Subject
from vcot.records import Folder, RowCounts, Sample, read_samples
from vcot.records.metadata import EvaluateShardMetadata
from vcot.records.shards import ShardMarker
from vcot.storage import Store, join
from vcot.storage.images import ImageError
from vcot.tokens import prompt_text

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


class Evaluation:
    """One subject's evaluation: `runner.run` makes its shards, `report` sums them up.

    Args:
        folder: of the stage. cache_uri: where the base's replies are kept. scratch: on this disk, for models.

    Raises:
        InputError: the stage that trained it lacks something, or there is nothing to ask about.
    """

    def __init__(
        self, store: Store, folder: Folder, subject: Subject, config: EvaluationConfig, *, cache_uri: str, scratch: Path
    ) -> None:
        trained = TrainedModel.of(subject.train.uri, subject.train.marker.metadata, base_uri=config.base_uri)
        form = own_form(store, trained.base_uri, config.base_form, trained.contract)
        self.store, self.folder, self.subject, self.config = store, folder, subject, config
        self.trained = dataclasses.replace(trained, own_form=form)
        every = read_samples(store, subject.samples.uri, subject.samples.marker)
        self.samples = choose(every, config.split, config.max_samples, config.seed)
        self.models = ModelRunner(store, self.trained, scratch, config)
        # A model that was trained without images is not shown any.
        shown = config.conditions if trained.contract.mode == "multimodal" else ("real",)
        conditions = [condition for condition in CONDITIONS if condition in shown]
        self.runner = EvaluationRunner(
            store=store,
            samples=self.samples,
            partners=partners(self.samples, config.seed) if "shuffled" in conditions else (),
            ask=self.models.ask,
            frame=self.trained.frame,
            units=units(len(self.samples), conditions, config.rows_per_shard, native=form is not None),
            cache_uri=cache_uri,
            asked_of_base=self.models.asked_of_base,
            asked_natively=self.models.asked_natively,
            native_frame=self.trained.native_frame,
            synonyms=Synonyms.of(config.synonyms),
        )

    def report(
        self, markers: tuple[ShardMarker[EvaluateShardMetadata], ...], row_counts: RowCounts
    ) -> tuple[dict[str, Any], str]:
        """report.json and the page; also puts ``overlay.png`` beside them.

        Raises:
            GateFailed: after the report was written, so that it can be read; the stage stays without its marker.
        """
        source, frame, seed = self.subject.samples, self.trained.frame, self.config.seed
        every = read_samples(self.store, source.uri, source.marker)
        learned = Baselines.of(sample for sample in every if sample.origin.split == "train")
        evidence = gather(self.samples, read_replies(self.store, self.folder.uri, markers), learned, frame)
        if not evidence.samples:
            raise InputError(
                f"{self.folder.uri}: no question could be asked; see {join(self.folder.uri, 'rejections/')}"
            )
        seconds = sum(marker.metadata.seconds for marker in markers)
        made_with = self._made_with() | {"seconds_of_generation": round(seconds, 1)}
        report = build(evidence, split=self.samples[0].origin.split, seed=seed, made_with=made_with)
        report["gates"] = judge_gates(report, **self.config.gates)
        chosen = gallery.choose(evidence, self.config.overlays, seed)
        worst, drawn = ([gallery.card(self.store, evidence, i, frame) for i in part] for part in chosen)
        html = page.render(report, worst, drawn)
        self._write_overlay(evidence)
        if not all(gate["passed"] for gate in report["gates"]):
            self.folder.write_report({"stage": self.folder.stage, "row_counts": row_counts.model_dump()} | report, html)
            raise_if_failed(report["gates"], join(self.folder.uri, "report.html"))
        return report, html

    def _made_with(self) -> dict[str, Any]:
        trained, config = self.trained, self.config
        contract = trained.contract
        own = "that of the tuned model" if trained.own_form is None else dataclasses.asdict(trained.own_form)
        return trained.facts() | {
            "tuned": f"{trained.tune}, {trained.uri}",
            "frame_of_boxes": contract.frame,
            "pixels_of_an_image": f"{contract.min_pixels:,} to {contract.max_pixels:,} after resizing",
            "prompt_of_the_first_row": prompt_text(self.samples[0], contract.instruction),
            "own_form_of_the_base": own,
            "samples": self.subject.samples.uri,
            "max_new_tokens": config.max_new_tokens,
            "per_device_eval_batch_size": config.per_device_eval_batch_size,
            "quantization": self.models.quantization,
            "dtype": config.dtype,
            "synonyms": ", ".join(config.synonyms) or "none",
            "seed": config.seed,
            "vcot": __version__,
            **self.subject.facts,
        }

    def _write_overlay(self, evidence: Evidence) -> None:
        try:
            image = gallery.specimen(self.store, evidence, self.trained.frame)
        except ImageError as error:
            logging.get().warning("no image for overlay.png", error=str(error))
            return
        if image is not None:
            buffer = io.BytesIO()
            image.save(buffer, "PNG", optimize=True)
            self.store.write(join(self.folder.uri, "overlay.png"), buffer.getvalue())
