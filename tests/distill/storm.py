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
from pathlib import Path
from unittest.mock import patch

from tests.fakes.distilling import converted, distill, files, finished, start
from tests.fakes.teacher import Answer, Asked, Say, Teacher, faulty, scripted_teacher
from vcot.distill.budget import Ledger, budget_of
from vcot.distill.costs import PICO, read_prices
from vcot.records import Completion
from vcot.records.shards import DISTILL, read_marker
from vcot.storage import Store

LARGE = 1000.0  # US dollars: a budget that is not met

ALONE = ("--no-self-consistency", "--no-crop-check", "--no-answer-from-evidence", "--no-propose")
"""One request for each row."""


def reference(asked: Asked) -> str:
    """Names a request in the text of its reply."""
    return "r" + hashlib.sha256(asked.words.encode()).hexdigest()[:12]


def answer(asked: Asked) -> Answer:
    """Mostly good, within 0.2 s; some rows get wrong boxes at first, and some for ever."""
    number = int(re.findall(r"\d+", asked.question)[0])
    repaired = "thrown away" in asked.words
    wait = random.Random(asked.words).random() * 0.2
    if number % 17 == 3 or (number % 13 == 5 and not repaired):
        return Say(f"I see the [1] at [31, 83, 188, 292], {reference(asked)}.", wait=wait)
    return Say(f"I see the [1], {reference(asked)}, {asked.answer}.\nAnswer: {asked.answer}", wait=wait)


def weather(folder: Path, rows: int, concurrency: int = 10, *, small: float, seed: int = 1) -> dict[str, object]:
    """A run in the storm, and one in the calm. Raises AssertionError where a promise is broken.

    Args:
        small: US dollars, a budget that is met.
    """
    run, calm = (converted(folder, rows, 4, f"{name}-{concurrency}/one") for name in ("storm", "calm"))
    begun, price = time.monotonic(), read_prices(Store()).of("gpt-4o")
    assert price is not None

    def begin(budget: float = LARGE) -> subprocess.Popen[str]:
        options = {
            "model": "gpt-4o", "concurrency": concurrency, "reply-tokens": 64, "image-side": 64,
            "budget-usd": budget, "max-rejected-share": 0.5, "timeout": 20,
        }  # fmt: skip
        return start(str(run), teacher, *(f"--{name}={value}" for name, value in options.items()), *ALONE)

    def kept() -> set[str]:
        """References of the replies that are stored."""
        found = (run.parent / "_cache" / "distill").rglob("*.json")
        texts = (Completion.model_validate_json(path.read_bytes()).text for path in found)
        return {named for text in texts for named in re.findall(r"r[0-9a-f]{12}", text)}

    def paid_and_booked() -> tuple[float, float]:
        ledger = Ledger(Store(), str(run / "distill"), budget_of(None, None, None))
        return price.cost(teacher.tokens_in, teacher.tokens_out) / PICO, ledger.taken().pico / PICO

    def none_twice(before: int, stored: set[str]) -> None:
        again = {reference(asked) for asked in teacher.asked[before:]} & stored
        assert not again, f"{len(again)} stored replies were asked for again"

    teacher: Teacher
    with scripted_teacher(faulty(answer, share=0.2, seed=seed)) as teacher:
        said = finished(begin(small), 21)
        assert "--budget-usd is spent" in said, said
        paid, booked = paid_and_booked()
        assert paid <= small
        assert small / 2 <= booked <= small

        stored, before, process = kept(), len(teacher.asked), begin()
        until = before + round((rows - len(stored)) * random.Random(seed).uniform(0.2, 0.5))
        while len(teacher.asked) < until:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        finished(process, -signal.SIGKILL)
        none_twice(before, stored)

        stored, before = kept(), len(teacher.asked)
        finished(begin())
        none_twice(before, stored)
        paid, booked = paid_and_booked()
        assert booked >= paid
        asked, most = len(teacher.asked), teacher.most_at_once
        assert len({one.question for one in teacher.asked}) == rows
    marker, _ = read_marker(Store(), str(run / "distill"), DISTILL)
    assert marker.row_counts.rows == rows == marker.row_counts.kept + marker.row_counts.rejected_rows
    with scripted_teacher(answer) as teacher, patch.dict(os.environ, OPENAI_API_KEY="x", NO_PROXY="127.0.0.1"):
        distill(calm, teacher, max_rejected_share=0.5)
    assert files(run) == files(calm), "other bytes than in the calm"
    seconds = round(time.monotonic() - begun, 1)
    return {"asked": asked, "seconds": seconds, "most_at_once": most, "in_all": paid, "booked_in_all": booked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--concurrency", default="10,50,200")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as scratch:
        for concurrency in map(int, given.concurrency.split(",")):
            seen = weather(Path(scratch), given.rows, concurrency, seed=given.seed, small=given.rows * 0.0005)
            print(json.dumps({"rows": given.rows, "concurrency": concurrency} | seen), flush=True)


if __name__ == "__main__":
    main()
