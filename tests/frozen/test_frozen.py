"""What must not change while the code is rebuilt, as it came out on the day the suite was made: `frozen.json`.

    shards and rejections   of the example and of rows of other datasets, line by line, and what a teacher is asked
    tokens                  every value of the examples that training reads
    losses                  of a run that is stopped and goes on, within TOLERANCE between machines
    vectors                 frames, tags and rewards
    exit codes              of commands that cannot work

Beside it stand, for the same purpose: tests/k8s/golden (rendered manifests), tests/storage/test_store_failures.py, and
`python -m tests.frozen.table`, which holds the table of `make local-train` against its values in `.ci/run`.

Where a name on disk or a flag changes, `names.py` says so. `python -m tests.frozen.test_frozen` writes the values
again: whoever does that changes what users get.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.frozen import stages, vectors

FROZEN = Path(__file__).parent / "frozen.json"
TOLERANCE = 2e-3
"""Relative; another processor adds in another order."""


def converted(folder: Path) -> dict[str, Any]:
    """The example as COCO, chat messages and own lines, VisCoT's metadata, drawn scenes."""
    shards = {"num_shards": 2, "validation_share": 0.2}
    common = {"images_uri": stages.IMAGES, "max_rejected_share": 1, "dataset": "cells", "licence": "MIT", "seed": 3}
    runs: dict[str, dict[str, Any]] = {
        "coco": {"source": "coco", "input_uri": stages.INSTANCES, "limit": 240} | common | shards,
        "samples": {
            "source": "samples", "frame": "thousandths",
            "input_uri": stages.write_lines(folder / "chats.jsonl", stages.chats()),
        } | common | shards,
        "viscot": {
            "source": "viscot", "input_uri": stages.write_lines(folder / "vsr_train.jsonl", stages.viscot()),
        } | common | shards | {"images_uri": stages.viscot_images(folder / "viscot")},
        "scenes": {"source": "scenes", "scenes": 6, "max_rejected_share": 1} | shards,
    }  # fmt: skip
    found = {}
    for name, settings in runs.items():
        stages.run("convert", run_uri=folder / name, **settings)
        found[name] = stages.digests(folder / name / "convert", folder)
    return found


def distilled(folder: Path) -> dict[str, Any]:
    stages.run("distill", run_uri=folder / "coco", phrasings=2)
    written = stages.digests(folder / "coco/distill", folder)
    with stages.teacher() as (address, asked):
        stages.run(
            "distill", run_uri=folder / "samples", teacher="openai", model="scripted", no_structured=True,
            no_propose=True,
            no_reanswer=True,
            max_rejected_share=1, concurrency=2, env={"OPENAI_BASE_URL": address, "OPENAI_API_KEY": "x"},
        )  # fmt: skip
    told = stages.digests(folder / "samples/distill", folder)
    return {"template": written, "teacher": told, "requests": sorted(asked)}


def tokenized(folder: Path) -> dict[str, Any]:
    stages.run("tokenize", run_uri=folder / "coco", base_uri=stages.BASE, min_pixels=3136, max_pixels=12544)
    return stages.examples_digest(folder / "coco/tokenize")


TRAINING = {
    "base_uri": stages.BASE, "tune": "lora", "dtype": "float32", "device": "cpu", "r": 4, "batch_size": 600,
    "accumulation": 2, "max_steps": 8, "eval_every": 6, "save_every": 2, "learning_rate": "1e-3", "warmup": 2,
    "report_to": "none", "workers": 0, "seed": 1,
}  # fmt: skip


def trained(folder: Path) -> dict[str, Any]:
    """The losses of a run that is stopped after its first checkpoint, and goes on."""

    def saved() -> bool:
        return bool(list(folder.glob("coco/train/checkpoints/**/manifest.json")))

    with stages.sigterm_once(saved):
        stages.run("train", code=143, run_uri=folder / "coco", **TRAINING)
    stages.run("train", run_uri=folder / "coco", **TRAINING)
    lines = json.loads((folder / "coco/train/losses.json").read_text())
    return {"losses": [[line["step"], line["loss"], line.get("eval_loss")] for line in lines]}


EXIT_CODES: list[tuple[str, dict[str, Any], int]] = [
    ("convert", {"check": True, "run_uri": "r", "source": "scenes"}, 0),
    ("convert", {"check": True, "run_uri": "r", "source": "scenes", "sauce": "x"}, 64),
    ("convert", {"check": True, "run_uri": "ftp://r", "source": "scenes"}, 78),
    ("convert", {"check": True, "run_uri": "r", "source": "samples", "input_uri": "x", "frame": "guessed"}, 78),
    ("convert", {"run_uri": "TMP/a", "source": "samples", "input_uri": "TMP/not-there.jsonl"}, 65),
    ("distill", {"run_uri": "TMP/none"}, 65),
    ("tokenize", {"run_uri": "TMP/none", "base_uri": "TMP/base"}, 65),
    ("train", {"check": True, "run_uri": "r", "base_uri": "b", "batch_size": 0}, 78),
    ("evaluate", {"check": True, "run_uri": "r", "max_new_tokens": -1}, 78),
]


def everything(folder: Path) -> dict[str, Any]:
    return {
        "frames": vectors.frames(), "rewards": vectors.rewards(), "convert": converted(folder),
        "distill": distilled(folder), "tokenize": tokenized(folder), "train": trained(folder),
    }  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frozen")


@pytest.fixture(scope="module")
def frozen() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FROZEN.read_text())
    return found


@pytest.mark.parametrize(("name", "made"), [("frames", vectors.frames), ("rewards", vectors.rewards)])
def test_vectors(name: str, made: Callable[[], Any], frozen: dict[str, Any]) -> None:
    assert json.loads(json.dumps(made())) == frozen[name]


def test_shards_tokens_and_losses(folder: Path, frozen: dict[str, Any]) -> None:
    assert converted(folder) == frozen["convert"]
    assert distilled(folder) == frozen["distill"]
    assert tokenized(folder) == frozen["tokenize"]
    now = trained(folder)["losses"]
    was = frozen["train"]["losses"]
    assert [line[0] for line in now] == [line[0] for line in was]
    assert [loss for line in now for loss in line[1:]] == [
        None if loss is None else pytest.approx(loss, rel=TOLERANCE) for line in was for loss in line[1:]
    ]


@pytest.mark.parametrize(("stage", "settings", "code"), EXIT_CODES)
def test_exit_code(stage: str, settings: dict[str, Any], code: int, tmp_path: Path) -> None:
    given = {
        name: str(value).replace("TMP", str(tmp_path)) if value is not True else True
        for name, value in settings.items()
    }
    stages.run(stage, code=code, **given)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        FROZEN.write_text(json.dumps(everything(Path(scratch)), indent=1) + "\n")
    print(f"written: {FROZEN}", file=sys.stderr)
