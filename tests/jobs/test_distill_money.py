"""What distill pays: budgets, dry runs, batches."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.distill import storm
from tests.fakes.batches import Batches
from tests.fakes.distilling import convert, converted, distill, distilled, illustrated, rejections, report
from tests.fakes.teacher import Answer, Asked, Refuse, grounded, miscounted, scripted_teacher
from vcot.distill import batch
from vcot.errors import BudgetSpent, SettingsError, TemporaryError
from vcot.records import Reason

pytestmark = pytest.mark.usefixtures("quick_teacher")


# --- budgets


def test_spent_budget_ends_with_21_and_more_goes_on_from_there(tmp_path: Path) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        rest = r"--budget-requests is spent.*about 6 of 12 rows, would take about 6 requests, .* about \$0\.0\d+\b"
        with pytest.raises(BudgetSpent, match=rest) as spent:
            distill(where, teacher, budget_requests=6, concurrency=2)
        assert spent.value.exit_code == 21
        with pytest.raises(BudgetSpent):  # it does not begin anew
            distill(where, teacher, budget_requests=6)
        assert len(teacher.asked) == 6
        distill(where, teacher, budget_requests=12)
        assert len(teacher.asked) == 12


def test_tokens_are_never_passed(tmp_path: Path) -> None:
    """Dollars: test_faults_an_empty_budget_and_a_kill_change_nothing."""
    with scripted_teacher() as teacher:
        with pytest.raises(BudgetSpent, match="--budget-tokens is spent"):
            distill(converted(tmp_path, 120), teacher, concurrency=8, budget_tokens=12000)
        assert len(teacher.asked) >= 40
        assert 0 < teacher.tokens_in + teacher.tokens_out <= 12000


def test_batch_replies_without_counts_do_not_pass_the_budget(tmp_path: Path) -> None:
    where, paid = converted(tmp_path, 60), 700 * 2.5e-6 + 60 * 10e-6
    with scripted_teacher(lambda asked: miscounted(grounded(asked), None, (700, 60))) as teacher:
        there = Batches(teacher)
        with pytest.raises(BudgetSpent, match="--budget-usd is spent"):
            distill(where, teacher, batch=True, budget_usd=0.04, concurrency=2)
        assert there.lines
        assert len(there.lines) * paid / 2 + len(teacher.asked) * paid <= 0.04
        first = json.loads((where / "distill" / "_batches" / "0000000001.done.json").read_text())
        assert first["usd"] >= first["kept"] * paid / 2


PROMPT = 3300  # tokens, nearly as many as are reserved for it


def thinking(asked: Asked) -> Answer:
    """A reply whose thinking is counted outside its completion tokens, and is longer than any reply may be."""
    reasoning = 600 + 20 * (asked.number % 20)
    usage = {"prompt_tokens": PROMPT, "completion_tokens": 40, "total_tokens": PROMPT + 40 + reasoning}
    usage |= {"completion_tokens_details": {"reasoning_tokens": reasoning}}
    return replace(miscounted(grounded(asked), usage, (PROMPT, 40 + reasoning)), wait=0.02)


@pytest.mark.parametrize("batch", [False, True], ids=["singly", "batch"])
def test_thinking_outside_the_reply_keeps_to_the_budget(tmp_path: Path, batch: bool) -> None:
    where, limit = converted(tmp_path, 120), 0.25
    with scripted_teacher(thinking) as teacher:
        there = Batches(teacher)
        with pytest.raises(BudgetSpent, match="--budget-usd is spent"):
            distill(where, teacher, batch=batch, budget_usd=limit, concurrency=10)
        # What a line of a batch is paid for, the teacher counts in full.
        tokens = [(PROMPT, 640 + 20 * (asked.number % 20)) for asked in there.lines]
        halved = sum(2.5e-6 * a + 10e-6 * b for a, b in tokens) / 2
        paid = 2.5e-6 * teacher.tokens_in + 10e-6 * teacher.tokens_out - halved
        assert bool(there.lines) == batch
    assert limit / 4 < paid <= limit


def test_every_request_that_leaves_the_process_counts(tmp_path: Path) -> None:
    where = converted(tmp_path, 20)
    met: Counter[str] = Counter()

    def failing(asked: Asked) -> Answer:
        met[asked.question] += 1
        if asked.purpose and asked.number < 3:
            return Refuse(400, "response_format: json_schema is not supported")
        return grounded(asked) if met[asked.question] > 2 else Refuse(500)

    with scripted_teacher(failing) as teacher:
        with pytest.raises(BudgetSpent, match="--budget-requests is spent"):
            distill(where, teacher, budget_requests=25, concurrency=2)
        assert len(teacher.asked) == 25


def test_dollars_are_not_limited_by_a_guess(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"unknown price of my-model.*--prices FILE.*--budget-tokens"):
        distill(converted(tmp_path, 4), None, model="my-model", budget_usd=5)


# --- what it would be


def test_dry_run_counts_and_sends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        distill(where, teacher, dry_run=True)
        said = capsys.readouterr().out
        assert not teacher.asked
        assert not (where / "distill").exists()
        assert "12, of which 12 need new replies" in said
        assert re.search(r"requests +12,", said)
        whole, half = (float(amount) for amount in re.findall(r"about \$([0-9.]+)", said))
        assert 0 < half <= 0.51 * whole
        with pytest.raises(BudgetSpent):
            distill(where, teacher, budget_requests=5, concurrency=1)
        distill(where, teacher, dry_run=True)
        assert re.search(r"replies kept +5, free\nrequests +7,.*\n.*\n.*as the 5 kept", capsys.readouterr().out)
        distill(where, teacher, dry_run=True, model="my-model")
        assert "unknown price" in capsys.readouterr().out


# --- batches


def test_failures_of_a_batch_are_asked_singly_and_the_report_says_what_all_did_cost(tmp_path: Path) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        there = Batches(teacher, fails=lambda asked: asked.question == "Where is disc 3?")
        distill(where, teacher, batch=True)
        assert (len(there.batches), len(there.lines)) == (1, 12)
        assert teacher.questions == ["Where is disc 3?"]
    cost = report(str(where))["costs"]["made"]
    assert (cost["kept_replies_used"], cost["requests"], cost["rows_kept"], cost["tokens_in"]) == (11, 1, 12, 1200)
    assert cost["usd"] == round(11 * 0.00035 / 2 + 0.00035, 9)
    assert cost["usd_a_row_kept"] == pytest.approx(cost["usd"] / 12, abs=1e-9)


def test_a_batch_goes_on_without_a_row_whose_image_is_gone(tmp_path: Path) -> None:
    where, rows = tmp_path / "run", illustrated(str(tmp_path), 6)
    assert rows[2].image is not None
    gone = rows[2].image.model_copy(update={"uri": str(tmp_path / "gone.png")})
    convert(str(where), [*rows[:2], rows[2].model_copy(update={"images": (gone,)}), *rows[3:]])
    with scripted_teacher() as teacher:
        there = Batches(teacher)
        distill(where, teacher, batch=True, max_rejected_share=1.0)
        assert len(there.lines) == 5
    marker, made = distilled(str(where))
    assert len(made) == 5
    assert [one.reason for one in rejections(str(where), marker)] == [Reason.IMAGE_MISSING]


@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_batch_of_a_lost_answer_is_not_submitted_again(tmp_path: Path, keeps_metadata: bool) -> None:
    """The creation is dropped, and the batch is not in the list of the endpoint for some time."""
    where = converted(tmp_path, 6)
    with scripted_teacher() as teacher:
        there = Batches(teacher, looks=3)
        there.lose_next_answer, there.lists_before_shown, there.keeps_metadata = True, 2, keeps_metadata
        distill(where, teacher, batch=True)
        assert (len(there.batches), len(there.lines)) == (1, 6)
        assert not teacher.asked
    assert len(distilled(str(where))[1]) == 6


def test_batch_that_was_not_created_is_submitted_again(tmp_path: Path) -> None:
    where = converted(tmp_path, 6)
    with scripted_teacher() as teacher:
        there = Batches(teacher)
        answer, lost = there.answer, [Answer(body=None)]
        teacher.elsewhere = lambda method, path, *more: (
            lost.pop() if lost and (method, path) == ("POST", "/v1/batches") else answer(method, path, *more)
        )
        distill(where, teacher, batch=True)
        assert (len(there.batches), len(there.lines)) == (1, 6)
        assert not teacher.asked


@pytest.mark.parametrize("keeps_metadata", [True, False])
def test_batch_is_submitted_once_whatever_ends_the_process(tmp_path: Path, keeps_metadata: bool) -> None:
    where = converted(tmp_path, 6)
    with scripted_teacher() as teacher:
        there = Batches(teacher, looks=3)
        there.lose_next_answer, there.keeps_metadata = True, keeps_metadata
        answer = there.answer
        teacher.elsewhere = lambda method, path, *more: (
            Refuse(404) if (method, path.split("?")[0]) == ("GET", "/v1/batches") else answer(method, path, *more)
        )
        with pytest.raises(TemporaryError, match="Whether the batch was created is unknown"):
            distill(where, teacher, batch=True)
        assert len(there.batches) == 1
        teacher.elsewhere, there.lists_before_shown = answer, 2
        distill(where, teacher, batch=True)
        assert len(there.batches) == 1  # found again by its name, or by its file
        assert not teacher.asked
    assert len(distilled(str(where))[1]) == 6


def test_files_keep_to_the_providers_limits_and_to_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MOST_LINES", 5)
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        there = Batches(teacher)
        with pytest.raises(BudgetSpent, match="about 5 of 12 rows, would take about 5 requests"):
            distill(where, teacher, batch=True, budget_requests=7)
        assert sorted(data.count(b"custom_id") for name, data in there.files.items() if b"messages" in data) == [2, 5]
        assert not teacher.asked
        distill(where, teacher, batch=True, budget_requests=12)
        assert len(there.lines) == 12


def test_faults_an_empty_budget_and_a_kill_change_nothing(tmp_path: Path) -> None:
    storm.weather(tmp_path, 40, seed=3, small=0.03)
