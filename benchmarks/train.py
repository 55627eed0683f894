"""How fast training is, beside TRL's SFTTrainer on the same rows.

    python -m benchmarks.train --base examples/rehearsal --rounds 3

The same rows (benchmarks.rows), adapters (rank 16 on the language model, dropout 0.05), dtype, optimiser (fused AdamW)
and nearly as many rows in a step; trained one after the other in this process, in turns, each on a base that is loaded
anew. A training is timed from its beginning to the end of its last step, with all that belongs to it: ours reads
tokenised Parquet and prepares images, TRL's trainer decodes images, applies the chat template, tokenises and prepares
images in its collator. The first round warms up and is not counted. Seconds of the wall belong to whoever else is on
the machine, too; so what counts is the ratio within a round.

    packed, unpacked    --packing on and off, no cache of prepared images: the first epoch of any training
    cached              unpacked, a second epoch, its images prepared already
    TRL                 its defaults (activation checkpointing on), max_length off
    TRL, kept           the same without activation checkpointing
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as jobs.train has it; before torch is loaded

import torch
from transformers import AutoModelForImageTextToText
from transformers.utils import logging as transformers_logging

from benchmarks.distill import spread
from benchmarks.rows import ROOT, ROW_SETS, encoder_of, examples
from benchmarks.trainings import Clock, ours, trl
from vcot import logging
from vcot.models.device import use_device
from vcot.models.loading import load_base
from vcot.records.example import Examples
from vcot.training.batches import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "examples" / "rehearsal", help="folder of a base model")
    parser.add_argument("--rounds", type=int, default=3, help="that count, after one that does not")
    parser.add_argument("--rows", type=int, default=96, help="of each set")
    parser.add_argument("--batch-rows", type=int, default=8, help="rows of a step (TRL's own default)")
    parser.add_argument("--sets", nargs="+", choices=ROW_SETS, default=list(ROW_SETS))
    options = parser.parse_args()
    use_device("cpu")
    logging.configure()
    logging.quiet()
    transformers_logging.disable_progress_bar()
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {options.base.name}"
    )
    for name in options.sets:
        compare(name, options.base, options.rows, options.batch_rows, options.rounds)


@dataclass(frozen=True)
class Result:
    """A training's rows, tokens, steps and the slots it computed; seconds of the wall and of a core."""

    rows: int
    tokens: int
    slots: int
    steps: int
    wall: float
    cpu: float

    @classmethod
    def of(cls, clock: Clock, *, epoch: int = 1, epochs: int = 1) -> Result:
        """Of one epoch of a training."""
        steps = len(clock.wall) // epochs
        first, last = (epoch - 1) * steps, epoch * steps - 1
        batches = clock.batches[first : last + 1]
        before = (clock.wall[first - 1], clock.cpu[first - 1]) if first else (0.0, 0.0)
        return cls(
            rows=sum(len(batch.lengths) for batch in batches),
            tokens=sum(sum(batch.lengths) for batch in batches),
            slots=sum(batch.slots for batch in batches),
            steps=steps,
            wall=clock.wall[last] - before[0],
            cpu=clock.cpu[last] - before[1],
        )


def compare(name: str, base: Path, count: int, batch_rows: int, rounds: int) -> None:
    rows = ROW_SETS[name](count)
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        scratch = Path(folder)
        encoder = encoder_of(base, rows)
        made = examples(rows, encoder, scratch / "rows.parquet")
        lengths = [row.tokens for row in made.rows]
        plans = {packed: plan_for(made, packed=packed, batch_rows=batch_rows) for packed in (True, False)}

        def our(*, packed: bool, cached: bool = False) -> Result:
            epochs = 1 + cached
            model = load_base(base, dtype="float32")
            clock = ours(
                model, encoder, made, Path(tempfile.mkdtemp(dir=scratch)), packed=packed,
                batch_tokens=plans[packed][0], epochs=epochs, cache_bytes=cached << 30, dtype="float32",
            )  # fmt: skip
            return Result.of(clock, epoch=epochs, epochs=epochs)

        def their(*, checkpointing: bool) -> Result:
            model = AutoModelForImageTextToText.from_pretrained(str(base), dtype=torch.float32, local_files_only=True)
            kept = {} if checkpointing else {"gradient_checkpointing": False}
            return Result.of(trl(model, encoder, rows, made, scratch / "trl", batch_rows=batch_rows, **kept))

        subjects: dict[str, Callable[[], Result]] = {
            "packed": lambda: our(packed=True),
            "unpacked": lambda: our(packed=False),
            "cached": lambda: our(packed=False, cached=True),
            "TRL": lambda: their(checkpointing=True),
            "TRL, kept": lambda: their(checkpointing=False),
        }
        found: dict[str, list[Result]] = {subject: [] for subject in subjects}
        for number in range(rounds + 1):
            turn = list(subjects) if number % 2 else list(reversed(subjects))
            for subject in turn:
                result = subjects[subject]()
                if number:
                    found[subject].append(result)
    tell(name, lengths, found)
    (packed, packed_plan), (padded, padded_plan) = plans[True], plans[False]
    print(
        f"  slots, packed over unpacked: {packed_plan.slots / padded_plan.slots:.2f} (batches of {packed} and {padded})"
    )


def plan_for(made: Examples, *, packed: bool, batch_rows: int) -> tuple[int, Plan]:
    """The fewest tokens of a batch with which steps have so many rows on average, and the plan of an epoch."""
    low, high = max(row.tokens for row in made.rows), batch_rows * max(row.tokens for row in made.rows)
    while True:
        tokens = (low + high) // 2
        plan = Plan.of(made.rows, batch_tokens=tokens, packed=packed, batches_per_step=1, epochs=1, seed=1)
        if low == high:
            return tokens, plan
        if len(plan.steps) * batch_rows > len(made):
            low = tokens + 1
        else:
            high = tokens


def tell(name: str, lengths: list[int], found: dict[str, list[Result]]) -> None:
    mean = sum(lengths) / len(lengths)
    print(
        f"\n{name}: {len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens, {mean:.0f} on average", flush=True
    )
    print("             rows/s  tokens/s  CPU ms/row  rows/step  real tokens  times TRL's rows/s (of CPU)")
    for subject, results in found.items():
        one, pairs = results[0], list(zip(results, found["TRL"], strict=True))
        wall = [(own.rows / own.wall) / (theirs.rows / theirs.wall) for own, theirs in pairs]
        cpu = [(own.rows / own.cpu) / (theirs.rows / theirs.cpu) for own, theirs in pairs]
        each = median(r.cpu / r.rows for r in results) * 1000
        print(
            f"  {subject:10} {median(r.rows / r.wall for r in results):7.1f} "
            f"{median(r.tokens / r.wall for r in results):9,.0f} {each:11.1f} "
            f"{one.rows / one.steps:10.1f} {one.tokens / one.slots:12.2f}  {spread(wall)} ({spread(cpu)})"
        )
    pairs = list(zip(found["unpacked"], found["packed"], strict=True))
    wall, cpu = [a.wall / b.wall for a, b in pairs], [a.cpu / b.cpu for a, b in pairs]
    print(f"  packed is {spread(wall)} times as fast as unpacked ({spread(cpu)} of CPU);", end="")


if __name__ == "__main__":
    main()
