"""One thread computes, requests wait in a bounded queue, and those that are drawn alike are computed together.

with Engine(model, queue=32) as engine:
    with engine.place() as place:             refuses where the queue is full
        place.submit(job)                     computed in its turn; job.deliver is told of its tokens
        …
                                              left early, the job stops with the token that is being computed
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from vcot import logging
from vcot.models.decoding import Decoding
from vcot.serving.model import ServedModel
from vcot.serving.request import Refused
from vcot.tokens import Detokenizer

MOST_ROWS = 16
"""Replies computed at once, at most; draws of one request count each."""
STALLED_AFTER = 60.0
"""Seconds without a token, a batch or a step of reading, while there are requests, after which /health fails."""
BATCH_TOKENS = 65536
"""Prompts and longest replies computed at once, together at most; one request alone may be larger."""


@dataclass(frozen=True)
class TokenSaid:
    """A token, its log-probability, and the likeliest ones in its place with theirs."""

    text: str
    logprob: float
    top: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Piece:
    """What came next of one reply. finish: why it has ended, with its last piece."""

    index: int
    text: str
    token: TokenSaid | None
    finish: str | None


@dataclass(eq=False)
class Job:
    """What a request asks of the model.

    Attributes:
        batch: of `Encoder.conversation`. rationale: as there.
        samples: draws; one at temperature 0.
        seed: of the draws.
        stops: a reply ends before the first of these texts.
        top: likeliest tokens to tell with each; None: tokens are not told at all.
        deliver: called in the engine's thread, with the next pieces of the replies, or with why there are none.
        gone: whoever asked does not listen any more.
    """

    batch: dict[str, Any]
    prompt_tokens: int
    max_new_tokens: int
    temperature: float
    samples: int
    seed: int
    deliver: Callable[[list[Piece] | Refused], None]
    rationale: bool = False
    stops: tuple[str, ...] = ()
    top: int | None = None
    gone: bool = False
    reply_tokens: int = 0  # so far, of all draws


class ClientGone(Exception):
    """The client of a request is gone."""


@dataclass(eq=False)
class Place:
    """One request in the queue. before: how many were waiting or computed when it came."""

    engine: Engine
    before: int
    job: Job | None = None
    waits: bool = True
    has_left: bool = False  # the client is gone

    def submit(self, job: Job) -> None:
        self.job = job
        self.engine.add(self)

    def check_present(self) -> None:
        """Report progress, and raise ClientGone if the client is gone.

        Called between the steps of reading a request.
        """
        self.engine.progress()
        if self.has_left:
            raise ClientGone


@dataclass(eq=False)
class _Reply:
    """One draw of a job, while it is said."""

    job: Job
    index: int
    said: Detokenizer
    tokens: int = 0
    held: str = ""  # text that may be the beginning of a stop

    def add(self, text: str, *, ended: bool) -> tuple[str, str | None]:
        """What can be sent of it, and whether this was the end."""
        self.tokens += 1
        self.held += text
        cut = min((at for stop in self.job.stops if (at := self.held.find(stop)) >= 0), default=-1)
        if cut >= 0:
            return self.held[:cut], "stop"
        if ended or self.tokens == self.job.max_new_tokens:
            return self.held + self.said.rest(), "stop" if ended else "length"
        keep = max((_overlap(self.held, stop) for stop in self.job.stops), default=0)
        sent, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return sent, None


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text with which the stop begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class Engine:
    """Of one model. queue: requests that may wait, beside those that are computed."""

    model: ServedModel
    queue: int
    running: int = 0
    _waiting: int = 0  # places, also of requests that are still being read
    _reading: int = 0  # requests that have arrived and are being read
    _ready: deque[Place] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closed: bool = False
    _seconds: float = 1.0  # of a batch, as the last ones took
    _progress_at: float = field(default_factory=time.monotonic)  # last token, batch, or step of reading a request
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        assert self._thread is not None
        self._thread.join()

    def close(self) -> None:
        """Takes nothing more and turns away who waits; what is computed goes on."""
        with self._changed:
            self._closed = True
            turned_away = [place for place in self._ready if place.job is not None]
            self._ready.clear()
            self._changed.notify()
        for place in turned_away:
            assert place.job is not None
            place.job.deliver(self._refusal("this server is being stopped"))

    @property
    def waiting(self) -> int:
        return self._waiting

    def progress(self) -> None:
        self._progress_at = time.monotonic()

    @property
    def state(self) -> Literal["ok", "stalled", "stopping"]:
        """Whether requests are served. stalled: no progress for STALLED_AFTER seconds although there are requests."""
        if self._closed:
            return "stopping"
        if self._thread is None or not self._thread.is_alive():
            return "stalled"
        return "ok" if not self._busy or time.monotonic() - self._progress_at < STALLED_AFTER else "stalled"

    @property
    def _busy(self) -> bool:
        return bool(self._reading or self._ready or self.running)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Count a request that has arrived and is being read."""
        if not self._busy:
            self.progress()
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Raises Refused (503, with Retry-After): as many are waiting as may, or the server is being stopped."""
        with self._changed:
            if self._closed:
                raise self._refusal("this server is being stopped")
            if self._waiting >= self.queue:
                raise self._refusal(f"{self._waiting} requests are waiting, which is all that may; ask again later")
            place = Place(self, self._waiting + self.running)
            self._waiting += 1
        try:
            yield place
        finally:
            place.has_left = True
            if place.job is not None:
                place.job.gone = True
            with self._changed:
                self._leave_queue(place)
                if place in self._ready:
                    self._ready.remove(place)

    def add(self, place: Place) -> None:
        with self._changed:
            if self._closed:
                raise self._refusal("this server is being stopped")
            self._ready.append(place)
            self._changed.notify()

    def _refusal(self, why: str) -> Refused:
        refused = Refused(503, why, code="overloaded")
        batches = 1 + self._waiting // MOST_ROWS
        refused.headers["Retry-After"] = str(max(1, math.ceil(batches * self._seconds)))
        return refused

    def _leave_queue(self, place: Place) -> None:
        self._waiting -= place.waits
        place.waits = False

    # --- in the model's thread

    def _work(self) -> None:
        while jobs := self._next():
            begun = time.monotonic()
            failed = self._failed(jobs)
            if len(jobs) > 1:  # each by itself: together they may have been too many, or one of them broke it
                failed = [job for one in failed for job in ([one] if one.reply_tokens else self._failed([one]))]
            for job in failed:
                job.deliver(
                    Refused(500, "the model failed at this request, or has no memory for it; its log says more")
                )
            self._seconds = (self._seconds + time.monotonic() - begun) / 2
            self.running = 0

    def _next(self) -> list[Job]:
        """The first that waits, and those behind it that can be computed with it; none when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed)
            jobs: list[Job] = []
            for place in list(self._ready):
                assert place.job is not None
                if not jobs or _together([*jobs, place.job]):
                    jobs.append(place.job)
                    self._ready.remove(place)
                    self._leave_queue(place)
            self.running = len(jobs)
            self.progress()
            return jobs

    def _failed(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Computes them, and returns all of them if that failed."""
        try:
            self._generate(jobs)
        except Exception:
            logging.get().exception("the model failed", requests=len(jobs))
            return jobs
        return ()

    def _generate(self, jobs: Sequence[Job]) -> None:
        from vcot.models.generation import Step, generate

        encoder, first = self.model.encoder, jobs[0]
        replies = [
            _Reply(job, index, Detokenizer(encoder, rationale=job.rationale))
            for job in jobs
            for index in range(job.samples)
        ]

        def told(step: Step) -> set[int]:
            self.progress()
            pieces: dict[Job, list[Piece]] = {}
            over = set[int]()
            for number, token, logprob, top in zip(*step, strict=True):
                reply = replies[number]
                job = reply.job
                if job.gone:
                    over.add(number)
                    continue
                text = reply.said.add(token)
                sent, finish = reply.add(text, ended=reply.said.ended)
                said = None
                if job.top is not None:
                    likeliest = [(encoder.text_of([other]), value) for other, value in top[: job.top]]
                    said = TokenSaid(encoder.text_of([token]), logprob, likeliest)
                job.reply_tokens += 1
                pieces.setdefault(job, []).append(Piece(reply.index, sent, said, finish))
                if finish is not None:
                    over.add(number)
            for job, several in pieces.items():
                job.deliver(several)
            return over

        longest = max(job.max_new_tokens for job in jobs)
        generate(
            self.model.network, encoder.joined([job.batch for job in jobs]),
            Decoding(longest, first.temperature, first.samples), seeds=[job.seed for job in jobs],
            eos_token_ids=encoder.eos_token_ids, between=encoder.between, listener=told,
            top=max(job.top or 0 for job in jobs),
        )  # fmt: skip


def _together(jobs: Sequence[Job]) -> bool:
    """Whether they can be computed in one batch."""
    first, last = jobs[0], jobs[-1]
    rows = len(jobs) * first.samples
    size = rows * (max(job.prompt_tokens for job in jobs) + max(job.max_new_tokens for job in jobs))
    alike = (first.temperature, first.samples) == (last.temperature, last.samples)
    return alike and rows <= MOST_ROWS and size <= BATCH_TOKENS
