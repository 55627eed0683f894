"""Kills stages with SIGKILL at random moments and holds what comes out against an undisturbed run.

    python -m tests.chain.kill --kills 60 --seed 1

A small chain (drawn scenes, the rehearsal base, a few optimiser steps in fp32 by imitation, then some from rewards and
some of a GFlowNet) runs once undisturbed. Then it runs again under another name. The first kill of each stage falls
into its first half; each further one picks a stage, in proportion to how long it took, and a moment of it. The stage is
started, killed with its children at that moment, and started again with the same command. At the end shards,
rejections, replies, losses and tuned weights of both runs must be the same to the byte.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vcot.pipeline.orchestrator import make_plan
from vcot.settings import STAGES
from vcot.storage import Store, join, put_folder

ROOT = Path(__file__).parents[2]

SMALL: Mapping[str, Mapping[str, str]] = {
    "convert": {"SOURCE": "scenes", "LIMIT": "48", "NUM_SHARDS": "3", "VALIDATION_SHARE": "0.2"},
    "distill": {"TEACHER": "template", "ALTERNATIVES": "2"},
    "tokenize": {"ROLES": "rationale"},
    "train": {
        "TUNE": "qlora", "LORA_R": "8", "DTYPE": "float32", "NUM_TRAIN_EPOCHS": "2",
        "BATCH_TOKENS": "1024", "GRADIENT_ACCUMULATION_STEPS": "1",
        "SAVE_STEPS": "4", "EVAL_STEPS": "8", "LEARNING_RATE": "1e-3",
    },
    "evaluate": {"SPLIT": "validation", "MAX_SAMPLES": "6", "MAX_NEW_TOKENS": "24", "MAX_UNUSABLE_SHARE": "1"},
    "grpo": {
        "METHOD": "grpo", "TUNE": "qlora", "DTYPE": "float32", "LEARNING_RATE": "1e-3", "BETA": "0.01",
        "NUM_GENERATIONS": "4", "QUESTIONS_PER_STEP": "2", "NUM_ITERATIONS": "2", "MAX_COMPLETION_LENGTH": "64",
        "BATCH_TOKENS": "1024", "MAX_STEPS": "8", "SAVE_STEPS": "2", "ROLLOUTS_EVERY": "2",
    },
    "gfn": {
        "METHOD": "gfn", "TUNE": "qlora", "DTYPE": "float32", "LEARNING_RATE": "1e-3", "REPLAY_SHARE": "0.5",
        "NUM_GENERATIONS": "4", "QUESTIONS_PER_STEP": "8", "MAX_COMPLETION_LENGTH": "64", "BATCH_TOKENS": "1024",
        "MAX_STEPS": "8", "SAVE_STEPS": "2", "ROLLOUTS_EVERY": "2",
    },
}  # fmt: skip
METHODS = ("grpo", "gfn")
NAMES = (*STAGES, *METHODS)
"""What is killed: the stages, and trainings from a model's own replies, each stage train of a run <id>-<method>."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.kills < len(NAMES):
        parser.error(f"--kills {asked.kills}: at least {len(NAMES)}, one for each of {', '.join(NAMES)}")
    from tools.s3server import BUCKET, running_s3

    with (
        tempfile.TemporaryDirectory(prefix="kill-") as folder,
        running_s3(Path(folder) / "s3", Path(folder) / "s3.log") as server,
    ):
        os.environ.update(server.env)
        result = compare(f"s3://{BUCKET}/runs", f"s3://{BUCKET}/base", asked.kills, asked.seed)
    print(json.dumps(result, indent=1))
    return 0 if result["same"] else 1


def compare(runs_uri: str, base_uri: str, kills: int, seed: int) -> dict[str, Any]:
    """Runs the chain twice, the second time with kills; says what differs, and where the kills fell."""
    put_folder(Store(), ROOT / "examples" / "rehearsal", base_uri)
    took = {name: finish(name, runs_uri, "calm", base_uri) for name in NAMES}
    moments = draw(took, kills, seed)
    fell: Counter[str] = Counter()
    for name in NAMES:
        for moment in moments[name]:
            fell[f"{name}: {strike(name, runs_uri, 'stormy', base_uri, moment)}"] += 1
        finish(name, runs_uri, "stormy", base_uri)
    calm, stormy = (fingerprint(join(runs_uri, name)) | from_own_replies(runs_uri, name) for name in ("calm", "stormy"))
    differing = sorted(name for name in calm.keys() | stormy.keys() if calm.get(name) != stormy.get(name))
    return {
        "same": not differing, "compared": len(calm), "differing": differing, "kills": dict(sorted(fell.items())),
        "seconds undisturbed": {stage: round(seconds, 1) for stage, seconds in took.items()},
    }  # fmt: skip


def draw(took: Mapping[str, float], kills: int, seed: int) -> dict[str, list[float]]:
    """Stage → seconds after its start at which it is killed, one time after another.

    The first falls into the first half of what the stage took undisturbed: then it has all its work before it, and a
    quicker second run has not ended yet. The same seed and times give the same moments.
    """
    dice = random.Random(seed)
    moments = {name: [dice.uniform(0.0, 0.5) * took[name]] for name in NAMES}
    for _ in range(kills - len(NAMES)):
        (name,) = dice.choices(NAMES, [took[name] for name in NAMES])
        moments[name].append(dice.random() * took[name])
    return moments


def fingerprint(run_uri: str) -> dict[str, object]:
    """What must not depend on kills: the files that the markers name, counts, losses and the tuned weights."""
    store = Store()
    found: dict[str, object] = {}
    for stage in ("convert", "distill", "tokenize", "evaluate"):
        marker = json.loads(store.read(join(run_uri, stage, "_done/stage.json")))
        for shard in marker["shards"]:
            for file in (*shard["files"], shard["rejections"]):
                found[f"{stage}/{file['name']}"] = file["sha256"]
            found[f"{stage}/{shard['shard']} row_counts"] = shard["row_counts"]
    return found | training(run_uri)


def training(run_uri: str) -> dict[str, object]:
    store = Store()
    done = json.loads(store.read(join(run_uri, "train", "_done/stage.json")))
    losses = json.loads(store.read(join(run_uri, "train", "losses.json")))
    return {"train/files": done["metadata"]["files"]} | {f"train/losses {at}": step for at, step in enumerate(losses)}


def from_own_replies(runs_uri: str, run_id: str) -> dict[str, object]:
    """The same of trainings from a model's own replies, and these."""
    store = Store()
    found: dict[str, object] = {}
    for method in METHODS:
        run_uri = join(runs_uri, f"{run_id}-{method}")
        own = training(run_uri)
        for file in store.list(join(run_uri, "train", "rollouts")):
            own[file.uri.rpartition("/")[2]] = hashlib.sha256(store.read(file.uri)).hexdigest()
        found |= {f"{method}: {name}": value for name, value in own.items()}
    return found


def command(name: str) -> list[str]:
    return [sys.executable, "-m", f"jobs.{'train' if name in METHODS else name}"]


def environment(name: str, runs_uri: str, run_id: str, base_uri: str) -> dict[str, str]:
    stage = "train" if name in METHODS else name
    small = {f"VCOT_{stage.upper()}_{setting}": value for setting, value in SMALL[name].items()}
    if name in METHODS:
        small["VCOT_TRAIN_INPUT_URI"] = join(runs_uri, run_id, "tokenize")
        run_id = f"{run_id}-{name}"
    if stage in ("tokenize", "train"):
        small[f"VCOT_{stage.upper()}_BASE_URI"] = base_uri
    if stage == "convert":  # below its own run by default, and a Sample names its image's URI
        small["VCOT_CONVERT_STORED_IMAGES_URI"] = join(runs_uri, "images")
    (step,) = make_plan(run_id, runs_uri, {stage: small}, only=[stage]).steps
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VCOT_")}
    return clean | {"OMP_NUM_THREADS": "1"} | step.environment


def finish(name: str, runs_uri: str, run_id: str, base_uri: str) -> float:
    """Runs the stage to its end; returns the seconds it took."""
    begun = time.monotonic()
    answer = subprocess.run(
        command(name), env=environment(name, runs_uri, run_id, base_uri), cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if answer.returncode:
        raise RuntimeError(f"{name} of {run_id} ended with {answer.returncode}:\n{answer.stderr[-4000:]}")
    return time.monotonic() - begun


def strike(name: str, runs_uri: str, run_id: str, base_uri: str, moment: float) -> str:
    """Starts the stage and kills it with all its children after `moment` seconds."""
    with scratch() as folder:
        process = subprocess.Popen(
            command(name), env=environment(name, runs_uri, run_id, base_uri) | {"TMPDIR": str(folder)}, cwd=ROOT,
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            code = process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "killed"
    if code:
        raise RuntimeError(f"{name} ended by itself with {code} before its kill")
    return "had ended before"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A killed process cannot clean up after itself; its pod's scratch disk goes away, and so does this."""
    with tempfile.TemporaryDirectory(prefix="struck-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
