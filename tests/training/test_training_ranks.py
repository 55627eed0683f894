"""Several ranks learn what one with a larger batch would, stop together, and go on together. On gloo, on processors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.training.toy import examples, tokenized
from vcot.storage import Store

ROOT = Path(__file__).parents[2]

SMALL = {
    "R": "4", "TUNE": "lora", "OPTIMISER": "adamw_torch_fused", "DTYPE": "float32", "ACCUMULATION": "2",
    "LEARNING_RATE": "1e-3", "EPOCHS": "2", "EVAL_EVERY": "3", "SAVE_EVERY": "2", "REPORT_TO": "none",
}  # fmt: skip
PLAIN = {"DROPOUT": "0", "NEFTUNE": "0"}


def start(run_uri: Path, base: Path, changes: Mapping[str, str], **environment: str) -> subprocess.Popen[str]:
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("VCOT_", "PET_"))}
    given = {f"VCOT_TRAIN_{name}": value for name, value in (SMALL | dict(changes)).items()}
    given |= {"VCOT_RUN_URI": str(run_uri), "VCOT_TRAIN_BASE_URI": str(base), "OMP_NUM_THREADS": "1"}
    given |= {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.train"], cwd=ROOT, env=clean | given | environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def run(run_uri: Path, base: Path, changes: Mapping[str, str], **environment: str) -> list[dict[str, Any]]:
    code, said = end(start(run_uri, base, changes, **environment))
    assert code == 0, said
    return losses(run_uri)


def losses(run_uri: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run_uri / "train/losses.json").read_text())
    return found


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]], within: float) -> None:
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=within)


@pytest.fixture(scope="module")
def one(toy_base: Path, toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank with batches of four; the last of an epoch holds a single example."""
    folder = tmp_path_factory.mktemp("ranks") / "one"
    tokenized(str(folder), toy_encoder, examples(toy_encoder, 9, 3))
    run(folder, toy_base, PLAIN | {"BATCH_SIZE": "4"})
    return folder


def beside(one: Path, name: str) -> Path:
    """A run of its own on the same examples."""
    folder = one.parent / name
    folder.mkdir()
    (folder / "tokenize").symlink_to(one / "tokenize")
    return folder


def test_two_ranks_learn_what_one_with_twice_the_batch_does(one: Path, toy_base: Path) -> None:
    two = beside(one, "two")
    word = two / "word"
    found = run(two, toy_base, PLAIN | {"BATCH_SIZE": "2", "NPROC": "2"}, VCOT_TERMINATION_LOG=str(word))
    expected = losses(one)
    assert [line["step"] for line in expected] == [1, 2, 3, 4]
    assert len([line for line in expected if "eval_loss" in line]) == 2
    assert_same(found, expected, 1e-5)
    said = json.loads(word.read_text())
    assert said["steps"] == 4
    assert said["last_loss"] == found[-1]["loss"]
    mark = json.loads((two / "train/_done/stage.json").read_text())
    assert mark["facts"]["ranks"] == 2


def test_two_pods_with_a_rank_each_are_the_same(one: Path, toy_base: Path) -> None:
    """As an operator starts them: PET_* alone; the second pod writes nothing and ends well too."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pods = beside(one, "pods")
    world = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port}
    both = [start(pods, toy_base, PLAIN | {"BATCH_SIZE": "2"}, **world, PET_NODE_RANK=str(node)) for node in (0, 1)]
    for code, said in [end(process) for process in both]:
        assert code == 0, said
    assert_same(losses(pods), losses(one), 1e-5)
    assert len(list((pods / "train/checkpoints").glob("step-000004-*"))) == 1


def test_four_bits_and_an_8_bit_optimiser_are_what_they_are_for_one(one: Path, toy_base: Path) -> None:
    recipe = PLAIN | {"TUNE": "qlora", "OPTIMISER": "adamw_8bit", "MAX_STEPS": "3"}
    alone = run(beside(one, "one-qlora"), toy_base, recipe | {"BATCH_SIZE": "4"})
    found = run(beside(one, "two-qlora"), toy_base, recipe | {"BATCH_SIZE": "2", "NPROC": "2"})
    assert_same(found, alone, 1e-4)


def test_stopped_together_they_save_and_go_on_to_the_same_losses(one: Path, toy_base: Path) -> None:
    """With dropout and noise: each rank draws its own, and after a stop the same again."""
    recipe = {"BATCH_SIZE": "2", "NPROC": "2", "EPOCHS": "5", "SAVE_EVERY": "100", "EVAL_EVERY": "100"}
    calm = run(beside(one, "calm"), toy_base, recipe)
    stormy = beside(one, "stormy")
    process = start(stormy, toy_base, recipe | {"SAVE_EVERY": "1"})
    wait_for_a_checkpoint(stormy, process)
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == 143, said
    assert "stopped as asked" in said
    assert not (stormy / "train/_done").exists()

    one_alone = start(stormy, toy_base, recipe | {"NPROC": "1"})
    code, said = end(one_alone)
    assert code == 78
    assert "begun by 2 ranks and cannot go on with 1" in said

    assert run(stormy, toy_base, recipe) == calm


def test_a_rank_alone_with_bad_input_ends_the_stage_with_its_code(
    one: Path, toy_base: Path, toy_encoder: Any, tmp_path: Path
) -> None:
    """The other waits for it in the middle of a step, and is ended."""
    made = examples(toy_encoder, 8)
    grid = made[3].image_grid
    assert grid is not None
    tokenized(str(tmp_path), toy_encoder, [*made[:3], replace(made[3], image_grid=(1, grid[2] * 2, grid[1] // 2))])
    begun = time.monotonic()
    code, said = end(start(tmp_path, toy_base, {"BATCH_SIZE": "1", "NPROC": "2", "EPOCHS": "9"}))
    assert code == 65, said
    assert "run tokenize again" in said.splitlines()[-1]
    assert "of 2: example train-1#1" in said.splitlines()[-1]
    assert time.monotonic() - begun < 120


def wait_for_a_checkpoint(run_uri: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        if any(entry.uri.endswith("manifest.json") for entry in Store().list(str(run_uri / "train/checkpoints"))):
            return
        time.sleep(0.05)
    pytest.fail(f"it ended by itself: {process.communicate()}")
