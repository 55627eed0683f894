"""A language model that scores answers, where no rule can tell them apart: `--judge https://host:8000/v1#name`.

    with Judge(store, address, name, cache_uri=…) as judge:
        judge.scores([ToJudge("vqa", "row-1", "Where?", "left", "to the left")])    → [(0.9, "name-2026")]

It is asked as a teacher is: bounded, tried again, and each verdict kept the moment it arrives, so that the same
question, true answer and given answer are judged once, whoever gave the answer. Its temperature is the endpoint's
default, as it was for the published numbers, and because some models take no other.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from vcot.distill.budget import Ledger, budget_of
from vcot.distill.client import Failures, TeacherClient
from vcot.distill.costs import read_prices
from vcot.distill.endpoint import Endpoint, Flags
from vcot.distill.request import Client, Prompt, ReplyCache, Request, RowFailed
from vcot.distill.runner import Asking, Progress
from vcot.storage import Store, join

# With a key of its own the judge's is not shown to an endpoint that is asked for something else.
KEYS = ("JUDGE_API_KEY", "OPENAI_API_KEY")
REPLY_TOKENS = 1024  # its thinking included


class ToJudge(NamedTuple):
    """An answer to a question. source: the dataset of the row, which the bill names."""

    source: str
    row: str
    question: str
    true: str
    said: str


class Judge(Asking):
    """A context manager.

    Args:
        address, name: of its endpoint and model. cache_uri: below it verdicts are kept.
        budget_requests: of all processes that share cache_uri; None: any number.
        stage, flags: for its messages; flags: whether those of evaluate stand for at_once and max_unanswered. stops:
            as of Asking.
    """

    def __init__(
        self, store: Store, address: str, name: str, *, cache_uri: str, at_once: int = 16, timeout: float = 300.0,
        max_unanswered: float = 0.05, budget_requests: int | None = None, stage: str = "evaluate", flags: bool = True,
        stops: bool = True,
    ) -> None:  # fmt: skip
        self.address, self.name = address, name
        key = next((name for name in KEYS if os.environ.get(name)), KEYS[-1])
        at_once_flag, share_flag = ("--subject-concurrency", "--max-rejected-share") if flags else ("", "")
        own = join(cache_uri, hashlib.sha256(f"{address}#{name}".encode()).hexdigest()[:16])
        endpoint = Endpoint(
            at_once=at_once, timeout=timeout, address=address, flags=Flags("--judge", "", at_once_flag, key)
        )
        client = TeacherClient(
            endpoint, ReplyCache(store, own),
            read_prices(store), Ledger(store, own, budget_of(None, None, budget_requests)), retries=5,
            failures=Failures(sys.maxsize, max_unanswered, share_flag),
        )  # fmt: skip
        super().__init__(client, Progress(client, stage, "asking the judge"), ahead=4 * at_once, stops=stops)

    def scores(self, asked: Sequence[ToJudge]) -> list[tuple[float | None, str]]:
        """Of each answer its score, 0..1, None where none can be read of the reply; and the model's name, as its
        endpoint says it, "" where it says nothing. Raises as Asking.map does."""
        self.progress.total = (self.progress.total or 0) + len(asked)
        found = []
        for _, (score, model) in self.map(asked, self._score):
            self.progress.row(refused=score is None)
            found.append((score, model))
        return found

    async def _score(self, one: ToJudge, client: Client) -> tuple[float | None, str]:
        asked = judge_prompt(one.question, one.true, one.said)
        request = Request(
            "judge", Prompt("judge", 1, asked.system), (asked.user,), self.name, reply_tokens=REPLY_TOKENS
        )
        try:
            said = await client.ask(request, source=one.source, row=one.row)
        except RowFailed:
            return None, ""
        return read_judgement(said.text), said.model


class JudgePrompt(NamedTuple):
    system: str
    user: str


def judge_prompt(question: str, true: str, said: str) -> JudgePrompt:
    """What a judge of answers is asked: the published protocol in our own words, with its form of reply. Each of the
    three stands on one line, so that no answer adds a line of its own."""
    system = (
        "You compare a model's answer with the standard answer to a question about an image. Give a score between 0 "
        "and 1: 1 where both say the same, 0 where the answer is wrong or says nothing, and between them the more, the "
        "nearer it comes. Reply in this form and write nothing else: score: <score>"
    )
    one_line = [" ".join(text.split()) for text in (question, true, said)]
    user = "question: {}\nstandard answer: {}\nmodel's answer: {}".format(*one_line)
    return JudgePrompt(system, user)


def read_judgement(text: str) -> float | None:
    """The score in a judge's reply, its thinking aside, 0..1; None where it states none or several: the published
    protocol counts 0."""
    found = re.findall(r"score:\s*(-?\d+(?:\.\d+)?|-?\.\d+)", text.lower().rpartition("</think>")[2])
    return min(max(float(found[0]), 0.0), 1.0) if len(found) == 1 else None
