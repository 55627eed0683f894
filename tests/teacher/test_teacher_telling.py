"""How far it is, on a terminal and in a pod."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from vcot.teacher.desk import Desk
from vcot.teacher.endpoints import endpoints_of
from vcot.teacher.replies import Replies
from vcot.teacher.telling import Telling

from vcot.records import Completion
from vcot.storage import Store
from vcot.teacher import telling
from vcot.teacher.pictures import Pictures
from vcot.teacher.prices import read_prices


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(telling, "time", clock)
    return clock


@pytest.fixture
def told(tmp_path: Path, clock: Clock) -> Telling:
    """Ten of forty rows in twenty seconds; two of them refused."""
    endpoints = endpoints_of(("http://127.0.0.1:1/v1",), at_once=3, timeout=1)
    desk = Desk(endpoints, Replies(Store(), str(tmp_path)), Pictures(Store()), read_prices(Store()))
    told = Telling(desk)
    told.total = 40
    for number in range(10):
        said = Completion(text="", model="m", finish_reason="stop", tokens_in=90, tokens_out=10, cost=0.25)
        desk.bill.reply("made", "reason", said, kept=number == 0)
        told.row(refused=number < 2)
    desk.bill.again("made", "reason", 5 * 10**11)
    clock.now += 20
    return told


def test_a_line_every_thirty_seconds_says_rows_money_and_time(
    told: Telling, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[dict[str, Any]] = []

    class Log:
        def info(self, _: str, **facts: Any) -> None:
            lines.append(facts)

    monkeypatch.setattr(telling.log, "get", Log)
    told.tell()
    assert lines == []
    clock.now += 10
    told.tell()
    told.tell()
    assert lines == [
        {
            "done": 10, "of": 40, "refused": 2, "in_flight": 0, "requests": 9, "kept_replies_used": 1,
            "tries_again": 1, "tokens_per_second": 30, "usd": 2.75, "seconds_left": 90,
        }
    ]  # fmt: skip


def test_a_terminal_has_a_table(told: Telling, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    told.tell()
    clock.now += 0.1
    told.row(refused=False)
    told.tell()  # too soon
    told.close()
    assert "tokens per second" in screen.getvalue()
    assert "seconds left" in screen.getvalue()
    assert "11" not in screen.getvalue()


def test_a_price_that_nobody_knows_is_said(told: Telling) -> None:
    told._desk.bill.reply("made", "reason", Completion(text="", model="m", finish_reason="stop"), kept=False)
    assert told.facts()["usd"] == "unknown price"
