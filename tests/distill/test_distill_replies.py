"""Good reasoning is kept and bad reasoning refused, as far as it can be told without asking anybody."""

from __future__ import annotations

import pytest

from tests.distill.replies import FORMS, outcome, right, table
from vcot.records import Reason, Rejection


def test_the_first_table_has_as_much_to_keep_as_to_refuse() -> None:
    rows = table("first")
    assert len(rows) == 200
    assert sum(row["keep"] for row in rows) == 100
    assert {row["kind"] for row in rows} == {"chart", "document", "mathematics", "photograph"}
    assert len({row["question"] + row["answers"][0] for row in rows}) > 190


@pytest.mark.parametrize("form", FORMS)
def test_of_the_first_table_so_much_is_right(form: str) -> None:
    """Of a hundred to keep, and of a hundred to refuse. Before the gates of prose.py and conclusion.py: 72 and 18."""
    kept, refused = right(table("first"), form)
    assert kept >= 95
    assert refused >= 95


@pytest.mark.parametrize("form", FORMS)
def test_of_the_second_table_no_less_is_right_than_when_it_was_written(form: str) -> None:
    """Fifty and fifty, written when the gates were done and not looked at while they were made: 92 % and 76 %. What
    they miss is told, ordered or placed in words that nobody has listed. Who mends that writes a third table."""
    rows = table("second")
    assert (len(rows), sum(row["keep"] for row in rows)) == (100, 50)
    kept, refused = right(rows, form)
    assert kept >= 46
    assert refused >= 38


FAULTS = {
    "another-answer": {Reason.TEACHER_WRONG_ANSWER},
    "told": {Reason.TEACHER_TOLD},
    "declined": {Reason.TEACHER_REFUSED},
    "injected": {Reason.TEACHER_INJECTED, Reason.TEACHER_UNREADABLE},  # a tag is both
    "repeated": {Reason.TEACHER_REPEATS, Reason.TEACHER_UNREADABLE},  # what is too long is not looked at further
    "coordinates": {Reason.TEACHER_UNREADABLE},
    "brackets": {Reason.TEACHER_UNREADABLE, Reason.TEACHER_UNGROUNDED},
    "language": {Reason.TEACHER_OTHER_LANGUAGE},
    "inconclusive": {Reason.TEACHER_NO_CONCLUSION},
    "ungrounded": {Reason.TEACHER_UNGROUNDED},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_reason(fault: str) -> None:
    fallen = [outcome(row, "sentences") for row in table("first") if row.get("fault") == fault]
    reasons = [one.reason for one in fallen if isinstance(one, Rejection)]
    assert {*reasons} <= FAULTS[fault]
    assert len(reasons) == len(fallen) > 1
