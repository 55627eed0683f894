"""Rows of a dataset become Samples: `python -m jobs.convert`."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BeforeValidator, model_validator

from vcot import log
from vcot.errors import InputError
from vcot.settings import CommaSeparated, Group, Settings, flag, setting, variable
from vcot.stage import REPORT_EVERY, launch

if TYPE_CHECKING:
    from vcot.grounding import FrameSpec
    from vcot.records import Rejection, Sample
    from vcot.records.shards import Folder, ShardMark, ShardWriter, Tally
    from vcot.sources import Desk, Options, Source
    from vcot.sources.image_index import ImageIndex
    from vcot.sources.mixture import Entry, Part
    from vcot.sources.pictures import Pictures
    from vcot.sources.quality import Rules
    from vcot.sources.row import Row
    from vcot.storage import Store


T = TypeVar("T")


def _words(value: Any) -> Any:
    return tuple(w.strip() for w in value.split(",") if w.strip()) if isinstance(value, str) else value


Questions = Annotated[tuple[Literal["where", "count", "point", "presence"], ...], BeforeValidator(_words)]


_SHARE = re.compile(r"([^=,]+=)?(0?\.\d+|[01])")
"""A share of a picture, perhaps of one dataset."""

OF_SOURCES = {
    "questions": ("coco", "scenes"), "categories": ("coco",), "category_names": ("coco",),
    "absent": ("coco",), "unmatched_annotations": ("coco",),
    "phrasings": ("coco", "refcoco"), "scenes": ("scenes",), "frame": ("samples",),
    "min_pixels": ("samples",), "max_pixels": ("samples",), "without_image": ("scienceqa",),
}  # fmt: skip
"""Setting → the sources that look at it."""
OF_A_PART = ("source", "input_uri", "images_uri", "dataset", "licence", "limit", *OF_SOURCES)
"""With --mix, these are said by each part of the file, and nowhere else."""
OF_ONE_OR_ALL = (
    "splits", "overhang", "min_box_area", "max_box_area", "max_box_aspect", "max_boxes", "answer_in_label",
)  # fmt: skip
"""These may be said by a part, and else hold for all."""
SOURCES = {
    "viscot": (
        "VisCoT: chat rows (viscot_363k.json, benchmark/*.json), metadata and reasoning (*.jsonl)",
        "--input-uri metadata --images-uri cot_images_tar_split",
    ),
    "coco": (
        "COCO instances: questions about where things are and how many there are",
        "--input-uri annotations/instances_train2017.json --images-uri train2017",
    ),
    "refcoco": (
        "expressions and the box that each describes (RefCOCO, RefCOCO+, RefCOCOg)",
        "--input-uri refcocog_umd_train.jsonl --images-uri train2014",
    ),
    "scienceqa": (
        "school questions with hint, lecture and solution; Parquet, pictures inside",
        "--input-uri data --without-image keep",
    ),
    "aokvqa": (
        "questions with three rationales; Parquet, pictures inside, or JSON with COCO's pictures",
        "--input-uri aokvqa_v1p0_train.json --images-uri coco",
    ),
    "llava-cot": (
        "reasoning without boxes: LLaVA-CoT, R1-Onevision, LaCoT",
        "--input-uri train.jsonl --images-uri cot",
    ),
    "scenes": ("drawn scenes with exact boxes; needs no input", "--scenes 2000"),
    "samples": (
        "lines of Samples, OpenAI messages or LLaVA's conversations with boxes in a declared --frame",
        "--input-uri chats.jsonl --images-uri images --frame thousandths",
    ),
}
"""Source → what it is, and how it is asked for."""
IMAGES = {"viscot": "the folder with VisCoT's sets of images", "refcoco": "the folder with COCO's images of train2014"}
"""Source that cannot do without --images-uri → what that is."""


class ConvertSettings(Settings):
    """Turns rows of a dataset and their images into Samples; a row that breaks its contract is refused with a reason.

    Below, each --source stands with a command that reads it and with the settings that it alone looks at; --mix takes
    several of them. docs/sources.md says what to download for each.

    Training and validation are told apart by the content of the picture, so that no picture is on both sides. Rows
    that name a split of their own are believed, and their pictures are kept from training in all other rows.
    """

    stage: ClassVar[str] = "convert"
    groups: ClassVar[tuple[Group, ...]] = (
        Group("input", ("run_uri", "source", "mix", "input_uri", "images_uri", "dataset", "licence", "limit")),
        *(
            Group(
                f"--source {source}",
                tuple(name for name, sources in OF_SOURCES.items() if sources[0] == source),
                f"{about}\npython -m jobs.convert --run-uri runs/first --source {source} {example}",
            )
            for source, (about, example) in SOURCES.items()
        ),
        Group("splits", ("seed", "validation_share", "splits", "near_duplicates", "exclude_benchmarks",
                         "benchmark_images_uri")),
        Group("rows that are refused", ("max_rejected_share", "licences", "duplicates", "question_similarity",
                                        "answer_in_label", "overhang", "min_box_area", "max_box_area",
                                        "max_box_aspect", "max_boxes", "max_image_pixels", "max_image_side")),
        Group("copies of images", ("ingest", "ingest_pixels", "pictures_uri")),
    )  # fmt: skip

    source: Literal["viscot", "coco", "refcoco", "scienceqa", "aokvqa", "llava-cot", "scenes", "samples"] | None = (
        setting(None, "what kind of dataset the input is; this or --mix is needed")
    )
    mix: str | None = setting(
        None, "a YAML file that lists several sources, each with its input, its options and perhaps a weight, in place "
        "of --source, --input-uri, --images-uri and what else is for one source", min_length=1,
    )  # fmt: skip
    input_uri: CommaSeparated = setting(
        (), "the dataset's files, or folders of them, comma-separated (.json, .jsonl, also .gz; .parquet)"
    )
    images_uri: str | None = setting(
        None, "folder that the rows' image paths are below; viscot: the one with a folder per set, or cot/ or "
        "cot_image_data/ above it. Default for coco: the folder images beside the input. Or a tar file, read in place "
        "without unpacking it: one file (.tar), or a folder of its numbered byte chunks (cot_images_00, "
        "cot_images_01, …)",
        min_length=1,
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
    processes: int | None = setting(
        None, "processes that look at all rows in prepare (Linux); default: one a core, 4 at most, where rows are many",
        unit="processes", ge=1, le=64, shapes_result=False,
    )  # fmt: skip
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
        "exact",
        "refuse the same question about the same picture, with the same answers and boxes; near: also one in "
        "nearly the same words",
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
    unmatched_annotations: Literal["doubt", "ignore"] = setting(
        "doubt", "coco: annotations whose image or category is not in the file; doubt: they are refused, and nothing "
        "is counted or denied that they may show; ignore: those images and categories were left out on purpose",
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
    without_image: Literal["refuse", "keep"] = setting(
        "refuse", "scienceqa: rows that ask by text alone; keep: they become Samples whose image is null"
    )
    min_pixels: int | None = setting(None, "samples, resized_pixels: limit of the processor", unit="pixels", ge=1)
    max_pixels: int | None = setting(None, "samples, resized_pixels: limit of the processor", unit="pixels", ge=1)

    @model_validator(mode="after")
    def _fit_the_source(self) -> Self:
        wrong = self._wrong_with_the_mix() if self.mix is not None else self._wrong_with_the_source()
        if "ingest_pixels" in self.model_fields_set and not self.ingest:
            wrong.append("--ingest-pixels (or VCOT_CONVERT_INGEST_PIXELS) is for copies: give --ingest, too")
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

    def _wrong_with_the_mix(self) -> list[str]:
        return [
            f"{flag(name)} (or {variable(type(self), name)}): with --mix each part of {self.mix} says that for itself; "
            "leave it out here"
            for name in OF_A_PART
            if name in self.model_fields_set
        ]

    def _wrong_with_the_source(self) -> list[str]:
        if self.source is None:
            return ["--source (or VCOT_CONVERT_SOURCE) is missing: what kind of dataset the input is; or --mix"]
        wrong = []
        if self.source != "scenes" and not self.input_uri:
            wrong.append(f"--input-uri (or VCOT_CONVERT_INPUT_URI) is missing: --source {self.source} reads files")
        if self.source == "scenes" and self.input_uri:
            wrong.append("--input-uri: --source scenes draws its rows and reads no files")
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
        return wrong

    def judge(self) -> None:
        from vcot.storage import Store

        if self.mix is not None:
            entries(self, Store())


def entries(settings: ConvertSettings, store: Store) -> tuple[tuple[Entry[ConvertSettings], ...], dict[str, str]]:
    """What is read in this run, a source alone or the parts of the mix; and the digest of the file that says so."""
    from vcot.sources.mixture import Entry, read

    if settings.mix is None:
        return (Entry("", None, settings),), {}
    found, sha256 = read(store, settings.mix, settings, (*OF_A_PART, *OF_ONE_OR_ALL))
    return found, {settings.mix: sha256}


def run(settings: ConvertSettings) -> None:
    from vcot.records.shards import Folder, run_shards
    from vcot.sources.image_index import ImageIndex
    from vcot.sources.row_index import WORTH_A_PROCESS, informed
    from vcot.sources.workers import Workers, cores
    from vcot.storage import Store

    folder = Folder(Store(), settings.run_uri, settings.stage)
    sources, inputs = entries(settings, folder.store)
    begin = partial(log.configure, settings.log_form, run=settings.run_name, stage=settings.stage)
    with (
        tempfile.TemporaryDirectory(prefix="convert-") as scratch,
        Workers(settings.processes or cores(), Path(scratch), begin) as workers,
    ):
        images = ImageIndex(Path(scratch) / "pictures.sqlite")
        parts = parts_of(settings, sources, folder, Path(scratch), images)
        files = [file for part in parts for file in part.desk.inputs]
        inputs |= {file.uri: file.sha256 for file in (*files, *parts[0].desk.benchmarks)}
        whole = folder.mark() is not None
        if not whole:
            folder.begin(settings, inputs)
            if settings.part != "finish":
                parts = placed(settings, sources, parts, folder)
            listed = (entry for part in parts for entry in part.desk.pictures.listed())
            images.begin(folder, settings.part, settings.known_pictures, listed)
        if not whole and settings.part != "finish":
            # Sizes and digests are enough for prepare; copies are left to the shards, of which there are many at once.
            plain = [part.knowing(pictures=part.desk.pictures.in_place()) for part in parts]
            look = settings.part in ("all", "prepare")
            with images.not_lost(folder):
                known = informed(plain, folder, look=look, workers=workers, readers=settings.readers)
            parts = [part.knowing(pictures=place.desk.pictures) for part, place in zip(known, parts, strict=True)]
            if settings.part == "all":
                images.end(folder, "prepare", None)
        work = partial(convert, settings, folder, parts, settings.readers)
        many = sum(file.size for file in files) >= 2 * WORTH_A_PROCESS and workers.count > 1
        if not whole and many and settings.part in ("all", "shards") and settings.shard is None:
            for part in parts:
                if part.source.ready is not None:
                    part.source.ready(part.desk)
            work = partial(convert, settings, folder, parts, max(1, settings.readers // workers.count))
            workers.map(shard, [(folder, index, work) for index in range(settings.num_shards)])
        run_shards(
            folder, settings, inputs=inputs, shards=settings.num_shards, work=work,
            max_rejected_share=settings.max_rejected_share,
            report=partial(report, settings, sources, folder, Path(scratch)),
            facts={"sources": [entry.settings.source for entry in sources]},
        )  # fmt: skip
        if not whole:
            images.end(folder, settings.part, settings.shard)


def shard(folder: Folder, index: int, work: Callable[[ShardWriter], None]) -> None:
    """One shard in a process of its own; whoever sums them up finds it done."""
    from vcot.records.shards import JsonLines

    log.bind(shard=index)
    folder.make_shard(index, work, JsonLines)


def convert(
    settings: ConvertSettings, folder: Folder, parts: Sequence[Part], readers: int, writer: ShardWriter
) -> None:
    """One shard: each row is kept or refused, and counted."""
    from vcot.records import Rejection
    from vcot.sources import read
    from vcot.sources.account import Account
    from vcot.sources.mixture import MixtureCounts

    def results() -> Iterator[tuple[Part, Row, Sample | Rejection]]:
        for part in parts:
            rows = part.rows(writer.index, settings.num_shards, partial(mixture.leave_out, part.name))
            with part.named():
                for row, result in read(part.source, rows, part.desk, readers=readers):
                    yield part, row, result

    with tempfile.TemporaryDirectory(prefix="convert-") as scratch:
        account, mixture = Account(Path(scratch)), MixtureCounts()
        for part, row, result in told(results()):
            if isinstance(result, Rejection):
                writer.reject(result)
            else:
                writer.keep(result)
            account.add(row, result, part.source, part.desk)
            mixture.add(part.name, result)
        writer.facts |= account.leave(folder, writer.index) | {"mix": mixture.facts()}


def placed(
    settings: ConvertSettings, sources: Sequence[Entry[ConvertSettings]], parts: Sequence[Part], folder: Folder
) -> Sequence[Part]:
    """The parts with pictures that are below a folder or, where that is what lies there, inside an archive."""
    from vcot.sources.archived import archive_at

    look = settings.part in ("all", "prepare")

    def inside(uri: str, pictures: Pictures, folders: Iterable[str], name: str) -> Pictures:
        scratch = parts[0].desk.scratch
        archive = archive_at(uri, folder, scratch, index_uri=settings.archive_index_uri, look=look, name=name)
        folders = tuple(dict.fromkeys(folders))
        return pictures.below(folders) if archive is None else pictures.inside(archive, folders)

    found = []
    for entry, part in zip(sources, parts, strict=True):
        pictures = part.desk.pictures
        if (uri := entry.settings.images_uri) is not None:
            pictures = inside(uri, pictures, part.source.in_archive, part.file("archive", ".json"))
            if next(pictures.listed(), None) is None:
                said = f"part {part.name}: images" if part.name else "--images-uri"
                raise InputError(f"{said} {uri}: there is nothing in that folder")
        found.append(part.knowing(pictures=pictures))
    if (uri := settings.benchmark_images_uri) is not None and (shown := found[0].desk.benchmark_pictures) is not None:
        folders = (name for part in parts for name in part.source.in_archive)
        shown = inside(uri, shown, folders, "archive-of-benchmarks.json")
        found = [part.knowing(benchmark_pictures=shown) for part in found]
    return found


def parts_of(
    settings: ConvertSettings,
    sources: Sequence[Entry[ConvertSettings]],
    folder: Folder,
    scratch: Path,
    images: ImageIndex,
) -> Sequence[Part]:
    from vcot.sources import SOURCES
    from vcot.sources.inputs import find
    from vcot.sources.mixture import Part
    from vcot.sources.pictures import Pictures

    shown = None
    if settings.benchmark_images_uri is not None:
        shown = Pictures(
            folder.store, settings.benchmark_images_uri, made_uri(settings, folder),
            max_pixels=settings.max_image_pixels, max_side=settings.max_image_side,
        )  # fmt: skip
    benchmarks = find(folder.store, settings.exclude_benchmarks)
    parts = []
    for entry in sources:
        source = SOURCES[entry.settings.source or ""]
        desk = desk_of(entry.settings, source, folder, scratch, images)
        desk = replace(desk, part=entry.name, benchmarks=benchmarks, benchmark_pictures=shown)
        parts.append(Part(source, desk, entry.settings.limit, entry.weight))
    return parts


def desk_of(settings: ConvertSettings, source: Source, folder: Folder, scratch: Path, images: ImageIndex) -> Desk:
    from vcot.sources import Desk
    from vcot.sources.inputs import find
    from vcot.sources.pictures import Pictures

    pictures = Pictures(
        folder.store, settings.images_uri or images_beside(settings), made_uri(settings, folder),
        max_pixels=settings.max_image_pixels, max_side=settings.max_image_side,
        budget=settings.ingest_pixels if settings.ingest else None, index=images,
    )  # fmt: skip
    return Desk(
        folder.store, find(folder.store, settings.input_uri), pictures, scratch, options_of(settings),
        licence=source.licence, splits=source.splits, dataset=source.dataset,
    )  # fmt: skip


def made_uri(settings: ConvertSettings, folder: Folder) -> str:
    """Where pictures go that are made here."""
    from vcot.storage import join

    return settings.pictures_uri or join(folder.uri, "images")


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
        unmatched_annotations=settings.unmatched_annotations,
        phrasings=settings.phrasings,
        scenes=settings.scenes,
        near_duplicates=settings.near_duplicates,
        duplicates=settings.duplicates,
        question_similarity=settings.question_similarity,
        without_image=settings.without_image,
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
    settings: ConvertSettings,
    sources: Sequence[Entry[ConvertSettings]],
    folder: Folder,
    scratch: Path,
    marks: tuple[ShardMark, ...],
    tally: Tally,
) -> tuple[dict[str, Any], str]:
    from vcot.sources.account import left
    from vcot.sources.gallery import Gallery
    from vcot.sources.mixture import portions
    from vcot.sources.page import as_page
    from vcot.sources.report import report as summed_up
    from vcot.sources.row_index import counts

    parts = [(entry.name, entry.settings.source or "", entry.weight) for entry in sources]
    pictures, chosen = left(folder, marks, scratch)
    found = summed_up(
        marks, tally, pictures, counts(folder), source=", ".join(dict.fromkeys(kind for _, kind, _ in parts)),
        budget=settings.ingest_pixels, ingested=settings.ingest,
    )  # fmt: skip
    if settings.mix is not None:
        mix = portions(parts, (mark.facts["mix"] for mark in marks))
        found = found.model_copy(update={"mix": mix})
    gallery = Gallery(folder.store, max_pixels=settings.max_image_pixels)
    pairs = found.near_duplicates.pairs if found.near_duplicates else ()
    seen = [(pair, *gallery.pair(pair)) for pair in pairs]
    return found.model_dump(mode="json"), as_page(found, gallery.shelves(chosen, found), seen)


def told(results: Iterable[T]) -> Iterator[T]:
    """The same, with a line about the rate every 30 s: a shard may take an hour."""
    begun = last = time.monotonic()
    for number, result in enumerate(results, 1):
        yield result
        if (now := time.monotonic()) - last >= REPORT_EVERY:
            last = now
            log.get().info("converting", rows=number, per_second=round(number / (now - begun), 1))


if __name__ == "__main__":
    launch(ConvertSettings, run)
