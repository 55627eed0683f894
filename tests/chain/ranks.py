"""One training by 1, 2 and 4 ranks, whole and in shards, killed and stopped: the same losses.

    python -m tests.chain.ranks --steps 20 --kills 2 --seed 1

`python -m jobs.train` runs on drawn scenes with the rehearsal base, in float32 without dropout and noise, always four
batches a step. Each way of doing it (adapters or all weights, DDP or FSDP2, 1, 2 or 4 ranks, gloo) is held against
one process, step by step. Then two ranks are killed with SIGKILL (one of them) or stopped with SIGTERM (their
launcher) after a random step, must end with 137 or 143, and go on as two, four or one rank to the same losses.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.training.toy import BASE, by_text, encoded, encoder_of, examples, tokenized

ROOT = Path(__file__).parents[2]
BATCHES = 4
TOLERANCE = 1e-5
ADAPTERS = {"tune": "lora", "lora_r": "4", "lora_dropout": "0", "learning_rate": "1e-3"}
FULL = {"tune": "full", "learning_rate": "1e-4"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    asked = parser.parse_args()
    dice, bad = random.Random(asked.seed), 0
    with tempfile.TemporaryDirectory(prefix="ranks-") as scratch:
        folder = Path(scratch)
        encoder = encoder_of(BASE)
        made = [*examples(encoder, 12, 4, alternatives=1), *encoded(encoder, [by_text(n) for n in range(5)])]
        tokenized(str(folder / "source"), encoder, made)
        for tune in (ADAPTERS, FULL):
            calm = losses(folder, tune, 1, "ddp", asked.steps)
            for parallel in ("ddp", "fsdp"):
                for ranks in asked.ranks:
                    begun = time.monotonic()
                    found = losses(folder, tune, ranks, parallel, asked.steps)
                    bad += told(f"{tune['tune']} {parallel} {ranks} ranks", calm, found, time.monotonic() - begun)
            for number in range(2 * asked.kills):
                by, then = (signal.SIGKILL, signal.SIGTERM)[number % 2], dice.choice([1, 2, 4])
                parallel = "ddp" if then == 1 or tune is ADAPTERS else "fsdp"
                step = dice.randrange(1, asked.steps - 1)
                begun = time.monotonic()
                run = folder / f"{tune['tune']}-{number}"
                found = interrupted(run, folder, tune, parallel, asked.steps, by, step, then)
                what = f"{tune['tune']} {parallel} 2 ranks, {by.name} after step {step}, then {then}"
                bad += told(what, calm, found, time.monotonic() - begun)
    return min(bad, 1)


def told(what: str, calm: list[float], found: list[float], seconds: float) -> bool:
    """Prints the largest difference; whether it is too large."""
    apart = max(abs(a - b) / abs(a) for a, b in zip(calm, found, strict=True))
    print(f"{what:<60} {len(found)} losses, at most {apart:.1e} apart   {seconds:.0f} s", flush=True)
    return apart > TOLERANCE


def losses(folder: Path, tune: dict[str, str], ranks: int, parallel: str, steps: int) -> list[float]:
    run = folder / f"{tune['tune']}-{parallel}-{ranks}"
    process = started(run, folder, tune, ranks, parallel, steps, BATCHES // ranks, steps)
    assert process.wait() == 0, run.with_suffix(".log").read_text()[-3000:]
    return read(run)


def interrupted(
    run: Path, folder: Path, tune: dict[str, str], parallel: str, steps: int, by: signal.Signals, step: int, then: int
) -> list[float]:
    """Two ranks, one killed or all stopped once there is a checkpoint of that step; then others go on."""
    process = started(run, folder, tune, 2, parallel, steps, BATCHES // 2, 1)
    while not list(run.glob(f"train/checkpoints/step-{step:06d}-*/manifest.json")):
        assert process.poll() is None, run.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.02)
    if by == signal.SIGTERM:
        process.send_signal(by)
    else:
        os.kill(ranks_of(process.pid)[1], by)
    code = process.wait()
    assert code == (143 if by == signal.SIGTERM else 137), (code, run.with_suffix(".log").read_text()[-3000:])
    process = started(run, folder, tune, then, parallel, steps, BATCHES // 2, 1)
    assert process.wait() == 0, run.with_suffix(".log").read_text()[-3000:]
    return read(run)


def ranks_of(launcher: int) -> list[int]:
    """Processes that the launcher started, in order."""
    children = Path(f"/proc/{launcher}/task").glob("*/children")
    return sorted(int(pid) for path in children for pid in path.read_text().split())


def started(
    run: Path, folder: Path, tune: dict[str, str], ranks: int, parallel: str, steps: int, accumulation: int, save: int
) -> subprocess.Popen[bytes]:
    run.mkdir(exist_ok=True)
    if not (run / "tokenize").exists():
        (run / "tokenize").symlink_to(folder / "source/tokenize")
    given = {
        "run_uri": run, "base_uri": BASE, "dtype": "float32", "device": "cpu", "optim": "adamw_torch_fused",
        "neftune_noise_alpha": 0, "batch_tokens": 120, "gradient_accumulation_steps": accumulation,
        "max_steps": steps, "eval_steps": steps, "save_steps": save,
        "parallel": parallel, "nproc_per_node": ranks, "report_to": "none", "early_stopping_patience": 0,
    } | tune  # fmt: skip
    flags = [str(word) for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.train", *flags], cwd=ROOT, env=environment, stdout=log, stderr=log
        )


def read(run: Path) -> list[float]:
    return [line["loss"] for line in json.loads((run / "train/losses.json").read_text())]


if __name__ == "__main__":
    sys.exit(main())
