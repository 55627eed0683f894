"""Small samples, replies and pictures for the tests of this room."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from PIL import Image as Pillow
from PIL import ImageDraw

from vcot.grounding import Box, Frame, FrameSpec, Mention
from vcot.records import Image, Sample, Score
from vcot.records.sample import Origin

SIDE = 1000  # thousandths are pixels then, and vectors can be read


def sample(
    name: str,
    boxes: Sequence[Sequence[float]] | None = ((100, 100, 300, 300),),
    *,
    answers: Sequence[str] = ("left",),
    question: str = "Where is the gear?",
    label: str = "gear",
    split: Literal["train", "validation", "test"] = "test",
    image: Image | None = None,
    choices: tuple[str, ...] | None = None,
) -> Sample:
    evidence = None if boxes is None else (Mention(label, tuple(Box(*box) for box in boxes)),) if boxes else ()
    return Sample(
        id=name,
        image=image
        or Image(uri=f"{name}.png", width=SIDE, height=SIDE, sha256=hashlib.sha256(name.encode()).hexdigest()),
        question=question,
        answers=tuple(answers),
        choices=choices,
        evidence=evidence,
        origin=Origin(dataset="drawn", split=split, row=name, licence="none"),
    )


def by_text(
    name: str, question: str = "What is 1 + 1?", answers: Sequence[str] = ("2",), split: str = "test"
) -> Sample:
    """A question without an image."""
    made = sample(name, None, question=question, answers=answers, split=split)  # type: ignore[arg-type]
    return made.model_copy(update={"image": None})


def frame(of: Sample) -> Frame:
    return of.frame(FrameSpec("thousandths"))


def said(boxes: Sequence[Sequence[int]] = (), answer: str | None = "left") -> str:
    """A reply in the native form."""
    text = "I see <ref>gear</ref>" + "".join(f"<box>{list(box)}</box>" for box in boxes) if boxes else "I see nothing."
    return text if answer is None else f"{text}\nAnswer: {answer}"


def scored(
    name: str,
    *,
    answer: Literal["right", "wrong", "absent"] = "right",
    true: int | None = 1,
    predicted: int = 1,
    matched: int = 0,
    ious: tuple[float, ...] = (),
    well_formed: bool = True,
    misnamed: int = 0,
    image: str | None = None,
) -> Score:
    return Score(
        sample=name, answer=answer, true_boxes=true, predicted_boxes=predicted, matched=matched, ious=ious,
        well_formed=well_formed, text="", misnamed=misnamed, image=image,
    )  # fmt: skip


def drawn(folder: Path, name: str, box: Sequence[int], colour: str, size: tuple[int, int] = (160, 120)) -> Image:
    """A picture with one disc on white, stored below `folder`."""
    path = folder / f"{name}.png"
    canvas = Pillow.new("RGB", size, "white")
    ImageDraw.Draw(canvas).ellipse(list(box), fill=colour)
    canvas.save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Image(uri=str(path), width=size[0], height=size[1], sha256=digest)
