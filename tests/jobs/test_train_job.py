"""python -m jobs.train: what it refuses, what it leaves, and what a stop or damage does to it (nothing)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.train import TrainSettings, run
from tests.fakes.markers import stage_marker
from tests.training.toy import *  # noqa: F403  (fixtures)
from tests.training.toy import drawn, encoder_of, examples, loss_sum, tokenized, write_examples
from vcot.errors import InputError, Interrupted, SettingsError
from vcot.records.metadata import DistillShardMetadata
from vcot.records.shards import DISTILL, TOKENIZE, Folder, JsonLines, ShardWriter, read_marker
from vcot.stage import stop
from vcot.storage import Store, join, put_folder

ROOT = Path(__file__).parents[2]

SMALL = {
    "lora_r": "4", "dtype": "float32", "batch_tokens": "180", "gradient_accumulation_steps": "2",
    "num_train_epochs": "3", "learning_rate": "1e-3", "lora_dropout": "0", "neftune_noise_alpha": "0",
    "eval_steps": "4", "save_steps": "2", "device": "cpu",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("VCOT_", "PET_"))]:
        monkeypatch.delenv(name)


def train(run_uri: Path | str, base: Path | str, **changes: str) -> None:
    """In this process; what it raises has the exit code."""
    given = SMALL | {"run_uri": str(run_uri), "base_uri": str(base)} | changes
    run(TrainSettings.load([word for name, v in given.items() for word in (f"--{name.replace('_', '-')}", v)])[0])


def train_until_the_first_checkpoint(run_uri: Path | str, base: Path | str) -> None:
    """Then SIGTERM comes."""
    from vcot.training.checkpoints import Checkpoints

    plainly = Checkpoints.save

    def save(self: Checkpoints, *args: Any) -> None:
        plainly(self, *args)
        if not stop.requested:
            stop.request(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        try:
            with pytest.raises(Interrupted, match="stopped as asked; step 3 of 6 is done"):
                train(run_uri, base)
        finally:
            stop._asked.clear()
            stop.signal = None


def read(place: Path | str, name: str) -> Any:
    return json.loads(Store().read(join(str(place), "train", name)))


# --- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--beta", "0.1"], "--beta (or VCOT_TRAIN_BETA): --method sft does not look at it, --method grpo does"),
        (["--method", "grpo", "--rewards", "anwser=1"], "--rewards=anwser=1: no such reward: anwser; did you mean"),
        (["--method", "grpo", "--epsilon-high", "0.1"], "--epsilon-high=0.1 is less than --epsilon=0.2"),
        (
            ["--method", "grpo", "--importance-sampling-level", "sequence"],
            "--importance-sampling-level sequence with --loss-type dapo weighs replies by their length",
        ),
        (["--method", "grpo", "--lora-dropout", "0.1"], "--lora-dropout=0.1: replies are drawn and judged without"),
        (["--method", "grpo", "--packing", "on"], "--packing on: replies are padded; leave it out"),
        (
            ["--method", "gfn", "--tune", "full"],
            "--tune full with --method gfn: rewards are what the model finds likely",
        ),
        (["--batch-tokens", "0"], "--batch-tokens=0: input should be greater than 0"),
        (["--parallel", "fsdp"], "--parallel fsdp: weights in 4 bits are not divided; choose --tune lora"),
        (["--report-to", "none,foo"], "no such tracker: none, foo; there are tensorboard, wandb, mlflow, or none"),
        (["--report-to", "mlflow"], "not installed here: mlflow"),
        (["--warmup-steps", "30", "--max-steps", "20"], "--warmup-steps=30 steps leaves nothing of --max-steps=20"),
        (["--warmup-steps", "1.5"], "--warmup-steps=1.5 is neither a share below 1 nor a whole number of steps"),
        (["--part", "shards", "--shard", "0"], "train is not made of shards"),
        (
            ["--tune", "full", "--lora-alpha", "128", "--lora-dropout", "0"],
            "--lora-alpha, --lora-dropout: --tune full has no adapters",
        ),
    ],
)
def test_wrong_settings_get_one_line(flags: list[str], line: str) -> None:
    if "mlflow" in flags and __import__("importlib.util").util.find_spec("mlflow"):
        pytest.skip("mlflow is installed")
    with pytest.raises(SettingsError) as caught:
        TrainSettings.load(["--run-uri", "x", "--base-uri", "y", *flags])
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# --- with the rehearsal base ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calm(toy_base: Path, toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run in a folder."""
    folder = tmp_path_factory.mktemp("runs") / "calm"
    tokenized(str(folder), toy_encoder, examples(toy_encoder, 8, 2))
    train(folder, toy_base)
    return folder


def test_a_run_leaves_a_model_and_what_a_server_must_know(calm: Path, toy_base: Path) -> None:
    facts = read(calm, "_done/stage.json")["metadata"]
    model = calm / "train" / facts["model"]
    assert facts["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in model.iterdir()}
    wanted = {"adapter_model.safetensors", "adapter_config.json", "contract.json", "tokenizer.json"}
    assert wanted <= facts["files"].keys()
    told = json.loads((model / "contract.json").read_text())
    assert told["contract"]["frame"]["name"] == "thousandths"
    assert told["base"] == {"uri": str(toy_base), "sha256": facts["base_sha256"]}
    assert json.loads((model / "adapter_config.json").read_text())["base_model_name_or_path"] == str(toy_base)
    assert json.loads((model / "processor_config.json").read_text())["image_processor"]["size"]["longest_edge"] == 12544
    losses = read(calm, "losses.json")
    assert [line["step"] for line in losses] == list(range(1, 7))  # 8 samples, 4 a step: 2 steps, 3 epochs
    assert [line["step"] for line in losses if "eval_loss" in line] == [4, 6]
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert facts["losses"]["best_eval_loss"] == min(line["eval_loss"] for line in losses if "eval_loss" in line)
    assert (calm / "train/losses.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((calm / "train/tensorboard").iterdir())) == 1
    assert read(calm, "report.json")["this_process"]["tokens"] > 0
    assert not [path for path in calm.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]


def test_the_model_that_is_left_has_learned_the_examples(calm: Path, toy_base: Path, toy_encoder: Any) -> None:

    from vcot.models.loading import load_adapter, load_base
    from vcot.records.example import Examples
    from vcot.training.data import Collator, SFTDataset

    learned = Examples([write_examples(calm.parent / "again.parquet", examples(toy_encoder, 8))])
    dataset = SFTDataset(learned, toy_encoder, cache_bytes=0)
    batch = Collator(toy_encoder.pad_token_id)([dataset[row] for row in range(len(dataset))])
    base = load_base(toy_base, quantization="nf4", dtype="float32")
    with torch.no_grad():
        before = loss_sum(base, batch)
        after = loss_sum(load_adapter(base, calm / "train/model"), batch)
    assert after < 0.9 * before


def test_a_finished_run_trains_nothing_and_refuses_other_settings(
    calm: Path, toy_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.train._train", lambda *_: pytest.fail("it trains again"))
    train(calm, toy_base)
    with pytest.raises(SettingsError, match="r was 4 and is now 8"):
        train(calm, toy_base, lora_r="8")
    marker = calm / "tokenize/_done/stage.json"
    there = marker.read_bytes()
    try:
        marker.write_bytes(there + b" ")
        with pytest.raises(InputError, match=f"{marker} has changed since {calm}/train was begun"):
            train(calm, toy_base)
    finally:
        marker.write_bytes(there)


def test_stopped_and_damaged_it_ends_with_the_same_losses(
    calm: Path, toy_base: Path, toy_encoder: Any, moto_place: str, tmp_path: Path
) -> None:
    """SIGTERM, then a checkpoint that loses its bytes; in a bucket, the base too."""
    base_uri = join(moto_place, "base")
    put_folder(Store(), toy_base, base_uri)
    tokenized(moto_place, toy_encoder, examples(toy_encoder, 8, 2))
    train_until_the_first_checkpoint(moto_place, base_uri)
    manifests = sorted(e.uri for e in Store().list(join(moto_place, "train")) if e.uri.endswith("manifest.json"))
    assert len(manifests) == 2  # the second is that of the stop
    Store().write(manifests[-1].removesuffix("manifest.json") + "weights.safetensors", b"half of it")
    train(moto_place, base_uri)
    assert read(moto_place, "losses.json") == read(calm, "losses.json")
    ours, theirs = (read(place, "_done/stage.json")["metadata"]["files"] for place in (moto_place, calm))
    assert ours["adapter_model.safetensors"] == theirs["adapter_model.safetensors"]


def test_two_ranks_go_on_from_a_checkpoint_of_one_and_end_as_it_would_have(
    calm: Path, toy_base: Path, tmp_path: Path
) -> None:
    """The command that a pod runs: processes started by it, gloo, 4 bits with an optimiser of 8."""
    (tmp_path / "tokenize").symlink_to(calm / "tokenize")
    train_until_the_first_checkpoint(tmp_path, toy_base)
    given = SMALL | {"run_uri": str(tmp_path), "base_uri": str(toy_base), "nproc_per_node": "2"}
    flags = [word for name, v in given.items() for word in (f"--{name.replace('_', '-')}", v)]
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train", *flags], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "going on from a checkpoint" in done.stderr
    for mine, theirs in zip(read(tmp_path, "losses.json"), read(calm, "losses.json"), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    facts = read(tmp_path, "_done/stage.json")["metadata"]
    assert (facts["ranks"], facts["batches_per_step"]) == (2, 2)
    assert len(list(tmp_path.glob("train/checkpoints/step-000006-*"))) == 1  # the second rank writes nothing


def without_tokenize(run_uri: Path) -> str:
    return "tokenize is not a finished stage"


def with_another_contract(run_uri: Path) -> str:
    marker = run_uri / "tokenize/_done/stage.json"
    told = json.loads(marker.read_text())
    told["metadata"]["contract"] |= {"template_sha256": "0" * 64, "merge_size": 4}
    marker.unlink()
    Folder(Store(), str(run_uri), TOKENIZE).finish(TOKENIZE.stage_marker.model_validate(told))
    return "the examples were not made for this base: merge_size is 2 here, 4 in the examples; template_sha256 is "


def with_a_truncated_shard(run_uri: Path) -> str:
    shard = sorted((run_uri / "tokenize/shards").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-20])
    return f"{shard.name} is not what its marker says"


@pytest.mark.parametrize("harm", [without_tokenize, with_another_contract, with_a_truncated_shard])
def test_bad_input_is_named(harm: Callable[[Path], str], toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    if harm is not without_tokenize:
        tokenized(str(tmp_path), toy_encoder, examples(toy_encoder, 2))
    with pytest.raises(InputError, match=harm(tmp_path)):
        train(tmp_path, toy_base)


def test_a_cache_that_is_too_small_is_told_what_it_needs(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    tokenized(str(tmp_path), toy_encoder, examples(toy_encoder, 2))
    line = r"^--cache-gib=1e-06 has no room for the shards that are shuffled together, \S+e-05 GiB; give "
    with pytest.raises(SettingsError, match=line + r"--cache-gib=0\.001 or more, or a smaller --shuffle-gib"):
        train(tmp_path, toy_base, cache_gib="1e-6")
    with pytest.raises(SettingsError, match=r"has no room for the largest shard, .* give --cache-gib=0\.001 or more$"):
        train(tmp_path, toy_base, cache_gib="1e-6", shuffle_gib="1e-6")
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize("gpus", ["0", "0,1"])
def test_an_unusable_gpu_ends_it_at_once(
    gpus: str, toy_base: Path, toy_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs that CUDA is said to have and that torch cannot use, as behind a driver that is too old."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU that works")
    tokenized(str(tmp_path), toy_encoder, examples(toy_encoder, 2))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    with pytest.raises(SettingsError, match="found a GPU or its driver, and torch cannot use it"):
        train(tmp_path, toy_base, device="auto")
    assert not (tmp_path / "train").exists()


# --- rewards -------------------------------------------------------------------------------------------

REWARDED = {
    "method": "grpo", "tune": "lora", "num_generations": "4", "questions_per_step": "2", "max_completion_length": "40",
    "batch_tokens": "400", "max_steps": "2", "save_steps": "1",
}  # fmt: skip


def of_samples(run_uri: Path, encoder: Any, count: int) -> None:
    """Finished stages distill and tokenize, the second made of the first."""
    made, samples = examples(encoder, count), [drawn(number)[0] for number in range(count)]
    folder = Folder(Store(), str(run_uri), DISTILL)

    def work(writer: ShardWriter) -> DistillShardMetadata:
        for sample in samples:
            writer.keep(sample)
        return DistillShardMetadata()

    folder.finish(stage_marker("distill", shards=(folder.make_shard(0, work, JsonLines),)))
    tokenized(str(run_uri), encoder, made, inputs=read_marker(Store(), join(str(run_uri), "distill"))[1])


def test_rewards_go_on_with_the_model_beside_the_examples(
    calm: Path, toy_base: Path, toy_encoder: Any, tmp_path: Path
) -> None:
    """First imitation, then rewards on its adapter, with replies in Parquet and on a page."""
    import pyarrow.parquet as pq

    first, second = tmp_path / "first", tmp_path / "second"
    of_samples(first, toy_encoder, 6)
    train(first, toy_base, tune="lora", max_steps="2")
    train(second, toy_base, input_uri=str(first / "tokenize"), **REWARDED)
    begun = [folder / "train/model" for folder in (first, second)]
    weights = [load_file(folder / "adapter_model.safetensors") for folder in begun]
    assert weights[0].keys() == weights[1].keys()
    moved = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    assert 0 < moved < 3e-3  # it goes on from there: two small steps away
    rows = pq.read_table(second / "train/rollouts/steps-000001-000001.parquet").to_pylist()
    assert len(rows) == 8
    assert {"text", "reward_answer", "reward_boxes", "advantage"} <= rows[0].keys()
    page = (second / "train/rollouts.html").read_text()
    assert rows[0]["sample"] in page
    assert "data:image/jpeg" in page
    inputs = read(second, "_done/stage.json")["inputs"]
    assert str(first / "train/model") in inputs
    names = [line["rewards"].keys() for line in read(second, "losses.json")]
    assert names == [{"answer", "boxes", "format", "length"}] * 2


SAMPLING = {
    "method": "gfn", "tune": "lora", "num_generations": "3", "questions_per_step": "2", "max_completion_length": "24",
    "batch_tokens": "800", "max_steps": "3", "save_steps": "1", "reward_floor": "1e-30",
}  # fmt: skip


def test_rationales_are_sampled_on_from_the_model_beside_the_examples_by_one_rank_as_by_two(
    toy_base: Path, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    encoder = encoder_of(toy_base, roles=("rationale",))
    first, whole, again = (tmp_path / name for name in ("first", "whole", "again"))
    of_samples(first, encoder, 6)
    train(first, toy_base, tune="lora", max_steps="2")
    given = SAMPLING | {"input_uri": str(first / "tokenize")}
    train(whole, toy_base, **given)
    losses = read(whole, "losses.json")
    assert [line["rewards"].keys() for line in losses] == [{"answer", "boxes"}] * 3
    rows = pq.read_table(whole / "train/rollouts/steps-000001-000001.parquet").to_pylist()
    assert len(rows) == 6
    assert {"text", "reward_answer", "reward_boxes", "advantage", "reward"} <= rows[0].keys()
    flags = SMALL | {"run_uri": str(again), "base_uri": str(toy_base), "nproc_per_node": "2"} | given
    words = [word for name, v in flags.items() for word in (f"--{name.replace('_', '-')}", v)]
    ended = subprocess.run(
        [sys.executable, "-m", "jobs.train", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    by_two = read(again, "losses.json")
    assert len(by_two) == 3
    # Of the first step, whose weights are the same to the bit: later a draw may fall otherwise by a rounding.
    assert by_two[0]["loss"] == pytest.approx(losses[0]["loss"], rel=1e-4)
    assert by_two[0]["gradient_norm"] == pytest.approx(losses[0]["gradient_norm"], rel=1e-3)
    assert read(again, "_done/stage.json")["metadata"]["ranks"] == 2


def test_what_rewards_cannot_begin_with_is_refused(
    calm: Path, toy_base: Path, toy_encoder: Any, tmp_path: Path
) -> None:
    of_samples(tmp_path, toy_encoder, 6)
    model = str(calm / "train/model")
    words = ["--run-uri", str(tmp_path), "--base-uri", str(toy_base), "--from-uri", model]
    with pytest.raises(SettingsError, match="is an adapter; go on as it was made"):
        run(TrainSettings.load([*words, "--method", "grpo", "--tune", "full"])[0])
    with pytest.raises(InputError, match="no model that train made"):
        train(tmp_path, toy_base, from_uri=str(toy_base), **REWARDED)
    damaged = tmp_path / "other-frame"
    shutil.copytree(model, damaged)
    about = json.loads((damaged / "contract.json").read_text())
    about["contract"]["roles"] = ["rationale"]
    (damaged / "contract.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"with --roles=rationale, the examples are made with --roles=\(none\)"):
        train(tmp_path, toy_base, from_uri=str(damaged), **REWARDED)
    about["contract"]["frame"] = {"name": "pixels"}
    (damaged / "contract.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"writes boxes in .*pixels.*, the examples in .*thousandths"):
        train(tmp_path, toy_base, from_uri=str(damaged), **REWARDED)
