"""Endpoints in trouble: rows that one cannot answer are refused by name and the run goes on; one that answers nobody
refuses no row; and the key leaves this process for its endpoint, and nowhere else."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from jobs.distill import DistillSettings
from tests.fakes.batches import Batches
from tests.fakes.distilling import converted, distill, finished, rejections, start
from tests.fakes.teacher import CLOSE, Answer, Asked, Refuse, Say, grounded, scripted_teacher
from vcot.distill.costs import PICO
from vcot.errors import InputError, SettingsError, TemporaryError, VcotError

pytestmark = pytest.mark.usefixtures("quick_teacher")

CONTEXT = "This model's maximum context length is 8192 tokens. Please reduce the length of the messages."
"""As vLLM says it."""

TROUBLES = {
    "500": Refuse(500, "no such cuda"),
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
    """--ask-again is for what was said of a row, and the endpoint said nothing."""
    where = converted(tmp_path, 6)
    bad = 5 if trouble is CLOSE else 0 if trouble.status == 500 else 3
    with scripted_teacher(hitting(trouble, bad)) as teacher:
        distill(where, teacher, concurrency=1 if bad == 5 else 4, ask_again=2, **LENIENT)
        asked = teacher.questions.count(f"Where is disc {bad}?")
    (rejection,) = rejections(str(where))
    assert (rejection.id, rejection.reason.value, rejection.part) == (f"row-{bad}", "teacher-failed", "")
    assert asked == (1 if 400 <= trouble.status < 500 else 3)
    assert asked == 1 or "after 3 tries" in rejection.detail


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


@pytest.mark.parametrize(("trouble", "answered"), [(Refuse(500), 0), (CLOSE, 5)])
def test_endpoint_that_answers_nobody_refuses_no_row(tmp_path: Path, trouble: Answer, answered: int) -> None:
    where = converted(tmp_path, 8, shards=4)
    with scripted_teacher(lambda asked: grounded(asked) if asked.number < answered else trouble) as teacher:
        with pytest.raises(TemporaryError, match=r"row-\d.*127\.0\.0\.1.*same command again") as error:
            distill(where, teacher, concurrency=2, **LENIENT)
        assert error.value.exit_code == 75
        teacher.script = grounded
        distill(where, teacher, **LENIENT)
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


# --- batches that go wrong


def done_and_worst(where: Path) -> tuple[dict[str, Any], float]:
    """What came of the only batch, and the US dollars that were reserved for it."""
    folder = where / "distill" / "_batches"
    done, sent = (json.loads((folder / f"0000000001{end}.json").read_text()) for end in (".done", ""))
    return done, sent["worst"][0] / PICO


def expired(lines: list[bytes]) -> list[bytes]:
    """Two lines are missing: nobody knows of them. Three say that they were not run."""
    error = {"code": "batch_expired", "message": "This request could not be executed before the window expired."}
    late = [json.dumps(json.loads(line) | {"response": None, "error": error}).encode() + b"\n" for line in lines[2:5]]
    return [*late, *lines[5:]]


def damaged(lines: list[bytes]) -> list[bytes]:
    """The first is no JSON, the second no object, the third names nobody, the fourth holds another thing."""
    named = json.loads(lines[3])["custom_id"]
    strange = [lines[0][:40] + b"\n", b"5\n", b'{"custom_id": [1]}\n']
    return [*strange, json.dumps({"custom_id": named, "response": "x"}).encode() + b"\n", *lines[4:]]


ONE = 0.000175  # US dollars of a reply in a batch


@pytest.mark.parametrize(
    ("given", "damage", "asked", "unknown", "free"),
    [
        ({"ends": "cancelled"}, expired, 5, 2, 3), ({"ends": "expired"}, expired, 5, 2, 3), ({}, damaged, 4, 4, 0),
        ({"gone": "batch"}, list, 12, 12, 0), ({"gone": "output"}, list, 12, 12, 0),
        ({"refuses": "Enqueued token limit reached for gpt-4o"}, list, 12, 0, 12),
    ],
    ids=["cancelled", "expired", "damaged", "batch gone", "output gone", "refused"],
)  # fmt: skip
def test_what_a_batch_does_not_bring_is_asked_singly_and_what_nobody_knows_of_is_paid_for(
    tmp_path: Path, given: dict[str, Any], damage: Callable[[list[bytes]], list[bytes]], asked: int, unknown: int,
    free: int,
) -> None:  # fmt: skip
    where = converted(tmp_path, 12)
    with scripted_teacher() as teacher:
        there = Batches(teacher, damages=lambda data: b"".join(damage(data.splitlines(keepends=True))), **given)
        for _ in range(2):  # the same command again does nothing more
            distill(where, teacher, batch=True, budget_requests=24)
            assert (len(there.batches), len(teacher.asked)) == (1, asked)
    assert rejections(str(where)) == []
    done, worst = done_and_worst(where)
    assert (done["kept"], done["failed"]) == (12 - asked, asked)
    assert asked == unknown + free
    assert done["usd"] == pytest.approx((12 - asked) * ONE + unknown * worst / 12, rel=0.02)


def test_endpoint_without_batches_is_told_and_its_money_is_left_to_single_requests(tmp_path: Path) -> None:
    where = converted(tmp_path, 4)
    with scripted_teacher() as teacher:
        with pytest.raises(SettingsError, match=r"takes no batch.*run without --batch"):
            distill(where, teacher, batch=True, budget_requests=4)
        distill(where, teacher, budget_requests=4)
        assert len(teacher.asked) == 4


def test_batch_follows_no_redirect_to_another_host(tmp_path: Path) -> None:
    """The file of requests holds prompts and images."""
    where, received = converted(tmp_path, 4), []
    with scripted_teacher() as teacher, scripted_teacher() as other:
        other.elsewhere = lambda method, path, *_: received.append(path) or Refuse(404)
        teacher.elsewhere = lambda method, path, *_: Answer(307, b"", {"Location": f"{other.address}/files"})
        with pytest.raises(SettingsError, match=rf"redirects to {other.address}/files"):
            distill(where, teacher, batch=True)
    assert received == []


def test_batch_follows_redirects_within_the_host(tmp_path: Path) -> None:
    where = converted(tmp_path, 4)
    with scripted_teacher() as teacher:
        there = Batches(teacher)

        def moved(method: str, path: str, *more: Any) -> Answer:
            if path.startswith("/v1/moved"):
                return there.answer(method, path.replace("/moved", ""), *more)
            return Answer(307, b"", {"Location": path.replace("/v1", "/v1/moved")})

        teacher.elsewhere = moved
        distill(where, teacher, batch=True)
        assert (len(there.batches), len(there.lines)) == (1, 4)


@pytest.mark.parametrize("azure", [False, True])
def test_replies_of_a_batch_on_another_host_come_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, azure: bool
) -> None:
    where, received = converted(tmp_path, 4), list[dict[str, str]]()
    with scripted_teacher() as teacher, scripted_teacher(host="localhost") as other:
        there = Batches(teacher)

        def stored(method: str, path: str, headers: dict[str, str], data: bytes) -> Answer:
            received.append(headers)
            return there.answer(method, path, headers, data)

        def redirecting(method: str, path: str, *more: Any) -> Answer:
            path = path.replace("/openai", "/v1")
            if path.split("?")[0].endswith("/content"):
                return Answer(302, b"", {"Location": other.address + path.removeprefix("/v1")})
            return there.answer(method, path, *more)

        teacher.elsewhere, other.elsewhere = redirecting, stored
        if azure:
            monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", teacher.address.removesuffix("/v1"))
            monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key")
            monkeypatch.setenv("OPENAI_API_VERSION", "2025-04-01-preview")
            teacher.address = ""
        distill(where, teacher, batch=True)
        assert len(there.lines) == 4
    assert received
    assert not [name for headers in received for name in headers if name.lower() in ("authorization", "api-key")]


def test_error_within_a_batch_reply_is_asked_singly(tmp_path: Path) -> None:
    where = converted(tmp_path, 4)
    broken = json.loads(Say("", finish="error").body or b"")
    broken["choices"][0]["error"] = {"message": "upstream 502", "code": 502}

    def script(asked: Asked) -> Answer:
        in_batch = asked.path == "/v1/chat/completions" and asked.authorization == ""
        return Answer(body=json.dumps(broken).encode()) if in_batch else grounded(asked)

    with scripted_teacher(script) as teacher:
        there = Batches(teacher)
        distill(where, teacher, batch=True)
        assert (len(there.lines), len(teacher.asked)) == (4, 4)
    assert rejections(str(where)) == []


def test_request_too_large_names_the_limit_in_its_rejection(tmp_path: Path) -> None:
    where = converted(tmp_path, 6)
    with scripted_teacher(hitting(Refuse(413, "Payload Too Large"), 2)) as teacher:
        distill(where, teacher, **LENIENT)
        assert teacher.questions.count("Where is disc 2?") == 1
    (rejection,) = rejections(str(where))
    assert rejection.reason.value == "teacher-failed"
    assert "--image-side" in rejection.detail


# --- the key

KEY = "sk-proj/Hush+4f9a01c2b7de&do=not*tell"
FORMS = (KEY, KEY[:12], json.dumps(KEY), quote(KEY, safe=""), base64.b64encode(KEY.encode()).decode()[:-4])


def written(folder: Path) -> str:
    """Every file that a run left."""
    files = [path for path in folder.rglob("*") if path.is_file() and "convert" not in path.parts]
    texts = (gzip.decompress(one.read_bytes()) if one.suffix == ".gz" else one.read_bytes() for one in files)
    return b"\n".join(texts).decode(errors="replace")


ECHOES: dict[str, Answer] = {
    "401": Refuse(401, f"Incorrect API key provided: {KEY}"),
    "cut": Refuse(403, "x" * 180 + KEY),  # what is told of it ends within the key
    "HTML": Answer(200, f"<html><body>Bad token: {KEY.replace('&', '&amp;')}</body></html>".encode()),
    "base64": Refuse(500, "Authorization: Basic " + base64.b64encode(f"user:{KEY}".encode()).decode()),
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_a_key_that_an_endpoint_echoes_is_told_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, echo: Answer
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    where = converted(tmp_path, 2, shards=1)
    with scripted_teacher(lambda asked: echo) as teacher, pytest.raises(VcotError) as error:
        distill(where, teacher, retries=0)
    assert teacher.asked[0].authorization == f"Bearer {KEY}"
    said = str(error.value) + written(tmp_path)
    assert "[redacted]" in said
    assert not [form for form in FORMS if form in said]
    assert base64.b64encode(f"user:{KEY}".encode()).decode()[8:-4] not in said


def test_no_key_reaches_storage_through_a_failed_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor the half of one that stands where the message is cut."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    where = converted(tmp_path, 2)
    with scripted_teacher() as teacher:
        Batches(teacher, refuses=f"{KEY} {'x' * (500 - len(KEY) - 11)}{KEY}")
        distill(where, teacher, batch=True)
    said = (where / "distill" / "_batches" / "0000000001.done.json").read_text() + capsys.readouterr().out
    assert "[redacted]" in said
    assert KEY[:8] not in said


def test_a_key_inside_a_reply_reaches_neither_cache_nor_rows_nor_the_log(tmp_path: Path) -> None:
    def leaky(asked: Asked) -> Answer:
        if asked.question == "Where is disc 0?":
            words = f"I see the [1] beside the key {KEY}. So the answer is {asked.answer}."
            return Say(f"{words}\nAnswer: {asked.answer}")  # which is kept
        return Say(f"nothing, {KEY}")  # which is refused

    where = converted(tmp_path, 2, shards=1)
    with scripted_teacher(leaky) as teacher:
        flags = ("--max-rejected-share", "0.5", "--termination-log", str(tmp_path / "last-word.json"), "--no-propose")
        said = finished(start(str(where), teacher, *flags, key=KEY))
    said += written(tmp_path)
    assert said.count("[redacted]") >= 4  # cache, kept row, rejection, page
    assert not [form for form in FORMS if form in said]


@pytest.mark.parametrize(
    ("argv", "environment"),
    [
        (["--cache-uri", "s3://AKIAEXAMPLE:hunter2secret@bucket/cache"], {}),
        (["--prompts", "look=s3://AKIAEXAMPLE:hunter2secret@bucket/look.v2.md"], {}),
        ([], {"OPENAI_BASE_URL": "http://user:hunter2secret@127.0.0.1:9/v1"}),
        ([], {"AZURE_OPENAI_ENDPOINT": "https://user:hunter2secret@127.0.0.1:9"}),
    ],
)
def test_credentials_in_addresses_are_refused_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    name = next(iter([*argv, *environment]))
    with pytest.raises(SettingsError, match=f"^{name}=.*: it holds credentials") as told:
        DistillSettings.load(["--run-uri", "/runs/x", "--teacher", "openai", "--model", "m", *argv])
    assert "hunter2secret" not in str(told.value)
    assert len(str(told.value).splitlines()) == 1
