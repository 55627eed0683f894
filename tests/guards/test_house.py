"""What must agree across the house: who imports what, settings files and stages, exit codes and their page."""

import ast
import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from vcot import errors
from vcot.pipeline.orchestrator import INPUTS
from vcot.settings import STAGES, Settings, extra_of, variable

ROOT = Path(__file__).parents[2]

#: Library → the rooms (or files) that may import it.
ALLOWED = {
    "torch": ("vcot/tokens", "vcot/models", "vcot/training"),
    "torchvision": ("vcot/tokens", "vcot/models", "vcot/training"),
    "transformers": ("vcot/tokens", "vcot/models", "vcot/training"),
    "peft": ("vcot/models", "vcot/training"),
    "bitsandbytes": ("vcot/models", "vcot/training"),
    "boto3": ("vcot/storage",),
    "botocore": ("vcot/storage",),
    "smart_open": ("vcot/storage",),
    "kubernetes": ("vcot/pipeline/client.py",),
    "tools": ("jobs/pipeline.py", "vcot/pipeline/local.py"),  # the S3 server of a run on this computer, in a checkout
    "openai": ("vcot/distill", "vcot/training/served.py", "vcot/training/asking.py"),
}


@cache
def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("library", ALLOWED)
def test_a_library_is_imported_only_in_its_rooms(library: str) -> None:
    sources = [p for folder in ("vcot", "jobs") for p in (ROOT / folder).rglob("*.py")]
    users = {p.relative_to(ROOT).as_posix() for p in sources if library in imports(p)}
    strangers = {user for user in users if not user.startswith(ALLOWED[library])}
    assert not strangers


def test_layers_hold() -> None:
    answer = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout


def settings_class(stage: str) -> type[Settings]:
    kinds = [kind for kind in vars(importlib.import_module(f"jobs.{stage}")).values() if isinstance(kind, type)]
    (found,) = [kind for kind in kinds if issubclass(kind, Settings) and kind is not Settings]
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_the_same_word_everywhere_and_has_the_settings_that_the_plan_names(stage: str) -> None:
    kind = settings_class(stage)
    assert kind.stage == stage
    assert (ROOT / "k8s/base/settings" / f"{stage}.env").exists()
    assert re.search(rf"^\| {stage}", (ROOT / "docs/stages.md").read_text(), re.M)
    known = {variable(kind, name) for name in kind.model_fields}
    assert {f"VCOT_{stage.upper()}_{setting}" for setting in INPUTS[stage].values()} <= known


#: Numbers that are counted in nothing.
WITHOUT_UNIT = {
    "seed", "shard", "temperature", "lora_r", "lora_alpha", "learning_rate", "warmup_steps", "weight_decay",
    "merger_learning_rate", "vision_learning_rate",
    "max_grad_norm", "neftune_noise_alpha", "max_box_aspect", "beta", "epsilon", "epsilon_high",
    "reward_temperature_start", "reward_temperature_end", "explore_min_temperature", "explore_max_temperature",
    "box_weight", "across_weight", "subtb_decay", "tolerance_start", "tolerance_end",
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_a_number_is_given_with_its_unit_and_each_unit_has_one_name(stage: str) -> None:
    fields = settings_class(stage).model_fields
    numbers = {
        name: field for name, field in fields.items() if {int, float} & {field.annotation, *get_args(field.annotation)}
    }
    assert {name for name, field in numbers.items() if not extra_of(field).get("unit")} <= WITHOUT_UNIT
    units = {extra_of(field).get("unit") for field in fields.values()}
    assert not units & {"s", "sec", "second", "secs", "%", "share", "px", "pixel", "token", "row"}
    shares = [name for name in numbers if name.endswith("_share")]
    assert {extra_of(fields[name])["unit"] for name in shares} <= {"0..1"}


BASE = ["--base-uri", "s3://b"]


@pytest.mark.parametrize("stage", [*STAGES, "pipeline", "serve"])
def test_settings_are_judged_in_under_two_seconds(stage: str) -> None:
    environment = {n: v for n, v in os.environ.items() if not n.startswith("VCOT_")}
    more = {"convert": ["--source", "scenes"], "tokenize": BASE, "train": BASE}
    others: dict[str, list[str]] = {"pipeline": [], "serve": ["--subject", "/runs/x/train"]}
    given = others.get(stage, ["--run-uri", "/runs/x", *more.get(stage, [])])
    for _ in range(4):
        answer, used = timed([sys.executable, "-m", f"jobs.{stage}", *given, "--check"], environment)
        assert (answer.returncode, answer.stderr) == (0, ""), answer.stderr
        assert answer.stdout == f"{stage}: settings are in order\n"
        # A machine may be so slow that what every stage needs takes a second; torch takes many times that.
        libraries = [sys.executable, "-c", "import pydantic_settings, structlog, rich"]
        if used < 2 or used < 2.5 * timed(libraries, environment)[1]:
            return
    pytest.fail(f"it took {used:.1f} s of CPU, four times more than two")


def timed(command: list[str], environment: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """And seconds of CPU: wall time belongs to whoever else is on this machine."""
    before = os.times()
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    after = os.times()
    return answer, after.children_user + after.children_system - before.children_user - before.children_system


def test_make_help_names_every_target_and_every_word_that_a_person_may_give() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    answer = subprocess.run(["make", "help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.M))
    assert targets == set(re.findall(r"^  make ([a-z0-9-]+) ", answer.stdout, re.M)) > {"local-train", "test"}
    assert {"RUN_ID=", "EXAMPLE=", "BASE=", "MINIO=", "TESTS=", "KILLS=", "SEED="} <= set(
        re.findall(r"\b[A-Z_]+=", answer.stdout)
    )


def test_make_help_lists_first_what_is_needed_first() -> None:
    answer = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=False)
    targets = re.findall(r"^  make ([a-z0-9-]+) ", answer.stdout, re.M)
    benchmarks = [name for name in targets if name.startswith("bench-")]
    assert targets[:2] == ["local-train", "test"]
    assert targets[-len(benchmarks) :] == benchmarks
    rank = targets.index
    assert max(map(rank, ("demo", "plan", "serve", "tensorboard", "test"))) < min(map(rank, ("push-base", "k8s-run")))
    assert rank("k8s-run") < rank("lint") < rank("golden") < rank(benchmarks[0])


def test_the_front_page_claims_nothing_that_no_command_does() -> None:
    page = re.sub("```.*?```", "", (ROOT / "README.md").read_text().lower(), flags=re.S)  # a tree of files is no claim
    rooms = {p.name for p in (ROOT / "vcot").iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    sources = [*(ROOT / "vcot").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]
    idle = {
        room for room in rooms if not any(f"from vcot.{room}" in p.read_text() for p in sources if room not in p.parts)
    }
    assert not {"datasets", "training", "evaluation", "distill"} & idle
    assert not [room for room in idle if room.rstrip("s") in page]
    assert "container" not in page or [*ROOT.glob("Dockerfile*"), *ROOT.glob("k8s/**/Dockerfile*")], "none to build"


def test_exit_codes_stand_in_the_readers_page_as_in_the_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.VcotError)]
    told = re.findall(r"^\| (\d+) \|", (ROOT / "docs/stages.md").read_text(), re.M)
    assert {kind.exit_code for kind in kinds} | {0} == {int(code) for code in told}


def test_nothing_secret_and_no_registry_is_tracked() -> None:
    answer = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if not (files := answer.stdout.split()):
        pytest.skip("not a git checkout")
    assert not [f for f in files if f.endswith((".pem", ".key", "s3.env"))]
    # In two halves, so that the names do not stand here either.
    halves = (("pypi", r"\.org"), ("python", "hosted"), ("registry", r"\.npmjs"), ("proxy", r"\.golang"))
    hosts = re.compile("|".join(["".join(pair) for pair in halves] + ["AKIA[0-9A-Z]{16}"]))
    kinds = (".py", ".txt", ".md", ".toml", ".yaml", ".env", ".sum", "Makefile")
    texts = [path for path in map(ROOT.joinpath, files) if path.name.endswith(kinds) and path.exists()]
    guilty = [p.name for p in texts if p != Path(__file__) and hosts.search(p.read_text(errors="ignore"))]
    assert not guilty


def test_a_report_is_read_where_there_is_no_torch() -> None:
    """The orchestrator asks a finished evaluation how it ended, in an image without it."""
    words = "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'peft')))\n"
    words += "from vcot.evaluation import comparison_page, evaluation, gates, page, subjects"
    answer = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
