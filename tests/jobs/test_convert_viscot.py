"""All of VisCoT that lies beside the checkout, through the job: nothing lost, and every box where it belongs.

Images are drawn in the right size, one bit a pixel. The detection files are the truth for the chat files.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.fakes.convert import stage
from tests.fakes.rows import png
from vcot.errors import InputError
from vcot.grounding import Box, iou
from vcot.records import read_samples
from vcot.records.shards import read_marker
from vcot.storage import Store

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TEST_DATA_DIR", ROOT.parent / "shared" / "data")) / "viscot"
SETS = ("flickr30k", "gqa", "openimages", "sroie", "textvqa", "visual7w", "vsr")
ROWS = {"flickr30k": 1546, "gqa": 978, "openimages": 945, "sroie": 686, "textvqa": 526, "visual7w": 1000, "vsr": 404}
TWICE = {"openimages": 2}
"""Rows that ask what an earlier one has asked about the same image, with its answer and its box."""
LEAST = {
    "flickr30k": 0.999, "gqa": 0.999, "sroie": 0.999, "visual7w": 0.999, "openimages": 0.996, "textvqa": 0.989,
    "vsr": 0.9965,
}  # fmt: skip
"""Mean IoU with the truth: the first four are of whole pixels."""
BLANK = {"near_duplicates": 0}
"""Images that show nothing cannot look alike, and decoding them takes minutes."""
METADATA = {"dude": 2500, "vsr": 1000}
"""Rows from the first on."""

pytestmark = [
    pytest.mark.skipif(not DATA.is_dir(), reason=f"VisCoT's rows are not in {DATA}"),
    pytest.mark.usefixtures("clean"),
]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as lines:
        yield from map(json.loads, lines)


def drawer(folder: Path) -> Callable[[str, int, int], None]:
    """Puts an image of this size at this path, black, and another file than all others."""
    folders: set[Path] = set()

    def draw(path: str, width: int, height: int) -> None:
        target = folder / path
        if target.parent not in folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            folders.add(target.parent)
        if not target.exists():
            target.write_bytes(png(width, height, comment=path))

    return draw


def report(run_uri: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((run_uri / "convert/report.json").read_text())
    row_counts = told["row_counts"]
    assert row_counts["rows"] == row_counts["kept"] + sum(row_counts["rejected"].values())
    listed = [line for file in (run_uri / "convert/rejections").glob("*") for line in file.open()]
    assert len(listed) == sum(row_counts["rejected"].values())
    return told


# ------------------------------------------------------------------------------------------------------- chat files


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    draw = drawer(folder)
    for name in SETS:
        for truth in rows(DATA / "detection" / f"{name}.jsonl"):
            draw(truth["img_path"].removeprefix("cot/").replace("visual7w/", "v7w/"), truth["width"], truth["height"])
    return folder


@pytest.fixture(scope="module")
def both_copies(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return measured(tmp_path_factory.mktemp("both"), DATA / "benchmark", images)


def measured(run_uri: Path, folder: Path, images: Path) -> dict[str, list[float]]:
    """Set → the IoU of each kept row's box with the truth."""
    stage(run_uri, source="viscot", input_uri=folder, images_uri=images, **BLANK)
    told = report(run_uri)
    assert told["row_counts"]["rows"] == sum(ROWS.values())
    truth = {
        f"{name}.json:{number}": row["bbox"]
        for name in SETS
        for number, row in enumerate(rows(DATA / "detection" / f"{name}.jsonl"), 1)
    }
    store, uri = Store(), f"{run_uri}/convert"
    ious = defaultdict(list)
    for sample in read_samples(store, uri, read_marker(store, uri)[0]):
        assert sample.true_boxes is not None
        (box,) = sample.true_boxes
        ious[sample.id.partition(".")[0]].append(
            iou(box, inside(truth[sample.id], sample.image.width, sample.image.height))
        )
    assert told["row_counts"]["rejected"]["duplicate"] == sum(TWICE.values())
    refused = dict.fromkeys(SETS, 0)
    for file in (run_uri / "convert/rejections").glob("*"):
        for rejection in rows(file):
            refused[rejection["id"].partition(".")[0]] += 1
    assert {name: len(ious[name]) + refused[name] for name in SETS} == ROWS
    for name in SETS:
        print(f"{name}: mean IoU {mean(ious[name]):.4f}, {len(ious[name])} kept, {refused[name]} refused")
    return ious


def inside(bbox: list[float], width: int, height: int) -> Box:
    """The annotated box; the few that leave their image by some pixels are cut as ours are."""
    return Box.from_pixels(*bbox, width=width, height=height, overhang=10)


@pytest.mark.parametrize("name", SETS)
def test_boxes_of_a_chat_file_are_those_of_the_detection_file(both_copies: dict[str, list[float]], name: str) -> None:
    assert mean(both_copies[name]) >= LEAST[name]
    assert len(both_copies[name]) >= 0.99 * (ROWS[name] - TWICE.get(name, 0))


# --------------------------------------------------------------------------------------------------- metadata files


@pytest.fixture(scope="module")
def metadata_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metadata")
    draw = drawer(folder)
    for name in METADATA:
        for row in islice(rows(DATA / "metadata" / f"{name}_cot_train.jsonl"), METADATA[name]):
            draw(f"{name}/{row['image']}", row["width"], row["height"])
    return folder


@pytest.mark.parametrize("name", METADATA)
def test_a_metadata_file_goes_through(metadata_images: Path, tmp_path: Path, name: str) -> None:
    allowed = {"dude": 0.2}.get(name, 0.05)
    source = DATA / "metadata" / f"{name}_cot_train.jsonl"
    read = {"source": "viscot", "input_uri": source, "images_uri": metadata_images, "limit": METADATA[name]}
    if name == "dude":  # coordinates of other pages
        with pytest.raises(InputError, match=r"--max-rejected-share 0\.05"):
            stage(tmp_path, **read, **BLANK)
    stage(tmp_path, **read, **BLANK, max_rejected_share=allowed)
    told = report(tmp_path)
    assert told["row_counts"]["rows"] == METADATA[name]
    print(name, told["row_counts"]["rejected"])
    if name == "vsr":
        assert told["row_counts"]["rejected"] == {}
    written = {f"{source.name}:{n}": row for n, row in enumerate(rows(source), 1)}
    store, uri = Store(), f"{tmp_path}/convert"
    for sample in read_samples(store, uri, read_marker(store, uri)[0]):
        row = written[sample.id]
        assert sample.answers == (row["answer"].strip(),)
        assert sample.true_boxes is not None
        for box, (x1, y1, x2, y2) in zip(sample.true_boxes, row["bboxs"], strict=True):
            cut = [max(x1, 0), max(y1, 0), min(x2, row["width"]), min(y2, row["height"])]
            assert box.as_list() == cut
