"""Rows of two images and two turns, from chat messages to an evaluated model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.rows import Given
from tests.fakes.stages import stage
from tests.training.toy import *  # noqa: F403  (fixtures)
from vcot.records import read_samples
from vcot.records.example import IGNORED, Examples
from vcot.records.shards import read_marker
from vcot.storage import Store

FIRST, SECOND = "<image>\nWhere is the cup?", "<image>\nAnd what is in cup {}?"
PLACE = "Here: <ref>cup</ref><box>[100, 200, 300, 400]</box>"


def chat(given: Given, number: int, split: str) -> dict[str, Any]:
    images = [given.image(f"{name}{number}.png", 56 + number, height) for name, height in (("whole", 84), ("crop", 56))]
    said = [FIRST, PLACE, SECOND.format(number), f"I see {number} leaves.\nAnswer: tea {number}"]
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    return {"messages": turns, "images": images, "split": split}


@pytest.mark.chain
def test_two_images_and_two_turns_go_through_all_stages(
    tmp_path: Path, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import convert, distill, evaluate, tokenize, train

    for name in [name for name in os.environ if name.startswith("VCOT_")]:
        monkeypatch.delenv(name)
    given, run_uri, store, base = Given(tmp_path), tmp_path / "run", Store(), {"base_uri": toy_base}
    splits = ["train"] * 4 + ["validation"] * 2 + ["test"] * 3
    rows = [chat(given, number, split) for number, split in enumerate(splits)]
    # Asked about the second image of a test row: it may not be learned from.
    rows.append(chat(given, 90, "train") | {"images": ["whole90.png", "crop8.png"]})

    report = stage(
        convert.ConvertSettings, convert.run, run_uri, source="samples", frame="thousandths", num_shards=2,
        input_uri=given.rows(rows), images_uri=given.images, near_duplicates=0, max_rejected_share=0.2,
    )  # fmt: skip
    assert report["row_counts"]["rejected"] == {"held-out": 1}
    assert report["images"] == {"train": 8, "validation": 4, "test": 6}
    stage(distill.DistillSettings, distill.run, run_uri)
    marker, _ = read_marker(store, f"{run_uri}/distill")
    assert [len(sample.images) for sample in read_samples(store, f"{run_uri}/distill", marker)] == [2] * 9

    report = stage(tokenize.TokenizeSettings, tokenize.run, run_uri, **base, max_pixels=56 * 56, max_length=512)
    assert report["examples"] == {"train": 4, "validation": 2}
    page = (run_uri / "tokenize/report.html").read_text()
    assert page.count('alt="the image as the model sees it"') == 2 * 6
    marker, _ = read_marker(store, f"{run_uri}/tokenize")
    files = [run_uri / "tokenize" / file.name for shard in marker.shards for file in shard.files]
    examples = Examples(files)
    assert [len(example.images) for example in examples] == [2] * 6
    starts = [sum(a == IGNORED != b for a, b in zip(e.labels, e.labels[1:], strict=False)) for e in examples]
    assert starts == [2] * 6  # the place and the answer are learned
    assert all(row.patches > 0 for row in examples.rows)

    stage(
        train.TrainSettings, train.run, run_uri, **base, tune="lora", lora_r=4, dtype="float32", max_steps=2,
        batch_tokens=2048, gradient_accumulation_steps=1, report_to="none", device="cpu",
    )  # fmt: skip
    losses = json.loads((run_uri / "train/losses.json").read_text())
    assert all(line["loss"] > 0 for line in losses)
    report = stage(
        evaluate.EvaluateSettings, evaluate.run, run_uri, dtype="float32", max_new_tokens=3, max_unusable_share=1.0,
        rows_per_shard=3,
        device="cpu",
    )  # fmt: skip
    counted = {name: report["samples"][name] for name in ("split", "rows", "by_text", "left_out")}
    assert counted == {"split": "test", "rows": 3, "by_text": 0, "left_out": 0}
    asked = {one["key"]: one["figures"]["malformed"]["rows"] for one in report["results"]}
    assert set(asked.values()) == {3}
