"""What distill pays: ceilings, dry runs, batches, and a storm that changes nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.distill import DistillSettings, run
from tests.fakes.batches import Batches
from tests.fakes.teacher import Answer, Asked, Refuse, Say, Teacher, grounded, miscounted, scripted_teacher
from tests.teacher import storm
from vcot.errors import BudgetSpent, InputError, SettingsError, TemporaryError
from vcot.records.shards import read_mark, read_samples
from vcot.storage import Store
from vcot.teacher import batch, batches, treasury

ALONE = {"twice": False, "look": False, "reanswer": False, "propose": False}
"""One question for each row."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_OPENAI_ENDPOINT", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(batches, "POLL", 0.01)


def distilled(where: Path, teacher: Teacher | None, **given: Any) -> None:
    endpoints = (teacher.address,) if teacher is not None else ()
    settings = {"teacher": "openai", "model": "gpt-4o", "endpoints": endpoints, "reply_tokens": 64, "image_side": 64}
    run(DistillSettings(run_uri=str(where), **(settings | ALONE | given)))


def report(where: Path) -> dict[str, Any]:
    return json.loads((where / "distill" / "report.json").read_text())  # type: ignore[no-any-return]


def converted(folder: Path, number: int, shards: int = 2) -> Path:
    where = folder / "runs" / "one"
    storm.convert(where, storm.rows(folder, number), shards)
    return where


# ------------------------------------------------------------------------------------------------------- ceilings


def test_a_ceiling_is_met_and_more_goes_on_from_there(tmp_path: Path) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        with pytest.raises(BudgetSpent, match=r"--budget-requests is spent.*about [4-7] of 12 rows") as spent:
            distilled(where, teacher, budget_requests=6, concurrency=2)
        assert spent.value.exit_code == 21
        assert len(teacher.asked) == 6
        with pytest.raises(BudgetSpent):  # it does not begin anew
            distilled(where, teacher, budget_requests=6)
        assert len(teacher.asked) == 6
        distilled(where, teacher, budget_requests=12)
        assert len(teacher.asked) == 12


def test_the_rest_is_what_is_still_to_be_asked_and_not_what_is_kept(tmp_path: Path) -> None:
    where = converted(tmp_path, 40)
    with scripted_teacher() as teacher:
        for limit in (10, 31):  # the second begins with the replies of the first
            rest = rf"about {40 - limit} of 40 rows, would take about {40 - limit} requests, .* about \$0\.0\d+\b"
            with pytest.raises(BudgetSpent, match=rest):
                distilled(where, teacher, budget_requests=limit, concurrency=20)
        assert len(teacher.asked) == 31


def test_the_rest_of_very_many_rows_is_told_from_a_part_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(treasury, "LOOKED_UP", 10)
    where = converted(tmp_path, 40)
    with scripted_teacher() as teacher, pytest.raises(BudgetSpent, match=r"about (20|24|28) of 40 rows"):
        distilled(where, teacher, budget_requests=16, concurrency=1)


@pytest.mark.parametrize(("limit", "flag"), [({"budget_usd": 0.03}, "usd"), ({"budget_tokens": 12000}, "tokens")])
def test_dollars_and_tokens_are_never_passed(tmp_path: Path, limit: dict[str, float], flag: str) -> None:
    where = converted(tmp_path, 200)
    with scripted_teacher() as teacher:
        with pytest.raises(BudgetSpent, match=f"--budget-{flag} is spent"):
            distilled(where, teacher, concurrency=8, **limit)
        assert len(teacher.asked) >= 40
        assert 0 < teacher.tokens_in + teacher.tokens_out <= limit.get("budget_tokens", 10**6)
        assert teacher.tokens_in * 2.5e-6 + teacher.tokens_out * 10e-6 <= limit.get("budget_usd", 10**6)


PAID = (700, 60)
"""Tokens that a reply is really paid for, whatever it says."""

SINGLY = PAID[0] * 2.5e-6 + PAID[1] * 10e-6
"""US dollars of one such reply."""


def lying(usage: Any) -> Callable[[Asked], Answer]:
    return lambda asked: miscounted(grounded(asked), usage, PAID)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 700}, {"prompt_tokens": 700, "completion_tokens": 0}, {"completion_tokens": 60},
        {"prompt_tokens": -700, "completion_tokens": 60}, {"prompt_tokens": 10**400, "completion_tokens": 10**400},
    ],
    ids=["no completion", "zero completion", "no prompt", "negative prompt", "absurd"],
)  # fmt: skip
def test_no_count_that_an_endpoint_makes_up_lets_a_ceiling_be_passed(tmp_path: Path, usage: Any) -> None:
    where = converted(tmp_path, 60)
    with scripted_teacher(lying(usage)) as teacher:
        with pytest.raises(BudgetSpent, match="--budget-usd is spent"):
            distilled(where, teacher, budget_usd=0.03, concurrency=2)
        assert 0 < len(teacher.asked) * SINGLY <= 0.03


def test_batch_replies_that_do_not_say_their_tokens_count_with_the_most_they_can_be(tmp_path: Path) -> None:
    where = converted(tmp_path, 60)
    with scripted_teacher(lying(None)) as teacher:
        there = Batches(teacher)
        with pytest.raises(BudgetSpent, match="--budget-usd is spent"):
            distilled(where, teacher, batch=True, budget_usd=0.04, concurrency=2)
        paid = len(there.lines) * SINGLY / 2 + len(teacher.asked) * SINGLY
        assert there.lines
        assert paid <= 0.04
        first, *_ = (json.loads(path.read_text()) for path in done_batches(where))
        assert first["usd"] >= first["kept"] * SINGLY / 2


def done_batches(where: Path) -> list[Path]:
    return sorted((where / "distill" / "_batches").glob("*.done.json"))


def test_every_request_that_leaves_the_process_counts_against_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vcot.teacher.desk.FIRST_PAUSE", 0.001)
    where = converted(tmp_path, 20)
    met: Counter[str] = Counter()

    def failing(asked: Asked) -> Answer:
        met[asked.question] += 1
        if asked.purpose and asked.number < 3:
            return Refuse(400, "response_format: json_schema is not supported")
        return grounded(asked) if met[asked.question] > 2 else Refuse(500)

    with scripted_teacher(failing) as teacher:
        with pytest.raises(BudgetSpent, match="--budget-requests is spent"):
            distilled(where, teacher, budget_requests=25, concurrency=2)
        assert len(teacher.asked) == 25


def test_an_absurd_count_changes_no_later_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = converted(tmp_path, 12)

    def sometimes(asked: Asked) -> Answer:
        usage = {"prompt_tokens": 10**12, "completion_tokens": 10**400}
        return miscounted(grounded(asked), usage, PAID) if asked.number == 0 else grounded(asked)

    with scripted_teacher(sometimes) as teacher:
        with pytest.raises(BudgetSpent, match=r"and cost about \$0\.0\d") as spent:
            distilled(where, teacher, budget_requests=11, concurrency=1)
        assert len(teacher.asked) == 11, spent.value
        distilled(where, teacher, dry_run=True)
        assert re.search(r"cost +about \$0\.00\d", capsys.readouterr().out)
        distilled(where, teacher, budget_usd=1, concurrency=1)
    assert report(where)["costs"]["made"]["usd"] < 0.1


def test_each_shard_has_its_part_and_what_a_finished_one_left_goes_to_the_others(tmp_path: Path) -> None:
    where = converted(tmp_path, 8)
    for part in ("prepare", "shards"):
        if part == "prepare":
            distilled(where, None, part="prepare", budget_requests=8)
            continue
        with scripted_teacher() as teacher:
            distilled(where, teacher, part="shards", shard=0, budget_requests=8)
            with pytest.raises(SettingsError, match=r"--budget-requests 9 here.*--budget-requests 8 in --part prepare"):
                distilled(where, teacher, part="shards", shard=1, budget_requests=9)
            assert len(teacher.asked) == 4
            teacher.script = lambda asked: Say("nothing of use")  # each row is asked twice
            with pytest.raises(BudgetSpent, match="shard 1"):
                distilled(where, teacher, part="shards", shard=1, budget_requests=8)
            assert len(teacher.asked) == 8


def test_a_shard_without_a_plan_does_not_guess_its_part(tmp_path: Path) -> None:
    where = converted(tmp_path, 4)
    with pytest.raises(InputError, match="run --part prepare"):
        distilled(where, None, part="shards", shard=0, budget_requests=8)


def test_dollars_are_not_limited_by_a_guess(tmp_path: Path) -> None:
    where = converted(tmp_path, 4)
    with pytest.raises(SettingsError, match=r"unknown price of my-model.*--prices FILE.*--budget-tokens"):
        distilled(where, None, model="my-model", budget_usd=5)


# -------------------------------------------------------------------------------------------------- what it would be


def test_a_dry_run_counts_and_sends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        distilled(where, teacher, dry_run=True)
        said = capsys.readouterr().out
        assert not teacher.asked
        assert not (where / "distill").exists()
        assert "12, of which 12 need new replies" in said
        assert re.search(r"requests +12,", said)
        assert "an estimate" in said
        whole, half = (float(amount) for amount in re.findall(r"about \$([0-9.]+)", said))
        assert 0 < half <= 0.51 * whole
        with pytest.raises(BudgetSpent):
            distilled(where, teacher, budget_requests=5, concurrency=1)
        distilled(where, teacher, dry_run=True)
        assert re.search(r"replies kept +5, free\nrequests +7,.*\n.*\n.*as the 5 kept", capsys.readouterr().out)
        distilled(where, teacher, dry_run=True, model="my-model")
        assert "unknown price" in capsys.readouterr().out


def test_the_report_says_what_a_kept_row_of_each_source_costs(tmp_path: Path) -> None:
    where = converted(tmp_path, 8)
    with scripted_teacher() as teacher:
        distilled(where, teacher)
    cost = report(where)["costs"]["made"]
    assert (cost["requests"], cost["rows_kept"], cost["tokens_in"]) == (8, 8, 800)
    assert cost["usd_a_row_kept"] == 0.00035
    assert cost["usd"] == cost["usd_paid"] == 0.0028


# ------------------------------------------------------------------------------------------------------------ batches


def outputs(where: Path) -> list[str]:
    mark, _ = read_mark(Store(), str(where / "distill"))
    return [row.model_dump_json() for row in read_samples(Store(), str(where / "distill"), mark)]


def test_batches_bring_the_same_rows_for_half_the_price_and_failures_are_asked_singly(tmp_path: Path) -> None:
    where = converted(tmp_path / "batch", 12)
    with scripted_teacher() as teacher:
        there = Batches(teacher, fails=lambda asked: asked.question == "Where is disc 3?")
        distilled(where, teacher, batch=True)
        assert len(there.batches) == 1
        assert len(there.lines) == 12
        assert teacher.questions == ["Where is disc 3?"]
    assert report(where)["costs"]["made"]["usd"] == round(11 * 0.00035 / 2 + 0.00035, 9)
    assert len(outputs(where)) == 12
    other = converted(tmp_path / "single", 12)
    with scripted_teacher() as teacher:
        distilled(other, teacher)
    mine = [line.replace("/batch/", "/single/") for line in outputs(where)]
    assert mine == outputs(other)


def test_a_batch_is_submitted_once_whatever_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = converted(tmp_path, 6)
    with scripted_teacher() as teacher:
        there = Batches(teacher, looks=3)
        there.lose_next_answer = True
        with pytest.raises(TemporaryError, match="run the same command again"):
            distilled(where, teacher, batch=True)
        assert len(there.batches) == 1
        distilled(where, teacher, batch=True)
        assert len(there.batches) == 1  # found again by its name
        assert not teacher.asked
    assert len(outputs(where)) == 6


def test_files_keep_to_the_providers_limits_and_the_budget_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_LINES", 5)
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        there = Batches(teacher)
        with pytest.raises(BudgetSpent, match="about 5 of 12 rows, would take about 5 requests"):
            distilled(where, teacher, batch=True, budget_requests=7)
        assert sorted(data.count(b"custom_id") for name, data in there.files.items() if b"messages" in data) == [2, 5]
        assert not teacher.asked
        distilled(where, teacher, batch=True, budget_requests=12)
        assert len(there.lines) == 12
    assert len(outputs(where)) == 12


def test_further_rounds_ask_what_follows_from_the_first(tmp_path: Path) -> None:
    """Each row's first reply is of no use, so its second question is another batch."""
    where = converted(tmp_path, 6)

    def script(asked: Any) -> Any:
        return grounded(asked) if "thrown away" in asked.words else Say("I see it at [31, 83, 188, 292].")

    with scripted_teacher(script) as teacher:
        there = Batches(teacher)
        distilled(where, teacher, batch=True)
        assert len(there.batches) == 2
        assert not teacher.asked
    assert len(outputs(where)) == 6


def test_an_endpoint_without_batches_is_told(tmp_path: Path) -> None:
    where = converted(tmp_path, 2)
    with scripted_teacher() as teacher, pytest.raises(SettingsError, match=r"takes no batch.*run without --batch"):
        distilled(where, teacher, batch=True)


# -------------------------------------------------------------------------------------------------------- the storm


def test_faults_an_empty_purse_and_a_kill_change_nothing(tmp_path: Path) -> None:
    samples = storm.rows(tmp_path, 60)
    expected = storm.calm(tmp_path, samples)
    seen = storm.weather(tmp_path, samples, 10, share=0.2, seed=3, small=0.05)  # the worst case of five tries
    assert seen["files"] == expected
