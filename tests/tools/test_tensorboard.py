"""Event files of a training come out of storage as TensorBoard reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tools.tensorboard import TensorBoardSettings, fetch_events
from vcot.errors import InputError
from vcot.storage import Store, join, put_folder

ROOT = Path(__file__).parents[2]
store = Store()


def write_events(folder: Path, losses: dict[int, float]) -> None:
    with SummaryWriter(str(folder)) as writer:  # type: ignore[no-untyped-call]
        for step, loss in losses.items():
            writer.add_scalar("train/loss", loss, step)  # type: ignore[no-untyped-call]


def read_losses(folder: Path) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def test_event_files_of_two_attempts_are_fetched(moto_place: str, tmp_path: Path) -> None:
    train = join(moto_place, "runs", "first", "train")
    write_events(tmp_path / "a", {1: 2.5, 2: 2.25})
    put_folder(store, tmp_path / "a", join(train, "tensorboard"))
    folder = fetch_events(store, train, tmp_path / "here")
    assert read_losses(folder) == {1: 2.5, 2: 2.25}
    write_events(tmp_path / "a", {3: 2.0})  # the same training, started again
    put_folder(store, tmp_path / "a", join(train, "tensorboard"))
    assert read_losses(fetch_events(store, train, tmp_path / "here")) == {1: 2.5, 2: 2.25, 3: 2.0}


def test_training_without_event_files_is_refused(moto_place: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no event files\. train writes them with --report-to tensorboard"):
        fetch_events(store, join(moto_place, "runs", "gone", "train"), tmp_path)


@pytest.mark.parametrize("uri", ["s3://b/runs/first", "s3://b/runs/first/", "s3://b/runs/first/train"])
def test_run_and_train_stage_name_the_same_files(uri: str) -> None:
    settings = TensorBoardSettings.of({"run_uri": uri})
    assert (settings.train_uri, settings.run_name) == ("s3://b/runs/first/train", "first")


def test_command_fetches_into_the_folder_of_the_run(moto_place: str, tmp_path: Path) -> None:
    run = join(moto_place, "runs", "first")
    write_events(tmp_path / "a", {1: 2.5})
    put_folder(store, tmp_path / "a", join(run, "train", "tensorboard"))
    command = [sys.executable, "-m", "tools.tensorboard", "--run-uri", run, "--fetch-only"]
    command += ["--local-folder", str(tmp_path / "local")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VCOT_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert read_losses(tmp_path / "local" / "tensorboard" / "first") == {1: 2.5}
