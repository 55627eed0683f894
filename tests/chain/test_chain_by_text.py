"""ScienceQA's rows, half of them by text alone, from their Parquet files to an evaluated model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.rows import SCIENCEQA_TYPES, scienceqa_row, write_parquet
from tests.fakes.stages import stage
from tests.training.toy import *  # noqa: F403  (fixtures)
from vcot.records import read_samples
from vcot.records.example import Examples
from vcot.records.shards import read_marker
from vcot.storage import Store


def row(n: int, **changes: Any) -> dict[str, Any]:
    """Every second one has no image."""
    said = {
        "question": f"Which is number {n}?",
        "choices": [f"{n}", f"{n + 1}"],
        "lecture": "Count.",
        "solution": "Count up.",
    }
    return scienceqa_row(n, **said | ({"image": None} if n % 2 else {}) | changes)


@pytest.mark.chain
def test_rows_with_and_without_an_image_go_through_all_stages(tmp_path: Path, toy_base: Path, monkeypatch) -> None:
    from jobs import convert, distill, evaluate, tokenize, train

    for name in [name for name in os.environ if name.startswith("VCOT_")]:
        monkeypatch.delenv(name)
    data, run_uri, store, base = tmp_path / "data", tmp_path / "run", Store(), {"base_uri": toy_base}
    data.mkdir()
    splits = {"train": [*map(row, range(7)), row(7, solution="")], "validation": [row(20), row(21)],
              "test": [*map(row, range(30, 34))]}  # fmt: skip
    for name, rows in splits.items():
        write_parquet(data / f"{name}-00000-of-00001.parquet", rows, SCIENCEQA_TYPES)

    report = stage(
        convert.ConvertSettings, convert.run, run_uri, source="scienceqa", input_uri=data, without_image="keep",
        num_shards=2, max_rejected_share=0,
    )  # fmt: skip
    assert report["row_counts"]["kept"] == 14
    assert report["without_image"] == {"train": 4, "validation": 1, "test": 2}
    assert report["boxes_per_row"] == {"by text alone": 7, "not annotated": 7}
    assert report["images"] == {"train": 4, "validation": 1, "test": 2}
    assert "7 of 14 rows are asked by text alone" in (run_uri / "convert/report.html").read_text()

    report = stage(distill.DistillSettings, distill.run, run_uri, max_rejected_share=0.1)
    assert report["row_counts"]["rejected"] == {"no-reasoning": 1}  # the one without a solution
    marker, _ = read_marker(store, f"{run_uri}/distill")
    assert sum(sample.image is None for sample in read_samples(store, f"{run_uri}/distill", marker)) == 6

    report = stage(tokenize.TokenizeSettings, tokenize.run, run_uri, **base, max_pixels=112 * 112, max_length=512)
    assert (report["examples"], report["by_text"]) == ({"train": 7, "validation": 2}, 4)
    assert report["visual_tokens"]["per_example"]["min"] > 0
    marker, _ = read_marker(store, f"{run_uri}/tokenize")
    files = [run_uri / "tokenize" / file.name for shard in marker.shards for file in shard.files]
    assert sum(not example.images for example in Examples(files)) == 4

    stage(
        train.TrainSettings, train.run, run_uri, **base, tune="lora", lora_r=4, dtype="float32", max_steps=1,
        batch_tokens=2048, gradient_accumulation_steps=1, report_to="none", device="cpu",
    )  # fmt: skip
    report = stage(
        evaluate.EvaluateSettings, evaluate.run, run_uri, dtype="float32", max_new_tokens=3, max_unusable_share=1.0,
        rows_per_shard=3,
        device="cpu",
    )  # fmt: skip
    counted = {name: report["samples"][name] for name in ("split", "rows", "images", "by_text", "left_out")}
    assert counted == {"split": "test", "rows": 4, "images": 2, "by_text": 2, "left_out": 0}
    asked = {one["key"]: one["figures"]["malformed"]["rows"] for one in report["results"]}
    assert asked == {
        f"{model}-{condition}": 4 if condition == "real" else 2
        for model in ("base", "subject")
        for condition in ("real", "blank", "shuffled")
    }
