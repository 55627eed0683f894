"""What `--plan` says of a run is what the run has, and nothing is started or stored for it."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.convert import ConvertSettings
from jobs.distill import DistillSettings
from jobs.evaluate import EvaluateSettings
from jobs.pipeline import SETTINGS, PipelineSettings
from jobs.tokenize import TokenizeSettings
from jobs.train import TrainSettings
from tests.k8s.kustomize import ROOT
from tests.training.test_estimate import SEVEN_B
from tests.training.toy import *  # noqa: F403  (fixtures: toy_base, toy_encoder)
from tests.training.toy import examples, tokenized
from vcot.errors import InputError, SettingsError
from vcot.pipeline.estimate import Estimate, _of_pool, estimate, settings_folders
from vcot.pipeline.estimate_options import EstimateOptions
from vcot.pipeline.estimate_table import in_words, show
from vcot.pipeline.local import gather_variables
from vcot.training.batches import Plan

CELLS = ROOT / "examples" / "blood-cells"


def settings(base: Path, run: Path, **train: Any) -> dict[str, Any]:
    """Of a run on the blood cells where they lie."""
    shared = {"run_uri": str(run)}
    data = {
        "source": "coco", "input_uri": str(CELLS / "instances.json"), "questions": "where", "phrasings": "one",
        "categories": "white blood cell", "dataset": "blood-cells",
    }  # fmt: skip
    pixels = {"min_pixels": 3136, "max_pixels": 12544, "frame": "thousandths"}
    return {
        "convert": ConvertSettings.of(shared | data),
        "distill": DistillSettings.of(shared),
        "tokenize": TokenizeSettings.of(shared | pixels | {"base_uri": str(base)}),
        "train": TrainSettings.of(shared | {"base_uri": str(base), "report_to": "none"} | train),
        "evaluate": EvaluateSettings.of(shared),
    }


def options(**given: Any) -> EstimateOptions:
    return EstimateOptions(plan=True, **given)


def seven_b(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps(SEVEN_B))
    return folder


# --- the example, as a user asks -------------------------------------------------------------------------------


def test_the_example_is_planned_as_it_is_trained_and_nothing_is_left_behind(tmp_path: Path) -> None:
    """Examples, steps and tokens are those of the run of docs/log.md: 137 questions, 180 steps."""
    command = [sys.executable, "-m", "jobs.pipeline", "--plan", "--example", str(CELLS)]
    command += ["--base", str(ROOT / "examples" / "rehearsal"), "--plan-json", "plan.json", "--gpu-hour-usd", "2"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": "", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fits on one 80 GB GPU" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100
    found = json.loads((tmp_path / "plan.json").read_text())
    stages = found["stages"]
    assert {name: stages[name]["rows"]["expected"] for name in ("convert", "tokenize", "evaluate")} == {
        "convert": 187, "tokenize": 137, "evaluate": 50,
    }  # fmt: skip
    assert (stages["train"]["steps"], stages["train"]["tokens"]["expected"]) == (
        {"low": 180, "expected": 180, "high": 180}, 252_100,
    )  # fmt: skip
    assert stages["train"]["usd"]["low"] < stages["train"]["usd"]["high"]
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


# --- rows --------------------------------------------------------------------------------------------------------


def test_a_finished_tokenize_stage_is_counted(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    made = examples(toy_encoder, train=24, validation=4, alternatives=1)
    tokenized(str(tmp_path), toy_encoder, made)
    found = estimate(settings(toy_base, tmp_path, batch_tokens=400, num_train_epochs=3), options())
    plan = Plan.of(
        [_row(one) for one in made], batch_tokens=400, packed=False, batches_per_step=2, epochs=3, seed=42
    )  # fmt: skip
    train = found.stages["train"]
    assert train.steps is not None
    assert train.tokens is not None
    assert train.steps.low == train.steps.high == len(plan.steps)
    assert train.tokens.expected == plan.real
    assert found.load.tokens <= 400
    assert found.basis == f"counted in {tmp_path}/tokenize"
    beside = {(one.stage, one.what): (one.planned, one.measured) for one in found.measured}
    assert beside["tokenize", "rows"] == (28, 28)


def _row(example: Any) -> Any:
    from vcot.records.example import Row

    return Row(example.id, example.sample, example.alternative, example.split, len(example.ids))


def test_rows_that_cannot_be_read_are_asked_for(toy_base: Path, tmp_path: Path) -> None:
    away = settings(toy_base, tmp_path)
    gone = away["convert"].model_dump(exclude_unset=True) | {"input_uri": str(tmp_path / "gone.json")}
    away["convert"] = ConvertSettings.of(gone)
    with pytest.raises(InputError, match=r"gone\.json: there is no such file[^$]*Say how many there are with --rows"):
        estimate(away, options())
    found = estimate(away, options(rows=1000, visual_tokens=16, text_tokens=40, reply_tokens=40))
    tokens = found.stages["tokenize"].tokens
    assert tokens is not None
    assert (tokens.low, tokens.expected, tokens.high) == pytest.approx((67_200, 96_000, 124_800))
    assert "assumed: 1,000 rows of 16 visual tokens" in found.basis


def test_a_base_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--base-uri=.*nowhere: there is no config\.json"):
        estimate(settings(tmp_path / "nowhere", tmp_path), options())


# --- a large model -----------------------------------------------------------------------------------------------


def large(tmp_path: Path, given: dict[str, Any], **train: Any) -> tuple[Estimate, Any]:
    every = settings(seven_b(tmp_path), tmp_path, **train)
    return estimate(every, options(rows=100_000, **given)), every["train"]


def test_a_7b_fits_on_one_large_gpu_in_4_bits_and_in_full_on_none(tmp_path: Path) -> None:
    found, train = large(tmp_path, {"gpu_hour_usd": 2.5})
    said = in_words(found, train)
    assert said.startswith("fits on one 80 GB GPU (")
    assert " h of training on 1, " in said
    assert " on 8, US$ " in said
    hours = found.stages["train"].gpu_hours
    assert hours is not None
    assert hours.low < hours.expected < hours.high
    # 100,000 rows of 830 tokens, twice: 166 M tokens of 27 GFLOP and a vision tower's forward pass.
    flops = found.stages["train"].flops
    assert flops is not None
    assert flops.expected == pytest.approx(166e6 * 32e9, rel=0.1)
    full, train = large(tmp_path, {}, tune="full", optim="adamw_torch_fused")
    assert "does not fit on one 80 GB GPU (" in in_words(full, train)
    assert "--tune lora" in in_words(full, train)
    divided, train = large(tmp_path, {"gpus": 8}, tune="full", optim="adamw_torch_fused")
    assert divided.sharded
    assert in_words(divided, train).startswith("fits on each of 8 80 GB GPUs")


def test_more_gpus_take_larger_steps(tmp_path: Path) -> None:
    one, eight = (large(tmp_path, {"gpus": gpus})[0].stages["train"] for gpus in (1, 8))
    assert one.steps is not None
    assert eight.steps is not None
    assert eight.steps.expected == pytest.approx(one.steps.expected / 8, rel=0.01)


def test_methods_that_learn_from_their_own_replies_say_how_far_they_may_be_off(tmp_path: Path) -> None:
    found, _ = large(tmp_path, {}, method="grpo", tune="lora", max_steps=100)
    train = found.stages["train"]
    assert train.steps is not None
    assert train.steps.expected == 100
    assert train.tokens is not None
    assert train.tokens.low < train.tokens.expected < 0.7 * train.tokens.high
    assert train.gpu_hours is not None
    assert train.gpu_hours.high > 3 * train.gpu_hours.low


def test_an_evaluation_is_planned_by_the_replies_that_it_asks_for(toy_base: Path, tmp_path: Path) -> None:
    def replies(learn: str = "ground", **evaluate: Any) -> float:
        every = settings(toy_base, tmp_path)
        given = every["tokenize"].model_dump(exclude_unset=True)
        every["tokenize"] = TokenizeSettings.of(given | {"learn": learn})
        every["evaluate"] = EvaluateSettings.of({"run_uri": str(tmp_path), "conditions": "real"} | evaluate)
        return estimate(every, options()).stages["evaluate"].stored.expected / 600 / 50

    assert replies() == pytest.approx(3)  # the base in both forms, the subject
    assert replies(native_form="as-tuned") == pytest.approx(2)
    assert replies(ask_base=False) == pytest.approx(1)
    # 16 more of the subject, about the real images; in each way that was learned, the base in its own form in one.
    assert replies(native_form="as-tuned", conditions="real,blank", samples=16) == pytest.approx(2 * 2 + 16)
    assert replies(learn="direct,ground") == pytest.approx(2 * 2 + 1)
    assert replies(learn="direct,ground", ask="ground") == pytest.approx(3)


def test_a_measured_speed_is_that_of_updates_and_replies_are_written_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = {"tokens_per_second": 5000.0}
    monkeypatch.setattr("vcot.pipeline.estimate._calibrated", lambda *_: speed)
    found, _ = large(tmp_path, {"calibrate": True}, method="grpo", tune="lora", max_steps=100)
    train = found.stages["train"]
    assert train.tokens is not None
    assert train.gpu_hours is not None
    updates = train.tokens.expected / speed["tokens_per_second"] / 3600
    assert train.gpu_hours.expected > 1.5 * updates
    on_cpu, _ = large(tmp_path, {"calibrate": True, "gpu": "cpu"}, method="grpo", tune="lora", max_steps=100)
    hours = on_cpu.stages["train"].gpu_hours
    assert hours is not None
    assert updates < hours.expected < train.gpu_hours.expected


def test_a_teacher_that_is_paid_is_in_the_plan(toy_base: Path, tmp_path: Path) -> None:
    every = settings(toy_base, tmp_path)
    every["distill"] = DistillSettings.of(
        {"run_uri": str(tmp_path), "teacher": "openai", "model": "gpt-4o-mini", "budget_usd": Decimal(5)}
    )
    found = estimate(every, options()).stages["distill"]
    assert found.usd is not None
    assert found.tokens is not None
    assert 0 < found.usd.low < found.usd.expected < found.usd.high < 20
    unpriced = every["distill"].model_dump(exclude_unset=True) | {"model": "nobody-knows", "budget_usd": None}
    every["distill"] = DistillSettings.of(unpriced)
    assert estimate(every, options()).stages["distill"].usd is None


# --- GPUs and overlays -------------------------------------------------------------------------------------------


def test_an_unknown_gpu_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(SettingsError, match=r"--gpu=h100-8gb: no such GPU.*did you mean h100-80gb\?"):
        PipelineSettings.of({"plan": True, "gpu": "h100-8gb"})
    with pytest.raises(SettingsError, match=r"--gpus: it says something about a plan; give --plan, too"):
        PipelineSettings.of({"gpus": 8})


def test_an_overlay_has_the_settings_and_the_gpu_that_it_asks_for(tmp_path: Path) -> None:
    overlays = ROOT / "k8s" / "overlays"
    folders = settings_folders(SETTINGS, overlays / "gpu-kueue")
    assert [folder.resolve() for folder in folders] == [SETTINGS, (overlays / "gpu" / "settings").resolve()]
    assert gather_variables(folders, {})["convert"]["VCOT_CONVERT_SOURCE"] == "viscot"
    overlay = tmp_path / "overlay"
    (overlay / "pool").mkdir(parents=True)
    (overlay / "kustomization.yaml").write_text("resources: []\ncomponents: [pool]\n")
    (overlay / "pool" / "kustomization.yaml").write_text(
        (ROOT / "k8s/components/pool-gke/kustomization.yaml").read_text()
    )
    found, _ = large(tmp_path, {"overlay": overlay})
    assert (found.gpu, found.checkpointing) == ("l4-24gb", True)
    with pytest.raises(SettingsError, match="not an overlay"):
        settings_folders(SETTINGS, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kind", "gpu"),
    [("h100", "h100-80gb"), ("nvidia-tesla-a100", "a100-40gb"), ("nvidia-a100-80gb", "a100-80gb"), ("t4", None)],
)
def test_the_gpu_of_a_pool_is_told_by_its_label(tmp_path: Path, kind: str, gpu: str | None) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "kustomization.yaml").write_text("components: [pool]\n")
    pool = f"karpenter.k8s.aws/instance-gpu-name: {kind}\n"
    (tmp_path / "pool" / "kustomization.yaml").write_text(pool)
    if gpu is not None:
        assert _of_pool(tmp_path) == gpu
        return
    with pytest.raises(SettingsError, match=r"its node pool asks for t4, which is none of l4-24gb, .*say with --gpu"):
        _of_pool(tmp_path)


def test_the_tables_stand_in_a_hundred_columns(tmp_path: Path) -> None:
    found, train = large(tmp_path, {"gpu_hour_usd": 2.5})
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    show(found, train, console)
    said = console.export_text()
    assert max(map(len, said.splitlines())) <= 100
    assert "…" not in said
    assert f"{found.memory.peak / 2**30:.3f}" in said
