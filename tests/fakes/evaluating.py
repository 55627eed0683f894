"""Small samples, replies and images for evaluate, and a model that only says what colour it is shown."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from PIL import Image as Pillow
from PIL import ImageDraw

from tests.fakes.markers import METADATA
from vcot.errors import Interrupted
from vcot.evaluation.runner import EvaluationRunner, partners, units
from vcot.evaluation.ways import Form, Prompt
from vcot.grounding import Box, Frame, FrameSpec, Mention
from vcot.models.decoding import Decoding
from vcot.records import Completion, Folder, Image, Sample, Score, StageMarker
from vcot.records.metadata import EvaluateMetadata
from vcot.records.sample import Origin
from vcot.records.shards import EVALUATE, run_shards
from vcot.settings import Settings
from vcot.storage import Store

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
    return made.model_copy(update={"images": ()})


def frame(of: Sample) -> Frame:
    return of.frame(FrameSpec("thousandths"))


def said(boxes: Sequence[Sequence[int]] = (), answer: str | None = "left") -> str:
    """A reply in the native form."""
    text = "I see <ref>gear</ref>" + "".join(f"<box>{list(box)}</box>" for box in boxes) if boxes else "I see nothing."
    return text if answer is None else f"{text}\nAnswer: {answer}"


def scored(name: str, **changes: Any) -> Score:
    """Of a reply with a wrong box and the right answer, but for the changes."""
    values = {"answer": "right", "true_boxes": 1, "predicted_boxes": 1, "matched": 0, "well_formed": True, "text": ""}
    return Score(sample=name, **(values | changes))


def drawn(folder: Path, name: str, box: Sequence[int], colour: str, size: tuple[int, int] = (160, 120)) -> Image:
    """An image with one disc on white, stored below `folder`."""
    path = folder / f"{name}.png"
    canvas = Pillow.new("RGB", size, "white")
    ImageDraw.Draw(canvas).ellipse(list(box), fill=colour)
    canvas.save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Image(uri=str(path), width=size[0], height=size[1], sha256=digest)


CONDITIONS = ("real", "blank", "shuffled")


class EvaluateSettings(Settings):
    stage: ClassVar[str] = "evaluate"


class FakeModel:
    """Says what colour stands in the middle of what it is shown ("2" where that is nothing), and remembers it all."""

    COLOURS: ClassVar[dict[Any, str]] = {(255, 0, 0): "red", (0, 0, 255): "blue"}

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.dies_after = dies_after
        self.how: dict[str, Any] = {}

    names: ClassVar[Any] = ("base", "subject")
    by_text = keeps_replies = can_score = False
    made_with: ClassVar[dict[str, Any]] = {}

    def frame(self, model: Any, of: Sample) -> Frame:
        return frame(of)

    def form(self, model: Any) -> Form:
        return Form("own", "thousandths", "vcot", "Point at it." if model == "native" else None, None)

    def fingerprint(self, model: Any) -> dict[str, Any]:
        return {**self.how, "model": model}

    def prompt(self, model: Any, way: Any, of: Sample, images: Any) -> Prompt:
        return Prompt(of, tuple(images), self.form(model).below(of, way), FrameSpec("thousandths"))

    def batches(self, samples: Any, draws: int = 1) -> list[list[int]]:
        return [[index] for index in range(len(samples))]

    def prepare(self, prompts: Any) -> Any:
        return prompts

    def ask(self, model: Any, prompts: Any, decoding: Decoding) -> list[list[Completion]]:
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise Interrupted("killed")
        self.asked += [(model, prompt.sample.id, prompt.images) for prompt in prompts]
        pixels = [prompt.images[0].getpixel((80, 60)) if prompt.images else None for prompt in prompts]
        seen = ["2" if pixel is None else self.COLOURS.get(pixel, f"{pixel}") for pixel in pixels]
        return [[Completion(text=said([], text), model=model, finish_reason="stop")] for text in seen]

    def score(self, model: Any, prompts: Any, continuations: Any) -> list[list[list[float]]]:
        raise NotImplementedError

    def token_count(self, text: str) -> int:
        raise NotImplementedError

    @property
    def count(self) -> Counter[str]:
        return Counter(model for model, _, _ in self.asked)


def runner(
    tmp_path: Path, samples: Any, model: Any, size: int = 2, native: bool = False, **more: Any
) -> EvaluationRunner:
    model.how = {"base": "b" * 64, "max_new_tokens": 16, "contract": {"frame": "thousandths"}} | more
    models = ("base", "native", "subject") if native else ("base", "subject")
    asked = units(len(samples), models, ("ground",), CONDITIONS, size)  # type: ignore[arg-type]
    return EvaluationRunner(
        Store(), samples, partners(samples, 0), model, asked, str(tmp_path / "_cache"), Decoding(max_new_tokens=16)
    )


def evaluate(tmp_path: Path, name: str, runs: EvaluationRunner, share: float = 0.05) -> tuple[Folder, StageMarker]:
    run_uri = str(tmp_path / name)
    folder = Folder(runs.store, run_uri, EVALUATE)
    marker = run_shards(
        folder, EvaluateSettings(run_uri=run_uri), inputs={}, shards=len(runs.units), work=runs.run,
        max_rejected_share=share, metadata=EvaluateMetadata(**METADATA["evaluate"]),
    )  # fmt: skip
    assert marker is not None
    return folder, marker
