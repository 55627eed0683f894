"""The chain's command on this computer: in which order it validates, starts and stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.pipeline import PipelineSettings, plans_here, run
from vcot.errors import SettingsError, StageFailed
from vcot.pipeline import local
from vcot.pipeline.orchestrator import Plan

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder. The S3 server is a program that leaves a note there when it is started, and fails."""
    server = tmp_path / "programs" / "minio"
    server.parent.mkdir()
    server.write_text(f"#!/bin/sh\ntouch {tmp_path}/here/started\nexit 1\n")
    server.chmod(0o755)
    monkeypatch.setenv("MINIO", str(server))
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def pipeline(place: Path, *flags: str) -> None:
    given = ["--example", str(ROOT / "examples/blood-cells"), "--base", str(ROOT / "examples/rehearsal")]
    run(PipelineSettings.load([*given, "--local-folder", str(place / "local"), *flags])[0])


def elsewhere(place: Path) -> tuple[str, ...]:
    return ("--server", "none", "--runs-uri", str(place / "storage" / "runs"))


def test_wrong_settings_of_a_late_stage_end_the_run_before_anything_is_started_or_stored(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "validate", lambda stage, variables: ["wrong"] if stage == "evaluate" else [])
    for flags in ((), elsewhere(place)):
        with pytest.raises(SettingsError, match="wrong"):
            pipeline(place, *flags)
        assert list(place.iterdir()) == []
    monkeypatch.setattr(local, "validate", lambda stage, variables: [])
    with pytest.raises(SettingsError, match="the S3 server did not start"):
        pipeline(place)
    assert (place / "started").exists()  # what the look above must not see can be seen


def test_a_stage_is_started_with_its_variables_when_what_it_reads_is_stored_and_its_failure_ends_the_run(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VCOT_CONVERT_INPUT_URI", "/no/such/file.json")
    with pytest.raises(StageFailed, match=r"convert failed with exit code 65|convert failed with exit code 78"):
        pipeline(place, *elsewhere(place), "--until", "convert")
    assert (place / "storage/examples/blood-cells/instances.json").exists()


def test_a_training_from_rewards_begins_with_a_run_that_imitates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings/train.env").write_text("VCOT_TRAIN_TUNE=lora\nVCOT_TRAIN_LEARNING_RATE=1e-3\n")
    (tmp_path / "settings/train-grpo.env").write_text("VCOT_TRAIN_LEARNING_RATE=1e-5\n")
    (tmp_path / "settings/convert-grpo.env").write_text("VCOT_CONVERT_LIMIT=5\n")
    monkeypatch.setenv("VCOT_TRAIN_METHOD", "grpo")
    monkeypatch.setenv("VCOT_TRAIN_MAX_STEPS", "7")

    def planned(*flags: str) -> list[Plan]:
        settings = PipelineSettings.load(["--run-id", "boards", "--runs-uri", "/runs", *flags])[0]
        return plans_here(settings, [tmp_path / "settings"], {})

    first, second = planned()
    assert [(step.stage, step.run_uri) for step in first.steps] == [
        (stage, "/runs/boards-sft") for stage in ("convert", "distill", "tokenize", "train")
    ]
    assert first.steps[0].variables == {"VCOT_CONVERT_LIMIT": "5"}
    assert first.steps[-1].variables == {"VCOT_TRAIN_TUNE": "lora", "VCOT_TRAIN_LEARNING_RATE": "1e-3"}
    train, evaluate = second.steps
    assert train.variables == {
        "VCOT_TRAIN_TUNE": "lora", "VCOT_TRAIN_LEARNING_RATE": "1e-5", "VCOT_TRAIN_METHOD": "grpo",
        "VCOT_TRAIN_MAX_STEPS": "7", "VCOT_TRAIN_INPUT_URI": "/runs/boards-sft/tokenize",
    }  # fmt: skip
    assert evaluate.variables["VCOT_EVALUATE_SAMPLES_URI"] == "/runs/boards-sft/convert"
    (alone,) = planned("--from-run", "other:tokenize")
    assert alone.steps[0].variables["VCOT_TRAIN_INPUT_URI"] == "/runs/other/tokenize"
