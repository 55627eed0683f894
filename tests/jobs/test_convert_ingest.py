"""Boxes lie on the same object whether later stages read an image or its smaller copy."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw

from jobs import tokenize as tokenize_job
from tests.fakes import convert as fakes
from tests.fakes.rows import Given
from tests.storage.tars import tar
from tests.tokens.base import base_folder, processor
from vcot.evaluation.page import draw
from vcot.evaluation.runner import EvaluationRunner, partners, units
from vcot.grounding import Box, iou, smart_resize
from vcot.records import Completion, Sample
from vcot.records.example import Examples
from vcot.records.sample import read_image
from vcot.records.shards import TOKENIZE, read_marker
from vcot.reports.examples import TRUE
from vcot.storage import Store, images
from vcot.tokens import contract_of
from vcot.tokens.rows import view

__all__ = ["base_folder", "processor"]
pytestmark = pytest.mark.usefixtures("clean")
WIDE, HIGH = 1600, 1100
DISC = (960, 220, 1440, 660)
"""Where the disc is in the upright image; neither in the middle nor as wide as high."""
BUDGET = 40_000
SIGHT = {"min_pixels": 4 * 784, "max_pixels": 100 * 784}
"""What the model sees; more than the copies have, so that the two sizes are seen at two sizes."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Two images of an orange disc, one of them as a camera stores it that was held upright: lying, with EXIF."""
    given = Given(tmp_path_factory.mktemp("data"))
    given.image("lying.jpg", data=_photograph(lying=True))
    given.image("straight.png", data=_photograph(lying=False))
    mention = {"label": "orange disc", "boxes": [DISC]}
    given.rows(
        [
            {
                "id": name, "image": name, "question": "Where is the disc?", "answers": ["right"],
                "reasoning": [["The ", mention, " is at the right."]], "evidence": [mention],
                "origin": {"split": "train", "dataset": "drawn"},
            }
            for name in ("lying.jpg", "straight.png")
        ]
    )  # fmt: skip
    return given


def _photograph(*, lying: bool) -> bytes:
    canvas = Pillow.new("RGB", (WIDE, HIGH), (40, 60, 160))
    ImageDraw.Draw(canvas).ellipse((DISC[0], DISC[1], DISC[2] - 1, DISC[3] - 1), fill=(255, 140, 0))
    buffer, exif = io.BytesIO(), Pillow.Exif()
    if lying:
        exif[0x0112] = 6  # to be turned clockwise by who shows it
        canvas = canvas.transpose(Pillow.Transpose.ROTATE_90)
    canvas.save(buffer, "JPEG" if lying else "PNG", exif=exif)
    return buffer.getvalue()


def disc_in(pixels: Pillow.Image) -> Box:
    """The orange part of an image, in pixels of the original."""
    values = np.asarray(pixels.convert("RGB"), int)
    down, across = np.nonzero((values[..., 0] > 150) & (values[..., 2] < 90) & (values[..., 1] < 180))
    x, y = WIDE / pixels.width, HIGH / pixels.height
    return Box(across.min() * x, down.min() * y, (across.max() + 1) * x, (down.max() + 1) * y)


def converted(given: Given, place: Path, *, ingest: bool) -> list[Sample]:
    more = {"ingest": True, "ingest_pixels": BUDGET} if ingest else {}
    read = {"source": "samples", "input_uri": given.folder / "rows.jsonl", "images_uri": given.images}
    fakes.stage(place, **read, num_shards=1, **more)
    samples = fakes.samples(place)
    assert len(samples) == 2
    assert all((s.image.width, s.image.height) == (WIDE, HIGH) for s in samples)
    for sample in samples:
        assert (sample.image.stored is not None) == ingest
        if ingest:
            assert sample.image.kept.width * sample.image.kept.height <= BUDGET
    return samples


@pytest.mark.parametrize(
    ("frame", "ingest"), [("thousandths", False), ("resized_pixels", True), ("padded_square", True), ("pixels", True)]
)
def test_what_is_learned_lies_on_the_object_in_the_image_that_is_shown(
    given: Given, tmp_path: Path, base_folder: Path, processor: Any, frame: str, ingest: bool
) -> None:
    converted(given, tmp_path, ingest=ingest)
    settings = tokenize_job.TokenizeSettings.model_validate(
        {"run_uri": str(tmp_path), "input_uri": f"{tmp_path}/convert", "base_uri": str(base_folder), "frame": frame,
         "max_length": 512, **SIGHT}
    )  # fmt: skip
    tokenize_job.run(settings)
    marker, _ = read_marker(Store(), f"{tmp_path}/tokenize", TOKENIZE)
    examples = Examples([tmp_path / "tokenize" / file.name for shard in marker.shards for file in shard.files])
    assert len(examples) == 2
    for example in (examples[0], examples[1]):
        shown = view(example, (WIDE, HIGH), marker.metadata.contract, processor)
        assert shown.image is not None
        (learned,) = shown.parsed.boxes
        assert iou(learned, disc_in(shown.image)) > 0.93
        assert iou(learned, Box(*DISC)) > 0.97
        kept = images.decode(example.image or b"", "kept")
        assert iou(disc_in(kept.pixels), Box(*DISC)) > 0.93
        assert (kept.width * kept.height <= BUDGET) == ingest


@pytest.mark.parametrize(("frame", "ingest"), [("thousandths", False), ("resized_pixels", True)])
def test_a_model_that_points_at_what_it_is_shown_is_found_right(
    given: Given, tmp_path: Path, processor: Any, frame: str, ingest: bool
) -> None:
    """The model here is one that sees colours: it writes down where the orange is, in the numbers it was taught."""
    samples = converted(given, tmp_path, ingest=ingest)
    budget = {"factor": 28, **SIGHT}
    contract = contract_of(processor, mode="multimodal", frame=frame, max_length=512).model_copy(
        update={"frame": {"name": frame, **(budget if frame == "resized_pixels" else {})}, **SIGHT}
    )
    seen_sizes = []

    class Eye:
        def ask(self, _: Any, asked: Sequence[Sample], images: Sequence[Any]) -> list[Completion]:
            said = []
            for one in images:
                seen_sizes.append(one.size)
                box = disc_in(one)
                wide, high = smart_resize(*one.size, **budget) if frame == "resized_pixels" else (1000, 1000)
                numbers = [box.x1 / WIDE * wide, box.y1 / HIGH * high, box.x2 / WIDE * wide, box.y2 / HIGH * high]
                text = f"I see the <ref>orange disc</ref><box>{[round(n) for n in numbers]}</box>.\nAnswer: right"
                said.append(Completion(text=text, model="eye", finish_reason="stop"))
            return said

        def frame(self, _: Any, sample: Sample) -> Any:
            return sample.frame(contract.frame_spec)

        def fingerprint(self, _: Any) -> dict[str, Any]:
            return {}

    asked = units(len(samples), ["real"], 2)
    runner = EvaluationRunner(Store(), samples, partners(samples, 0), Eye(), asked, str(tmp_path / "cache"))
    replies: list[Any] = []
    runner.run(_Kept(replies))
    assert len(replies) == 2
    for reply in replies:
        assert reply.score.matched == reply.score.true_boxes == reply.score.predicted_boxes == 1
        assert reply.score.ious[0] > 0.93
    assert {w * h <= BUDGET for w, h in seen_sizes} == {ingest}
    for sample in samples:
        frame_then = sample.frame(contract.frame_spec)
        drawn = draw(read_image(Store(), sample.image).pixels, sample, "", frame_then, longest_side=800)
        assert iou(_line(drawn, TRUE), Box(*DISC)) > 0.93


class _Kept:
    """Of a writer of shards, what a unit needs: the first one's place, and where replies go."""

    def __init__(self, replies: list[Any]) -> None:
        self.index = 0
        self.keep, self.reject = replies.append, pytest.fail


def _line(drawn: Pillow.Image, colour: str) -> Box:
    """What lines of this colour enclose, in pixels of the original."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    down, across = np.nonzero((np.asarray(drawn, int) == wanted).all(axis=-1))
    x, y = WIDE / drawn.width, HIGH / drawn.height
    return Box(across.min() * x, down.min() * y, (across.max() + 1) * x, (down.max() + 1) * y)


def test_with_copies_an_archive_is_not_needed_any_more_and_every_run_makes_the_same(
    given: Given, tmp_path: Path
) -> None:
    archive = tmp_path / "images.tar"
    names = ("lying.jpg", "straight.png")
    archive.write_bytes(tar({name: (given.images / name).read_bytes() for name in names}))
    read = {"source": "samples", "input_uri": given.folder / "rows.jsonl", "images_uri": archive, "num_shards": 1}
    fakes.in_parts(tmp_path, **read, ingest=True, ingest_pixels=BUDGET)
    archive.unlink()
    samples = fakes.samples(tmp_path)
    assert len(samples) == 2
    for sample in samples:
        assert iou(disc_in(read_image(Store(), sample.image).pixels), Box(*DISC)) > 0.93
    plain, again = (converted(given, tmp_path / str(ingest), ingest=ingest) for ingest in (False, True))
    assert {s.image.kept.sha256 for s in again} == {s.image.kept.sha256 for s in samples}
    bare = [s.model_copy(update={"image": s.image.model_copy(update={"stored": None})}) for s in again]
    assert bare == plain, "but for the copy the samples are the same"
