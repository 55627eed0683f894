"""What a run will learn from, as far as it can be known before: from what earlier stages have finished, else from a
look at some rows of the input, else from what the user says of them.

    tokenize is finished     all examples, by the index in its files
    distill or convert is    so many Samples; of some of them, what tokenize would make
    neither                  all rows of the input are counted; of some of them, what convert would make
    nothing can be read      --rows and typical sizes

Nothing is written to storage, and no model is asked.
"""

from __future__ import annotations

import gzip
import math
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from vcot.datasets import DATASETS
from vcot.datasets.base import ConversionContext, ConversionOptions
from vcot.datasets.images import DatasetImages
from vcot.datasets.inputs import find, folders_beside
from vcot.datasets.quality import QualityOptions
from vcot.datasets.reading import all_rows, read, rows_of_shard
from vcot.distill import DistilledReasoning, lacks_places, needs_teacher, with_reasoning
from vcot.distill.template import TemplateTeacher
from vcot.errors import InputError, SettingsError, VcotError
from vcot.grounding.ways import LEARNED_WAYS
from vcot.records import Sample
from vcot.records.cache import ShardCache
from vcot.records.example import ALONE, Examples, Row
from vcot.records.sample import Rejection
from vcot.records.shards import CONVERT, DISTILL, TOKENIZE, TRAIN, StageKind, StageMarker, read_marker, read_shard
from vcot.storage import Store, archive, join
from vcot.storage.folders import fetch_folder
from vcot.tokens import Encoder, contract_of, is_processor_file, load_processor, native_frame
from vcot.tokens.encoder import reasoning_by

LOOKED_AT = 200
"""Rows of which it is found out what becomes of them: their mean length is known to a few percent then."""
ASSUMED = "assumed"
"""Id of the one example that stands for rows of which nothing is known."""
WRITTEN = 150
"""Tokens of a reply that a teacher is still to write (vcot.distill.budget.LIKELY_REPLY)."""
WRITTEN_FROM, WRITTEN_TO = 60, 400
"""The same, at least and at most: a sentence with two boxes, and the longest replies of LLaVA-CoT's kind."""


@dataclass(frozen=True)
class Range:
    """low, expected, high."""

    low: float
    expected: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Range:
        return cls(value, value, value)

    @classmethod
    def around(cls, value: float, share: float) -> Range:
        """share: how far it may be off, 0..1."""
        return cls(value * (1 - share), value, value * (1 + share))

    def __mul__(self, other: Range | float) -> Range:
        if isinstance(other, Range):
            return Range(self.low * other.low, self.expected * other.expected, self.high * other.high)
        return Range(self.low * other, self.expected * other, self.high * other)

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.expected + other.expected, self.high + other.high)


@dataclass(frozen=True)
class Data:
    """What is known of a run's rows.

    Attributes:
        basis: where that is from, in words. rows: of the input. kept: Samples, of all splits; held_out: of these, what
            evaluate can ask about.
        examples: a few or all of those that are learned or held out. times: how many each of them stands for.
        spread: how far the sum of their tokens may be off, 0..1. learned: share of their tokens.
        sample_bytes: of a Sample in storage. image_bytes: of the images of an example. done: stage → bytes of the
        shards of those that are finished.
        to_teach: Samples that a teacher is still to be asked about. times_to_teach: how many each stands for.
    """

    basis: str
    rows: float
    kept: float
    held_out: float
    examples: tuple[Row, ...]
    times: float
    spread: float
    learned: float
    sample_bytes: float = 100.0
    image_bytes: float = 100_000.0
    to_teach: tuple[Sample, ...] = ()
    times_to_teach: float = 1.0
    done: Mapping[str, int] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        return self.spread == 0

    @property
    def mean_tokens(self) -> float:
        return sum(row.tokens for row in self.examples) / len(self.examples)

    def count(self, value: float) -> Range:
        return Range.around(value, self.spread)


@dataclass(frozen=True)
class Typical:
    """What the user says of rows that cannot be read."""

    rows: int
    visual_tokens: int
    text_tokens: int
    reply_tokens: int


@dataclass(frozen=True)
class FinishedStages:
    """Stages that a run does not make again.

    Attributes:
        markers: Stage → its marker.
        own: Stages that this run finished; the others are of a run that an input URI names.
        notes: Stages at the URIs of this run that have other settings, so they are not of this run.
    """

    markers: Mapping[str, StageMarker[Any, Any]]
    own: frozenset[str]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any], fingerprints: Mapping[str, Mapping[str, Any]]) -> FinishedStages:
        """Read the markers that storage has.

        Args:
            settings: Stage → its settings.
            fingerprints: Stage → the settings that its marker must have to be of this run.
        """
        store, markers, own, notes = Store(), dict[str, StageMarker[Any, Any]](), set[str](), list[str]()
        for kind, uri in (places(settings) | {TRAIN: join(settings["train"].run_uri, TRAIN.name)}).items():
            if (marker := finished(store, uri, kind)) is None:
                continue
            if uri == join(settings[kind.name].run_uri, kind.name):
                there, wanted = marker.settings, fingerprints[kind.name]
                if names := [name for name, value in wanted.items() if there.get(name) != value]:
                    notes.append(f"{uri} has other settings ({', '.join(names[:3])}): it is not of this run")
                    break  # what follows was made of it
                own.add(kind.name)
            markers[kind.name] = marker
        return cls(markers, frozenset(own), tuple(notes))


def data_of(settings: Mapping[str, Any], base_uri: str, typical: Typical | None, stages: FinishedStages) -> Data:
    """
    Args:
        settings: stage → its settings. base_uri: folder of the base, for its tokenizer.
        stages: those that are finished.

    Raises:
        InputError: neither can the rows be read nor is it said what they are like.
    """
    store = Store()
    if typical is not None:
        return _assumed(typical)
    if TOKENIZE.name in stages.markers:
        return _tokenized(store, settings, stages)
    try:
        with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
            some = _samples(store, settings, stages) or _input(store, settings["convert"], Path(scratch))
            found = _taught(store, settings, some, base_uri, Path(scratch))
            return replace(found, done=_done(stages))
    except VcotError as error:
        raise InputError(
            f"{error}\nSo rows cannot be looked at. Say how many there are with --rows, and what they are like with "
            "--visual-tokens, --text-tokens and --reply-tokens"
        ) from None


def places(settings: Mapping[str, Any]) -> dict[StageKind[Any, Any], str]:
    """Where the stages before train are read, or will be: a run may take them from another."""
    return {
        CONVERT: settings["distill"].input_uri or join(settings["convert"].run_uri, "convert"),
        DISTILL: settings["tokenize"].input_uri or join(settings["distill"].run_uri, "distill"),
        TOKENIZE: settings["train"].input_uri or join(settings["tokenize"].run_uri, "tokenize"),
    }


def finished(store: Store, uri: str, kind: StageKind[Any, Any]) -> StageMarker[Any, Any] | None:
    """The marker of that stage; None where it is not finished, or its storage cannot be reached."""
    try:
        return read_marker(store, uri, kind, recorded=False)[0]
    except VcotError:
        return None


def _assumed(typical: Typical) -> Data:
    tokens = typical.visual_tokens + typical.text_tokens + typical.reply_tokens
    patches = 4 * typical.visual_tokens
    row = Row(ASSUMED, ASSUMED, 0, "train", tokens, patches)
    said = (
        f"assumed: {typical.rows:,} rows of {typical.visual_tokens:,} visual tokens, {typical.text_tokens} of text and "
        f"{typical.reply_tokens} of reply"
    )
    return Data(
        said, typical.rows, typical.rows, 0.05 * typical.rows, (row,), typical.rows, spread=0.3,
        learned=typical.reply_tokens / tokens,
    )  # fmt: skip


def _tokenized(store: Store, settings: Mapping[str, Any], stages: FinishedStages) -> Data:
    uri, marker = places(settings)[TOKENIZE], stages.markers[TOKENIZE.name]
    files = [file for shard in marker.shards for file in shard.files]
    with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
        rows = Examples(ShardCache(store, uri, files, Path(scratch), max(_size(marker), 1))).rows
    metadata = [shard.metadata for shard in marker.shards]
    counts = stages.markers.get(CONVERT.name, marker).row_counts
    validation = len({row.sample for row in rows if row.split == "validation"})
    return Data(
        f"counted in {uri}", counts.rows, counts.kept, sum(one.test_rows for one in metadata) or validation,
        tuple(rows), 1.0, spread=0.0,
        learned=sum(one.learned for one in metadata) / max(sum(row.tokens for row in rows), 1),
        image_bytes=_size(marker) / max(len(rows), 1), done=_done(stages),
    )  # fmt: skip


def _size(marker: StageMarker[Any, Any]) -> int:
    return sum(file.size for shard in marker.shards for file in shard.files)


def _done(stages: FinishedStages) -> dict[str, int]:
    """Stage → bytes of its shards, of those that are finished."""
    return {name: _size(marker) for name, marker in stages.markers.items()}


@dataclass(frozen=True)
class _Looked:
    """Some Samples of a whole that has `rows`, of which `kept` become Samples."""

    basis: str
    rows: float
    kept: float
    samples: tuple[Sample, ...]
    looked: int
    taught: bool


def _samples(store: Store, settings: Mapping[str, Any], stages: FinishedStages) -> _Looked | None:
    """Of distill, or of convert, where one of them is finished."""
    for kind in (DISTILL, CONVERT):
        uri = places(settings)[kind]
        if (marker := stages.markers.get(kind.name)) is None:
            continue
        kept = marker.row_counts.kept
        shards = [iter(read_shard(store, uri, shard)) for shard in marker.shards]
        each = -(-LOOKED_AT // max(len(shards), 1))
        some = tuple(chain.from_iterable(islice(shard, each) for shard in shards))
        return _Looked(
            f"{kept:,} rows counted in {uri}, {len(some):,} of them looked at", kept, kept, some, len(some),
            taught=kind is DISTILL,
        )  # fmt: skip
    return None


def _input(store: Store, settings: Any, scratch: Path) -> _Looked:
    """Of the input, as convert would read it; what only all rows together tell (duplicates) is not seen."""
    if settings.mix is not None:
        raise SettingsError(f"--mix {settings.mix}: several sources are not looked at before convert is done")
    dataset, images_uri = DATASETS[settings.source], settings.images_uri
    inputs = find(store, settings.input_uri)
    folders: dict[str, str] = {}
    if images_uri is None and dataset.images_beside is not None:
        images_uri, folders = folders_beside(store, inputs, dataset.images_beside)
    if images_uri is not None and archive.find(store, images_uri) is not None:
        raise SettingsError(f"--images-uri {images_uri}: an archive is not looked into before convert has indexed it")
    images = DatasetImages(
        store, images_uri, made_uri=str(scratch / "images"), max_pixels=settings.max_image_pixels,
        max_side=settings.max_image_side,
    )  # fmt: skip
    context: ConversionContext[Any] = ConversionContext(
        dataset, store, inputs, images.below(dataset.in_archive) if images_uri else images,
        scratch, own=dataset.options.from_settings(settings), options=ConversionOptions.from_settings(settings),
        rules=QualityOptions.from_settings(settings), limit=settings.limit, image_folders=folders,
    )  # fmt: skip
    if dataset.ready is not None:
        dataset.ready(context)
    rows = sum(1 for _ in all_rows(context))
    every = max(1, rows // LOOKED_AT)
    found = [result for _, result in read(rows_of_shard(context, 0, every), context, readers=4)]
    samples = tuple(one for one in found if isinstance(one, Sample))
    if not samples:
        first = next(one for one in found if isinstance(one, Rejection))
        raise InputError(f"of {len(found)} rows that were looked at, convert would refuse all: {first.detail}")
    where = ", ".join(settings.input_uri) or f"--source {settings.source}"
    looked = "all" if every == 1 else f"{len(found):,}"
    return _Looked(
        f"{rows:,} rows counted in {where}, {looked} of them looked at", rows, rows * len(samples) / len(found),
        samples, len(found), taught=False,
    )  # fmt: skip


# --- what tokenize would make of them ----------------------------------------------------------------------


def _taught(store: Store, settings: Mapping[str, Any], found: _Looked, base_uri: str, scratch: Path) -> Data:
    distill, tokenize = settings["distill"], settings["tokenize"]
    # Text that is still to be written has a typical length; everything else is made, and counted.
    teacher = TemplateTeacher(distill.phrasings, distill.alternatives, distill.seed)
    samples, to_teach, refused = list[tuple[Sample, int]](), list[Sample](), 0
    for sample in found.samples:
        if found.taught or distill.teacher == "none" or not needs_teacher(sample):
            samples.append((sample, 0))
        elif distill.teacher == "template":
            outcome = teacher.teach_row(sample)
            refused += not isinstance(outcome, DistilledReasoning)
            if isinstance(outcome, DistilledReasoning):
                samples += [(one, 0) for one in with_reasoning(sample, outcome, teacher.name)]
        else:
            samples.append((sample, WRITTEN))
    if distill.teacher == "openai" and not found.taught:
        to_teach = [sample for sample in found.samples if lacks_places(sample)]
    folder = scratch / "base"
    folder.mkdir()
    folder = fetch_folder(store, base_uri, folder, only=is_processor_file)
    processor = load_processor(folder, min_pixels=tokenize.min_pixels, max_pixels=tokenize.max_pixels)
    contract = contract_of(
        processor, mode=tokenize.mode, frame=native_frame(folder) if tokenize.frame == "native" else tokenize.frame,
        max_length=tokenize.max_length, instruction=tokenize.instruction,
        ways=tuple(way for name in tokenize.learn for way in LEARNED_WAYS if way == name),
        roles=("rationale",) if tokenize.roles else (),
    )  # fmt: skip
    rows, learned = _examples(Encoder(processor, contract), samples, ask=tokenize.without_reasoning == "ask")
    if not rows:
        raise InputError("of the rows that were looked at, tokenize would make not one example")
    times = found.rows / found.looked
    tokens = [row.tokens for row in rows]
    whole = times == 1
    error = 0.0 if whole or len(tokens) < 2 else statistics.stdev(tokens) / statistics.fmean(tokens)
    error = 2 * math.hypot(error, (len(found.samples) < found.looked) * 0.5) / math.sqrt(len(tokens))
    if any(more for _, more in samples):
        error = max(error, (WRITTEN_TO - WRITTEN) / 2 / statistics.fmean(tokens))
    splits = [sample.origin.split for sample in found.samples]
    held_out = splits.count("test") or splits.count("validation")
    stored = [image.kept for sample in found.samples for image in sample.images]
    return Data(
        found.basis, found.rows, found.kept, held_out * times, rows, times, spread=min(error, 0.9), learned=learned,
        sample_bytes=len(gzip.compress(b"".join(one.line() for one in found.samples))) / len(found.samples),
        image_bytes=_image_bytes(store, [image.uri for image in stored]),
        to_teach=tuple(to_teach), times_to_teach=times,
    )  # fmt: skip


def _examples(
    encoder: Encoder, samples: Iterable[tuple[Sample, int]], *, ask: bool
) -> tuple[tuple[Row, ...], float]:  # fmt: skip
    """Examples of these Samples, and the share of their tokens that is learned. Beside each: tokens that are still to
    be written."""
    rows, learned = list[Row](), 0
    for sample, more in samples:
        if sample.origin.split == "test":
            continue
        for way in encoder.contract.ways:
            for alternative in _alternatives(sample, way, ask=ask or more > 0):
                made = encoder.measured(sample, alternative, way)
                if isinstance(made, Rejection):
                    continue
                written = more > 0 and alternative == ALONE
                number = 0 if written else alternative
                split = "train" if sample.origin.split == "train" else "validation"
                tokens = made.tokens + more * written
                name = f"{sample.id}#{number}"
                rows.append(Row(name, sample.id, number, split, tokens, made.patches, way))
                learned += made.learned + more * written
    return tuple(rows), learned / max(sum(row.tokens for row in rows), 1)


def _alternatives(sample: Sample, way: Any, *, ask: bool) -> Sequence[int]:
    if way != "direct" and not sample.reasoning:
        return (ALONE,) if ask else ()
    return range(len(reasoning_by(sample, way)))


def _image_bytes(store: Store, uris: Sequence[str]) -> float:
    """Of a stored image, by some of them; 0 where rows have none."""
    sizes: Iterator[int] = (entry.size for uri in islice(uris, 50) if (entry := store.stat(uri)) is not None)
    return statistics.fmean(found) if (found := list(sizes)) else 0.0
