"""Several ranks learn what one with a larger batch would, also where they stop and go on. On gloo, on processors."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from tests.training.toy import examples, tokenized
from vcot.errors import SettingsError
from vcot.storage import Store

ROOT = Path(__file__).parents[2]

SMALL = {
    "lora_r": "4", "tune": "qlora", "optim": "adamw_8bit", "dtype": "float32", "gradient_accumulation_steps": "2",
    "num_train_epochs": "3",
    "learning_rate": "1e-3", "eval_steps": "3", "save_steps": "1", "report_to": "none", "lora_dropout": "0",
    "neftune_noise_alpha": "0",
}  # fmt: skip


def start(run_uri: Path, base: Path, **environment: str) -> subprocess.Popen[str]:
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("VCOT_", "PET_"))}
    given = {
        f"VCOT_TRAIN_{name.upper()}": value for name, value in (SMALL | {"per_device_train_batch_size": "2"}).items()
    }
    given |= {"VCOT_RUN_URI": str(run_uri), "VCOT_TRAIN_BASE_URI": str(base), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.train"], cwd=ROOT, env=clean | given | {"CUDA_VISIBLE_DEVICES": ""} | environment,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def alone(run_uri: Path, base: Path, **changes: str) -> None:
    """One rank, in this process."""
    given = SMALL | {"run_uri": str(run_uri), "base_uri": str(base), "device": "cpu"} | changes
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    train.run(train.TrainSettings.load(flags)[0])


def losses(run_uri: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run_uri / "train/losses.json").read_text())
    return found


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.fixture(scope="module")
def one(toy_base: Path, toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank with batches of four; the last of an epoch holds a single example."""
    folder = tmp_path_factory.mktemp("ranks") / "one"
    tokenized(str(folder), toy_encoder, examples(toy_encoder, 9, 3))
    alone(folder, toy_base, per_device_train_batch_size="4")
    return folder


def beside(one: Path, name: str) -> Path:
    """A run of its own on the same examples."""
    folder = one.parent / name
    folder.mkdir()
    (folder / "tokenize").symlink_to(one / "tokenize")
    return folder


def test_two_ranks_that_are_stopped_and_go_on_learn_what_one_with_twice_the_batch_does(
    one: Path, toy_base: Path
) -> None:
    """In 4 bits, with an optimiser of 8."""
    two = beside(one, "two")
    word = {"VCOT_TERMINATION_LOG": str(two / "word"), "VCOT_TRAIN_NPROC_PER_NODE": "2"}
    process = start(two, toy_base, **word)
    wait_for_a_checkpoint(two, process)
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == 143, said
    assert "stopped as asked" in said
    assert not (two / "train/_done").exists()
    with pytest.raises(SettingsError, match="begun by 2 ranks and cannot go on with 1"):
        alone(two, toy_base, per_device_train_batch_size="2")
    code, said = end(start(two, toy_base, **word))
    assert code == 0, said
    assert [line["step"] for line in losses(one)] == [1, 2, 3, 4, 5, 6]
    assert_same(losses(two), losses(one))
    told = json.loads((two / "word").read_text())
    assert (told["steps"], told["last_loss"]) == (6, losses(two)[-1]["loss"])
    assert json.loads((two / "train/_done/stage.json").read_text())["facts"]["ranks"] == 2


def test_two_pods_with_a_rank_each_are_the_same(one: Path, toy_base: Path) -> None:
    """As an operator starts them: PET_* alone; the second pod writes nothing and ends well too."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pods = beside(one, "pods")
    world = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
    both = [start(pods, toy_base, **world, PET_NODE_RANK=str(node)) for node in (0, 1)]
    for code, said in [end(process) for process in both]:
        assert code == 0, said
    assert_same(losses(pods), losses(one))
    assert len(list((pods / "train/checkpoints").glob("step-000006-*"))) == 1


def test_each_rank_draws_its_own_dropout_and_after_a_stop_the_same_again() -> None:
    import torch

    from vcot.training.ranks import Group

    def draw(rank: int, step: int) -> list[float]:
        torch.rand(7)  # wherever the generator was
        Group(rank, rank, 2).reseed(3, step)
        return list(torch.rand(4).tolist())

    assert draw(0, 5) == draw(0, 5)
    assert len({tuple(draw(rank, step)) for rank in (0, 1) for step in (5, 6)}) == 4


def wait_for_a_checkpoint(run_uri: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if any(entry.uri.endswith("manifest.json") for entry in Store().list(str(run_uri / "train/checkpoints"))):
            return
        time.sleep(0.05)
    pytest.fail(f"it ended by itself: {process.communicate()}")
