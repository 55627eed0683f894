"""A model as the teacher, over real HTTP: what it is sent, what is kept, what happens when it misbehaves."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vcot.teacher.desk import Desk
from vcot.teacher.distil import distil
from vcot.teacher.endpoints import endpoints_of
from vcot.teacher.model import ModelTeacher
from vcot.teacher.replies import Replies

from tests.fakes.teacher import CLOSE, Answer, Asked, Refuse, Say, Teacher, grounded, scripted_teacher
from tests.teacher.made import CENTRE, TOP_LEFT, sample, see, stored
from vcot.errors import InputError, Interrupted, SettingsError, TemporaryError, VcotError
from vcot.grounding import Trace
from vcot.records import Completion, Reason, Rejection, Sample
from vcot.storage import Store
from vcot.teacher import DistilledReasoning, model, prompts
from vcot.teacher.answers import read_completion
from vcot.teacher.dialogue import PromptConfig
from vcot.teacher.pictures import Pictures
from vcot.teacher.prices import read_prices
from vcot.teacher.row import Outcome
from vcot.teacher.strategies.answer_aware import AnswerAware
from vcot.teacher.verification import Verification

Ask = Callable[..., list[Outcome]]


@pytest.fixture(autouse=True)
def a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses, a hundred times shorter."""
    monkeypatch.setattr("vcot.teacher.desk.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("vcot.teacher.desk.LAST_PAUSE", 0.08)


def desk_teacher(
    cache: Path, *, retries: int = 2, timeout: float = 5, concurrency: int = 8, alternatives: int = 1, **manner: Any
) -> ModelTeacher:
    endpoints = endpoints_of((), at_once=concurrency, timeout=timeout)
    desk = Desk(endpoints, Replies(Store(), str(cache)), Pictures(Store()), read_prices(Store()), retries=retries)
    way = AnswerAware(
        PromptConfig(model="scripted", prompts=prompts.chosen(), **manner),
        Verification(self_consistency=False, crop_check=False, answer_from_evidence=False),
        alternatives=alternatives,
        propose=False,
    )
    return ModelTeacher(way, desk)


class Asker:
    """Asks the scripted teacher about samples, each time as a new process would."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache, self._environment = folder, folder / "cache", monkeypatch
        self.counts: dict[str, int] = {}

    def rows(self, number: int) -> list[Sample]:
        return [stored(self.folder / "images", name=f"row-{n}", question=f"Where is disc {n}?") for n in range(number)]

    def __call__(self, rows: list[Sample], address: str, **given: Any) -> list[Outcome]:
        self._environment.setenv("OPENAI_BASE_URL", address)
        with desk_teacher(self.cache, **given) as teacher:
            try:
                done = list(teacher.teach(rows))
            finally:
                self.counts = dict(teacher.counts())
        assert [row for row, _ in done] == rows
        return [outcome for _, outcome in done]

    @property
    def kept(self) -> list[Completion]:
        return [Completion.model_validate_json(p.read_bytes()) for p in sorted(self.cache.rglob("*.json"))]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asker:
    return Asker(tmp_path, monkeypatch)


def script(*answers: Answer) -> Callable[[Asked], Answer]:
    """These, one after another; the last one for ever."""
    return lambda asked: answers[min(asked.number, len(answers) - 1)]


def reason_of(outcome: Outcome) -> Reason:
    assert isinstance(outcome, Rejection), outcome
    assert outcome.stage == "distill"
    return outcome.reason


# ------------------------------------------------------------------------------------------------ what it is sent


def test_the_teacher_sees_image_question_answer_and_numbered_objects(ask: Asker) -> None:
    row = stored(ask.folder / "images", question="How many discs?", evidence=(see("red disc", TOP_LEFT, CENTRE),))
    with scripted_teacher() as teacher:
        (lesson,) = ask([row.model_copy(update={"answers": ("2",)})], teacher.address, temperature=0.5, image_side=100)
    (asked,) = teacher.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.authorization == "Bearer secret"
    assert asked.body["model"] == "scripted"
    assert asked.body["temperature"] == 0.5
    assert asked.image.size == (100, 75)
    assert (asked.question, asked.answer, asked.objects) == ("How many discs?", "2", {1: "red disc", 2: "red disc"})
    assert "top left" in asked.words
    assert not any(str(round(1000 * edge / 320)) in asked.words for edge in (140, 180))  # no thousandths to copy
    assert lesson == DistilledReasoning(
        (
            Trace(
                ("I see the ", see("red disc", TOP_LEFT), " and the ", see("red disc", CENTRE), ". So the answer is 2.")
            ),
        )
    )
    (kept,) = ask.kept
    assert (kept.model, kept.finish_reason, kept.tokens_in, kept.tokens_out) == ("scripted-1", "stop", 100, 10)


def test_rows_with_reasoning_and_test_rows_are_not_asked_about(ask: Asker) -> None:
    rows = [
        sample(name="has", reasoning=(Trace(("I see the ", see("red disc", TOP_LEFT), ".")),)),
        sample(name="test", split="test"),
        sample(name="unknown", evidence=None),
    ]
    with scripted_teacher() as teacher:
        outcomes = ask(rows, teacher.address)
    assert outcomes[:2] == [None, None]
    assert reason_of(outcomes[2]) is Reason.NO_REASONING
    assert teacher.asked == []


def test_absence_is_taught_in_words(ask: Asker) -> None:
    row = stored(ask.folder / "images", question="Is there a dog?", evidence=()).model_copy(update={"answers": ("no",)})
    with scripted_teacher() as teacher:
        outcomes = ask([row], teacher.address)
    assert outcomes == [DistilledReasoning((Trace(("I looked for it, and it is not there. So the answer is no.",)),))]
    assert "use no brackets" in teacher.asked[0].words


# ------------------------------------------------------------------------------------------------- kept replies


def test_a_second_run_asks_nothing_and_gives_the_same(ask: Asker) -> None:
    rows = ask.rows(12)
    with scripted_teacher() as teacher:
        first = ask(rows, teacher.address, concurrency=5)
        assert ask.counts["requests"] == 12
        second = ask(rows, teacher.address)
        assert len(teacher.asked) == 12
    assert first == second
    assert ask.counts == {
        "requests": 0, "kept_replies_used": 12, "tries_again": 0, "tokens_in": 1200, "tokens_cached": 0,
        "tokens_out": 120, "tokens_paid": 0, "unpriced": 12, "usd": 0, "usd_paid": 0, "usd_lost": 0,
    }  # fmt: skip
    assert ask(rows, "http://127.0.0.1:1/v1") == first  # not even an endpoint is needed


@pytest.mark.parametrize(
    "change", [{"image_side": 50}, {"reply_tokens": 500}, {"temperature": 0.1}], ids=lambda change: next(iter(change))
)
def test_a_changed_request_is_another_request(ask: Asker, change: dict[str, object]) -> None:
    with scripted_teacher() as teacher:
        ask(ask.rows(1), teacher.address)
        ask(ask.rows(1), teacher.address, **change)
    assert len(teacher.asked) == 2


def test_another_image_under_the_same_name_is_another_request(ask: Asker) -> None:
    (row,) = ask.rows(1)
    with scripted_teacher() as teacher:
        ask([row], teacher.address)
        changed = row.model_copy(update={"image": row.image.model_copy(update={"sha256": "0" * 64})})
        (outcome,) = ask([changed], teacher.address)
    assert reason_of(outcome) is Reason.IMAGE_CHANGED
    assert len(teacher.asked) == 1


def test_the_first_reply_to_a_request_counts_and_the_first_letters_of_its_key_are_a_folder(tmp_path: Path) -> None:
    replies = Replies(Store(), str(tmp_path))
    key = "ab" * 32
    mine, other = (Completion(text=text, model="m", finish_reason="stop") for text in ("mine", "other"))
    assert replies.keep(key, mine) == mine
    assert replies.keep(key, other) == mine
    assert (tmp_path / "ab" / f"{key}.json").read_bytes() == mine.line()
    (tmp_path / "ab" / f"{key}.json").write_bytes(b'{"version"')
    with pytest.raises(InputError, match="delete it to ask again"):
        replies.get(key)


# --------------------------------------------------------------------------------------- replies that are no use


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Say("colourless green ideas"), Reason.TEACHER_UNGROUNDED),
        (Say("I see the [7]."), Reason.TEACHER_UNGROUNDED),
        (Say("I see the [1] at [31, 83, 188, 292]."), Reason.TEACHER_UNREADABLE),
        (Say("I see the [1]", finish="length"), Reason.TEACHER_CUT_OFF),
        (Say("I see the [1].\nAnswer: bottom"), Reason.TEACHER_WRONG_ANSWER),
        (Say(""), Reason.TEACHER_EMPTY),
        (Say(None), Reason.TEACHER_EMPTY),
        (Say(None, refusal="I can't."), Reason.TEACHER_REFUSED),
        (Say("", finish="content_filter"), Reason.TEACHER_REFUSED),
        (Refuse(400, "flagged", "content_filter"), Reason.TEACHER_REFUSED),
        (Answer(body=b'{"choices": []}'), Reason.TEACHER_EMPTY),
        (Answer(body=b'{"choices": [{"message": {"content": "\\ud800 \\u0000"}}]}'), Reason.TEACHER_UNGROUNDED),
    ],
)
def test_a_useless_reply_is_asked_again_with_a_stricter_word_and_then_refused(
    ask: Asker, bad: Answer, reason: Reason
) -> None:
    with scripted_teacher(script(bad)) as teacher:
        (outcome,) = ask(ask.rows(1), teacher.address)
        assert reason_of(outcome) is reason
        for_repair = reason not in (Reason.TEACHER_WRONG_ANSWER, Reason.TEACHER_REFUSED)
        assert len(teacher.asked) == 1 + for_repair
        assert "thrown away" not in teacher.asked[0].words
        assert ("Your last reply to this was thrown away: it " in teacher.asked[-1].words) == for_repair
        assert ask.counts.get("repairs", 0) == for_repair
        assert isinstance(outcome, Rejection)
        assert len(outcome.said) == 1 + for_repair
        assert ask(ask.rows(1), teacher.address) == [outcome]  # kept too: what was paid for is not asked again
        assert len(teacher.asked) == 1 + for_repair


def test_a_good_reply_after_a_bad_one_counts(ask: Asker) -> None:
    with scripted_teacher(script(Say(""), Say("I see the [1] at the top left."))) as teacher:
        (outcome,) = ask(ask.rows(1), teacher.address)
    assert isinstance(outcome, DistilledReasoning)
    assert len(teacher.asked) == 2


def test_alternatives_are_asked_for_and_only_different_ones_count(ask: Asker) -> None:
    said = ["I see the [1] top left.", "The [1] is top left.", "I see the [1] top left."]
    with scripted_teacher(lambda asked: Say(said[asked.number])) as teacher:
        (outcome,) = ask(ask.rows(1), teacher.address, alternatives=3)
    assert isinstance(outcome, DistilledReasoning)
    assert len(outcome.traces) == 2


def test_a_missing_image_is_refused_by_name(ask: Asker) -> None:
    rows = [sample(uri=str(ask.folder / "none.png"))]
    with scripted_teacher() as teacher:
        (outcome,) = ask(rows, teacher.address)
    assert reason_of(outcome) is Reason.IMAGE_MISSING
    assert not teacher.asked


# --------------------------------------------------------------------------------------------- a server in trouble


@pytest.mark.parametrize(
    "trouble", [Refuse(429), Refuse(500), Refuse(503), CLOSE, Refuse(502)],
    ids=["429", "500", "503", "closed", "502"],
)  # fmt: skip
def test_trouble_that_passes_is_waited_out(ask: Asker, quick: None, trouble: Answer) -> None:
    with scripted_teacher(script(trouble, trouble, Say("I see the [1] at the top left."))) as teacher:
        (outcome,) = ask(ask.rows(1), teacher.address)
    assert isinstance(outcome, DistilledReasoning)
    assert len(teacher.asked) == 3
    assert ask.counts["requests"] == 1


def test_retry_after_is_honoured(ask: Asker, quick: None) -> None:
    with scripted_teacher(script(Refuse(429, retry_after="0.7"), Say("I see the [1] at the top left."))) as teacher:
        begun = time.monotonic()
        ask(ask.rows(1), teacher.address)
    assert time.monotonic() - begun >= 0.7


def test_a_wait_longer_than_two_minutes_is_not_sat_out(ask: Asker) -> None:
    with (
        scripted_teacher(script(Refuse(429, retry_after="3600"))) as teacher,
        pytest.raises(TemporaryError, match="Retry-After: 3600"),
    ):
        ask(ask.rows(1), teacher.address)
    assert len(teacher.asked) == 1


def test_429_for_ever_ends_in_bounded_time_and_keeps_what_was_paid_for(ask: Asker, quick: None) -> None:
    good = {f"Where is disc {n}?" for n in range(4)}
    rows = ask.rows(10)
    with scripted_teacher(lambda a: grounded(a) if a.question in good else Refuse(429, "slow down")) as teacher:
        with pytest.raises(
            TemporaryError, match=r"slow down.*lower --concurrency.*same command again.*kept in"
        ) as error:
            ask(rows, teacher.address, concurrency=5)
        assert error.value.exit_code == 75
        assert len(ask.kept) == 4
        assert max(teacher.questions.count(row.question) for row in rows) == 3  # one try and two more
        teacher.asked.clear()
        teacher.script = grounded
        ask(rows, teacher.address)
        assert sorted(teacher.questions) == sorted({row.question for row in rows} - good)


@pytest.mark.parametrize(
    ("trouble", "error", "says"),
    [
        (Refuse(500), TemporaryError, "fails for now"),
        (CLOSE, TemporaryError, "cannot be reached"),
        (Say("late", wait=1.0), TemporaryError, "no answer in time"),
        (Refuse(401, "bad key"), SettingsError, "OPENAI_API_KEY.*bad key"),
        (Refuse(403, "not yours"), SettingsError, "not yours"),
        (Refuse(404, "no such model"), SettingsError, "--model scripted.*no such model"),
        (Refuse(400, "unknown parameter"), SettingsError, "unknown parameter"),
        (Answer(body=b"<html>Welcome"), SettingsError, r"not a chat completion.*Welcome.*/v1"),
        (Answer(body=b'{"error": "no"}'), SettingsError, "not a chat completion"),
    ],
    ids=["500", "closed", "slow", "401", "403", "404", "400", "html", "error-200"],
)
def test_trouble_that_stays_is_told_in_words(
    ask: Asker, quick: None, monkeypatch: pytest.MonkeyPatch, trouble: Answer, error: type[VcotError], says: str
) -> None:
    monkeypatch.setattr(model, "GRACE", 0.2)
    with scripted_teacher(script(trouble)) as teacher, pytest.raises(error, match=says):
        ask(ask.rows(3), teacher.address, timeout=0.3, retries=1)


def test_nobody_at_the_address(ask: Asker, quick: None) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(TemporaryError, match=rf"{address} cannot be reached.*OPENAI_BASE_URL.*up\? Run the same"):
        ask(ask.rows(1), address)


def test_a_missing_key_or_a_wrong_address_is_a_setting(ask: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL=localhost:8000"):
        ask(ask.rows(1), "localhost:8000")
    with pytest.raises(SettingsError, match=r"OPENAI_BASE_URL=http://\[::1"):
        ask(ask.rows(1), "http://[::1")
    monkeypatch.setenv("OPENAI_API_KEY", "secret\n")
    with pytest.raises(SettingsError, match=r"OPENAI_API_KEY of 7 characters.*line break"):
        ask(ask.rows(1), "http://127.0.0.1:1/v1")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(SettingsError, match="OPENAI_API_KEY is not set"):
        ask(ask.rows(1), "http://127.0.0.1:1/v1")


# ------------------------------------------------------------------------------------------------ limits and stops


def test_no_more_requests_at_once_than_allowed_and_no_fewer(ask: Asker) -> None:
    with scripted_teacher(lambda asked: Say("I see the [1] at the top left.", wait=0.05)) as teacher:
        ask(ask.rows(30), teacher.address, concurrency=6)
    assert teacher.most_at_once == 6


def test_order_does_not_depend_on_who_answers_first(ask: Asker) -> None:
    waits = itertools.cycle([0.2, 0.0, 0.1, 0.0])
    with scripted_teacher(lambda asked: Say(f"For {asked.question} see [1], top left.", wait=next(waits))) as teacher:
        outcomes = ask(ask.rows(12), teacher.address, concurrency=4)
    texts = [outcome.traces[0].text for outcome in outcomes if isinstance(outcome, DistilledReasoning)]
    assert texts == [f"For Where is disc {n}? see red disc, top left." for n in range(12)]


@contextmanager
def signal_after(teacher: Teacher, answered: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The flag of this process goes up once so many questions were asked."""
    from vcot.stage import Stop

    stop = Stop()
    monkeypatch.setattr(model, "stop", stop)

    def watch() -> None:
        while len(teacher.asked) < answered:
            time.sleep(0.01)
        stop.request(signal.SIGTERM)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


def test_a_signal_waits_for_what_is_under_way_and_asks_nothing_more(
    ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        scripted_teacher(lambda asked: Say("I see the [1] at the top left.", wait=0.3)) as teacher,
        signal_after(teacher, 6, monkeypatch),
        pytest.raises(Interrupted, match="replies that arrived are kept"),
    ):
        ask(ask.rows(30), teacher.address, concurrency=3)
    assert len(ask.kept) == len(teacher.asked) < 12


def test_requests_under_way_come_home_when_the_rows_can_be_written_no_longer(
    ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A writer whose disk is full from the second row on."""

        def keep(self, row: Sample) -> None:
            if row.id == "row-1":
                raise OSError(28, "No space left on device")

    with scripted_teacher(lambda asked: Say("I see the [1] at the top left.", wait=0.3)) as teacher:
        monkeypatch.setenv("OPENAI_BASE_URL", teacher.address)
        with (
            pytest.raises(OSError, match="No space left"),
            desk_teacher(ask.cache, retries=0, concurrency=4) as model_teacher,
        ):
            distil(ask.rows(32), model_teacher, Full())  # type: ignore[arg-type]
        assert len(ask.kept) == len(teacher.asked) < 32


# --------------------------------------------------------------------------------------------- what a server leaves out


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


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"<html>", b'{"choices": 5}', b"\xff", b"[" * 10**5, b"9" * 10**4]
)
def test_what_is_no_completion_is_none(data: bytes) -> None:
    assert read_completion(data, "asked", 0.5) is None
