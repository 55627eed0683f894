"""How good is the tuned model, and would guessing do as well? `python -m jobs.evaluate`."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from vcot.errors import GateFailed, SettingsError
from vcot.evaluation.config import EvaluationConfig
from vcot.settings import Settings, setting
from vcot.stage import launch, summary

if TYPE_CHECKING:
    from vcot.evaluation.subjects import Subject
    from vcot.records import Folder
    from vcot.records.metadata import EvaluateMetadata, EvaluateShardMetadata
    from vcot.storage import Store

    EvaluateFolder = Folder[EvaluateShardMetadata, EvaluateMetadata]


class EvaluateSettings(EvaluationConfig, Settings):
    """Asks the tuned model and its base the same questions, and measures answers and boxes. The base is asked twice: in
    the tuned model's form and in its own; what counts as before tuning is, figure by figure, the better.

    Each is asked with the real image, with a blank one and with another row's; guesses made without looking
    stand beside them. Writes report.json and report.html (tables, images with true and predicted boxes, worst
    first), and prints the table. What the base says is kept beside the runs and not asked again.
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
    baseline_uri: str | None = setting(
        None, "gate: finished evaluation of the same samples, than which this one must not be clearly worse (95 % "
        "interval); default: none, or with --model promoted the one that made the first promotion",
        shapes_result=False,
    )  # fmt: skip
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
        if self.occasion is not None and not again:
            raise ValueError(f"--occasion={self.occasion}: has a meaning only with --model promoted")
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
    given = {"samples_uri": settings.samples_uri, "baseline_uri": settings.baseline_uri}
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
    if subject.train is None and (settings.require_not_worse_than_base or settings.promote):
        gate = "--promote" if settings.promote else "--require-not-worse-than-base"
        raise SettingsError(f"{gate}: {subject.uri} was not made by train, so there is no base to compare it with")
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
    from rich.console import Console

    from vcot.evaluation import compare, page
    from vcot.storage import join

    report = json.loads(store.read(join(folder.uri, "report.json")))
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    page_uri = join(folder.uri, "report.html")
    console.print(page.table(report))
    for table in page.further_tables(report):
        console.print(table)
    summary(**page.headline(report), **subject.metadata)
    console.print(f"report with images: {page_uri}", soft_wrap=True, highlight=False)
    gates = compare.judge_gates(report, settings)
    if subject.baseline is not None:
        comparison = compare.write_comparison(folder, report, subject.baseline, settings, settings.fingerprint())
        changes = compare.changes(comparison).items()
        summary(
            regressions=comparison["regressions"],
            **{f"change_{name}": [change["value"], change["low"], change["high"]] for name, change in changes},
        )
        gates += compare.comparison_gates(comparison)
        page_uri = join(folder.uri, "comparison.md")
        console.print(f"comparison with the baseline: {page_uri}", soft_wrap=True, highlight=False)
    compare.raise_if_failed(gates, page_uri)
    return gates


if __name__ == "__main__":
    launch(EvaluateSettings, run)
