"""Which model counts: promoted by an evaluation that it passed, found again by its pointer.

    <pointers>/<name>/0000000001.json    the first promoted model: a vcot.records.promotion.Promotion
                      0000000002.json    the next; the highest number is the one that counts

Nothing moves and nothing is overwritten. A promotion is made by the evaluation that earned it, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from vcot import __version__, log
from vcot.errors import InputError
from vcot.evaluation.finished import Finished
from vcot.records.promotion import Promotion
from vcot.storage import Store, join
from vcot.storage.numbered import append, numbered


@dataclass(frozen=True)
class Pointer:
    """One promotion as it lies in storage."""

    uri: str
    sha256: str
    promotion: Promotion


def promote(
    store: Store,
    pointer_uri: str,
    *,
    train: Finished,
    base: Mapping[str, str],
    evaluation: Finished,
    samples: Finished,
    gates: Sequence[str],
) -> Pointer:
    """Appends a model to the pointer, unless this very evaluation has done so already.

    An evaluation that is run again (the chain was started twice) must not bring its model back over a newer one.

    Args:
        pointer_uri: ``<pointers>/<name>``.
        base: uri and sha256 of the base.
        evaluation: what the model has passed, of `samples`.
        gates: the same in words.
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
        newest_number = max(there, default=0)  # not how many there are: somebody may have deleted one
        pointers = [read_pointer(store, uri) for uri in there.values()]
        if earlier := [pointer for pointer in pointers if pointer.promotion.evaluation_sha256 == evaluation.sha256]:
            log.get().info("promoted by this evaluation already", pointer=earlier[0].uri, newest=there[newest_number])
            return earlier[0]
        if (uri := append(store, pointer_uri, data, after=newest_number)) is not None:
            log.get().info("promoted", model=train.uri, pointer=uri)
            return Pointer(uri, hashlib.sha256(data).hexdigest(), promotion)


def newest(store: Store, pointer_uri: str) -> Pointer:
    """The promotion that counts now.

    Raises:
        InputError: nothing was promoted yet.
    """
    there = numbered(store, pointer_uri)
    if not there:
        raise InputError(
            f"{pointer_uri}: no model was promoted yet; run a chain with VCOT_EVALUATE_PROMOTE=true, which writes "
            f"{join(pointer_uri, '0000000001.json')} when its model passes"
        )
    return read_pointer(store, there[max(there)])


def first(store: Store, pointer_uri: str) -> Pointer:
    """The oldest promotion: what later ones are compared with where no other baseline is pinned."""
    there = numbered(store, pointer_uri)
    return read_pointer(store, there[min(there)])


def read_pointer(store: Store, uri: str) -> Pointer:
    data = store.read(uri)
    try:
        return Pointer(uri, hashlib.sha256(data).hexdigest(), Promotion.model_validate_json(data))
    except ValidationError as error:
        raise InputError(f"{uri} is not a promotion: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    fault: Any = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].lower()}"
