"""Boxes lie on the same object whether later stages read an image or its smaller copy."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL import ImageDraw

from jobs import convert as convert_job
from jobs import tokenize as tokenize_job
from tests.datasets.given import Given
from tests.storage.tars import tar
from tests.tokens.base import base_folder, processor
from vcot.errors import VcotError
from vcot.evaluation.ablations import partners
from vcot.evaluation.gallery import draw
from vcot.evaluation.runner import EvaluationRunner, TrainedModel, units
from vcot.grounding import Box, iou, smart_resize
from vcot.records import Completion, Sample, read_samples
from vcot.records.example import Examples
from vcot.records.sample import read_image
from vcot.records.shards import TOKENIZE, read_marker
from vcot.reports.overlays import TRUE
from vcot.storage import Store, images
from vcot.tokens import contract_of
from vcot.tokens.rows import view

__all__ = ["base_folder", "processor"]
WIDE, HIGH = 1600, 1100
DISC = (960, 220, 1440, 660)
"""Where the disc is in the upright image; neither in the middle nor as wide as high."""
BUDGET = 40_000
SIGHT = {"min_pixels": 4 * 784, "max_pixels": 100 * 784}
"""What the model sees; more than the copies have, so that the two sizes are seen at two sizes."""


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [n for n in os.environ if n.startswith("VCOT_")]:
        monkeypatch.delenv(name)


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
    more = ["--ingest", "--ingest-pixels", str(BUDGET)] if ingest else []
    settings, _ = convert_job.ConvertSettings.load(
        ["--run-uri", str(place), "--source", "samples", "--input-uri", str(given.folder / "rows.jsonl"),
         "--images-uri", str(given.images), "--num-shards", "1", *more]
    )  # fmt: skip
    convert_job.run(settings)
    store, uri = Store(), f"{place}/convert"
    samples = list(read_samples(store, uri, read_marker(store, uri)[0]))
    assert len(samples) == 2
    assert all((s.image.width, s.image.height) == (WIDE, HIGH) for s in samples)
    for sample in samples:
        assert (sample.image.stored is not None) == ingest
        if ingest:
            assert sample.image.kept.width * sample.image.kept.height <= BUDGET
    return samples


@pytest.mark.parametrize("ingest", [False, True])
@pytest.mark.parametrize("frame", ["thousandths", "resized_pixels", "padded_square", "pixels", "fractions"])
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


@pytest.mark.parametrize("ingest", [False, True])
@pytest.mark.parametrize("frame", ["thousandths", "resized_pixels"])
def test_a_model_that_points_at_what_it_is_shown_is_found_right(
    given: Given, tmp_path: Path, processor: Any, frame: str, ingest: bool
) -> None:
    """The model here is one that sees colours: it writes down where the orange is, in the numbers it was taught."""
    samples = converted(given, tmp_path, ingest=ingest)
    budget = {"factor": 28, **SIGHT}
    contract = contract_of(processor, mode="multimodal", frame=frame, max_length=512).model_copy(
        update={"frame": {"name": frame, **(budget if frame == "resized_pixels" else {})}, **SIGHT}
    )
    trained = TrainedModel("", "", "", contract, "full", "", {})
    seen_sizes = []

    def point(_: str, asked: Sequence[Sample], images: Sequence[Pillow.Image]) -> list[Completion]:
        said = []
        for one in images:
            seen_sizes.append(one.size)
            box = disc_in(one)
            wide, high = smart_resize(*one.size, **budget) if frame == "resized_pixels" else (1000, 1000)
            numbers = [box.x1 / WIDE * wide, box.y1 / HIGH * high, box.x2 / WIDE * wide, box.y2 / HIGH * high]
            text = f"I see the <ref>orange disc</ref><box>{[round(n) for n in numbers]}</box>.\nAnswer: right"
            said.append(Completion(text=text, model="eye", finish_reason="stop"))
        return said

    runner = EvaluationRunner(
        store=Store(), samples=samples, partners=partners(samples, 0), ask=point, frame=trained.frame,
        units=units(len(samples), ["real"], 2), cache_uri=str(tmp_path / "cache"), asked_of_base={},
    )  # fmt: skip
    replies: list[Any] = []
    runner.run(_Kept(replies))
    assert len(replies) == 2
    for reply in replies:
        assert reply.score.matched == reply.score.true_boxes == reply.score.predicted_boxes == 1
        assert reply.score.ious[0] > 0.93
    assert {w * h <= BUDGET for w, h in seen_sizes} == {ingest}
    for sample in samples:
        frame_then = trained.frame(sample)
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


def test_copies_are_made_by_shards_and_are_the_same_in_every_run(given: Given, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        place = tmp_path / name
        converted(given, place, ingest=True)
        files = sorted((place / "convert/images").rglob("*.jpg"))
        made.append({f.name: f.read_bytes() for f in files})
    assert made[0] == made[1]
    assert len(made[0]) == 2


def test_but_for_the_copy_the_samples_are_the_same(given: Given, tmp_path: Path) -> None:
    plain, copied = (converted(given, tmp_path / str(ingest), ingest=ingest) for ingest in (False, True))
    for one, other in zip(plain, copied, strict=True):
        assert one == other.model_copy(update={"image": other.image.model_copy(update={"stored": None})})


def test_a_budget_without_ingest_is_refused() -> None:
    with pytest.raises(VcotError, match=r"--ingest-pixels .*: give --ingest, too"):
        convert_job.ConvertSettings.load(
            ["--run-uri", "r", "--source", "samples", "--input-uri", "a.jsonl", "--ingest-pixels", "1000000"]
        )


def test_settings_say_what_shaped_the_copies(given: Given, tmp_path: Path) -> None:
    converted(given, tmp_path, ingest=True)
    settings = json.loads((tmp_path / "convert/settings.json").read_text())["settings"]
    assert (settings["ingest"], settings["ingest_pixels"]) == (True, BUDGET)


@pytest.mark.parametrize("parts", [["all"], ["prepare", "shards", "finish"]])
def test_with_copies_an_archive_is_not_needed_any_more(given: Given, tmp_path: Path, parts: list[str]) -> None:
    archive = tmp_path / "images.tar"
    names = ("lying.jpg", "straight.png")
    archive.write_bytes(tar({name: (given.images / name).read_bytes() for name in names}))
    for part in parts:
        settings, _ = convert_job.ConvertSettings.load(
            ["--run-uri", str(tmp_path), "--source", "samples", "--input-uri", str(given.folder / "rows.jsonl"),
             "--images-uri", str(archive), "--num-shards", "1", "--ingest", "--ingest-pixels", str(BUDGET),
             "--part", part]
        )  # fmt: skip
        convert_job.run(settings)
    archive.unlink()
    samples = list(read_samples(Store(), f"{tmp_path}/convert", read_marker(Store(), f"{tmp_path}/convert")[0]))
    assert len(samples) == 2
    for sample in samples:
        assert iou(disc_in(read_image(Store(), sample.image).pixels), Box(*DISC)) > 0.93
