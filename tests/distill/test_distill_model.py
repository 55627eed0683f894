"""A model as the teacher, over real HTTP: what it is sent, what is kept, what happens when it misbehaves."""

from __future__ import annotations

import io
import itertools
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.distill.made import CENTRE, TOP_LEFT, see, stored
from tests.fakes.teacher import Answer, Refuse, Say, Teacher, grounded, in_turn, scripted_teacher
from vcot.distill import DistilledReasoning, Outcome, runner
from vcot.distill.budget import Ledger, budget_of
from vcot.distill.client import TeacherClient
from vcot.distill.costs import read_prices
from vcot.distill.crops import ImagePacker
from vcot.distill.dialogue import PromptConfig
from vcot.distill.endpoint import Endpoint, read_completion
from vcot.distill.request import ReplyCache
from vcot.distill.runner import ModelTeacher, Progress, distil
from vcot.distill.strategies.answer_aware import AnswerAware
from vcot.distill.verification import Verification
from vcot.errors import Interrupted, TemporaryError
from vcot.grounding import Trace
from vcot.records import Completion, Reason, Rejection, Sample
from vcot.storage import Store

pytestmark = pytest.mark.usefixtures("quick")


def model_teacher(
    cache: Path, *, retries: int = 2, timeout: float = 60, concurrency: int = 8, **config: Any
) -> ModelTeacher:
    client = TeacherClient(
        Endpoint(at_once=concurrency, timeout=timeout), ReplyCache(Store(), str(cache)), ImagePacker(Store()),
        read_prices(Store()), Ledger(Store(), str(cache.parent), budget_of(None, None, None)), retries=retries,
    )  # fmt: skip
    strategy = AnswerAware(
        PromptConfig(model="scripted", prompts=choose_prompts(), **config),
        Verification(self_consistency=False, crop_check=False, answer_from_evidence=False),
        propose=False,
    )
    return ModelTeacher(strategy, client)


class Asker:
    """Asks the scripted teacher about samples, each time as a new process would."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache, self._environment = folder, folder / "cache", monkeypatch
        self.counts: dict[str, int] = {}

    def rows(self, number: int) -> list[Sample]:
        return [stored(self.folder / "images", name=f"row-{n}", question=f"Where is disc {n}?") for n in range(number)]

    def __call__(self, rows: list[Sample], address: str, **given: Any) -> list[Outcome]:
        self._environment.setenv("OPENAI_BASE_URL", address)
        with model_teacher(self.cache, **given) as teacher:
            try:
                done = list(teacher.teach(rows))
            finally:
                self.counts = {name: n for name, n in teacher.counts().items() if name != "bill"}
        assert [row for row, _ in done] == rows
        return [outcome for _, outcome in done]

    @property
    def kept(self) -> list[Completion]:
        return [Completion.model_validate_json(p.read_bytes()) for p in sorted(self.cache.rglob("*.json"))]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asker:
    return Asker(tmp_path, monkeypatch)


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


# ------------------------------------------------------------------------------------------------- kept replies


def test_another_image_under_the_same_name_is_another_request(ask: Asker) -> None:
    (row,) = ask.rows(1)
    with scripted_teacher() as teacher:
        ask([row], teacher.address)
        changed = row.model_copy(update={"image": row.image.model_copy(update={"sha256": "0" * 64})})
        (outcome,) = ask([changed], teacher.address)
    assert reason_of(outcome) is Reason.IMAGE_CHANGED
    assert len(teacher.asked) == 1


# --------------------------------------------------------------------------------------- replies that are no use


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Say("colourless green ideas"), Reason.TEACHER_UNGROUNDED),
        (Say("I see the [1] at [31, 83, 188, 292]."), Reason.TEACHER_UNREADABLE),
        (Say("I see the [1]", finish="length"), Reason.TEACHER_CUT_OFF),
        (Say("I see the [1].\nAnswer: bottom"), Reason.TEACHER_WRONG_ANSWER),
        (Say(None), Reason.TEACHER_EMPTY),
        (Say(None, refusal="I can't."), Reason.TEACHER_REFUSED),
        (Refuse(400, "flagged", "content_filter"), Reason.TEACHER_REFUSED),
        (Answer(body=b'{"choices": []}'), Reason.TEACHER_EMPTY),
        (Answer(body=b'{"choices": [{"message": {"content": "\\ud800 \\u0000"}}]}'), Reason.TEACHER_UNGROUNDED),
    ],
)
def test_a_useless_reply_is_asked_again_with_a_stricter_word_and_then_refused(
    ask: Asker, bad: Answer, reason: Reason
) -> None:
    with scripted_teacher(in_turn(bad)) as teacher:
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


# --------------------------------------------------------------------------------------------- a server in trouble


def test_429_for_ever_ends_in_bounded_time_and_keeps_what_was_paid_for(ask: Asker) -> None:
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
    monkeypatch.setattr(runner, "stop", stop)

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
            model_teacher(ask.cache, retries=0, concurrency=4) as teaching,
        ):
            distil(ask.rows(32), teaching, Full())  # type: ignore[arg-type]
        assert len(ask.kept) == len(teacher.asked) < 32


# -------------------------------------------------------------------------------------------------- how far it is


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)
    return clock


@pytest.fixture
def progress(tmp_path: Path, clock: Clock) -> Progress:
    """Ten of forty rows in twenty seconds; two of them refused."""
    teacher = model_teacher(tmp_path / "cache")
    teacher.progress.total = 40
    for number in range(10):
        said = Completion(text="", model="m", finish_reason="stop", tokens_in=90, tokens_out=10, cost=0.25)
        teacher.client.report.replied("made", "reason", said, kept=number == 0)
        teacher.progress.row(refused=number < 2)
    teacher.client.report.failed("made", "reason", 5 * 10**11)
    clock.now += 20
    return teacher.progress


def test_line_every_thirty_seconds_says_rows_money_and_time(
    progress: Progress, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[dict[str, Any]] = []

    class Log:
        def info(self, _: str, **facts: Any) -> None:
            lines.append(facts)

    monkeypatch.setattr(runner.logging, "get", Log)
    for seconds in (0, 10, 0):
        clock.now += seconds
        progress.tell()
    assert lines == [
        {
            "done": 10, "of": 40, "refused": 2, "in_flight": 0, "requests": 9, "kept_replies_used": 1,
            "tries_again": 1, "tokens_per_second": 30, "usd": 2.75, "seconds_left": 90,
        }
    ]  # fmt: skip


def test_terminal_has_a_bar_of_the_rows(progress: Progress, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    progress.tell()
    clock.now += 0.1
    progress.row(refused=False)
    progress.tell()  # too soon
    progress.close()
    assert "10/40" in screen.getvalue()
    assert "2 refused, $2.75" in screen.getvalue()
    assert "11/40" not in screen.getvalue()


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
