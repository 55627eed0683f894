"""A shard's money, and what is said when there is no more.

A shard spends its own part first, and then what finished shards left of theirs; where one process does all shards,
the parts of those that are still to come, too.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from vcot.records.shards import Folder
from vcot.storage import join, name
from vcot.teacher.account import Account
from vcot.teacher.amount import ENDLESS, Amount
from vcot.teacher.bill import since
from vcot.teacher.budget import Budget, Purse, Unlimited
from vcot.teacher.forecast import Foreseen
from vcot.teacher.model import ModelTeacher
from vcot.teacher.plan import FLAGS, Plan, shard_account, told, written
from vcot.teacher.prices import PICO, dollars


class Treasury:
    """Args: the stage's folder, the plan (None: nobody made one, and nothing is limited), who spends, and whether
    this process does all shards."""

    def __init__(self, folder: Folder, plan: Plan | None, teacher: ModelTeacher, *, alone: bool) -> None:
        self._folder, self._plan, self._teacher, self._alone = folder, plan, teacher, alone
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._done_before = 0

    @contextmanager
    def open(self, index: int, facts: dict[str, Any]) -> Iterator[None]:
        """What one shard's rows cost is taken from its part, and stands in its facts."""
        desk, self._done_before = self._teacher.desk, self._teacher.telling.done
        self._teacher.spend_from(self.purse(index))
        if self._plan is not None:
            self._teacher.telling.total = self._rows(index)
        before = desk.bill.lines()
        yield
        facts["bill"] = since(before, desk.bill.lines())

    def _rows(self, index: int) -> int:
        """That this process is to teach."""
        shares = self._plan.shards if self._plan is not None else ()
        if not self._alone:
            return shares[index].foreseen.rows
        finished = self._finished()
        todo = sum(share.foreseen.rows for n, share in enumerate(shares) if n not in finished)
        return self._teacher.telling.done + todo

    def purse(self, index: int) -> Budget:
        """For the requests of one shard."""
        if self._plan is None or self._plan.ceiling == ENDLESS:
            return Unlimited()
        plan = self._plan
        account = cache(partial(self._account, plan))

        def accounts() -> Iterator[Account]:
            yield account(index)
            others = set(range(len(plan.shards))) if self._alone else self._finished()
            yield from map(account, sorted(others - {index}))

        chunk = max(1, self._teacher.desk.at_once // 2)
        return Purse(accounts, chunk, partial(self._spent, plan, index, accounts))

    def _account(self, plan: Plan, index: int) -> Account:
        part = Amount(*plan.shards[index].part)
        return shard_account(self._folder.store, self._folder.uri, index, part, self._holder)

    def _finished(self) -> set[int]:
        done = self._folder.store.list(join(self._folder.uri, "_done"))
        marks = (name(entry.uri).removesuffix(".json") for entry in done)
        return {int(mark) for mark in marks if mark.isdecimal()}

    def _spent(self, plan: Plan, index: int, accounts: Callable[[], Iterator[Account]], missing: Amount) -> str:
        """What to tell when a request does not fit any more, and by how much it does not."""
        most = Amount(*(max(0, *left) for left in zip(*(account.left() for account in accounts()), strict=True)))
        over = {
            flag: f"{needed} at worst, of {there}"
            for flag, lack, left, needed, there in zip(
                FLAGS, missing, most, written(missing), written(most), strict=True
            )
            if lack > left
        }
        whole, finished = plan.foreseen, self._finished()
        unfinished = sum(share.foreseen.rows for n, share in enumerate(plan.shards) if n not in finished)
        rows = max(0, unfinished - (self._teacher.telling.done - self._done_before))
        pico, tokens = self._of_a_row(whole)
        requests = round(rows * whole.requests / max(1, whole.rows))
        rest = (
            f"about {rows:,} of {whole.rows:,} rows, would take about {requests:,} requests, {rows * tokens:,} tokens"
        )
        if pico:
            rest += f" and cost about {dollars(rows * pico)}"
        return (
            f"{' and '.join(over)} is spent: the next request of shard {index} needs {' and '.join(over.values())} "
            f"left of {told(Amount(*plan.ceiling))}. The rest, {rest}. What was paid for is kept, so the same command "
            "with more goes on from here"
        )

    def _of_a_row(self, whole: Foreseen) -> tuple[int, int]:
        """Picodollars and tokens: what rows did cost so far, or were foreseen to."""
        paid, done = self._teacher.desk.bill.totals(), self._teacher.telling.done
        if done >= 10:
            return round((paid["usd"] + paid["usd_lost"]) * PICO / done), round(
                (paid["tokens_in"] + paid["tokens_out"]) / done
            )
        rows = max(1, whole.rows)
        return whole.pico // rows, (whole.tokens_in + whole.tokens_out) // rows
