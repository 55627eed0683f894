"""Good reasoning is kept and bad reasoning refused, as far as it can be told without asking anybody: two tables of
replies of a teacher, written by hand, with what should become of them.

    {"keep": false, "kind": "chart", "question": …, "answers": […], "objects": […], "say": […], "fault": "told"}

`python -m tests.distill.test_distill_replies first` says how many of a table are judged right.

`objects` are the annotated things by their labels (null: nobody annotated any, `add` has what the teacher adds; []: it
is not there). `say` are the sentences; `times` says them again and again. `answer` is what the reply closes with, where
that is not the row's own. `raw` is a reply letter by letter. Each row is put through answer-aware as a whole, without
the checks that ask."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distill.made import sample, see, strategy
from vcot.distill import DistilledReasoning
from vcot.distill.request import Request
from vcot.grounding import Box
from vcot.records import Completion, Reason, Rejection, Sample

Row = dict[str, Any]
FORMS = ("sentences", "one-text", "text")
"""The JSON that is asked for; that of version 1 of the prompt; the mere text of a model that writes none."""


def table(name: str) -> list[Row]:
    return [json.loads(line) for line in Path(__file__).with_name(f"replies-{name}.jsonl").read_text().splitlines()]


def sample_of(row: Row) -> Sample:
    """Each annotated thing has a box of its own; where does not matter here."""
    labels = row["objects"]
    evidence = None if labels is None else tuple(
        see(label, Box(10 + 60 * n, 20, 60 + 60 * n, 200)) for n, label in enumerate(labels)
    )  # fmt: skip
    return sample(row["question"], *row["answers"], evidence=evidence, choices=row.get("choices"))


def reply_of(row: Row, form: str) -> str:
    if "raw" in row:
        return str(row["raw"])
    said = row["say"] * row.get("times", 1)
    answer = row.get("answer", row["answers"][0])
    if form == "text" and "add" not in row:
        return f"{' '.join(said)}\nAnswer: {answer}"
    if form == "sentences":
        parts = [{"text": text, "objects": spoken_of(text, row)} for text in said]
        return json.dumps({"objects": row.get("add", []), "sentences": parts, "answer": answer})
    return json.dumps({"reasoning": " ".join(said), "objects": row.get("add", []), "answer": answer})


def spoken_of(text: str, row: Row) -> list[int]:
    """The numbers in brackets that are objects; who speaks of none that is there takes it for one."""
    there = len(row["objects"]) if row["objects"] is not None else len(row["add"])
    numbers = map(int, re.findall(r"\[(\d{1,2})\]", text))
    return [n for n in dict.fromkeys(numbers) if n <= there or row.get("fault") == "brackets"]


ALONE = strategy("answer-aware", repairs=0, self_consistency=False, crop_check=False, answer_from_evidence=False)


def outcome(row: Row, form: str) -> DistilledReasoning | Rejection:
    class OneReply:
        async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
            return Completion(text=said, model=request.model, finish_reason="stop")

    said = reply_of(row, form)
    found = asyncio.run(ALONE.outcome(sample_of(row), OneReply()))
    assert found is not None
    return found


def right(rows: list[Row], form: str) -> tuple[int, int]:
    """How many of the rows to keep are kept, and how many of those to refuse are refused."""
    kept = [(row["keep"], isinstance(outcome(row, form), DistilledReasoning)) for row in rows]
    return kept.count((True, True)), kept.count((False, False))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "half", "keeps", "refuses"), [("first", 100, 95, 95), ("second", 50, 46, 38)])
def test_of_each_table_so_much_is_right(form: str, name: str, half: int, keeps: int, refuses: int) -> None:
    """The second was written when the gates were done and not looked at while they were made. What they miss is told,
    ordered or placed in words that nobody has listed. Who mends that writes a third table."""
    rows = table(name)
    assert (len(rows), sum(row["keep"] for row in rows)) == (2 * half, half)
    kept, refused = right(rows, form)
    assert kept >= keeps
    assert refused >= refuses


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


if __name__ == "__main__":
    for form in FORMS:
        print(form, "right of those to keep, of those to refuse:", right(table(sys.argv[1]), form))
