"""--check of train refuses what its start refuses, with the same line, without loading torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.train import TrainSettings, run
from tests.fakes.cluster import a_plan, template
from tests.guards.test_house import timed
from tests.training.test_estimate import SEVEN_B
from tests.training.toy import *  # noqa: F403  (fixtures)
from tests.training.toy import encoder_of, examples, tokenized
from vcot.errors import VcotError
from vcot.pipeline.local import environment as stage_environment
from vcot.pipeline.local import validate
from vcot.pipeline.templates import freeze, variables_of
from vcot.training.config import TrainingConfig

ROOT = Path(__file__).parents[2]
EIGHT = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
ADAPTER = {"base": {"uri": "b", "sha256": "0" * 64}, "contract": {"frame": {"name": "thousandths"}, "roles": []}}


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("VCOT_", "PET_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def tokenized_run(toy_base: Path, toy_encoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "plain"
    tokenized(str(folder), toy_encoder, examples(toy_encoder, 4, 2))
    return folder


@pytest.fixture(scope="module")
def rationale_run(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, encoder = tmp_path_factory.mktemp("runs") / "rationale", encoder_of(toy_base, roles=("rationale",))
    tokenized(str(folder), encoder, examples(encoder, 4, 2))
    return folder


def adapter(folder: Path, **contract: Any) -> str:
    """What is read of a tuned model before its weights are."""
    folder.mkdir()
    (folder / "contract.json").write_text(json.dumps(ADAPTER | {"contract": ADAPTER["contract"] | contract}))
    (folder / "adapter_config.json").write_text("{}")
    return str(folder)


FULL_IN_8_BITS = ["--tune", "full", "--optim", "adamw_8bit"]
GRPO = ["--method", "grpo", "--tune", "lora"]
RULES: dict[str, tuple[str, list[str], dict[str, str], str]] = {
    "8-bit optimizer on 8 GPUs": (
        "plain", FULL_IN_8_BITS, EIGHT, "--optim=adamw_8bit cannot update weights that are divided among ranks",
    ),
    "paged optimizer on 8 GPUs": (
        "plain", ["--tune", "full", "--optim", "paged_adamw_8bit"], EIGHT, "--optim=paged_adamw_8bit cannot update",
    ),
    "8-bit optimizer, fsdp on CPUs": (
        "plain", [*FULL_IN_8_BITS, "--parallel", "fsdp", "--nproc-per-node", "2"], NO_GPU, "choose --optim adamw_torch",
    ),
    "fsdp with one rank": (
        "plain", ["--tune", "lora", "--parallel", "fsdp"], NO_GPU, "--parallel fsdp divides a model among",
    ),
    "8-bit optimizer, GPUs elsewhere": (
        "plain", [*FULL_IN_8_BITS, "--device", "cuda", "--nproc-per-node", "2"], NO_GPU, "--optim=adamw_8bit cannot",
    ),
    "more ranks than GPUs": ("plain", ["--nproc-per-node", "9"], EIGHT, "9 ranks and 8 GPUs: each rank needs one"),
    "no number of pods": ("plain", [], NO_GPU | {"PET_NNODES": "1:4"}, "PET_NNODES=1:4: a number from 1 on"),
    "questions that cannot be divided": (
        "plain", [*GRPO, "--questions-per-step", "12"], EIGHT, "--questions-per-step=12 cannot be divided among 8",
    ),
    "replies longer than a batch": (
        "plain", [*GRPO, "--batch-tokens", "512"], NO_GPU, "--batch-tokens=512 has no room for",
    ),
    "vLLM and rationales": (
        "rationale", [*GRPO, "--rollouts", "vllm"], NO_GPU, "--rollouts=vllm: in the examples the rationale is a turn",
    ),
    "GFlowNet without rationales": (
        "plain", ["--method", "gfn"], NO_GPU, "--method gfn: in these examples a rationale has no end of its own",
    ),
    "no room for shards": ("plain", ["--cache-gib", "1e-6"], NO_GPU, "--cache-gib=1e-06 has no room for the shards"),
    "full weights from an adapter": (
        "plain", ["--tune", "full", "--from-uri", "ADAPTER"], NO_GPU, "is an adapter; go on as it was made",
    ),
    "a model with other turns": (
        "plain", ["--from-uri", "OTHER"], NO_GPU, "was tuned with --roles=rationale, the examples are made with",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_check_refuses_what_the_start_refuses(
    name: str, toy_base: Path, tokenized_run: Path, rationale_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    which, flags, variables, line = RULES[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    places = {"ADAPTER": adapter(tmp_path / "a"), "OTHER": adapter(tmp_path / "b", roles=["rationale"])}
    source = {"plain": tokenized_run, "rationale": rationale_run}[which] / "tokenize"
    words = ["--run-uri", str(tmp_path / "run"), "--base-uri", str(toy_base), "--input-uri", str(source)]
    settings, check = TrainSettings.load([*words, *(places.get(word, word) for word in flags), "--check"])
    assert check
    with pytest.raises(VcotError) as checked:
        settings.validate_files()
    with pytest.raises(VcotError) as started:
        run(settings)
    assert line in str(checked.value)
    assert (type(checked.value), str(checked.value)) == (type(started.value), str(started.value))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        (["--tune", "full"], EIGHT), (["--tune", "full", "--parallel", "fsdp"], EIGHT), ([], EIGHT),
        (FULL_IN_8_BITS, {"CUDA_VISIBLE_DEVICES": "0"}), ([*FULL_IN_8_BITS, "--parallel", "ddp"], EIGHT),
        ([*FULL_IN_8_BITS, "--nproc-per-node", "2"], NO_GPU), ([*FULL_IN_8_BITS, "--method", "grpo"], EIGHT),
    ],
)  # fmt: skip
def test_check_passes_what_starts(flags: list[str], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    TrainSettings.load(["--run-uri", "/no/run", "--base-uri", "s3://bucket/base", *flags])[0].validate_files()


def test_check_of_train_loads_no_torch_in_two_seconds(tokenized_run: Path, tmp_path: Path) -> None:
    words = [
        "--run-uri",
        str(tokenized_run),
        "--base-uri",
        "s3://bucket/base",
        "--from-uri",
        adapter(tmp_path / "a"),
        *FULL_IN_8_BITS,
    ]
    here = {name: value for name, value in os.environ.items() if not name.startswith(("VCOT_", "PET_"))} | EIGHT
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was loaded')\n")
    here["PYTHONPATH"] = str(tmp_path)
    answer, used = timed([sys.executable, "-m", "jobs.train", *words, "--check"], here)
    assert (answer.returncode, answer.stdout) == (78, ""), answer.stderr
    assert "train: --optim=adamw_8bit cannot update" in answer.stderr
    libraries = [sys.executable, "-c", "import pydantic_settings, structlog, rich"]
    assert used < 2 or used < 2.5 * timed(libraries, here)[1]


def test_full_tuning_has_an_optimizer_that_can_be_divided() -> None:
    assert TrainingConfig(tune="full").optim == "adamw_torch_fused"
    assert TrainingConfig(tune="full", optim="adamw_8bit").optim == "adamw_8bit"
    assert TrainingConfig().optim == TrainingConfig(tune="lora").optim == "adamw_8bit"
    words = ["--run-uri", "x", "--base-uri", "y", "--tune", "full"]
    assert TrainSettings.load(words)[0].fingerprint()["optim"] == "adamw_torch_fused"


@pytest.mark.parametrize(("optim", "gpus", "code"), [("", "8", 0), ("adamw_8bit", "8", 78), ("adamw_8bit", "1", 0)])
def test_plan_refuses_what_the_start_refuses(optim: str, gpus: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SEVEN_B))
    command = [sys.executable, "-m", "jobs.pipeline", "--plan", "--example", str(ROOT / "examples" / "blood-cells")]
    command += ["--base", str(tmp_path), "--rows", "1000", "--gpus", gpus, "--gpu", "h100-80gb"]
    variables = {"PATH": "", "OMP_NUM_THREADS": "1", "VCOT_TRAIN_TUNE": "full", "VCOT_TRAIN_OPTIM": optim}
    done = subprocess.run(
        command, cwd=ROOT, env=variables | {"VCOT_TRAIN_GRADIENT_CHECKPOINTING": "on"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert ("--optim=adamw_8bit cannot update weights" in done.stderr) == (code == 78)


@pytest.mark.parametrize(("nodes", "gpus", "refused"), [("2", "8", True), ("1", "1", False)])
def test_check_on_a_cluster_knows_the_ranks_of_the_template(nodes: str, gpus: str, refused: bool) -> None:
    given = template("train", **({"vcot/engine": "jobset"} if nodes != "1" else {}))
    inner = given["spec"]["jobTemplate"]["spec"]
    inner |= {"completionMode": "Indexed", "completions": int(nodes), "parallelism": int(nodes)}
    main = inner["template"]["spec"]["containers"][0]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    main["env"] = [
        *main.get("env", []), {"name": "PET_NNODES", "value": nodes}, {"name": "PET_NPROC_PER_NODE", "value": "gpu"},
        {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "VCOT_TRAIN_TUNE", "value": "full"}, {"name": "VCOT_TRAIN_OPTIM", "value": "adamw_8bit"},
        {"name": "VCOT_TRAIN_BASE_URI", "value": "s3://models/base"},
    ]  # fmt: skip
    main["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
    step = next(step for step in a_plan().steps if step.stage == "train")
    templates = {step.stage: template(step.stage) for step in a_plan().steps} | {"train": given}
    job = freeze(a_plan(), templates).jobs[step.name]
    variables, missing = variables_of(lambda *_: {"data": {}}, "vcot", "train", job)
    assert not missing
    faults = validate("train", variables)
    assert bool(faults) == refused, faults
    assert all("--optim=adamw_8bit cannot update weights" in line for line in faults)
    assert stage_environment(variables)["CUDA_VISIBLE_DEVICES"].count(",") == int(gpus) - 1
