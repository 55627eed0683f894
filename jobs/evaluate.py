"""How good is the tuned model, and would guessing do as well? `python -m jobs.evaluate`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from vcot.errors import GateFailed
from vcot.labels import Synonyms
from vcot.settings import DEVICE, CommaSeparated, Device, Settings, setting
from vcot.stage import launch, summary

if TYPE_CHECKING:
    from vcot.evaluation.evaluation import Ending
    from vcot.evaluation.finished import Finished
    from vcot.evaluation.replies import Interview
    from vcot.evaluation.speaker import Trained
    from vcot.evaluation.subject import Subject
    from vcot.records import Folder, Sample
    from vcot.storage import Store


class EvaluateSettings(Settings):
    """Asks the tuned model and its base the same questions, and measures answers and boxes. The base is asked twice: in
    the tuned model's form and in its own; what counts as before tuning is, figure by figure, the better.

    Each is asked with the real picture, with a blank one and with another row's; guesses made without looking
    stand beside them. Writes report.json and report.html (tables, pictures with true and predicted boxes, worst
    first), and prints the table. What the base says is kept beside the runs and not asked again.
    A quality gate that is not passed ends the stage with exit code 20, after the report was written.

    --promote makes a model that passes the one that --model promoted finds. Evaluated again on an occasion (a day, a
    scheduled Job), it is compared row by row with a baseline, and a clear fall ends with exit code 20 as well.
    """

    stage: ClassVar[str] = "evaluate"

    model: Literal["trained", "promoted"] = setting(
        "trained", "trained: the model of --train-uri; promoted: the newest promoted one, evaluated again below "
        "<run-uri>/<occasion>", shapes_result=False,
    )  # fmt: skip
    train_uri: str | None = setting(None, "finished stage with the tuned model; default: <run-uri>/train")
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
    promote: bool = setting(
        False, "promote the model. Gates: not worse than the base, and clearly better on the real pictures than on "
        "blank and wrong ones", shapes_result=False,
    )  # fmt: skip
    pointers_uri: str | None = setting(
        None, "where promotions are kept; default: <parent of run-uri>/pointers", shapes_result=False
    )
    pointer: str = setting(
        "latest", "which of several lines of promoted models", pattern=r"^[A-Za-z0-9][\w.-]*$", shapes_result=False
    )
    base_uri: str | None = setting(
        None, "where the base model lies, if no longer where train found it; must be the same to the byte",
        shapes_result=False,
    )  # fmt: skip
    base_form: Literal["auto", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "as-tuned"] = setting(
        "auto", "how the base points by itself: its family's frame, notation and prompt; auto: by its contract.json or "
        "config.json; as-tuned: ask it only in the tuned model's form, which it never learned"
    )  # fmt: skip
    cache_uri: str | None = setting(
        None, "where the base's replies are kept; default: <parent of run-uri>/_cache/evaluate", shapes_result=False
    )
    split: Literal["auto", "test", "validation", "train"] = setting(
        "auto", "the samples to ask about; auto: test where there is one, else validation"
    )
    limit: int | None = setting(None, "at most so many samples, drawn at random", unit="samples", ge=1)
    conditions: CommaSeparated = setting(
        ("real", "blank", "shuffled"), "pictures to show: real (always), blank, shuffled; separated by commas"
    )
    synonyms: CommaSeparated = setting(
        (), "labels that mean one thing, as wbc=white blood cell,cup=mug=beaker; without them labels are the same but "
        "for case, article, hyphens and plural",
    )  # fmt: skip
    max_new_tokens: int = setting(256, "longest reply; a longer one is judged as far as it goes", unit="tokens", ge=1)
    batch_size: int = setting(
        32, "questions asked at once; more is faster until memory is full", unit="questions", ge=1
    )
    rows_per_shard: int = setting(
        64, "questions after which replies are saved; a killed evaluation loses no more", unit="questions", ge=1
    )
    quantisation: Literal["as-trained", "none", "nf4"] = setting(
        "as-trained", "weights of the base in 4 bits (nf4) or as they are; as-trained: nf4 after qlora"
    )
    device: Device = setting("auto", DEVICE, shapes_result=False)
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "numbers to compute with; auto: bfloat16 where the device has it, else float32"
    )
    seed: int = setting(0, "which pictures are exchanged, which samples a limit draws, the bootstrap", ge=0)
    overlays: int = setting(
        60, "rows on the page with their pictures: all, or the worst and some at random", unit="rows", ge=0,
        shapes_result=False,
    )  # fmt: skip
    max_rejected_share: float = setting(
        0.05, "the stage fails when more of its questions cannot be asked (pictures missing)", unit="0..1", ge=0, le=1,
        shapes_result=False,
    )  # fmt: skip
    require_not_worse_than_base: bool = setting(
        False, "gate: neither acc@0.5 nor answers clearly below the base's, asked in the form in which it does better "
        "(95 % interval)",
        shapes_result=False,
    )  # fmt: skip
    min_accuracy_at_50: float | None = setting(
        None, "gate: share of true boxes found at IoU 0.5, at least", unit="0..1", ge=0, le=1, shapes_result=False
    )
    min_answer_accuracy: float | None = setting(
        None, "gate: share of right answers, at least", unit="0..1", ge=0, le=1, shapes_result=False
    )
    max_blank_accuracy: float | None = setting(
        None, "gate: share of true boxes found on blank pictures, at most", unit="0..1", ge=0, le=1,
        shapes_result=False,
    )  # fmt: skip

    @field_validator("conditions")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = ("real", "blank", "shuffled")
        if unknown := [name for name in value if name not in known]:
            raise ValueError(f"no such condition: {', '.join(unknown)}; there are {', '.join(known)}")
        if "real" not in value:
            raise ValueError("real must be among them: everything else is compared with it")
        return tuple(name for name in known if name in value)

    @field_validator("synonyms")
    @classmethod
    def _declared(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        Synonyms.of(value)
        return value

    @model_validator(mode="after")
    def _they_agree(self) -> Self:
        again = self.model == "promoted"
        if again and self.occasion is None:
            raise ValueError("--model promoted needs --occasion: today's date, say, or the name of the scheduled Job")
        if again and self.train_uri is not None:
            raise ValueError(f"--train-uri={self.train_uri}: --model promoted finds the model itself; leave one out")
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
    from vcot import log
    from vcot.records.shards import Folder
    from vcot.storage import Store

    store = Store()
    subject = _subject(settings, store)
    folder = Folder(store, subject.run_uri, settings.stage)
    if folder.whole(settings, subject.inputs) is None:
        if settings.part in ("all", "shards"):
            from vcot.models import use_device

            use_device(settings.device)  # before anything is fetched
        folder.begin(settings, subject.inputs)
        if settings.part == "prepare":
            return
        with contextlib.suppress(GateFailed):  # `_tell` shows the table and judges the gates again
            _evaluate(settings, store, folder, subject)
    elif subject.facts:
        log.get().info("this model was evaluated on these samples with this code for this occasion", **subject.facts)
    if settings.part in ("all", "finish", "look"):
        _tell(settings, store, folder, subject)


def _subject(settings: EvaluateSettings, store: Store) -> Subject:
    from vcot.evaluation import subject

    given = {"samples_uri": settings.samples_uri, "baseline_uri": settings.baseline_uri}
    if settings.model == "trained":
        return subject.trained(store, settings.run_uri, train_uri=settings.train_uri, **given)
    assert settings.occasion is not None
    asked = {"split": settings.split, "limit": settings.limit, "seed": settings.seed}
    return subject.promoted(
        store, settings.run_uri, pointer_uri=settings.pointer_uri, occasion=settings.occasion, asked=asked, **given
    )


def _evaluate(settings: EvaluateSettings, store: Store, folder: Folder, subject: Subject) -> None:
    from vcot.evaluation.evaluation import choose
    from vcot.evaluation.own_form import own_form
    from vcot.records import read_samples
    from vcot.records.shards import run_shards

    trained = _trained(settings, subject)
    form = own_form(store, trained.base_uri, settings.base_form, trained.contract)
    trained = dataclasses.replace(trained, own_form=form)
    every = read_samples(store, subject.samples.uri, subject.samples.mark)
    samples = choose(every, settings.split, settings.limit, settings.seed)
    with tempfile.TemporaryDirectory(prefix="evaluate-") as scratch:
        interview = _interview(settings, store, trained, samples, Path(scratch))
        ending = _ending(settings, store, folder, trained, samples, subject)
        run_shards(
            folder,
            settings,
            inputs=subject.inputs,
            shards=len(interview.units),
            work=interview.hold,
            max_rejected_share=settings.max_rejected_share,
            report=ending.report,
            facts={"model": trained.facts()},
        )


def _trained(settings: EvaluateSettings, subject: Subject) -> Trained:
    from vcot.evaluation.speaker import Trained

    return Trained.of(subject.train.uri, subject.train.mark, base_uri=settings.base_uri)


def _interview(
    settings: EvaluateSettings, store: Store, trained: Trained, samples: list[Sample], scratch: Path
) -> Interview:
    from vcot.evaluation.controls import partners
    from vcot.evaluation.replies import Interview, units
    from vcot.evaluation.speaker import Speaker
    from vcot.storage import join

    conditions = trained.conditions(settings.conditions)
    speaker = Speaker(
        store,
        trained,
        scratch,
        quantisation=_quantisation(settings, trained),
        dtype=settings.dtype,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
    )
    return Interview(
        store=store,
        samples=samples,
        partners=partners(samples, settings.seed) if "shuffled" in conditions else (),
        ask=speaker.ask,
        frame=trained.frame,
        units=units(len(samples), conditions, settings.rows_per_shard, native=trained.own_form is not None),
        cache_uri=settings.cache_uri or join(settings.parent_uri, "_cache", "evaluate"),
        asked_of_base=speaker.asked_of_base,
        asked_natively=speaker.asked_natively,
        native_frame=trained.native_frame,
        synonyms=Synonyms.of(settings.synonyms),
    )


def _ending(
    settings: EvaluateSettings,
    store: Store,
    folder: Folder,
    trained: Trained,
    samples: list[Sample],
    subject: Subject,
) -> Ending:
    from vcot import __version__
    from vcot.evaluation.evaluation import Ending
    from vcot.tokens import prompt_text

    contract = trained.contract
    made_with: dict[str, Any] = trained.facts() | {
        "tuned": f"{trained.tune}, {trained.uri}",
        "frame_of_boxes": contract.frame,
        "pixels_of_a_picture": f"{contract.min_pixels:,} to {contract.max_pixels:,} after resizing",
        "prompt_of_the_first_row": prompt_text(samples[0], contract.instruction),
        "own_form_of_the_base": "that of the tuned model" if trained.own_form is None else trained.own_form.to_dict(),
        "samples": subject.samples.uri,
        "max_new_tokens": settings.max_new_tokens,
        "batch_size": settings.batch_size,
        "quantisation": _quantisation(settings, trained),
        "dtype": settings.dtype,
        "synonyms": ", ".join(settings.synonyms) or "none",
        "seed": settings.seed,
        "vcot": __version__,
        **subject.facts,
    }
    return Ending(
        store, folder, samples, subject.samples.uri, subject.samples.mark, trained.frame, settings.overlays,
        settings.seed, made_with, gates=_gates(settings),
    )  # fmt: skip


def _gates(settings: EvaluateSettings) -> dict[str, Any]:
    return {
        "not_worse_than_base": settings.require_not_worse_than_base or settings.promote,
        "min_accuracy_at_50": settings.min_accuracy_at_50,
        "min_answer_accuracy": settings.min_answer_accuracy,
        "max_blank_accuracy": settings.max_blank_accuracy,
        "depends_on_picture": settings.promote,
    }


def _quantisation(settings: EvaluateSettings, trained: Trained) -> Literal["none", "nf4"]:
    return trained.quantisation if settings.quantisation == "as-trained" else settings.quantisation


def _tell(settings: EvaluateSettings, store: Store, folder: Folder, subject: Subject) -> None:
    """The table, and where the page is, on standard output; then the gates, and the promotion.

    Raises:
        GateFailed: a finished evaluation does not pass the gates of today, which may be others than it was made with.
    """
    from rich.console import Console

    from vcot.evaluation.gates import judge_gates, raise_if_failed
    from vcot.evaluation.table import headline, render
    from vcot.storage import join

    report = json.loads(store.read(join(folder.uri, "report.json")))
    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    page = join(folder.uri, "report.html")
    console.print(render(report))
    summary(**headline(report), **subject.facts)
    console.print(f"report with pictures: {page}", soft_wrap=True, highlight=False)
    gates = judge_gates(report, **_gates(settings))
    if subject.baseline is not None:
        gates += _compare(settings, store, folder, subject.baseline, report["made_with"])
        page = join(folder.uri, "comparison.md")
        console.print(f"comparison with the baseline: {page}", soft_wrap=True, highlight=False)
    raise_if_failed(gates, page)
    if settings.promote:
        _promote(settings, store, folder, subject, gates)


def _compare(
    settings: EvaluateSettings, store: Store, folder: Folder, baseline: Finished, made_with: dict[str, Any]
) -> list[dict[str, Any]]:
    """Writes comparison.json and comparison.md; returns their gates."""
    from vcot.evaluation import compare
    from vcot.storage import join

    comparison = compare.compare(
        compare.scores(store, folder.uri, folder.shard_marks()),
        compare.scores(store, baseline.uri, baseline.mark.shards),
        baseline=baseline,
        settings=settings.shaping(),
        max_left_out_share=settings.max_rejected_share,
        seed=settings.seed,
    )
    page = compare.markdown(comparison, made_with=made_with, page_uri=join(folder.uri, "report.html"))
    for name, text in (("json", json.dumps(comparison, indent=1, ensure_ascii=False) + "\n"), ("md", page)):
        _write_if_new(store, join(folder.uri, f"comparison.{name}"), text.encode())
    summary(regressions=comparison["regressions"], **compare.changes(comparison))
    return compare.gates(comparison)


def _write_if_new(store: Store, uri: str, data: bytes) -> None:
    if store.stat(uri) is None or store.read(uri) != data:
        store.write(uri, data)


def _promote(
    settings: EvaluateSettings, store: Store, folder: Folder, subject: Subject, gates: list[dict[str, Any]]
) -> None:
    from vcot.evaluation.finished import Finished
    from vcot.evaluation.promotion import promote

    trained = _trained(settings, subject)
    pointer = promote(
        store,
        settings.pointer_uri,
        train=subject.train,
        base={"uri": trained.base_uri, "sha256": trained.base_sha256},
        evaluation=Finished.at(store, folder.uri),
        samples=subject.samples,
        gates=[gate["words"] for gate in gates],
    )
    summary(promoted=pointer.uri)


if __name__ == "__main__":
    launch(EvaluateSettings, run)
