"""The desk over real HTTP: what is billed, what is tried again, who is asked, and how fast."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.faults import limited
from vcot.teacher.amount import Amount
from vcot.teacher.desk import Desk
from vcot.teacher.endpoints import endpoints_of
from vcot.teacher.rates import Rate, duration, retry_after
from vcot.teacher.replies import Replies

from tests.fakes.teacher import CLOSE, Answer, Asked, Refuse, Say, Teacher, grounded, miscounted, scripted_teacher
from tests.teacher.made import stored
from vcot.errors import SettingsError, TemporaryError
from vcot.records import Completion
from vcot.storage import Store
from vcot.teacher.pictures import Pictures
from vcot.teacher.prices import PICO, read_prices
from vcot.teacher.request import Picture, Prompt, Request


@pytest.fixture(autouse=True)
def a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("vcot.teacher.desk.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("vcot.teacher.desk.LAST_PAUSE", 0.05)


class Reserved:
    """A budget that notes."""

    def __init__(self) -> None:
        self.tries: list[tuple[Amount, Amount]] = []

    async def reserve(self, worst: Amount) -> None: ...

    def settle(self, worst: Amount, spent: Amount) -> None:
        self.tries.append((worst, spent))

    async def close(self) -> None: ...


def question(number: int = 0, **more: Any) -> Request:
    words = f"Question: Where is disc {number}?\nRight answer: up\n[1] disc, up"
    return Request("reason", Prompt("p", 1, "Rules."), (words,), more.pop("model", "gpt-4o"), **more)


def asks(
    folder: Path, requests: list[Request], *written: str, at_once: int = 4, retries: int = 4, timeout: float = 5.0,
    budget: Reserved | None = None,
) -> tuple[list[Completion], Desk, Reserved]:  # fmt: skip
    budget = budget or Reserved()

    async def all_of_them() -> tuple[list[Completion], Desk, Reserved]:
        desk = Desk(
            endpoints_of(written, at_once=at_once, timeout=timeout), Replies(Store(), str(folder)), Pictures(Store()),
            read_prices(Store()), retries=retries,
        )  # fmt: skip
        await desk.spend_from(budget)
        try:
            return list(await asyncio.gather(*(desk.ask(one, source="made") for one in requests))), desk, budget
        finally:
            await desk.close()

    return asyncio.run(all_of_them())


def script(*answers: Answer) -> Any:
    return lambda asked: answers[min(asked.number, len(answers) - 1)]


def test_the_bill_has_a_line_for_each_source_and_purpose_and_costs_are_those_of_the_table(tmp_path: Path) -> None:
    with scripted_teacher() as teacher:
        first, desk, _ = asks(tmp_path, [question(n) for n in range(3)], teacher.address)
        line = desk.bill.lines()["made"]["reason"]
        assert first[0].cost == 100 * 2.5e-6 + 10 * 10e-6
        assert (line["requests"], line["tokens_in"], line["usd"]) == (3, 300, round(3 * first[0].cost, 9))
        assert line["usd_paid"] == line["usd"]
        _, desk, _ = asks(tmp_path, [question(n) for n in range(4)], teacher.address)
    line = desk.bill.lines()["made"]["reason"]
    assert (line["requests"], line["kept_replies_used"]) == (1, 3)
    assert (round(line["usd"], 6), round(line["usd_paid"], 6)) == (0.0014, 0.00035)


def test_the_same_question_asked_twice_at_once_is_paid_for_once(tmp_path: Path) -> None:
    with scripted_teacher(lambda asked: Say("yes", wait=0.05)) as teacher:
        replies, desk, _ = asks(tmp_path, [question()] * 5, teacher.address)
    assert len(teacher.asked) == 1
    assert {reply.text for reply in replies} == {"yes"}
    assert desk.counts()["kept_replies_used"] == 4


@pytest.mark.parametrize(
    ("trouble", "billed"),
    [
        (Refuse(429), False), (Refuse(500), False), (Refuse(503), False), (Refuse(502), True), (Refuse(504), True),
        (CLOSE, True), (Answer(body=b"<html>"), True), (Say("late", wait=5), True),
        (Answer(body=Say("x" * 400).body, cut=True), True),
    ],
    ids=["429", "500", "503", "502", "504", "closed", "no JSON", "slow", "half a body"],
)  # fmt: skip
def test_a_try_that_may_have_been_answered_counts_as_spent_and_one_that_was_not_does_not(
    tmp_path: Path, trouble: Answer, billed: bool
) -> None:
    with scripted_teacher(script(trouble, Say("yes"))) as teacher:
        (reply,), desk, budget = asks(tmp_path, [question()], teacher.address, timeout=2)
    assert reply.text == "yes"
    assert len(budget.tries) == len(teacher.asked) == 2
    (worst, lost), (again, spent) = budget.tries
    assert worst == again
    assert worst.pico > 1024 * 10_000_000
    assert lost == (worst if billed else Amount(requests=1))
    assert spent == Amount(350_000_000, 110, 1)
    assert round(desk.counts()["usd_lost"] * 10**12) == (worst.pico if billed else 0)
    assert desk.counts()["tries_again"] == 1


def test_a_refusal_of_the_content_is_a_reply_that_costs_a_request_and_nothing_else(tmp_path: Path) -> None:
    with scripted_teacher(script(Refuse(400, "flagged", "content_filter"))) as teacher:
        (reply,), _, budget = asks(tmp_path, [question()], teacher.address)
    assert (reply.finish_reason, budget.tries[0][1]) == ("content_filter", Amount(requests=1))


def test_a_reply_that_does_not_say_its_tokens_counts_with_its_worst_case(tmp_path: Path) -> None:
    with scripted_teacher(script(Answer(body=b'{"choices": [{"message": {"content": "x"}}]}'))) as teacher:
        _, _, budget = asks(tmp_path, [question()], teacher.address)
    assert budget.tries[0][0] == budget.tries[0][1]


UNTRUE: dict[str, Any] = {
    "none": None, "empty": {}, "list": [], "missing": "missing", "null": "null", "zero": 0, "negative": -5,
    "fraction": 12.5, "words": "12", "true": True, "10^12": 10**12, "10^400": 10**400,
}  # fmt: skip
"""What an endpoint may say of its tokens, or of one count, that nobody can believe."""


def lying(untrue: Any, name: str) -> Answer:
    """100 tokens in and 10 out as always, but for one count."""
    usage: Any = {"prompt_tokens": 100, "completion_tokens": 10} | {name: None if untrue == "null" else untrue}
    if untrue == "missing":
        del usage[name]
    return miscounted(Say("yes"), untrue if untrue in (None, {}, []) else usage, (100, 10))


@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
@pytest.mark.parametrize("untrue", UNTRUE.values(), ids=UNTRUE)
def test_a_count_that_nobody_can_believe_is_taken_at_its_worst(tmp_path: Path, untrue: Any, name: str) -> None:
    with scripted_teacher(script(lying(untrue, name))) as teacher:
        (first, _), _, budget = asks(tmp_path, [question(0), question(1)], teacher.address, at_once=1)
    (worst, spent), (next_worst, _) = budget.tries
    most_in, most_out = worst.tokens - 1024, 1024
    whole = untrue in (None, {}, [])
    tokens_in = most_in if whole or name == "prompt_tokens" else 100
    tokens_out = most_out if whole or name == "completion_tokens" else 10
    assert spent == Amount(tokens_in * 2_500_000 + tokens_out * 10_000_000, tokens_in + tokens_out, 1)
    assert (first.tokens_in, first.tokens_out, first.cost) == (tokens_in, tokens_out, spent.pico / PICO)
    assert next_worst == worst  # nothing was learned from it


def test_a_reply_longer_than_allowed_is_booked_in_full_and_the_next_is_reserved_as_long(tmp_path: Path) -> None:
    """As servers give that do not know max_completion_tokens."""
    said = miscounted(Say("yes"), {"prompt_tokens": 100, "completion_tokens": 9000}, (100, 9000))
    with scripted_teacher(script(said)) as teacher:
        _, _, budget = asks(tmp_path, [question(n) for n in range(3)], teacher.address, at_once=1)
    (first, spent), *_, (third, again) = budget.tries  # the second was reserved beside the first
    assert spent.tokens == again.tokens == 100 + 9000
    assert third.tokens - first.tokens == 9000 - 1024
    assert again.within(third)


@pytest.mark.parametrize("cached", [10**12, 101, -1, "all", 100.0])
def test_more_cheap_tokens_than_there_are_are_not_believed(tmp_path: Path, cached: Any) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": cached}}
    with scripted_teacher(script(miscounted(Say("yes"), usage, (100, 10)))) as teacher:
        _, _, budget = asks(tmp_path, [question()], teacher.address)
    assert budget.tries[0][1] == Amount(350_000_000, 110, 1)


def test_a_finished_reply_without_counts_is_paid_for_even_if_it_calls_itself_filtered(tmp_path: Path) -> None:
    said = miscounted(Say("yes", finish="content_filter"), None, (100, 10))
    with scripted_teacher(script(said)) as teacher:
        _, _, budget = asks(tmp_path, [question()], teacher.address)
    assert budget.tries[0][0] == budget.tries[0][1]


def test_what_is_asked_again_without_a_schema_is_another_request(tmp_path: Path) -> None:
    """An endpoint that knows no schemas is told so once for each request under way; each of them left this process."""

    def answer(asked: Asked) -> Answer:
        return Refuse(400, "response_format is not supported") if asked.purpose else Say("yes")

    with scripted_teacher(answer) as teacher:
        wanted = [question(n, schema={"type": "object"}) for n in range(3)]
        replies, desk, budget = asks(tmp_path, wanted, teacher.address, at_once=1, retries=0)
    assert [reply.text for reply in replies] == ["yes"] * 3
    assert len(teacher.asked) == 4
    assert sum(spent.requests for _, spent in budget.tries) == 4
    assert desk.counts()["tries_again"] == 0


def test_what_never_left_the_process_is_no_request(tmp_path: Path) -> None:
    budget = Reserved()
    with pytest.raises(TemporaryError, match="cannot be reached"):
        asks(tmp_path, [question()], "http://127.0.0.1:1/v1", retries=1, budget=budget)
    assert [spent for _, spent in budget.tries] == [Amount(), Amount()]


def test_what_is_sent_is_never_more_than_was_reserved(tmp_path: Path) -> None:
    row = stored(tmp_path / "images")
    said = (Picture(row.image, 1024), "Frage: größer? " * 30)
    with scripted_teacher(lambda _: Say("yes")) as teacher:
        _, _, budget = asks(tmp_path, [Request("reason", Prompt("p", 1, "Rules."), said, "gpt-4o")], teacher.address)
    (worst, spent) = budget.tries[0]
    assert spent.within(worst)
    assert worst.tokens == len(("Rules." + said[1]).encode()) + 255 + 64 + 1024


def test_a_prompt_longer_than_foreseen_makes_the_next_be_reserved_higher(tmp_path: Path) -> None:
    def long(_: Asked) -> Answer:
        body = (Say("yes").body or b"").replace(b'"prompt_tokens": 100', b'"prompt_tokens": 100000')
        return Answer(body=body)

    with scripted_teacher(long) as teacher:
        _, _, budget = asks(tmp_path, [question(0), question(1)], teacher.address, at_once=1)
    assert not budget.tries[0][1].within(budget.tries[0][0])
    assert budget.tries[-1][1].tokens <= max(worst.tokens for worst, _ in budget.tries) or len(budget.tries) == 2


def test_replies_that_come_home_together_teach_the_same_once(tmp_path: Path) -> None:
    """Each has three times the tokens foreseen; together they are no proof of eighty-one times."""
    usage = {"prompt_tokens": 400, "completion_tokens": 10}
    with scripted_teacher(lambda _: miscounted(Say("yes", wait=0.1), usage, (400, 10))) as teacher:
        _, _, budget = asks(tmp_path, [question(n) for n in range(12)], teacher.address, at_once=4)
    first, last = budget.tries[0][0].tokens - 1024, budget.tries[-1][0].tokens - 1024
    assert first < 200
    assert 400 <= last <= 410


def test_two_endpoints_share_the_work_by_weight(tmp_path: Path) -> None:
    with scripted_teacher() as one, scripted_teacher() as other:
        asks(tmp_path, [question(n) for n in range(30)], f"{one.address}=2", other.address, at_once=3)
    assert (len(one.asked), len(other.asked)) == (20, 10)


def test_an_endpoint_that_fails_leaves_its_work_to_the_other(tmp_path: Path) -> None:
    with scripted_teacher(script(Refuse(429, retry_after="60"))) as busy, scripted_teacher() as free:
        replies, _, _ = asks(tmp_path, [question(n) for n in range(12)], busy.address, free.address)
    assert len(replies) == 12
    assert len(free.asked) == 12
    assert len(busy.asked) <= 4  # those under way before it said so


def test_azure_is_asked_by_the_clients_own_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with scripted_teacher() as teacher:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", teacher.address.removesuffix("/v1"))
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", "azure-key")
        with pytest.raises(SettingsError, match=r"AZURE_OPENAI_ENDPOINT=http.*OPENAI_API_VERSION"):
            asks(tmp_path, [question()])
        monkeypatch.setenv("OPENAI_API_VERSION", "2025-04-01-preview")
        asks(tmp_path, [question()])
    assert teacher.asked[0].path == "/openai/deployments/gpt-4o/chat/completions?api-version=2025-04-01-preview"


def test_no_money_left_at_the_endpoint_is_no_passing_trouble(tmp_path: Path) -> None:
    with (
        scripted_teacher(script(Refuse(429, "quota", "insufficient_quota"))) as teacher,
        pytest.raises(SettingsError, match="no money left"),
    ):
        asks(tmp_path, [question()], teacher.address)
    assert len(teacher.asked) == 1


def test_trouble_that_stays_says_how_often_it_was_tried(tmp_path: Path) -> None:
    with (
        scripted_teacher(script(Refuse(500))) as teacher,
        pytest.raises(TemporaryError, match=r"after 3 tries: http.* fails for now"),
    ):
        asks(tmp_path, [question()], teacher.address, retries=2)


# ----------------------------------------------------------------------------------------------------- how fast


def timed(work: Coroutine[Any, Any, Any]) -> float:
    begun = time.monotonic()
    asyncio.run(work)
    return time.monotonic() - begun


def test_fewer_at_once_after_a_refusal_and_more_again_after_answers() -> None:
    rate = Rate(10)
    rate.refused({})
    rate.refused({})  # of the same moment
    rooms = []
    for _ in range(30):
        rate.under_way = 0
        while rate.has_room:
            rate.under_way += 1
        rooms.append(rate.under_way)
        rate.answered({})
    assert (rooms[0], rooms[-1]) == (7, 10)
    assert rooms == sorted(rooms)


def test_what_the_headers_allow_a_minute_is_kept() -> None:
    """300 requests a minute are five a second; two seconds' worth may go in one breath."""

    async def send(headers: dict[str, str], number: int, tokens: int) -> None:
        rate = Rate(100)
        rate.answered(headers)
        for _ in range(number):
            await rate.wait(tokens)

    assert 0.7 < timed(send({"x-ratelimit-limit-requests": "300"}, 14, 1)) < 2.5
    assert 0.7 < timed(send({"x-ratelimit-limit-tokens": "30000"}, 14, 100)) < 2.5
    assert timed(send({"x-ratelimit-limit-requests": "nonsense"}, 50, 1)) < 0.5


def test_nobody_is_asked_before_the_reset_of_what_is_used_up() -> None:
    async def send() -> None:
        rate = Rate(10)
        rate.answered({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "300ms"})
        assert rate.is_paused
        await rate.wait(1)

    assert timed(send()) >= 0.29


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("6m0s", 360), ("1.5s", 1.5), ("20ms", 0.02), ("1h2m3s", 3723), ("7", 7), ("", None), ("soon", None)],
)
def test_durations_are_read(written: str, seconds: float | None) -> None:
    assert duration(written) == seconds


def test_retry_after_is_seconds_milliseconds_or_a_date() -> None:
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after({"retry-after-ms": "1500", "retry-after": "2"}) == 1.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "tomorrow"}) is None
    assert retry_after({}) is None


def test_rate_headers_of_a_real_endpoint_slow_the_rest_down(tmp_path: Path) -> None:
    with ExitStack() as stack:
        teacher: Teacher = stack.enter_context(scripted_teacher(limited(grounded, requests=300, tokens=10**6)))
        begun = time.monotonic()
        asks(tmp_path, [question(n) for n in range(15)], teacher.address, at_once=2)
    assert time.monotonic() - begun > 0.4
