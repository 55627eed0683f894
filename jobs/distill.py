"""Rows without reasoning get it: `python -m jobs.distill`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

from vcot import logging
from vcot.distill.strategies import NAMES
from vcot.errors import BudgetSpent, InputError, SettingsError
from vcot.settings import DEVICE, CommaSeparated, Device, Settings, flag, setting
from vcot.stage import launch
from vcot.uris import CREDENTIALS, without_credentials

if TYPE_CHECKING:
    from vcot.distill import Teacher
    from vcot.distill.request import Prompt
    from vcot.distill.verification import Detector
    from vcot.records import Sample
    from vcot.records.shards import Folder
    from vcot.storage import Store


class DistillSettings(Settings):
    """Gives reasoning to the rows that lack it; rows that have it, and rows of the test split, pass unchanged.

    --teacher template writes a short grounded trace from the annotated evidence, without any model.
    --teacher openai asks a model behind any OpenAI-compatible endpoint (OPENAI_BASE_URL, OPENAI_API_KEY), in one of
    these ways:
      answer-aware  it is told the answer and a numbered list of the evidence, and refers to objects by number
      rationalise   reasoning that was written as mere text stays as it is and gets places
      two-level     it describes the image and each thing in it apart, judges what it said, then writes reasoning and
                    new questions
    Boxes of annotated objects are put into the text by this program. Boxes that the model proposes are checked, and
    the answer must follow from what the reasoning points at. Replies are kept, so that none is paid for twice.
    """

    stage: ClassVar[str] = "distill"

    input_uri: str | None = setting(None, "folder of the stage that made the Samples; default: <run-uri>/convert")
    teacher: Literal["template", "openai"] = setting("template", "who writes the reasoning")
    strategy: Literal[NAMES] = setting("answer-aware", "openai: how it is asked; see above")  # type: ignore[valid-type]
    objects: int = setting(
        8, "openai: objects that may be proposed in one piece of reasoning, each of which costs a look or more; with "
        "more, answer-aware asks once more and then refuses the row, rationalise leaves out places, two-level (for an "
        "image) takes the surest", unit="objects", ge=1, le=64,
    )  # fmt: skip
    pairs: int = setting(2, "two-level: new questions for each image, beside its own", unit="questions", ge=0, le=16)
    alternatives: int = setting(
        1, "different traces for each row (rationalise: one for each text)", unit="traces", ge=1, le=16
    )
    max_rejected_share: float = setting(
        0.05, "share of the rows that may be refused before the stage fails", unit="0..1", ge=0, le=1,
        shapes_result=False,
    )  # fmt: skip

    phrasings: int = setting(3, "template: wordings in use; 1: always the plainest", unit="wordings", ge=1, le=3)
    seed: int = setting(0, "template: which row gets which wording; openai: which looks are followed by a decoy")

    model: str | None = setting(None, "openai: the model, by the endpoint's name for it", min_length=1)
    temperature: float | None = setting(None, "openai: sampling temperature; default: the endpoint's own", ge=0, le=2)
    reply_tokens: int = setting(1024, "openai: most tokens of one reply, its thinking included", unit="tokens", ge=16)
    image_side: int = setting(1024, "openai: longest side of the image that is sent", unit="pixels", ge=28, le=8192)
    repairs: int = setting(
        1, "openai: how often a reply that is of no use is asked for again, with a word on why", unit="requests", ge=0,
        le=1,
    )  # fmt: skip
    ask_again: int = setting(
        0, "openai: how often a row that is refused for what was said of it is asked about anew; with the kept replies "
        "of an earlier run, only the rows that it refused are asked about, and the others stay as they are",
        unit="times", ge=0, le=8,
    )  # fmt: skip
    structured: bool = setting(True, "openai: demand replies of a JSON schema; else their shape is told in words only")
    prompts: CommaSeparated = setting(
        (), "openai: other words for a purpose, comma-separated: look=1 for that version, look=s3://b/my.v2.md for "
        "a file of yours; default: the newest version of each",
    )  # fmt: skip
    show_prompt: bool = setting(False, "print the words that go with this strategy, and stop", shapes_result=False)
    judge_model: str | None = setting(
        None, "openai: another model for the checks (look, reanswer, verdict); default: --model", min_length=1
    )
    frame: Literal["thousandths", "resized_pixels", "pixels", "padded_square", "fractions"] = setting(
        "thousandths", "openai: the numbers in which this model writes boxes; never guessed from how large they are"
    )
    min_pixels: int | None = setting(
        None, "openai: with --frame resized_pixels, the least pixels of the model's processor", unit="pixels", ge=1
    )
    max_pixels: int | None = setting(None, "openai: and the most", unit="pixels", ge=1)
    propose: bool = setting(True, "openai: it may point at what nobody annotated; what it proposes is checked")
    min_proposed_area: CommaSeparated = setting(
        ("0.0005",), "openai: proposed boxes cover this share of the image at least: 0.0005, or 0.0005,docvqa=0.001 by "
        "dataset; boxes that people drew are never measured", unit="0..1",
    )  # fmt: skip
    max_proposed_area: CommaSeparated = setting(("0.9",), "openai: and at most: 0.9, or 0.9,vsr=1", unit="0..1")
    self_consistency: bool = setting(
        True, "openai: a second proposal that does not know the first must agree (IoU 0.5)"
    )
    crop_check: bool = setting(True, "openai: a look at the cut-out must find the thing in it")
    negative_crop_share: float = setting(
        0.1, "openai: share of the looks that are followed by one at a place that does not show the thing; how often "
        "those pass is in the report", unit="0..1", ge=0, le=1,
    )  # fmt: skip
    detector_uri: str | None = setting(
        None, "openai: folder of a detector (Grounding DINO, OWLv2) that must find what is proposed; needs torch"
    )
    device: Device = setting("auto", f"openai, --detector-uri: {DEVICE}", shapes_result=False)
    answer_from_evidence: bool = setting(
        True, "openai: the answer must follow from the cut-outs of the evidence, and where they lie, alone"
    )
    answer_first: Literal["flag", "refuse"] = setting(
        "flag", "openai: what becomes of reasoning whose first sentence states the answer"
    )
    wrong_answers: Literal["refuse", "negatives"] = setting(
        "refuse", "openai: what becomes of reasoning that ends in another answer; negatives: it is refused, and the "
        "rejection holds it as a whole row with its wrong answer, to learn from",
    )  # fmt: skip
    bad_objects: Literal["refuse", "prose"] = setting(
        "refuse", "openai: what becomes of reasoning with an object that is refused; prose: it stays without that box"
    )
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
    dry_run: bool = setting(False, "openai: estimate requests, tokens, cost, time; send nothing", shapes_result=False)
    cache_uri: str | None = setting(
        None, "openai: where replies are kept; default: <parent of run-uri>/_cache/distill", shapes_result=False
    )

    @model_validator(mode="after")
    def _fit_the_teacher(self) -> Self:
        if self.teacher == "openai" and self.model is None:
            raise ValueError("--teacher openai needs --model (or VCOT_DISTILL_MODEL): the model to ask")
        for name in ("OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT") if self.teacher == "openai" else ():
            if without_credentials(address := os.environ.get(name, "")) != address:
                raise ValueError(f"{name}={address}: {CREDENTIALS}")
        if self.teacher == "template" and self.model is not None:
            raise ValueError(
                f"--model={self.model}: the template teacher asks no model; did you mean --teacher openai?"
            )
        if self.teacher == "template" and self.alternatives > self.phrasings:
            raise ValueError(
                f"--alternatives={self.alternatives}: the template has --phrasings {self.phrasings}, "
                "and alternatives must differ"
            )
        return self

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.frame == "resized_pixels" and (self.min_pixels is None or self.max_pixels is None):
            raise ValueError("--frame=resized_pixels needs --min-pixels and --max-pixels, the limits of the processor")
        for name in ("min_proposed_area", "max_proposed_area"):
            for entry in getattr(self, name):
                if not _SHARE.fullmatch(entry):
                    raise ValueError(
                        f"{flag(name)}: {entry!r} is no share of an image; write 0.0005, or 0.0005,docvqa=0.0001"
                    )
        return self


_SHARE = re.compile(r"(?:[^=,]+=)?(?:0?\.[0-9]+|[01](?:\.0*)?)")


def run(settings: DistillSettings) -> None:
    from vcot.distill import prompts
    from vcot.distill.runner import ModelTeacher, distil
    from vcot.records.metadata import DistillMetadata, DistillShardMetadata
    from vcot.records.shards import DISTILL, OF_SAMPLES, Folder, ShardWriter, read_marker, read_shard, run_shards
    from vcot.reports.distillation import report
    from vcot.storage import Store, join

    used: Sequence[Prompt] = ()
    if settings.teacher == "openai" or settings.show_prompt:
        from vcot.distill.strategy import prompts_of

        used = prompts_of(settings.strategy, settings.prompts)
    if settings.show_prompt:
        print("\n".join(f"--- {prompt.name}, version {prompt.version}\n{prompt.text}\n" for prompt in used))
        return
    store = Store()
    source = settings.input_uri or join(settings.run_uri, "convert")
    marker, inputs = read_marker(store, source, *OF_SAMPLES)
    inputs |= {uri: store.digest(uri) for uri in prompts.own(settings.prompts)}  # must not change within a run
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
            print(dry_run(settings, teacher, rows_of(everything)))
            return
        todo = [index for index in everything if folder.shard_marker(index) is None]
        try:
            if isinstance(teacher, ModelTeacher) and folder.marker() is None:
                folder.begin(settings, inputs)
                if settings.batch and settings.part in ("all", "prepare"):
                    from vcot.distill.batch import Batches

                    Batches(teacher, store, folder.uri).run(lambda: rows_of(everything))
                mine = [index for index in todo if settings.shard in (None, index)]
                teacher.progress.total = sum(marker.shards[index].row_counts.written for index in mine)
            run_shards(
                folder,
                settings,
                inputs=inputs,
                shards=len(marker.shards),
                work=work,
                max_rejected_share=settings.max_rejected_share,
                report=lambda markers, row_counts: report(folder, markers, row_counts, metadata),
                metadata=metadata,
                bar=not isinstance(teacher, ModelTeacher),  # which has a bar of its rows
            )
        except BudgetSpent as spent:
            from vcot.distill.estimate import the_rest

            assert isinstance(teacher, ModelTeacher)
            unfinished = rows_of(index for index in everything if folder.shard_marker(index) is None)
            raise BudgetSpent(f"{spent}. {the_rest(unfinished, marker.row_counts.written, teacher)}") from spent


@contextmanager
def teacher_of(settings: DistillSettings, folder: Folder) -> Iterator[Teacher]:
    if settings.teacher == "template":
        from vcot.distill import TemplateTeacher

        why = "" if "teacher" in settings.model_fields_set else "no --teacher is set: "
        logging.get().info(f"{why}the template writes the reasoning, from annotated boxes alone; no model is asked")
        yield TemplateTeacher(settings.phrasings, settings.alternatives, settings.seed)
        return

    from vcot.distill.budget import Ledger, budget_of, check_prices
    from vcot.distill.client import Failures, ReplyCache, TeacherClient
    from vcot.distill.endpoint import Endpoint
    from vcot.distill.images import ImagePacker
    from vcot.distill.prices import read_prices
    from vcot.distill.runner import ModelTeacher
    from vcot.distill.strategy import make

    store, prices = folder.store, read_prices(folder.store, settings.prices)
    budget = budget_of(settings.budget_usd, settings.budget_tokens, settings.budget_requests)
    if not settings.dry_run:
        check_prices(prices, (settings.model, settings.judge_model), budget)
    client = TeacherClient(
        Endpoint(at_once=settings.concurrency, timeout=settings.timeout),
        ReplyCache(store, settings.cache_uri or cache_of(settings.run_uri)),
        ImagePacker(store),
        prices,
        Ledger(store, folder.uri, budget),
        retries=settings.retries,
        failures=Failures(settings.max_failed_in_a_row, settings.max_rejected_share),
    )
    with ModelTeacher(
        make(settings.strategy, settings, store, detector_of(settings, store)), client, ahead=4 * settings.concurrency
    ) as teacher:
        yield teacher


def dry_run(settings: DistillSettings, teacher: Teacher, rows: Iterable[Sample]) -> str:
    if settings.teacher == "template":
        return "the template teacher asks nobody: nothing is to be paid"
    from vcot.distill.estimate import Estimate
    from vcot.distill.runner import ModelTeacher

    assert isinstance(teacher, ModelTeacher)
    estimate = Estimate(teacher)
    estimate.add(rows)
    return estimate.table(settings.concurrency)


def detector_of(settings: DistillSettings, store: Store) -> Detector | None:
    """Loaded only where one is named: it brings torch, which the data image does not have."""
    uri = settings.detector_uri
    if uri is None:
        return None
    if next(store.list(uri), None) is None:  # before torch, which takes seconds to load
        raise InputError(f"--detector-uri={uri}: there is nothing in that folder")
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


def cache_of(run_uri: str) -> str:
    """`<parent of the run>/_cache/distill`: replies outlive the run that paid for them."""
    from vcot.storage import join

    parent, _, name = run_uri.rstrip("/").rpartition("/")
    if parent.endswith("/") or not name:  # s3://bucket, or a folder of the root
        parent = run_uri.rstrip("/")
    return join(parent or ".", "_cache", DistillSettings.stage)


if __name__ == "__main__":
    launch(DistillSettings, run)
