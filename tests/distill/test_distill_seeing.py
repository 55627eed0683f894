"""distill with a teacher that really looks: rows without evidence, whose true boxes only this test knows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from unittest.mock import patch

import pytest

from jobs.convert import ConvertSettings
from jobs.convert import run as run_convert
from jobs.distill import DistillSettings
from jobs.distill import run as run_distill
from tests.distill.made import draw_png, sample
from tests.fakes.distilling import convert, distilled, rejections
from tests.fakes.seeing import Seeing
from tests.fakes.teacher import scripted_teacher
from vcot.evaluation.runner import CENTRE
from vcot.grounding import Box, match
from vcot.records import read_samples
from vcot.records.shards import CONVERT, read_marker
from vcot.storage import Store

ROOT = Path(__file__).parents[2]
ROWS = 10


def overlaps(said: Sequence[Box], true: Sequence[Box]) -> list[float]:
    """IoU of each pair; what was missed, or said too much, has 0."""
    pairs = [overlap for _, _, overlap in match(said, true).pairs]
    return pairs + [0.0] * (max(len(said), len(true)) - len(pairs))


@pytest.mark.usefixtures("quick_teacher")
def test_kept_boxes_lie_on_the_hidden_ones_and_a_blank_image_gives_nothing_to_keep(tmp_path: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    scenes = {"run_uri": str(tmp_path), "source": "scenes", "questions": "where,presence,count,point", "scenes": ROWS}
    run_convert(ConvertSettings.of(scenes | {"seed": 3, "validation_share": 0.0}))
    marker, _ = read_marker(Store(), f"{tmp_path}/convert", CONVERT)
    gold = {row.id: row for row in read_samples(Store(), f"{tmp_path}/convert", marker)}
    (tmp_path / "blank.png").write_bytes(data := draw_png(size=(160, 120)))
    image = sample(uri=str(tmp_path / "blank.png"), data=data, width=160, height=120).image
    there = [row for row in gold.values() if row.true_boxes]
    blank = [row.model_copy(update={"images": (image,), "id": f"blank {row.id}"}) for row in there]
    hidden = [row.model_copy(update={"evidence": None}) for row in (*gold.values(), *blank)]
    convert(str(tmp_path / "runs/one"), hidden)
    seeing = Seeing(ROOT / "examples" / "rehearsal")
    with scripted_teacher(seeing) as teacher, patch.dict(os.environ, OPENAI_BASE_URL=teacher.address):
        given = {"teacher": "openai", "model": "rehearsal", "negative_crop_share": 0.25, "max_rejected_share": 1.0}
        run_distill(DistillSettings.of({"run_uri": str(tmp_path / "runs/one"), **given}))
    done, kept = distilled(str(tmp_path / "runs/one"))
    assert not [row.id for row in kept if row.id.startswith("blank")]
    assert {row.id for row in blank} <= {one.id for one in rejections(str(tmp_path / "runs/one"), done)}

    said = [row.reasoning[0].boxes for row in kept]
    true = [gold[row.id].true_boxes or () for row in kept]
    found = [one for a, b in zip(said, true, strict=True) for one in overlaps(a, b)]
    centre = [Box.from_fractions(*CENTRE, width=row.image.width, height=row.image.height) for row in kept]
    middle = [one for a, b in zip(centre, true, strict=True) for one in overlaps([a], b)]
    swapped = [one for a, b in zip(said[1:] + said[:1], true, strict=True) for one in overlaps(a, b)]
    assert mean(found) >= 0.5
    assert mean([one >= 0.5 for one in found]) >= 0.5
    assert mean(found) > 2 * max(mean(middle), mean(swapped))
