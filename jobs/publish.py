"""A trained model, ready to hand out and to serve, and whether a server really applies it: `python -m jobs.publish`."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from vcot.errors import GateFailed, InputError, SettingsError
from vcot.settings import DEVICE, Declared, Device, setting
from vcot.stage import launch, summary

if TYPE_CHECKING:
    from vcot.records import StageMarker
    from vcot.records.metadata import TrainMetadata
    from vcot.storage import Store
    from vcot.tokens import Encoder
    from vcot.training.agreement import Agreement
    from vcot.training.asking import Question
    from vcot.training.card import Data


class PublishSettings(Declared):
    """Writes a folder to hand out or to serve: the adapter of a finished training, or with --merge the weights of its
    base with the adapter merged into them, in bfloat16, as vLLM and transformers load them. Beside them the tokenizer,
    the processor, contract.json, and README.md, the model card.

    Merging goes tensor by tensor and needs no GPU; the result is then held against base + adapter on questions of the
    run, and is not published (exit code 20) where it says something else. A folder that is whole is not made again,
    its card is.

    --verify-served asks a server, which may have taken an adapter and apply nothing of it: exit code 0 only if its
    log-probabilities are those of base + adapter, and clearly not those of the base.
    """

    stage: ClassVar[str] = "publish"

    train_uri: str = setting(description="finished train stage, as s3://bucket/runs/name/train", min_length=1)
    merge: bool = setting(False, "merge the adapter into the weights of the base")
    to_uri: str | None = setting(
        None, "where the folder shall lie; default: <train-uri>/../publish/adapter, with --merge …/merged, of a fully "
        "tuned model …/model"
    )  # fmt: skip
    evaluation_uri: str | None = setting(
        None,
        "finished evaluation whose numbers the card shows; default: <train-uri>/../evaluate, if it is of this model",
    )
    base_uri: str | None = setting(
        None, "another place of the same base; default: the one that it was trained from", existing_folder=True
    )
    verify_served: str | None = setting(
        None, "publish nothing, but ask this server: https://host:8000/v1#served-name; key: OPENAI_API_KEY"
    )
    questions: int = setting(
        4, "asked of both models that are compared; 0, with --merge: merge without comparing", unit="questions", ge=0,
        le=100,
    )  # fmt: skip
    dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto",
        "numbers to compute with where models are compared; auto: bfloat16 where the device has it, else float32",
    )
    device: Device = setting("auto", DEVICE)

    @model_validator(mode="after")
    def _they_agree(self) -> PublishSettings:
        if self.verify_served is not None and (self.merge or self.to_uri):
            raise ValueError("--verify-served publishes nothing: leave out --merge and --to-uri, or run it twice")
        if self.verify_served is not None and not self.questions:
            raise ValueError("--questions=0: --verify-served has to ask something")
        return self

    @property
    def run_name(self) -> str:
        return self.run_uri.rpartition("/")[2]

    @property
    def run_uri(self) -> str:
        return self.train_uri.rstrip("/").rpartition("/")[0] or "."


@dataclass(frozen=True)
class Trained:
    """A finished training, and what it was made of."""

    uri: str
    sha256: str
    marker: StageMarker[Any, TrainMetadata]
    data: Data


def run(settings: PublishSettings) -> None:
    # Where cores are shared, threads that spin while they wait make a small model ten times slower. Must be set
    # before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from vcot.distill.endpoint import address_and_name
    from vcot.records.shards import TRAIN, read_marker
    from vcot.storage import Store
    from vcot.training.card import data_of

    if settings.verify_served is not None:
        address_and_name(settings.verify_served, "--verify-served")
    store, uri = Store(), settings.train_uri.rstrip("/")
    marker, digests = read_marker(store, uri, TRAIN)
    (sha256,) = digests.values()
    if settings.merge and marker.metadata.tune == "full":
        raise SettingsError(f"--merge: {uri} has tuned all weights and has no adapter; leave it out")
    trained = Trained(uri, sha256, marker, data_of(store, uri, marker, settings.questions))
    with tempfile.TemporaryDirectory(prefix="publish-", ignore_cleanup_errors=True) as scratch:
        if settings.verify_served is None:
            _publish(settings, store, trained, Path(scratch))
        else:
            _verify(settings, store, trained, Path(scratch))


# --- publishing --------------------------------------------------------------------------------------------


def _publish(settings: PublishSettings, store: Store, trained: Trained, scratch: Path) -> None:
    from vcot import logging
    from vcot.storage import join, read_json
    from vcot.storage.folders import fetch_files, fetch_folder, push_folder
    from vcot.tokens import is_processor_file
    from vcot.training.card import PUBLISHED, base_licence, model_card, published_there

    metadata = trained.marker.metadata
    kind: Literal["adapter", "merged", "model"] = (
        "merged" if settings.merge else "model" if metadata.tune == "full" else "adapter"
    )
    to_uri = settings.to_uri or join(settings.run_uri, "publish", kind)
    base_uri = settings.base_uri or metadata.base_uri
    said = published_there(store, to_uri, trained.sha256, kind)
    if said is None:
        tuned = fetch_files(store, join(trained.uri, metadata.model), metadata.files, scratch / "tuned")
        folder, found = (tuned, dict[str, Any]())
        if settings.merge:
            folder = scratch / "merged"
            found = _merge(settings, store, trained, tuned, folder, scratch)
        said = {"kind": kind, "train_uri": trained.uri, "train_sha256": trained.sha256, **found}
        (folder / PUBLISHED).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
        names = [path.name for path in folder.iterdir() if path.is_file()]
        push_folder(store, folder, to_uri, names)
    elif settings.merge and settings.questions and "agreement" not in said:
        raise SettingsError(
            f"{to_uri} was merged with --questions 0 and is not held against base + adapter any more; give another "
            "--to-uri, or --questions 0 for its card alone"
        )
    else:
        logging.get().info("nothing left to do but the card: this folder is whole", uri=to_uri)
    readme = fetch_folder(
        store, base_uri, scratch / "readme", lambda name: name == "README.md" or is_processor_file(name)
    )
    numbers, measured = _numbers(settings, store, trained)
    card = model_card(
        published=said, uri=to_uri, marker=trained.marker,
        settings=read_json(store, join(trained.uri, "settings.json"), itemgetter("all_settings")), data=trained.data,
        base_licence=base_licence(readme), numbers=numbers, measured=measured,
    )  # fmt: skip
    store.write(join(to_uri, "README.md"), card.encode())
    summary(kind=kind, uri=to_uri)
    logging.get().info("published", kind=kind, uri=to_uri)


def _merge(
    settings: PublishSettings, store: Store, trained: Trained, tuned: Path, out: Path, scratch: Path
) -> dict[str, Any]:
    from vcot.models.device import use_device
    from vcot.training.release import merged_folder

    use_device(settings.device)
    base = _base(settings, store, trained, scratch)
    encoder = _encoder(base, trained)
    questions = _questions(store, trained, encoder) if settings.questions else []
    said, found = merged_folder(base, tuned, trained.marker.metadata, questions, encoder, out, settings.dtype)
    if found is not None:
        _print(found, "merged")
        print(f"greedy replies: {found.same} of {found.replies} the same, token for token")
    return said


def _numbers(settings: PublishSettings, store: Store, trained: Trained) -> tuple[str, str]:
    """The table of an evaluation of this very training, and what it is from; empty where there is none.

    Raises InputError: --evaluation-uri is of another model.
    """
    from vcot.evaluation import page
    from vcot.evaluation.subjects import evaluation_at, evaluation_of
    from vcot.storage import join, read_json

    found = evaluation_of(store, trained.uri, trained.sha256, settings.evaluation_uri)
    if found is None:
        if settings.evaluation_uri is None:
            return "", ""
        other = evaluation_at(store, settings.evaluation_uri)
        raise InputError(
            f"--evaluation-uri={other.uri} is of {other.marker.metadata.subject}, not of {trained.uri} as it is now"
        )
    report = read_json(store, join(found.uri, "report.json"), dict)
    return page.markdown(report), f"By `python -m jobs.evaluate`; `{join(found.uri, 'report.html')}` shows images."


# --- verifying ---------------------------------------------------------------------------------------------


def _verify(settings: PublishSettings, store: Store, trained: Trained, scratch: Path) -> None:
    """Raises GateFailed: the server does not apply what was trained."""
    from vcot.distill.endpoint import address_and_name
    from vcot.models.device import use_device
    from vcot.storage import join
    from vcot.storage.folders import fetch_files
    from vcot.training.agreement import TunedModel, check_served
    from vcot.training.asking import served_replies

    assert settings.verify_served is not None
    address, name = address_and_name(settings.verify_served, "--verify-served")
    metadata = trained.marker.metadata
    use_device(settings.device)
    base = _base(settings, store, trained, scratch)
    encoder = _encoder(base, trained)
    said = served_replies(address, name, _questions(store, trained, encoder), encoder)
    tuned = fetch_files(store, join(trained.uri, metadata.model), metadata.files, scratch / "tuned")
    found = check_served(TunedModel(base, tuned, metadata.tune, settings.dtype), said)
    _print(found, "server")
    summary(verdict=found.verdict, to_ours=round(found.to_ours.mean, 4), to_base=round(found.to_base.mean, 4))
    if found.verdict == "ours":
        print(f"{name} is served as it was trained")
        return
    raise GateFailed(f"--verify-served {settings.verify_served}: {_what_is_wrong(found, metadata.tune, tuned)}")


def _what_is_wrong(found: Agreement, tune: str, tuned: Path) -> str:
    if found.verdict == "cannot tell":
        return (
            f"these replies cannot tell base and tuned model apart (log-probabilities differ by {found.apart.mean:.3g} "
            "on average); ask more --questions, or train for longer"
        )
    if found.verdict == "neither":
        return (
            "the server answers neither as this model nor as its base: other weights, a base in 4 or 8 bits, or "
            "processed log-probabilities (vLLM: --logprobs-mode raw_logprobs)"
        )
    if tune == "full":
        return "the server answers as the base does, not as the tuned model; is the name that of the base?"
    from safetensors import safe_open

    with safe_open(tuned / "adapter_model.safetensors", "pt") as stored:
        name = min(stored.keys())
    return (
        "the server answers as the base does: the adapter changes nothing there. Is the name that of the adapter, and "
        f"not of the base? Its tensors are named {name} and so on: a server that loads them for a model with other "
        "names, or a family without LoRA, applies none and says nothing; serve the merged weights (--merge)"
    )


# --- of both -----------------------------------------------------------------------------------------------


def _base(settings: PublishSettings, store: Store, trained: Trained, scratch: Path) -> Path:
    """Raises InputError: it is not the base that was trained on."""
    from vcot.storage.folders import fetch_base

    metadata = trained.marker.metadata
    return fetch_base(store, settings.base_uri or metadata.base_uri, metadata.base_sha256, scratch / "base")


def _encoder(base: Path, trained: Trained) -> Encoder:
    from vcot.tokens import Encoder, load_processor

    contract = trained.marker.metadata.contract
    return Encoder(load_processor(base, min_pixels=contract.min_pixels, max_pixels=contract.max_pixels), contract)


def _questions(store: Store, trained: Trained, encoder: Encoder) -> list[Question]:
    from vcot.training.asking import Question

    return [Question.of(store, sample, encoder) for sample in trained.data.questions]


def _print(found: Agreement, what: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("difference of log-probabilities", "mean", "largest", box=None, title_justify="left")
    table.title = f"{found.tokens} tokens of {found.replies} greedy replies; in nats"
    for name, one in found.rows(what):
        table.add_row(name, f"{one.mean:.4f}", f"{one.largest:.4f}")
    console = Console()
    (console if console.is_terminal else Console(width=110)).print(table)


if __name__ == "__main__":
    launch(PublishSettings, run)
