"""How good is a model, and would guessing do as well? `python -m jobs.evaluate`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from vcot.errors import GateFailed, SettingsError
from vcot.evaluation.config import EvaluationConfig
from vcot.settings import CommaSeparated, Settings, setting
from vcot.stage import launch, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from vcot.evaluation.compare import Run
    from vcot.evaluation.subjects import Subject
    from vcot.records import Folder
    from vcot.records.metadata import EvaluateMetadata, EvaluateShardMetadata
    from vcot.storage import Store

    EvaluateFolder = Folder[EvaluateShardMetadata, EvaluateMetadata]


OF_A_MODEL = (
    "subject", "occasion", "samples_uri", "judge", "probe", "promote", "require_not_worse_than_base",
    "min_accuracy_at_50", "min_answer_accuracy", "max_blank_accuracy",
)  # fmt: skip
"""What a comparison does not look at."""


class EvaluateSettings(EvaluationConfig, Settings):
    """Asks a model questions (one that train made, any checkpoint, or an endpoint), and measures answers and boxes. One
    that was tuned stands beside its base, which is asked twice: in the tuned model's form and in its own; what counts
    as before tuning is, figure by figure, the better.

    Each is asked with the real image, with a blank one and with another row's; guesses made without looking
    stand beside them. Writes report.json and report.html (tables, failures by their cause with images and boxes), and
    prints the table. Replies are kept beside the runs and not asked again. With --compare it asks nothing and puts
    finished evaluations side by side.
    A quality gate that is not passed ends the stage with exit code 20, after the report was written.

    --promote makes a model that passes the one that --model promoted finds. Evaluated again on an occasion (a day, a
    scheduled Job), it is compared row by row with a baseline, and a clear fall ends with exit code 20 as well.
    """

    stage: ClassVar[str] = "evaluate"

    model: Literal["trained", "promoted"] = setting(
        "trained", "trained: the model of --subject; promoted: the newest promoted one, evaluated again below "
        "<run-uri>/<occasion>", shapes_result=False,
    )  # fmt: skip
    subject: str | None = setting(
        None, "what is evaluated: a finished train stage, a folder with any model (config.json and safetensors), or an "
        "endpoint as https://host:8000/v1#served-name; default: <run-uri>/train"
    )  # fmt: skip
    samples_uri: str | None = setting(
        None, "finished stage with the Samples; default: <run-uri>/convert, or those that the promoted model passed on"
    )
    occasion: str | None = setting(
        None, "with --model promoted, what this evaluation is for: a date, or the name of a scheduled Job; the same "
        "model, samples and code are evaluated once for each", pattern=r"^[A-Za-z0-9][\w.:-]*$", shapes_result=False,
    )  # fmt: skip
    compare: CommaSeparated = setting(
        (), "finished evaluations (or runs that have one) to put side by side, the others against the first, into "
        "<run-uri>/comparison; no model is asked; separated by blanks or commas", shapes_result=False,
    )  # fmt: skip
    fail_if_worse_than: str | None = setting(
        None, "gate: finished evaluation (or run) of the same samples, than which this one, or those of --compare, "
        "must not be clearly worse (95 % interval); default: none, or with --model promoted the evaluation that made "
        "the first promotion", shapes_result=False,
    )  # fmt: skip
    common: bool = setting(
        False, "where compared evaluations have different rows: compare those that they share", shapes_result=False
    )
    pointers_uri: str | None = setting(
        None, "where promotions are kept; default: <parent of run-uri>/pointers", shapes_result=False
    )
    pointer: str = setting(
        "latest", "which of several lines of promoted models", pattern=r"^[A-Za-z0-9][\w.-]*$", shapes_result=False
    )
    cache_uri: str | None = setting(
        None,
        "where replies are kept, of all models; default: <parent of run-uri>/_cache/evaluate",
        shapes_result=False,
    )

    @model_validator(mode="after")
    def _they_agree(self) -> Self:
        again = self.model == "promoted"
        if again and self.occasion is None:
            raise ValueError("--model promoted needs --occasion: today's date, say, or the name of the scheduled Job")
        if again and self.subject is not None:
            raise ValueError(f"--subject={self.subject}: --model promoted finds the model itself; leave one out")
        if again and self.promote:
            raise ValueError("--promote: with --model promoted there is nothing to promote; leave one out")
        if self.compare and (asked := [name for name in OF_A_MODEL if getattr(self, name)]):
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
            raise ValueError(f"--compare asks no model, and its gate is --fail-if-worse-than; leave out {flags}")
        if self.common and not (self.compare or self.fail_if_worse_than or again):
            raise ValueError("--common: there is nothing to compare; name it with --compare or --fail-if-worse-than")
        if self.occasion is not None and not again:
            raise ValueError(f"--occasion={self.occasion}: has a meaning only with --model promoted")
        if not self.ask_base and (self.promote or self.require_not_worse_than_base):
            gate = "--promote" if self.promote else "--require-not-worse-than-base"
            raise ValueError(f"{gate} compares with the base, which --no-ask-base leaves out")
        if self.promote and (missing := {"blank", "shuffled"} - set(self.conditions)):
            raise ValueError(f"--promote: its gate needs the conditions {' and '.join(sorted(missing))} as well")
        return self

    @property
    def pointer_uri(self) -> str:
        return f"{(self.pointers_uri or f'{self.parent_uri}/pointers').rstrip('/')}/{self.pointer}"

    @property
    def parent_uri(self) -> str:
        parent = self.run_uri.rstrip("/").rpartition("/")[0]
        return (parent if parent.endswith("://") else parent.rstrip("/")) or "."


def run(settings: EvaluateSettings) -> None:
    # Where cores are shared, threads that spin while they wait make a small model ten times slower. Must be set
    # before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vcot import logging
    from vcot.evaluation import subjects
    from vcot.records.shards import EVALUATE, Folder
    from vcot.storage import Store

    store = Store()
    if settings.compare:
        _compare(settings, store)
        return
    given = {"samples_uri": settings.samples_uri, "fail_if_worse_than": settings.fail_if_worse_than}
    if settings.occasion is None:
        subject = subjects.subject_at(store, settings.run_uri, settings.subject, **given)
    else:
        subject = subjects.promoted(
            store, settings.run_uri, pointer_uri=settings.pointer_uri, occasion=settings.occasion,
            asked={
                "split": settings.split, "max_samples": settings.max_samples, "seed": settings.seed,
                **({"suite": settings.suite} if settings.suite else {}),
            }, **given,
        )  # fmt: skip
    if not settings.ask:
        settings = EvaluateSettings.of(settings.model_dump() | {"ask": subject.ways})
    if subject.train is None and (settings.require_not_worse_than_base or settings.promote):
        gate = "--promote" if settings.promote else "--require-not-worse-than-base"
        raise SettingsError(f"{gate}: {subject.uri} was not made by train, so there is no base to compare it with")
    for flag, uri in (("--subject", subject.uri), ("--judge", settings.judge)):
        if uri is not None and (subjects.is_endpoint(uri) or flag == "--judge"):
            from vcot.distill.endpoint import address_and_name

            address_and_name(uri, flag)  # what is not well written is refused before the run holds to it
    folder = Folder(store, subject.run_uri, EVALUATE)
    if folder.whole(settings, subject.inputs) is None:
        if settings.part in ("all", "shards"):
            from vcot.models.device import use_device

            if not subjects.is_endpoint(subject.uri):
                use_device(settings.device)  # before anything is fetched
        folder.begin(settings, subject.inputs)
        if settings.part == "prepare":
            return
        with contextlib.suppress(GateFailed):  # the gates are judged again below, after the table
            _ask(settings, store, folder, subject)
    elif subject.metadata:
        said = "this model was evaluated on these samples with this code for this occasion"
        logging.get().info(said, **subject.metadata)
    if settings.part in ("all", "finish", "look"):
        gates = _show(settings, store, folder, subject)
        if settings.promote:
            assert subject.train is not None
            trained = subject.train.marker.metadata
            pointer = subjects.promote(
                store, settings.pointer_uri, train=subject.train, samples=subject.samples,
                base={"uri": settings.base_uri or trained.base_uri, "sha256": trained.base_sha256},
                evaluation=subjects.Finished.at(store, folder.uri, EVALUATE), gates=[gate["words"] for gate in gates],
            )  # fmt: skip
            summary(promoted=pointer.uri)


def _ask(settings: EvaluateSettings, store: Store, folder: EvaluateFolder, subject: Subject) -> None:
    from vcot.evaluation.evaluation import Evaluation, models_of
    from vcot.records.metadata import EvaluateMetadata
    from vcot.records.shards import run_shards
    from vcot.storage import join

    cache_uri = settings.cache_uri or join(settings.parent_uri, "_cache", "evaluate")
    with contextlib.ExitStack() as within:
        scratch = within.enter_context(tempfile.TemporaryDirectory(prefix="evaluate-"))
        models = within.enter_context(models_of(store, subject, settings, cache_uri=cache_uri, scratch=Path(scratch)))
        evaluation = Evaluation(store, folder, subject, settings, models, cache_uri=cache_uri)
        trained = None if subject.train is None else subject.train.marker.metadata
        run_shards(
            folder, settings, inputs=subject.inputs, shards=len(evaluation.runner.units), work=evaluation.runner.run,
            max_rejected_share=settings.max_rejected_share, report=evaluation.report,
            metadata=EvaluateMetadata(
                subject=subject.uri, base=trained and trained.base_uri, base_sha256=trained and trained.base_sha256
            ),
        )  # fmt: skip


def _show(settings: EvaluateSettings, store: Store, folder: EvaluateFolder, subject: Subject) -> list[dict[str, Any]]:
    """The table, and where the page is, on standard output; then the gates that were passed. Raises GateFailed: a
    finished evaluation does not pass the gates of today, which may be others than it was made with."""
    from vcot.evaluation import gates, page
    from vcot.evaluation.compare import Run
    from vcot.storage import join, read_json

    report = read_json(store, join(folder.uri, "report.json"), dict, f"delete {folder.uri} and run the stage again")
    console = _console()
    page_uri = join(folder.uri, "report.html")
    console.print(page.table(report))
    for table in page.further_tables(report):
        console.print(table)
    summary(**page.headline(report), **subject.metadata)
    console.print(f"report with images: {page_uri}", soft_wrap=True, highlight=False)
    judged = gates.judge_gates(report, settings)
    if subject.baseline is not None:
        now = Run.read(store, "now", folder.uri, settings.fingerprint(), folder.shard_markers())
        comparison, page_uri = _compared(
            settings, store, folder.uri, [Run.of(store, "baseline", subject.baseline), now]
        )
        judged += gates.judge_comparison(comparison)
    gates.raise_if_failed(judged, page_uri)
    return judged


def _compare(settings: EvaluateSettings, store: Store) -> None:
    """Raises GateFailed: one of them is worse than --fail-if-worse-than."""
    from vcot.evaluation import compare, gates, subjects
    from vcot.storage import join

    wanted = filter(None, (settings.fail_if_worse_than, *settings.compare))
    found = {each.uri: each for each in (subjects.evaluation_at(store, uri) for uri in wanted)}
    if len(found) == 1:
        raise SettingsError(f"--compare {' '.join(settings.compare)}: one evaluation alone; name another one as well")
    named = zip(compare.names([*found]), found.values(), strict=True)
    runs = [compare.Run.of(store, name, each) for name, each in named]
    comparison, page_uri = _compared(settings, store, join(settings.run_uri, "comparison"), runs)
    if settings.fail_if_worse_than:
        gates.raise_if_failed(gates.judge_comparison(comparison), page_uri)


def _compared(settings: EvaluateSettings, store: Store, uri: str, runs: Sequence[Run]) -> tuple[dict[str, Any], str]:
    """The comparison, written below `uri` and told on standard output, and where its page is."""
    from vcot.evaluation import compare, comparison_page

    samples = compare.samples_of(store, runs)
    comparison = compare.compare(
        runs, samples, max_left_out_share=settings.max_rejected_share, seed=settings.seed, common=settings.common
    )
    page_uri = comparison_page.write(store, uri, comparison, runs, samples, most=settings.overlays)
    console = _console()
    for table in comparison_page.tables(comparison):
        console.print(table)
    for sentence in comparison_page.sentences(comparison):
        console.print(sentence, soft_wrap=True, highlight=False)
    summary(**comparison_page.headline(comparison))
    console.print(f"comparison with images: {page_uri}", soft_wrap=True, highlight=False)
    return comparison, page_uri


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=110)


if __name__ == "__main__":
    launch(EvaluateSettings, run)
