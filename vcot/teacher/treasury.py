"""A shard's money, and what is said when there is no more.

A shard spends its own part first, and then what finished shards left of theirs; where one process does all shards,
the parts of those that are still to come, too.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain, islice
from typing import Any

from vcot.errors import BudgetSpent, VcotError
from vcot.records import Sample
from vcot.records.shards import Folder
from vcot.storage import join, name
from vcot.teacher.account import Account
from vcot.teacher.amount import ENDLESS, Amount
from vcot.teacher.bill import since
from vcot.teacher.budget import Budget, Purse, Unlimited
from vcot.teacher.dryrun import Forecast
from vcot.teacher.forecast import Foreseen
from vcot.teacher.model import ModelTeacher
from vcot.teacher.plan import FLAGS, Plan, shard_account, told, written
from vcot.teacher.prices import dollars
from vcot.teacher.row import lacks_places

LOOKED_UP = 1000
"""Rows of which it is looked up what is kept of them, when there is no more money; of more rows, one in so many."""


class Treasury:
    """Args: the stage's folder, the plan (None: nobody made one, and nothing is limited), who spends, the rows of each
    shard, and whether this process does all shards."""

    def __init__(
        self,
        folder: Folder,
        plan: Plan | None,
        teacher: ModelTeacher,
        rows: Callable[[], Iterable[Iterable[Sample]]],
        *,
        alone: bool,
    ) -> None:
        self._folder, self._plan, self._teacher, self._rows_of, self._alone = folder, plan, teacher, rows, alone
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    @contextmanager
    def open(self, index: int, facts: dict[str, Any]) -> Iterator[None]:
        """What one shard's rows cost is taken from its part, and stands in its facts.

        Raises BudgetSpent with what the rest would cost, where the work raises it.
        """
        desk = self._teacher.desk
        self._teacher.spend_from(self.purse(index))
        if self._plan is not None:
            self._teacher.telling.total = self._rows(index)
        before = desk.bill.lines()
        try:
            yield
        except BudgetSpent as spent:
            raise BudgetSpent(f"{spent}. {self._rest()}") from spent
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
        return Purse(accounts, chunk, partial(self._spent, index, accounts))

    def _account(self, plan: Plan, index: int) -> Account:
        part = Amount(*plan.shards[index].part)
        return shard_account(self._folder.store, self._folder.uri, index, part, self._holder)

    def _finished(self) -> set[int]:
        done = self._folder.store.list(join(self._folder.uri, "_done"))
        marks = (name(entry.uri).removesuffix(".json") for entry in done)
        return {int(mark) for mark in marks if mark.isdecimal()}

    def _spent(self, index: int, accounts: Callable[[], Iterator[Account]], missing: Amount) -> str:
        """What to tell when a request does not fit any more, and by how much it does not."""
        most = Amount(*(max(0, *left) for left in zip(*(account.left() for account in accounts()), strict=True)))
        over = {
            flag: f"{needed} at worst, of {there}"
            for flag, lack, left, needed, there in zip(
                FLAGS, missing, most, written(missing), written(most), strict=True
            )
            if lack > left
        }
        ceiling = "" if self._plan is None else told(Amount(*self._plan.ceiling))
        return (
            f"{' and '.join(over)} is spent: the next request of shard {index} needs {' and '.join(over.values())} "
            f"left of {ceiling}"
        )

    def _rest(self) -> str:
        """What the unfinished shards have still to ask, whatever is kept already: as --dry-run counts it."""
        go_on = "What was paid for is kept, so the same command with more goes on from here"
        whole = Foreseen() if self._plan is None else self._plan.foreseen
        every = -(-whole.rows // LOOKED_UP) or 1
        finished = self._finished()
        unfinished = chain.from_iterable(rows for n, rows in enumerate(self._rows_of()) if n not in finished)
        forecast = Forecast(self._teacher.desk.replies, self._teacher.desk.costs.prices)
        try:
            forecast.add(islice(filter(lacks_places, unfinished), 0, None, every), self._teacher)
        except VcotError as error:  # that there is no more money is what matters
            return f"What the rest would cost cannot be told now ({error}). {go_on}"
        left = forecast.missing
        rest = (
            f"about {every * left.rows:,} of {whole.rows:,} rows, would take about {every * left.requests:,} requests, "
            f"{every * (left.tokens_in + left.tokens_out):,} tokens"
        )
        if left.pico:
            rest += f" and cost about {dollars(every * left.pico)}"
        return f"The rest, {rest}. {go_on}"
