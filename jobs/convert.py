"""Rows of a dataset become Samples: `python -m jobs.convert`."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from vcot import log
from vcot.errors import InputError
from vcot.settings import CommaSeparated, Settings, flag, setting, variable
from vcot.stage import REPORT_EVERY, launch, stop

if TYPE_CHECKING:
    from vcot.grounding import FrameSpec
    from vcot.records import Rejection, Sample
    from vcot.records.shards import Folder, ShardMark, ShardWriter, Tally
    from vcot.sources import Desk, Options, Source
    from vcot.sources.account import Account
    from vcot.sources.known import Known
    from vcot.sources.pictures import Pictures
    from vcot.sources.quality import Rules
    from vcot.sources.row import Row
    from vcot.storage import Store


def _words(value: Any) -> Any:
    return tuple(w.strip() for w in value.split(",") if w.strip()) if isinstance(value, str) else value


Questions = Annotated[tuple[Literal["where", "count", "point", "presence"], ...], BeforeValidator(_words)]


_SHARE = re.compile(r"([^=,]+=)?(0?\.\d+|[01])")
"""A share of a picture, perhaps of one dataset."""

OF_SOURCES = {
    "questions": ("coco", "scenes"), "categories": ("coco",), "category_names": ("coco",),
    "absent": ("coco",),
    "phrasings": ("coco", "refcoco"), "scenes": ("scenes",), "frame": ("samples",),
    "min_pixels": ("samples",), "max_pixels": ("samples",),
}  # fmt: skip
"""Setting → the sources that look at it."""
IMAGES = {"viscot": "the folder with VisCoT's sets of images", "refcoco": "the folder with COCO's images of train2014"}
"""Source that cannot do without --images-uri → what that is."""


class ConvertSettings(Settings):
    """Turns rows of a dataset and their images into Samples; a row that breaks its contract is refused with a reason.

    --source viscot     VisCoT: chat rows (viscot_363k.json, benchmark/*.json), metadata and reasoning (*.jsonl)
    --source coco       COCO instances: questions about where things are and how many there are
    --source refcoco    expressions and the box that each describes (RefCOCO, RefCOCO+, RefCOCOg)
    --source scienceqa  school questions with hint, lecture and solution; Parquet, pictures inside
    --source aokvqa     questions with three rationales; Parquet, pictures inside, or JSON with COCO's pictures
    --source llava-cot  reasoning without boxes: LLaVA-CoT, R1-Onevision, LaCoT
    --source scenes     drawn scenes with exact boxes; needs no input
    --source samples    lines of Samples, OpenAI messages or LLaVA's conversations with boxes in a declared --frame

    docs/sources.md says what to download for each, and which command reads it.

    Training and validation are told apart by the content of the picture, so that no picture is on both sides. Rows
    that name a split of their own are believed, and their pictures are kept from training in all other rows.
    """

    stage: ClassVar[str] = "convert"

    source: Literal["viscot", "coco", "refcoco", "scienceqa", "aokvqa", "llava-cot", "scenes", "samples"] = setting(
        description="what kind of dataset the input is"
    )
    input_uri: CommaSeparated = setting(
        (), "the dataset's files, or folders of them, comma-separated (.json, .jsonl, also .gz; .parquet)"
    )
    images_uri: str | None = setting(
        None, "folder that the rows' image paths are below; viscot: the one with a folder per set (their cot/). "
        "Default for coco: the folder images beside the input. Or a tar file, read in place without unpacking it: one "
        "file (.tar), or a folder of its numbered byte chunks (cot_images_00, cot_images_01, …)", min_length=1,
    )  # fmt: skip
    archive_index_uri: str | None = setting(
        None, "where the index of a tar file of images is kept, for several runs to share; default: "
        "<run-uri>/convert/archive", min_length=1, shapes_result=False,
    )  # fmt: skip
    dataset: str | None = setting(None, "name of the dataset in the Samples; default: what the rows say", min_length=1)
    licence: str | None = setting(None, "licence of the rows; default: what the dataset states", min_length=1)
    limit: int | None = setting(None, "read the first rows only", unit="rows", ge=1)

    num_shards: int = setting(
        4, "into how many shards the rows are dealt", unit="shards", also="shard_count", ge=1, le=10_000
    )
    readers: int = setting(8, "pictures read at once", unit="pictures", ge=1, le=128, shapes_result=False)
    known_pictures: str | None = setting(
        None, "convert/pictures.json of an earlier run: what has not changed since is not opened again",
        min_length=1, shapes_result=False,
    )  # fmt: skip
    seed: int = setting(0, "which pictures are for validation, which question gets which wording, which scenes")
    validation_share: float = setting(
        0.05, "share of the pictures for validation, where rows name no split", unit="0..1", ge=0, lt=1
    )
    splits: Literal["declared", "by-content"] = setting(
        "declared", "declared: believe rows that name a split (VisCoT's val is our test); by-content: divide all rows"
    )
    max_rejected_share: float = setting(
        0.05, "share of the rows that may be refused before the stage fails", unit="0..1", ge=0, le=1,
        shapes_result=False,
    )  # fmt: skip
    overhang: float = setting(
        5.0, "how far a box may leave its image and be cut at the border; further out it is refused",
        unit="pixels", ge=0, le=100,
    )  # fmt: skip
    min_box_area: CommaSeparated = setting(
        (), "boxes must cover this share of their picture: 0.0005, or 0.0005,docvqa=0.0001 by dataset; default: any, "
        "because what people drew is not too small", unit="0..1",
    )  # fmt: skip
    max_box_area: CommaSeparated = setting(
        (), "boxes must not cover more: 0.9, or 0.9,vsr=1 by dataset; default: any", unit="0..1"
    )
    max_box_aspect: float | None = setting(None, "longer by shorter side of a box, at most; default: any", ge=1)
    max_boxes: int | None = setting(None, "places that a row points at, at most; default: any", unit="boxes", ge=1)
    answer_in_label: Literal["relabel", "refuse", "keep"] = setting(
        "relabel", "a place whose label holds the answer tells it before anybody has looked: relabel calls it region"
    )
    licences: CommaSeparated = setting(
        (), "keep only rows under these licences, comma-separated, * and ? stand for anything: Apache-2.0*,CC-BY-*"
    )
    near_duplicates: int = setting(
        24, "pictures whose perceptual hashes differ in no more bits count as one picture, which is on one side of "
        "the split; 0: only the same bytes do", unit="bits of 144", ge=0, le=32,
    )  # fmt: skip
    duplicates: Literal["exact", "near", "keep"] = setting(
        "exact", "refuse the same question about the same picture; near: also one in nearly the same words"
    )
    question_similarity: float = setting(
        0.9,
        "duplicates=near: pieces of four letters that two questions share, by all of theirs",
        unit="0..1",
        gt=0,
        le=1,
    )
    exclude_benchmarks: CommaSeparated = setting(
        (),
        "files whose pictures must not be learned from, comma-separated: VisCoT's benchmark/*.json or "
        "detection/*.jsonl, RefCOCO's jsonl",
    )
    benchmark_images_uri: str | None = setting(
        None, "folder with the benchmarks' pictures; default: that of the rows. What is not there is known by its path",
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

    questions: Questions = setting(
        ("where", "count", "point", "presence"), "coco, scenes: kinds of questions, comma-separated", min_length=1
    )
    categories: CommaSeparated = setting((), "coco: ask about these alone, comma-separated; default: all")
    category_names: CommaSeparated = setting((), "coco: what categories are called, as WBC=white blood cell,RBC=…")
    absent: int = setting(
        1, "coco: questions about things that are not there, of each picture; their evidence is an empty list",
        unit="questions", ge=0,
    )  # fmt: skip
    phrasings: Literal["one", "several"] = setting(
        "several", "coco, refcoco: one wording for each kind of question, or several"
    )
    scenes: int = setting(200, "scenes: how many are drawn", unit="scenes", ge=1)
    pictures_uri: str | None = setting(
        None, "folder for pictures that are drawn, that rows hold, or copied (--ingest); "
        "default: <run-uri>/convert/images",
        min_length=1,
    )  # fmt: skip

    frame: Literal["thousandths", "pixels", "resized_pixels", "padded_square", "fractions"] | None = setting(
        None, "samples: in which numbers the texts of chat messages write their boxes; needed for those, never guessed"
    )
    min_pixels: int | None = setting(None, "samples, resized_pixels: limit of the processor", unit="pixels", ge=1)
    max_pixels: int | None = setting(None, "samples, resized_pixels: limit of the processor", unit="pixels", ge=1)

    @model_validator(mode="after")
    def _fit_the_source(self) -> Self:
        wrong = []
        if self.source != "scenes" and not self.input_uri:
            wrong.append(f"--input-uri (or VCOT_CONVERT_INPUT_URI) is missing: --source {self.source} reads files")
        if self.source == "scenes" and self.input_uri:
            wrong.append("--input-uri: --source scenes draws its rows and reads no files")
        if "ingest_pixels" in self.model_fields_set and not self.ingest:
            wrong.append("--ingest-pixels (or VCOT_CONVERT_INGEST_PIXELS) is for copies: give --ingest, too")
        if self.source in IMAGES and self.images_uri is None:
            wrong.append(f"--images-uri (or VCOT_CONVERT_IMAGES_URI) is missing: {IMAGES[self.source]}")
        if self.frame == "resized_pixels" and (self.min_pixels is None or self.max_pixels is None):
            wrong.append("--frame=resized_pixels needs --min-pixels and --max-pixels, the limits of the processor")
        wrong += [
            f"--category-names: {pair!r} is not written category=name"
            for pair in self.category_names
            if not all(map(str.strip, pair.partition("=")))
        ]
        wrong += [
            f"{flag(name)} (or {variable(type(self), name)}): --source {self.source} does not look at it, "
            f"--source {' or --source '.join(sources)} does; leave it out"
            for name, sources in OF_SOURCES.items()
            if name in self.model_fields_set and self.source not in sources
        ]
        wrong += [
            f"{flag(name)}: {entry!r} is no share of a picture; write 0.0005, or 0.0005,docvqa=0.0001 by dataset"
            for name in ("min_box_area", "max_box_area")
            for entry in getattr(self, name)
            if not _SHARE.fullmatch(entry)
        ]
        if self.benchmark_images_uri is not None and not self.exclude_benchmarks:
            wrong.append("--benchmark-images-uri: there is no --exclude-benchmarks whose pictures it could hold")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


def run(settings: ConvertSettings) -> None:
    from vcot.records.shards import Folder, run_shards
    from vcot.sources import SOURCES, rows_of_shard
    from vcot.sources.account import Account
    from vcot.sources.known import Known, begin, leave
    from vcot.storage import Store

    store, source = Store(), SOURCES[settings.source]
    folder = Folder(store, settings.run_uri, settings.stage)
    with tempfile.TemporaryDirectory(prefix="convert-") as scratch:
        known = Known(Path(scratch) / "pictures.sqlite")
        desk = desk_of(settings, store, folder, Path(scratch), known)
        inputs = {file.uri: file.sha256 for file in (*desk.inputs, *desk.benchmarks)}
        whole = folder.mark() is not None
        if not whole:
            folder.begin(settings, inputs)
            if settings.part != "finish":
                desk = placed(settings, source, desk, folder)
            begin(known, folder, settings.part, settings.known_pictures, desk.pictures.listed())
        if not whole and settings.part != "finish":
            desk = prepared(settings, source, desk, folder)

        def work(writer: ShardWriter) -> None:
            rows = rows_of_shard(source, desk, writer.index, settings.num_shards, settings.limit)
            account = Account()
            convert(settings, source, rows, desk, writer, account)
            writer.facts |= account.leave(folder, writer.index)

        run_shards(
            folder, settings, inputs=inputs, shards=settings.num_shards, work=work,
            max_rejected_share=settings.max_rejected_share, report=partial(report, settings, folder),
            facts={"source": settings.source},
        )  # fmt: skip
        if not whole:
            leave(known, folder, settings.part, settings.shard)


def convert(
    settings: ConvertSettings, source: Source, rows: Iterable[Row], desk: Desk, writer: ShardWriter, account: Account
) -> None:
    """One shard: each row is kept or refused, and counted."""
    from vcot.records import Rejection
    from vcot.sources import read

    for row, result in told(read(source, rows, desk, readers=settings.readers)):
        stop.raise_if_requested()
        if isinstance(result, Rejection):
            writer.reject(result)
        else:
            writer.keep(result)
        account.add(row, result, source, desk)


def placed(settings: ConvertSettings, source: Source, desk: Desk, folder: Folder) -> Desk:
    """The desk whose pictures are below a folder or, where that is what lies there, inside an archive."""
    from vcot.sources.archived import archive_at

    look = settings.part in ("all", "prepare")

    def inside(uri: str, pictures: Pictures, name: str) -> Pictures:
        archive = archive_at(uri, folder, desk.scratch, index_uri=settings.archive_index_uri, look=look, name=name)
        return pictures if archive is None else pictures.inside(archive, source.in_archive)

    if (uri := settings.images_uri) is not None:
        desk = replace(desk, pictures=inside(uri, desk.pictures, "archive.json"))
        if next(desk.pictures.listed(), None) is None:
            raise InputError(f"--images-uri {uri}: there is nothing in that folder")
    if (uri := settings.benchmark_images_uri) is not None and desk.benchmark_pictures is not None:
        pictures = inside(uri, desk.benchmark_pictures, "archive-of-benchmarks.json")
        desk = replace(desk, benchmark_pictures=pictures)
    return desk


def prepared(settings: ConvertSettings, source: Source, desk: Desk, folder: Folder) -> Desk:
    """The desk that also knows what all shards must."""
    from vcot.sources.beforehand import informed

    look = settings.part in ("all", "prepare")
    # Sizes and digests are enough for this look; copies are left to the shards, of which there are many at once.
    seen = replace(desk, pictures=desk.pictures.in_place())
    seen = informed(source, seen, folder, look=look, readers=settings.readers, limit=settings.limit)
    return replace(seen, pictures=desk.pictures)


def desk_of(settings: ConvertSettings, store: Store, folder: Folder, scratch: Path, known: Known) -> Desk:
    from vcot.sources import SOURCES, Desk
    from vcot.sources.inputs import find
    from vcot.sources.pictures import Pictures
    from vcot.storage import join

    source = SOURCES[settings.source]
    pictures = Pictures(
        store, settings.images_uri or images_beside(settings), settings.pictures_uri or join(folder.uri, "images"),
        max_pixels=settings.max_image_pixels, max_side=settings.max_image_side,
        budget=settings.ingest_pixels if settings.ingest else None, index=known,
    )  # fmt: skip
    benchmark_pictures = None
    if settings.benchmark_images_uri is not None:
        benchmark_pictures = Pictures(
            store, settings.benchmark_images_uri, settings.pictures_uri or join(folder.uri, "images"),
            max_pixels=settings.max_image_pixels, max_side=settings.max_image_side,
        )  # fmt: skip
    return Desk(
        store, find(store, settings.input_uri), pictures, scratch, options_of(settings),
        licence=source.licence, splits=source.splits, dataset=source.dataset,
        benchmarks=find(store, settings.exclude_benchmarks), benchmark_pictures=benchmark_pictures,
    )  # fmt: skip


def images_beside(settings: ConvertSettings) -> str | None:
    """Where COCO's pictures are, if nobody says: the folder `images` beside the first input."""
    if settings.source != "coco":
        return None
    from vcot.storage import join

    return join(settings.input_uri[0].rpartition("/")[0] or ".", "images")


def options_of(settings: ConvertSettings) -> Options:
    from vcot.sources import Options

    return Options(
        seed=settings.seed,
        validation_share=settings.validation_share,
        believe_splits=settings.splits == "declared",
        licence=settings.licence,
        dataset=settings.dataset,
        overhang=settings.overhang,
        frame=frame_of(settings),
        questions=settings.questions,
        categories=settings.categories,
        category_names={a.strip(): b.strip() for a, b in (pair.split("=", 1) for pair in settings.category_names)},
        absent=settings.absent,
        phrasings=settings.phrasings,
        scenes=settings.scenes,
        near_duplicates=settings.near_duplicates,
        duplicates=settings.duplicates,
        question_similarity=settings.question_similarity,
        rules=rules_of(settings),
    )


def rules_of(settings: ConvertSettings) -> Rules:
    from vcot.sources.quality import Rules, shares

    return Rules(
        min_area=shares(settings.min_box_area),
        max_area=shares(settings.max_box_area),
        max_boxes=settings.max_boxes,
        max_aspect=settings.max_box_aspect,
        licences=settings.licences,
        leaks=settings.answer_in_label,
    )


def frame_of(settings: ConvertSettings) -> FrameSpec | None:
    from vcot.grounding import FrameSpec

    return settings.frame and FrameSpec(settings.frame, settings.min_pixels, settings.max_pixels)


def report(
    settings: ConvertSettings, folder: Folder, marks: tuple[ShardMark, ...], tally: Tally
) -> tuple[dict[str, Any], str]:
    from vcot.sources.account import left
    from vcot.sources.beforehand import counts
    from vcot.sources.gallery import Gallery
    from vcot.sources.page import as_page
    from vcot.sources.report import report as summed_up

    pictures, chosen = left(folder, marks)
    found = summed_up(
        marks, tally, pictures, counts(folder), source=settings.source, budget=settings.ingest_pixels,
        ingested=settings.ingest,
    )  # fmt: skip
    gallery = Gallery(folder.store, max_pixels=settings.max_image_pixels)
    pairs = found.near_duplicates.pairs if found.near_duplicates else ()
    seen = [(pair, *gallery.pair(pair)) for pair in pairs]
    return found.model_dump(mode="json"), as_page(found, gallery.shelves(chosen, found), seen)


def told(results: Iterable[tuple[Row, Sample | Rejection]]) -> Iterator[tuple[Row, Sample | Rejection]]:
    """The same, with a line about the rate every 30 s: a shard may take an hour."""
    begun = last = time.monotonic()
    for number, result in enumerate(results, 1):
        yield result
        if (now := time.monotonic()) - last >= REPORT_EVERY:
            last = now
            log.get().info("converting", rows=number, per_second=round(number / (now - begun), 1))


if __name__ == "__main__":
    launch(ConvertSettings, run)
