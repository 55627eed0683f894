"""distill in a storm: faults, an empty budget, kill -9; what comes out must be what comes out in the calm.

    python -m tests.distill.storm --rows 5000 --concurrency 10,50,200

For each concurrency: a run whose teacher fails at 20 % of the requests is begun with a small budget until it ends
with exit code 21, goes on with a larger one, is killed at a random moment, and goes on to the end. Checked: no row
is lost; no reply that was stored is asked for again; the teacher was never paid more than the budget, and neither
does the ledger say so; shards and rejections are, byte for byte, those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from tests.fakes.distilling import converted, distill, files, finished, start
from tests.fakes.teacher import Answer, Asked, Say, Teacher, faulty, scripted_teacher
from vcot.distill.budget import Ledger, budget_of
from vcot.distill.costs import PICO, read_prices
from vcot.records import Completion
from vcot.records.shards import read_marker
from vcot.storage import Store

LARGE = 1000.0
"""US dollars: a budget that is not met."""

LONGEST = 0.2
"""Seconds until an answer."""


def reference(asked: Asked) -> str:
    """Names a request in the text of its reply."""
    return "r" + hashlib.sha256(asked.words.encode()).hexdigest()[:12]


def answer(asked: Asked) -> Answer:
    """Mostly good, sooner or later; some rows get wrong boxes at first, and some for ever."""
    number = int(re.findall(r"\d+", asked.question)[0])
    repaired = "thrown away" in asked.words
    wait = random.Random(asked.words).random() * LONGEST
    if number % 17 == 3 or (number % 13 == 5 and not repaired):
        return Say(f"I see the [1] at [31, 83, 188, 292], {reference(asked)}.", wait=wait)
    return Say(f"I see the [1], {reference(asked)}, {asked.answer}.\nAnswer: {asked.answer}", wait=wait)


@dataclass
class Storm:
    """A run under one teacher, whose processes may end badly."""

    run: Path
    teacher: Teacher
    concurrency: int = 10

    def start(self, budget: float = LARGE) -> subprocess.Popen[str]:
        options = {
            "model": "gpt-4o", "concurrency": self.concurrency, "reply-tokens": 64, "image-side": 64,
            "budget-usd": budget, "max-rejected-share": 0.5, "timeout": 20,
        }  # fmt: skip
        alone = (
            "--no-self-consistency",
            "--no-crop-check",
            "--no-answer-from-evidence",
            "--no-propose",
        )  # one request for each row
        return start(str(self.run), self.teacher, *(f"--{name}={value}" for name, value in options.items()), *alone)

    def kept(self) -> set[str]:
        """References of the replies that are stored."""
        found = (self.run.parent / "_cache" / "distill").rglob("*.json")
        texts = (Completion.model_validate_json(path.read_bytes()).text for path in found)
        return {named for text in texts for named in re.findall(r"r[0-9a-f]{12}", text)}

    def paid(self) -> float:
        price = read_prices(Store()).of("gpt-4o")
        assert price is not None
        return price.cost(self.teacher.tokens_in, self.teacher.tokens_out) / PICO

    def booked(self) -> float:
        """What the ledger says was taken."""
        return Ledger(Store(), str(self.run / "distill"), budget_of(None, None, None)).taken().pico / PICO


def calm(folder: Path, rows: int) -> dict[str, str]:
    """What an undisturbed run gives."""
    run = converted(folder, rows, 4, "calm/one")
    with scripted_teacher(answer) as teacher, patch.dict(os.environ, OPENAI_API_KEY="x", NO_PROXY="127.0.0.1"):
        distill(run, teacher, max_rejected_share=0.5)
    return files(run)


def weather(folder: Path, rows: int, concurrency: int, *, share: float, seed: int, small: float) -> dict[str, object]:
    """A run in the storm; raises AssertionError where a promise is broken. Returns what it saw, and its files.

    Args:
        share: of the requests that meet with a fault, 0..1.
        small: US dollars, a budget that is met.
    """
    run, rng = converted(folder, rows, 4, f"storm-{concurrency}/one"), random.Random(seed)
    begun = time.monotonic()
    with scripted_teacher(faulty(answer, share=share, seed=seed)) as teacher:
        storm = Storm(run, teacher, concurrency)
        said = finished(storm.start(small), 21)
        assert "--budget-usd is spent" in said, said
        assert storm.paid() <= small, (storm.paid(), small)
        assert small >= storm.booked() >= small / 2, storm.booked()

        stored, before = storm.kept(), len(teacher.asked)
        process = storm.start()
        until = before + round((rows - len(stored)) * rng.uniform(0.2, 0.5))
        while len(teacher.asked) < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        finished(process, -signal.SIGKILL)
        again = {reference(asked) for asked in teacher.asked[before:]} & stored
        assert not again, f"{len(again)} stored replies were asked for again"

        stored, before = storm.kept(), len(teacher.asked)
        finished(storm.start())
        again = {reference(asked) for asked in teacher.asked[before:]} & stored
        assert not again, f"{len(again)} stored replies were asked for again after a kill"
        assert storm.booked() >= storm.paid()
    marker, _ = read_marker(Store(), str(run / "distill"))
    assert marker.row_counts.rows == rows == marker.row_counts.kept + marker.row_counts.rejected_rows
    assert len({asked.question for asked in teacher.asked}) == rows
    return {
        "asked": len(teacher.asked), "seconds": round(time.monotonic() - begun, 1), "files": files(run),
        "most_at_once": teacher.most_at_once, "in_all": storm.paid(), "booked_in_all": storm.booked(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--concurrency", default="10,50,200")
    parser.add_argument("--share", type=float, default=0.2, help="of the requests that meet with a fault, 0..1")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as scratch:
        expected = calm(Path(scratch), given.rows)
        for concurrency in map(int, given.concurrency.split(",")):
            small = given.rows * 0.0005
            seen = weather(Path(scratch), given.rows, concurrency, share=given.share, seed=given.seed, small=small)
            assert seen.pop("files") == expected, "other bytes than in the calm"
            print(json.dumps({"rows": given.rows, "concurrency": concurrency} | seen), flush=True)


if __name__ == "__main__":
    main()
