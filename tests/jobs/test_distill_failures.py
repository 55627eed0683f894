"""Rows that an endpoint cannot answer: they are refused by name, and the run goes on; an endpoint that answers nobody
refuses no row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.distill import DistillSettings, run
from tests.fakes.batches import Batches
from tests.fakes.teacher import CLOSE, Answer, Asked, Refuse, Say, Teacher, grounded, scripted_teacher
from tests.teacher import storm
from vcot.errors import BudgetSpent, InputError, SettingsError, TemporaryError, VcotError
from vcot.records import Rejection
from vcot.records.shards import read_mark, read_records
from vcot.storage import Store
from vcot.teacher.prices import PICO

ALONE = {"twice": False, "look": False, "reanswer": False, "propose": False}
"""One question for each row."""

CONTEXT = (
    "This model's maximum context length is 8192 tokens. However, you requested 12345 tokens (11321 in the messages, "
    "1024 in the completion). Please reduce the length of the messages or completion."
)
"""As vLLM says it."""

GEMINI = [{"error": {"code": 400, "message": "Unable to process input image.", "status": "INVALID_ARGUMENT"}}]

TROUBLES = {
    "500": Refuse(500, "server_error"),
    "closed": CLOSE,
    "slow": Say("late", wait=2),
    "no JSON": Answer(body=b"<html>Internal error"),
    "vLLM's context": Answer(400, json.dumps({"object": "error", "message": CONTEXT, "code": 400}).encode()),
    "Gemini's image": Answer(400, json.dumps(GEMINI).encode()),
    "unheard of": Refuse(400, "il y a un souci", "E-4711"),
    "422": Refuse(422, "Input should be a valid string"),
    "415": Refuse(415),
}
"""What a row may meet with each time."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_OPENAI_ENDPOINT", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("vcot.teacher.batches.POLL", 0.01)
    monkeypatch.setattr("vcot.teacher.desk.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("vcot.teacher.desk.LAST_PAUSE", 0.002)


def distilled(where: Path, *teachers: Teacher, **given: Any) -> None:
    settings = {
        "teacher": "openai", "model": "gpt-4o", "endpoints": tuple(one.address for one in teachers),
        "reply_tokens": 64, "image_side": 64, "max_rejected_share": 0.9, "retries": 2, "timeout": 0.5,
    }  # fmt: skip
    run(DistillSettings(run_uri=str(where), **(settings | ALONE | given)))


def converted(folder: Path, number: int, shards: int = 2) -> Path:
    where = folder / "runs" / "one"
    storm.convert(where, storm.rows(folder, number), shards)
    return where


def rejections(where: Path) -> list[Rejection]:
    mark, _ = read_mark(Store(), str(where / "distill"))
    stage = str(where / "distill")
    return [row for shard in mark.shards for row in read_records(Store(), stage, shard.rejections, Rejection)]


def committed(where: Path) -> int:
    return len(list((where / "distill" / "_done").glob("*.json")))


def hitting(trouble: Answer, *rows: int) -> Callable[[Asked], Answer]:
    bad = {f"Where is disc {n}?" for n in rows}
    return lambda asked: trouble if asked.question in bad else grounded(asked)


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_a_row_that_always_fails_is_refused_by_name_and_the_others_are_kept(tmp_path: Path, trouble: Answer) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher(hitting(trouble, 5)) as teacher:
        distilled(where, teacher, concurrency=4)
        asked = teacher.questions.count("Where is disc 5?")
    (rejection,) = rejections(where)
    assert (rejection.id, rejection.reason.value, rejection.part) == ("row-5", "teacher-failed", "")
    assert asked == (1 if 400 <= trouble.status < 500 else 3)
    assert read_mark(Store(), str(where / "distill"))[0].tally.kept == 11


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("bad", [0, 11])
def test_it_may_be_the_first_row_or_the_last(tmp_path: Path, bad: int, concurrency: int) -> None:
    where = converted(tmp_path, 12, shards=1)
    with scripted_teacher(hitting(Refuse(500, "no such cuda"), bad)) as teacher:
        distilled(where, teacher, concurrency=concurrency)
    (rejection,) = rejections(where)
    assert rejection.id == f"row-{bad}"
    assert "after 3 tries" in rejection.detail
    assert "500: no such cuda" in rejection.detail


def test_a_row_left_over_is_judged_by_a_request_that_was_answered_before(tmp_path: Path) -> None:
    """All other replies are kept, so nothing else is asked that could tell whether the endpoint is up."""
    where = converted(tmp_path, 6, shards=1)
    late = replace(Refuse(401, "for now"), wait=0.3)
    with scripted_teacher(hitting(late, 3, 4, 5)) as teacher:
        with pytest.raises(SettingsError, match="for now"):
            distilled(where, teacher, concurrency=6)
        teacher.script = lambda asked: Refuse(500)
        with pytest.raises(TemporaryError, match="fails for now"):
            distilled(where, teacher, concurrency=1)
        assert committed(where) == 0
        teacher.script = hitting(Refuse(500), 3, 4, 5)
        distilled(where, teacher, concurrency=1)
        short = [asked.body["max_completion_tokens"] for asked in teacher.asked if asked.purpose == "control"]
    assert {rejection.id for rejection in rejections(where)} == {"row-3", "row-4", "row-5"}
    assert set(short) == {16}


@pytest.mark.parametrize("trouble", [Refuse(400, CONTEXT), Refuse(500)], ids=["400", "500"])
def test_a_bad_row_that_nobody_was_answered_before_is_judged_by_a_request_of_our_own(
    tmp_path: Path, trouble: Answer
) -> None:
    """It says nothing of the row; nobody is left who could be answered."""
    where = converted(tmp_path, 1, shards=1)
    tiny = "Say OK."

    def answer(asked: Asked) -> Answer:
        return Say("OK") if asked.words == tiny else trouble

    with scripted_teacher(answer) as teacher:
        with pytest.raises(InputError, match="not one row was kept"):
            distilled(where, teacher, max_rejected_share=1, timeout=20)
        (control,) = [asked for asked in teacher.asked if asked.words == tiny]
    assert (control.body["max_completion_tokens"], control.body["model"]) == (16, "gpt-4o")
    (left,) = (where / "distill/rejections").iterdir()  # the stage itself is not finished
    assert Rejection.model_validate_json(left.read_bytes()).reason.value == "teacher-failed"


def test_which_rows_are_refused_does_not_depend_on_where_a_run_was_stopped(tmp_path: Path) -> None:
    samples, made = storm.rows(tmp_path, 12), []
    with scripted_teacher(hitting(Refuse(500), 0, 4, 5, 11)) as teacher:
        for name, stops in {"calm": (), "stopped": (3, 6, 8, 14, 17)}.items():
            where = tmp_path / name / "run"
            storm.convert(where, samples, shards=3)
            for requests in stops:
                with pytest.raises(BudgetSpent):
                    distilled(where, teacher, budget_requests=requests, concurrency=3)
            distilled(where, teacher, concurrency=3)
            assert {rejection.id for rejection in rejections(where)} == {"row-0", "row-4", "row-5", "row-11"}
            made.append(storm.files(where))
    assert made[0] == made[1]


@pytest.mark.parametrize("trouble", [Refuse(500), Refuse(503), CLOSE, Refuse(502)], ids=["500", "503", "closed", "502"])
@pytest.mark.parametrize("answered", [0, 5])
def test_an_endpoint_that_answers_nobody_refuses_no_row(tmp_path: Path, trouble: Answer, answered: int) -> None:
    where = converted(tmp_path, 8, shards=4)
    with scripted_teacher(lambda asked: grounded(asked) if asked.number < answered else trouble) as teacher:
        with pytest.raises(TemporaryError, match=r"row-\d.*127\.0\.0\.1.*same command again") as error:
            distilled(where, teacher, concurrency=2)
        assert error.value.exit_code == 75
        teacher.script = grounded
        distilled(where, teacher)
    assert rejections(where) == []


def test_an_endpoint_that_is_gone_in_the_middle_refuses_no_row(tmp_path: Path) -> None:
    where = converted(tmp_path, 8, shards=4)
    with scripted_teacher() as teacher, pytest.raises(BudgetSpent):
        distilled(where, teacher, budget_requests=5, concurrency=1)
    with pytest.raises(TemporaryError, match="cannot be reached"):
        distilled(where, teacher, concurrency=2)
    with scripted_teacher() as teacher:
        distilled(where, teacher)
    assert rejections(where) == []


@pytest.mark.parametrize(("trouble", "error"), [(Refuse(500), TemporaryError), (Refuse(400, "odd"), SettingsError)])
def test_rows_that_fail_one_after_another_stop_the_run_and_are_named(
    tmp_path: Path, trouble: Answer, error: type[VcotError]
) -> None:
    where = converted(tmp_path, 40, shards=1)
    with scripted_teacher(lambda asked: grounded(asked) if asked.question < "Where is disc 2" else trouble) as teacher:
        with pytest.raises(error, match=r"4 rows in a row failed \(row-\d+, .*--max-failed-in-a-row"):
            distilled(where, teacher, concurrency=1, max_failed_in_a_row=4)
        assert committed(where) == 0
        distilled(where, teacher, concurrency=1, max_failed_in_a_row=40)
    assert len(rejections(where)) == 40 - 12 + 1 - 1  # all but 0, 1 and 10 to 19


def test_too_large_a_share_of_failing_rows_stops_the_run_and_names_them(tmp_path: Path) -> None:
    where = converted(tmp_path, 90, shards=1)
    with scripted_teacher(hitting(Refuse(400, "odd"), *range(0, 90, 3))) as teacher:
        with pytest.raises(SettingsError, match=r"20 of \d+ rows failed \(row-0, row-3, .*--max-rejected-share 0\.2"):
            distilled(where, teacher, concurrency=1, max_rejected_share=0.2)
        distilled(where, teacher, concurrency=1, max_rejected_share=0.4)
    assert len(rejections(where)) == 30


@pytest.mark.parametrize(
    "trouble",
    [
        Refuse(401), Refuse(402, "Insufficient Balance"), Refuse(403), Refuse(404),
        Refuse(429, "no money", "insufficient_quota"),
    ],
    ids=["401", "402", "403", "404", "quota"],
)  # fmt: skip
def test_what_concerns_the_account_stops_at_once(tmp_path: Path, trouble: Answer) -> None:
    where = converted(tmp_path, 12, shards=1)
    with scripted_teacher(hitting(trouble, 2)) as teacher:
        with pytest.raises(SettingsError, match=r"127\.0\.0\.1"):
            distilled(where, teacher, concurrency=1)
        assert teacher.questions.count("Where is disc 2?") == 1
    assert committed(where) == 0


def test_an_endpoint_that_fails_beside_one_that_answers_refuses_no_row(tmp_path: Path) -> None:
    """Its rows never got another answer from it, so nothing says that it was their fault."""
    where = converted(tmp_path, 8, shards=1)
    with scripted_teacher() as good, scripted_teacher(lambda _: Refuse(500)) as bad:
        with pytest.raises(TemporaryError, match="row-"):
            distilled(where, good, bad, concurrency=2, retries=0)
        distilled(where, good)
    assert rejections(where) == []


# ------------------------------------------------------------------------------------------------------------ batches


def test_a_failed_batch_gives_its_reservation_back_and_its_rows_are_asked_singly(tmp_path: Path) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        there = Batches(teacher, refuses="Enqueued token limit reached for gpt-4o in organization org-x")
        distilled(where, teacher, batch=True, budget_requests=12, timeout=20)
        assert len(there.batches) == 1
        assert len(teacher.asked) == 12
    assert rejections(where) == []


def test_after_a_failed_batch_the_same_command_goes_on(tmp_path: Path) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher(lambda _: Refuse(500)) as teacher:
        there = Batches(teacher, refuses="no")
        for _ in range(2):
            with pytest.raises(TemporaryError, match="fails for now"):
                distilled(where, teacher, batch=True)
        teacher.script = grounded
        distilled(where, teacher, batch=True)
        assert len(there.batches) == 1
    assert rejections(where) == []


def test_no_key_reaches_storage_through_a_failed_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor the half of one that stands where the message is cut."""
    key = "sk-batch-1234567890abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    where = converted(tmp_path, 2)
    with scripted_teacher() as teacher:
        Batches(teacher, refuses=f"{key} {'x' * (500 - len(key) - 11)}{key}")
        distilled(where, teacher, batch=True)
    (done,) = done_batches(where)
    said = done.read_text() + capsys.readouterr().out
    assert "[redacted]" in said
    assert key[:8] not in said


def test_a_batch_that_is_refused_at_the_door_leaves_its_money_to_single_requests(tmp_path: Path) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        with pytest.raises(SettingsError, match="run without --batch"):
            distilled(where, teacher, batch=True, budget_requests=12)
        distilled(where, teacher, budget_requests=12, timeout=20)
        assert len(teacher.asked) == 12


def done_batches(where: Path) -> list[Path]:
    return sorted((where / "distill" / "_batches").glob("*.done.json"))


def worst_of_a_batch(where: Path) -> float:
    """US dollars that were reserved for it."""
    sent = json.loads((where / "distill" / "_batches" / "0000000001.json").read_text())
    return sent["worst"][0] / PICO  # type: ignore[no-any-return]


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
        distilled(where, teacher, batch=True)
        assert len(teacher.asked) == 5
    assert rejections(where) == []
    booked = json.loads(done_batches(where)[0].read_text())
    assert (booked["kept"], booked["failed"]) == (7, 5)
    worst = worst_of_a_batch(where) / 12
    assert booked["usd"] == pytest.approx(7 * 0.000175 + 2 * worst, rel=0.02)


@pytest.mark.parametrize("gone", ["batch", "output"])
def test_a_batch_that_is_gone_counts_with_its_worst_and_its_rows_are_asked_singly(tmp_path: Path, gone: str) -> None:
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        there = Batches(teacher, gone=gone)
        for _ in range(2):  # the same command again does nothing more
            distilled(where, teacher, batch=True, budget_requests=24, timeout=20)
            assert (len(there.batches), len(teacher.asked)) == (1, 12)
    assert rejections(where) == []
    booked = json.loads(done_batches(where)[0].read_text())
    assert (booked["kept"], booked["failed"]) == (0, 12)
    assert booked["usd"] == worst_of_a_batch(where)


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
        distilled(where, teacher, batch=True)
        assert len(teacher.asked) == 4
    assert rejections(where) == []
    (done,) = done_batches(where)
    booked = json.loads(done.read_text())
    assert (booked["kept"], booked["failed"]) == (8, 4)
    assert booked["usd"] > (8 + 4 * 10) * 0.000175  # of those that nobody can read, the most that they can be
