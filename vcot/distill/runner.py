"""Shards of Samples through a teacher; a model as the teacher: many rows under way at once, outcomes in their order.

How a row is taught is a strategy's business, and how a request is answered and paid for is the client's. How many rows
came how far, and why the others did not, is counted for the marker of the shard (vcot.records.metadata says what each
name means); examples to look at are put aside (vcot.reports.examples).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, Self, TypeVar

from vcot import logging
from vcot.distill import DistilledReasoning, NoTeacher, Outcome, Teacher, needs_teacher, refuse, with_reasoning
from vcot.errors import TemporaryError, VcotError
from vcot.grounding import Mention
from vcot.records import Folder, Reason, Rejection, Sample
from vcot.records.metadata import Checks, DistillShardMetadata
from vcot.records.shards import ShardWriter
from vcot.reports.distillation import GATES, MEANING, SHOWN
from vcot.reports.examples import ExampleSampler, ShownBox, ShownExample
from vcot.reports.rendering import shorten
from vcot.stage import REPORT_EVERY, Bar, stop

if TYPE_CHECKING:  # openai takes a second to load, and the template teacher needs none
    from vcot.distill.client import TeacherClient
    from vcot.distill.request import Client
    from vcot.distill.strategies import Strategy

T = TypeVar("T")
R = TypeVar("R")

GRACE = 10.0  # seconds that requests under way get to come home when the work is stopped: they are paid for
REFRESH = 0.25  # seconds between two looks of the bar on a terminal


def distil(samples: Iterable[Sample], teacher: Teacher, writer: ShardWriter) -> tuple[Funnel, DistillShardMetadata]:
    """Every sample goes to the writer once, in order: kept, with or without new reasoning, or refused. What became of
    them, for the report and for the marker."""
    before = dict(teacher.counts())
    with closing(teacher.teach(samples)) as rows:  # whatever happens here, requests under way come home
        funnel = write(rows, teacher.name, writer)
    spent = _since(before, teacher.counts())
    checks = {name: spent.pop(name, 0) for name in Checks.model_fields}
    costs = spent.pop("costs", {})
    return funnel, DistillShardMetadata(**funnel.counts(), trust=checks, bill=costs, spent=spent)


def write(rows: Iterable[tuple[Sample, Outcome]], teacher: str, writer: ShardWriter) -> Funnel:
    """The rows as they came out, into the shard."""
    funnel = Funnel()
    for sample, outcome in rows:
        if outcome is None and needs_teacher(sample) and teacher != NoTeacher.name:
            # A teacher leaves it alone only where there is no image.
            outcome = refuse(sample, Reason.NO_REASONING, "it is asked by text alone: there is nothing to point at")
        if isinstance(outcome, Rejection):
            funnel.refused(sample, outcome)
            writer.reject(outcome)
        elif outcome is None:
            funnel.passed(sample)
            writer.keep(sample)
        else:
            made = with_reasoning(sample, outcome, teacher)
            funnel.kept(sample, made, outcome)
            writer.keep(*made)
            for part in outcome.parts:
                writer.leave_out(part)
    return funnel


def _since(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """What was counted meanwhile."""
    return {
        name: _since(before.get(name, {}), value) if isinstance(value, Mapping) else value - before.get(name, 0)
        for name, value in now.items()
    }


# --- which rows came how far

STEPS = ("asked", "parsed", "boxes_accepted", "answer_agreed", "kept")

# Of what is shown: characters of a text, and replies of one row, the last ones, among which is what was refused. All of
# it stands in the shards and the rejections.
_LONGEST, _REPLIES = 2000, 6


def reached(reason: Reason | None) -> int:
    """How many of STEPS a row passed that was refused for this reason; None: that was kept. The gates stand in this
    order, so a row that fell at one of them has passed those before it."""
    if reason is None:
        return len(STEPS)
    return GATES.index(MEANING[reason][0]) if reason in MEANING else 0


class Funnel:
    """The counts and the examples of one shard under way."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter(taught=0, traces=0, had_reasoning=0, without=0, test_passed=0)
        self._funnel: defaultdict[str, Counter[str]] = defaultdict(Counter)
        kinds = ("refused", "parts", "flags")
        self._noted: dict[str, defaultdict[str, Counter[str]]] = {kind: defaultdict(Counter) for kind in kinds}
        self._sampler = ExampleSampler(SHOWN)

    def passed(self, sample: Sample) -> None:
        """A row that needs no teacher, or has none."""
        why = "test_passed" if sample.origin.split == "test" else "had_reasoning" if sample.reasoning else "without"
        self._rows[why] += 1
        self._funnel[sample.origin.dataset].update(("rows", "passed"))

    def kept(self, sample: Sample, made: Sequence[Sample], outcome: DistilledReasoning) -> None:
        """A row, and what was made of it: itself with its reasoning, and new questions, whose evidence nobody drew."""
        self._rows.update(taught=1, traces=sum(len(one.reasoning) for one in made))
        self._funnel[sample.origin.dataset].update(("rows", *STEPS))
        self._noted["flags"][sample.origin.dataset].update(outcome.flags)
        for one in made:
            if self._sampler.wants(one.origin.dataset, "kept", one.id):
                shown = {"flags": outcome.flags, "reasoning": one.reasoning[:1]}
                mentions = one.reasoning[0].mentions
                self._sampler.add(_example(one, "kept", mentions, sample.evidence or ()).model_copy(update=shown))
        for part in outcome.parts:
            self._noted["parts"][sample.origin.dataset][part.reason.value] += 1
            self._show(sample, part, f"part:{part.reason}")

    def refused(self, sample: Sample, rejection: Rejection) -> None:
        self._funnel[sample.origin.dataset].update(("rows", *STEPS[: reached(rejection.reason)]))
        self._noted["refused"][sample.origin.dataset][rejection.reason.value] += 1
        self._show(sample, rejection, f"refused:{rejection.reason}")

    def _show(self, sample: Sample, rejection: Rejection, group: str) -> None:
        if self._sampler.wants(sample.origin.dataset, group, sample.id):
            evidence = sample.evidence or ()
            said = tuple(shorten(text, _LONGEST) for text in rejection.said[-_REPLIES:])
            shown = {"part": rejection.part, "detail": shorten(rejection.detail, _LONGEST), "said": said}
            self._sampler.add(_example(sample, group, evidence, evidence).model_copy(update=shown))

    def counts(self) -> dict[str, Any]:
        """As DistillShardMetadata names them."""
        steps = ("rows", "passed", *STEPS)
        funnel = {name: {step: counts[step] for step in steps} for name, counts in self._funnel.items()}
        noted = {kind: {name: dict(n) for name, n in found.items() if n} for kind, found in self._noted.items()}
        return {"rows": dict(self._rows), "funnel": funnel, **noted}

    def put_aside(self, folder: Folder, shard: int) -> None:
        self._sampler.put_aside(folder, shard)


def _example(sample: Sample, group: str, mentions: Sequence[Mention], annotated: Sequence[Mention]) -> ShownExample:
    """A row with the boxes of these mentions; those that are not `annotated` are the teacher's."""
    people = {box for mention in annotated for box in mention.boxes}
    unique = [(mention, number, box) for mention in dict.fromkeys(mentions) for number, box in enumerate(mention.boxes)]
    boxes = [
        ShownBox(label="" if number else mention.label, edges=tuple(box.as_list()), proposed=box not in people)
        for mention, number, box in unique
    ]
    return ShownExample(
        id=sample.id, dataset=sample.origin.dataset, group=group, image=sample.image,
        question=shorten(sample.question, _LONGEST), choices=tuple(shorten(c, _LONGEST) for c in sample.choices or ()),
        answers=(shorten(sample.answers[0], _LONGEST),), boxes=tuple(boxes),
    )  # fmt: skip


# --- a model as the teacher


class Asking:
    """Many requests to an endpoint under way at once, their results in order. A context manager, because it holds
    connections and threads. `ahead`: items that are worked on before the first of them is done. `stops`: when a stop is
    asked for; else whoever asks ends what it is at, and saves."""

    def __init__(self, client: TeacherClient, progress: Progress, *, ahead: int = 32, stops: bool = True) -> None:
        self.client, self.progress, self._ahead, self._stops = client, progress, ahead, stops
        self._trouble: VcotError | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(max_workers=16)
        self._loop.set_default_executor(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.close()
        self.wait_for(self.client.close())
        self._threads.shutdown()
        self._loop.close()

    def wait_for(self, work: Coroutine[Any, Any, R]) -> R:
        """What this work gives, done in the client's event loop."""
        return self._loop.run_until_complete(work)

    def map(
        self, items: Iterable[T], work: Callable[[T, Client], Coroutine[Any, Any, R]]
    ) -> Generator[tuple[T, R], None, None]:
        """Every item with what the work makes of it, in order; some items are worked on ahead.

        Raises TemporaryError or SettingsError (the endpoint, storage), BudgetSpent, and Interrupted after a signal. In
        every case replies that arrived are kept.
        """
        self._trouble = None
        ahead: deque[tuple[T, asyncio.Task[R]]] = deque()
        try:
            for item in items:
                ahead.append((item, self._loop.create_task(self._watched(work(item, self.client)))))
                if len(ahead) >= self._ahead:
                    yield self._first_of(ahead)
            while ahead:
                yield self._first_of(ahead)
        finally:
            if ahead:
                self.client.stop_asking()
                self.wait_for(_come_home([task for _, task in ahead]))

    def _first_of(self, ahead: deque[tuple[T, asyncio.Task[R]]]) -> tuple[T, R]:
        """Waits for the first item; those behind it go on meanwhile."""
        item, task = ahead[0]
        while True:
            self.wait_for(asyncio.wait({task}, timeout=0.1))
            if self._stops:
                stop.raise_if_requested(f"replies that arrived are kept in {self.client.cache.uri}")
            if self._trouble is not None:
                raise self._trouble
            if task.done():
                ahead.popleft()
                return item, task.result()
            self.progress.tell()

    async def _watched(self, work: Coroutine[Any, Any, R]) -> R:
        """Trouble of any row stops the work now, not when the rows before it are done."""
        try:
            return await work
        except VcotError as error:
            if isinstance(error, TemporaryError):
                said = str(error) if str(error).endswith((".", "?", "!")) else f"{error}."
                advice = f"Run the same command again; what was paid for is kept in {self.client.cache.uri}"
                error = TemporaryError(f"{said} {advice}")
            self._trouble = self._trouble or error
            raise


async def _come_home(tasks: Sequence[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks, timeout=GRACE)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class ModelTeacher(Asking):
    """A model behind an endpoint, asked by a strategy."""

    def __init__(self, strategy: Strategy, client: TeacherClient, *, ahead: int = 32) -> None:
        super().__init__(client, Progress(client), ahead=ahead)
        self.name, self.strategy = strategy.name, strategy

    def counts(self) -> Mapping[str, Any]:
        report = self.client.report
        return {**report.totals(), **self.strategy.counted, "costs": report.lines()}

    def teach(self, samples: Iterable[Sample]) -> Generator[tuple[Sample, Outcome], None, None]:
        """Every sample with its outcome, in order. Raises as `map` does."""
        with closing(self.map(samples, self.strategy.outcome)) as rows:
            for sample, outcome in rows:
                self.progress.row(refused=isinstance(outcome, Rejection))
                yield sample, outcome


class Progress:
    """How far the work is: a bar of the rows on a terminal, a line every 30 s elsewhere. `stage`, `doing`: what the bar
    and the line call it."""

    def __init__(self, client: TeacherClient, stage: str = "distill", doing: str = "asking the teacher") -> None:
        self._stage, self._doing = stage, doing
        self.total: int | None = None  # rows that will pass, once they are counted
        self._done = self._refused = 0
        self._client, self._begun = client, time.monotonic()
        self._told = self._begun
        self._bar: Bar | None = None

    def row(self, *, refused: bool) -> None:
        """One more row is done."""
        self._done += 1
        self._refused += refused

    def tell(self) -> None:
        """To be called often; says something when it is time."""
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if now - self._told < (REFRESH if terminal else REPORT_EVERY):
            return
        self._told, fields = now, self.fields()
        if not terminal:
            logging.get().info(self._doing, **fields)
            return
        if self._bar is None:
            self._bar = Bar(self._stage, self.total).__enter__()
        self._bar.advance(self._done - self._bar.count, f"{self._refused:,} refused, ${fields['usd']}")

    def fields(self) -> dict[str, Any]:
        """Rows, requests, tokens a second, US dollars and seconds, all of this process."""
        paid, seconds = self._client.report.totals(), max(time.monotonic() - self._begun, 1e-9)
        fields: dict[str, Any] = {"done": self._done} | ({} if self.total is None else {"of": self.total})
        fields |= {"refused": self._refused, "in_flight": self._client.endpoint.rate.under_way}
        fields |= {name: paid[name] for name in ("requests", "kept_replies_used", "tries_again")}
        fields["tokens_per_second"] = round(paid["tokens_paid"] / seconds)
        unknown = paid["requests"] and paid["unpriced"]
        fields["usd"] = "unknown" if unknown else round(paid["usd_paid"] + paid["usd_lost"], 4)
        if self.total is not None and self._done:
            fields["seconds_left"] = round((self.total - self._done) * seconds / self._done)
        return fields

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__()
