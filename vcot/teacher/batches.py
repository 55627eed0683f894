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

from vcot import log
from vcot.records import Completion, Sample
from vcot.records.base import Record
from vcot.records.shards import Folder
from vcot.stage import stop
from vcot.storage import Store, join
from vcot.storage.numbered import append, numbered
from vcot.teacher.account import Account
from vcot.teacher.amount import ENDLESS, NOTHING, Amount, total
from vcot.teacher.answers import completion_of
from vcot.teacher.batch import BatchEndpoint
from vcot.teacher.collector import Collector, File
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
    """Requests of one file: key → model."""

    version: Literal[1] = 1
    models: dict[str, str]
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
            asked = sum(len(file.models) for file in files)
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
        if self._account is not None and self._account.take(file.worst, file.worst) is None:
            return  # another process took it meanwhile
        sent = Sent(models=file.models, worst=file.worst)
        number = max(numbered(self._store, self._uri), default=0)
        while append(self._store, self._uri, sent.line(), number) is None:
            number += 1
        batch = self._teacher.wait_for(endpoint.submit(file.path, _name(sent)))
        self._write(number + 1, "sent", {"batch": batch})
        log.get().info("batch submitted", batch=batch, requests=len(file.models))
        file.path.unlink()

    # ------------------------------------------------------------------------------------------- what came of it

    def _settle(self, endpoint: BatchEndpoint) -> None:
        """Every batch on record is waited for, and its replies are kept."""
        for number, uri in numbered(self._store, self._uri).items():
            sent = Sent.model_validate_json(self._store.read(uri))
            if self._read(number, "done") is None:
                self._finish(endpoint, number, sent)
            if not (self._read(number, "done") or {}).get("never_sent"):
                self._tried |= sent.models.keys()

    def _finish(self, endpoint: BatchEndpoint, number: int, sent: Sent) -> None:
        wait = self._teacher.wait_for
        known = self._read(number, "sent")
        batch = known["batch"] if known else wait(endpoint.find(_name(sent)))
        if batch is None:  # a process ended between the record and the batch
            self._write(number, "done", {"never_sent": True})
            self._give_back(Amount(*sent.worst))
            return
        files = wait(_ended(endpoint, batch))
        kept, spent = wait(self._merge(endpoint, files, sent))
        self._write(number, "done", {"kept": kept, "failed": len(sent.models) - kept, "usd": spent.pico / PICO})
        self._give_back(Amount(*sent.worst).minus(spent))
        log.get().info("batch merged", batch=batch, kept=kept, of=len(sent.models), cost=dollars(spent.pico))

    async def _merge(self, endpoint: BatchEndpoint, files: list[str], sent: Sent) -> tuple[int, Amount]:
        """How many replies were kept, and what they cost."""
        desk, kept, spent = self._teacher.desk, 0, NOTHING
        for file in files:
            async for line in endpoint.lines(file):
                key = line.get("custom_id")
                if key not in sent.models or (read := _reply(line, sent.models[key])) is None:
                    continue
                price = desk.prices.of(sent.models[key])
                cost = price.cost(read.tokens_in, read.tokens_out, read.tokens_cached, batch=True) if price else None
                reply = read.model_copy(update={"cost": None if cost is None else cost / PICO})
                await asyncio.to_thread(desk.replies.keep, key, reply)
                kept, spent = kept + 1, spent.plus(Amount(cost or 0, reply.tokens_in + reply.tokens_out, 1))
        return kept, spent

    def _give_back(self, amount: Amount) -> None:
        if self._account is not None:
            self._account.give_back(amount)

    def _read(self, number: int, what: str) -> dict[str, Any] | None:
        uri = join(self._uri, f"{number:010d}.{what}.json")
        return json.loads(self._store.read(uri)) if self._store.stat(uri) else None

    def _write(self, number: int, what: str, said: dict[str, Any]) -> None:
        self._store.write_once(join(self._uri, f"{number:010d}.{what}.json"), json.dumps(said).encode())


def ask_in_batches(folder: Folder, teacher: ModelTeacher, plan: Plan, rows: Callable[[], Iterable[Sample]]) -> None:
    """Batches spend from the whole ceiling, less what shards have taken. Afterwards the plan has to be made again."""
    store, uri, ceiling = folder.store, folder.uri, Amount(*plan.ceiling)
    account = None
    if ceiling != ENDLESS:
        shards = (shard_account(store, uri, index, NOTHING, "").taken() for index in range(len(plan.shards)))
        account = batches_account(store, uri, ceiling.minus(total(shards)), "prepare")
    Batches(teacher, store, join(uri, "_batches"), account).run(rows)


async def _ended(endpoint: BatchEndpoint, name: str) -> list[str]:
    """The files of replies and of errors, once the batch has ended."""
    while True:
        now = await endpoint.state(name)
        if now.status in ("completed", "expired", "cancelled"):
            return [file for file in (now.output_file_id, now.error_file_id) if file]
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


def _reply(line: dict[str, Any], model: str) -> Completion | None:
    """The reply on a line of a batch's output; None where this request failed."""
    response = line.get("response") or {}
    body = response.get("body")
    if response.get("status_code") == 200:
        return completion_of(body, model, 0.0)
    error = (body.get("error") if isinstance(body, dict) else None) or line.get("error") or {}
    if refuses_the_row(response.get("status_code", 0), error.get("code")):
        return Completion(text="", model=model, finish_reason="content_filter")
    return None


def _name(sent: Sent) -> str:
    """At most 64 characters, as metadata may have."""
    return hashlib.sha256("\n".join(sorted(sent.models)).encode()).hexdigest()
