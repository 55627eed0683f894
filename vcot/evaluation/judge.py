"""A language model that scores answers, where no rule can tell them apart: `--judge https://host:8000/v1#name`.

    with Judge(store, address, name, cache_uri=…) as judge:
        judge.judged({"direct": marked})    → the same with a Verdict each; who judged, and what it cost

It is asked as an endpoint's subject is: bounded, tried again, and each verdict kept the moment it arrives, so that the
same question, true answer and given answer are judged once, whoever gave the answer. Its temperature is the endpoint's
default, as it was for the published numbers, and because some models take no other.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vcot.distill.budget import Ledger, budget_of
from vcot.distill.client import Failures, TeacherClient
from vcot.distill.costs import read_prices
from vcot.distill.endpoint import Endpoint, Flags
from vcot.distill.request import Client, Prompt, ReplyCache, Request, RowFailed
from vcot.distill.runner import Asking, Progress
from vcot.evaluation.config import Way
from vcot.evaluation.suites.base import Marked, Verdict
from vcot.evaluation.suites.viscot import judge_prompt, read_judgement
from vcot.storage import Store, join

# With a key of its own the judge's is not shown to an endpoint that is the subject.
KEYS = ("JUDGE_API_KEY", "OPENAI_API_KEY")
REPLY_TOKENS = 1024  # its thinking included


class Judge(Asking):
    """A context manager. Args: as of an EndpointModel."""

    def __init__(
        self, store: Store, address: str, name: str, *, cache_uri: str, at_once: int = 16, timeout: float = 300.0,
        max_unanswered: float = 0.05,
    ) -> None:  # fmt: skip
        self.address, self.name = address, name
        key = next((name for name in KEYS if os.environ.get(name)), KEYS[-1])
        flags = Flags(address="--judge", model="", at_once="--subject-concurrency", key=key)
        own = join(cache_uri, hashlib.sha256(f"{address}#{name}".encode()).hexdigest()[:16])
        client = TeacherClient(
            Endpoint(at_once=at_once, timeout=timeout, address=address, flags=flags), ReplyCache(store, own),
            read_prices(store), Ledger(store, own, budget_of(None, None, None)), retries=5,
            failures=Failures(sys.maxsize, max_unanswered),
        )  # fmt: skip
        super().__init__(client, Progress(client, "evaluate", "asking the judge"), ahead=4 * at_once)

    def judged(self, replies: Mapping[Way, Sequence[Marked]]) -> tuple[dict[Way, list[Marked]], dict[str, Any]]:
        """The same replies with a Verdict each, and for the report who judged and what it cost. A reply that comes to
        no answer is worth 0 without a question.

        Raises as Asking.map does.
        """
        judged = {way: [replace(one, verdict=Verdict(0.0)) for one in each] for way, each in replies.items()}
        asked = [(each, place) for each in judged.values() for place, one in enumerate(each) if one.answer]
        self.progress.total = len(asked)
        models = set[str]()
        for (each, place), (verdict, model) in self.map(asked, self._verdict):
            self.progress.row(refused=verdict.score is None)
            each[place] = replace(each[place], verdict=verdict)
            models |= {model} - {""}
        about = {"model": self.name, "address": self.address, "answered_by": sorted(models)}
        return judged, about | {"costs": self.client.report.totals()}

    async def _verdict(self, of: tuple[Sequence[Marked], int], client: Client) -> tuple[Verdict, str]:
        """And the model's name, as its endpoint says it; "" where it says nothing."""
        one = of[0][of[1]]
        asked = judge_prompt(one.sample.question, " or ".join(one.sample.answers), one.answer or "")
        request = Request(
            "judge", Prompt("judge", 1, asked.system), (asked.user,), self.name, reply_tokens=REPLY_TOKENS
        )
        try:
            said = await client.ask(request, source=one.set, row=one.sample.id)
        except RowFailed:
            return Verdict(None), ""
        return Verdict(read_judgement(said.text)), said.model
