"""Drawn scenes learned in three ways of answering, to an evaluation that asks in all of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fakes.stages import stage
from tests.training.toy import *  # noqa: F403  (fixtures)


@pytest.mark.chain
def test_what_is_learned_in_three_ways_is_asked_in_all_of_them(
    tmp_path: Path, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import convert, distill, evaluate, tokenize, train

    for name in [name for name in os.environ if name.startswith("VCOT_")]:
        monkeypatch.delenv(name)
    run_uri, ways = tmp_path / "run", ["direct", "reason", "ground"]
    stage(convert.ConvertSettings, convert.run, run_uri, source="scenes", scenes=16, validation_share=0.25)
    rows = stage(distill.DistillSettings, distill.run, run_uri)["row_counts"]["kept"]
    report = stage(
        tokenize.TokenizeSettings, tokenize.run, run_uri, base_uri=toy_base, max_pixels=112 * 112, max_length=512,
        learn=",".join(ways),
    )  # fmt: skip
    assert report["ways"]["direct"] == sum(report["examples"].values()) / 3 == rows
    report = stage(
        train.TrainSettings, train.run, run_uri, base_uri=toy_base, tune="lora", lora_r=4, dtype="float32", max_steps=2,
        batch_tokens=2048, gradient_accumulation_steps=1, report_to="none", device="cpu",
    )  # fmt: skip
    assert report["train_samples"] + report["validation_samples"] == rows
    assert report["contract"]["ways"] == ways
    report = stage(
        evaluate.EvaluateSettings, evaluate.run, run_uri, dtype="float32", max_new_tokens=4, max_unusable_share=1.0,
        device="cpu",
        conditions="real",
    )  # fmt: skip
    assert [row["way"] for row in report["ways"]] == ways
