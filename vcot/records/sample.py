"""Sample: what flows through convert and distill; Rejection: what did not, and why."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from vcot.grounding import Box, Frame, FrameSpec, Mention, Trace
from vcot.records.base import MentionField, PublicText, Record, TraceField
from vcot.storage import Store, images
from vcot.storage.images import DecodedImage

NO_IMAGE_SIZE = (1000, 1000)
"""(width, height) on which boxes of a text about no image are read: none means anything, but a model may write some."""


class Stored(Record):
    """A copy of the image that later stages read in its place, upright and perhaps smaller.

    Boxes stay in pixels of the original.
    """

    uri: str = Field(min_length=1)
    width: int = Field(gt=0, description="pixels of the copy")
    height: int = Field(gt=0, description="pixels of the copy")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the copy's bytes")


class Image(Record):
    """An image by its URI, with the size of the upright original (after EXIF rotation)."""

    uri: str = Field(min_length=1)
    width: int = Field(gt=0, description="pixels of the upright original")
    height: int = Field(gt=0, description="pixels of the upright original")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the original's bytes; the split depends on it")
    stored: Stored | None = None
    cut_from: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", exclude_if=lambda sha256: sha256 is None,
        description="sha256 of the image of the same sample that this is a crop of; left out of an image of its own",
    )  # fmt: skip

    @property
    def kept(self) -> Stored | Image:
        """What later stages read: the stored copy where there is one."""
        return self.stored or self

    def frame(self, spec: FrameSpec) -> Frame:
        """The frame in which a text about this image, seen as it is kept, writes its boxes."""
        return spec.on(self.width, self.height, kept=(self.kept.width, self.kept.height))


def kept_bytes(store: Store, image: Image) -> bytes:
    """The bytes that later stages read. Raises ImageError: missing, or not those that the Sample was made of."""
    return images.fetch(store, image.kept.uri, sha256=image.kept.sha256)


def read_image(store: Store, image: Image) -> DecodedImage:
    """Raises ImageError: it is missing, changed or broken."""
    return images.decode(kept_bytes(store, image), image.kept.uri)


class Origin(Record):
    """Where a sample comes from and under which licence."""

    dataset: str = Field(min_length=1)
    split: Literal["train", "validation", "test"]
    row: str = Field(description="where in the input: a line, an index, an id of the dataset")
    licence: str
    teacher: str | None = Field(None, description="who was asked for the reasoning: template/1, or a model's name")
    answered_by: tuple[str, ...] = Field(
        (), description="the models that answered, as their endpoint names them; left out where no model was asked",
        exclude_if=lambda models: not models,
    )  # fmt: skip


class Turn(Record):
    """What was said before the question is asked. In front of its text, a turn of the user shows `images` images."""

    role: Literal["user", "assistant"]
    said: TraceField = Field(description="texts, and things with their boxes")
    images: int = Field(
        0, ge=0, exclude_if=lambda count: not count,
        description="user: how many of the sample's images it shows, in their order, those that no earlier turn shows",
    )  # fmt: skip
    learned: bool = Field(
        True, exclude_if=lambda learned: learned,
        description="assistant: whether train learns this reply too, or only reads it; left out where it does",
    )  # fmt: skip


class Sample(Record):
    """A question about an image, its accepted answers, and where the evidence is.

    `evidence` None means that nobody annotated it; an empty list means that the object is absent. Without `images` the
    question is asked by text alone: there is nothing to point at, so neither evidence nor boxes.

    Of several images every box is on the first. `turns` are earlier turns, of the user and the assistant by turns, up
    to a reply of the assistant; the question shows the images that none of them shows. Version 1 had one `image`, or
    null, and no turns; it is read.
    """

    version: Literal[2] = 2
    id: str = Field(min_length=1)
    images: tuple[Image, ...] = Field(description="in the order in which they are shown; none: asked by text alone")
    turns: tuple[Turn, ...] = Field(
        (), exclude_if=lambda turns: not turns, description="what was said before; left out where nothing was"
    )
    question: str = Field(min_length=1)
    context: str | None = Field(None, description="hint or lecture that belongs to the question")
    choices: tuple[str, ...] | None = None
    answers: tuple[str, ...] = Field(min_length=1, description="all accepted answers; the first is learned")
    reasoning: tuple[TraceField, ...] = Field((), description="alternatives; none where nobody wrote any")
    evidence: tuple[MentionField, ...] | None = None
    metadata: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict,
        description="what else a user or a dataset keeps with the row (a category, a published split); reports show it",
    )
    origin: Origin

    @model_validator(mode="before")
    @classmethod
    def _version_1(cls, said: Any) -> Any:
        if not isinstance(said, dict) or "image" not in said or "images" in said:
            return said
        image = said["image"]
        rest = {name: value for name, value in said.items() if name not in ("image", "version")}
        version = {} if said.get("version", 1) == 1 else {"version": said["version"]}
        return rest | version | {"images": () if image is None else (image,)}

    @model_validator(mode="after")
    def _answers_are_not_blank(self) -> Self:
        if not all(map(str.strip, self.answers)):
            raise ValueError(f"an answer is blank: {list(self.answers)!r:.80}")
        return self

    @model_validator(mode="after")
    def _turns_alternate(self) -> Self:
        if [turn.role for turn in self.turns] != ["user", "assistant"] * (len(self.turns) // 2):
            raise ValueError("turns are one of the user, one of the assistant, and so on, up to one of the assistant")
        if any(turn.images for turn in self.turns if turn.role == "assistant"):
            raise ValueError("turns of the assistant show no images")
        if (shown := sum(turn.images for turn in self.turns)) > len(self.images):
            raise ValueError(f"the turns show {shown} images, the sample has {len(self.images)}")
        if any(not turn.said.parts for turn in self.turns if not turn.images):
            raise ValueError("a turn says nothing and shows nothing")
        return self

    @model_validator(mode="after")
    def _boxes_lie_inside(self) -> Self:
        if self.image is None:
            if (box := next(self.all_boxes(), None)) is not None:
                raise ValueError(f"box {box.as_list()} is on no image: the sample has none, so it has no boxes")
            if self.evidence is not None:
                raise ValueError(
                    "there is no image, so nobody looked whether the object is there: evidence is null, too"
                )
            return self
        width, height = self.image.width, self.image.height
        for box in self.all_boxes():
            if box.x2 > width or box.y2 > height:
                raise ValueError(f"box {box.as_list()} leaves the image of {width}×{height} pixels")
        return self

    @model_validator(mode="after")
    def _texts_can_be_written(self, info: ValidationInfo) -> Self:
        """A dataset's JSON may hold half a surrogate pair, which is no character and stands in no file."""
        if info.mode == "json":  # a line of a shard, whose parser takes no such thing
            return self
        origin = self.origin
        named = (
            self.id,
            *(image.uri for image in self.images),
            origin.dataset,
            origin.row,
            origin.licence,
            origin.teacher or "",
        )
        own = (text for pair in self.metadata.items() for text in pair if isinstance(text, str))
        said = [self.question, self.context or "", *self.answers, *(self.choices or ()), *named, *own]
        for parts in (*(trace.parts for trace in self.traces), self.evidence or ()):
            said += [part if isinstance(part, str) else part.label for part in parts]
        text = "".join(said)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            shown = text[max(error.start - 20, 0) : error.end]
            raise ValueError(f"a text holds half a character: {shown!r}") from None
        return self

    @property
    def image(self) -> Image | None:
        """The first image, on which all boxes are; None: the question is asked by text alone."""
        return self.images[0] if self.images else None

    @property
    def images_asked(self) -> int:
        """How many images the question shows: those that no earlier turn does."""
        return len(self.images) - sum(turn.images for turn in self.turns)

    @property
    def traces(self) -> tuple[Trace, ...]:
        """All that is said in parts: the reasoning, and the earlier turns."""
        return (*self.reasoning, *(turn.said for turn in self.turns))

    def all_boxes(self) -> Iterator[Box]:
        """Every box of the evidence, of all reasoning and of all turns."""
        mentions: list[Mention] = [*(self.evidence or ()), *(m for t in self.traces for m in t.mentions)]
        for mention in mentions:
            yield from mention.boxes

    @property
    def true_boxes(self) -> tuple[Box, ...] | None:
        """The boxes of the evidence; None where nothing was annotated, () where absence was."""
        return None if self.evidence is None else tuple(b for m in self.evidence for b in m.boxes)

    @property
    def shown(self) -> Image:
        """The image, where boxes or pixels say that there is one. Raises ValueError: the question is text alone."""
        if self.image is None:
            raise ValueError(f"{self.id} is asked without an image")
        return self.image

    def frame(self, spec: FrameSpec) -> Frame:
        """The frame in which a text about this sample writes its boxes; without an image, that of NO_IMAGE_SIZE."""
        return spec.on(*NO_IMAGE_SIZE) if self.image is None else self.image.frame(spec)


class Reason(StrEnum):
    """Why a row was refused: a closed list, so that reports can be added up and compared."""

    NOT_JSON = "not-json"
    WRONG_SHAPE = "wrong-shape"
    NO_QUESTION = "no-question"
    NO_ANSWER = "no-answer"
    NO_BOX = "no-box"
    BOX_MALFORMED = "box-malformed"
    BOX_NOT_FINITE = "box-not-finite"
    BOX_INVERTED = "box-inverted"
    BOX_EMPTY = "box-empty"
    BOX_OUTSIDE = "box-outside"
    BOX_COPIES_DISAGREE = "box-copies-disagree"
    BOX_NOTATION = "box-notation"
    BOX_TOO_SMALL = "box-too-small"
    BOX_TOO_LARGE = "box-too-large"
    BOX_TOO_THIN = "box-too-thin"
    TOO_MANY_BOXES = "too-many-boxes"
    ANSWER_IN_LABEL = "answer-in-label"
    LICENCE_NOT_ALLOWED = "licence-not-allowed"
    NO_IMAGE = "no-image"
    IMAGE_MISSING = "image-missing"
    IMAGE_TRUNCATED = "image-truncated"
    IMAGE_BROKEN = "image-broken"
    IMAGE_NOT_AN_IMAGE = "image-not-an-image"
    IMAGE_TOO_LARGE = "image-too-large"
    IMAGE_UNSUPPORTED = "image-unsupported"
    IMAGE_SIZE_DIFFERS = "image-size-differs"
    IMAGE_CHANGED = "image-changed"
    DUPLICATE = "duplicate"
    HELD_OUT = "held-out"
    NO_REASONING = "no-reasoning"
    ANNOTATION_UNMATCHED = "annotation-unmatched"
    TEACHER_FAILED = "teacher-failed"
    TEACHER_EMPTY = "teacher-empty"
    TEACHER_REFUSED = "teacher-refused"
    TEACHER_CUT_OFF = "teacher-cut-off"
    TEACHER_NOT_JSON = "teacher-not-json"
    TEACHER_WRONG_SHAPE = "teacher-wrong-shape"
    TEACHER_UNREADABLE = "teacher-unreadable"
    TEACHER_UNGROUNDED = "teacher-ungrounded"
    TEACHER_TOLD = "teacher-told"
    TEACHER_INJECTED = "teacher-injected"
    TEACHER_REPEATS = "teacher-repeats"
    TEACHER_OTHER_LANGUAGE = "teacher-other-language"
    TEACHER_NO_CONCLUSION = "teacher-no-conclusion"
    TEACHER_BOX_OFF_GOLD = "teacher-box-off-gold"
    TEACHER_BOX_UNSURE = "teacher-box-unsure"
    TEACHER_BOX_NOT_SEEN = "teacher-box-not-seen"
    TEACHER_BOX_UNDETECTED = "teacher-box-undetected"
    TEACHER_CLAIMS_UNSUPPORTED = "teacher-claims-unsupported"
    TEACHER_NOTHING_LEFT = "teacher-nothing-left"
    TEACHER_WRONG_ANSWER = "teacher-wrong-answer"
    TEACHER_EVIDENCE_FALLS_SHORT = "teacher-evidence-falls-short"
    TEACHER_ANSWER_FIRST = "teacher-answer-first"
    TOO_LONG = "too-long"


IMAGE_REASONS = {reason: Reason(f"image-{reason.removesuffix('-format')}") for reason in images.REASONS}
"""What `vcot.storage.images` calls it → the reason of a Rejection."""


class Rejection(Record):
    """A row that was refused, by whom and why; nothing is lost quietly."""

    version: Literal[1] = 1
    id: str
    stage: str
    reason: Reason
    detail: PublicText = Field("", description="the thing as it was written, and what would be right")
    part: str = Field("", description="what of the row was refused, where the rest of it was kept; empty: all of it")
    said: tuple[PublicText, ...] = Field(
        (), description="what a teacher said about the row, in the order in which it did"
    )
    negative: Sample | None = Field(
        None, description="the row with the teacher's reasoning and its wrong answer, where those are asked for"
    )
