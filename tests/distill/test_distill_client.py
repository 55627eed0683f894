"""One client over real HTTP: what is sent and kept, what is paid, what is tried again, and how fast it is asked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image as Pillow

from tests.distill.made import sample, strategy
from tests.fakes.distilling import ALONE, converted, distill, illustrated
from tests.fakes.teacher import CLOSE, Answer, Refuse, Say, grounded, in_turn, miscounted, scripted_teacher
from vcot.distill import runner
from vcot.distill.budget import Ledger, budget_of
from vcot.distill.client import TeacherClient
from vcot.distill.costs import PICO, Usage, read_prices
from vcot.distill.crops import data_url, size_of
from vcot.distill.endpoint import Endpoint, Rate, Unanswered, delta_of, read_completion, retry_after
from vcot.distill.request import Prompt, ReplyCache, Request, RowFailed, ShownImage
from vcot.distill.runner import ModelTeacher, distil
from vcot.errors import InputError, SettingsError, TemporaryError
from vcot.grounding import Box
from vcot.records import Completion, Reason, Sample
from vcot.records.sample import Stored
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("quick_teacher")


def client_of(cache: Path, *, retries: int = 2, timeout: float = 60, at_once: int = 8) -> TeacherClient:
    return TeacherClient(
        Endpoint(at_once=at_once, timeout=timeout), ReplyCache(Store(), str(cache)), read_prices(Store()),
        Ledger(Store(), str(cache.parent), budget_of(None, None, None)), retries=retries,
    )  # fmt: skip


# --- the key of a request, and the image that is sent with it

IMAGE = sample().image
ASKED = Request("reason", Prompt("p", 1, "Rules."), (ShownImage(IMAGE, 512), "Why?"), "m")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": Prompt("p", 2, "Rules.")}, {"prompt": Prompt("p", 1, "Rule.")}, {"parts": ("Why?",)},
        {"parts": (ShownImage(IMAGE, 256), "Why?")},
        {"parts": (ShownImage(IMAGE, 512, Box(1, 2, 3, 4)), "Why?")},
        {"parts": ("Why?", ShownImage(IMAGE, 512))}, {"model": "n"}, {"schema": {}}, {"temperature": 0.0},
        {"reply_tokens": 8}, {"alternative": 1},
    ],
    ids=str,
)  # fmt: skip
def test_all_that_shapes_a_reply_is_in_its_key(change: dict[str, object]) -> None:
    assert replace(ASKED, **change).key() != ASKED.key()  # type: ignore[arg-type]


def sent(shown: ShownImage) -> bytes:
    return base64.b64decode(data_url(Store(), shown).partition(",")[2])


def opened(shown: ShownImage) -> Pillow.Image:
    return Pillow.open(io.BytesIO(sent(shown)))


def test_a_crop_is_in_pixels_of_the_original_whatever_is_stored(tmp_path: Path) -> None:
    """Left half red, right half blue; the stored copy is half as large."""
    path = tmp_path / "half.png"
    pixels = Pillow.new("RGB", (160, 120), "blue")
    pixels.paste("red", (0, 0, 80, 120))
    pixels.save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    image = IMAGE.model_copy(update={"stored": Stored(uri=str(path), width=160, height=120, sha256=digest)})
    right = ShownImage(image, 1024, Box(160, 0, 320, 240))
    assert opened(right).size == size_of(right) == (80, 120)
    red, _, blue = opened(right).getpixel((2, 60))  # type: ignore[misc]
    assert (red < 40, blue > 200) == (True, True)
    for side, crop in ((64, None), (28, Box(0, 0, 0.5, 200)), (50, Box(1, 2, 300, 9))):
        shown = ShownImage(image, side, crop)
        assert opened(shown).size == size_of(shown)
    assert ShownImage(image, 64).image.kept.sha256 == digest
    assert replace(ASKED, parts=(right,)).key() != replace(ASKED, parts=(ShownImage(IMAGE, 1024, right.crop),)).key()


@pytest.mark.parametrize("exif", [False, True])
def test_a_jpeg_that_fits_is_sent_as_it_is_unless_it_says_more_than_it_shows(tmp_path: Path, exif: bool) -> None:
    about = Pillow.Exif()
    about[271] = "maker of the camera"
    path = tmp_path / "photo.jpg"
    Pillow.new("RGB", (320, 240), "red").save(path, "JPEG", **({"exif": about} if exif else {}))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    image = IMAGE.model_copy(update={"uri": str(path), "sha256": digest})
    whole = sent(ShownImage(image, 320))
    assert (whole == path.read_bytes()) == (not exif)
    assert b"maker" not in whole


# --- money


def question(number: int = 0, **more: Any) -> Request:
    words = f"Question: Where is disc {number}?\nRight answer: up\n[1] disc, up"
    return Request("reason", Prompt("p", 1, "Rules."), (words,), "gpt-4o", **more)


@pytest.fixture
def asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Asks requests as a new process would: their replies, the client, and what each try reserved and spent."""
    tries: list[tuple[Usage, Usage]] = []

    async def ask(requests: list[Request], **given: Any) -> tuple[list[Completion], TeacherClient]:
        client = client_of(tmp_path, **({"at_once": 4, "retries": 4} | given))
        settle = client.lease.settle
        client.lease.settle = lambda *used: (tries.append(used), settle(*used))  # type: ignore
        try:
            return list(await asyncio.gather(*(client.ask(one, source="made") for one in requests))), client
        finally:
            await client.close()

    def run(requests: list[Request], address: str, **given: Any) -> Any:
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        tries.clear()
        return *asyncio.run(ask(requests, **given)), tries

    run.tries = tries  # type: ignore[attr-defined]
    return run


def test_same_request_asked_twice_at_once_is_paid_for_once(asks: Any) -> None:
    with scripted_teacher(lambda asked: Say("yes", wait=0.05)) as teacher:
        replies, client, _ = asks([question()] * 5, teacher.address)
    assert len(teacher.asked) == 1
    assert {reply.text for reply in replies} == {"yes"}
    assert client.report.totals()["kept_replies_used"] == 4


@pytest.mark.parametrize(
    ("trouble", "billed"),
    [
        (Refuse(429), False), (Refuse(500), False), (Refuse(503), False), (Refuse(502), True), (Refuse(504), True),
        (CLOSE, True), (Answer(body=b"<html>"), True), (Answer(body=Say("x" * 400).body, cut=True), True),
        (Say("late", wait=0.5), True),
    ],
    ids=["429", "500", "503", "502", "504", "closed", "no JSON", "half a body", "too slow"],
)  # fmt: skip
def test_try_that_may_have_been_answered_counts_as_spent(asks: Any, trouble: Answer, billed: bool) -> None:
    with scripted_teacher(in_turn(trouble, Say("yes"))) as teacher:
        (reply,), client, tries = asks([question()], teacher.address, timeout=0.25 if trouble.wait else 60)
    assert reply.text == "yes"
    assert len(tries) == len(teacher.asked) == 2
    (worst, lost), (again, spent) = tries
    assert worst == again
    assert worst.pico > 1024 * 10_000_000
    assert lost == (worst if billed else Usage(requests=1))
    assert spent == Usage(350_000_000, 110, 1)
    totals = client.report.totals()
    assert (totals["tries_again"], round(totals["usd_lost"] * PICO)) == (1, worst.pico if billed else 0)


def test_what_is_refused_for_its_content_costs_a_request_and_what_never_left_the_process_none(asks: Any) -> None:
    with scripted_teacher(in_turn(Refuse(400, "flagged", "content_filter"))) as teacher:
        (reply,), _, tries = asks([question()], teacher.address)
    assert (reply.finish_reason, tries[0][1]) == ("content_filter", Usage(requests=1))
    with pytest.raises(TemporaryError, match=r"http://127\.0\.0\.1:1/v1 cannot be reached.*OPENAI_BASE_URL"):
        asks([question(1)], "http://127.0.0.1:1/v1", retries=1)
    assert [spent for _, spent in asks.tries] == [Usage(), Usage()]


@pytest.mark.parametrize("untrue", [None, [], {}, "null", -5, "12", 10**400], ids=str)
def test_count_that_nobody_can_believe_is_taken_at_its_worst(asks: Any, untrue: Any) -> None:
    usage = untrue if untrue in (None, [], {}) else dict.fromkeys(("prompt_tokens", "completion_tokens"), untrue)
    with scripted_teacher(in_turn(miscounted(Say("yes"), usage, (100, 10)))) as teacher:
        (first, _), _, tries = asks([question(0), question(1)], teacher.address, at_once=1)
    (worst, spent), (next_worst, _) = tries
    assert spent == next_worst == worst  # nothing was learned from it
    assert (first.tokens_in, first.tokens_out, first.cost) == (worst.tokens - 1024, 1024, spent.pico / PICO)


OUTSIDE = {"prompt_tokens": 10120, "completion_tokens": 40, "total_tokens": 11060}
REASONED = {"completion_tokens_details": {"reasoning_tokens": 900}}


@pytest.mark.parametrize(
    ("usage", "tokens_out"),
    [
        (OUTSIDE | REASONED, 940),
        (OUTSIDE, 940),  # the details are missing, and the total shows them
        ({"prompt_tokens": 100, "completion_tokens": 40} | REASONED, 940),  # thinking that does not fit inside
        ({"prompt_tokens": 100, "completion_tokens": 950, "total_tokens": 1050} | REASONED, 950),  # it is inside
        ({"prompt_tokens": 100, "completion_tokens": 950} | REASONED, 950),
        ({"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": 90}, 40),
        ({"completion_tokens": 40, "total_tokens": 140}, 40),  # how much of it is the prompt is unknown
        ({"prompt_tokens": 100, "total_tokens": 140}, 40),
        ({"prompt_tokens": 100, "completion_tokens": 40, "total_tokens": "x", "completion_tokens_details": 5}, 40),
    ],
)
def test_output_tokens_include_thinking(usage: dict[str, Any], tokens_out: int) -> None:
    body = json.loads(Say("yes").body or b"") | {"usage": usage}
    completion = read_completion(json.dumps(body).encode(), "asked", 0.5)
    assert completion is not None
    assert completion.tokens_out == tokens_out
    assert delta_of(body).tokens_out == tokens_out  # of a stream, the same


def test_first_reply_to_a_request_counts_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    cache, key = ReplyCache(Store(), str(tmp_path)), "ab" * 32
    mine, other = (Completion(text=text, model="m", finish_reason="stop") for text in ("mine", "other"))
    assert cache.keep(key, mine) == mine
    assert cache.keep(key, other) == mine
    path = tmp_path / "ab" / f"{key}.json"
    assert path.read_bytes() == mine.line()
    path.write_bytes(b'{"version"')
    with pytest.raises(InputError, match="delete it to ask again"):
        cache.get(key)


# --- the address


def test_azure_is_asked_by_the_clients_own_variables(asks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with scripted_teacher() as teacher:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", teacher.address.removesuffix("/v1"))
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key")
        with pytest.raises(SettingsError, match=r"AZURE_OPENAI_ENDPOINT=http.*OPENAI_API_VERSION"):
            asks([question()], "")
        monkeypatch.setenv("OPENAI_API_VERSION", "2025-04-01-preview")
        asks([question()], "")
    assert teacher.asked[0].path == "/openai/deployments/gpt-4o/chat/completions?api-version=2025-04-01-preview"


@pytest.mark.parametrize(
    ("key", "address", "says"),
    [
        ("x", "localhost:8000", "OPENAI_BASE_URL=localhost:8000"),
        ("x", "http://[::1", r"OPENAI_BASE_URL=http://\[::1"),
        ("secret\n", "http://127.0.0.1:1/v1", r"OPENAI_API_KEY of 7 characters.*line break"),
        ("", "http://127.0.0.1:1/v1", "OPENAI_API_KEY is not set"),
    ],
)
def test_missing_key_or_a_wrong_address_is_a_setting(
    asks: Any, monkeypatch: pytest.MonkeyPatch, key: str, address: str, says: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(SettingsError, match=says):
        asks([question()], address)


@pytest.mark.parametrize(
    ("trouble", "error", "says", "tries"),
    [
        (Refuse(500), TemporaryError, r"after 3 tries: http.* fails for now", 3),
        (CLOSE, TemporaryError, "cannot be reached", 3),
        (Refuse(429, "slow down"), TemporaryError, "slow down.*lower --concurrency", 3),
        (Refuse(429, retry_after="3600"), TemporaryError, "Retry-After: 3600", 1),  # too long to sit out
        (Refuse(401, "bad key"), SettingsError, "OPENAI_API_KEY.*bad key", 1),
        (Refuse(404, "no such model"), SettingsError, "--model gpt-4o.*no such model", 1),
        (Refuse(429, "quota", "insufficient_quota"), SettingsError, "no money left", 1),
        (Refuse(400, "unknown parameter"), SettingsError, "unknown parameter", 1),
        (Answer(body=b"<html>Welcome"), SettingsError, r"not a chat completion.*Welcome.*/v1", 3),
        (Answer(body=b'{"error": "no"}'), SettingsError, "not a chat completion", 3),
        (Say("late", wait=2.0), TemporaryError, "no answer in time", 3),
    ],
    ids=["500", "closed", "429", "an hour", "401", "404", "quota", "400", "html", "error-200", "slow"],
)
def test_trouble_that_stays_is_told_in_words(
    asks: Any, trouble: Answer, error: type[Exception], says: str, tries: int
) -> None:
    with scripted_teacher(in_turn(trouble)) as teacher:
        with pytest.raises(error, match=says):
            asks([question()], teacher.address, retries=2, timeout=0.6 if trouble.wait else 60)
        assert sum("Where is disc" in asked.words for asked in teacher.asked) == tries


# --- redirects


def moved(where: str, status: int = 307) -> Answer:
    return Answer(status, b"", {"Location": where})


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirect_within_the_host_is_counted(asks: Any, status: int) -> None:
    with scripted_teacher() as teacher:
        new = teacher.address.replace("/v1", "/v2/chat/completions")
        teacher.script = lambda asked: moved(new, status) if asked.path.startswith("/v1") else grounded(asked)
        replies, _, tries = asks([question(0), question(1)], teacher.address, at_once=1)
    paths = [asked.path for asked in teacher.asked]
    old, new = "/v1/chat/completions", "/v2/chat/completions"
    # A permanent redirect is remembered.
    assert Counter(paths) == {old: 1 if status in (301, 308) else 2, new: 2}
    assert [spent.requests for _, spent in tries] == [1] * len(paths)
    assert all("So the answer is up" in reply.text for reply in replies)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_to_another_host_is_refused(asks: Any, status: int) -> None:
    with scripted_teacher() as other:
        where = other.address + "/chat/completions"
        with scripted_teacher(lambda asked: moved(where, status)) as teacher:
            with pytest.raises(SettingsError, match=rf"redirects to {where} .*OPENAI_BASE_URL={other.address}"):
                asks([question()], teacher.address)
            assert len(teacher.asked) == len(asks.tries) == 1
        assert not other.asked


@pytest.mark.parametrize("where", ["/v1/chat/completions", "/v1/next/chat/completions", ""])
def test_redirects_without_an_end_are_refused(asks: Any, where: str) -> None:
    with scripted_teacher(lambda asked: moved(where and f"{where}?{asked.number}")) as teacher:
        with pytest.raises(SettingsError, match="redirect"):
            asks([question()], teacher.address)
        assert len(teacher.asked) == len(asks.tries) <= 6


def test_redirect_of_a_stream_stays_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    async def words(address: str) -> str:
        endpoint = Endpoint(at_once=1, timeout=10, address=address)
        try:
            return "".join([delta.text async for delta in endpoint.stream({"messages": []}, "m")])
        finally:
            await endpoint.close()

    chunk = json.dumps({"choices": [{"delta": {"content": "yes"}}]})
    events = Answer(body=f"data: {chunk}\n\ndata: [DONE]\n\n".encode())
    with scripted_teacher() as teacher, scripted_teacher() as other:
        teacher.script = lambda asked: events if "v2" in asked.path else moved("/v2/chat/completions")
        assert asyncio.run(words(teacher.address)) == "yes"
        teacher.script = lambda asked: moved(f"{other.address}/chat/completions")
        with pytest.raises(Unanswered) as refused:
            asyncio.run(words(teacher.address))
        assert f"redirects to {other.address}" in str(refused.value.trouble)
        assert not other.asked


# --- how fast


def test_429_means_fewer_at_once_and_answers_mean_more_again() -> None:
    rate = Rate(10)

    async def most_at_once() -> int:
        async def hold() -> None:
            async with rate.slot(1):
                await done.wait()

        done = asyncio.Event()
        async with asyncio.TaskGroup() as holding:
            for _ in range(12):
                holding.create_task(hold())
            await asyncio.sleep(0.02)
            done.set()
            return rate.under_way

    async def at_once() -> tuple[int, int]:
        rate.refused({})
        rate.refused({})  # of the same moment
        few = await most_at_once()
        for _ in range(16):
            rate.answered({})
        return few, await most_at_once()

    assert asyncio.run(at_once()) == (7, 10)


@pytest.mark.parametrize(("kind", "a_minute"), [("requests", "300"), ("tokens", "330000")])
def test_what_the_headers_allow_a_minute_is_kept(asks: Any, kind: str, a_minute: str) -> None:
    """300 requests a minute are five a second; two seconds' worth may go in one breath."""
    headers = {f"x-ratelimit-limit-{kind}": a_minute}
    with scripted_teacher(lambda asked: replace(grounded(asked), headers=headers)) as teacher:
        begun = time.monotonic()
        asks([question(n) for n in range(15)], teacher.address, at_once=2)
    assert time.monotonic() - begun > 0.4


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3), ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5), ({}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0), ({"retry-after": "tomorrow"}, None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_milliseconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


# --- rows through a model


def teaching(cache: Path, **given: Any) -> ModelTeacher:
    return ModelTeacher(strategy("answer-aware", **ALONE), client_of(cache, **given))


def test_the_teacher_sees_the_image_and_its_reply_is_kept(tmp_path: Path) -> None:
    where = converted(tmp_path, 1)
    with scripted_teacher() as teacher:
        distill(where, teacher, temperature=0.5, image_side=100)
    (asked,) = teacher.asked
    assert (asked.path, asked.authorization) == ("/v1/chat/completions", "Bearer x")
    assert (asked.body["model"], asked.body["temperature"]) == ("gpt-4o", 0.5)
    assert asked.images[0].size == (100, 75)
    assert (asked.question, asked.answer, asked.objects) == ("Where is disc 0?", "top left", {1: "red disc"})
    (path,) = (where.parent / "_cache").rglob("*.json")
    kept = Completion.model_validate_json(path.read_bytes())
    assert (kept.model, kept.finish_reason, kept.tokens_in, kept.tokens_out) == ("scripted-1", "stop", 100, 10)


@pytest.mark.parametrize(
    ("bad", "reason", "asked"),
    [
        (Say("I see the [1]", finish="length"), Reason.TEACHER_CUT_OFF, 2),
        (Say(None, refusal="I can't."), Reason.TEACHER_REFUSED, 1),
        (Refuse(400, "flagged", "content_filter"), Reason.TEACHER_REFUSED, 1),
        (Answer(body=b'{"choices": []}'), Reason.TEACHER_EMPTY, 2),
        (Say("", finish="length"), Reason.TEACHER_CUT_OFF, 1),
        (Say("<think>The disc", finish="length"), Reason.TEACHER_CUT_OFF, 1),
        (Say("<think>The disc</think>", finish="length"), Reason.TEACHER_CUT_OFF, 1),
        (Answer(body=b'{"choices": [{"message": {"content": "\\ud800 \\u0000"}}]}'), Reason.TEACHER_UNGROUNDED, 2),
    ],
)
def test_a_useless_reply_is_asked_again_with_a_stricter_word_and_then_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: Answer, reason: Reason, asked: int
) -> None:
    found = list[Any]()
    with scripted_teacher(in_turn(bad)) as teacher:
        monkeypatch.setenv("OPENAI_BASE_URL", teacher.address)
        for _ in range(2):  # the second time as a new process: what was paid for is not asked again
            with teaching(tmp_path / "cache") as rows:
                found += [outcome for _, outcome in rows.teach(illustrated(str(tmp_path), 1))]
    assert found[0] == found[1]
    assert (found[0].stage, found[0].reason, len(found[0].said)) == ("distill", reason, asked)
    stricter = ["Your last reply to this was thrown away: it " in one.words for one in teacher.asked]
    assert stricter == [False, True][:asked]


def test_no_more_requests_at_once_than_allowed_and_no_fewer(asks: Any) -> None:
    with scripted_teacher(lambda asked: Say("yes", wait=0.05)) as teacher:
        asks([question(n) for n in range(30)], teacher.address, at_once=6)
    assert teacher.most_at_once == 6


def test_requests_under_way_come_home_when_the_rows_can_be_written_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A writer whose disk is full from the second row on."""

        def keep(self, row: Sample) -> None:
            if row.id == "row-1":
                raise OSError(28, "No space left on device")

    with scripted_teacher(lambda asked: Say("I see the [1] at the top left.", wait=0.3)) as teacher:
        monkeypatch.setenv("OPENAI_BASE_URL", teacher.address)
        with pytest.raises(OSError, match="No space left"), teaching(tmp_path / "cache", retries=0, at_once=4) as rows:
            distil(illustrated(str(tmp_path), 32), rows, Full())  # type: ignore[arg-type]
        assert len(list((tmp_path / "cache").rglob("*.json"))) == len(teacher.asked) < 32


def test_line_every_thirty_seconds_says_rows_money_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten of forty rows in twenty seconds; two of them refused."""
    now, lines = [100.0], list[dict[str, Any]]()
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(runner.logging, "get", lambda: SimpleNamespace(info=lambda _, **facts: lines.append(facts)))
    teacher = teaching(tmp_path)
    teacher.progress.total = 40
    for number in range(10):
        said = Completion(text="", model="m", finish_reason="stop", tokens_in=90, tokens_out=10, cost=0.25)
        teacher.client.report.replied("made", "reason", said, kept=number == 0)
        teacher.progress.row(refused=number < 2)
    teacher.client.report.failed("made", "reason", 5 * 10**11)
    for seconds in (20, 10, 0):
        now[0] += seconds
        teacher.progress.tell()
    assert lines == [
        {
            "done": 10, "of": 40, "refused": 2, "in_flight": 0, "requests": 9, "kept_replies_used": 1,
            "tries_again": 1, "tokens_per_second": 30, "usd": 2.75, "seconds_left": 90,
        }
    ]  # fmt: skip


# --- what a server leaves out


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"message": {"content": "x"}}]}, "x"),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "x"}, {"type": "image"}]}}]}, "x"),
        ({"choices": [{"message": {"content": 5}, "finish_reason": 7}], "usage": {"prompt_tokens": -1}}, ""),
        ({"choices": [None], "usage": [], "model": 3}, ""),
        ({"choices": [{"message": "x"}], "usage": {"prompt_tokens": True}}, ""),
    ],
)
def test_an_answer_is_read_whatever_is_left_out(body: object, text: str) -> None:
    completion = read_completion(json.dumps(body).encode(), "asked", 0.5)
    assert completion is not None
    assert (completion.text, completion.model, completion.tokens_in) == (text, "asked", 0)


def failed(finish: str = "error", text: str = "", **error: Any) -> Answer:
    """A reply of HTTP status 200 that reports an error in its choice, as gateways write it."""
    body = json.loads(Say(text, finish=finish).body or b"")
    body["choices"][0] |= {"error": error} if error else {}
    return Answer(body=json.dumps(body).encode())


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (failed(message="upstream 502", code=502), "upstream 502"),
        (failed(), "finish_reason: error"),
        (failed(text="I see the"), "finish_reason: error"),
        (failed("stop", message="overloaded", code="server_error"), "overloaded"),
        (failed("stop", message="", code=None), "error"),
    ],
)
def test_error_within_a_reply_is_tried_again(asks: Any, tmp_path: Path, trouble: Answer, says: str) -> None:
    with scripted_teacher(in_turn(trouble, trouble, Say("yes"))) as teacher:
        (reply,), _, tries = asks([question()], teacher.address)
        assert (reply.text, len(teacher.asked)) == ("yes", 3)
        assert [spent for _, spent in tries[:2]] == [worst for worst, _ in tries[:2]]  # it may be paid for
        teacher.script = lambda asked: Say("OK") if asked.words == "Say OK." else trouble
        with pytest.raises(RowFailed, match=says):
            asks([question(1)], teacher.address, retries=1)
    assert len(list(tmp_path.rglob("??/*.json"))) == 1


def test_stored_error_is_replaced_by_a_reply(asks: Any, tmp_path: Path) -> None:
    """Earlier versions stored an error of the endpoint as an empty reply."""
    path = tmp_path / question().key()[:2] / f"{question().key()}.json"
    path.parent.mkdir()
    path.write_bytes(Completion(text="", model="m", finish_reason="error", tokens_in=900, tokens_out=1).line())
    with scripted_teacher(in_turn(Say("yes"))) as teacher:
        for _ in range(2):
            (reply,), _, _ = asks([question()], teacher.address)
            assert reply.text == "yes"
        assert len(teacher.asked) == 1


def test_reasoning_parts_stay_outside_the_text() -> None:
    parts = [
        {"type": "reasoning", "text": "The user wants"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
        {"type": "text", "text": "I see "},
        {"type": "output_text", "text": "the [1]"},
        {"text": "."},
        {"type": "reasoning_summary", "text": "done"},
    ]
    completion = read_completion(Say(parts).body or b"", "asked", 0.5)  # type: ignore[arg-type]
    assert completion is not None
    assert completion.text == "I see the [1]."


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (Refuse(413, "Request Entity Too Large"), r"413: Request Entity Too Large.*--image-side"),
        (Refuse(400, "too many tokens", "context_length_exceeded"), "too many tokens"),
        (Refuse(400, "cannot parse it", "invalid_image"), "cannot parse it"),
    ],
    ids=["413", "context", "image"],
)
def test_what_is_no_content_filter_is_not_reported_as_one(
    asks: Any, tmp_path: Path, trouble: Answer, says: str
) -> None:
    with scripted_teacher(lambda asked: Say("OK") if asked.words == "Say OK." else trouble) as teacher:
        with pytest.raises(RowFailed, match=says):
            asks([question()], teacher.address)
        assert sum("Where is disc" in asked.words for asked in teacher.asked) == 1
    assert not list(tmp_path.rglob("??/*.json"))  # another setting of the server may let it pass


def test_425_is_tried_again(asks: Any) -> None:
    with scripted_teacher(in_turn(Refuse(425, "too early"), Say("yes"))) as teacher:
        (reply,), _, _ = asks([question()], teacher.address)
    assert reply.text == "yes"


WORDS = "Größe: 5 °C"


@pytest.mark.parametrize("charset", ["iso-8859-1", "windows-1252", "utf-16", "UTF-8"])
def test_body_is_decoded_by_its_charset(asks: Any, charset: str) -> None:
    body = json.dumps(json.loads(Say(WORDS).body or b""), ensure_ascii=False).encode(charset)
    said = Answer(body=body, headers={"Content-Type": f"application/json; charset={charset}"}, paid=(100, 10))
    with scripted_teacher(in_turn(said)) as teacher:
        (reply,), _, _ = asks([question()], teacher.address)
    assert (reply.text, len(teacher.asked)) == (WORDS, 1)


LATIN = json.dumps(json.loads(Say(WORDS).body or b""), ensure_ascii=False).encode("latin-1")
EVENTS = b'data: {"choices": [{"index": 0, "delta": {"content": "yes"}}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (Answer(body=b"\x8b\x01\x80yes\x03", headers={"Content-Encoding": "br"}), "compressed.*br"),
        (Answer(body=b"(\xb5/\xfd", headers={"Content-Encoding": "zstd"}), "compressed.*zstd"),
        (Answer(body=LATIN, paid=(100, 10)), "not UTF-8.*charset"),
        (
            Answer(body=LATIN, headers={"Content-Type": "application/json; charset=klingon"}, paid=(100, 10)),
            "not UTF-8.*klingon",
        ),
        (Answer(body=EVENTS, headers={"Content-Type": "text/event-stream"}), "event stream"),
        (Answer(body=EVENTS), "event stream"),
    ],
    ids=["brotli", "zstd", "latin-1", "charset", "events", "events without a type"],
)
def test_body_that_cannot_be_read_is_refused_once(asks: Any, trouble: Answer, says: str) -> None:
    with scripted_teacher(in_turn(trouble)) as teacher:
        with pytest.raises(SettingsError, match=says):
            asks([question()], teacher.address)
        assert len(teacher.asked) == 1


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"<html>", b'{"choices": 5}', b"\xff", b"[" * 10**5, b"9" * 10**4]
)
def test_what_is_no_completion_is_none(data: bytes) -> None:
    assert read_completion(data, "asked", 0.5) is None
