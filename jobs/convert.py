"""Rows of a dataset become Samples: `python -m jobs.convert`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from vcot import logging
from vcot.datasets import DATASETS, ConversionContext, mixture, read, rows_of_shard
from vcot.datasets.base import ConversionOptions
from vcot.datasets.examples import ShardReport
from vcot.datasets.image_index import ImageIndex
from vcot.datasets.images import DatasetImages, archive_at
from vcot.datasets.inputs import Input, find, folders_beside
from vcot.datasets.mixture import Entry, MixtureCounts
from vcot.datasets.parallel import Workers, cores
from vcot.datasets.quality import QualityOptions
from vcot.errors import InputError
from vcot.records import Rejection
from vcot.records.metadata import ConvertMetadata, ConvertShardMetadata
from vcot.records.shards import CONVERT, Folder, JsonLines, RowCounts, ShardMarker, ShardWriter, run_shards
from vcot.reports import conversion
from vcot.settings import CommaSeparated, Group, Settings, flag, offers, owners_of, setting, variable
from vcot.stage import REPORT_EVERY, launch
from vcot.storage import Store, join

OF_A_PART = ("source", "input_uri", "images_uri", "dataset", "licence", "limit", *owners_of(DATASETS))
"""With --mix, these are said by each part of the file, and nowhere else."""
OF_ONE_OR_ALL = (
    "split", "splits", "overhang", "min_box_area", "max_box_area", "max_box_aspect", "max_boxes", "answer_in_label",
)  # fmt: skip
"""These may be said by a part, and else hold for all."""


@offers("source", DATASETS)
class ConvertSettings(ConversionOptions, QualityOptions, Settings):
    """Turns rows of a dataset and their images into Samples; a row that breaks its contract is refused with a reason.

    Below, each --source stands with a command that reads it and with the settings that it alone looks at; --mix takes
    several of them. docs/datasets.md says what to download for each.

    Training and validation are told apart by the content of the image, so that no image is on both sides. Rows
    that name a split of their own are believed, and their images are kept from training in all other rows.
    """

    stage: ClassVar[str] = "convert"
    groups: ClassVar[tuple[Group, ...]] = (
        Group("input", ("run_uri", "source", "mix", "input_uri", "images_uri", "dataset", "licence", "limit")),
        Group("splits", ("seed", "validation_share", "split", "splits", "near_duplicates", "exclude_benchmarks",
                         "benchmark_images_uri")),
        Group("rows that are refused", ("max_rejected_share", "licences", "duplicates", "question_similarity",
                                        "answer_in_label", "overhang", "min_box_area", "max_box_area",
                                        "max_box_aspect", "max_boxes", "max_image_pixels", "max_image_side")),
        Group("copies of images", ("ingest", "ingest_pixels", "stored_images_uri")),
    )  # fmt: skip

    source: str | None = setting(None, "what kind of dataset the input is; this or --mix is needed")
    mix: str | None = setting(
        None, "a YAML file that lists several sources, each with its input, its options and perhaps a weight, in place "
        "of --source, --input-uri, --images-uri and what else is for one source", min_length=1,
    )  # fmt: skip
    input_uri: CommaSeparated = setting(
        (), "the dataset's files, or folders of them, comma-separated (.json, .jsonl, also .gz; .parquet)"
    )
    images_uri: str | None = setting(
        None, "folder that the rows' image paths are below; viscot: the one with a folder per set, or cot/ or "
        "cot_image_data/ above it. Default for coco: the folder images next to the input, or the input's own "
        "folder. Or a tar file, read in place without unpacking it: one file (.tar), or a folder of its numbered byte "
        "chunks (cot_images_00, cot_images_01, …)",
        min_length=1,
    )  # fmt: skip
    archive_index_uri: str | None = setting(
        None, "where the index of a tar file of images is kept, for several runs to share; default: "
        "<run-uri>/convert/archive", min_length=1, shapes_result=False,
    )  # fmt: skip
    limit: int | None = setting(None, "read the first rows only", unit="rows", ge=1)

    num_shards: int = setting(
        4, "into how many shards the rows are dealt", unit="shards", also="shard_count", ge=1, le=10_000
    )
    processes: int | None = setting(
        None, "processes that look at all rows in prepare (Linux); default: one a core, 4 at most, where rows are many",
        unit="processes", ge=1, le=64, shapes_result=False,
    )  # fmt: skip
    readers: int = setting(8, "images read at once", unit="images", ge=1, le=128, shapes_result=False)
    known_images: str | None = setting(
        None, "convert/images.json of an earlier run: what has not changed since is not opened again",
        min_length=1, shapes_result=False,
    )  # fmt: skip
    max_rejected_share: float = setting(
        0.05, "share of the rows that may be refused before the stage fails", unit="0..1", ge=0, le=1,
        shapes_result=False,
    )  # fmt: skip
    exclude_benchmarks: CommaSeparated = setting(
        (),
        "files whose images must not be learned from, comma-separated: VisCoT's benchmark/*.json or "
        "detection/*.jsonl, RefCOCO's jsonl",
    )
    benchmark_images_uri: str | None = setting(
        None, "folder with the benchmarks' images; default: that of the rows. What is not there is known by its path",
        min_length=1,
    )  # fmt: skip
    max_image_pixels: int = setting(100_000_000, "larger images are refused before decoding", unit="pixels", ge=1)
    max_image_side: int = setting(20_000, "images with a longer side are refused", unit="pixels", ge=1)
    ingest: bool = setting(
        False, "keep a copy of every image, upright and shrunk, that later stages read in its place; boxes stay in "
        "pixels of the original",
    )  # fmt: skip
    ingest_pixels: int = setting(
        1280 * 28 * 28, "--ingest: pixels of a copy at most; what the model's processor would shrink an image to. "
        "Nothing is enlarged", unit="pixels", ge=28 * 28,
    )  # fmt: skip

    stored_images_uri: str | None = setting(
        None, "folder for images that are drawn, that rows hold, or copied (--ingest); "
        "default: <run-uri>/convert/images",
        min_length=1,
    )  # fmt: skip

    def faults(self) -> Iterator[str]:
        for name in OF_A_PART if self.mix is not None else ():
            if name in self.model_fields_set:
                yield (
                    f"{flag(name)} (or {variable(type(self), name)}): with --mix each part of {self.mix} says that for "
                    "itself; leave it out here"
                )
        if self.source is not None and self.mix is None:
            chosen = DATASETS[self.source]
            if chosen.needs_input and not self.input_uri:
                yield f"--input-uri (or VCOT_CONVERT_INPUT_URI) is missing: --source {self.source} reads files"
            if not chosen.needs_input and self.input_uri:
                yield f"--input-uri: --source {self.source} draws its rows and reads no files"
            if chosen.needs_images and self.images_uri is None:
                yield f"--images-uri (or VCOT_CONVERT_IMAGES_URI) is missing: {chosen.needs_images}"
        elif self.mix is None:
            yield "--source (or VCOT_CONVERT_SOURCE) is missing: what kind of dataset the input is; or --mix"
        yield from super().faults()
        if self.split is not None and "splits" in self.model_fields_set:
            yield f"--split={self.split} puts all rows into one split; leave --splits out"
        if "ingest_pixels" in self.model_fields_set and not self.ingest:
            yield "--ingest-pixels (or VCOT_CONVERT_INGEST_PIXELS) is for copies: give --ingest, too"
        if self.benchmark_images_uri is not None and not self.exclude_benchmarks:
            yield "--benchmark-images-uri: there is no --exclude-benchmarks whose images it could hold"

    def chosen(self, setting_name: str) -> tuple[str, ...]:
        return super().chosen(setting_name) if self.mix is None else ()

    def validate_files(self) -> None:
        super().validate_files()
        if self.mix is not None:
            entries(self, Store())


def entries(settings: ConvertSettings, store: Store) -> tuple[tuple[Entry[ConvertSettings], ...], dict[str, str]]:
    """What is read in this run, a source alone or the parts of the mix; and the digest of the file that says so."""
    if settings.mix is None:
        return (Entry("", None, settings),), {}
    found, sha256 = mixture.read(store, settings.mix, settings, (*OF_A_PART, *OF_ONE_OR_ALL))
    return found, {settings.mix: sha256}


def run(settings: ConvertSettings) -> None:
    from vcot.datasets.prepare import WORTH_A_PROCESS, informed  # which --check need not wait for

    folder = Folder(Store(), settings.run_uri, CONVERT)
    parts, inputs = entries(settings, folder.store)
    files = [find(folder.store, entry.settings.input_uri) for entry in parts]
    benchmarks = find(folder.store, settings.exclude_benchmarks)
    inputs |= {file.uri: file.sha256 for file in (*chain(*files), *benchmarks)}
    begin = partial(logging.configure, settings.log_form, run=settings.run_name, stage=settings.stage)
    with (
        tempfile.TemporaryDirectory(prefix="convert-") as scratch,
        Workers(settings.processes or cores(), Path(scratch), begin) as workers,
    ):
        index = ImageIndex(Path(scratch) / "images.sqlite")
        contexts: Sequence[ConversionContext] = ()
        whole = folder.marker() is not None
        if not whole:
            folder.check_settings(settings, inputs)
            if settings.part != "finish":
                contexts = contexts_of(settings, parts, files, benchmarks, folder, Path(scratch), index)
            listed = (entry for context in contexts for entry in context.images.listed())
            index.begin(folder, settings.part, settings.known_images, listed)
        if contexts:
            # Sizes and digests are enough for prepare; copies are left to the shards, of which there are many at once.
            plain = [replace(context, images=context.images.in_place()) for context in contexts]
            look = settings.part in ("all", "prepare")
            with index.not_lost(folder):
                known = informed(
                    plain, folder, look=look, workers=workers, readers=settings.readers,
                    begin=partial(folder.begin, settings, inputs),
                )  # fmt: skip
            contexts = [replace(k, images=context.images) for k, context in zip(known, contexts, strict=True)]
            if settings.part == "all":
                index.end(folder, "prepare", None)
            many = sum(file.size for file in chain(*files)) >= 2 * WORTH_A_PROCESS and workers.count > 1
            if many and settings.part != "prepare" and settings.shard is None:
                work = partial(convert, settings, folder, contexts, max(1, settings.readers // workers.count))
                workers.map(shard, [(folder, number, work) for number in range(settings.num_shards)])
        run_shards(
            folder, settings, inputs=inputs, shards=settings.num_shards,
            work=partial(convert, settings, folder, contexts, settings.readers),
            max_rejected_share=settings.max_rejected_share,
            report=partial(report, settings, parts, folder, Path(scratch)),
            metadata=ConvertMetadata(sources=tuple(entry.settings.source for entry in parts)),
        )  # fmt: skip
        if not whole:
            index.end(folder, settings.part, settings.shard)


def shard(
    folder: Folder[ConvertShardMetadata], index: int, work: Callable[[ShardWriter], ConvertShardMetadata]
) -> None:
    """One shard in a process of its own; whoever sums them up finds it done (its marker cannot be pickled)."""
    logging.bind(shard=index)
    folder.make_shard(index, work, JsonLines)


def convert(
    settings: ConvertSettings, folder: Folder, contexts: Sequence[ConversionContext], readers: int, writer: ShardWriter
) -> ConvertShardMetadata:
    """One shard: each row is kept or refused, and counted; with a line about the rate every 30 s, as a shard may take
    an hour.
    """
    examples, counts = ShardReport(), MixtureCounts()
    begun = last = time.monotonic()
    for context in contexts:
        rows = rows_of_shard(context, writer.index, settings.num_shards, partial(counts.leave_out, context.part))
        with context.named():
            for row, result in read(rows, context, readers=readers):
                if isinstance(result, Rejection):
                    writer.reject(result)
                else:
                    writer.keep(result)
                examples.add(row, result, context)
                counts.add(context.part, result)
                if (now := time.monotonic()) - last >= REPORT_EVERY:
                    last, number = now, writer.row_counts.rows
                    logging.get().info("converting", rows=number, per_second=round(number / (now - begun), 1))
    return ConvertShardMetadata(refused=examples.leave(folder, writer.index), mix=counts.counts())


def contexts_of(
    settings: ConvertSettings, parts: Sequence[Entry[ConvertSettings]], files: Sequence[Sequence[Input]],
    benchmarks: Sequence[Input], folder: Folder, scratch: Path, index: ImageIndex,
) -> Sequence[ConversionContext]:  # fmt: skip
    """What the rows of each part are read with. Images are below a folder or, where that lies there, in an archive."""
    look = partial(
        DatasetImages, folder.store, made_uri=settings.stored_images_uri or join(folder.uri, "images"),
        max_pixels=settings.max_image_pixels, max_side=settings.max_image_side,
    )  # fmt: skip
    archive = partial(
        archive_at, folder=folder, scratch=scratch, index_uri=settings.archive_index_uri,
        look=settings.part in ("all", "prepare"),
    )  # fmt: skip
    found: list[ConversionContext] = []
    for entry, inputs in zip(parts, files, strict=True):
        own = entry.settings
        dataset, uri = DATASETS[own.source or ""], own.images_uri
        beside: dict[str, str] = {}
        if uri is None and dataset.images_beside is not None:
            uri, beside = folders_beside(folder.store, inputs, dataset.images_beside)
        images = look(uri, budget=own.ingest_pixels if own.ingest else None, index=index)
        if own.images_uri is not None:
            name = f"archive.{entry.name}.json" if entry.name else "archive.json"
            images = images.below(dataset.in_archive, archive(own.images_uri, name=name))
            if next(images.listed(), None) is None:
                said = f"part {entry.name}: images" if entry.name else "--images-uri"
                raise InputError(f"{said} {own.images_uri}: there is nothing in that folder")
        found.append(ConversionContext(
            dataset, folder.store, inputs, images, scratch, own=dataset.options.from_settings(own),
            options=ConversionOptions.from_settings(own), rules=QualityOptions.from_settings(own), part=entry.name,
            limit=own.limit, weight=entry.weight, benchmarks=benchmarks, image_folders=beside,
        ))  # fmt: skip
    if (uri := settings.benchmark_images_uri) is not None:
        folders = tuple(dict.fromkeys(name for context in found for name in context.dataset.in_archive))
        shown = look(uri).below(folders, archive(uri, name="archive-of-benchmarks.json"))
        found = [replace(context, benchmark_images=shown) for context in found]
    return found


def report(
    settings: ConvertSettings, entries: Sequence[Entry[ConvertSettings]], folder: Folder, scratch: Path,
    markers: tuple[ShardMarker[ConvertShardMetadata], ...], row_counts: RowCounts,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    from vcot.datasets.prepare import left

    parts = [(entry.name, entry.settings.source or "", entry.weight) for entry in entries]
    prepared = left(folder)
    return conversion.report(
        folder, markers, row_counts, scratch, source=", ".join(dict.fromkeys(kind for _, kind, _ in parts)),
        seen=prepared.counts if prepared else {}, budget=settings.ingest_pixels, ingested=settings.ingest,
        mix=() if settings.mix is None else mixture.portions(parts, (marker.metadata.mix for marker in markers)),
        max_pixels=settings.max_image_pixels,
    )  # fmt: skip


if __name__ == "__main__":
    launch(ConvertSettings, run)
