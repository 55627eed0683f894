"""VisCoT's rows that lie beside the checkout, through the job: nothing lost, and every box where it belongs.

Images are drawn in the right size, one bit a pixel. The detection files are the truth for the chat files.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.fakes.convert import ROOT, convert, rejections, samples
from tests.fakes.rows import Given, png
from vcot.grounding import Box, iou

DATA = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data")) / "viscot"
SETS = {"flickr30k": 1546, "gqa": 978, "openimages": 945, "sroie": 686, "textvqa": 526, "visual7w": 1000, "vsr": 404}
"""Set → its rows."""
LEAST = {
    "flickr30k": 0.999, "gqa": 0.999, "sroie": 0.999, "visual7w": 0.999, "openimages": 0.996, "textvqa": 0.989,
    "vsr": 0.9965,
}  # fmt: skip
"""Mean IoU with the truth: the first four are of whole pixels."""
READ = {"source": "viscot", "near_duplicates": 0}
"""Images that show nothing cannot look alike, and decoding them takes minutes."""

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"VisCoT's rows are not in {DATA}"),
    pytest.mark.usefixtures("clean"),
]


def rows(name: str) -> Iterator[dict[str, Any]]:
    with (DATA / name).open() as lines:
        yield from map(json.loads, lines)


def draw(given: Given, path: str, row: dict[str, Any]) -> None:
    if not (given.images / path).exists():
        given.image(path, data=png(row["width"], row["height"], comment=path))


def test_boxes_of_chat_files_are_those_of_the_detection_files(given: Given, tmp_path: Path) -> None:
    truth = {}
    for name in SETS:
        for number, row in enumerate(rows(f"detection/{name}.jsonl"), 1):
            draw(given, row["img_path"].removeprefix("cot/").replace("visual7w/", "v7w/"), row)
            truth[f"{name}.json:{number}"] = row["bbox"]
    told = convert(tmp_path, **READ, input_uri=DATA / "benchmark", images_uri=given.images)["row_counts"]
    assert told["rows"] == sum(SETS.values()) == told["kept"] + sum(told["rejected"].values())
    assert told["rejected"]["duplicate"] == 2
    ious = defaultdict(list)
    for sample in samples(tmp_path):
        (box,) = sample.true_boxes or ()
        # The few that leave their image by some pixels are cut as ours are.
        edges = {"width": sample.image.width, "height": sample.image.height, "overhang": 10}
        ious[sample.id.partition(".")[0]].append(iou(box, Box.from_pixels(*truth[sample.id], **edges)))
    refused = Counter(rejection.id.partition(".")[0] for rejection in rejections(tmp_path))
    assert {name: len(ious[name]) + refused[name] for name in SETS} == SETS
    for name in SETS:
        print(f"{name}: mean IoU {mean(ious[name]):.4f}, {len(ious[name])} kept, {refused[name]} refused")
        assert mean(ious[name]) >= LEAST[name]
        assert len(ious[name]) >= 0.99 * SETS[name] - 2
