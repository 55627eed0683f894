"""Replies of a teacher with what should become of them, written by hand: tables of rows to keep and rows to refuse.

    {"keep": false, "kind": "chart", "question": …, "answers": […], "objects": […], "say": […], "fault": "told"}

`python -m tests.distill.replies first` says how many of a table are judged right.

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

from tests.distill.made import sample, see
from vcot.distill import DistilledReasoning
from vcot.distill.dialogue import PromptConfig
from vcot.distill.request import Request
from vcot.distill.strategies.answer_aware import AnswerAware
from vcot.distill.verification import Verification
from vcot.grounding import Box
from vcot.records import Completion, Rejection, Sample

Row = dict[str, Any]
FORMS = ("sentences", "one-text", "text")
"""The JSON that is asked for; that of version 1 of the prompt; the mere text of a model that writes none."""


def table(name: str) -> list[Row]:
    return [
        json.loads(line) for line in (Path(__file__).parent / f"replies-{name}.jsonl").read_text("utf-8").splitlines()
    ]


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


class OneReply:
    def __init__(self, text: str) -> None:
        self.text = text

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        return Completion(text=self.text, model=request.model, finish_reason="stop")


def outcome(row: Row, form: str) -> DistilledReasoning | Rejection:
    way = AnswerAware(
        PromptConfig("m", choose_prompts(), repairs=0),
        Verification(self_consistency=False, crop_check=False, answer_from_evidence=False),
    )
    found = asyncio.run(way.outcome(sample_of(row), OneReply(reply_of(row, form))))
    assert found is not None
    return found


def right(rows: list[Row], form: str) -> tuple[int, int]:
    """How many of the rows to keep are kept, and how many of those to refuse are refused."""
    kept = [(row["keep"], isinstance(outcome(row, form), DistilledReasoning)) for row in rows]
    return kept.count((True, True)), kept.count((False, False))


if __name__ == "__main__":
    for form in FORMS:
        print(form, "right of those to keep, of those to refuse:", right(table(sys.argv[1]), form))
