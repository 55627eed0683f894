"""Requests that can wait are asked in batches, at a lower price, before the shards begin: `--batch`.

    <stage>/_batches/0000000001.json         the requests of a file, written before it is submitted
                     0000000001.file.json    the id of the uploaded file
                     0000000001.sent.json    the id of the batch
                     0000000001.done.json    what came of it

Round after round the rows are gone through with the replies that are stored; what they would ask next becomes a batch,
whose replies are stored like all others. So shards find nearly everything there, and ask the rest singly: what failed
in a batch, and a last round that is too small to wait a day for. A request is in one batch at most.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import httpx2
import openai
from openai.types import Batch

from vcot import logging
from vcot.distill.budget import KeptReplies
from vcot.distill.costs import NOTHING, PICO, SENT, Costs, Usage, Worst, dollars, total
from vcot.distill.endpoint import Endpoint, as_dict, body_of, completion_of, refused, refuses_content
from vcot.distill.request import ERROR, Client, Request, RowFailed
from vcot.distill.runner import ModelTeacher
from vcot.errors import SettingsError, TemporaryError
from vcot.records import Completion, Sample
from vcot.records.base import Record
from vcot.redaction import redacted
from vcot.stage import stop
from vcot.storage import Store, append, join, numbered, read_json
from vcot.storage.images import ImageError

POLL = 30.0  # seconds between two looks at a batch
SMALL = 0.05  # a further round is asked singly where it has no more than this share of the first round's requests
MOST_LINES, MOST_BYTES = 50_000, 200_000_000  # of one file, as the provider allows
URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
NAME = "vcot"  # under which a batch says whose it is, in its metadata
LOOKED_THROUGH = 1000  # batches of this account among which one of ours is looked for
LOOKUPS = 3  # how often the batches are listed, POLL apart, before one counts as not created: a list may be stale
CREATIONS = 3  # how often a batch is submitted whose creation was not answered, and which no lookup finds


class Gone(Exception):
    """The endpoint does not know a batch, or a file of one, any more; or never did."""


class Sent(Record):
    """Requests of one file: key → model, and the most tokens of prompt and reply."""

    version: Literal[2] = 2
    asked: dict[str, tuple[str, int, int]]
    worst: tuple[int, int, int]

    @property
    def name(self) -> str:
        """At most 64 characters, as metadata may have."""
        return hashlib.sha256("\n".join(sorted(self.asked)).encode()).hexdigest()


File = tuple[Path, dict[str, Worst]]
"""Requests that are to become a batch, a line each, and the worst case of each by its key."""


class Batches:
    def __init__(self, teacher: ModelTeacher, store: Store, stage_uri: str) -> None:
        self._teacher, self._ledger = teacher, teacher.client.ledger
        self._store, self._uri = store, join(stage_uri, "_batches")
        self._tried: set[str] = set()  # keys that were in a batch

    def run(self, rows: Callable[[], Iterable[Sample]]) -> None:
        """Until all that can wait is stored."""
        endpoint, first = BatchEndpoint(self._teacher.client.endpoint), 0
        try:
            while True:
                self._collect(endpoint)
                with tempfile.TemporaryDirectory(prefix="batches-") as scratch:
                    files = self._next_requests(rows(), Path(scratch))
                    asked = sum(len(requests) for _, requests in files)
                    first = first or asked
                    if not asked or asked <= SMALL * first:
                        return
                    for path, requests in files:
                        self._submit(endpoint, path, requests)
        finally:
            self._teacher.wait_for(endpoint.close())

    def _next_requests(self, rows: Iterable[Sample], scratch: Path) -> list[File]:
        """The next request of each row whose reply is neither stored nor was asked for in a batch."""
        writer = FileWriter(self._teacher, scratch, self._tried)

        async def write_next(row: Sample, _: Client) -> None:
            if (missing := (await KeptReplies.of(row, self._teacher)).missing) is not None:
                with suppress(ImageError, RowFailed):  # the shard refuses the row
                    await writer.add(missing, row)

        deque(self._teacher.map(rows, write_next), maxlen=0)
        return writer.files

    def _submit(self, endpoint: BatchEndpoint, path: Path, requests: dict[str, Worst]) -> None:
        """Written down, then submitted, then written down again."""
        worst = total(one.usage for one in requests.values())
        if self._ledger.take(worst, worst) is None:
            return  # another process took it meanwhile
        asked = {key: (one.model, one.tokens_in, one.tokens_out) for key, one in requests.items()}
        sent = Sent(asked=asked, worst=worst)
        number = max(numbered(self._store, self._uri), default=0)
        while append(self._store, self._uri, sent.line(), number) is None:
            number += 1
        try:
            file = self._teacher.wait_for(endpoint.upload(path))
            self._write(number + 1, "file", {"file": file})
            batch = self._teacher.wait_for(endpoint.create(file, sent.name))
        except SettingsError:  # it was refused, so there is none; another failure may hide one that was made
            self._finish(number + 1, sent, NOTHING, {"never_sent": True})
            raise
        self._write(number + 1, "sent", {"batch": batch})
        logging.get().info("batch submitted", batch=batch, requests=len(requests))

    def _collect(self, endpoint: BatchEndpoint) -> None:
        """Every batch on record is waited for, and its replies are stored."""
        for number, uri in numbered(self._store, self._uri).items():
            advice = "it is not a record of a batch, or one of another version; use another run name"
            sent = read_json(self._store, uri, Sent.model_validate, advice)
            done = self._read(number, "done") or self._wait_for(endpoint, number, sent)
            if not done.get("never_sent"):
                self._tried |= sent.asked.keys()

    def _wait_for(self, endpoint: BatchEndpoint, number: int, sent: Sent) -> dict[str, Any]:
        wait, known = self._teacher.wait_for, self._read(number, "sent")
        uploaded = self._read(number, "file") or {}
        name = known["batch"] if known else wait(endpoint.find(sent.name, uploaded.get("file")))
        if name is None:  # a process ended between the record and the batch
            return self._finish(number, sent, NOTHING, {"never_sent": True})
        why, kept, spent = "", 0, Usage(*sent.worst)
        try:
            batch = wait(endpoint.ended(name))
            if batch.status == "failed":  # it is refused as a whole
                errors = (batch.errors.data if batch.errors else None) or []
                why = "; ".join(error.message or "" for error in errors[:3]) or "no reason given"
            kept, spent = wait(self._keep_replies(endpoint, batch, sent))
        except Gone as gone:  # it was paid for, perhaps
            why = str(gone)
        if why:
            why = redacted(why)[:500]  # in this order: half a key would not be recognised
            logging.get().warning("batch failed: what it asked is asked singly", batch=name, why=why)
        done = {"kept": kept, "failed": len(sent.asked) - kept, "usd": spent.pico / PICO}
        logging.get().info("batch merged", batch=name, kept=kept, of=len(sent.asked), cost=dollars(spent.pico))
        return self._finish(number, sent, spent, done | ({"why": why} if why else {}))

    async def _keep_replies(self, endpoint: BatchEndpoint, batch: Batch, sent: Sent) -> tuple[int, Usage]:
        """How many replies were stored, and what the batch did cost."""
        client, kept = self._teacher.client, 0
        worst = {key: client.costs.worst_of(*asked, batch=True) for key, asked in sent.asked.items()}
        # Of a request without a line nobody knows; none was asked, where the batch was refused as a whole.
        refused_whole = batch.status == "failed" and not batch.output_file_id
        spent = {key: NOTHING if refused_whole else one.usage for key, one in worst.items()}
        for file in filter(None, (batch.output_file_id, batch.error_file_id)):
            async for line in endpoint.lines(file):
                key = line.get("custom_id")
                if not isinstance(key, str) or key not in worst:
                    continue
                reply, spent[key] = _read_line(line, worst.pop(key), client.costs)
                if reply is not None:
                    await asyncio.to_thread(client.cache.keep, key, reply)
                    kept += 1
        return kept, total(spent.values())

    def _finish(self, number: int, sent: Sent, spent: Usage, done: dict[str, Any]) -> dict[str, Any]:
        if self._write(number, "done", done):  # else another process gives it back
            self._ledger.give_back(Usage(*sent.worst).minus(spent))
        return done

    def _read(self, number: int, what: str) -> dict[str, Any] | None:
        uri = join(self._uri, f"{number:010d}.{what}.json")
        return read_json(self._store, uri, dict, "use another run name") if self._store.stat(uri) else None

    def _write(self, number: int, what: str, said: dict[str, Any]) -> bool:
        uri = join(self._uri, f"{number:010d}.{what}.json")
        return self._store.write_once(uri, redacted(json.dumps(said)).encode())


class FileWriter:
    """Requests into files for batches, each once, as far as the budget goes."""

    def __init__(self, teacher: ModelTeacher, scratch: Path, tried: set[str]) -> None:
        self.files: list[File] = []
        self._client, self._scratch, self._seen = teacher.client, scratch, set(tried)
        self._left, self._first = teacher.client.ledger.left(), asyncio.Lock()

    async def add(self, request: Request, row: Sample) -> None:
        if (key := request.key()) in self._seen:
            return
        self._seen.add(key)
        async with self._first:
            # A batch is as large as its money allows, so how replies are counted must be known before.
            if self._client.is_uncounted(request.model):
                await self._client.ask(request, source=row.origin.dataset, row=row.id)
                return
        body = await body_of(request, self._client.images)
        worst = self._client.costs.worst(request, batch=True)
        if worst.usage.within(self._left):
            self._left = self._left.minus(worst.usage)
            line = json.dumps({"custom_id": key, "method": "POST", "url": URL, "body": body}).encode() + b"\n"
            path, requests = self._file_for(len(line))
            with path.open("ab") as out:
                out.write(line)
            requests[key] = worst

    def _file_for(self, size: int) -> File:
        """The last one, or a new one where that is full."""
        path, requests = self.files[-1] if self.files else (self._scratch, {})
        if not requests or len(requests) == MOST_LINES or path.stat().st_size + size > MOST_BYTES:
            self.files.append((self._scratch / f"{len(self.files)}.jsonl", {}))
        return self.files[-1]


class BatchEndpoint:
    """All calls of the client that concern batches; for its event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address

        async def check_redirect(response: httpx2.Response) -> None:
            """Refuse to send requests or a batch to another host. Raises SettingsError."""
            if response.has_redirect_location and response.request.method != "GET":
                endpoint.redirected_to(response, (307, 308))

        # A file of replies may be stored on another host: the client leaves the key out there.
        # httpx says beforehand how long a file is, and aiohttp does not.
        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [check_redirect]})
        self._client = endpoint.client.with_options(max_retries=5, timeout=600, http_client=http)

    async def upload(self, path: Path) -> str:
        """Upload a file of requests, and return its id."""
        with self._explained():
            return (await self._client.files.create(file=path, purpose="batch")).id

    async def create(self, file: str, name: str) -> str:
        """Create a batch of an uploaded file, and return its id.

        A creation that is not answered is looked up before it is sent again: the batch may exist, and be paid for.
        """
        once, attempt = self._client.with_options(max_retries=0), 0
        while True:
            attempt += 1
            try:
                with self._explained():
                    batch = await once.batches.create(
                        completion_window="24h", endpoint=URL, input_file_id=file, metadata={NAME: name}
                    )
                return batch.id
            except TemporaryError as error:
                if (existing := await self._find_unanswered(name, file, error)) is not None:
                    return existing
                if attempt == CREATIONS:
                    raise

    async def _find_unanswered(self, name: str, file: str, unanswered: TemporaryError) -> str | None:
        """Look up a batch whose creation was not answered. Raises TemporaryError, as the batch may exist."""
        logging.get().warning("the creation of a batch was not answered: looking it up", why=str(unanswered))
        try:
            return await self.find(name, file)
        except SettingsError as error:
            raise TemporaryError(f"{unanswered}. Whether the batch was created is unknown: {error}") from error

    async def find(self, name: str, file: str | None) -> str | None:
        """Return the id of the batch that has this name in its metadata, or is of this uploaded file; None: there is
        none, also not after LOOKUPS."""
        for lookup in range(LOOKUPS):
            if lookup:
                await self._pause("the batch may exist at the endpoint")
            seen = 0
            with self._explained():
                async for batch in self._client.batches.list(limit=100):
                    seen += 1
                    if (batch.metadata or {}).get(NAME) == name or (file and batch.input_file_id == file):
                        return batch.id
                    if seen == LOOKED_THROUGH:
                        break
        return None

    async def _pause(self, why: str) -> None:
        for _ in range(max(1, round(POLL))):
            stop.raise_if_requested(why)
            await asyncio.sleep(min(1.0, POLL))

    async def ended(self, name: str) -> Batch:
        """The batch, once it has ended: completed, expired or cancelled in part, or failed before anything was asked.
        Raises Gone."""
        while True:
            with self._explained(gone=True):
                batch = await self._client.batches.retrieve(name)
            if batch.status in ("completed", "expired", "cancelled", "failed"):
                return batch
            counts = batch.request_counts
            logging.get().info(
                "batch under way", batch=name, status=batch.status, done=counts.completed if counts else "unknown",
                of=counts.total if counts else "unknown",
            )  # fmt: skip
            await self._pause("the batch goes on at the endpoint")

    async def lines(self, file: str) -> AsyncIterator[dict[str, Any]]:
        """The lines of a file of replies or errors, as they come, those that are JSON objects. Raises Gone."""
        with self._explained(gone=True):
            async with self._client.files.with_streaming_response.content(file) as answer:
                async for line in answer.iter_lines():
                    with suppress(ValueError, RecursionError):
                        if isinstance(said := json.loads(line), dict):
                            yield said

    async def close(self) -> None:
        await self._client.close()

    @contextmanager
    def _explained(self, *, gone: bool = False) -> Iterator[None]:
        """`gone`: what is not found is not there any more."""
        try:
            yield
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            if gone and isinstance(error, openai.NotFoundError):
                raise Gone(error.message) from error
            status = error.status_code if isinstance(error, openai.APIStatusError) else 0
            passes = status in (0, 408, 409, 425, 429) or status >= 500
            if isinstance(error, openai.APIError) and (not passes or error.code == "insufficient_quota"):
                raise SettingsError(f"{self.address} takes no batch ({error.message}); run without --batch") from error
            what = f"{self.address}: {error}; what is submitted goes on there: run the same command again"
            raise TemporaryError(what) from error


def _read_line(line: dict[str, Any], worst: Worst, costs: Costs) -> tuple[Completion | None, Usage]:
    """The reply on a line of a batch's files (None where this request failed), and what it takes of the budget."""
    response = as_dict(line.get("response"))
    status, body = response.get("status_code"), response.get("body")
    if status == 200:
        reply = completion_of(body, worst.model, 0.0)
        if reply is None or reply.finish_reason == ERROR:
            return None, worst.usage
        return costs.spent(reply, worst)
    if status is None and not line.get("error"):
        return None, worst.usage  # it does not say what became of it
    error = as_dict(as_dict(body).get("error") or line.get("error"))
    return (refused(worst.model) if refuses_content(status, error.get("code")) else None), SENT
