"""One client over real HTTP: what is paid, what is tried again, and how fast the endpoint is asked."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.distill.made import stored
from tests.fakes.teacher import (
    CLOSE,
    Answer,
    Asked,
    Refuse,
    Say,
    grounded,
    in_turn,
    miscounted,
    scripted_teacher,
)  # fmt: skip
from vcot.distill.budget import Ledger, budget_of
from vcot.distill.client import TeacherClient
from vcot.distill.costs import PICO, Usage, read_prices
from vcot.distill.crops import ImagePacker
from vcot.distill.endpoint import Endpoint, Rate, retry_after
from vcot.distill.request import Prompt, ReplyCache, Request, ShownImage
from vcot.errors import InputError, SettingsError, TemporaryError
from vcot.records import Completion
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("quick")

Tries = list[tuple[Usage, Usage]]


class Noted:
    """A budget that notes what each try reserves and what it spends."""

    def __init__(self) -> None:
        self.tries: Tries = []

    async def reserve(self, worst: Usage) -> None: ...

    def settle(self, worst: Usage, spent: Usage) -> None:
        self.tries.append((worst, spent))

    async def close(self) -> None: ...


def question(number: int = 0, **more: Any) -> Request:
    words = f"Question: Where is disc {number}?\nRight answer: up\n[1] disc, up"
    return Request("reason", Prompt("p", 1, "Rules."), (words,), "gpt-4o", **more)


@pytest.fixture
def asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Asks requests as a new process would: their replies, the client, and the tries."""
    noted = Noted()

    def ask(
        requests: list[Request], address: str, *, at_once: int = 4, retries: int = 4, timeout: float = 60
    ) -> tuple[list[Completion], TeacherClient, Tries]:
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        noted.tries.clear()

        async def all_of_them() -> tuple[list[Completion], TeacherClient]:
            client = TeacherClient(
                Endpoint(at_once=at_once, timeout=timeout), ReplyCache(Store(), str(tmp_path)), ImagePacker(Store()),
                read_prices(Store()), Ledger(Store(), str(tmp_path), budget_of(None, None, None)), retries=retries,
            )  # fmt: skip
            client.lease = noted  # type: ignore[assignment]
            try:
                return list(await asyncio.gather(*(client.ask(one, source="made") for one in requests))), client
            finally:
                await client.close()

        return *asyncio.run(all_of_them()), noted.tries

    ask.tries = noted.tries  # type: ignore[attr-defined]
    return ask


# --------------------------------------------------------------------------------------------------------- money


def test_cost_report_has_a_line_for_each_source_and_purpose(asks: Any) -> None:
    with scripted_teacher() as teacher:
        first, client, _ = asks([question(n) for n in range(3)], teacher.address)
        line = client.report.lines()["made"]["reason"]
        assert first[0].cost == 100 * 2.5e-6 + 10 * 10e-6
        assert (line["requests"], line["tokens_in"], line["usd"]) == (3, 300, round(3 * first[0].cost, 9))
        _, client, _ = asks([question(n) for n in range(4)], teacher.address)
    line = client.report.lines()["made"]["reason"]
    assert (line["requests"], line["kept_replies_used"]) == (1, 3)
    assert (round(line["usd"], 6), round(line["usd_paid"], 6)) == (0.0014, 0.00035)


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
    ],
    ids=["429", "500", "503", "502", "504", "closed", "no JSON", "half a body"],
)  # fmt: skip
def test_try_that_may_have_been_answered_counts_as_spent(asks: Any, trouble: Answer, billed: bool) -> None:
    with scripted_teacher(in_turn(trouble, Say("yes"))) as teacher:
        (reply,), client, tries = asks([question()], teacher.address)
    assert reply.text == "yes"
    assert len(tries) == len(teacher.asked) == 2
    (worst, lost), (again, spent) = tries
    assert worst == again
    assert worst.pico > 1024 * 10_000_000
    assert lost == (worst if billed else Usage(requests=1))
    assert spent == Usage(350_000_000, 110, 1)
    totals = client.report.totals()
    assert (totals["tries_again"], round(totals["usd_lost"] * PICO)) == (1, worst.pico if billed else 0)


def test_slow_try_is_cut_off_and_counts_as_spent(asks: Any) -> None:
    over = threading.Event()

    def slow(_: Asked) -> Answer:
        over.wait(60)
        return Say("late")

    with scripted_teacher(slow) as teacher:
        with pytest.raises(TemporaryError, match="no answer in time"):
            asks([question()], teacher.address, timeout=0.2, retries=1)
        over.set()
    assert [spent == worst for worst, spent in asks.tries[:2]] == [True, True]


def test_refused_content_is_a_reply_that_costs_a_request_and_nothing_else(asks: Any) -> None:
    with scripted_teacher(in_turn(Refuse(400, "flagged", "content_filter"))) as teacher:
        (reply,), _, tries = asks([question()], teacher.address)
    assert (reply.finish_reason, tries[0][1]) == ("content_filter", Usage(requests=1))


def test_what_never_left_the_process_is_no_request(asks: Any) -> None:
    with pytest.raises(TemporaryError, match=r"http://127\.0\.0\.1:1/v1 cannot be reached.*OPENAI_BASE_URL"):
        asks([question()], "http://127.0.0.1:1/v1", retries=1)
    assert [spent for _, spent in asks.tries] == [Usage(), Usage()]


UNTRUE: dict[str, Any] = {
    "none": None, "list": [], "missing": "missing", "null": "null", "zero": 0, "negative": -5, "fraction": 12.5,
    "words": "12", "true": True, "10^12": 10**12, "10^400": 10**400,
}  # fmt: skip
"""What an endpoint may say of its tokens, or of one count, that nobody can believe."""


def lying(untrue: Any, name: str) -> Answer:
    """100 tokens in and 10 out as always, but for one count."""
    usage: Any = {"prompt_tokens": 100, "completion_tokens": 10} | {name: None if untrue == "null" else untrue}
    if untrue == "missing":
        del usage[name]
    return miscounted(Say("yes"), untrue if untrue in (None, []) else usage, (100, 10))


@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
@pytest.mark.parametrize("untrue", UNTRUE.values(), ids=UNTRUE)
def test_count_that_nobody_can_believe_is_taken_at_its_worst(asks: Any, untrue: Any, name: str) -> None:
    with scripted_teacher(in_turn(lying(untrue, name))) as teacher:
        (first, _), _, tries = asks([question(0), question(1)], teacher.address, at_once=1)
    (worst, spent), (next_worst, _) = tries
    whole = untrue in (None, [])
    tokens_in = worst.tokens - 1024 if whole or name == "prompt_tokens" else 100
    tokens_out = 1024 if whole or name == "completion_tokens" else 10
    assert spent == Usage(tokens_in * 2_500_000 + tokens_out * 10_000_000, tokens_in + tokens_out, 1)
    assert (first.tokens_in, first.tokens_out, first.cost) == (tokens_in, tokens_out, spent.pico / PICO)
    assert next_worst == worst  # nothing was learned from it


def test_schema_that_an_endpoint_refuses_is_left_out_and_each_request_counts(asks: Any) -> None:
    """An endpoint that knows no schemas is told so once for each request under way."""

    def answer(asked: Asked) -> Answer:
        return Refuse(400, "response_format is not supported") if asked.purpose else Say("yes")

    with scripted_teacher(answer) as teacher:
        wanted = [question(n, schema={"type": "object"}) for n in range(3)]
        replies, client, tries = asks(wanted, teacher.address, at_once=1, retries=0)
    assert [reply.text for reply in replies] == ["yes"] * 3
    assert len(teacher.asked) == sum(spent.requests for _, spent in tries) == 4
    assert client.report.totals()["tries_again"] == 0


def test_worst_case_is_every_byte_the_image_by_formula_and_the_longest_reply(asks: Any, tmp_path: Path) -> None:
    row = stored(tmp_path / "images")
    said = (ShownImage(row.image, 1024), "Frage: größer? " * 30)
    with scripted_teacher(lambda _: Say("yes")) as teacher:
        _, _, tries = asks([Request("reason", Prompt("p", 1, "Rules."), said, "gpt-4o")], teacher.address)
    (worst, spent) = tries[0]
    assert spent.within(worst)
    assert worst.tokens == len(("Rules." + said[1]).encode()) + 255 + 64 + 1024


def test_replies_that_come_home_together_teach_the_same_once(asks: Any) -> None:
    """Each has three times the tokens foreseen; together they are no proof of eighty-one times."""
    usage = {"prompt_tokens": 400, "completion_tokens": 10}
    with scripted_teacher(lambda _: miscounted(Say("yes", wait=0.1), usage, (400, 10))) as teacher:
        _, _, tries = asks([question(n) for n in range(12)], teacher.address)
    first, last = tries[0][0].tokens - 1024, tries[-1][0].tokens - 1024
    assert first < 200
    assert 400 <= last <= 410


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


# ----------------------------------------------------------------------------------------------------- the address


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
        (Refuse(429, retry_after="3600"), TemporaryError, "Retry-After: 3600", 1),  # too long to sit out
        (Refuse(401, "bad key"), SettingsError, "OPENAI_API_KEY.*bad key", 1),
        (Refuse(404, "no such model"), SettingsError, "--model gpt-4o.*no such model", 1),
        (Refuse(429, "quota", "insufficient_quota"), SettingsError, "no money left", 1),
        (Refuse(400, "unknown parameter"), SettingsError, "unknown parameter", 1),
        (Answer(body=b"<html>Welcome"), SettingsError, r"not a chat completion.*Welcome.*/v1", 3),
        (Answer(body=b'{"error": "no"}'), SettingsError, "not a chat completion", 3),
    ],
    ids=["500", "closed", "an hour", "401", "404", "quota", "400", "html", "error-200"],
)
def test_trouble_that_stays_is_told_in_words(
    asks: Any, trouble: Answer, error: type[Exception], says: str, tries: int
) -> None:
    with scripted_teacher(in_turn(trouble)) as teacher:
        with pytest.raises(error, match=says):
            asks([question()], teacher.address, retries=2)
        assert sum("Where is disc" in asked.words for asked in teacher.asked) == tries


# ----------------------------------------------------------------------------------------------------- how fast


def timed(work: Coroutine[Any, Any, Any]) -> float:
    begun = time.monotonic()
    asyncio.run(work)
    return time.monotonic() - begun


def test_retry_after_is_honoured(asks: Any) -> None:
    with scripted_teacher(in_turn(Refuse(429, retry_after="0.7"), Say("yes"))) as teacher:
        begun = time.monotonic()
        asks([question()], teacher.address)
    assert time.monotonic() - begun >= 0.7


def test_429_means_fewer_at_once_and_answers_mean_more_again() -> None:
    rate = Rate(10)
    rate.refused({})
    rate.refused({})  # of the same moment

    async def room() -> int:
        """How many get a place before one has to wait."""
        async with AsyncExitStack() as places:
            for number in itertools.count():
                try:
                    async with asyncio.timeout(0.02):
                        await places.enter_async_context(rate.slot(1))
                except TimeoutError:
                    return number
        raise AssertionError

    async def rooms() -> list[int]:
        found = []
        for _ in range(8):
            found.append(await room())
            rate.answered({})
            rate.answered({})
        return found

    found = asyncio.run(rooms())
    assert (found[0], found[-1]) == (7, 10)
    assert found == sorted(found)


def test_what_the_headers_allow_a_minute_is_kept() -> None:
    """300 requests a minute are five a second; two seconds' worth may go in one breath."""

    async def send(headers: dict[str, str], number: int, tokens: int) -> None:
        rate = Rate(100)
        rate.answered(headers)
        for _ in range(number):
            async with rate.slot(tokens):
                pass

    assert timed(send({"x-ratelimit-limit-requests": "300"}, 14, 1)) > 0.7
    assert timed(send({"x-ratelimit-limit-tokens": "30000"}, 14, 100)) > 0.7
    assert timed(send({"x-ratelimit-limit-requests": "nonsense"}, 50, 1)) < 0.7


def test_rate_headers_of_an_endpoint_slow_the_rest_down(asks: Any) -> None:
    headers = {"x-ratelimit-limit-requests": "300", "x-ratelimit-limit-tokens": "1000000"}
    with scripted_teacher(lambda asked: replace(grounded(asked), headers=headers)) as teacher:
        begun = time.monotonic()
        asks([question(n) for n in range(15)], teacher.address, at_once=2)
    assert time.monotonic() - begun > 0.4


def test_retry_after_is_seconds_milliseconds_or_a_date() -> None:
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after({"retry-after-ms": "1500", "retry-after": "2"}) == 1.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "tomorrow"}) is None
    assert retry_after({}) is None
