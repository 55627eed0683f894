"""Published rows beside the checkout, as Samples that convert makes of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.rows import Given
from vcot.evaluation.metrics import score
from vcot.evaluation.suites import Marked, Suite
from vcot.grounding import FrameSpec
from vcot.records import Sample

DATA = Path(os.environ.get("TEST_DATA_DIR", Path(__file__).parents[3] / "shared" / "data"))


def published(path: str) -> Path:
    """A file of the published rows; without them the test is skipped."""
    if not (DATA / path).exists():
        pytest.skip(f"no published rows: {DATA / path}")
    return DATA / path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def viscot_samples(given: Given, name: str) -> tuple[list[Sample], list[dict[str, Any]]]:
    """The Samples of one set of VisCoT's benchmark, and the rows of its detection file, in the same order."""
    chat, found = published(f"viscot/benchmark/{name}.json"), lines(published(f"viscot/detection/{name}.jsonl"))
    # Names of folders differ between the two files; rows are aligned.
    for row, said in zip(json.loads(chat.read_text()), found, strict=True):
        folder, file = row["image"][0].removeprefix("cot/").split("/", 1)
        if not (given.images / folder / file).exists():
            given.image(f"{folder}/{file}", said["width"], said["height"])
    made = given.outcomes("viscot", str(chat), overhang=100.0)
    pairs = [(one, row) for one, row in zip(made, found, strict=True) if isinstance(one, Sample)]
    assert len(pairs) > 0.99 * len(found)
    return [one for one, _ in pairs], [row for _, row in pairs]


def pointing(sample: Sample, edges: Any, answer: str = "") -> str:
    """A reply in the native form, boxes in pixels."""
    x1, y1, x2, y2 = edges
    return f"The <ref>region</ref><box>[{x1}, {y1}, {x2}, {y2}]</box>.\nAnswer: {answer or sample.answers[0]}"


PIXELS = FrameSpec("pixels")


def marked_by(suite: Suite, text: str, of: Sample) -> Marked | None:
    """A reply with boxes in pixels, as a suite sees it."""
    return suite.mark(of, score(text, of, of.frame(PIXELS)))
