"""A dataset and what its rows are read with.

A dataset is one file: its options, and a function that makes a Sample of a row, registered with `@dataset`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer
from typing_extensions import TypeVar

from vcot.datasets.duplicate_questions import Asked, Question
from vcot.datasets.images import TOPS, DatasetImages
from vcot.datasets.inputs import Input, Refused, Row
from vcot.datasets.quality import QualityOptions, demand_readable, validated
from vcot.errors import SettingsError
from vcot.grounding import Box, BoxError, BoxFault
from vcot.records import Image, Origin, Reason, Sample
from vcot.settings import Options, setting
from vcot.storage import Store
from vcot.storage.images import ImageError
from vcot.storage.images import Reason as ImageReason
from vcot.uris import redact_credentials

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
PLAIN_SPLITS: Mapping[str, Split | None] = {
    "train": "train", "validation": "validation", "val": "validation", "test": "test",
}  # fmt: skip
"""What rows call their split → ours; None: the image decides."""
BOX_REASONS = {
    BoxFault.NO_BOX_TEXT: Reason.NO_BOX,
    BoxFault.WRONG_COUNT: Reason.BOX_MALFORMED,
    BoxFault.NOT_A_NUMBER: Reason.BOX_MALFORMED,
    BoxFault.UNBALANCED_TAG: Reason.BOX_MALFORMED,
    BoxFault.NOT_FINITE: Reason.BOX_NOT_FINITE,
    BoxFault.INVERTED: Reason.BOX_INVERTED,
    BoxFault.ZERO_AREA: Reason.BOX_EMPTY,
    BoxFault.OUTSIDE: Reason.BOX_OUTSIDE,
    BoxFault.OUT_OF_RANGE: Reason.BOX_OUTSIDE,
}
"""What is wrong with a box → the reason of a Rejection."""
QuestionKind = Literal["where", "count", "point", "presence"]


def comma_separated(said: Any) -> Any:
    """Of a list that is given as one text."""
    return tuple(filter(None, map(str.strip, said.split(",")))) if isinstance(said, str) else said


class ConversionOptions(Options):
    """What every dataset is read with, whichever it is."""

    dataset: str | None = setting(None, "name of the dataset in the Samples; default: what the rows say", min_length=1)
    licence: str | None = setting(None, "licence of the rows; default: what the dataset states", min_length=1)
    seed: int = setting(0, "which images are for validation, which question gets which wording, which scenes")
    validation_share: float = setting(
        0.05, "share of the images for validation, where rows name no split", unit="0..1", ge=0, lt=1
    )
    splits: Literal["declared", "by-content"] = setting(
        "declared", "declared: believe rows that name a split (VisCoT's val is our test); by-content: divide all rows"
    )
    split: Literal["train", "validation", "test"] | None = setting(
        None, "put all rows into this split, whatever they name; test for a file of your own that is only evaluated"
    )
    overhang: float = setting(
        5.0, "how far a box may leave its image and be cut at the border; further out it is refused",
        unit="pixels", ge=0, le=100,
    )  # fmt: skip
    near_duplicates: int = setting(
        24, "images whose perceptual hashes differ in no more bits count as one image, which is on one side of "
        "the split; 0: only the same bytes do", unit="bits of 144", ge=0, le=32,
    )  # fmt: skip
    duplicates: Literal["exact", "near", "keep"] = setting(
        "exact", "refuse the same question about the same image, with the same answers and boxes; near: also one in "
        "nearly the same words",
    )  # fmt: skip
    question_similarity: float = setting(
        0.9, "duplicates=near: pieces of four letters that two questions share, by all of theirs", unit="0..1",
        gt=0, le=1,
    )  # fmt: skip


class QuestionOptions(Options):
    """Of datasets whose questions are made from boxes."""

    questions: Annotated[tuple[QuestionKind, ...], BeforeValidator(comma_separated)] = setting(
        get_args(QuestionKind), "coco, scenes: kinds of questions, comma-separated", min_length=1
    )


class WordingOptions(Options):
    """Of datasets whose questions are worded here."""

    phrasings: Literal["one", "several"] = setting(
        "several", "coco, refcoco: one wording for each kind of question, or several"
    )

    def one_of(self, wordings: Sequence[str], row_id: str, seed: int) -> str:
        """The wording of this row's question; always the first where one is wanted."""
        return wordings[0 if self.phrasings == "one" else pick(seed, row_id, len(wordings))]


O = TypeVar("O", bound=Options, default=Any)  # noqa: E741
Make = Callable[[Row, "ConversionContext[Any]"], Sample]


class Form(NamedTuple):
    """A form of JSON rows: the fields that give it away, and what it is called."""

    fields: frozenset[str]
    name: str


class Glance(NamedTuple):
    """What a row tells at a glance. whole: its set, and whether its box can be of whole pixels."""

    image: Image
    question: Question
    whole: tuple[str, bool] | None = None


@dataclass(frozen=True)
class Dataset:
    """How a dataset is read.

    Attributes:
        about, example: for the help; the flags of a command.
        options: what may be set of this dataset alone.
        sample: a row → a Sample; raises Refused, BoxError, ImageError.
        forms: the forms of JSON rows that it reads; empty where `rows` makes them in another way.
        rows: makes the rows, of files that are no lists of them, or of none at all (`needs_input`).
        needs_input: it reads files.
        needs_images: what --images-uri is to name, of one that cannot do without.
        images_beside: the folder next to each input that has its images if --images-uri is not given; else they are in
            the folder of the input.
        licence: of rows that say none.
        splits: what rows call their split → ours, or None where the image decides.
        names_rows: rows may bring ids of their own.
        columns: what it reads of Parquet files; empty where it reads none.
        expand: a row of the file → the rows that it holds, where one may hold several.
        called: the dataset of rows that do not say of which they are; "": what their file is called.
        glance: a row, looked at without making a Sample; raises as `sample` does, and only where that raises, too. For
            prepare, which goes through all rows; None: it makes Samples.
        asks: a row → the kind of its question and what it asks about, where the wording is drawn; None: its words tell.
        ready: makes on the scratch disk what rows are read from, before several processes read them; None: nothing.
        several_images: a row may have several images, so that their sides depend on all rows.
        in_archive: folders below the images' folder, or of an archive of images, that its paths may be below, likeliest
            first; "" is the top.
    """

    name: str
    about: str
    example: str
    sample: Make
    options: type[Options] = Options
    forms: tuple[Form, ...] = ()
    rows: Callable[[ConversionContext[Any]], Iterator[Row]] | None = None
    needs_input: bool = True
    needs_images: str | None = None
    images_beside: str | None = None
    licence: str = "unknown"
    splits: Mapping[str, Split | None] = field(default_factory=lambda: PLAIN_SPLITS)
    names_rows: bool = False
    columns: tuple[str, ...] = ()
    expand: Callable[[Row], Iterable[Row]] | None = None
    called: str = "unknown"
    glance: Callable[[Row, ConversionContext[Any]], Glance] | None = None
    asks: Callable[[Row], tuple[str, str]] | None = None
    ready: Callable[[ConversionContext[Any]], None] | None = None
    several_images: bool = False
    in_archive: tuple[str, ...] = ("", *TOPS)


DATASETS: dict[str, Dataset] = {}
"""By the name that --source takes."""


def dataset(name: str, about: str, example: str, **how: Any) -> Callable[[Make], Make]:
    """Registers the function below it, which makes a Sample of a row, as a dataset; `how`: fields of Dataset."""

    def registered(sample: Make) -> Make:
        DATASETS[name] = Dataset(name, about, example, sample, **how)
        return sample

    return registered


class Prepared(BaseModel):
    """What prepare has found out about all rows, and each row alone could not know; as survey.json holds it.

    Attributes:
        shares: part → which share of its rows is drawn, where parts have weights.
        repeated: part → ids that several of its rows give themselves.
        damaged: sha256 of images whose data cannot be decoded → (the reason, what is wrong).
        held_out: sha256 of images that are kept from training → their split; what is said of images here holds for
            questions without one, too (Asked).
        drawn: sha256 of images whose side the draw for another image decides, of which they are nearly a copy.
        excluded: sha256 of images → the benchmark file that has them.
        duplicates: row → the earlier row that it repeats.
        whole_pixels: sets whose true boxes are of whole pixels, as far as all their rows can say (Glance.whole).
        counts: near-duplicates and benchmarks, for the report.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shares: dict[str, float] = {}
    repeated: dict[str, Annotated[frozenset[str], PlainSerializer(sorted)]] = {}
    damaged: dict[str, tuple[ImageReason, str]] = {}
    held_out: dict[str, Split] = {}
    drawn: dict[str, Split] = {}
    excluded: dict[str, str] = {}
    duplicates: dict[str, str] = {}
    whole_pixels: tuple[str, ...] = ()
    counts: dict[str, Any] = {}


@dataclass(frozen=True)
class ConversionContext(Generic[O]):
    """What the rows of one part of a run are read with; a run of one source has one part.

    Attributes:
        own: the options of this dataset alone.
        scratch: a folder of this process.
        part: what the ids of these rows begin with, in a run of several parts.
        limit: so many rows from the first on count. weight: of its rows in the result, beside those of other parts;
            None: all rows are wanted.
        image_folders: URI of an input → the folder of its images below the images' folder, ending with a slash.
        benchmarks, benchmark_images: files whose images are not to be learned from, and where those are.
    """

    dataset: Dataset
    store: Store
    inputs: Sequence[Input]
    images: DatasetImages
    scratch: Path
    own: O
    options: ConversionOptions = field(default_factory=ConversionOptions)
    rules: QualityOptions = field(default_factory=QualityOptions)
    prepared: Prepared = field(default_factory=Prepared)
    part: str = ""
    limit: int | None = None
    weight: Fraction | None = None
    benchmarks: Sequence[Input] = ()
    benchmark_images: DatasetImages | None = None
    image_folders: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Of settings that turn out not to fit the rows, it is said in which part."""
        try:
            yield
        except SettingsError as error:
            raise SettingsError(f"part {self.part}: {error}" if self.part else str(error)) from None

    def id_of(self, row: Row) -> str:
        """What the row calls itself; its place in the input where it says nothing, or what others say too."""
        given = given_id(row)
        if given is None:
            return row.id
        name = self.called(given)
        return f"{row.id}:{given}" if name in self.prepared.repeated.get(self.part, ()) else name

    def called(self, name: str) -> str:
        """An id of this part, unlike any of another."""
        return f"{self.part}/{name}" if self.part else name

    def origin(
        self, row: Row, about: Image | Asked, dataset: str, licence: str | None = None, *, others: Sequence[Image] = ()
    ) -> Origin:
        """Where a sample comes from, and to which split it belongs: its image decides, or else what it asks.

        others: its further images. All samples that share an image with it, or with one that does, are on its side.

        Raises:
            ImageError: prepare has seen that an image cannot be decoded.
            Refused: an image is held out by another row, or the row names a split that nobody knows.
        """
        for image in (about, *others):
            if isinstance(image, Image) and (damage := self.prepared.damaged.get(image.sha256)) is not None:
                raise ImageError(image.uri, *damage)
        splits = [self._split(row, image) for image in (about, *others)]
        return Origin(
            dataset=self.options.dataset or dataset,
            split=splits[0],
            row=row.id,
            licence=self.options.licence or licence or self.dataset.licence,
        )

    def declared(self, row: Row) -> Split | None:
        """Return the split of --split, or else the one that the row names; None where its image decides."""
        if self.options.split is not None:
            return self.options.split
        if self.options.splits == "by-content":
            return None
        origin = row.value.get("origin")
        said = origin.get("split") if isinstance(origin, dict) else row.value.get("split")
        if said is None:
            return None
        if isinstance(said, str) and said in self.dataset.splits:
            return self.dataset.splits[said]
        raise Refused(Reason.WRONG_SHAPE, f"split {said!r:.60}; known are {', '.join(self.dataset.splits)}")

    def dataset_of(self, row: Row) -> str:
        """How the row counts call the dataset of a row, also of one that was refused."""
        origin = row.value.get("origin")
        said = (origin if isinstance(origin, dict) else row.value).get("dataset") or hub_name(row)
        known = said if isinstance(said, str) and said else self.dataset.called or self.file_of(row)
        return self.options.dataset or known

    def file_of(self, row: Row) -> str:
        """The name of the file that a row is from, without what tells its form."""
        return row.id.removeprefix(self.called("")).partition(":")[0].partition(".")[0] or "unknown"

    def _split(self, row: Row, about: Image | Asked) -> Split:
        declared = self.declared(row)
        held = self.prepared.held_out.get(about.sha256)
        if held is not None and SPLITS.index(declared or "train") < SPLITS.index(held):
            file = self.prepared.excluded.get(about.sha256)
            holder = f"the {held} split" if file is None else f"the benchmark {file}"
            if isinstance(about, Asked):
                raise Refused(Reason.HELD_OUT, f"a row of {holder} asks the same, without an image")
            raise Refused(Reason.HELD_OUT, f"{about.uri} is the same image as one of {holder}, or nearly")
        return declared or self.prepared.drawn.get(about.sha256) or self.draw(about.sha256)

    def draw(self, sha256: str) -> Split:
        """The side of an image, by its content and the seed alone: the same in every row, shard and process."""
        return "validation" if uniform(self.options.seed, sha256) < self.options.validation_share else "train"

    def accepted(self, row: Row, sample: Sample) -> Sample:
        """A sample that is good enough, and asks what no earlier row has asked. Raises Refused."""
        demand_readable(sample)
        sample = validated(sample, self.rules)
        if (earlier := self.prepared.duplicates.get(row.id)) is not None:
            where = "of the same image" if sample.image else "too, without an image"
            raise Refused(Reason.DUPLICATE, f"{earlier} asks this {where}: {sample.question!r:.120}")
        return sample

    def box(self, edges: Any, image: Image) -> Box:
        """A box from what a row says its edges are: [x1, y1, x2, y2] in pixels of the original.

        Raises:
            BoxError, Refused: it is none, or it leaves the image too far.
        """
        x1, y1, x2, y2 = numbers(edges)
        box = Box.from_pixels(x1, y1, x2, y2, width=image.width, height=image.height, overhang=self.options.overhang)
        check_pixels(box)
        return box

    def boxes(self, many: Any, image: Image) -> tuple[Box, ...]:
        """Several, each one once; a box list is evidence as a whole, so one bad box refuses all.

        Raises:
            BoxError, Refused: one of them is none, or there is no list or nothing in it.
        """
        if not isinstance(many, list):
            raise Refused(Reason.BOX_MALFORMED, f"boxes are a list of [x1, y1, x2, y2]; got {many!r:.80}")
        if not many:
            raise Refused(Reason.NO_BOX, "the list of boxes is empty")
        if len(many) > _MOST_BOXES:
            raise Refused(Reason.TOO_MANY_BOXES, f"{len(many):,} boxes in one list; at most {_MOST_BOXES:,} are read")
        return tuple(dict.fromkeys(self.box(edges, image) for edges in many))


def hub_name(row: Row) -> str | None:
    """`refcocog` of a row that names the hub's dataset: `jxu124/refcocog`."""
    said = row.value.get("dataset_name")
    return said.rpartition("/")[2] or None if isinstance(said, str) else None


def given_id(row: Row) -> str | None:
    """Return the id in a row, if any, without credentials: it is often the name of the image."""
    return redact_credentials(str(row.value.get("id") or "")) or None


def same_size(said: Mapping[str, Any], image: Image) -> None:
    """Compare the size that a row states with the image; many rows state none. Raises Refused: they differ."""
    width, height = said.get("width"), said.get("height")
    if width is None and height is None:
        return
    if type(width) is not int or type(height) is not int:
        raise Refused(Reason.WRONG_SHAPE, f"width and height are whole pixels; got {width!r:.40} and {height!r:.40}")
    check_size((width, height), image)


def check_size(stated: tuple[Any, Any], image: Image) -> None:
    """Raise Refused if the stated width and height are not those of the upright image: its boxes are of another one.

    Nothing is stated where both are None.
    """
    size = (image.width, image.height)
    if stated in ((None, None), size):
        return
    why = "upright, as EXIF turns it"
    if stated == size[::-1]:
        why += "; if the boxes are of the image as it is stored, write the rotation into the pixels of the file first"
    raise Refused(
        Reason.IMAGE_SIZE_DIFFERS,
        f"the row says {stated[0]!r:.20} x {stated[1]!r:.20} pixels, {image.uri} has {size[0]} x {size[1]} ({why})",
    )


def check_pixels(box: Box) -> None:
    """Raise Refused if a box is below a pixel in both directions: fractions that were read as pixels are."""
    if box.x2 - box.x1 < 1 and box.y2 - box.y1 < 1:
        raise Refused(
            Reason.BOX_TOO_SMALL,
            f"{[round(edge, 3) for edge in box.as_list()]} is smaller than one pixel; are its numbers fractions of the "
            "image, or of another frame?",
        )


_MOST_BOXES = 10_000
"""In one list. A crowd has hundreds; a line of 50 MB may hold millions, and each costs microseconds."""
_NUMBERS = frozenset((int, float))
"""A bool is an int to `isinstance`, and no number to us."""


def numbers(edges: Any) -> tuple[float, float, float, float]:
    """Four numbers. Raises BoxError: another count, or not numbers."""
    if not isinstance(edges, list) or len(edges) != 4:
        raise BoxError(BoxFault.WRONG_COUNT, f"a box is [x1, y1, x2, y2]; got {edges!r:.80}")
    if not _NUMBERS.issuperset(map(type, edges)):
        raise BoxError(BoxFault.NOT_A_NUMBER, f"a box is four numbers; got {edges!r:.80}")
    try:
        x1, y1, x2, y2 = map(float, edges)
    except OverflowError:  # JSON has whole numbers of any size
        raise BoxError(BoxFault.NOT_FINITE, f"a box needs finite numbers; got {edges!r:.80}") from None
    return x1, y1, x2, y2


def pick(seed: int, what: str, below: int) -> int:
    """A number in 0 … below − 1 by the seed and what it is for: the same in every shard and run."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{what}".encode()).digest()[:8]) % below


def uniform(seed: int, what: str) -> float:
    """A number in 0 … 1 by the seed and what it is for."""
    return pick(seed, what, 1 << 64) / 2**64


def text(row: Mapping[str, Any], name: str, reason: Reason) -> str:
    """A text of a row, trimmed. Raises Refused: it is missing, empty or no text."""
    value = row.get(name)
    if isinstance(value, str) and (said := value.strip()):
        return said
    raise Refused(reason, f"{name!r} is {'missing' if name not in row else repr(value)[:60]}")
