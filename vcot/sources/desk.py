"""What a source works with beside its rows: the pictures, the settings that concern it, the split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from unicodedata import category

from vcot.answers import letter, normalise
from vcot.grounding import Box, BoxError, BoxFault, FrameSpec
from vcot.records import Image, Origin, Reason, Sample
from vcot.sources import alike
from vcot.sources.inputs import Input
from vcot.sources.pictures import Pictures
from vcot.sources.quality import Rules, judged
from vcot.sources.repeats import Asked
from vcot.sources.row import Refused, Row
from vcot.storage import Store
from vcot.storage.images import ImageError
from vcot.storage.images import Reason as ImageReason

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
PLAIN_SPLITS: Mapping[str, Split | None] = {
    "train": "train", "validation": "validation", "val": "validation", "test": "test",
}  # fmt: skip
"""What rows call their split → ours; None: the picture decides."""
QuestionKind = Literal["where", "count", "point", "presence"]
KINDS: tuple[QuestionKind, ...] = get_args(QuestionKind)


@dataclass(frozen=True)
class Options:
    """What may be set; which source looks at what, its own file says.

    overhang: pixels by which a box may leave its image and is cut at the border; further out it is refused.
    frame: in which numbers the texts of chat messages write boxes; None: nobody declared it.
    near_duplicates: bits of 144 in which pictures may differ and count as one; 0: digests alone.
    duplicates, question_similarity: which questions about one picture count as one. rules: what else is asked.
    without_image: what becomes of rows that ask by text alone, of a source that has some.
    unmatched_annotations: what those of COCO mean whose image or category is not in the file.
    """

    seed: int = 0
    validation_share: float = 0.05
    believe_splits: bool = True
    licence: str | None = None
    dataset: str | None = None
    overhang: float = 5.0
    frame: FrameSpec | None = None
    questions: tuple[QuestionKind, ...] = KINDS
    categories: tuple[str, ...] = ()
    category_names: Mapping[str, str] = field(default_factory=dict)
    absent: int = 1
    unmatched_annotations: Literal["doubt", "ignore"] = "doubt"
    phrasings: Literal["one", "several"] = "several"
    scenes: int = 200
    near_duplicates: int = alike.DISTANCE
    duplicates: Literal["exact", "near", "keep"] = "exact"
    question_similarity: float = 0.9
    rules: Rules = field(default_factory=Rules)
    without_image: Literal["refuse", "keep"] = "refuse"


@dataclass(frozen=True)
class Desk:
    """
    scratch: a folder of this process. held_out: sha256 of pictures that are kept from training → their split; what is
    said of pictures here holds for questions without one, too (repeats.Asked).
    damaged: sha256 of pictures whose data cannot be decoded → (the reason, what is wrong).
    drawn: sha256 of pictures whose side the draw for another picture decides, of which they are nearly a copy.
    excluded: sha256 of pictures → the benchmark file that has them. duplicates: row → the earlier row that it repeats.
    benchmarks, benchmark_pictures: files whose pictures are not to be learned from, and where those are.
    whole_pixels: sets whose true boxes are of whole pixels, as far as all their rows can say (Source.whole).
    repeated: ids that several rows give themselves. dataset: of rows that do not say of which they are; "": what
    their file is called.
    part: what the ids of these rows begin with, in a run of several sources.
    """

    store: Store
    inputs: Sequence[Input]
    pictures: Pictures
    scratch: Path
    options: Options = Options()
    licence: str = "unknown"
    splits: Mapping[str, Split | None] = field(default_factory=lambda: PLAIN_SPLITS)
    held_out: Mapping[str, Split] = field(default_factory=dict)
    damaged: Mapping[str, tuple[ImageReason, str]] = field(default_factory=dict)
    repeated: frozenset[str] = frozenset()
    drawn: Mapping[str, Split] = field(default_factory=dict)
    excluded: Mapping[str, str] = field(default_factory=dict)
    duplicates: Mapping[str, str] = field(default_factory=dict)
    whole_pixels: Sequence[str] = ()
    benchmarks: Sequence[Input] = ()
    benchmark_pictures: Pictures | None = None
    dataset: str = "unknown"
    part: str = ""

    def id_of(self, row: Row) -> str:
        """What the row calls itself; its place in the input where it says nothing, or what others say too."""
        given = given_id(row)
        if given is None:
            return row.id
        name = self.called(given)
        return f"{row.id}:{given}" if name in self.repeated else name

    def called(self, name: str) -> str:
        """An id of this part, unlike any of another."""
        return f"{self.part}/{name}" if self.part else name

    def origin(self, row: Row, about: Image | Asked, dataset: str, licence: str | None = None) -> Origin:
        """Where a sample comes from, and to which split it belongs: its picture decides, or else what it asks.

        Raises:
            ImageError: prepare has seen that the picture cannot be decoded.
            Refused: the picture is held out by another row, or the row names a split that nobody knows.
        """
        if isinstance(about, Image) and (damage := self.damaged.get(about.sha256)) is not None:
            raise ImageError(about.uri, *damage)
        return Origin(
            dataset=self.options.dataset or dataset,
            split=self._split(row, about),
            row=row.id,
            licence=self.options.licence or licence or self.licence,
        )

    def declared(self, row: Row) -> Split | None:
        """The split that the row itself names; None where its picture decides."""
        if not self.options.believe_splits:
            return None
        origin = row.value.get("origin")
        said = origin.get("split") if isinstance(origin, dict) else row.value.get("split")
        if said is None:
            return None
        if isinstance(said, str) and said in self.splits:
            return self.splits[said]
        raise Refused(Reason.WRONG_SHAPE, f"split {said!r:.60}; known are {', '.join(self.splits)}")

    def dataset_of(self, row: Row) -> str:
        """How the tallies call the dataset of a row, also of one that was refused."""
        origin = row.value.get("origin")
        said = (origin if isinstance(origin, dict) else row.value).get("dataset") or hub_name(row)
        return self.options.dataset or (said if isinstance(said, str) and said else self.dataset or self.file_of(row))

    def file_of(self, row: Row) -> str:
        """The name of the file that a row is from, without what tells its form."""
        return row.id.removeprefix(self.called("")).partition(":")[0].partition(".")[0] or "unknown"

    def one_of(self, wordings: Sequence[str], row_id: str) -> str:
        """The wording of this row's question; always the first where one is wanted (`phrasings`)."""
        return wordings[0 if self.options.phrasings == "one" else pick(self.options.seed, row_id, len(wordings))]

    def _split(self, row: Row, about: Image | Asked) -> Split:
        declared = self.declared(row)
        held = self.held_out.get(about.sha256)
        if held is not None and SPLITS.index(declared or "train") < SPLITS.index(held):
            raise Refused(Reason.HELD_OUT, self._same_as(about))
        return declared or self.drawn.get(about.sha256) or self.draw(about.sha256)

    def draw(self, sha256: str) -> Split:
        return split_of(sha256, self.options.seed, self.options.validation_share)

    def accepted(self, row: Row, sample: Sample) -> Sample:
        """A sample that is good enough, and asks what no earlier row has asked. Raises Refused."""
        _demand_short(sample)
        _demand_words(sample)
        sample = judged(sample, self.options.rules)
        if (earlier := self.duplicates.get(row.id)) is not None:
            where = "of the same picture" if sample.image else "too, without a picture"
            raise Refused(Reason.DUPLICATE, f"{earlier} asks this {where}: {sample.question!r:.120}")
        return sample

    def _same_as(self, about: Image | Asked) -> str:
        file = self.excluded.get(about.sha256)
        holder = f"the {self.held_out[about.sha256]} split" if file is None else f"the benchmark {file}"
        if isinstance(about, Asked):
            return f"a row of {holder} asks the same, without a picture"
        return f"{about.uri} is the same picture as one of {holder}, or nearly"

    def box(self, edges: Any, image: Image) -> Box:
        """A box from what a row says its edges are: [x1, y1, x2, y2] in pixels of the original.

        Raises:
            BoxError, Refused: it is none, or it leaves the image too far.
        """
        x1, y1, x2, y2 = numbers(edges)
        return Box.from_pixels(x1, y1, x2, y2, width=image.width, height=image.height, overhang=self.options.overhang)

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
        return unique(self.box(edges, image) for edges in many)


LONGEST_TEXT = 100_000
"""Characters of one text of a row: more than any model reads at once, and less than a line of 50 MB."""


def _demand_short(sample: Sample) -> None:
    """Raises Refused: a text is too long."""
    reasonings = (trace.text for trace in sample.reasoning)
    own = (str(value) for value in sample.metadata.values())
    longest = max(map(len, (sample.question, sample.context or "", *sample.answers, *reasonings, *own)))
    if longest > LONGEST_TEXT:
        raise Refused(
            Reason.WRONG_SHAPE, f"a text of {longest:,} characters; {LONGEST_TEXT:,} of one text are read at most"
        )


def _demand_words(sample: Sample) -> None:
    """Raises Refused: a question or an answer shows nothing to a reader, or the answer is none of the choices."""
    if not _shows(sample.question):
        raise Refused(Reason.NO_QUESTION, f"the question shows nothing: {sample.question!r:.80}")
    if (blank := next((answer for answer in sample.answers if not _shows(answer)), None)) is not None:
        raise Refused(Reason.NO_ANSWER, f"an answer shows nothing: {blank!r:.80}")
    answer, choices = sample.answers[0], sample.choices
    if choices and not names_a_choice(answer, choices):
        raise Refused(Reason.NO_ANSWER, f"the answer {answer!r:.60} is none of the choices {list(choices)!r:.120}")


def names_a_choice(answer: str, choices: Sequence[str]) -> bool:
    return letter(answer, choices) is not None or normalise(answer) in map(normalise, choices)


def _shows(text: str) -> bool:
    """Whether anything is seen of it: white space, NUL and what has no width (Unicode's C and Z) is not."""
    return any(category(sign)[0] not in "CZ" for sign in text)


def hub_name(row: Row) -> str | None:
    """`refcocog` of a row that names the hub's dataset: `jxu124/refcocog`."""
    said = row.value.get("dataset_name")
    return said.rpartition("/")[2] or None if isinstance(said, str) else None


def given_id(row: Row) -> str | None:
    """The id that a row gives itself, if any."""
    return str(row.value.get("id") or "") or None


def same_size(said: Mapping[str, Any], image: Image) -> None:
    """Holds the size that a row says its picture has against the picture; many rows say none.

    Raises:
        Refused: they differ, so that its boxes are of another picture.
    """
    width, height = said.get("width"), said.get("height")
    if width is None and height is None:
        return
    if type(width) is not int or type(height) is not int:
        raise Refused(Reason.WRONG_SHAPE, f"width and height are whole pixels; got {width!r:.40} and {height!r:.40}")
    if (width, height) != (image.width, image.height):
        raise Refused(
            Reason.IMAGE_SIZE_DIFFERS,
            f"the row says {width} x {height} pixels, {image.uri} has {image.width} x {image.height} "
            "(upright, as EXIF turns it)",
        )


def unique(boxes: Iterable[Box]) -> tuple[Box, ...]:
    return tuple(dict.fromkeys(boxes))


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


def split_of(sha256: str, seed: int, validation_share: float) -> Split:
    """The side of a picture, by its content and the seed alone: the same in every row, shard and process."""
    return "validation" if uniform(seed, sha256) < validation_share else "train"


def pick(seed: int, what: str, below: int) -> int:
    """A number in 0 … below − 1 by the seed and what it is for: the same in every shard and run."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{what}".encode()).digest()[:8]) % below


def uniform(seed: int, what: str) -> float:
    """A number in 0 … 1 by the seed and what it is for."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{what}".encode()).digest()[:8]) / 2**64


def text(row: Mapping[str, Any], name: str, reason: Reason) -> str:
    """A text of a row, trimmed. Raises Refused: it is missing, empty or no text."""
    value = row.get(name)
    if isinstance(value, str) and (said := value.strip()):
        return said
    raise Refused(reason, f"{name!r} is {'missing' if name not in row else repr(value)[:60]}")
