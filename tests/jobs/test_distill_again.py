"""Rows that were refused are asked about again, in another run, and nothing else is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.distill import DistillSettings, run
from tests.fakes.batches import Batches
from tests.fakes.teacher import Answer, Asked, Say, grounded, scripted_teacher
from tests.jobs.test_distill import distilled, files, rejections
from tests.teacher import storm
from vcot.errors import SettingsError
from vcot.records import Reason
from vcot.teacher import batches

BAD = ("Where is disc 0?", "Where is disc 2?")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("VCOT_", "OPENAI_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(batches, "POLL", 0.01)


def bad(asked: Asked) -> Answer:
    return Say("nothing of use") if asked.question in BAD else grounded(asked)


def distil(where: Path, script: Callable[[Asked], Answer], **given: Any) -> list[str]:
    """The questions that the teacher was asked."""
    alone = {"twice": False, "look": False, "reanswer": False, "propose": False}
    with scripted_teacher(script) as teacher:
        there = Batches(teacher)
        settings = {"teacher": "openai", "model": "gpt-4o", "endpoints": (teacher.address,), "max_rejected_share": 0.5}
        run(DistillSettings(run_uri=str(where), **(alone | settings | given)))
        return sorted(teacher.questions + [asked.question for asked in there.lines])


def runs(folder: Path, *names: str) -> list[Path]:
    """Of the same rows, with one cache."""
    rows = storm.rows(folder, 6)
    for name in names:
        storm.convert(folder / "runs" / name, rows, 2)
    return [folder / "runs" / name for name in names]


@pytest.mark.parametrize("batch", [False, True], ids=["singly", "in batches"])
def test_only_refused_rows_are_asked_again_and_the_others_keep_their_bytes(tmp_path: Path, batch: bool) -> None:
    first, second, third = runs(tmp_path, "first", "second", "third")
    distil(first, bad)
    mark, before = distilled(str(first))
    assert {one.id for one in rejections(str(first), mark)} == {"row-0", "row-2"}

    with pytest.raises(SettingsError, match=r"ask_again was 0 and is now 1.*another run name"):
        distil(first, grounded, ask_again=1)  # what is whole stays as it is
    assert distil(second, grounded, ask_again=1, batch=batch) == sorted(BAD)
    mark, after = distilled(str(second))
    assert sorted(row.id for row in after) == [f"row-{n}" for n in range(6)]
    assert [row.line() for row in after if row.question not in BAD] == [row.line() for row in before]
    assert {(one.id, one.part) for one in rejections(str(second), mark)} == {  # how they fell the first time
        ("row-0", "alternative 1"), ("row-2", "alternative 1")
    }  # fmt: skip
    assert distil(second, bad, ask_again=1) == []
    assert distil(third, bad, ask_again=1) == []  # those replies are kept, too
    assert files(second) == files(third)


def test_a_row_that_falls_again_says_all_that_was_said(tmp_path: Path) -> None:
    first, second = runs(tmp_path, "first", "second")
    distil(first, bad)
    assert distil(second, lambda asked: Say(""), ask_again=1) == sorted([*BAD, *BAD])  # each is repaired once
    mark, _ = distilled(str(second))
    found = rejections(str(second), mark)
    assert {(one.id, one.part) for one in found} == {("row-0", ""), ("row-2", "")}
    assert {one.said for one in found} == {("nothing of use", "nothing of use", "", "")}
    assert {one.reason for one in found} <= {Reason.TEACHER_EMPTY, Reason.TEACHER_UNGROUNDED}


def test_a_dry_run_counts_what_is_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = runs(tmp_path, "first", "second")
    distil(first, bad)
    capsys.readouterr()
    assert distil(second, grounded, ask_again=1, dry_run=True) == []
    said = capsys.readouterr().out
    assert "6, of which 2 need new replies" in said
    assert re.search(r"^requests +2,", said, re.M)
