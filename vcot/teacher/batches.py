"""Replies that can wait are asked for in batches, at a lower price, before the shards begin: `--batch`.

    <stage>/_batches/0000000001.json         the requests of a file, written before it is submitted
                     0000000001.sent.json    the id of the batch
                     0000000001.done.json    what came of it

Round after round the rows are gone through with the replies that are kept; what they would ask next becomes a batch,
whose replies are kept like all others. So shards find nearly everything there, and ask the rest singly: what failed
in a batch, and a last round that is too small to wait a day for. A request is in one batch at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from openai.types import Batch
from pydantic import ValidationError

from vcot import log
from vcot.errors import InputError, SettingsError
from vcot.records import Completion, Sample
from vcot.records.base import Record
from vcot.records.shards import Folder
from vcot.redaction import redacted
from vcot.stage import stop
from vcot.storage import Store, join
from vcot.storage.numbered import append, numbered
from vcot.teacher.account import Account
from vcot.teacher.amount import ENDLESS, NOTHING, SENT, Amount, total
from vcot.teacher.answers import as_dict, completion_of, refused
from vcot.teacher.batch import BatchEndpoint, Gone, why_failed
from vcot.teacher.collector import Collector, File
from vcot.teacher.costs import Costs, Worst
from vcot.teacher.dryrun import NotKept
from vcot.teacher.endpoint import refuses_the_row
from vcot.teacher.model import ModelTeacher
from vcot.teacher.plan import Plan, batches_account, shard_account
from vcot.teacher.prices import PICO, dollars
from vcot.teacher.request import Asker

POLL = 30.0
"""Seconds between two looks at a batch."""

SMALL = 0.05
"""A further round is asked singly where it has no more than this share of the first round's requests."""


class Sent(Record):
    """Requests of one file: key → model, and the most tokens of prompt and reply."""

    version: Literal[2] = 2
    asked: dict[str, tuple[str, int, int]]
    worst: tuple[int, int, int]


class Batches:
    """Args: the teacher whose desk keeps replies, where the records are, and the money (None: no ceiling)."""

    def __init__(self, teacher: ModelTeacher, store: Store, uri: str, account: Account | None) -> None:
        self._teacher, self._store, self._uri, self._account = teacher, store, uri, account
        self._tried: set[str] = set()  # keys that were in a batch

    def run(self, rows: Callable[[], Iterable[Sample]]) -> None:
        """Until all that can wait is kept."""
        endpoint = BatchEndpoint(self._teacher.desk.first_endpoint)
        try:
            with tempfile.TemporaryDirectory(prefix="batches-") as scratch:
                self._rounds(endpoint, rows, Path(scratch))
        finally:
            self._teacher.wait_for(endpoint.close())

    def _rounds(self, endpoint: BatchEndpoint, rows: Callable[[], Iterable[Sample]], scratch: Path) -> None:
        first = 0
        while True:
            self._settle(endpoint)
            files = self._collect(rows(), scratch)
            asked = sum(len(file.asked) for file in files)
            first = first or asked
            if not asked or asked <= SMALL * first:
                return
            for file in files:
                self._submit(endpoint, file)

    # ----------------------------------------------------------------------------------------- what is to be asked

    def _collect(self, rows: Iterable[Sample], scratch: Path) -> list[File]:
        """The next request of each row whose reply is neither kept nor was asked for in a batch."""
        left = None if self._account is None else self._account.left()
        collector = Collector(self._teacher, scratch, frozenset(self._tried), left)

        async def next_of(row: Sample, _: Asker) -> None:
            with suppress(NotKept):
                await self._teacher.way.outcome(row, collector)

        for _ in self._teacher.map(rows, next_of):
            pass
        return collector.files

    def _submit(self, endpoint: BatchEndpoint, file: File) -> None:
        """Written down, then submitted, then written down again."""
        worst = total(one.amount for one in file.asked.values())
        if self._account is not None and self._account.take(worst, worst) is None:
            return  # another process took it meanwhile
        asked = {key: (one.model, one.tokens_in, one.tokens_out) for key, one in file.asked.items()}
        sent = Sent(asked=asked, worst=worst)
        number = max(numbered(self._store, self._uri), default=0)
        while append(self._store, self._uri, sent.line(), number) is None:
            number += 1
        try:
            batch = self._teacher.wait_for(endpoint.submit(file.path, _name(sent)))
        except SettingsError:  # it was refused, so there is none; another failure may hide one that was made
            self._never_sent(number + 1, sent)
            raise
        self._write(number + 1, "sent", {"batch": batch})
        log.get().info("batch submitted", batch=batch, requests=len(file.asked))
        file.path.unlink()

    # ------------------------------------------------------------------------------------------- what came of it

    def _settle(self, endpoint: BatchEndpoint) -> None:
        """Every batch on record is waited for, and its replies are kept."""
        for number, uri in numbered(self._store, self._uri).items():
            sent = _sent(self._store, uri)
            if self._read(number, "done") is None:
                self._finish(endpoint, number, sent)
            if not (self._read(number, "done") or {}).get("never_sent"):
                self._tried |= sent.asked.keys()

    def _finish(self, endpoint: BatchEndpoint, number: int, sent: Sent) -> None:
        wait = self._teacher.wait_for
        known = self._read(number, "sent")
        name = known["batch"] if known else wait(endpoint.find(_name(sent)))
        if name is None:  # a process ended between the record and the batch
            self._never_sent(number, sent)
            return
        why, kept, spent = "", 0, Amount(*sent.worst)
        try:
            batch = wait(_ended(endpoint, name))
            why = why_failed(batch) if batch.status == "failed" else ""
            kept, spent = wait(self._merge(endpoint, batch, sent))
        except Gone as gone:  # it was paid for, perhaps
            why = redacted(str(gone))[:500]
        done: dict[str, Any] = {"kept": kept, "failed": len(sent.asked) - kept, "usd": spent.pico / PICO}
        if why:
            done["why"] = why
            log.get().warning("batch failed: what it asked is asked singly", batch=name, why=why)
        self._write(number, "done", done)
        self._give_back(Amount(*sent.worst).minus(spent))
        log.get().info("batch merged", batch=name, kept=kept, of=len(sent.asked), cost=dollars(spent.pico))

    def _never_sent(self, number: int, sent: Sent) -> None:
        self._write(number, "done", {"never_sent": True})
        self._give_back(Amount(*sent.worst))

    async def _merge(self, endpoint: BatchEndpoint, batch: Batch, sent: Sent) -> tuple[int, Amount]:
        """How many replies were kept, and what the batch did cost."""
        desk, kept = self._teacher.desk, 0
        worst = {key: desk.costs.worst_of(*asked, batch=True) for key, asked in sent.asked.items()}
        # Of a request without a line nobody knows; none was asked, where the batch was refused as a whole.
        refused_whole = batch.status == "failed" and not batch.output_file_id
        spent = {key: NOTHING if refused_whole else one.amount for key, one in worst.items()}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            async for line in endpoint.lines(file):
                key = line.get("custom_id")
                if not isinstance(key, str) or key not in worst:
                    continue
                reply, spent[key] = _read_line(line, worst.pop(key), desk.costs)
                if reply is not None:
                    await asyncio.to_thread(desk.replies.keep, key, reply)
                    kept += 1
        return kept, total(spent.values())

    def _give_back(self, amount: Amount) -> None:
        if self._account is not None:
            self._account.give_back(amount)

    def _read(self, number: int, what: str) -> dict[str, Any] | None:
        uri = join(self._uri, f"{number:010d}.{what}.json")
        return json.loads(self._store.read(uri)) if self._store.stat(uri) else None

    def _write(self, number: int, what: str, said: dict[str, Any]) -> None:
        self._store.write_once(join(self._uri, f"{number:010d}.{what}.json"), redacted(json.dumps(said)).encode())


def ask_in_batches(folder: Folder, teacher: ModelTeacher, plan: Plan, rows: Callable[[], Iterable[Sample]]) -> None:
    """Batches spend from the whole ceiling, less what shards have taken. Afterwards the plan has to be made again."""
    store, uri, ceiling = folder.store, folder.uri, Amount(*plan.ceiling)
    account = None
    if ceiling != ENDLESS:
        shards = (shard_account(store, uri, index, NOTHING, "").taken() for index in range(len(plan.shards)))
        account = batches_account(store, uri, ceiling.minus(total(shards)), "prepare")
    Batches(teacher, store, join(uri, "_batches"), account).run(rows)


async def _ended(endpoint: BatchEndpoint, name: str) -> Batch:
    """The batch, once it has ended: completed, expired or cancelled in part, or failed before anything was asked."""
    while True:
        now = await endpoint.state(name)
        if now.status in ("completed", "expired", "cancelled", "failed"):
            return now
        counts = now.request_counts
        log.get().info(
            "batch under way", batch=name, status=now.status, done=counts.completed if counts else "unknown",
            of=counts.total if counts else "unknown",
        )  # fmt: skip
        for _ in _seconds(POLL):
            stop.raise_if_requested("the batch goes on at the endpoint")
            await asyncio.sleep(min(1.0, POLL))


def _seconds(whole: float) -> Iterator[int]:
    return iter(range(max(1, round(whole))))


def _read_line(line: dict[str, Any], worst: Worst, costs: Costs) -> tuple[Completion | None, Amount]:
    """The reply on a line of a batch's files (None where this request failed), and what it takes of the budget."""
    response = as_dict(line.get("response"))
    status, body = response.get("status_code"), response.get("body")
    if status == 200:
        reply = completion_of(body, worst.model, 0.0)
        return costs.spent(reply, worst) if reply is not None else (None, worst.amount)
    if status is None and not line.get("error"):
        return None, worst.amount  # it does not say what became of it
    error = as_dict(as_dict(body).get("error") or line.get("error"))
    return (refused(worst.model) if refuses_the_row(status, error.get("code")) else None), SENT


def _sent(store: Store, uri: str) -> Sent:
    try:
        return Sent.model_validate_json(store.read(uri))
    except ValidationError as error:
        raise InputError(
            f"{uri} is not a record of a batch, or one of another version ({error.errors()[0]['msg']}); use another "
            "run name"
        ) from None


def _name(sent: Sent) -> str:
    """At most 64 characters, as metadata may have."""
    return hashlib.sha256("\n".join(sorted(sent.asked)).encode()).hexdigest()
