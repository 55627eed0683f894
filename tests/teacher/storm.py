"""distill in a storm: faults, an empty purse, kill -9; what comes out must be what comes out in the calm.

    python -m tests.teacher.storm --rows 5000 --concurrency 10,50,200

For each concurrency: a run whose teacher fails at 20 % of the requests is begun with a small ceiling until it ends
with exit code 21, goes on with a larger one, is killed at a random moment, and goes on to the end. Checked: no row
is lost; no reply that was stored is asked for again; the teacher was never paid more than the ceiling, and neither
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
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tests.fakes.faults import faulty
from tests.fakes.teacher import Answer, Asked, Say, Teacher, scripted_teacher
from tests.teacher.made import TOP_LEFT, picture, sample, see
from vcot.records import Completion, Sample
from vcot.records.shards import Folder, ShardWriter, read_mark, run_shards
from vcot.settings import Settings
from vcot.storage import Store
from vcot.teacher.amount import ENDLESS
from vcot.teacher.plan import shard_account
from vcot.teacher.prices import PICO, read_prices

ROOT = Path(__file__).parents[2]
LARGE = 1000.0
"""US dollars: a ceiling that is not met."""

LONGEST = 0.2
"""Seconds until an answer."""


class Converted(Settings):
    """What convert would have written."""

    stage: ClassVar[str] = "convert"


def rows(folder: Path, number: int) -> list[Sample]:
    path = folder / "picture.png"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture())
    there = (see("red disc", TOP_LEFT),)
    return [sample(f"Where is disc {n}?", name=f"row-{n}", uri=str(path), evidence=there) for n in range(number)]


def convert(run: Path, samples: list[Sample], shards: int = 4) -> None:
    def work(writer: ShardWriter) -> None:
        for one in samples[writer.index :: shards]:
            writer.keep(one)

    folder = Folder(Store(), str(run), "convert")
    run_shards(
        folder, Converted(run_uri=str(run)), inputs={}, shards=shards, work=work, max_rejected_share=1.0
    )  # fmt: skip


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
    concurrency: int

    def start(self, budget: float) -> subprocess.Popen[str]:
        environment = {n: v for n, v in os.environ.items() if not n.startswith(("VCOT_", "OPENAI_", "AZURE_"))} | {
            "OPENAI_BASE_URL": self.teacher.address, "OPENAI_API_KEY": "x", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        options = {
            "run-uri": self.run, "teacher": "openai", "model": "gpt-4o", "concurrency": self.concurrency,
            "reply-tokens": 64, "image-side": 64, "budget-usd": budget, "max-rejected-share": 0.5, "timeout": 20,
        }  # fmt: skip
        flags = [f"--{name}={value}" for name, value in options.items()]
        alone = ["--no-twice", "--no-look", "--no-reanswer", "--no-propose"]  # one question for each row
        command = [sys.executable, "-m", "jobs.distill", *flags, *alone]
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)

    def ends(self, process: subprocess.Popen[str], code: int) -> str:
        _, said = process.communicate(timeout=1800)
        assert process.returncode == code, (process.returncode, said)
        return said

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
        """What the ledger says was taken, of all shards."""
        stage = str(self.run / "distill")
        shards = range(len(read_mark(Store(), str(self.run / "convert"))[0].shards))
        return sum(shard_account(Store(), stage, n, ENDLESS, "").taken().pico for n in shards) / PICO


def files(run: Path) -> dict[str, str]:
    found = [path for kind in ("shards", "rejections") for path in (run / "distill" / kind).iterdir()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def calm(folder: Path, samples: list[Sample]) -> dict[str, str]:
    """What an undisturbed run gives."""
    run = folder / "calm" / "run"
    convert(run, samples)
    with scripted_teacher(answer) as teacher:
        storm = Storm(run, teacher, 10)
        storm.ends(storm.start(LARGE), 0)
    return files(run)


def weather(
    folder: Path, samples: list[Sample], concurrency: int, *, share: float, seed: int, small: float
) -> dict[str, object]:
    """A run in the storm; raises AssertionError where a promise is broken. Returns what it saw, and its files.

    Args:
        share: of the requests that meet with a fault, 0..1.
        small: US dollars, a ceiling that is met.
    """
    run, rng = folder / f"storm-{concurrency}" / "run", random.Random(seed)
    convert(run, samples)
    begun = time.monotonic()
    with scripted_teacher(faulty(answer, share=share, seed=seed)) as teacher:
        storm = Storm(run, teacher, concurrency)
        said = storm.ends(storm.start(small), 21)
        assert "--budget-usd is spent" in said, said
        assert storm.paid() <= small, (storm.paid(), small)
        assert small >= storm.booked() >= small / 2, storm.booked()
        met = {"paid": storm.paid(), "booked": storm.booked(), "said": said.strip().splitlines()[-1]}

        stored, before = storm.kept(), len(teacher.asked)
        process = storm.start(LARGE)
        until = before + round((len(samples) - len(stored)) * rng.uniform(0.2, 0.5))
        while len(teacher.asked) < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        storm.ends(process, -signal.SIGKILL)
        again = {reference(asked) for asked in teacher.asked[before:]} & stored
        assert not again, f"{len(again)} stored replies were asked for again"

        stored, before = storm.kept(), len(teacher.asked)
        storm.ends(storm.start(LARGE), 0)
        again = {reference(asked) for asked in teacher.asked[before:]} & stored
        assert not again, f"{len(again)} stored replies were asked for again after a kill"
        assert storm.booked() >= storm.paid()
    mark, _ = read_mark(Store(), str(run / "distill"))
    assert mark.tally.rows == len(samples) == mark.tally.kept + mark.tally.rejected_rows
    assert {asked.question for asked in teacher.asked} == {one.question for one in samples}
    return met | {
        "asked": len(teacher.asked), "seconds": round(time.monotonic() - begun, 1), "files": files(run),
        "most_at_once": teacher.most_at_once, "in_all": storm.paid(), "booked_in_all": storm.booked(),
    }  # fmt: skip


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--concurrency", default="10,50,200")
    parser.add_argument("--share", type=float, default=0.2, help="of the requests that meet with a fault, 0..1")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(None if argv is None else list(argv))
    with tempfile.TemporaryDirectory(prefix="storm-") as scratch:
        samples = rows(Path(scratch), given.rows)
        expected = calm(Path(scratch), samples)
        for concurrency in map(int, given.concurrency.split(",")):
            small = given.rows * 0.0005
            seen = weather(Path(scratch), samples, concurrency, share=given.share, seed=given.seed, small=small)
            assert seen.pop("files") == expected, "other bytes than in the calm"
            print(json.dumps({"rows": given.rows, "concurrency": concurrency} | seen), flush=True)


if __name__ == "__main__":
    main()
