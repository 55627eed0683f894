"""Rows without reasoning get it: `python -m jobs.distill`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, ClassVar, Literal

from vcot import logging
from vcot.distill.dialogue import PromptOptions
from vcot.distill.request import own_prompts
from vcot.distill.strategies import STRATEGIES
from vcot.distill.verification import VerificationOptions
from vcot.errors import BudgetSpent, SettingsError
from vcot.settings import DEVICE, Device, Group, Settings, offers, setting
from vcot.stage import launch
from vcot.uris import CREDENTIALS, without_credentials

if TYPE_CHECKING:
    from vcot.distill import Teacher
    from vcot.distill.request import Prompt
    from vcot.distill.runner import ModelTeacher
    from vcot.distill.verification import Detector
    from vcot.records import Sample
    from vcot.records.metadata import FrameFit
    from vcot.records.shards import Folder
    from vcot.storage import Store


FRAME_FIT = "frame_fit.json"
"""Figures of the pilot, in the folder of the stage."""


@offers("strategy", STRATEGIES)
class DistillSettings(PromptOptions, VerificationOptions, Settings):
    """Gives reasoning to the rows that lack it; rows that have it, and rows of the test split, pass unchanged.

    --teacher template writes a short grounded trace from the annotated evidence, without any model.
    --teacher none writes nothing.
    --teacher openai asks a model behind any OpenAI-compatible endpoint (OPENAI_BASE_URL, OPENAI_API_KEY), with one of
    the strategies that stand below, each with the settings that it alone looks at.
    Boxes of annotated objects are put into the text by this program. Boxes that the model proposes are checked, and
    the answer must follow from what the reasoning points at. Replies are kept, so that none is paid for twice.
    """

    stage: ClassVar[str] = "distill"
    groups: ClassVar[tuple[Group, ...]] = (Group("teacher", ("input_uri", "teacher", "strategy")),)

    input_uri: str | None = setting(None, "folder of the stage that made the Samples; default: <run-uri>/convert")
    teacher: Literal["template", "openai", "none"] = setting(
        "template", "who writes the reasoning; none: rows pass as they are, and those without reasoning can be learned "
        "from by rewards (tokenize --without-reasoning ask)"
    )  # fmt: skip
    strategy: str = setting("answer-aware", "openai: how it is asked; see below")
    max_rejected_share: float = setting(
        0.05, "share of the rows that may be refused before the stage fails", unit="0..1", ge=0, le=1,
        shapes_result=False,
    )  # fmt: skip
    phrasings: int = setting(3, "template: wordings in use; 1: always the plainest", unit="wordings", ge=1, le=3)
    show_prompt: bool = setting(False, "print the words that go with this strategy, and stop", shapes_result=False)
    device: Device = setting("auto", f"openai, --detector-uri: {DEVICE}", shapes_result=False)
    concurrency: int = setting(
        10, "openai: most requests under way at once; fewer where an endpoint turns some away", unit="requests", ge=1,
        le=512, shapes_result=False,
    )  # fmt: skip
    retries: int = setting(
        8, "openai: how often a request is tried again when the endpoint is busy, fails or is too slow (pauses grow to "
        "a minute, or what Retry-After says)", unit="requests", ge=0, le=100, shapes_result=False,
    )  # fmt: skip
    max_failed_in_a_row: int = setting(
        10, "openai: rows that may fail at the endpoint one after another before the run stops; a row that fails while "
        "others are answered is refused, and the run goes on", unit="rows", ge=1, shapes_result=False,
    )  # fmt: skip
    timeout: float = setting(
        120.0, "openai: a request that takes longer is cut off and tried again", unit="seconds", gt=0,
        shapes_result=False,
    )  # fmt: skip
    batch: bool = setting(
        False, "openai: ask all that can wait in batches first, at the endpoint's lower price and within a day; what "
        "fails there is asked singly", shapes_result=False,
    )  # fmt: skip
    prices: str | None = setting(
        None, "openai: file with prices of models, of the form of vcot/distill/prices.toml, which it adds to and "
        "overrides", shapes_result=False, min_length=1,
    )  # fmt: skip
    budget_usd: Decimal | None = setting(
        None, "openai: US dollars that this run may spend in all; never passed, exit code 21 when it is reached",
        unit="US dollars", gt=0, decimal_places=6, shapes_result=False,
    )  # fmt: skip
    budget_tokens: int | None = setting(
        None, "openai: tokens, in and out, that this run may pay for in all; never passed, exit code 21", unit="tokens",
        ge=1, shapes_result=False,
    )  # fmt: skip
    budget_requests: int | None = setting(
        None, "openai: requests that this run may send in all; never passed, exit code 21", unit="requests", ge=1,
        shapes_result=False,
    )  # fmt: skip
    frame_check_rows: int = setting(
        20, "openai: rows with annotated boxes whose things the teacher must point at first, one request each; if "
        "another frame than --frame fits its boxes clearly better, the run stops before it asks about any other row; "
        "0: none", unit="rows", ge=0, le=1000, shapes_result=False,
    )  # fmt: skip
    dry_run: bool = setting(False, "openai: estimate requests, tokens, cost, time; send nothing", shapes_result=False)
    cache_uri: str | None = setting(
        None, "openai: where replies are kept; default: <parent of run-uri>/_cache/distill", shapes_result=False
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.teacher == "openai":
            if self.model is None:
                yield "--teacher openai needs --model (or VCOT_DISTILL_MODEL): the model to ask"
            for name in ("OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT"):
                if without_credentials(address := os.environ.get(name, "")) != address:
                    yield f"{name}={address}: {CREDENTIALS}"
        elif self.model is not None:
            yield f"--model={self.model}: --teacher {self.teacher} asks no model; did you mean --teacher openai?"
        elif self.teacher == "template" and self.alternatives > self.phrasings:
            yield (
                f"--alternatives={self.alternatives}: the template has --phrasings {self.phrasings}, and alternatives "
                "must differ"
            )


def run(settings: DistillSettings) -> None:
    from vcot.distill.budget import Estimate, the_rest
    from vcot.distill.pilot import pilot_requests
    from vcot.distill.runner import ModelTeacher, distil
    from vcot.records.metadata import DistillMetadata, DistillShardMetadata
    from vcot.records.shards import DISTILL, OF_SAMPLES, Folder, ShardWriter, read_marker, read_shard, run_shards
    from vcot.reports.distillation import report
    from vcot.storage import Store, join

    used: Sequence[Prompt] = ()
    if settings.teacher == "openai" or settings.show_prompt:
        used = STRATEGIES[settings.strategy].prompts(settings.prompts)
    if settings.show_prompt:
        print("\n".join(f"--- {prompt.name}, version {prompt.version}\n{prompt.text}\n" for prompt in used))
        return
    store = Store()
    source = settings.input_uri or join(settings.run_uri, "convert")
    marker, inputs = read_marker(store, source, *OF_SAMPLES)
    inputs |= {uri: store.digest(uri) for uri in own_prompts(settings.prompts)}  # must not change within a run
    folder = Folder(store, settings.run_uri, DISTILL)

    def rows_of(shards: Iterable[int]) -> Iterator[Sample]:
        return chain.from_iterable(read_shard(store, source, marker.shards[index]) for index in shards)

    def work(writer: ShardWriter) -> DistillShardMetadata:
        funnel, metadata = distil(rows_of([writer.index]), teacher, writer)
        funnel.put_aside(folder, writer.index)
        return metadata

    everything = range(len(marker.shards))
    with teacher_of(settings, folder) as teacher:
        asked = settings.strategy if used else None
        versions = {prompt.name: prompt.version for prompt in used}
        metadata = DistillMetadata(teacher=teacher.name, strategy=asked, prompts=versions)
        if settings.dry_run:
            if isinstance(teacher, ModelTeacher):
                estimate = Estimate(teacher, rows_of(everything))
                estimate.add_pilot(pilot_requests(teacher, rows_of(everything), settings.frame_check_rows))
                print(estimate.table(settings.concurrency))
            else:
                print(f"--teacher {settings.teacher} asks no model: nothing is to be paid")
            return
        todo = [index for index in everything if folder.shard_marker(index) is None]
        try:
            if isinstance(teacher, ModelTeacher) and folder.marker() is None:
                if folder.has_begun():
                    folder.begin(settings, inputs)
                # Before anything is written down: another --frame may follow in the same run.
                fit = frame_fit(teacher, folder, settings, rows_of(everything))
                metadata = metadata.model_copy(update={"frame_fit": fit})
                folder.begin(settings, inputs)
                if fit is not None:
                    store.write_once(join(folder.uri, FRAME_FIT), fit.line())
                if settings.batch and settings.part in ("all", "prepare"):
                    from vcot.distill.batch import Batches

                    Batches(teacher, store, folder.uri).run(lambda: rows_of(everything))
                mine = [index for index in todo if settings.shard in (None, index)]
                teacher.progress.total = sum(marker.shards[index].row_counts.written for index in mine)
            run_shards(
                folder, settings, inputs=inputs, shards=len(marker.shards), work=work,
                max_rejected_share=settings.max_rejected_share, metadata=metadata,
                report=lambda markers, row_counts: report(folder, markers, row_counts, metadata),
                bar=not isinstance(teacher, ModelTeacher),  # which has a bar of its rows
            )  # fmt: skip
        except BudgetSpent as spent:
            assert isinstance(teacher, ModelTeacher)
            unfinished = rows_of(index for index in everything if folder.shard_marker(index) is None)
            raise BudgetSpent(f"{spent}. {the_rest(unfinished, marker.row_counts.written, teacher)}") from spent


def frame_fit(
    teacher: ModelTeacher, folder: Folder, settings: DistillSettings, rows: Iterable[Sample]
) -> FrameFit | None:
    """Return the figures of the pilot, stored or new; None: there was no pilot."""
    from vcot.distill.pilot import check_frame
    from vcot.records.metadata import FrameFit
    from vcot.storage import NotFound, join, read_json

    try:
        return read_json(
            folder.store, join(folder.uri, FRAME_FIT), FrameFit.model_validate, "delete it", recorded=False
        )
    except NotFound:
        is_first = settings.part in ("all", "prepare")
        return check_frame(teacher, rows, settings.frame_check_rows) if is_first else None


@contextmanager
def teacher_of(settings: DistillSettings, folder: Folder) -> Iterator[Teacher]:
    if settings.teacher == "none":
        from vcot.distill import NoTeacher

        yield NoTeacher()
        return
    if settings.teacher == "template":
        from vcot.distill.template import TemplateTeacher

        why = "" if "teacher" in settings.model_fields_set else "no --teacher is set: "
        logging.get().info(f"{why}the template writes the reasoning, from annotated boxes alone; no model is asked")
        yield TemplateTeacher(settings.phrasings, settings.alternatives, settings.seed)
        return

    from vcot.distill.budget import Ledger, budget_of, check_prices
    from vcot.distill.client import Failures, TeacherClient
    from vcot.distill.costs import read_prices
    from vcot.distill.endpoint import Endpoint
    from vcot.distill.request import ReplyCache
    from vcot.distill.runner import ModelTeacher

    store, prices = folder.store, read_prices(folder.store, settings.prices)
    budget = budget_of(settings.budget_usd, settings.budget_tokens, settings.budget_requests)
    if not settings.dry_run:
        check_prices(prices, (settings.model, settings.judge_model), budget)
    endpoint = Endpoint(at_once=settings.concurrency, timeout=settings.timeout)
    cache = ReplyCache(store, settings.cache_uri or cache_of(settings.run_uri))
    failures = Failures(settings.max_failed_in_a_row, settings.max_rejected_share)
    ledger = Ledger(store, folder.uri, budget)
    client = TeacherClient(endpoint, cache, prices, ledger, retries=settings.retries, failures=failures)
    strategy = STRATEGIES[settings.strategy].make(settings, store, detector_of(settings, store))
    with ModelTeacher(strategy, client, ahead=4 * settings.concurrency) as teacher:
        yield teacher


def detector_of(settings: DistillSettings, store: Store) -> Detector | None:
    """Loaded only where one is named: it brings torch, which the data image does not have."""
    from vcot.storage import confirmed

    uri = settings.detector_uri
    if uri is None:
        return None
    confirmed(uri, lambda: _demand_files(store, uri))  # before torch, which takes seconds to load
    try:
        from vcot.models.detector import load_detector
        from vcot.models.device import use_device
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"--detector-uri={uri}: a detector needs {error.name}, which is not installed here; "
            "run distill in the image that train uses, or leave it out"
        ) from None
    use_device(settings.device)
    return load_detector(store, uri)


def _demand_files(store: Store, uri: str) -> None:
    from vcot.storage import NotFound

    if next(store.list(uri), None) is None:
        raise NotFound(f"--detector-uri={uri}: there is nothing in that folder")


def cache_of(run_uri: str) -> str:
    """`<parent of the run>/_cache/distill`: replies outlive the run that paid for them."""
    from vcot.storage import join

    parent, _, name = run_uri.rstrip("/").rpartition("/")
    if parent.endswith("/") or not name:  # s3://bucket, or a folder of the root
        parent = run_uri.rstrip("/")
    return join(parent or ".", "_cache", DistillSettings.stage)


if __name__ == "__main__":
    launch(DistillSettings, run)
