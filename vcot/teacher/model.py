"""A model behind an endpoint as the teacher: many questions under way at once, answers in the order of the rows.

    sample → numbered objects → request → (kept reply | endpoint) → Trace, or asked again with a stricter word

Each reply is kept in storage the moment it arrives, so whatever ends the process, nothing is paid for twice.
"""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from PIL.Image import Resampling

from vcot import log
from vcot.errors import BudgetSpent, TemporaryError, VcotError
from vcot.grounding import Trace
from vcot.records import Completion, Image, Reason, Rejection, Sample
from vcot.records.picture import picture
from vcot.records.sample import IMAGE_REASONS
from vcot.stage import REPORT_EVERY, stop
from vcot.storage import Store
from vcot.storage.images import ImageError
from vcot.teacher import prompt, reply
from vcot.teacher.endpoint import Endpoint
from vcot.teacher.objects import Object, objects_of
from vcot.teacher.replies import Replies, key_of
from vcot.teacher.reply import Fault
from vcot.teacher.row import Lesson, Outcome, needs_teacher, refuse

GRACE = 10.0
"""Seconds that requests under way get to come home when the work is stopped; their replies are paid for."""

_QUALITY = 90  # JPEG


@dataclass(frozen=True)
class Options:
    """How the model is asked. What shapes a reply is part of the request's key; the last four are not.

    Args:
        temperature: None leaves it to the endpoint (some models accept no other).
        reply_tokens: most tokens of one reply.
        image_side: longest side, in pixels, of the picture that is sent.
        attempts: how often one row is asked before it is given up.
        max_requests, max_tokens: most that this process may ask for; None: no limit.
    """

    model: str
    temperature: float | None = None
    reply_tokens: int = 1024
    image_side: int = 1024
    attempts: int = 3
    alternatives: int = 1
    concurrency: int = 8
    max_requests: int | None = None
    max_tokens: int | None = None


@dataclass
class Ledger:
    """What was used since the start. Tokens are those of every reply used, kept ones too; paid, of new ones."""

    requests: int = 0
    kept_replies_used: int = 0
    asked_again: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_paid: int = 0


class _Closing(Exception):
    """The work is being stopped: no new request."""


class ModelTeacher:
    """Use it as a context manager; it holds connections and threads."""

    def __init__(self, endpoint: Endpoint, replies: Replies, store: Store, options: Options) -> None:
        self.name = options.model
        self._endpoint, self._replies, self._store, self._options = endpoint, replies, store, options
        self._ledger = Ledger()
        self._trouble: VcotError | None = None
        self._closing = False
        self._told = time.monotonic()

    def __enter__(self) -> ModelTeacher:
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(max_workers=16)
        self._loop.set_default_executor(self._threads)
        self._slots = asyncio.Semaphore(self._options.concurrency)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._endpoint.close())
        self._threads.shutdown()
        self._loop.close()

    def counts(self) -> Mapping[str, int]:
        return asdict(self._ledger)

    # ------------------------------------------------------------------------------------- rows in, in order out

    def teach(self, samples: Iterable[Sample]) -> Generator[tuple[Sample, Outcome], None, None]:
        """Every sample with its outcome, in order; some rows are worked on ahead.

        Raises:
            TemporaryError, SettingsError: the endpoint (see Endpoint.ask) or storage.
            BudgetSpent: max_requests or max_tokens is reached.
            Interrupted: stopped by a signal. In every case replies that arrived are kept.
        """
        ahead: deque[tuple[Sample, asyncio.Task[Outcome]]] = deque()
        try:
            for sample in samples:
                ahead.append((sample, self._loop.create_task(self._watched(sample))))
                if len(ahead) >= 4 * self._options.concurrency:
                    yield self._settle(ahead)
            while ahead:
                yield self._settle(ahead)
        finally:
            self._drain([task for _, task in ahead])

    def _settle(self, ahead: deque[tuple[Sample, asyncio.Task[Outcome]]]) -> tuple[Sample, Outcome]:
        """Waits for the first row; the rows behind it go on meanwhile."""
        sample, task = ahead[0]
        self._loop.run_until_complete(self._done(task))
        ahead.popleft()
        return sample, task.result()

    async def _done(self, task: asyncio.Task[Outcome]) -> None:
        while True:
            await asyncio.wait({task}, timeout=0.1)
            stop.raise_if_requested(f"replies that arrived are kept in {self._replies.uri}")
            if self._trouble is not None:
                raise self._trouble
            if task.done():
                return
            self._tell()

    async def _watched(self, sample: Sample) -> Outcome:
        """Trouble of any row stops the work now, not when the rows before it are done."""
        try:
            return await self._outcome(sample) if needs_teacher(sample) else None
        except VcotError as error:
            self._trouble = self._trouble or self._with_advice(error)
            raise

    def _with_advice(self, error: VcotError) -> VcotError:
        if isinstance(error, TemporaryError):
            said = str(error)
            end = "" if said.endswith((".", "?", "!")) else "."
            return TemporaryError(
                f"{said}{end} Run the same command again; what was paid for is kept in {self._replies.uri}"
            )
        return error

    def _drain(self, tasks: Sequence[asyncio.Task[Outcome]]) -> None:
        if not tasks:
            return
        self._closing = True
        self._loop.run_until_complete(self._come_home(tasks))

    async def _come_home(self, tasks: Sequence[asyncio.Task[Outcome]]) -> None:
        await asyncio.wait(tasks, timeout=GRACE)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tell(self) -> None:
        if time.monotonic() - self._told >= REPORT_EVERY:
            self._told = time.monotonic()
            log.get().info("asking the teacher", **self.counts())

    # -------------------------------------------------------------------------------------------------- one row

    async def _outcome(self, sample: Sample) -> Outcome:
        if sample.evidence is None:
            return refuse(
                sample, Reason.NO_REASONING, "nobody annotated where the evidence is, so there is nothing to number"
            )
        objects = objects_of(sample)
        traces: list[Trace] = []
        fault: Fault | Rejection | None = None
        for alternative in range(self._options.alternatives):
            found = await self._trace(sample, objects, alternative)
            if isinstance(found, Trace):
                traces.append(found)
            else:
                fault = found
        if traces:
            return Lesson(tuple(dict.fromkeys(traces)))
        assert fault is not None
        return fault if isinstance(fault, Rejection) else refuse(sample, fault.reason, fault.why)

    async def _trace(self, sample: Sample, objects: Sequence[Object], alternative: int) -> Trace | Fault | Rejection:
        """Asks until a reply can be read; each time it could not, the teacher is told why."""
        faults: list[Fault] = []
        while len(faults) < self._options.attempts:
            words = prompt.words_for(sample, objects, [fault.why for fault in faults])
            try:
                completion = await self._reply(sample, words, alternative)
            except ImageError as error:
                return refuse(sample, IMAGE_REASONS[error.reason], str(error))
            found = reply.read(completion, sample, objects)
            if isinstance(found, Trace):
                return found
            faults.append(found)
            self._ledger.asked_again += len(faults) < self._options.attempts
        return Fault(faults[-1].reason, f"after {len(faults)} attempts: {faults[-1].why}")

    async def _reply(self, sample: Sample, words: str, alternative: int) -> Completion:
        """The kept reply to this request, or a new one, which is kept before anything else is done with it."""
        request = self._request(words)
        shown = {"sha256": sample.shown.kept.sha256, "side": self._options.image_side, "quality": _QUALITY}
        key = key_of({"version": prompt.VERSION, "request": request, "image": shown, "alternative": alternative})
        async with self._slots:
            if self._closing:
                raise _Closing
            completion = await asyncio.to_thread(self._replies.get, key)
            if completion is not None:
                self._ledger.kept_replies_used += 1
            else:
                completion = await self._ask(key, request, sample)
        self._ledger.tokens_in += completion.tokens_in
        self._ledger.tokens_out += completion.tokens_out
        return completion

    async def _ask(self, key: str, request: dict[str, Any], sample: Sample) -> Completion:
        url = await asyncio.to_thread(data_url, self._store, sample.shown, self._options.image_side)
        self._spend()
        completion = await self._endpoint.ask(_with_image(request, url))
        self._ledger.tokens_paid += completion.tokens_in + completion.tokens_out
        return await asyncio.to_thread(self._replies.keep, key, completion)

    def _spend(self) -> None:
        """Counts one request. Raises BudgetSpent instead of going over the limit."""
        limits = self._options
        if limits.max_requests is not None and self._ledger.requests >= limits.max_requests:
            spent = f"--max-requests {limits.max_requests}"
        elif limits.max_tokens is not None and self._ledger.tokens_paid >= limits.max_tokens:
            spent = f"--max-tokens {limits.max_tokens}"
        else:
            self._ledger.requests += 1
            return
        raise BudgetSpent(
            f"{spent} is spent; the replies are kept in {self._replies.uri}, so that a higher limit goes on from here"
        )

    def _request(self, words: str) -> dict[str, Any]:
        """What is asked, with a place for the image (the second message's first part)."""
        options = self._options
        request: dict[str, Any] = {
            "model": options.model,
            "max_completion_tokens": options.reply_tokens,
            "messages": [
                {"role": "system", "content": prompt.RULES},
                {"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": words}]},
            ],
        }
        return request | ({} if options.temperature is None else {"temperature": options.temperature})


def data_url(store: Store, image: Image, side: int) -> str:
    """The picture as a JPEG of at most `side` pixels a side, in a data URL. Raises ImageError."""
    pixels = picture(store, image).pixels
    pixels.thumbnail((side, side), Resampling.LANCZOS)  # only ever smaller
    packed = io.BytesIO()
    pixels.save(packed, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()


def _with_image(request: Mapping[str, Any], url: str) -> dict[str, Any]:
    system, user = request["messages"]
    content = [{"type": "image_url", "image_url": {"url": url}}, *user["content"][1:]]
    return {**request, "messages": [system, {**user, "content": content}]}
