"""Rows that were refused are asked about again, in another run, and nothing else is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.batches import Batches
from tests.fakes.distilling import converted, distill, distilled, files, rejections
from tests.fakes.teacher import Answer, Asked, Say, grounded, scripted_teacher
from vcot.errors import SettingsError
from vcot.records import Reason

pytestmark = pytest.mark.usefixtures("quick_teacher")

BAD = ("Where is disc 0?", "Where is disc 2?")


def bad(asked: Asked) -> Answer:
    return Say("nothing of use") if asked.question in BAD else grounded(asked)


def questions(where: Path, script: Callable[[Asked], Answer], **given: Any) -> list[str]:
    """What a teacher is asked in a run."""
    with scripted_teacher(script) as teacher:
        there = Batches(teacher)
        distill(where, teacher, max_rejected_share=0.5, **given)
        return sorted(teacher.questions + [asked.question for asked in there.lines])


@pytest.mark.parametrize("batch", [False, True], ids=["singly", "in batches"])
def test_only_refused_rows_are_asked_again_and_the_others_keep_their_bytes(tmp_path: Path, batch: bool) -> None:
    first, second, third = (converted(tmp_path, 6, name=name) for name in ("first", "second", "third"))
    questions(first, bad)
    _, before = distilled(str(first))
    assert {one.id for one in rejections(str(first))} == {"row-0", "row-2"}

    with pytest.raises(SettingsError, match=r"ask_again was 0 and is now 1.*another run name"):
        questions(first, grounded, ask_again=1)  # what is whole stays as it is
    assert questions(second, grounded, ask_again=1, batch=batch) == sorted(BAD)
    _, after = distilled(str(second))
    assert sorted(row.id for row in after) == [f"row-{n}" for n in range(6)]
    assert [row.line() for row in after if row.question not in BAD] == [row.line() for row in before]
    assert {(one.id, one.part) for one in rejections(str(second))} == {  # how they fell the first time
        ("row-0", "alternative 1"), ("row-2", "alternative 1")
    }  # fmt: skip
    assert questions(third, bad, ask_again=1) == []  # those replies are kept, too
    assert files(second) == files(third)


def test_row_that_falls_again_says_all_that_was_said(tmp_path: Path) -> None:
    first, second = (converted(tmp_path, 6, name=name) for name in ("first", "second"))
    questions(first, bad)
    assert questions(second, lambda asked: Say(""), ask_again=1) == sorted([*BAD, *BAD])  # each is repaired once
    found = rejections(str(second))
    assert {(one.id, one.part) for one in found} == {("row-0", ""), ("row-2", "")}
    assert {one.said for one in found} == {("nothing of use", "nothing of use", "", "")}
    assert {one.reason for one in found} <= {Reason.TEACHER_EMPTY, Reason.TEACHER_UNGROUNDED}


def test_dry_run_counts_what_is_asked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (converted(tmp_path, 6, name=name) for name in ("first", "second"))
    questions(first, bad)
    capsys.readouterr()
    assert questions(second, grounded, ask_again=1, dry_run=True) == []
    said = capsys.readouterr().out
    assert "6, of which 2 need new replies" in said
    assert re.search(r"^requests +2,", said, re.M)
