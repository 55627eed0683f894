"""What is evaluated, on what, and where the result goes: settled once, before anything is asked.

The model of this run, or of a stage that is named, is evaluated at ``<run>/evaluate``. The newest promoted model is
evaluated again on each occasion:

    <run>/20261121T0317Z/latest.json          which promotion this occasion found; the first process to look decides
                         3f9a…/evaluate/…     one folder per model, samples and code: the stage as ever, and
                               comparison.json, comparison.md
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from vcot import __version__, log
from vcot.errors import InputError
from vcot.evaluation.finished import Finished
from vcot.evaluation.promotion import Pointer, first, newest, read_pointer
from vcot.storage import Store, join, name

_SINCE = 26_297_280  # 2020-01-01 in minutes since 1970: smaller numbers of eight digits are dates, as 20261121


@dataclass(frozen=True)
class Subject:
    run_uri: str
    """The result goes to ``<run_uri>/evaluate``."""
    train: Finished
    samples: Finished
    baseline: Finished | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the report says of how the model was found: the pointer and the occasion."""
    inputs: Mapping[str, str] = field(default_factory=dict)


def trained(
    store: Store, run_uri: str, *, train_uri: str | None, samples_uri: str | None, baseline_uri: str | None
) -> Subject:
    """The model of a train stage that is named, by default this run's."""
    train = Finished.at(store, train_uri or join(run_uri, "train"))
    samples = Finished.at(store, samples_uri or join(run_uri, "convert"))
    baseline = Finished.at(store, baseline_uri) if baseline_uri else None
    return Subject(run_uri, train, samples, baseline, inputs=train.input | samples.input)


def promoted(
    store: Store,
    run_uri: str,
    *,
    pointer_uri: str,
    occasion: str,
    samples_uri: str | None,
    baseline_uri: str | None,
    asked: Mapping[str, Any],
) -> Subject:
    """The newest promoted model, as this occasion found it.

    Args:
        occasion: a Job's name or any other word (see `moment`).
        samples_uri: by default those that the model was promoted on.
        baseline_uri: a finished evaluation to compare with; by default the one that made the first promotion.
        asked: settings that choose among the samples; a part of what tells one evaluation from another.

    Raises:
        InputError: nothing was promoted yet, or what a pointer names has changed since.
    """
    when = moment(occasion)
    pointer = _resolve(store, pointer_uri, join(run_uri, when, f"{name(pointer_uri)}.json"))
    found = pointer.promotion
    train = _unchanged(store, found.train_uri, found.train_sha256, pointer)
    samples = Finished.at(store, samples_uri or found.samples_uri)
    if baseline_uri:
        baseline = Finished.at(store, baseline_uri)
    else:
        oldest = first(store, pointer_uri)
        baseline = _unchanged(store, oldest.promotion.evaluation_uri, oldest.promotion.evaluation_sha256, oldest)
    key = _key([train.sha256, samples.sha256, dict(asked), __version__])
    log.get().info("evaluating the promoted model", model=train.uri, pointer=pointer.uri, occasion=when)
    facts = {"pointer": pointer.uri, "promoted": found.promoted, "occasion": when}
    inputs = train.input | samples.input | {pointer.uri: pointer.sha256}
    return Subject(join(run_uri, when, key), train, samples, baseline, facts, inputs)


def _resolve(store: Store, pointer_uri: str, uri: str) -> Pointer:
    """Looks once for each occasion and line of models: a pod that is tried again, or another part, evaluates the
    same model."""
    pointer = newest(store, pointer_uri)
    line = json.dumps({"pointer": pointer.uri, "sha256": pointer.sha256}, sort_keys=True).encode() + b"\n"
    if store.write_once(uri, line):
        return pointer
    try:
        there = json.loads(store.read(uri))
        seen, sha256 = str(there["pointer"]), there["sha256"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{uri} is damaged; delete it, or use another --occasion") from None
    if not seen.startswith(pointer_uri + "/"):
        raise InputError(f"{uri} is about {seen}, not about {pointer_uri}; use another --occasion")
    pointer = read_pointer(store, seen)
    if pointer.sha256 != sha256:
        raise InputError(f"{seen} was replaced since {uri} was written; use another --occasion")
    return pointer


def _unchanged(store: Store, uri: str, sha256: str, pointer: Pointer) -> Finished:
    stage = Finished.at(store, uri)
    if stage.sha256 != sha256:
        raise InputError(
            f"{uri} is not what {pointer.uri} promoted: the digest of its mark is {stage.sha256[:12]}…, "
            f"it was {sha256[:12]}…"
        )
    return stage


def _key(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def moment(occasion: str) -> str:
    """``20261121T0506Z`` of ``reevaluate-29920626``: a CronJob names its Jobs by the scheduled time in minutes since
    1970, and the pod sees no other trace of it. Every other word stands for itself."""
    found = re.fullmatch(r"(?:.*-)?(\d{8})", occasion)
    if found is None or int(found[1]) < _SINCE:
        return occasion
    return datetime.fromtimestamp(60 * int(found[1]), UTC).strftime("%Y%m%dT%H%MZ")
