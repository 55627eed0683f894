"""Boxes lie on the same object whether later stages read an image or its smaller copy."""

from __future__ import annotations

import io
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
from tests.tokens.base import processor, toy_base
from vcot.evaluation.metrics import score
from vcot.evaluation.page import draw
from vcot.evaluation.runner import image_of
from vcot.grounding import Box, iou
from vcot.records import Sample
from vcot.records.example import Examples
from vcot.records.sample import read_image
from vcot.records.shards import TOKENIZE, read_marker
from vcot.reports.examples import TRUE
from vcot.storage import Store, images
from vcot.tokens.rows import view

__all__ = ["toy_base", "processor"]
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
    return around((values[..., 0] > 150) & (values[..., 2] < 90) & (values[..., 1] < 180))


def around(there: Any) -> Box:
    """What encloses these pixels of an image, in pixels of the original."""
    down, across = np.nonzero(there)
    x, y = WIDE / there.shape[1], HIGH / there.shape[0]
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
    given: Given, tmp_path: Path, toy_base: Path, processor: Any, frame: str, ingest: bool
) -> None:
    samples = converted(given, tmp_path, ingest=ingest)
    settings = tokenize_job.TokenizeSettings.model_validate(
        {"run_uri": str(tmp_path), "input_uri": f"{tmp_path}/convert", "base_uri": str(toy_base), "frame": frame,
         "max_length": 512, **SIGHT}
    )  # fmt: skip
    tokenize_job.run(settings)
    marker, _ = read_marker(Store(), f"{tmp_path}/tokenize", TOKENIZE)
    examples = Examples([tmp_path / "tokenize" / file.name for shard in marker.shards for file in shard.files])
    assert len(examples) == 2
    contract = marker.metadata.contract
    for sample, example in zip(samples, examples, strict=True):
        shown = view(example, (WIDE, HIGH), contract, processor)
        assert len(shown.images) == 1
        (learned,) = shown.parsed.boxes
        assert iou(learned, disc_in(shown.images[0])) > 0.93
        assert iou(learned, Box(*DISC)) > 0.97
        kept = images.decode(example.images[0], "kept")
        assert iou(disc_in(kept.pixels), Box(*DISC)) > 0.93
        assert (kept.width * kept.height <= BUDGET) == ingest
        # Evaluate reads such a reply in the same numbers, and draws boxes on the same place.
        judged = score(shown.learned, sample, sample.frame(contract.frame_spec))
        assert (judged.matched, judged.true_boxes, judged.predicted_boxes) == (1, 1, 1)
        assert judged.ious[0] > 0.97
        without = judged.model_copy(update={"mentions": ()})
        drawn = draw(image_of(Store(), sample), sample, without, longest_side=800)
        line = [int(TRUE[i : i + 2], 16) for i in (1, 3, 5)]
        assert iou(around((np.asarray(drawn, int) == line).all(axis=-1)), Box(*DISC)) > 0.93


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
    bare = [s.model_copy(update={"images": (s.image.model_copy(update={"stored": None}),)}) for s in again]
    assert bare == plain, "but for the copy the samples are the same"
