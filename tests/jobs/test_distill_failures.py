"""Rows that an endpoint cannot answer: they are refused by name, and the run goes on; an endpoint that answers nobody
refuses no row."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.batches import Batches
from tests.fakes.distilling import converted, distill, rejections
from tests.fakes.teacher import CLOSE, Answer, Asked, Refuse, Say, grounded, scripted_teacher
from vcot.distill.costs import PICO
from vcot.errors import BudgetSpent, InputError, SettingsError, TemporaryError, VcotError

pytestmark = pytest.mark.usefixtures("quick_teacher")

CONTEXT = "This model's maximum context length is 8192 tokens. Please reduce the length of the messages."
"""As vLLM says it."""

TROUBLES = {
    "500": Refuse(500, "server_error"),
    "closed": CLOSE,
    "no JSON": Answer(body=b"<html>Internal error"),
    "vLLM's context": Answer(400, json.dumps({"object": "error", "message": CONTEXT, "code": 400}).encode()),
    "unheard of": Refuse(400, "il y a un souci", "E-4711"),
    "415": Refuse(415),
}
"""What a row may meet with each time."""

LENIENT: dict[str, Any] = {"max_rejected_share": 0.9, "retries": 2}


def committed(where: Path) -> int:
    return len(list((where / "distill" / "_done").glob("*.json")))


def hitting(trouble: Answer, *rows: int) -> Callable[[Asked], Answer]:
    bad = {f"Where is disc {n}?" for n in rows}
    return lambda asked: trouble if asked.question in bad else grounded(asked)


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_row_that_always_fails_is_refused_by_name_and_the_others_are_kept(tmp_path: Path, trouble: Answer) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher(hitting(trouble, 5)) as teacher:
        distill(where, teacher, concurrency=4, **LENIENT)
        asked = teacher.questions.count("Where is disc 5?")
    (rejection,) = rejections(str(where))
    assert (rejection.id, rejection.reason.value, rejection.part) == ("row-5", "teacher-failed", "")
    assert asked == (1 if 400 <= trouble.status < 500 else 3)


@pytest.mark.parametrize(("bad", "concurrency"), [(0, 1), (11, 1), (0, 8), (11, 8)])
def test_failing_row_may_be_the_first_or_the_last(tmp_path: Path, bad: int, concurrency: int) -> None:
    where = converted(tmp_path, 12, shards=1)
    with scripted_teacher(hitting(Refuse(500, "no such cuda"), bad)) as teacher:
        distill(where, teacher, concurrency=concurrency, **LENIENT)
    (rejection,) = rejections(str(where))
    assert rejection.id == f"row-{bad}"
    assert "after 3 tries" in rejection.detail
    assert "500: no such cuda" in rejection.detail


def test_row_that_failed_is_not_asked_about_again(tmp_path: Path) -> None:
    """--ask-again is for what was said of a row, and the endpoint said nothing."""
    where = converted(tmp_path, 6)
    with scripted_teacher(hitting(Refuse(500), 3)) as teacher:
        distill(where, teacher, ask_again=2, **LENIENT)
    assert teacher.questions.count("Where is disc 3?") == 3
    assert [rejection.reason.value for rejection in rejections(str(where))] == ["teacher-failed"]


def test_row_left_over_is_judged_by_a_request_that_was_answered_before(tmp_path: Path) -> None:
    """All other replies are stored, so nothing else is asked that could tell whether the endpoint is up."""
    where, others_done = converted(tmp_path, 6, shards=1), threading.Event()

    def late(asked: Asked) -> Answer:
        if asked.question in {f"Where is disc {n}?" for n in (3, 4, 5)}:
            others_done.wait(60)
            return Refuse(401, "for now")
        if sum(one.question not in {f"Where is disc {n}?" for n in (3, 4, 5)} for one in teacher.asked) == 3:
            threading.Timer(0.3, others_done.set).start()
        return grounded(asked)

    with scripted_teacher(late) as teacher:
        with pytest.raises(SettingsError, match="for now"):
            distill(where, teacher, concurrency=6, **LENIENT)
        teacher.script = lambda asked: Refuse(500)
        with pytest.raises(TemporaryError, match="fails for now"):
            distill(where, teacher, concurrency=1, **LENIENT)
        assert committed(where) == 0
        teacher.script = hitting(Refuse(500), 3, 4, 5)
        distill(where, teacher, concurrency=1, **LENIENT)
        short = {asked.body["max_completion_tokens"] for asked in teacher.asked if asked.purpose == "control"}
    assert {rejection.id for rejection in rejections(str(where))} == {"row-3", "row-4", "row-5"}
    assert short == {16}


@pytest.mark.parametrize("trouble", [Refuse(400, CONTEXT), Refuse(500)], ids=["400", "500"])
def test_only_row_is_judged_by_a_request_of_our_own(tmp_path: Path, trouble: Answer) -> None:
    """It says nothing of the row; nobody is left who could be answered."""
    where, tiny = converted(tmp_path, 1, shards=1), "Say OK."

    with scripted_teacher(lambda asked: Say("OK") if asked.words == tiny else trouble) as teacher:
        with pytest.raises(InputError, match="not one row was kept"):
            distill(where, teacher, max_rejected_share=1, retries=2)
        (control,) = [asked for asked in teacher.asked if asked.words == tiny]
        assert control.body["max_completion_tokens"] == 16
        assert len(control.body["messages"][-1]["content"]) == 1  # no image
    assert committed(where) == 1


@pytest.mark.parametrize("trouble", [Refuse(500), CLOSE], ids=["500", "closed"])
@pytest.mark.parametrize("answered", [0, 5])
def test_endpoint_that_answers_nobody_refuses_no_row(tmp_path: Path, trouble: Answer, answered: int) -> None:
    where = converted(tmp_path, 8, shards=4)
    with scripted_teacher(lambda asked: grounded(asked) if asked.number < answered else trouble) as teacher:
        with pytest.raises(TemporaryError, match=r"row-\d.*127\.0\.0\.1.*same command again") as error:
            distill(where, teacher, concurrency=2, **LENIENT)
        assert error.value.exit_code == 75
        teacher.script = grounded
        distill(where, teacher, **LENIENT)
    assert rejections(str(where)) == []


def test_endpoint_that_is_gone_in_the_middle_refuses_no_row(tmp_path: Path) -> None:
    where = converted(tmp_path, 8, shards=4)
    with scripted_teacher() as teacher, pytest.raises(BudgetSpent):
        distill(where, teacher, budget_requests=5, concurrency=1)
    with pytest.raises(TemporaryError, match="cannot be reached"):
        distill(where, None, concurrency=2, **LENIENT)
    with scripted_teacher() as teacher:
        distill(where, teacher)
    assert rejections(str(where)) == []


@pytest.mark.parametrize(("trouble", "error"), [(Refuse(500), TemporaryError), (Refuse(400, "odd"), SettingsError)])
def test_rows_that_fail_one_after_another_stop_the_run_and_are_named(
    tmp_path: Path, trouble: Answer, error: type[VcotError]
) -> None:
    where = converted(tmp_path, 24, shards=1)
    with scripted_teacher(lambda asked: grounded(asked) if asked.question < "Where is disc 2" else trouble) as teacher:
        with pytest.raises(error, match=r"[4-9] rows in a row failed \(row-\d+, .*--max-failed-in-a-row"):
            distill(where, teacher, concurrency=1, max_failed_in_a_row=4, **LENIENT)
        assert committed(where) == 0
        distill(where, teacher, concurrency=1, max_failed_in_a_row=24, **LENIENT)
    assert len(rejections(str(where))) == 24 - 12  # all but 0, 1 and 10 to 19


def test_too_large_a_share_of_failing_rows_stops_the_run_and_names_them(tmp_path: Path) -> None:
    where = converted(tmp_path, 70, shards=1)
    with scripted_teacher(hitting(Refuse(400, "odd"), *range(0, 70, 3))) as teacher:
        with pytest.raises(SettingsError, match=r"20 of \d+ rows failed \(row-0, row-3, .*--max-rejected-share 0\.2"):
            distill(where, teacher, concurrency=1, max_rejected_share=0.2)
        distill(where, teacher, concurrency=1, max_rejected_share=0.4)
    assert len(rejections(str(where))) == 24


# ------------------------------------------------------------------------------------------------------------ batches


def test_refused_batch_gives_its_reservation_back_and_its_rows_are_asked_singly(tmp_path: Path) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        there = Batches(teacher, refuses="Enqueued token limit reached for gpt-4o in organization org-x")
        for _ in range(2):  # the same command again does nothing more
            distill(where, teacher, batch=True, budget_requests=12)
            assert (len(there.batches), len(teacher.asked)) == (1, 12)
    assert rejections(str(where)) == []


def test_no_key_reaches_storage_through_a_failed_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor the half of one that stands where the message is cut."""
    key = "sk-batch-1234567890abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    where = converted(tmp_path, 2)
    with scripted_teacher() as teacher:
        Batches(teacher, refuses=f"{key} {'x' * (500 - len(key) - 11)}{key}")
        distill(where, teacher, batch=True)
    said = (where / "distill" / "_batches" / "0000000001.done.json").read_text() + capsys.readouterr().out
    assert "[redacted]" in said
    assert key[:8] not in said


def test_endpoint_without_batches_is_told_and_its_money_is_left_to_single_requests(tmp_path: Path) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        with pytest.raises(SettingsError, match=r"takes no batch.*run without --batch"):
            distill(where, teacher, batch=True, budget_requests=12)
        distill(where, teacher, budget_requests=12)
        assert len(teacher.asked) == 12


def done_and_worst(where: Path) -> tuple[dict[str, Any], float]:
    """What came of the only batch, and the US dollars that were reserved for it."""
    folder = where / "distill" / "_batches"
    done, sent = (json.loads((folder / f"0000000001{end}.json").read_text()) for end in (".done", ""))
    return done, sent["worst"][0] / PICO


@pytest.mark.parametrize("status", ["cancelled", "expired"])
def test_of_a_batch_that_ended_early_only_what_is_said_not_to_have_run_is_free(tmp_path: Path, status: str) -> None:
    """Two lines are missing: nobody knows of them. Three say that they were not run."""
    where = converted(tmp_path, 12)

    def ended(data: bytes) -> bytes:
        expired = {"code": "batch_expired", "message": "This request could not be executed before the window expired."}
        lines = [json.loads(line) for line in data.splitlines()][2:]
        for line in lines[:3]:
            line.update(response=None, error=expired)
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)

    with scripted_teacher() as teacher:
        Batches(teacher, damages=ended, ends=status)
        distill(where, teacher, batch=True)
        assert len(teacher.asked) == 5
    assert rejections(str(where)) == []
    done, worst = done_and_worst(where)
    assert (done["kept"], done["failed"]) == (7, 5)
    assert done["usd"] == pytest.approx(7 * 0.000175 + 2 * worst / 12, rel=0.02)


@pytest.mark.parametrize("gone", ["batch", "output"])
def test_batch_that_is_gone_counts_with_its_worst_and_its_rows_are_asked_singly(tmp_path: Path, gone: str) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        Batches(teacher, gone=gone)
        distill(where, teacher, batch=True, budget_requests=24)
        assert len(teacher.asked) == 12
    assert rejections(str(where)) == []
    done, worst = done_and_worst(where)
    assert (done["kept"], done["failed"], done["usd"]) == (0, 12, worst)


def test_lines_of_a_batch_that_cannot_be_read_are_paid_for_and_asked_singly(tmp_path: Path) -> None:
    where = converted(tmp_path, 12)

    def damaged(data: bytes) -> bytes:
        """The first is no JSON, the second no object, the third names nobody, the fourth holds another thing."""
        first, _, _, fourth, *rest = data.splitlines(keepends=True)
        named = json.loads(fourth)["custom_id"]
        strange = [first[:40] + b"\n", b"5\n", b'{"custom_id": [1]}\n']
        return b"".join([*strange, json.dumps({"custom_id": named, "response": "x"}).encode() + b"\n", *rest])

    with scripted_teacher() as teacher:
        Batches(teacher, damages=damaged)
        distill(where, teacher, batch=True)
        assert len(teacher.asked) == 4
    assert rejections(str(where)) == []
    done, _ = done_and_worst(where)
    assert (done["kept"], done["failed"]) == (8, 4)
    assert done["usd"] > (8 + 4 * 10) * 0.000175  # of those that nobody can read, the most that they can be
