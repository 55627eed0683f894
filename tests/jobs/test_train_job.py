"""python -m jobs.train as a process: what it refuses, what it leaves, and what a kill does to it (nothing)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.toy import *  # noqa: F403  (fixtures)
from tests.training.toy import examples, tokenized
from vcot.storage import Store, join, put_folder

ROOT = Path(__file__).parents[2]

SMALL = {
    "R": "4", "DTYPE": "float32", "BATCH_SIZE": "2", "ACCUMULATION": "2", "EPOCHS": "4", "LEARNING_RATE": "1e-3",
    "EVAL_EVERY": "5", "SAVE_EVERY": "2",
}  # fmt: skip


def start(run_uri: str, base: str, scratch: Path, changes: Mapping[str, str] | None = None, *flags: str) -> Any:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VCOT_")}
    given = {f"VCOT_TRAIN_{name}": value for name, value in (SMALL | dict(changes or {})).items()}
    scratch.mkdir(exist_ok=True)
    given |= {"VCOT_RUN_URI": run_uri, "VCOT_TRAIN_BASE_URI": base, "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.train", *flags], cwd=ROOT, env=clean | given, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def end(process: Any) -> tuple[int, str]:
    said = "".join(process.communicate(timeout=600))
    return process.returncode, said


def check(*flags: str) -> tuple[int, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VCOT_")}
    answer = subprocess.run(
        [sys.executable, "-m", "jobs.train", "--check", "--run-uri", "x", "--base-uri", "y", *flags],
        cwd=ROOT, env=clean, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return answer.returncode, answer.stdout + answer.stderr


def wait_for(place: str, count: int, process: Any) -> None:
    """Until so many checkpoints are whole."""
    store = Store()
    while process.poll() is None:
        found = [entry for entry in store.list(join(place, "train/checkpoints")) if entry.uri.endswith("manifest.json")]
        if len(found) >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"it ended by itself: {process.communicate()}")


def read(place: str, name: str) -> Any:
    return json.loads(Store().read(join(place, "train", name)))


# --- judged without torch -------------------------------------------------------------------------------


def test_the_settings_of_the_recipe_are_in_order() -> None:
    assert check() == (0, "train: settings are in order\n")
    assert check("--tune", "qlora", "--dtype", "float32")[0] == 0  # 4 bits on a processor are fine


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--method", "grpo"], "--method=grpo: this method is not there yet; sft is"),
        (["--method", "gfn"], "--method=gfn: this method is not there yet; sft is"),
        (["--batch-size", "0"], "--batch-size=0: input should be greater than 0"),
        (
            ["--report-to", "foo"],
            "--report-to=foo: no such tracker: foo; there are tensorboard, wandb, mlflow, or none",
        ),
        (["--report-to", "none,tensorboard"], "no such tracker: none"),
        (["--report-to", "mlflow"], "not installed here: mlflow"),
        (["--warmup", "30", "--max-steps", "20"], "--warmup=30 steps leaves nothing of --max-steps=20"),
        (["--warmup", "1.5"], "--warmup=1.5 is neither a share below 1 nor a whole number of steps"),
        (["--part", "finish"], "train is not made of shards"),
        (["--part", "shards", "--shard", "0"], "train is not made of shards"),
        (["--dropout", "1"], "--dropout=1: input should be less than 1"),
        (["--tune", "full", "--r", "8"], "--r: --tune full has no adapters; leave it out, or choose --tune lora or"),
        (["--tune", "full", "--alpha", "128", "--dropout", "0"], "--alpha, --dropout: --tune full has no adapters"),
    ],
)
def test_wrong_settings_get_one_line_and_78(flags: list[str], line: str) -> None:
    if "mlflow" in flags and __import__("importlib.util").util.find_spec("mlflow"):
        pytest.skip("mlflow is installed")
    code, said = check(*flags)
    assert code == 78
    assert line in said
    assert len(said.splitlines()) == 1


def test_input_that_is_not_there_is_named(tmp_path: Path) -> None:
    code, said = end(start(str(tmp_path / "runs/a"), "base", tmp_path / "t"))
    assert code == 65
    assert f"{tmp_path}/runs/a/tokenize is not a finished stage" in said


# --- with the rehearsal base ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calm(toy_base: Path, toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run in a folder."""
    folder = tmp_path_factory.mktemp("runs") / "calm"
    tokenized(str(folder), toy_encoder, examples(toy_encoder, 10, 3))
    code, said = end(start(str(folder), str(toy_base), folder.parent / "scratch"))
    assert code == 0, said
    return folder


def test_a_run_leaves_a_model_and_what_a_server_must_know(calm: Path, toy_base: Path) -> None:
    mark = read(str(calm), "_done/stage.json")
    facts = mark["facts"]
    model = calm / "train" / facts["model"]
    assert facts["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in model.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "contract.json", "tokenizer.json"} <= facts[
        "files"
    ].keys()
    told = json.loads((model / "contract.json").read_text())
    assert told["contract"]["frame"]["name"] == "thousandths"
    assert told["base"] == {"uri": str(toy_base), "sha256": facts["base_sha256"]}
    assert json.loads((model / "adapter_config.json").read_text())["base_model_name_or_path"] == str(toy_base)
    assert json.loads((model / "processor_config.json").read_text())["image_processor"]["size"]["longest_edge"] == 12544
    losses = read(str(calm), "losses.json")
    assert [line["step"] for line in losses] == list(range(1, 13))  # 10 samples, 4 a step: 3 steps, 4 epochs
    assert [line["step"] for line in losses if "eval_loss" in line] == [5, 10, 12]
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert facts["losses"]["best_eval_loss"] == min(line["eval_loss"] for line in losses if "eval_loss" in line)
    assert (calm / "train/losses.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((calm / "train/tensorboard").iterdir())) == 1
    assert read(str(calm), "report.json")["this_process"]["tokens"] > 0
    pickles = [path for path in calm.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    assert not pickles


def test_the_model_that_is_left_has_learned_the_examples(calm: Path, toy_base: Path, toy_encoder: Any) -> None:
    import torch

    from tests.training.toy import write_examples
    from vcot.models import load_adapter, load_base
    from vcot.records.example import Examples
    from vcot.training.lessons import Collate, Lessons
    from vcot.training.loss import loss_sum

    learned = Examples([write_examples(calm.parent / "again.parquet", examples(toy_encoder, 10))])
    lessons = Lessons(learned, toy_encoder, cache_bytes=0)
    batch = Collate(toy_encoder.pad_token_id)([lessons[row] for row in range(len(lessons))])
    with torch.no_grad():
        before = loss_sum(load_base(toy_base, quantisation="nf4", dtype="float32"), batch)
        base = load_base(toy_base, quantisation="nf4", dtype="float32")
        after = loss_sum(load_adapter(base, calm / "train/model"), batch)
    assert after < 0.9 * before


def test_a_finished_run_says_so_and_trains_nothing(calm: Path, toy_base: Path) -> None:
    begun = time.monotonic()
    code, said = end(start(str(calm), str(toy_base), calm.parent / "scratch"))
    assert code == 0
    assert "nothing left to do" in said
    code, said = end(start(str(calm), str(toy_base), calm.parent / "scratch", {"R": "8"}))
    assert code == 78
    assert "r was 4 and is now 8" in said
    assert time.monotonic() - begun < 60


def test_a_finished_run_whose_examples_were_made_again_is_not_called_whole(calm: Path, toy_base: Path) -> None:
    mark = calm / "tokenize/_done/stage.json"
    there = mark.read_bytes()
    try:
        mark.write_bytes(there + b" ")
        code, said = end(start(str(calm), str(toy_base), calm.parent / "scratch"))
    finally:
        mark.write_bytes(there)
    assert code == 65
    assert f"{mark} has changed since {calm}/train was begun" in said


def test_killed_and_stopped_and_damaged_it_ends_with_the_same_losses(
    calm: Path, toy_base: Path, toy_encoder: Any, moto_place: str, tmp_path: Path
) -> None:
    """kill -9, then SIGTERM, then a checkpoint that loses its bytes; in a bucket, the base too."""
    base_uri = join(moto_place, "base")
    put_folder(Store(), toy_base, base_uri)
    tokenized(moto_place, toy_encoder, examples(toy_encoder, 10, 3))

    process = start(moto_place, base_uri, tmp_path / "first")
    wait_for(moto_place, 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    assert end(process)[0] == -signal.SIGKILL

    process = start(moto_place, base_uri, tmp_path / "second")
    wait_for(moto_place, 3, process)
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == 143, said
    assert re.search(r"going on from a checkpoint.*step=4", said)
    assert "stopped as asked" in said

    manifests = sorted(e.uri for e in Store().list(join(moto_place, "train")) if e.uri.endswith("manifest.json"))
    newest = manifests[-1].removesuffix("manifest.json")
    Store().write(newest + "weights.safetensors", b"half of it")
    code, said = end(start(moto_place, base_uri, tmp_path / "third"))
    assert code == 0, said
    assert "a damaged checkpoint is passed over" in said
    assert read(moto_place, "losses.json") == read(str(calm), "losses.json")
    ours, theirs = (read(place, "_done/stage.json")["facts"]["files"] for place in (moto_place, str(calm)))
    assert ours["adapter_model.safetensors"] == theirs["adapter_model.safetensors"]
    assert not list((tmp_path / "second").glob("train-*"))  # stopped and finished ones clean up behind themselves
    assert not list((tmp_path / "third").glob("train-*"))


def test_a_base_that_the_examples_were_not_made_for_is_refused(
    toy_base: Path, toy_encoder: Any, tmp_path: Path
) -> None:
    from vcot.records.shards import Folder, StageMark

    place = str(tmp_path / "run")
    tokenized(place, toy_encoder, examples(toy_encoder, 2))
    mark = Path(place) / "tokenize/_done/stage.json"
    told = json.loads(mark.read_text())
    told["facts"]["contract"]["template_sha256"] = "0" * 64
    told["facts"]["contract"]["merge_size"] = 4
    mark.unlink()
    Folder(Store(), place, "tokenize").finish(StageMark.model_validate(told))
    code, said = end(start(place, str(toy_base), tmp_path / "t"))
    assert code == 65
    assert "the examples were not made for this base" in said
    assert "template_sha256" in said
    assert "merge_size is 2 here, 4 in the examples" in said


@pytest.mark.parametrize("gpus", ["0", "0,1"])
def test_an_unusable_gpu_ends_it_at_once(
    gpus: str, toy_base: Path, toy_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs that CUDA is said to have and that torch cannot use, as behind a driver that is too old."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU that works")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    run_uri = str(tmp_path / "run")
    tokenized(run_uri, toy_encoder, examples(toy_encoder, 2))
    code, said = end(start(run_uri, str(toy_base), tmp_path / "scratch"))
    assert code == 78
    assert "found a GPU or its driver, and torch cannot use it" in said
    assert not (tmp_path / "run" / "train").exists()


def test_a_truncated_shard_of_examples_is_refused(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    tokenized(place, toy_encoder, examples(toy_encoder, 2))
    shard = sorted((tmp_path / "run/tokenize/shards").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-20])
    code, said = end(start(place, str(toy_base), tmp_path / "t"))
    assert code == 65
    assert f"{shard.name} is not what its mark says" in said
    assert "Traceback" not in said
