"""distill with a teacher that really looks: rows without evidence, whose true boxes only this test knows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.distill.made import draw_png, sample
from tests.fakes.convert import convert as source
from tests.fakes.seeing import Eyes, Seeing
from tests.fakes.teacher import scripted_teacher
from tests.jobs.test_distill import convert, distilled, rejections, report
from vcot.evaluation.baselines import CENTRE
from vcot.grounding import Box, match
from vcot.records import Rejection, Sample, read_samples
from vcot.records.shards import read_marker
from vcot.storage import Store

ROOT = Path(__file__).parents[2]
ROWS = int(os.environ.get("TEST_ROWS", 20))


class Run(NamedTuple):
    gold: dict[str, Sample]
    kept: list[Sample]
    refused: list[Rejection]
    report: dict[str, Any]


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    os.environ["OMP_NUM_THREADS"] = "1"
    return Eyes(Path(os.environ.get("TEST_BASE", ROOT / "examples" / "rehearsal")))


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Drawn scenes, with what is true of them."""
    run_uri = tmp_path_factory.mktemp("scenes")
    kinds = "where,presence,count,point"
    source(run_uri, source="scenes", questions=kinds, scenes=ROWS, seed=3, validation_share=0)
    marker, _ = read_marker(Store(), f"{run_uri}/convert")
    return list(read_samples(Store(), f"{run_uri}/convert", marker))


@pytest.fixture(scope="module")
def looked(eyes: Eyes, gold: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return distil(eyes, gold, tmp_path_factory.mktemp("runs") / "one")


def distil(eyes: Eyes, gold: Sequence[Sample], run_uri: Path) -> Run:
    """What the job makes of these rows when their evidence is taken away."""
    convert(str(run_uri), [row.model_copy(update={"evidence": None}) for row in gold])
    job = "jobs.distill --teacher openai --strategy answer-aware --model rehearsal --negative-crop-share 0.25"
    job += " --max-rejected-share 1"
    with scripted_teacher(Seeing(eyes)) as teacher:
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("VCOT_", "OPENAI_"))}
        told = {"OPENAI_BASE_URL": teacher.address, "OPENAI_API_KEY": "x", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", *job.split(), "--run-uri", str(run_uri)]
        subprocess.run(command, cwd=ROOT, env=outside | told, check=True)
    marker, kept = distilled(str(run_uri))
    return Run({row.id: row for row in gold}, kept, rejections(str(run_uri), marker), report(str(run_uri)))


def true_boxes(row: Sample) -> list[Box]:
    return [box for mention in row.evidence or () for box in mention.boxes]


def overlaps(said: Sequence[Box], true: Sequence[Box]) -> list[float]:
    """IoU of each pair; what was missed, or said too much, has 0."""
    pairs = [overlap for _, _, overlap in match(said, true).pairs]
    return pairs + [0.0] * (max(len(said), len(true)) - len(pairs))


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def test_kept_boxes_lie_on_the_hidden_ones(looked: Run) -> None:
    said = [row.reasoning[0].boxes for row in looked.kept]
    true = [true_boxes(looked.gold[row.id]) for row in looked.kept]
    found = [one for a, b in zip(said, true, strict=True) for one in overlaps(a, b)]
    centre = [Box.from_fractions(*CENTRE, width=row.image.width, height=row.image.height) for row in looked.kept]
    middle = [one for a, b in zip(centre, true, strict=True) for one in overlaps([a], b)]
    swapped = [one for a, b in zip(said[1:] + said[:1], true, strict=True) for one in overlaps(a, b)]
    hits = mean([one >= 0.5 for one in found])
    print(f"{len(found)} boxes: IoU {mean(found):.3f}, at 0.5 {hits:.3f}; centre {mean(middle):.3f}, "
          f"another row's {mean(swapped):.3f}")  # fmt: skip
    assert mean(found) >= 0.5
    assert hits >= 0.5
    assert mean(found) > 2 * max(mean(middle), mean(swapped))


def test_a_blank_image_gives_nothing_to_keep(eyes: Eyes, looked: Run, tmp_path: Path) -> None:
    """All rows in which something is to be found, with an image that shows nothing; and one with its own."""
    (tmp_path / "blank.png").write_bytes(data := draw_png(160, 120))
    image = sample(uri=str(tmp_path / "blank.png"), data=data, width=160, height=120).image
    own = looked.gold[looked.kept[0].id]
    there = [row for row in looked.gold.values() if true_boxes(row) and row is not own]
    rows = [own, *(row.model_copy(update={"image": image}) for row in there)]
    blank = distil(eyes, rows, tmp_path / "runs" / "blank")
    assert [row.id for row in blank.kept] == [own.id]
    assert {row.id for row in blank.refused} == {row.id for row in there}
