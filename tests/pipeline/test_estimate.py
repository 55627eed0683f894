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
from jobs.convert import run as convert
from jobs.distill import DistillSettings
from jobs.evaluate import EvaluateSettings
from jobs.pipeline import SETTINGS, PipelineSettings, estimate_run, plans_to_estimate, settings_by_stage
from jobs.tokenize import TokenizeSettings
from jobs.train import TrainSettings
from tests.fakes.markers import shard_marker, stage_marker
from tests.k8s.kustomize import ROOT
from tests.training.test_estimate import SEVEN_B
from tests.training.toy import *  # noqa: F403  (fixtures: toy_base, toy_encoder)
from tests.training.toy import examples, tokenized
from vcot.errors import InputError, SettingsError
from vcot.pipeline.estimate import Estimate, _of_pool, estimate, settings_folders
from vcot.pipeline.estimate_options import EstimateOptions
from vcot.pipeline.estimate_table import in_words, show
from vcot.pipeline.local import gather_variables, publish
from vcot.records import Folder
from vcot.records.shards import CONVERT, TRAIN
from vcot.storage import Store
from vcot.training.batches import Plan

CELLS, REHEARSAL = ROOT / "examples" / "blood-cells", ROOT / "examples" / "rehearsal"


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
    every = settings(toy_base, tmp_path, batch_tokens=400, num_train_epochs=3)
    tokenized(str(tmp_path), toy_encoder, made, settings=every["tokenize"].fingerprint())
    found = estimate(every, options())
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


# --- what was measured -------------------------------------------------------------------------------------------


def few(encoder: Any) -> list[Any]:
    return examples(encoder, train=8, validation=2)


def measured(found: Estimate) -> set[tuple[str, str]]:
    return {(line.stage, line.what) for line in found.measured}


def test_stage_with_other_settings_is_not_this_run(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    every, other = settings(toy_base, tmp_path), settings(tmp_path / "another base", tmp_path)
    tokenized(str(tmp_path), toy_encoder, few(toy_encoder), settings=other["tokenize"].fingerprint())
    found = estimate(every, options())
    assert measured(found) == set()
    assert "187 rows counted in" in found.basis
    assert any(f"{tmp_path}/tokenize has other settings (base_uri)" in ground for ground in found.grounds)


def test_stage_of_another_run_is_counted_not_measured(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    tokenized(str(tmp_path / "a"), toy_encoder, few(toy_encoder), settings={"base_uri": "elsewhere"})
    found = estimate(settings(toy_base, tmp_path / "b", input_uri=str(tmp_path / "a/tokenize")), options())
    assert found.basis == f"counted in {tmp_path}/a/tokenize"
    assert measured(found) == set()


def test_assumed_rows_are_not_compared_with_a_run(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    every = settings(toy_base, tmp_path)
    tokenized(str(tmp_path), toy_encoder, few(toy_encoder), settings=every["tokenize"].fingerprint())
    assert measured(estimate(every, options())) == {("tokenize", "rows"), ("tokenize", "bytes")}
    assert measured(estimate(every, options(rows=50_000))) == set()


@pytest.mark.parametrize(
    ("device", "mib", "ranks", "same"),
    [
        ("NVIDIA H100 80GB HBM3", 81_079, 1, True),
        ("NVIDIA H100 80GB HBM3", 81_079, 2, False),
        ("NVIDIA H100 PCIe", 81_079, 1, False),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40_320, 1, False),
        ("NVIDIA H200", 143_000, 1, False),
        ("Some CPU, 8 cores", None, 1, False),
        (None, None, 1, False),  # reports of earlier versions do not name it
    ],
)
def test_training_is_measured_on_the_planned_hardware(
    toy_base: Path, toy_encoder: Any, tmp_path: Path, device: str | None, mib: int | None, ranks: int, same: bool
) -> None:
    every, folder = settings(toy_base, tmp_path), Folder(Store(), str(tmp_path), TRAIN)
    tokenized(str(tmp_path), toy_encoder, few(toy_encoder), settings=every["tokenize"].fingerprint())
    spent = {"from_step": 0, "seconds": 60.0, "tokens": 4000, "peak_gpu_memory_mib": 900}
    spent |= {name: value for name, value in (("device", device), ("gpu_memory_mib", mib)) if value}
    folder.write_report({"this_process": spent})
    folder.finish(stage_marker("train", every["train"].fingerprint(), ranks=ranks))
    lines = {what for stage, what in measured(estimate(every, options(gpu="h100-80gb"))) if stage == "train"}
    assert lines == {"tokens"} | ({"steps"} if ranks == 1 else set()) | ({"hours", "peak bytes"} if same else set())


def test_training_on_this_cpu_is_measured_here(toy_base: Path, toy_encoder: Any, tmp_path: Path) -> None:
    from vcot.models.device import device_name, use_device
    from vcot.pipeline.estimate import runs_on
    from vcot.training.flops import GPUS

    use_device("cpu")
    here = GPUS["h100-80gb"]
    assert runs_on({"device": device_name()}, "cpu", here)
    assert not runs_on({"device": "AnotherCPU, 8 cores"}, "cpu", here)
    assert not runs_on({"device": device_name()}, "h100-80gb", here)


def test_plan_shows_measured_figures_of_its_own_run_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run reads copies of the folders that the plan reads."""

    def planned(**more: Any) -> tuple[PipelineSettings, dict[str, Any], dict[str, Any]]:
        asked = {"plan": True, "server": "none", "runs_uri": str(tmp_path / "runs"), "base": str(REHEARSAL)}
        given = PipelineSettings.of(asked | more)
        here, as_run = map(settings_by_stage, plans_to_estimate(given))
        return given, here, as_run

    def measured_in(run: tuple[PipelineSettings, dict[str, Any], dict[str, Any]]) -> set[tuple[str, str]]:
        given, here, as_run = run
        return measured(estimate(here, given, {stage: each.fingerprint() for stage, each in as_run.items()}))

    run = planned(example=str(CELLS))
    publish(Store(), CELLS, str(tmp_path / "examples" / "blood-cells"))
    convert(run[2]["convert"])
    assert measured_in(run) == {("convert", "rows"), ("convert", "bytes")}
    monkeypatch.setenv("VCOT_CONVERT_SEED", "7")
    assert measured_in(planned(example=str(CELLS))) == set()


def test_plan_of_an_overlay_does_not_read_this_computer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run of that name on this computer, and 50,000 rows that are assumed."""
    run = tmp_path / "runs" / "first"
    Folder(Store(), str(run), CONVERT).finish(stage_marker("convert", shards=(shard_marker("convert"),)))
    Folder(Store(), str(run), TRAIN).finish(stage_marker("train"))
    monkeypatch.setenv("COLUMNS", "100")
    overlay = {"overlay": ROOT / "k8s" / "overlays" / "gpu", "base": str(seven_b(tmp_path)), "rows": 50_000}
    estimate_run(PipelineSettings.of({"plan": True, "server": "none", "runs_uri": str(tmp_path / "runs")} | overlay))
    said = capsys.readouterr().out
    assert "fits on one 80 GB GPU" in said
    assert "Measured" not in said


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
