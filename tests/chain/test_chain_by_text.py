"""ScienceQA's rows, half of them by text alone, from their Parquet files to an evaluated model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.rows import SCIENCEQA_TYPES, scienceqa_row, write_parquet
from tests.training.toy import *  # noqa: F403  (fixtures)
from vcot.records import Sample, read_samples
from vcot.records.example import Examples
from vcot.records.shards import read_marker
from vcot.storage import Store


def rows(first: int, count: int) -> list[dict[str, Any]]:
    """Every second one has no image; the last of them has no solution either."""
    return [
        scienceqa_row(
            n, question=f"Which is number {n}?", choices=[f"{n}", f"{n + 1}"], lecture="Count.", solution="Count up.",
            **({"image": None} if n % 2 else {}),
        )
        for n in range(first, first + count)
    ]  # fmt: skip


def stage(settings: Any, run: Callable[[Any], None], run_uri: Path, **said: Any) -> dict[str, Any]:
    flags = [word for name, value in said.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    loaded, _ = settings.load(["--run-uri", str(run_uri), *flags])
    run(loaded)
    report = run_uri / settings.stage / "report.json"
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    return found


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, toy_base: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    from jobs import convert, distill, evaluate, tokenize, train

    data, run_uri = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("runs") / "one"
    for name, (first, count) in {"train": (0, 8), "validation": (20, 2), "test": (30, 4)}.items():
        some = rows(first, count)
        if name == "train":
            some[-1]["solution"] = ""
        write_parquet(data / f"{name}-00000-of-00001.parquet", some, SCIENCEQA_TYPES)
    base = {"base_uri": toy_base}
    reports = {
        "convert": stage(
            convert.ConvertSettings, convert.run, run_uri, source="scienceqa", input_uri=data, without_image="keep",
            num_shards=2, max_rejected_share=0,
        ),
        "distill": stage(distill.DistillSettings, distill.run, run_uri, max_rejected_share=0.1),
        "tokenize": stage(
            tokenize.TokenizeSettings, tokenize.run, run_uri, **base, max_pixels=112 * 112, max_length=512
        ),
        "train": stage(
            train.TrainSettings, train.run, run_uri, **base, tune="lora", lora_r=4, dtype="float32", max_steps=2,
            per_device_train_batch_size=4, gradient_accumulation_steps=1, report_to="none",
        ),
        "evaluate": stage(
            evaluate.EvaluateSettings, evaluate.run, run_uri, dtype="float32", max_new_tokens=6, rows_per_shard=3,
        ),
    }  # fmt: skip
    return run_uri, reports


def samples(run_uri: Path, name: str) -> list[Sample]:
    marker, _ = read_marker(Store(), f"{run_uri}/{name}")
    return list(read_samples(Store(), f"{run_uri}/{name}", marker))


def test_convert_keeps_and_counts_them(chain: Any) -> None:
    run_uri, reports = chain
    report = reports["convert"]
    assert report["row_counts"]["kept"] == 14
    assert report["without_image"] == {"train": 4, "validation": 1, "test": 2}
    assert report["boxes_per_row"] == {"by text alone": 7, "not annotated": 7}
    assert report["images"] == {"train": 4, "validation": 1, "test": 2}
    assert sum(sample.image is None for sample in samples(run_uri, "convert")) == 7
    page = (run_uri / "convert/report.html").read_text()
    assert "7 of 14 rows are asked by text alone, without an image." in page
    assert '<th class="n">by text alone</th>' in page
    assert page.count('<div class="none">asked by text alone</div>') > 0


def test_distill_passes_those_with_a_solution_and_refuses_the_other(chain: Any) -> None:
    run_uri, reports = chain
    assert reports["distill"]["row_counts"]["rejected"] == {"no-reasoning": 1}
    assert sum(sample.image is None for sample in samples(run_uri, "distill")) == 6


def test_tokenize_makes_examples_of_both_and_shows_both(chain: Any) -> None:
    run_uri, reports = chain
    report = reports["tokenize"]
    assert (report["examples"], report["by_text"]) == ({"train": 7, "validation": 2}, 4)
    assert report["visual_tokens"]["per_example"]["min"] > 0
    marker, _ = read_marker(Store(), f"{run_uri}/tokenize")
    files = [run_uri / "tokenize" / file.name for shard in marker.shards for file in shard.files]
    assert sum(example.image is None for example in Examples(files)) == 4
    page = (run_uri / "tokenize/report.html").read_text()
    assert page.count(" · by text alone") == 4
    assert "ask by text alone, without an image" in page


def test_evaluate_asks_them_without_an_image_and_says_so(chain: Any) -> None:
    _, reports = chain
    report = reports["evaluate"]
    counted = {name: report["samples"][name] for name in ("split", "rows", "images", "by_text", "left_out")}
    assert counted == {"split": "test", "rows": 4, "images": 2, "by_text": 2, "left_out": 0}
    asked = {row["key"]: row["figures"]["malformed"]["rows"] for row in report["results"]}
    assert asked == {
        f"{model}-{condition}": 4 if condition == "real" else 2
        for model in ("base", "tuned")
        for condition in ("real", "blank", "shuffled")
    }
