"""What is evaluated, on what, and where the result goes: settled once, before anything is asked.

The model of this run, or of a stage that is named, is evaluated at ``<run>/evaluate``. An evaluation that a model has
passed can promote it: it appends to a pointer, and nothing moves and nothing is overwritten.

    <pointers>/<name>/0000000001.json    the first promoted model: a vcot.records.reply.Promotion
                      0000000002.json    the next; the highest number is the one that counts

The newest promoted model is evaluated again on each occasion:

    <run>/20261121T0317Z/latest.json          which promotion this occasion found; the first process to look decides
                         3f9a…/evaluate/…     one folder per model, samples and code: the stage as ever, and
                               comparison.json, comparison.md
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic

from pydantic import ValidationError
from typing_extensions import TypeVar

from vcot import __version__, logging
from vcot.errors import InputError
from vcot.grounding.ways import LearnedWay
from vcot.records import StageMarker
from vcot.records.base import Record
from vcot.records.metadata import EvaluateMetadata, TrainMetadata
from vcot.records.reply import Promotion
from vcot.records.shards import DONE, EVALUATE, OF_SAMPLES, TRAIN, StageKind, read_marker
from vcot.storage import NotFound, Store, append, confirmed, join, name, numbered, read_json
from vcot.storage.folders import folder_digest
from vcot.storage.names import first_fault

_SINCE = 26_297_280  # 2020-01-01 in minutes since 1970: smaller numbers of eight digits are dates, as 20261121

M = TypeVar("M", bound=Record, default=Record, covariant=True)


@dataclass(frozen=True)
class Finished(Generic[M]):
    """A finished stage: its place, its marker, and the digest of the marker, which names every file of it by digest."""

    uri: str
    marker: StageMarker[Record, M]
    sha256: str

    @classmethod
    def at(cls, store: Store, uri: str, *kinds: StageKind[Record, M]) -> Finished[M]:
        """kinds: the stages that will do."""
        marker, digests = read_marker(store, uri, *kinds)
        (sha256,) = digests.values()
        return cls(uri, marker, sha256)

    @property
    def input(self) -> dict[str, str]:
        """URI of the marker → digest, as stages record what they have read."""
        return {join(self.uri, DONE): self.sha256}


# --- pointers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pointer:
    """One promotion as it lies in storage."""

    uri: str
    sha256: str
    promotion: Promotion

    @classmethod
    def at(cls, store: Store, uri: str) -> Pointer:
        def attempt() -> Pointer:
            data = store.read(uri)
            try:
                return cls(uri, hashlib.sha256(data).hexdigest(), Promotion.model_validate_json(data))
            except ValidationError as error:
                raise InputError(f"{uri} is not a promotion: {first_fault(error)}") from None

        return confirmed(uri, attempt)


def promote(
    store: Store, pointer_uri: str, *, train: Finished, base: Mapping[str, str], evaluation: Finished,
    samples: Finished, gates: Sequence[str],
) -> Pointer:  # fmt: skip
    """Appends a model to the pointer ``<pointers>/<name>``, unless this very evaluation has done so already.

    An evaluation that is run again (the chain was started twice) must not bring its model back over a newer one.
    base: uri and sha256. gates: what the model has passed, in words.
    """
    promotion = Promotion(
        train_uri=train.uri,
        train_sha256=train.sha256,
        base_uri=base["uri"],
        base_sha256=base["sha256"],
        evaluation_uri=evaluation.uri,
        evaluation_sha256=evaluation.sha256,
        report_sha256=store.digest(join(evaluation.uri, "report.json")),
        samples_uri=samples.uri,
        samples_sha256=samples.sha256,
        gates=tuple(gates),
        code=__version__,
        promoted=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    data = promotion.model_dump_json(indent=1).encode() + b"\n"
    while True:
        there = numbered(store, pointer_uri)
        last = max(there, default=0)  # not how many there are: somebody may have deleted one
        for pointer in (Pointer.at(store, uri) for uri in there.values()):
            if pointer.promotion.evaluation_sha256 == evaluation.sha256:
                logging.get().info("promoted by this evaluation already", pointer=pointer.uri, newest=there[last])
                return pointer
        if (uri := append(store, pointer_uri, data, after=last)) is not None:
            logging.get().info("promoted", model=train.uri, pointer=uri)
            return Pointer(uri, hashlib.sha256(data).hexdigest(), promotion)


def newest(store: Store, pointer_uri: str) -> Pointer:
    """The promotion that counts now. Raises InputError: nothing was promoted yet."""
    there = promotions(store, pointer_uri)
    return Pointer.at(store, there[max(there)])


def promotions(store: Store, pointer_uri: str) -> dict[int, str]:
    """Number → URI of all promotions, at least one. Raises NotFound: nothing was promoted yet."""

    def attempt() -> dict[int, str]:
        if there := numbered(store, pointer_uri):
            return there
        raise NotFound(
            f"{pointer_uri}: no model was promoted yet; run a chain with VCOT_EVALUATE_PROMOTE=true, which writes "
            f"{join(pointer_uri, '0000000001.json')} when its model passes"
        )

    return confirmed(pointer_uri, attempt)


def promotion_at(store: Store, uri: str, pinned: str | None = None) -> Pointer:
    """One promotion, where `uri` names it (``…/latest/0000000001.json``); of a line of them (``…/latest``) the one that
    is pinned, where it is of this line, else the newest. Raises InputError: there is none."""
    line = uri.rstrip("/")
    if not line.endswith(".json"):
        if pinned is None or not pinned.startswith(line + "/"):
            return newest(store, line)
        line = pinned
    try:
        return Pointer.at(store, line)
    except NotFound:
        raise InputError(f"{line}: there is no such promotion") from None


# --- what is evaluated -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """`run_uri`: the result goes to ``<run_uri>/evaluate``. `uri`, `sha256`: of the finished train stage, or of the
    folder of a checkpoint that no stage of ours has made (`train` is None then). `metadata`: how the model was found,
    for the report."""

    run_uri: str
    uri: str
    sha256: str
    train: Finished[TrainMetadata] | None
    samples: Finished
    baseline: Finished | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def ways(self) -> tuple[LearnedWay, ...]:
        """Of answering, that it has learned."""
        return ("ground",) if self.train is None else self.train.marker.metadata.contract.ways


def evaluation_at(store: Store, uri: str) -> Finished[EvaluateMetadata]:
    """A finished evaluation: the stage itself, or the run that has one. Raises InputError: there is none."""
    uri = uri.rstrip("/")
    return Finished.at(store, uri if store.stat(join(uri, DONE)) is not None else join(uri, EVALUATE.name), EVALUATE)


def evaluation_of(store: Store, train_uri: str, train_sha256: str, uri: str | None = None) -> Finished | None:
    """A finished evaluation of this very model: the one at `uri`, else the one beside its train stage; None: it is of
    another. Raises InputError: there is none at `uri`."""
    if uri is None:
        uri = join(train_uri.rpartition("/")[0], EVALUATE.name)
        if store.stat(join(uri, DONE)) is None:
            return None
    found = evaluation_at(store, uri)
    return found if found.marker.inputs.get(join(train_uri, DONE)) == train_sha256 else None


def is_endpoint(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


@dataclass(frozen=True)
class ModelFound:
    """`uri`, `sha256`: of the finished train stage, or of the folder of a checkpoint, without `train` then."""

    uri: str
    sha256: str
    train: Finished[TrainMetadata] | None


def model_at(store: Store, uri: str) -> ModelFound:
    """What a URI names: a finished train stage (or the folder of its model), or a checkpoint, a folder with a
    config.json and weights.

    Raises InputError: it is neither.
    """
    return confirmed(uri, lambda: _model_at(store, uri))


def _model_at(store: Store, uri: str) -> ModelFound:
    folder = uri.rstrip("/")
    if folder and store.stat(join(folder, DONE)) is None:
        above = folder.rpartition("/")[0]
        if above and store.stat(join(above, DONE)) is not None:
            uri = above
        elif store.stat(join(folder, "config.json")) is not None:
            return ModelFound(folder, folder_digest(store, folder), None)
        else:
            raise NotFound(
                f"--subject {uri}: there is neither a finished train stage ({DONE}) nor a model (config.json)"
            )
    train = Finished.at(store, uri, TRAIN)
    return ModelFound(train.uri, train.sha256, train)


def subject_at(
    store: Store, run_uri: str, uri: str | None, *, samples_uri: str | None, fail_if_worse_than: str | None
) -> Subject:
    """What a URI names: an endpoint, or what `model_at` finds; by default this run's train stage."""
    samples = Finished.at(store, samples_uri or join(run_uri, "convert"), *OF_SAMPLES)
    baseline = evaluation_at(store, fail_if_worse_than) if fail_if_worse_than else None
    if uri is not None and is_endpoint(uri):
        # Nobody can see from outside which weights it serves.
        sha256 = hashlib.sha256(uri.encode()).hexdigest()
        return Subject(run_uri, uri, sha256, None, samples, baseline, inputs={uri: sha256} | samples.input)
    if uri is None:
        train = Finished.at(store, join(run_uri, "train"), TRAIN)
        found = ModelFound(train.uri, train.sha256, train)
    else:
        found = model_at(store, uri)
    own = {found.uri: found.sha256} if found.train is None else found.train.input
    return Subject(run_uri, found.uri, found.sha256, found.train, samples, baseline, inputs=own | samples.input)


def promoted(
    store: Store, run_uri: str, *, pointer_uri: str, occasion: str, samples_uri: str | None,
    fail_if_worse_than: str | None, asked: Mapping[str, Any],
) -> Subject:  # fmt: skip
    """The newest promoted model, as this occasion (a Job's name or any other word) found it.

    By default it is asked about the samples that it was promoted on, and compared with the evaluation that made the
    first promotion. asked: settings that choose among the samples; a part of what tells one evaluation from another.
    Raises InputError: nothing was promoted yet, or what a pointer names has changed since.
    """
    when = moment(occasion)
    pointer = _resolve(store, pointer_uri, join(run_uri, when, f"{name(pointer_uri)}.json"))
    found = pointer.promotion
    train = promoted_stage(store, found.train_uri, TRAIN, found.train_sha256, pointer)
    samples = Finished.at(store, samples_uri or found.samples_uri, *OF_SAMPLES)
    if fail_if_worse_than:
        baseline = evaluation_at(store, fail_if_worse_than)
    else:
        there = promotions(store, pointer_uri)
        oldest = Pointer.at(store, there[min(there)])
        passed = oldest.promotion
        baseline = promoted_stage(store, passed.evaluation_uri, EVALUATE, passed.evaluation_sha256, oldest)
    parts = json.dumps([train.sha256, samples.sha256, dict(asked), __version__], sort_keys=True)
    key = hashlib.sha256(parts.encode()).hexdigest()[:12]
    logging.get().info("evaluating the promoted model", model=train.uri, pointer=pointer.uri, occasion=when)
    metadata = {"pointer": pointer.uri, "promoted": found.promoted, "occasion": when}
    inputs = train.input | samples.input | {pointer.uri: pointer.sha256}
    place = join(run_uri, when, key)
    return Subject(place, train.uri, train.sha256, train, samples, baseline, metadata, inputs)


def _resolve(store: Store, pointer_uri: str, uri: str) -> Pointer:
    """Looks once for each occasion and line of models: a pod that is tried again, or another part, evaluates the
    same model."""
    pointer = newest(store, pointer_uri)
    line = json.dumps({"pointer": pointer.uri, "sha256": pointer.sha256}, sort_keys=True).encode() + b"\n"
    if store.write_once(uri, line):
        return pointer
    advice = "delete it, or use another --occasion"
    seen, sha256 = read_json(store, uri, lambda there: (str(there["pointer"]), there["sha256"]), advice)
    if not seen.startswith(pointer_uri + "/"):
        raise InputError(f"{uri} is about {seen}, not about {pointer_uri}; use another --occasion")
    pointer = Pointer.at(store, seen)
    if pointer.sha256 != sha256:
        raise InputError(f"{seen} was replaced since {uri} was written; use another --occasion")
    return pointer


def promoted_stage(store: Store, uri: str, kind: StageKind[Record, M], sha256: str, pointer: Pointer) -> Finished[M]:
    """A stage that a promotion names. Raises InputError: it is another one by now."""
    stage = Finished.at(store, uri, kind)
    if stage.sha256 != sha256:
        raise InputError(
            f"{uri} is not what {pointer.uri} promoted: the digest of its marker is {stage.sha256[:12]}…, "
            f"it was {sha256[:12]}…"
        )
    return stage


def moment(occasion: str) -> str:
    """``20261121T0506Z`` of ``reevaluate-29920626``: a CronJob names its Jobs by the scheduled time in minutes since
    1970, and the pod sees no other trace of it. Every other word stands for itself."""
    found = re.fullmatch(r"(?:.*-)?(\d{8})", occasion)
    if found is None or int(found[1]) < _SINCE:
        return occasion
    return datetime.fromtimestamp(60 * int(found[1]), UTC).strftime("%Y%m%dT%H%MZ")
