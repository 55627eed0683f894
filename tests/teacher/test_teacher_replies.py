"""Good reasoning is kept and bad reasoning refused, as far as it can be told without asking anybody."""

from __future__ import annotations

import pytest

from tests.teacher.replies import FORMS, right, table


def test_the_first_table_has_as_much_to_keep_as_to_refuse() -> None:
    rows = table("first")
    assert len(rows) == 200
    assert sum(row["keep"] for row in rows) == 100
    assert {row["kind"] for row in rows} == {"chart", "document", "mathematics", "photograph"}
    assert len({row["question"] + row["answers"][0] for row in rows}) > 190


@pytest.mark.parametrize("form", FORMS)
def test_of_the_first_table_so_much_is_right(form: str) -> None:
    """Of a hundred to keep, and of a hundred to refuse."""
    assert right(table("first"), form) == (72, 18)
