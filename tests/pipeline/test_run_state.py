"""What an orchestrator learns of a run from storage, and not from pods: how many shards, what is whole, how it went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.tokenize import TokenizeSettings
from jobs.train import TrainSettings
from jobs.train import run as run_train
from tests.fakes.markers import shard_marker, stage_marker
from vcot.errors import InputError, NotWhole, SettingsError
from vcot.pipeline.orchestrator import Step
from vcot.pipeline.run_state import RunStorage
from vcot.records.shards import CONVERT, DISTILL, TOKENIZE, TRAIN, Folder, read_marker
from vcot.storage import Store, join

STORAGE = RunStorage(Store())


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(tmp_path / "runs/r1")


def prepared(run: str, stage: str, **settings: Any) -> Step:
    """What prepare has written down."""
    Store().write(join(run, stage, "settings.json"), json.dumps({"all_settings": settings}).encode())
    return Step(stage, run, {}, (), "shards")


def test_shards_are_as_many_as_the_settings_say_or_the_stage_before_has_made(run: str, tmp_path: Path) -> None:
    other = str(tmp_path / "runs/other")
    for place, stage, kind, count in ((run, "convert", CONVERT, 3), (other, "distill", DISTILL, 5)):
        shards = [shard_marker(stage, number) for number in range(count)]
        Folder(Store(), place, kind).finish(stage_marker(stage, shards=shards))
    assert STORAGE.shards(prepared(run, "distill", input_uri=None)) == 3
    assert STORAGE.shards(prepared(run, "tokenize", input_uri=join(other, "distill"))) == 5
    assert STORAGE.shards(prepared(run, "convert", num_shards=7)) == 7


def test_settings_that_are_damaged_are_named(run: str) -> None:
    step = prepared(run, "convert")
    Store().write(join(run, "convert", "settings.json"), b'{"all')
    with pytest.raises(InputError, match=r"convert/settings\.json is damaged"):
        STORAGE.shards(step)


@pytest.fixture
def trained(run: str, tmp_path: Path) -> tuple[Step, dict[str, str]]:
    """A training that has begun, and the variables that its Job would see."""
    store, base = Store(), str(tmp_path / "base")
    Folder(store, run, TOKENIZE).finish(stage_marker("tokenize"))
    _, inputs = read_marker(store, join(run, "tokenize"))
    Folder(store, run, TRAIN).begin(TrainSettings.of({"run_uri": run, "base_uri": base}), inputs)
    return Step("train", run, {}, ()), {"VCOT_RUN_URI": run, "VCOT_TRAIN_BASE_URI": base}


def test_a_stage_is_whole_when_its_marker_is_there_and_says_itself_how_it_would_end(run: str, trained) -> None:
    assert STORAGE.look(*trained) is None
    Folder(Store(), run, TRAIN).finish(stage_marker("train"))
    outcome = STORAGE.look(*trained)
    assert outcome is not None
    assert (outcome.exit_code, outcome.summary["last_loss"]) == (0, 1.0)
    step, variables = trained
    outcome = STORAGE.look(step, variables | {"VCOT_TRAIN_NUM_TRAIN_EPOCHS": "9"})
    assert outcome is not None
    assert outcome.exit_code == SettingsError.exit_code
    assert "belongs to a run with other settings: num_train_epochs was 2.0 and is now 9.0" in outcome.said


def test_a_stage_of_which_storage_cannot_say_whether_it_is_whole_gets_its_job(monkeypatch, trained) -> None:
    def refused(self: Store, uri: str) -> None:
        raise SettingsError("keys are refused")

    monkeypatch.setattr(Store, "stat", refused)
    assert STORAGE.look(*trained) is None


def test_a_stage_that_only_looks_begins_nothing(run: str, trained: tuple[Step, dict[str, str]]) -> None:
    before = sorted(entry.uri for entry in Store().list(run))
    settings = ["--run-uri", run, "--base-uri", trained[1]["VCOT_TRAIN_BASE_URI"], "--part", "look"]
    with pytest.raises(NotWhole, match="is not whole yet"):
        run_train(TrainSettings.load(settings)[0])
    assert sorted(entry.uri for entry in Store().list(run)) == before
    with pytest.raises(SettingsError, match="--part=look: tokenize cannot say it of itself"):
        TokenizeSettings.load(settings)


def test_the_state_of_a_run_stands_beside_its_stages(run: str) -> None:
    assert STORAGE.state(run) is None
    STORAGE.write(run, '{"end": null}')
    STORAGE.write(run, '{"end": {"exit": 0}}')
    assert json.loads(Store().read(join(run, "pipeline/state.json"))) == {"end": {"exit": 0}}
    assert STORAGE.state(run) == '{"end": {"exit": 0}}'
